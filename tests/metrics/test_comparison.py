"""Paired bootstrap: the interval and p it should give where they are known, and scores that are no means."""

import sys

import numpy as np
import pytest

from hf_grounding.metrics import bleu, paired_bootstrap
from hf_grounding.metrics.bleu import bleu_scores, bleu_statistics

REFERENCES = [["a man on a horse"], ["two dogs run on grass"], ["a red car in a street"], ["a cat on a sofa"]]
GOOD = ["a man on a horse", "two dogs run", "a red car", "the cat on a sofa"]
POOR = ["a horse", "dogs on grass", "a car in a garden", "a dog"]


def test_the_same_scores_differ_by_nothing():
    values = np.random.default_rng(0).random(50)
    result = paired_bootstrap(values, values)
    assert (result["difference"], result["interval"], result["p"]) == (0.0, [0.0, 0.0], 1.0)


def test_pairing_takes_out_what_images_have_in_common():
    """Images differ much, the models by .01 on each: apart they could not be told, paired they can."""
    rng = np.random.default_rng(1)
    common = rng.normal(0, 1, 200)
    result = paired_bootstrap(common + 0.01 + rng.normal(0, 0.01, 200), common)
    assert result["difference"] == pytest.approx(0.01, abs=0.003)
    assert 0 < result["interval"][0] < 0.01 < result["interval"][1] < 0.02
    assert result["p"] == pytest.approx(2 / 1001)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(2)
    difference = rng.normal(0.1, 1, 2000)
    result = paired_bootstrap(difference, np.zeros(2000), num_resamples=4000)
    error = difference.std() / np.sqrt(2000)
    expected = difference.mean() + np.array([-1.96, 1.96]) * error
    assert result["interval"] == pytest.approx(expected.tolist(), abs=0.2 * error)


def test_p_is_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(3)
    values = [paired_bootstrap(*rng.normal(0, 1, (2, 40)), num_resamples=200)["p"] for _ in range(200)]
    assert 0.02 <= np.mean(np.less(values, 0.1)) <= 0.2


def test_bleu_is_resampled_as_the_bleu_of_a_corpus():
    first, second = (bleu_statistics(captions, REFERENCES) for captions in (GOOD, POOR))
    result = paired_bootstrap(first, second, lambda sums: bleu_scores(sums)[..., 1], num_resamples=300, seed=5)
    assert result["first"] == bleu(GOOD, REFERENCES)["bleu_2"]
    assert result["second"] == bleu(POOR, REFERENCES)["bleu_2"]
    draws = np.random.default_rng(5)
    slow = []
    for _ in range(300):
        rows = draws.integers(4, size=4)
        drawn = [REFERENCES[row] for row in rows]
        scores = [bleu([captions[row] for row in rows], drawn)["bleu_2"] for captions in (GOOD, POOR)]
        slow.append(scores[0] - scores[1])
    assert result["interval"] == pytest.approx(np.percentile(slow, [2.5, 97.5]).tolist())


def test_swapped_models_give_the_opposite():
    first, second = np.random.default_rng(4).random((2, 30))
    forth = paired_bootstrap(first, second)
    back = paired_bootstrap(second, first)
    assert back["difference"] == pytest.approx(-forth["difference"])
    assert back["interval"] == pytest.approx([-forth["interval"][1], -forth["interval"][0]])
    assert back["p"] == forth["p"]


def test_many_images_are_drawn_in_blocks_with_the_same_digits(monkeypatch):
    module = sys.modules["hf_grounding.metrics.comparison"]
    first, second = np.random.default_rng(6).integers(0, 5, (2, 50)).astype(float)
    whole = paired_bootstrap(first, second, num_resamples=33)
    monkeypatch.setattr(module, "_BLOCK", 200)  # 4 samples at a time
    assert paired_bootstrap(first, second, num_resamples=33) == whole


@pytest.mark.parametrize(
    ("first", "second", "settings", "message"),
    [
        ([1.0], [1.0, 2.0], {}, r"values of the same images, one or more; got shapes \(1,\) and \(2,\)"),
        ([], [], {}, "one or more"),
        (1.0, 2.0, {}, "one or more"),
        ([1.0], [1.0], {"num_resamples": 0}, "`num_resamples` must be 1 or more, got 0"),
        ([[1.0, 2.0]], [[1.0, 2.0]], {}, "Several numbers for each image need `score`"),
        ([float("nan"), 1.0], [1.0, 1.0], {}, "A score is not finite"),
    ],
)
def test_errors(first, second, settings, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(first, second, **settings)
