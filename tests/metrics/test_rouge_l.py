"""ROUGE-L: golden numbers of the COCO toolkit, a slow literal version, values worked by hand, messages."""

import json
from typing import Any

import numpy as np
import pytest

from hf_grounding.metrics.rouge_l import rouge_l


def literal_lcs(first, second):
    """Length of the longest common subsequence by the usual table."""
    lengths = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, left in enumerate(first, start=1):
        for j, right in enumerate(second, start=1):
            lengths[i][j] = lengths[i - 1][j - 1] + 1 if left == right else max(lengths[i - 1][j], lengths[i][j - 1])
    return lengths[-1][-1]


def f_score(precision, recall, beta=1.2):
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision and recall else 0.0


def literal_rouge_l(hypothesis, references):
    """Section 3 of the specification; a text without words is one empty word, as it is split by single spaces."""
    hypothesis, references = hypothesis or [""], [reference or [""] for reference in references]
    common = [literal_lcs(hypothesis, reference) for reference in references]
    precision = max(length / len(hypothesis) for length in common)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    return f_score(precision, recall)


@pytest.mark.parametrize("num_words, longest", [(2, 12), (6, 12), (50, 12), (8, 90)])
def test_equals_the_table_of_the_longest_common_subsequence(num_words, longest):
    rng = np.random.default_rng(num_words)

    def caption():
        return [f"w{word}" for word in rng.integers(0, num_words, rng.integers(0, longest))]

    hypotheses = [caption() for _ in range(60)]
    references = [[caption() for _ in range(rng.integers(1, 6))] for _ in hypotheses]
    expected = [literal_rouge_l(*pair) for pair in zip(hypotheses, references, strict=True)]
    result = rouge_l(hypotheses, references)
    assert result["per_image"] == pytest.approx(expected, abs=1e-12)
    assert result["rouge_l"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert result["count"] == 60


def test_golden_corpus_and_per_image(golden_dir):
    golden = json.loads((golden_dir / "caption_metrics.json").read_text())
    result = rouge_l(golden["hypotheses"], golden["references"])
    assert result["rouge_l"] == pytest.approx(golden["scores"]["corpus"]["ROUGE_L"], abs=1e-9)
    assert result["per_image"] == pytest.approx(golden["scores"]["per_image"]["ROUGE_L"], abs=1e-9)
    assert result["count"] == len(golden["hypotheses"])


@pytest.mark.parametrize(
    "hypothesis, reference, common",
    [
        ("police kill the gunman", "police killed the gunman", 3),
        ("the gunman kill police", "police killed the gunman", 2),  # order matters
        ("a b c d", "d c b a", 1),
        ("a x b y c", "a b c", 3),  # gaps do not
        ("a a a", "a", 1),
        ("a dog", "two cats", 0),
    ],
)
def test_values_worked_by_hand(hypothesis, reference, common):
    expected = f_score(common / len(hypothesis.split()), common / len(reference.split()))
    assert rouge_l([hypothesis], [[reference]])["rouge_l"] == pytest.approx(expected, abs=1e-12)


def test_precision_and_recall_may_come_from_different_references():
    # "a b c d" in "a b c d e f g h": P = 4/4, R = 4/8. In "a": P = 1/4, R = 1/1. Best of each: P = R = 1.
    result = rouge_l(["a b c d"] * 3, [["a b c d e f g h"], ["a"], ["a b c d e f g h", "a"]])
    assert result["per_image"] == pytest.approx([f_score(1, 1 / 2), f_score(1 / 4, 1), 1], abs=1e-12)
    assert result["rouge_l"] == pytest.approx((f_score(1, 1 / 2) + f_score(1 / 4, 1) + 1) / 3, abs=1e-12)


def test_recall_weighs_more_than_precision():
    # P = 1, R = 1/2 -> 2.44 * 0.5 / (0.5 + 1.44) and the other way round 2.44 * 0.5 / (1 + 0.72).
    assert rouge_l(["a b"], [["a b c d"]])["rouge_l"] == pytest.approx(1.22 / 1.94, abs=1e-12)
    assert rouge_l(["a b c d"], [["a b"]])["rouge_l"] == pytest.approx(1.22 / 1.72, abs=1e-12)


def test_texts_without_words():
    result = rouge_l(["", "a dog", "", "..."], [["a dog"], [""], [""], ["", "a dog"]])
    assert result["per_image"] == [0, 0, 1, 1]  # the toolkit compares one empty word with another


def test_text_and_its_tokens_score_the_same():
    tokens = rouge_l([["a", "dog", "is", "n't", "here"]], [[("the", "dog", "is", "n't", "there", "now")]])
    assert rouge_l(["A dog isn't here!"], [["The dog isn't there now."]]) == tokens
    assert tokens["rouge_l"] == pytest.approx(f_score(3 / 5, 3 / 6), abs=1e-12)


def test_tokens_may_be_numbers():
    ids: Any = np.array([4, 1, 7, 0])
    result = rouge_l([ids], [[[4, 7, 0]]])
    assert result["rouge_l"] == pytest.approx(f_score(3 / 4, 1), abs=1e-12)


@pytest.mark.parametrize(
    "predictions, references, hint",
    [
        (["a", "b"], [["a"]], "2 predictions for references of 1 images"),
        ([], [], "nothing to score"),
        (["a"], [[]], r"image 0 has \[\]"),
        (["a"], ["a dog"], "image 0 has 'a dog'"),
        ([None], [["a"]], "Prediction 0 must be text or a list of tokens, got None"),
        (["a"], [[None]], "A reference of image 0 must be text or a list of tokens, got None"),
    ],
)
def test_messages_name_the_image_and_what_came(predictions, references, hint):
    with pytest.raises(ValueError, match=hint):
        rouge_l(predictions, references)
