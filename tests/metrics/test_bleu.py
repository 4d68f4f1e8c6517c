"""BLEU: golden numbers of the COCO toolkit, a slow literal version, values worked by hand, messages."""

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from hf_grounding.metrics.bleu import bleu, bleu_scores, bleu_statistics

NAMES = ["bleu_1", "bleu_2", "bleu_3", "bleu_4"]
CAT = "the cat is on the mat"


def random_captions(num_images=60, num_words=7, seed=0):
    """Token lists of 0 to 11 words from a small vocabulary, 1 to 5 references."""
    rng = np.random.default_rng(seed)

    def caption():
        return [f"w{word}" for word in rng.integers(0, num_words, rng.integers(0, 12))]

    return [caption() for _ in range(num_images)], [
        [caption() for _ in range(rng.integers(1, 6))] for _ in range(num_images)
    ]


def ngrams(tokens, n):
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def literal_bleu(hypotheses, references):
    """Section 2 of the specification, sum by sum."""
    correct, guess, hypothesis_length, reference_length = [0] * 4, [0] * 4, 0, 0
    for hypothesis, captions in zip(hypotheses, references, strict=True):
        for n in range(1, 5):
            allowed: Counter = Counter()
            for caption in captions:
                allowed |= ngrams(caption, n)
            correct[n - 1] += sum((ngrams(hypothesis, n) & allowed).values())
            guess[n - 1] += max(0, len(hypothesis) - n + 1)
        hypothesis_length += len(hypothesis)
        reference_length += min((abs(len(caption) - len(hypothesis)), len(caption)) for caption in captions)[1]
    ratio = (hypothesis_length + 1e-15) / (reference_length + 1e-9)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    precisions = [(c + 1e-15) / (g + 1e-9) for c, g in zip(correct, guess, strict=True)]
    return [math.prod(precisions[:n]) ** (1 / n) * penalty for n in range(1, 5)]


def test_golden_corpus_and_per_image(golden_dir):
    golden = json.loads((golden_dir / "caption_metrics.json").read_text())
    result = bleu(golden["hypotheses"], golden["references"])
    for name in NAMES:
        assert result[name] == pytest.approx(golden["scores"]["corpus"][name.capitalize()], abs=1e-9)
        expected = golden["scores"]["per_image"][name.capitalize()]
        assert result["per_image"][name] == pytest.approx(expected, abs=1e-9)
    assert result["count"] == len(golden["hypotheses"])


@pytest.mark.parametrize("num_words", [2, 7, 100])
def test_equals_the_formula_applied_count_by_count(num_words):
    hypotheses, references = random_captions(num_words=num_words)
    result = bleu(hypotheses, references)
    assert [result[name] for name in NAMES] == pytest.approx(literal_bleu(hypotheses, references), abs=1e-12)
    images = [
        literal_bleu([hypothesis], [captions]) for hypothesis, captions in zip(hypotheses, references, strict=True)
    ]
    for name, expected in zip(NAMES, zip(*images, strict=True), strict=True):
        assert result["per_image"][name] == pytest.approx(expected, abs=1e-12)


def test_repeated_words_count_as_often_as_one_reference_has_them():
    # Papineni et al., example 2: "the" is twice in one reference, once in the other: 2 of 7.
    references = ["The cat is on the mat.", "There is a cat on the mat."]
    result = bleu(["the the the the the the the"], [references])
    assert result["bleu_1"] == pytest.approx(2 / 7, abs=1e-9)
    assert bleu_statistics(["the the the the the the the"], [references])[0].tolist() == [2, 0, 0, 0, 7, 6, 5, 4, 7, 7]


def test_value_worked_by_hand():
    # 5 of 5 words, pairs "the cat", "cat is", "on the" of 4; 5 words against 6: penalty exp(1 - 6/5).
    result = bleu(["the cat is on the"], [["the cat is lying on the"]])
    assert result["bleu_1"] == pytest.approx(math.exp(-0.2), abs=1e-8)
    assert result["bleu_2"] == pytest.approx(math.sqrt(3 / 4) * math.exp(-0.2), abs=1e-8)
    assert result["bleu_3"] == pytest.approx((3 / 4 * 1 / 3) ** (1 / 3) * math.exp(-0.2), abs=1e-8)
    assert 0 < result["bleu_4"] < 1e-3


