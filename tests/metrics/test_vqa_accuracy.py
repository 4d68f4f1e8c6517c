"""VQA accuracy: golden numbers of the official evaluator, values worked by hand, a slow literal version, messages."""

import json

import numpy as np
import pytest

from hf_grounding.metrics.vqa_accuracy import majority_answer, normalize_answer, soft_scores, vqa_accuracy


@pytest.fixture(scope="module")
def golden(golden_dir) -> dict:
    """Made with the official evaluator on synthetic answers; see `vqa_accuracy.manifest.json` beside it."""
    return json.loads((golden_dir / "vqa_accuracy.json").read_text())


@pytest.fixture(scope="module")
def golden_result(golden) -> dict:
    predictions = {result["question_id"]: result["answer"] for result in golden["results"]}
    annotations = golden["annotations"]
    return vqa_accuracy(
        [predictions[annotation["question_id"]] for annotation in annotations],
        golden_answers(golden),
        answer_types=[annotation["answer_type"] for annotation in annotations],
        question_types=[annotation["question_type"] for annotation in annotations],
    )


def golden_answers(golden: dict) -> list[list[str]]:
    return [[person["answer"] for person in annotation["answers"]] for annotation in golden["annotations"]]


def test_golden_every_normalised_text(golden):
    differing = [
        (raw, want, normalize_answer(raw)) for raw, want in golden["normalised"] if normalize_answer(raw) != want
    ]
    assert not differing


def test_golden_accuracy_of_every_question(golden, golden_result):
    expected = [golden["per_question"][str(annotation["question_id"])] for annotation in golden["annotations"]]
    np.testing.assert_allclose(np.multiply(golden_result["per_question"], 100), expected, rtol=0, atol=0.005)


def test_golden_accuracy_over_all_questions_and_by_type(golden, golden_result):
    expected = golden["accuracy"]
    assert golden_result["vqa_accuracy"] * 100 == pytest.approx(expected["overall"], abs=0.005)
    assert golden_result["count"] == len(golden["annotations"])
    for ours, theirs in (("by_answer_type", "perAnswerType"), ("by_question_type", "perQuestionType")):
        accuracies = {name: group["vqa_accuracy"] * 100 for name, group in golden_result[ours].items()}
        assert accuracies == pytest.approx(expected[theirs], abs=0.005)
        assert sum(group["count"] for group in golden_result[ours].values()) == golden_result["count"]


def test_golden_soft_scores(golden):
    assert [soft_scores(answers) for answers in golden_answers(golden)] == golden["soft_target_unnormalised_counts"]


@pytest.mark.parametrize("matching, accuracy", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (7, 1), (10, 1)])
def test_accuracy_by_the_number_of_matching_answers(matching, accuracy):
    # e.g. 2 of 10: leaving a match out leaves 1 (1/3, twice), leaving another out leaves 2 (2/3, 8 times): 6 / 10
    answers = ["red"] * matching + ["blue"] * (10 - matching)
    assert vqa_accuracy(["red"], [answers])["vqa_accuracy"] == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize(
    "answers, accuracy",
    [
        (["red"], 0),  # nobody else to agree with
        (["red", "red"], 1 / 3),
        (["red", "blue"], 1 / 6),  # 0 without the match, 1/3 without the other
        (["red"] * 3, 2 / 3),
        (["red"] * 4, 1),
        (["red"] * 5 + ["blue"] * 15, 1),
    ],
)
def test_other_numbers_of_answers_follow_the_same_procedure(answers, accuracy):
    assert vqa_accuracy(["red"], [answers])["vqa_accuracy"] == pytest.approx(accuracy, abs=1e-12)


def literal_accuracy(prediction: str, answers: list[str]) -> float:
    """The procedure as the specification words it: every answer is left out once, by record."""
    if len(set(answers)) > 1:
        prediction = normalize_answer(prediction)
        answers = [normalize_answer(answer) for answer in answers]
    accuracies = []
    for left_out in range(len(answers)):
        matches = 0
        for record, answer in enumerate(answers):
            if record != left_out and answer == prediction:
                matches += 1
        accuracies.append(min(1, matches / 3))
    return sum(accuracies) / len(accuracies)


