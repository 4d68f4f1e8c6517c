"""Files of results and references: golden and real ones, the forms each may have, and what broken ones answer."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hf_grounding.data import json_files
from hf_grounding.data.result_files import (
    CaptionResults,
    GroundedResults,
    VqaResults,
    kind_of,
    read_caption_results,
    read_grounded_results,
    read_vqa_results,
)
from hf_grounding.metrics.grounding_f1 import grounding_f1
from hf_grounding.metrics.vqa_accuracy import vqa_accuracy

CAPTIONS = [{"image_id": 12, "caption": "a dog"}, {"image_id": 7, "caption": ""}]
COCO = {
    "images": [{"id": "7"}, {"id": "12"}],
    "annotations": [
        {"image_id": "12", "caption": "A dog."},
        {"image_id": "7", "caption": "A cat."},
        {"image_id": 12, "caption": "One dog."},
    ],
}
READ_CAPTIONS = CaptionResults(["7", "12"], ["", "a dog"], [["A cat."], ["A dog.", "One dog."]])

ANSWERS = [{"question_id": "2", "answer": "red"}, {"question_id": "1", "answer": "yes"}]
QUESTIONS = {"questions": [{"question_id": 1, "question": "Is it?"}, {"question_id": 2, "question": "What colour?"}]}
ANNOTATIONS = {
    "annotations": [
        {
            "question_id": question_id,
            "answers": [{"answer": answer, "answer_id": number} for number in range(1, 11)],
            "answer_type": answer_type,
            "question_type": question_type,
        }
        for question_id, answer, answer_type, question_type in [
            (3, "2", "number", "how many"),
            (2, "blue", "other", "what"),
            (1, "yes", "yes/no", "is it"),
        ]
    ]
}

BOX = [0, 0, 9, 9]
PREDICTION = {"classes": ["man"], "boxes": [BOX]}
PUBLIC_PREDICTION = {"clss": ["man"], "idx_in_sent": [1], "bbox": [BOX]}
CAPTION = {"tokens": ["a", "man"], "classes": ["man"], "indices": [1], "boxes": [BOX]}
PUBLIC_CAPTION = {
    "tokens": ["a", "man"],
    "process_clss": ["man"],
    "process_idx": [1],
    "process_bnd_box": [BOX],
}
READ_GROUNDED = GroundedResults(["5", "6"], [None, PREDICTION], [[CAPTION], [CAPTION, CAPTION]])


def write(path: Path, content: Any) -> Path:
    text = json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def captions_of(folder: Path, results: Any = CAPTIONS, annotations: Any = COCO, **options: bool) -> CaptionResults:
    paths = write(folder / "results.json", results), write(folder / "coco.json", annotations)
    return read_caption_results(*paths, **options)


def answers_of(
    folder: Path, results: Any = ANSWERS, questions: Any = QUESTIONS, annotations: Any = ANNOTATIONS, **options: bool
) -> VqaResults:
    named = {"results": results, "questions": questions, "annotations": annotations}
    return read_vqa_results(*(write(folder / f"{name}.json", content) for name, content in named.items()), **options)


def grounded_of(folder: Path, results: Any, references: Any, **options: bool) -> GroundedResults:
    paths = write(folder / "results.json", results), write(folder / "references.json", references)
    return read_grounded_results(*paths, **options)


def message_of(call, *arguments, **options) -> str:
    """Text of the `ValueError`, which is one line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the caller looks at the text
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_captions_are_in_the_order_of_the_annotations_whatever_type_ids_have(tmp_path):
    assert captions_of(tmp_path) == READ_CAPTIONS


def test_references_may_be_captions_by_image(tmp_path):
    assert captions_of(tmp_path, annotations={"7": ["A cat."], "12": ["A dog.", "One dog."]}) == READ_CAPTIONS


def test_missing_captions_are_refused_or_left_out(tmp_path):
    message = message_of(captions_of, tmp_path, CAPTIONS[:1])
    assert message == (
        f"1 image has no caption in '{tmp_path}/results.json', such as 7; "
        "give one for each, or allow missing ones (`allow_missing`)."
    )
    assert captions_of(tmp_path, CAPTIONS[:1], allow_missing=True) == CaptionResults(
        ["12"], ["a dog"], [["A dog.", "One dog."]]
    )


def test_a_message_names_five_ids_and_counts_all(tmp_path):
    references = {str(image_id): ["A cat."] for image_id in range(9)}
    message = message_of(captions_of, tmp_path, [{"image_id": 8, "caption": "a cat"}], references)
    assert message.startswith(f"8 images have no caption in '{tmp_path}/results.json', such as 0, 1, 2, 3, 4; ")


