"""VQA v2: official files and subsets, gzipped or not, photos at hand or not, the errors of broken files."""

import gzip
import json
from pathlib import Path

import pytest
from PIL import Image as PILImage

from hf_grounding.data import GROUNDING_FEATURES, AnnotationError, load_grounding_dataset
from hf_grounding.metrics.vqa_accuracy import majority_answer, soft_scores

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "vqa" / "vqa_v2_subset"
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json"


def questions(*triples):
    keys = ("question_id", "image_id", "question")
    return {"info": {}, "questions": [dict(zip(keys, triple, strict=True)) for triple in triples]}


def annotation(question_id, image_id, answers, answer_type="other", question_type="what is", main=None):
    return {
        "question_id": question_id,
        "image_id": image_id,
        "question_type": question_type,
        "answer_type": answer_type,
        "multiple_choice_answer": main or answers[0],
        "answers": [{"answer": each, "answer_id": i, "answer_confidence": "yes"} for i, each in enumerate(answers)],
    }


ASKED = questions((458752000, 458752, "What is this?"), (9, 262148, "How many?"), (458752001, 458752, " Is\nit? "))
SAID = [
    annotation(458752000, 458752, ["net", "mesh", "net"]),
    annotation(9, 262148, ["2"] * 3, "number", "how many"),
    annotation(458752001, 458752, ["yes"], "yes/no", "is it"),
]


@pytest.fixture
def folder(tmp_path):
    """Train with answers and test without, no photos."""
    root = tmp_path / "vqa"
    root.mkdir()
    write(root / QUESTIONS.format("train2014"), ASKED)
    write(root / ANNOTATIONS.format("train2014"), {"annotations": SAID})
    write(root / QUESTIONS.format("test2015"), questions((1, 2, "Who?")))
    write(root / QUESTIONS.format("test-dev2015"), questions((1, 2, "Who?")))
    return root


def write(path, content):
    path.write_text(json.dumps(content))


def load(folder, **settings):
    return load_grounding_dataset("vqa_v2", data_dir=folder, cache_dir=folder / "cache", **settings)


def test_a_row_is_an_image_with_its_questions_and_ten_answers_each(folder):
    rows = load(folder)["train"]
    assert rows.features == GROUNDING_FEATURES
    assert rows["image_id"][:] == ["458752", "262148"]
    assert rows["image"][:] == [None, None]
    first, second = rows["questions"]
    assert [each["question"] for each in first] == ["What is this?", "Is it?"]
    assert first[0]["answers"] == ["net", "net", "mesh"]
    assert second == [
        {
            "question_id": "9",
            "question": "How many?",
            "answers": ["2", "2", "2"],
            "answer_type": "number",
            "question_type": "how many",
        }
    ]


def test_of_equally_common_answers_the_annotations_main_one_counts(folder):
    said = annotation(9, 262148, ["red", "blue"] * 5, main="blue")
    write(folder / ANNOTATIONS.format("train2014"), {"annotations": [said, SAID[0], SAID[2]]})
    (question,) = load(folder, split="train")["questions"][1]
    assert question["answers"] == ["blue"] * 5 + ["red"] * 5
    assert majority_answer(question["answers"]) == "blue"


def test_questions_of_test_splits_have_no_answers(folder):
    rows = load(folder)
    assert set(rows) == {"train", "test", "test_dev"}
    (question,) = rows["test_dev"]["questions"][0]
    assert (question["answers"], question["answer_type"], question["question_type"]) == ([], "", "")