@pytest.mark.parametrize("repeats", [1, 3])
def test_corpus_pools_counts_and_is_not_the_mean_of_the_images(repeats):
    # 6 of 6 words right, then 1 of 4: pooled 7/10, mean of the images (1 + 1/4) / 2.
    hypotheses, references = [CAT, "a b c d"] * repeats, [[CAT], ["a x y z"]] * repeats
    result = bleu(hypotheses, references)
    assert result["bleu_1"] == pytest.approx(0.7, abs=1e-9)
    assert np.mean(result["per_image"]["bleu_1"]) == pytest.approx(0.625, abs=1e-9)


@pytest.mark.parametrize(
    "reference_lengths, closest",
    [([2, 9], 2), ([4, 6], 4), ([6, 4], 4), ([5, 4], 5), ([1, 20], 1), ([3, 7, 8], 3), ([0, 11], 0)],
)
def test_reference_length_is_the_closest_and_the_shorter_of_two(reference_lengths, closest):
    statistics = bleu_statistics([["w"] * 5], [[["w"] * length for length in reference_lengths]])
    assert statistics[0, 8:].tolist() == [5, closest]


def test_longer_predictions_have_no_penalty_and_shorter_ones_do():
    words = list("abcdefgh")
    assert bleu([words[:4]], [[words]])["bleu_1"] == pytest.approx(math.exp(1 - 8 / 4), abs=1e-8)
    assert bleu([words], [[words[:4]]])["bleu_1"] == pytest.approx(4 / 8, abs=1e-8)


def test_sums_of_the_statistics_are_the_bleu_of_any_images():
    hypotheses, references = random_captions()
    statistics = bleu_statistics(hypotheses, references)
    assert statistics.shape == (60, 10)
    rng = np.random.default_rng(1)
    for rows in ([3], range(20), rng.integers(0, 60, 60)):
        subset = bleu([hypotheses[row] for row in rows], [references[row] for row in rows])
        values = bleu_scores(statistics[list(rows)].sum(axis=0))
        assert values.tolist() == pytest.approx([subset[name] for name in NAMES], abs=1e-15)


def test_statistics_of_many_resamples_at_once():
    statistics = bleu_statistics(*random_captions())
    sums = np.stack([statistics[:30].sum(axis=0), statistics[30:].sum(axis=0)])
    assert bleu_scores(sums).tolist() == [bleu_scores(row).tolist() for row in sums]


def test_text_and_its_tokens_score_the_same():
    texts, tokens = bleu(["The cat isn't here."], [["A cat isn't there!"]]), ["the", "cat", "is", "n't", "here"]
    assert texts == bleu([tokens], [[("a", "cat", "is", "n't", "there")]])
    assert texts["bleu_1"] == pytest.approx(3 / 5, abs=1e-9)


def test_tokens_may_be_numbers():
    hypotheses, references = random_captions()
    numbers: list[Any] = [np.array([int(word[1:]) for word in caption], dtype=np.int64) for caption in hypotheses]
    numbers_of_references = [[[int(word[1:]) for word in caption] for caption in captions] for captions in references]
    assert bleu(numbers, numbers_of_references) == bleu(hypotheses, references)


@pytest.mark.parametrize("hypothesis, references", [("", [CAT]), ("", [""]), (CAT, [""]), ("zebra", [CAT])])
def test_nothing_in_common_is_zero_and_no_crash(hypothesis, references):
    result = bleu([hypothesis], [references])
    assert [result[name] for name in NAMES] == pytest.approx([0] * 4, abs=1e-3)
    assert np.isfinite([result["per_image"][name] for name in NAMES]).all()


@pytest.mark.parametrize(
    "predictions, references, hint",
    [
        ([CAT, CAT], [[CAT]], "2 predictions for references of 1 images"),
        ([], [], "nothing to score"),
        ([CAT, CAT], [[CAT], []], r"image 1 has \[\]"),
        ([CAT], [CAT], "image 0 has 'the cat"),
        ([CAT], [None], "image 0 has None"),
        ([None], [[CAT]], "Prediction 0 must be text or a list of tokens, got None"),
        ([CAT, 7], [[CAT], [CAT]], "Prediction 1 must be text or a list of tokens, got 7"),
        ([CAT, CAT], [[CAT], [CAT, None]], "A reference of image 1 must be text or a list of tokens, got None"),
        ([CAT], [[float("nan")]], "A reference of image 0 .* got nan"),
    ],
)
def test_messages_name_the_image_and_what_came(predictions, references, hint):
    with pytest.raises(ValueError, match=hint):
        bleu(predictions, references)
    with pytest.raises(ValueError, match=hint):
        bleu_statistics(predictions, references)