@pytest.mark.parametrize(
    "results, message",
    [
        ([*CAPTIONS, CAPTIONS[0]], "1 image has more than one entry in '{}', such as 12; keep one of each."),
        ([*CAPTIONS, {"image_id": "12", "caption": ""}], "1 image has more than one entry in '{}', such as 12; "),
        ([*CAPTIONS, {"image_id": 9, "caption": ""}], "1 image has an entry in '{}' but none in '"),
        ([*CAPTIONS, {"image_id": "a\nb" + "c" * 99, "caption": ""}], "1 image has an entry in '{}' but none in '"),
        ([], "'{}' has no entries."),
        ({"12": "a dog"}, "In '{}', the top level must be a list, got {{'12': 'a dog'}}."),
        (["a dog"], "In '{}', entry 0 must be an object, got 'a dog'."),
        ([*CAPTIONS, {"caption": ""}], "In '{}', entry 2 has no `image_id`."),
        (
            [{"image_id": None, "caption": ""}],
            "In '{}', `image_id` of entry 0 must be a whole number or text, got None.",
        ),
        (
            [{"image_id": True, "caption": ""}],
            "In '{}', `image_id` of entry 0 must be a whole number or text, got True.",
        ),
        ([{"image_id": 12}], "In '{}', image '12' has no `caption`."),
        ([{"image_id": "1\n2"}], r"In '{}', image '1\n2' has no `caption`."),
        ([{"image_id": 12, "caption": 5}], "In '{}', `caption` of image '12' must be text, got 5."),
        ([{"image_id": 12, "caption": ["a"]}], "In '{}', `caption` of image '12' must be text, got ['a']."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_captions_that_cannot_be_scored_are_refused(tmp_path, results, message):
    assert message_of(captions_of, tmp_path, results).startswith(message.format(tmp_path / "results.json"))


@pytest.mark.parametrize(
    "annotations, message",
    [
        ([], "'{}' has no entries."),
        ([{"id": 7}], "In '{}', the top level must be an object, got [{{'id': 7}}]."),
        ({"images": COCO["images"]}, "In '{}', the top level has no `annotations`."),
        ({"annotations": COCO["annotations"]}, "In '{}', the top level has no `images`."),
        (COCO | {"images": []}, "'{}' has no entries of `images`."),
        (COCO | {"images": {"id": 7}}, "In '{}', `images` of the top level must be a list, got {{'id': 7}}."),
        (COCO | {"images": [{"file_name": "7.jpg"}]}, "In '{}', entry 0 of `images` has no `id`."),
        (COCO | {"images": [{"id": 7}, {"id": "7"}]}, "1 image has more than one entry in '{}', such as 7; "),
        (COCO | {"images": [{"id": 7}]}, "1 image has captions but no entry in `images` of '{}', such as 12; "),
        (COCO | {"annotations": COCO["annotations"][:1]}, "1 image has no reference caption in '{}', such as 7; "),
        (COCO | {"annotations": [{"caption": "A cat."}]}, "In '{}', entry 0 of `annotations` has no `image_id`."),
        (COCO | {"annotations": [{"image_id": 7}]}, "In '{}', entry 0 of `annotations` has no `caption`."),
        (
            COCO | {"annotations": [{"image_id": 7, "caption": None}]},
            "In '{}', `caption` of entry 0 of `annotations` must be text, got None.",
        ),
        ({"7": []}, "1 image has no reference caption in '{}', such as 7; "),
        ({"7": "A cat."}, "In '{}', the captions of image '7' must be a list, got 'A cat.'."),
        ({"7": [5]}, "In '{}', each of the captions of image '7' must be text, got 5."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reference_captions_of_another_form_are_refused(tmp_path, annotations, message):
    assert message_of(captions_of, tmp_path, annotations=annotations).startswith(message.format(tmp_path / "coco.json"))


def test_answers_are_in_the_order_of_the_questions(tmp_path):
    assert answers_of(tmp_path) == VqaResults(
        ["1", "2"], ["yes", "red"], [["yes"] * 10, ["blue"] * 10], ["yes/no", "other"], ["is it", "what"]
    )


def test_missing_answers_are_refused_or_left_out(tmp_path):
    message = message_of(answers_of, tmp_path, ANSWERS[1:])
    assert message.startswith(f"1 question has no answer in '{tmp_path}/results.json', such as 2; ")
    assert answers_of(tmp_path, ANSWERS[1:], allow_missing=True) == VqaResults(
        ["1"], ["yes"], [["yes"] * 10], ["yes/no"], ["is it"]
    )


def changed(**change: Any) -> dict:
    """The annotations with another one of question 1; `None` takes the key away."""
    annotation = {key: value for key, value in (ANNOTATIONS["annotations"][2] | change).items() if value is not None}
    return {"annotations": [*ANNOTATIONS["annotations"][:2], annotation]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"results": [*ANSWERS, ANSWERS[0]]}, "1 question has more than one entry in '{}/results.json', such as 2; "),
        (
            {"results": [*ANSWERS, {"question_id": 3, "answer": "2"}]},
            "1 question has an entry in '{}/results.json' but none in '{}/questions.json', such as 3; ",
        ),
        ({"results": [{"question_id": 1, "answer": 2}]}, "In '{}/results.json', `answer` of question '1' must be text"),
        ({"results": [{"answer": "yes"}]}, "In '{}/results.json', entry 0 has no `question_id`."),
        ({"questions": [{"question_id": 1}]}, "In '{}/questions.json', the top level must be an object, got [{{"),
        ({"questions": ANNOTATIONS}, "In '{}/questions.json', the top level has no `questions`."),
        (
            {"questions": {"questions": QUESTIONS["questions"] * 2}},
            "2 questions have more than one entry in '{}/questions.json', such as 1, 2; ",
        ),
        (
            {"annotations": {"annotations": ANNOTATIONS["annotations"][:1]}},
            "2 questions have no annotation in '{}/annotations.json', such as 1, 2; give files of the same split.",
        ),
        (
            {"annotations": {"annotations": ANNOTATIONS["annotations"] * 2}},
            "3 questions have more than one entry in '{}/annotations.json', such as 3, 2, 1; ",
        ),
        ({"annotations": changed(answers=None)}, "In '{}/annotations.json', question '1' has no `answers`."),
        ({"annotations": changed(answers=[])}, "In '{}/annotations.json', question '1' has no answers."),
        ({"annotations": changed(answers="yes")}, "In '{}/annotations.json', `answers` of question '1' must be a list"),
        (
            {"annotations": changed(answers=["yes"])},
            "In '{}/annotations.json', an answer of question '1' must be an object, got 'yes'.",
        ),
        (
            {"annotations": changed(answers=[{"answer": 2}])},
            "In '{}/annotations.json', `answer` of an answer of question '1' must be text, got 2.",
        ),
        ({"annotations": changed(answer_type=None)}, "In '{}/annotations.json', question '1' has no `answer_type`."),
        (
            {"annotations": changed(question_type=None)},
            "In '{}/annotations.json', question '1' has no `question_type`.",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_answers_questions_and_annotations_that_do_not_fit_are_refused(tmp_path, change, message):
    assert message_of(answers_of, tmp_path, **change).startswith(message.replace("{}", str(tmp_path)).format())


@pytest.mark.parametrize(
    "results",
    [
        {"6": PREDICTION},
        {"6": [PREDICTION], "5": None},
        [PREDICTION | {"image_id": 6, "caption": "a man"}],
        {"6": [PUBLIC_PREDICTION]},
        {"results": {"6": [PUBLIC_PREDICTION]}, "eval_mode": "gen"},
        {"results": [PUBLIC_PREDICTION | {"image_id": "6"}]},
    ],
)
@pytest.mark.parametrize(
    "references",
    [
        {"5": [CAPTION], "6": [CAPTION, CAPTION]},
        [{"image_id": 5, "captions": [PUBLIC_CAPTION]}, {"image_id": "6", "captions": [PUBLIC_CAPTION] * 2}],
        {
            "vocab": ["man"],
            "annotations": [
                {"image_id": 5, "image_size": [500, 375], "captions": [PUBLIC_CAPTION]},
                {"image_id": 6, "image_size": [500, 375], "captions": [PUBLIC_CAPTION, CAPTION]},
            ],
        },
        {"annotations": {"5": [PUBLIC_CAPTION], "6": [CAPTION, CAPTION]}},
    ],
)
def test_grounded_captions_of_every_form_read_the_same(tmp_path, results, references):
    assert grounded_of(tmp_path, results, references) == READ_GROUNDED
    with_prediction = grounded_of(tmp_path, results, references, allow_missing=True)
    assert with_prediction.image_ids == ["6"]
    assert (with_prediction.predictions, with_prediction.references) == (
        READ_GROUNDED.predictions[1:],
        READ_GROUNDED.references[1:],
    )


@pytest.mark.parametrize(
    "results, message",
    [
        ({}, "'{}' has no entries."),
        ({"results": {}}, "In '{}', `results` of the top level must be a list, got {{}}."),
        ({"results": []}, "'{}' has no entries of `results`."),
        ("man", "In '{}', the top level must be a list, got 'man'."),
        ([PREDICTION], "In '{}', entry 0 has no `image_id`."),
        ([PREDICTION | {"image_id": 5}, PREDICTION | {"image_id": "5"}], "1 image has more than one entry in '{}', "),
        ({"5": PREDICTION, "8": PREDICTION, "9": PREDICTION}, "2 images have an entry in '{}' but none in '"),
        ({"5": [PREDICTION] * 5}, "In '{}', image '5' has 5 captions; exactly one is scored."),
        ({"5": []}, "In '{}', image '5' has 0 captions; exactly one is scored."),
        ({"5": "man"}, "In '{}', image '5' must be an object, got 'man'."),
        ({"5": {"boxes": [BOX]}}, "In '{}', image '5' has no `classes` or `clss`."),
        ({"5": {"clss": ["man"]}}, "In '{}', image '5' has no `boxes` or `bbox`."),
        ({"5": PREDICTION | {"classes": "man"}}, "In '{}', `classes` of image '5' must be a list, got 'man'."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grounded_predictions_that_cannot_be_scored_are_refused(tmp_path, results, message):
    references = {"5": [CAPTION], "6": [CAPTION]}
    assert message_of(grounded_of, tmp_path, results, references).startswith(message.format(tmp_path / "results.json"))


@pytest.mark.parametrize(
    "references, message",
    [
        ({"annotations": []}, "'{}' has no entries of `annotations`."),
        ([{"image_id": 5}], "In '{}', image '5' has no `captions`."),
        ({"5": "a man"}, "In '{}', image '5' must be an object, got 'a man'."),
        ({"5": [CAPTION], "6": []}, "1 image has no reference caption in '{}', such as 6; "),
        ({"5": ["a man"]}, "In '{}', a caption of image '5' must be an object, got 'a man'."),
        ({"5": [PREDICTION]}, "In '{}', a caption of image '5' has no `tokens`."),
        (
            {"5": [PREDICTION | {"tokens": ["man"]}]},
            "In '{}', a caption of image '5' has no `indices` or `process_idx`.",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grounded_references_of_another_form_are_refused(tmp_path, references, message):
    answer = message_of(grounded_of, tmp_path, {"5": PREDICTION}, references)
    assert answer.startswith(message.format(tmp_path / "references.json"))


@pytest.mark.parametrize("name", ["results.json.gz", "results.gz"])
def test_files_may_be_gzipped(tmp_path, name):
    results, annotations = write(tmp_path / name, CAPTIONS), write(tmp_path / "coco.json.gz", COCO)
    assert results.read_bytes()[:2] == b"\x1f\x8b"
    assert read_caption_results(str(results), annotations) == READ_CAPTIONS


def test_a_gzipped_file_is_told_by_its_content_not_its_name(tmp_path):
    packed, plain = tmp_path / "results.json", tmp_path / "coco.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(CAPTIONS).encode()))
    plain.write_text(json.dumps(COCO))
    assert read_caption_results(packed, plain) == READ_CAPTIONS


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(CAPTIONS), encoding="utf-8-sig")
    assert read_caption_results(tmp_path / "results.json", write(tmp_path / "coco.json", COCO)) == READ_CAPTIONS


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "'{}' is empty."),
        (gzip.compress(b""), "'{}' is empty."),
        (b" \n", "'{}' cannot be read as JSON (Expecting value"),
        (b"image_id,caption\n12,a dog\n", "'{}' cannot be read as JSON (Expecting value: line 1"),
        (json.dumps(CAPTIONS).encode()[:-3], "'{}' cannot be read as JSON ("),
        (b'["\xff"]', "'{}' cannot be read as JSON ('utf-8' codec"),
        (b"[" * 200_000, "'{}' cannot be read as JSON ("),
        (
            b'{"7": ["a"], "7": ["b"], "9": []}',
            "'{}' cannot be read as JSON (an object has 1 key more than once, such as 7).",
        ),
        (b"null", "'{}' has no entries."),
        (gzip.compress(json.dumps(CAPTIONS).encode())[:-9], "'{}' cannot be read ("),
        (gzip.compress(b"[]")[:10] + b"\xff" * 20, "'{}' cannot be read ("),
        (b"\x1f\x8bno", "'{}' cannot be read ("),
    ],
    ids=[
        *("empty", "empty gzip", "blank", "csv", "cut", "not utf-8", "too deep", "key twice", "null"),
        *("cut gzip", "broken gzip", "no gzip"),
    ],
)
def test_files_that_are_no_json_are_refused(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    coco = write(tmp_path / "coco.json", COCO)
    assert message_of(read_caption_results, path, coco).startswith(message.format(path))


def test_files_that_are_not_there_and_folders_are_named(tmp_path):
    coco = write(tmp_path / "coco.json", COCO)
    with pytest.raises(FileNotFoundError) as caught:
        read_caption_results(tmp_path / "nothing.json", coco)
    assert str(caught.value) == f"No file '{tmp_path}/nothing.json'."
    assert message_of(read_caption_results, tmp_path, coco).startswith(f"'{tmp_path}' cannot be read (")


def test_files_of_more_than_2_gb_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "results.json"
    with open(path, "wb") as file:
        file.truncate(2_000_000_001)  # a hole, which takes no space on the disk
    message = message_of(read_caption_results, path, write(tmp_path / "coco.json", COCO))
    assert message == f"'{path}' holds more than 2 GB; give only the part to score."


def test_gzipped_files_are_measured_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "_MAX_BYTES", 1000)
    results = write(tmp_path / "results.json.gz", [{"image_id": 12, "caption": "a" * 2000}])
    assert results.stat().st_size < 1000
    message = message_of(read_caption_results, results, write(tmp_path / "coco.json", COCO))
    assert message.startswith(f"'{results}' holds more than ")


def test_golden_grounding_scores_from_files(tmp_path, golden_dir):
    golden = json.loads((golden_dir / "grounding_f1.json").read_text())
    for name, case in golden["cases"].items():
        read = grounded_of(tmp_path, {"results": case["prediction"]}, {"annotations": case["reference"]})
        assert read.image_ids == case["split"]
        scores = grounding_f1(
            read.predictions, read.references, lemmatizer=lambda word: golden["lemma"].get(word, word)
        )
        for mode in ("all", "loc"):
            assert scores[f"f1_{mode}"] == pytest.approx(case["scores"][mode]["f1"] or 0.0, abs=1e-9), (name, mode)


def test_real_coco_captions(tmp_path, data_dir):
    path = data_dir / "coco" / "annotations" / "captions_val2017.json"
    coco = json.loads(path.read_text())
    captions: dict[int, list[str]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    first = [{"image_id": image_id, "caption": given[0]} for image_id, given in captions.items()]
    read = read_caption_results(write(tmp_path / "results.json", first[::-1]), path)
    assert read.image_ids == [str(image_id) for image_id in captions]
    assert read.predictions == [given[0] for given in captions.values()]
    assert read.references == list(captions.values())

    part = read_caption_results(write(tmp_path / "part.json", first[:10]), path, allow_missing=True)
    assert part.image_ids == read.image_ids[:10]
    message = message_of(read_caption_results, tmp_path / "part.json", path)
    assert message.startswith(f"{len(captions) - 10} images have no caption in ")


def test_real_vqa_answers(tmp_path, data_dir):
    folder = data_dir / "vqa" / "vqa_v2_subset"
    questions, annotations = (folder / f"vqa_{kind}_valid.json.gz" for kind in ("questions", "annotations"))
    entries = json.loads(gzip.decompress(annotations.read_bytes()))["annotations"]
    results = [{"question_id": entry["question_id"], "answer": entry["multiple_choice_answer"]} for entry in entries]
    read = read_vqa_results(write(tmp_path / "results.json.gz", results), questions, annotations)
    assert len(read.question_ids) == len(entries)
    assert {len(answers) for answers in read.answers} == {10}
    assert set(read.answer_types) == {"yes/no", "number", "other"}
    by_id = {str(entry["question_id"]): entry for entry in entries}
    assert read.question_types == [by_id[question_id]["question_type"] for question_id in read.question_ids]
    scores = vqa_accuracy(
        read.predictions, read.answers, answer_types=read.answer_types, question_types=read.question_types
    )
    # The most frequent answer is what most people agree with.
    assert 0.8 < scores["vqa_accuracy"] < 1


@pytest.mark.parametrize(
    ("results", "kind"),
    [
        ([{"image_id": 5, "caption": "a man"}], "captions"),
        ([{"question_id": 5, "answer": "yes"}], "answers"),
        ([PREDICTION | {"image_id": 5, "caption": "a man"}], "grounded captions"),
        ({"results": {"5": PUBLIC_PREDICTION}}, "grounded captions"),
    ],
)
def test_the_kind_of_results_is_told_by_what_is_in_the_file(tmp_path, results, kind):
    assert kind_of(write(tmp_path / "results.json", results)) == kind