def test_gzipped_files_and_the_names_of_subsets_give_the_same_rows(folder, tmp_path):
    other = tmp_path / "subset"
    other.mkdir()
    for name, content in (("questions", ASKED), ("annotations", {"annotations": SAID})):
        (other / f"vqa_{name}_train.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    assert load(other)["train"].to_list() == load(folder)["train"].to_list()


def test_photos_are_found_where_their_folder_is_there(folder, tmp_path):
    root = tmp_path / "coco"
    (root / "train2014").mkdir(parents=True)
    PILImage.new("RGB", (8, 6)).save(root / "train2014" / "COCO_train2014_000000458752.jpg")
    with pytest.raises(AnnotationError, match=r"image '262148': its photo '.*_000000262148.jpg' is not there"):
        load(folder, split="train", image_dir=str(root))
    PILImage.new("RGB", (4, 6)).save(root / "train2014" / "COCO_train2014_000000262148.jpg")
    with pytest.raises(AnnotationError, match=r"image '2': its photo '.*test2015"):
        load(folder, image_dir=str(root))
    write(folder / QUESTIONS.format("test2015"), questions((1, 10**12, "Who?")))
    with pytest.raises(AnnotationError, match="the image's id must be COCO's number of it, of at most 12 digits"):
        load(folder, image_dir=str(root))
    write(folder / QUESTIONS.format("test2015"), questions((1, 2, "Who?")))
    (root / "train2014").rename(folder / "train2014")  # now beside the questions: no `image_dir`, and test has none
    found = load(folder)
    assert [image.size for image in found["train"]["image"]] == [(8, 6), (4, 6)]
    assert found["test"]["image"][:] == [None]


@pytest.mark.parametrize(
    "said, message",
    [
        (SAID[:2], r"1 question has no annotation in '.*annotations.json', such as 458752001; give files of the same"),
        ([*SAID, SAID[0]], r"1 question has more than one entry in '.*annotations.json'"),
        ([{**SAID[0], "image_id": 9}, *SAID[1:]], r"question '458752000' is about image '9', .* about image '458752'"),
        ([{**SAID[0], "answers": []}, *SAID[1:]], r"question '458752000' has no answers"),
        ([{**SAID[0], "answers": ["net"]}, *SAID[1:]], r"an answer of question '458752000' must be an object"),
        (
            [{**SAID[0], "multiple_choice_answer": 1}, *SAID[1:]],
            r"`multiple_choice_answer` of question '458752000' must",
        ),
        ([{**SAID[0], "answer_type": 3}, *SAID[1:]], r"`answer_type` of question '458752000' must be text, got 3"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(folder, said, message):
    write(folder / ANNOTATIONS.format("train2014"), {"annotations": said})
    with pytest.raises(AnnotationError, match=message):
        load(folder, split="train")


@pytest.mark.parametrize(
    "content, message",
    [
        (json.dumps(ASKED).encode()[:-9], r"questions.json' cannot be read as JSON"),
        (gzip.compress(json.dumps(ASKED).encode())[:-9], r"questions.json' cannot be read \("),
        (b"", r"questions.json' is empty"),
        (b'{"questions": []}', r"has no entries of `questions`"),
        (json.dumps(questions((458752000, 458752, " "))).encode(), r"question '458752000' has no words: ''"),
        (json.dumps(questions((458752000, 458752, "? ,"))).encode(), r"question '458752000' has no words: '\? ,'"),
        (json.dumps(questions((458752000, "../458752", "What?"))).encode(), r"is about image '458752', and .* '../458"),
    ],
)
def test_broken_questions_are_refused_with_their_file(folder, content, message):
    (folder / QUESTIONS.format("train2014")).write_bytes(content)
    with pytest.raises(AnnotationError, match=message):
        load(folder, split="train")


def test_files_that_are_missing_are_named(folder, tmp_path):
    (folder / ANNOTATIONS.format("train2014")).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no 'v2_mscoco_train2014_annotations.json' or '.json.gz' beside"):
        load(folder)
    with pytest.raises(FileNotFoundError, match=r"has no questions of VQA v2: expected 'v2_OpenEnded_mscoco_train2014"):
        load(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/vqa/vqa_v2_subset")
def test_the_real_subset_has_the_questions_it_is_known_to_have(tmp_path):
    rows = load_grounding_dataset("vqa_v2", data_dir=SHARED, cache_dir=tmp_path, split="val")
    asked = [question for questions in rows["questions"] for question in questions]
    assert (len(rows), len(asked)) == (8260, 8977)
    assert {len(question["answers"]) for question in asked} == {10}
    assert {question["answer_type"] for question in asked} == {"yes/no", "number", "other"}
    assert all(max(soft_scores(question["answers"]).values()) >= 0.3 for question in asked)
    assert len({majority_answer(question["answers"]) for question in asked}) > 1000
    with_images = load_grounding_dataset("vqa_v2", data_dir=SHARED / "with_images", cache_dir=tmp_path, split="train")
    assert (len(with_images), sum(map(len, with_images["questions"]))) == (66, 101)
    assert with_images[0]["image"].size == (341, 256)