def test_equals_leaving_one_answer_out_at_a_time():
    rng = np.random.default_rng(0)
    texts = ["red", "Red", "the red", "red.", "blue", "2", "two", "dont know"]
    answers = [rng.choice(texts[: rng.integers(1, 9)], size=rng.integers(1, 13)).tolist() for _ in range(300)]
    predictions = rng.choice(texts, size=300).tolist()
    expected = [literal_accuracy(*question) for question in zip(predictions, answers, strict=True)]
    result = vqa_accuracy(predictions, answers)
    np.testing.assert_allclose(result["per_question"], expected, rtol=0, atol=1e-12)
    assert result["vqa_accuracy"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_where_all_answers_are_the_same_text_the_prediction_must_be_that_text():
    assert vqa_accuracy(["Red"], [["red"] * 10])["vqa_accuracy"] == 0
    assert vqa_accuracy(["red."], [["red."] * 10])["vqa_accuracy"] == 1
    assert vqa_accuracy(["Red"], [["red"] * 9 + ["red."]])["vqa_accuracy"] == 1  # not the same text: normalised
    assert vqa_accuracy([" red\n"], [["red"] * 9 + ["red\t"]])["vqa_accuracy"] == 1  # whitespace never counts
    assert vqa_accuracy(["Red"], [["red"] * 9 + ["red\t"]])["vqa_accuracy"] == 0


def test_types_are_averaged_apart_and_left_out_without_names():
    answers = [["a dog"] * 10, ["cat"] * 10, ["1"] * 10]
    result = vqa_accuracy(["a dog", "dog", "1"], answers, answer_types=["other", "other", "number"])
    assert result["by_answer_type"] == {
        "number": {"vqa_accuracy": 1.0, "count": 1},
        "other": {"vqa_accuracy": 0.5, "count": 2},
    }
    assert result["by_question_type"] == {}
    assert (result["per_question"], result["count"]) == ([1.0, 0.0, 1.0], 3)


@pytest.mark.parametrize(
    "text, normalised",
    [
        ("on/off", "on off"),
        ("on/off and/ or", "onoff and or"),  # one sign beside a space removes all of its kind
        ("on/off /or", "onoff or"),
        ("x/;y/z", "x y z"),  # a space in the text as given, not one made of another sign
        ("on/off/ ", "on off"),  # nor the one at its end
        ("on/off/\tor", "onoff or"),  # a tab is a space
        ("1,000 t-shirts", "1000 tshirts"),  # a comma between digits does so for every sign
        ("5.30 p.m.", "5.30 pm"),
        (".5", ".5"),
        ("." * 40, "." * 8),  # 32 periods at most
        ("None of the ten", "0 of 10"),
        ("SOMEBODY'D say he'dve", "somebodyd say he'd've"),
        ("shes", "shes"),
        ("a", ""),
        ("two\tdogs \n", "2 dogs"),
    ],
)
def test_normalisation_keeps_the_quirks_of_the_evaluator(text, normalised):
    assert normalize_answer(text) == normalised


def test_soft_scores_count_the_texts_as_they_are():
    assert soft_scores(["red"] * 4 + ["Red"] * 3 + ["red "] * 2 + ["blue"]) == {
        "red": 1.0,
        "Red": 0.9,
        "red ": 0.6,
        "blue": 0.3,
    }


@pytest.mark.parametrize(
    "answers, majority",
    [
        (["Two", "2", "2.", "Two"], "2"),
        (["a dog", "cat", "cat", "a dog"], "dog"),  # the first of the most frequent
        (["Red, white"] * 2 + ["red"], "red white"),
        (["1,000", "1,000,000", "1,000,000"], "1000000"),
        (["red", "Red", "blue", "blue"], "blue"),  # counted before normalisation
    ],
)
def test_majority_answer_is_the_most_frequent_text_normalised_without_commas(answers, majority):
    assert majority_answer(answers) == majority


@pytest.mark.parametrize(
    "predictions, answers, message",
    [
        ([], [], "nothing to score"),
        (["red"], [["red"], ["blue"]], "`predictions` 1, `answers` 2"),
        (["red", "blue"], [["red"], []], r"`answers\[1\]` must be a list of at least one answer, got \[\]"),
        (["red"], ["red"], r"`answers\[0\]` must be a list of at least one answer, got 'red'"),
        (["red"], [["red", 2]], r"`answers\[0\]` must hold strings; entry 1 is 2"),
        (["red", None], [["red"], ["red"]], "`predictions` must hold strings; entry 1 is None"),
    ],
)
def test_wrong_input_is_named(predictions, answers, message):
    with pytest.raises(ValueError, match=message):
        vqa_accuracy(predictions, answers)


def test_types_must_be_one_per_question():
    with pytest.raises(ValueError, match="`answer_types` 2"):
        vqa_accuracy(["red"], [["red"]], answer_types=["other", "other"])


@pytest.mark.parametrize("function", [soft_scores, majority_answer])
@pytest.mark.parametrize("answers", [[], "red", [1, 2]])
def test_targets_need_a_list_of_strings(function, answers):
    with pytest.raises(ValueError, match="`answers` must"):
        function(answers)
