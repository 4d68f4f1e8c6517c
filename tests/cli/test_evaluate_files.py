"""`hf-grounding evaluate` of result files: the numbers of the metrics, comparisons, and what wrong files answer."""

import json
import re
import sys

import pytest

from hf_grounding.cli.common import print_json
from hf_grounding.metrics import bleu, cider, grounding_f1, vqa_accuracy

from .conftest import run

CAPTIONS = {1: ["A man rides a horse .", "a man on a horse"], 2: ["Two dogs run .", "dogs on grass"], 3: ["a red car"]}
GOOD = {1: "a man rides a horse", 2: "two dogs on grass", 3: "a red car"}
POOR = {1: "a horse", 2: "a cat", 3: "the car"}
WORDS = {
    "tokens": ["a", "man", "on", "grass"],
    "process_clss": ["man"],
    "process_idx": [1],
    "process_bnd_box": [[0, 0, 9, 9]],
}


@pytest.fixture
def files(tmp_path):
    def write(name, content):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))

    annotations = [{"image_id": image, "caption": text} for image, texts in CAPTIONS.items() for text in texts]
    write("captions.json", {"images": [{"id": image} for image in CAPTIONS], "annotations": annotations})
    for name, captions in (("good", GOOD), ("poor", POOR), ("part", {1: GOOD[1], 2: GOOD[2]})):
        write(f"{name}.json", [{"image_id": image, "caption": text} for image, text in captions.items()])
    write("unknown.json", [{"image_id": 9, "caption": "x"}])
    write("twice.json", [{"image_id": 1, "caption": "x"}] * 2)
    write("broken.json", "[{")
    write("wrapped.json", {"results": [{"image_id": 1, "caption": "x"}]})
    write("numbers.json", [1, 2])
    write("questions.json", {"questions": [{"question_id": 5, "image_id": 1, "question": "How many ?"}]})
    people = [{"answer": "2", "answer_id": number} for number in range(2)]
    people += [{"answer": "3", "answer_id": number} for number in range(2, 10)]
    annotation = {"question_id": 5, "answers": people, "answer_type": "number", "question_type": "how many"}
    write("answers.json", {"annotations": [annotation]})
    write("answered.json", [{"question_id": 5, "answer": "two"}])
    write("grounded.json", {"results": {"1": [{"clss": ["man", "dog"], "bbox": [[0, 0, 9, 8], [0, 0, 5, 5]]}]}})
    write("boxes.json", {"1": [WORDS, WORDS]})
    write("more_boxes.json", {"1": [WORDS, WORDS], "2": [WORDS], "3": [WORDS]})
    return tmp_path


def json_of(answer):
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_captions_have_the_scores_of_the_functions(files):
    arguments = ("evaluate", files / "good.json", "--annotations", files / "captions.json")
    result = json_of(run(*arguments, "--metrics", "bleu,cider_d", "--json"))
    assert result["bleu_4"] == bleu(list(GOOD.values()), list(CAPTIONS.values()))["bleu_4"]
    assert result["cider_d"] == cider(list(GOOD.values()), list(CAPTIONS.values()))["cider_d"]
    table = run(*arguments, "--metrics", "bleu,cider_d").out
    assert re.search(rf"bleu_4 +{100 * result['bleu_4']:.1f}", table)
    assert "Images: 3." in table


def test_answers_have_the_accuracy_of_the_function(files):
    arguments = ("evaluate", files / "answered.json", "--annotations", files / "answers.json")
    arguments = (*arguments, "--questions", files / "questions.json")
    assert (
        json_of(run(*arguments, "--json"))["vqa_accuracy"]
        == vqa_accuracy(["two"], [["2"] * 2 + ["3"] * 8])["vqa_accuracy"]
    )
    assert re.search(r"number +60\.0 +1", run(*arguments).out)


def test_grounded_captions_have_the_f1_of_the_function(files):
    reference = {"tokens": WORDS["tokens"], "classes": ["man"], "indices": [1], "boxes": [[0, 0, 9, 9]]}
    prediction = {"classes": ["man", "dog"], "boxes": [[0, 0, 9, 8], [0, 0, 5, 5]]}
    expected = grounding_f1([prediction], [[reference, reference]])
    arguments = ("evaluate", files / "grounded.json", "--annotations", files / "boxes.json")
    assert json_of(run(*arguments, "--json"))["f1_all"] == expected["f1_all"]
    assert "1 images, 0 of them without a prediction" in run(*arguments).out


def test_two_files_are_compared_by_a_paired_bootstrap(files):
    arguments = ("evaluate", files / "good.json", "--annotations", files / "captions.json")
    arguments = (*arguments, "--against", files / "poor.json", "--metrics", "bleu,rouge_l")
    comparison = json_of(run(*arguments, "--json"))["comparison"]
    assert set(comparison) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"}
    expected = [bleu(list(captions.values()), list(CAPTIONS.values()))["bleu_1"] for captions in (GOOD, POOR)]
    assert [comparison["bleu_1"][name] for name in ("first", "second")] == expected
    lower, upper = comparison["rouge_l"]["interval"]
    assert 0 < lower <= comparison["rouge_l"]["difference"] <= upper
    assert "95 % interval" in run(*arguments).out
    same = (*arguments[:-4], "--against", files / "good.json", "--metrics", "bleu")
    assert json_of(run(*same, "--json"))["comparison"]["bleu_1"]["p"] == 1.0


