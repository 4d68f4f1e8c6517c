"""Captions that need no captioner: worked by hand, against a literal version, and on the Flickr8k validation photos."""

import numpy as np
import pytest

from hf_grounding import load_grounding_dataset
from hf_grounding.metrics import CiderScorer, cider, consensus_captions, mean_features, one_against_the_others

from .test_cider import VARIANTS, random_captions

TRAIN = [["a dog runs", "the dog runs"], ["a dog runs fast"], ["two cats sleep"], ["a red car"]]
# The first two point to the right, the third up, the fourth to the left.
DIRECTIONS = np.array([[2.0, 0.1], [0.5, 0.0], [0.0, 3.0], [-1.0, 0.0]])


def test_the_mean_of_an_image_s_regions_has_length_one():
    # means (3, 4) and (0, 2)
    features = mean_features([np.array([[2.0, 4.0], [4.0, 4.0]], dtype=np.float16), np.array([[0.0, 2.0]])])
    np.testing.assert_allclose(features, [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)
    assert mean_features([np.zeros((1, 2))]).tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match=r"Image 1 must have features .* of one region or more, got shape \(0, 2\)"):
        mean_features([np.ones((1, 2)), np.zeros((0, 2))])


@pytest.mark.parametrize("variant", VARIANTS)
def test_references_beside_one_another_score_as_predictions_with_one_reference_do(variant):
    _, references = random_captions()
    flat = [caption for captions in references for caption in captions]
    scorer = CiderScorer(references, variant=variant)
    chosen = np.array([3, 0, 17, 50, 51, 60, 7, 9, 9])  # with an empty caption, a repeated word, and one twice
    one_each = CiderScorer([[flat[row]] for row in chosen], df=scorer.frequencies, variant=variant)
    expected = [one_each([flat[row] for row in chosen], np.full(len(chosen), column)) for column in range(len(chosen))]
    np.testing.assert_allclose(scorer.between(chosen), np.transpose(expected), rtol=1e-5, atol=1e-6)
    assert any(not flat[row] for row in chosen)


def test_the_caption_most_like_those_of_the_nearest_images_is_given():
    # Nearest to (1, 0) are the two images of the dog; "a dog runs" has most in common with the other two captions.
    features = [[1.0, 0.0], [-0.1, 1.0]]
    given = consensus_captions(features, DIRECTIONS, TRAIN, num_neighbors=2)
    assert given[0] == "a dog runs"
    # Nearest to (-0.1, 1) are the cats, then the car: two captions that share nothing, the first of them is given.
    assert given[1] == "two cats sleep"
    assert consensus_captions(features, DIRECTIONS, TRAIN, num_neighbors=1)[1] == "two cats sleep"


def test_length_of_the_features_does_not_matter_and_all_images_may_be_neighbours():
    expected = consensus_captions([[1.0, 0.0]], DIRECTIONS, TRAIN)
    assert consensus_captions([[70.0, 0.0]], DIRECTIONS * [[0.1], [9], [1], [50]], TRAIN) == expected


def test_an_image_of_the_training_set_does_not_borrow_its_own_caption():
    given = consensus_captions(DIRECTIONS[2:3], DIRECTIONS, TRAIN, num_neighbors=1, own=[2])
    assert given == ["a dog runs"]  # of image 0, which is the next nearest
    with pytest.raises(ValueError, match="No training image is left"):
        consensus_captions([[1.0]], [[1.0]], [["a dog"]], own=[0])


def test_captions_are_chosen_as_by_a_literal_loop():
    rng = np.random.default_rng(0)
    _, captions = random_captions(30)
    train, queries = rng.normal(size=(30, 4)), rng.normal(size=(6, 4))
    scorer = CiderScorer(captions)
    for query, given in zip(queries, consensus_captions(queries, train, captions, num_neighbors=5), strict=True):
        cosines = train @ query / np.linalg.norm(train, axis=1)
        candidates = [caption for image in np.argsort(-cosines)[:5] for caption in captions[image]]
        means = []
        for number, caption in enumerate(candidates):
            others = candidates[:number] + candidates[number + 1 :]
            means.append(float(CiderScorer([others], df=scorer.frequencies)([caption])[0]))
        assert means[candidates.index(given)] == pytest.approx(max(means), rel=1e-5)


@pytest.mark.parametrize(
    ("features", "train_features", "message"),
    [
        ([[1.0, 2.0, 3.0]], DIRECTIONS, "`features` has 3 columns and `train_features` 2"),
        ([1.0, 2.0], DIRECTIONS, r"`features` must be \(images, feature_dim\) of one image or more, got shape \(2,\)"),
        ([[1.0, 2.0]], DIRECTIONS[:3], "`train_features` 3, `train_captions` 4"),
    ],
)
def test_features_that_do_not_fit_are_refused(features, train_features, message):
    with pytest.raises(ValueError, match=message):
        consensus_captions(features, train_features, TRAIN)


def test_the_first_caption_is_a_prediction_and_the_others_its_references():
    predictions, references = one_against_the_others([["a", "b", "c"], ["alone"], ("d", "e")])
    assert predictions == ["a", "d"]
    assert references == [["b", "c"], ["e"]]


def test_people_reach_on_flickr8k_what_was_measured_before(data_dir):
    rows = load_grounding_dataset("flickr30k_entities", split="val", data_dir=data_dir / "flickr8k_entities")
    scores = cider(*one_against_the_others(rows["captions"][:]))
    assert scores["count"] == 966
    assert scores["cider_d"] == pytest.approx(0.66, abs=0.005)
