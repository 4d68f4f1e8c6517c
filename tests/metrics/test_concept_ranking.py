"""Average precision of concepts: hand-worked values, a literal version, and errors."""

import numpy as np
import pytest

from hf_grounding.metrics import concept_average_precision


def test_hand_worked_values():
    scores = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.4]]
    labels = [[1, 1], [0, 0], [1, 0], [0, 1]]
    result = concept_average_precision(scores, labels, concepts=["dog", "cat"])
    # dog: ranks 1 and 3, (1/1 + 2/3) / 2; cat: ranks 1 and 4, (1/1 + 2/4) / 2
    assert result["by_concept"] == {"dog": pytest.approx(5 / 6), "cat": pytest.approx(3 / 4)}
    assert result["mean_average_precision"] == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert (result["chance"], result["count"]) == (0.5, 2)


def test_equal_scores_share_a_rank_so_that_their_order_does_not_matter():
    labels = np.array([[1], [0], [0], [1]])
    scores = np.array([[0.5], [0.5], [0.5], [0.1]])
    expected = (1 / 3 + 2 / 4) / 2
    for order in ([0, 1, 2, 3], [2, 1, 0, 3], [3, 1, 0, 2]):
        result = concept_average_precision(scores[order], labels[order])
        assert result["mean_average_precision"] == pytest.approx(expected)


def test_it_is_the_literal_definition_on_random_scores():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 20, (60, 9)) / 20, rng.random((60, 9)) < 0.3
    precisions = []
    for word in range(9):
        own = []
        for image in np.flatnonzero(labels[:, word]):
            above = scores[:, word] >= scores[image, word]
            own.append(labels[above, word].sum() / above.sum())
        precisions.append(np.mean(own))
    assert concept_average_precision(scores, labels)["mean_average_precision"] == pytest.approx(np.mean(precisions))


def test_a_perfect_order_has_1_and_a_word_of_no_image_does_not_count():
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    result = concept_average_precision(labels * 3.0, labels, concepts=["dog", "cat"])
    assert (result["mean_average_precision"], result["by_concept"], result["count"]) == (1.0, {"dog": 1.0}, 1)


@pytest.mark.parametrize(
    ("scores", "labels", "settings", "message"),
    [
        ([[1.0]], [[1], [0]], {}, r"must both be \(images, words\); got shapes \(1, 1\) and \(2, 1\)"),
        ([1.0], [1], {}, r"got shapes \(1,\) and \(1,\)"),
        ([[float("nan")]], [[1]], {}, "`scores` has NaN"),
        ([[1.0]], [[2]], {}, "`labels` must be 0 or 1"),
        ([[1.0]], [[0]], {}, "no word is in any image"),
        ([[1.0]], [[1]], {"concepts": []}, "`concepts` has 0 names for 1 words"),
    ],
)
def test_errors(scores, labels, settings, message):
    with pytest.raises(ValueError, match=message):
        concept_average_precision(scores, labels, **settings)
