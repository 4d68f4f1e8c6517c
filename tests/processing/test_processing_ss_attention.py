"""Boxes and classes of regions to tensors, phrases with boxes to targets, worked by hand; words that name objects."""

import json

import numpy as np
import pytest
import torch

from hf_grounding.processing.caption_tokenizers import caption_tokenizer_from_words, train_subword_caption_tokenizer
from hf_grounding.processing.processing_ss_attention import MatchedPhrase, SSAttentionProcessor
from hf_grounding.processing.regions import Regions
from tests.processing.test_processing_mia import WORDS, make_regions, outputs_of

OBJECTS = {"man": "man", "men": "man", "dog": "dog"}


def make_processor(**settings) -> SSAttentionProcessor:
    return SSAttentionProcessor(None, caption_tokenizer_from_words(WORDS, max_words=5), **settings)


def phrase(sentence: int, start: int, end: int, *boxes: list[float]) -> dict:
    return {"sentence": sentence, "start": start, "end": end, "boxes": list(boxes)}


def with_classes(count: int, image_id: str = "1") -> Regions:
    record = make_regions(count, image_id)
    probs = np.tile(np.array([[0.25, 0.75]], dtype=np.float32), (count, 1))
    return Regions(image_id, (20, 200), record.boxes, region_features=record.region_features, class_probs=probs)


# Regions


def test_boxes_are_shares_of_the_image_and_classes_come_along():
    batch = make_processor()(regions=[with_classes(2), with_classes(1, "2")])
    assert set(batch) == {"region_features", "region_mask", "boxes", "class_probs", "image_sizes"}
    assert batch["boxes"].dtype == torch.float32
    torch.testing.assert_close(batch["boxes"][0], torch.tensor([[0.0, 0, 0.05, 0.5], [0.05, 0, 0.1, 0.5]]))
    assert not batch["boxes"][1, 1].any()
    assert batch["class_probs"][:, :, 1].tolist() == [[0.75, 0.75], [0.75, 0]]
    assert batch["image_sizes"].tolist() == [[20, 200], [20, 200]]
    assert "class_probs" not in make_processor()(regions=make_regions(2))


# Phrases
# Region i of `make_regions` is (10 i, 0, 10 i + 10, 10) in an image 200 wide and 20 high.


def test_each_box_picks_the_region_of_the_largest_overlap():
    phrases = [phrase(0, 0, 2, [12, 0, 22, 10], [41, 0, 49, 10]), phrase(1, 1, 3, [0, 0, 9, 9])]
    matched = make_processor().match_phrases(make_regions(5), phrases, (20, 200))
    assert matched == [MatchedPhrase(0, 0, 2, (1, 4)), MatchedPhrase(1, 1, 3, (0,))]


def test_of_equal_overlaps_the_first_region_is_picked_and_boxes_outside_all_pick_none():
    phrases = [phrase(0, 0, 1, [5, 0, 15, 10]), phrase(0, 1, 2, [150, 0, 160, 10]), phrase(0, 2, 3)]
    matched = make_processor().match_phrases(make_regions(5), phrases, (20, 200))
    assert [each.regions for each in matched] == [(0,), (), ()]


def test_two_boxes_may_pick_one_region():
    matched = make_processor().match_phrases(make_regions(5), [phrase(0, 0, 1, [0, 0, 9, 9], [1, 1, 9, 9])], (20, 200))
    assert matched[0].regions == (0,)


def test_boxes_are_of_the_annotated_image_which_may_be_larger_than_that_of_the_regions():
    matched = make_processor().match_phrases(make_regions(5), [phrase(0, 0, 1, [60, 0, 80, 20])], (40, 400))
    assert matched[0].regions == (3,)  # (30, 0, 40, 10) of the smaller image


def test_a_box_beside_a_region_touches_it_only_if_last_pixels_count():
    beside = [phrase(0, 0, 1, [50, 0, 60, 10])]  # region 4 ends at 50
    for plus_one, regions in ((True, (4,)), (False, ())):
        processor = make_processor(iou_plus_one=plus_one)
        assert processor.match_phrases(make_regions(5), beside, (20, 200))[0].regions == regions


def test_a_box_outside_all_regions_may_have_the_first():
    processor = make_processor(ignore_unmatched_boxes=False)
    assert processor.match_phrases(make_regions(5), [phrase(0, 1, 2, [150, 0, 160, 10])], (20, 200))[0].regions == (0,)


def test_only_regions_that_the_model_is_given_can_be_picked():
    regions = make_regions(4, scores=np.array([0.1, 0.5, 0.2, 0.9]))  # the model reads 1 and 3
    matched = make_processor(max_regions=2).match_phrases(regions, [phrase(0, 0, 1, [30, 0, 40, 10])], (20, 200))
    assert matched[0].regions == (1,)


# Targets

MATCHED = [[MatchedPhrase(0, 0, 2, (1,)), MatchedPhrase(2, 1, 2, (0, 2))], []]
CAPTIONS = [["a dog", "man", "a horse rides"], ["dog"]]


def targets(**changes) -> dict[str, torch.Tensor]:
    given = {"regions": [make_regions(3), make_regions(1, "2")], "captions": CAPTIONS, "phrases": MATCHED}
    return make_processor()(**{**given, **changes})


def test_a_captions_targets_are_the_regions_of_its_own_phrases_or_of_all_of_its_image():
    own = targets()
    assert own["grounding_targets"].tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert "attention_targets" not in own
    of_image = targets(grounding_target="image")["grounding_targets"]
    assert of_image.tolist() == [[1, 1, 1]] * 3 + [[0, 0, 0]]