def test_reference_captions_of_other_splits_are_noticed_and_can_be_left_out(files):
    arguments = ("evaluate", files / "grounded.json", "--annotations", files / "more_boxes.json")
    answer = run(*arguments)
    assert "3 images, 2 of them without a prediction" in answer.out
    assert "--allow_missing leaves them out" in answer.out
    alone = run("evaluate", files / "grounded.json", "--annotations", files / "boxes.json", "--json")
    assert json_of(run(*arguments, "--allow_missing", "--json")) == json_of(alone)


def test_f1_is_compared_too(files):
    arguments = ("evaluate", files / "grounded.json", "--annotations", files / "boxes.json")
    comparison = json_of(run(*arguments, "--against", files / "grounded.json", "--json"))["comparison"]
    assert {name: row["difference"] for name, row in comparison.items()} == {"f1_all": 0.0, "f1_loc": 0.0}


def test_images_without_a_result_may_be_left_out(files):
    arguments = ("evaluate", files / "part.json", "--annotations", files / "captions.json", "--metrics", "rouge_l")
    assert json_of(run(*arguments, "--allow_missing", "--json"))["count"] == 2
    answer = run(*arguments, "--allow_missing", "--against", files / "good.json")
    assert answer.code == 1
    assert "must have the same images or questions, and 1 are in one alone, such as 3." in answer.err


def test_metrics_that_cannot_be_computed_are_absent_and_not_0(files, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys.modules["hf_grounding.metrics.meteor"], "_processes", {})  # none that still runs
    arguments = ("evaluate", files / "good.json", "--annotations", files / "captions.json")
    result = json_of(run(*arguments, "--json"))
    assert not {"meteor", "spice"} & result.keys()
    assert re.search(r"Absent: meteor\. METEOR needs", run(*arguments).out)


def test_if_nothing_can_be_computed_the_reason_is_the_answer(files, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys.modules["hf_grounding.metrics.meteor"], "_processes", {})
    arguments = (
        "evaluate",
        files / "good.json",
        "--annotations",
        files / "captions.json",
        "--metrics",
        "spice, meteor",
    )
    for more in ((), ("--against", files / "poor.json")):
        answer = run(*arguments, *more)
        assert answer.code == 1
        assert "Absent: spice. SPICE needs" in answer.out
        assert "Absent: meteor. METEOR needs" in answer.out


def test_one_image_warns_in_words_and_not_in_code(files):
    arguments = ("evaluate", files / "part.json", "--annotations", files / "one.json", "--metrics", "cider_d")
    (files / "one.json").write_text(json.dumps({"1": CAPTIONS[1]}))
    (files / "part.json").write_text(json.dumps([{"image_id": 1, "caption": GOOD[1]}]))
    answer = run(*arguments)
    assert answer.code == 0
    assert answer.err.startswith("Warning: CIDEr weighs n-grams by how rare they are among images")
    assert ".py" not in answer.err


def test_what_is_not_a_number_is_null_in_json(capsys):
    print_json({"a": float("nan"), "b": [1.5, (float("inf"), "x")], "c": {"d": None}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, [None, "x"]], "c": {"d": None}}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["good.json"], 2, r"good\.json' are scored against --annotations; name that file"),
        (["nothing.json", "--annotations", "captions.json"], 1, r"No file '.*nothing\.json'"),
        (["broken.json", "--annotations", "captions.json"], 1, r"broken\.json' cannot be read as JSON"),
        (["part.json", "--annotations", "captions.json"], 1, r"1 image has no caption in '.*part\.json', such as 3"),
        (["unknown.json", "--annotations", "captions.json"], 1, r"1 image has an entry in .*unknown\.json.*such as 9"),
        (["twice.json", "--annotations", "captions.json"], 1, r"1 image has more than one entry in .*such as 1"),
        (["good.json", "--annotations", "captions.json", "--metrics", "blue"], 1, r"Did you mean 'bleu'\?"),
        (["good.json", "--annotations", "captions.json", "--df", "broken.json"], 1, r"cannot be read as document freq"),
        (["good.json", "--annotations", "captions.json", "--questions", "questions.json"], 2, r"--questions is of"),
        (["good.json", "--annotations", "captions.json", "--split", "val"], 2, r"--split is of models"),
        (["answered.json", "--annotations", "answers.json"], 2, r"name the file of the questions too \(--questions\)"),
        (["good.json", "--annotations", "captions.json", "--metrics", "bleu", "--df", "x.npz"], 2, r"--df is of cider"),
        (["good.json", "--annotations", "captions.json", "--df", "x.npz"], 1, r"No file of document frequencies '"),
        (["wrapped.json", "--annotations", "captions.json"], 1, r"In '.*wrapped\.json', the top level must be a list"),
        (["numbers.json", "--annotations", "captions.json"], 1, r"numbers\.json' holds no known results"),
        (["nothing.jsonl", "--annotations", "captions.json"], 1, r"No file '.*nothing\.jsonl'"),
        (["answered.json", "--annotations", "answers.json", "--metrics", "bleu"], 2, r"--metrics is of captions"),
    ],
)  # fmt: skip
def test_wrong_files_and_options_are_named(files, arguments, code, message):
    answer = run(
        "evaluate", *(files / word if word.endswith((".json", ".jsonl", ".npz")) else word for word in arguments)
    )
    assert answer.code == code, answer.err
    assert re.search(message, answer.err), answer.err
    assert "Traceback" not in answer.err


def test_options_of_files_are_refused_for_a_model(files, trained):
    answer = run("evaluate", trained.model, "--annotations", files / "captions.json")
    assert answer.code == 2
    assert "--annotations is of result files" in answer.err