def test_some_captions_of_an_image_have_the_targets_of_their_numbers():
    chosen = targets(captions=[["a horse rides", "a dog"], ["dog"]], sentences=[[2, 0], [0]])
    assert chosen["grounding_targets"].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_the_last_word_of_a_phrase_has_targets_of_its_own():
    made = targets(attention_targets=True)["attention_targets"]
    assert made.shape == (4, 4, 3)  # three words and the end
    assert made.nonzero().tolist() == [[0, 1, 1], [2, 1, 0], [2, 1, 2]]


def test_all_pieces_of_a_phrases_last_word_have_its_targets():
    tokenizer = train_subword_caption_tokenizer(["abc abd", "b c d"], vocab_size=12)
    processor = SSAttentionProcessor(None, tokenizer)
    batch = processor(
        regions=make_regions(2), captions=["d abd"], phrases=[[MatchedPhrase(0, 0, 2, (1,))]], attention_targets=True
    )
    (words,) = processor.words_of_tokens(["d abd"])
    assert words.count(1) > 1
    # Together they count as one word.
    assert batch["attention_targets"][0, :, 1].tolist() == [(word == 1) / words.count(1) for word in words]


def test_targets_are_of_the_last_word_with_a_letter():
    made = targets(
        captions=[["a dog 8", "man", "a horse"], ["dog"]],
        attention_targets=True,
        phrases=[[MatchedPhrase(0, 0, 3, (1,))], []],
    )["attention_targets"]
    assert made.nonzero().tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"regions": None}, "which `regions` the `captions` are about; give both"),
        ({"captions": None}, "which `regions` the `captions` are about; give both"),
        ({"grounding_target": "word"}, '`grounding_target` must be "caption" or "image", got \'word\''),
        (
            {"phrases": [[]]},
            "must belong to the images and captions; got {'captions': 2, 'phrases': 1, 'sentences': 2}",
        ),
        ({"sentences": [[0, 1], [0]]}, "must belong to the images and captions"),
        ({"phrases": [[phrase(0, 0, 2)], []]}, "must be what `match_phrases` gives .*, got dict for image 0; call"),
        (
            {"phrases": [[], [MatchedPhrase(0, 0, 1, (2,))]]},
            r"image 1 has the regions \(2,\), but the image has 1; match",
        ),
        (
            {"phrases": [[MatchedPhrase(0, 5, 9, (0,))], []], "attention_targets": True},
            r"A phrase of the words 5 to 9 belongs to no caption of \d: 'a ",
        ),
    ],
)
def test_phrases_of_other_captions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        targets(**change)


@pytest.mark.parametrize("box", [[0, 0, np.nan, 9], [9, 0, 5, 9]])
def test_phrases_with_boxes_that_are_none_name_the_image(box):
    phrases = [phrase(0, 0, 1, [0, 0, 9, 9]), phrase(0, 1, 2, box)]
    with pytest.raises(ValueError, match=r"The boxes of the phrases of image '1': .*finite"):
        make_processor().match_phrases(make_regions(2), phrases, (20, 200))


# Words that name objects


def test_words_that_name_objects_have_a_class_and_the_box_of_their_largest_weight():
    outputs = outputs_of([[1, 4, 7, 8, 5, 2]], [[[0.2, 0.8], [0.9, 0.6], [0.5, 1.0], [0.3, 1.2], [1.0, 0.5]]])
    outputs["region_prior"] = torch.tensor([[0.25, 0.75]])
    (caption,) = make_processor(object_words=OBJECTS).post_process_grounded_captions(outputs, make_regions(2))
    assert caption.caption == "a dog rides man"
    assert caption.object_classes == {1: "dog", 3: "man"}
    expected = {"clss": ["dog", "man"], "idx_in_sent": [1, 3], "bbox": [[0, 0, 10, 10], [10, 0, 20, 10]]}
    assert caption.objects() == expected
    assert json.loads(json.dumps(caption.to_dict())).items() >= expected.items()
    assert caption.region_prior.tolist() == [0.25, 0.75]
    # Weights that sum to 1 + lambda are told as shares.
    np.testing.assert_allclose(caption.region_weights.sum(axis=1), 1, rtol=1e-6)
    assert caption.groundings[1].score == pytest.approx(0.6)


def test_without_a_list_of_object_words_nothing_is_told_of_objects():
    outputs = outputs_of([[1, 7, 2]], [[[0.2, 0.8], [0.5, 0.5]]])
    (caption,) = make_processor().post_process_grounded_captions(outputs, make_regions(2))
    assert caption.object_classes is None
    assert set(caption.to_dict()) == {"caption", "groundings"}


def test_objects_in_words_of_a_prompt_have_no_box():
    outputs = outputs_of([[1, 7, 5, 2]], [[[0.2, 0.8], [0.5, 0.5]]])  # "dog" was given
    (caption,) = make_processor(object_words=OBJECTS).post_process_grounded_captions(outputs, make_regions(2))
    assert caption.objects()["clss"] == ["man"]


def test_saved_and_loaded_it_makes_the_same_inputs(tmp_path):
    processor = make_processor(object_words=OBJECTS, iou_plus_one=False, ignore_unmatched_boxes=False, max_regions=2)
    processor.save_pretrained(tmp_path)
    loaded = SSAttentionProcessor.from_pretrained(tmp_path)
    assert (loaded.object_words, loaded.max_regions) == (OBJECTS, 2)
    assert (loaded.iou_plus_one, loaded.ignore_unmatched_boxes) == (False, False)
    given = {"regions": with_classes(3), "captions": ["a dog"], "phrases": [[MatchedPhrase(0, 0, 2, (1,))]]}
    for name, value in processor(**given).items():
        assert torch.equal(loaded(**given)[name], value)
