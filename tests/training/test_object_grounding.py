"""Words that name objects, captions as grounding F1 reads them, and its scores, worked by hand."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_grounding.metrics.grounding_f1 import grounding_f1
from hf_grounding.processing.grounding import GroundedCaption
from hf_grounding.processing.regions import Regions
from hf_grounding.processing.words import head_word
from hf_grounding.training.caption_data import CaptionsPerImage, GroundedCaptioningCollator, ImageInputs
from hf_grounding.training.caption_evaluation import measure_objects
from hf_grounding.training.captioning import build_captioner
from hf_grounding.training.object_grounding import live_prior, score_given_captions, score_objects
from hf_grounding.training.object_words import (
    head_nouns,
    object_words,
    read_object_classes,
    reference_objects,
)
from hf_grounding.training.recipe import Recipe

CAPTIONS = [["A man in a red shirt holds two dogs .", "the dog"], ["grass"]]
# Regions are 10 x 10 pixels in a row; boxes are annotated in an image of twice the size.
BOXES = np.array([[10 * i, 0, 10 * i + 10, 10] for i in range(4)], dtype=np.float32)


def phrase(sentence: int, start: int, end: int, *boxes: list[float]) -> dict:
    return {"sentence": sentence, "start": start, "end": end, "boxes": list(boxes)}


PHRASES = [
    [
        phrase(0, 0, 2, [0, 0, 20, 20]),
        phrase(0, 3, 6, [20, 0, 40, 20]),
        phrase(0, 7, 9, [40, 0, 60, 20], [60, 0, 80, 20]),
        phrase(1, 0, 2, [60, 0, 80, 20]),
    ],
    [phrase(0, 0, 1)],
]


@pytest.fixture
def rows() -> Dataset:
    columns = {"image_id": ["a", "b"], "captions": CAPTIONS, "phrases": PHRASES, "width": [80, 80], "height": [20, 20]}
    return Dataset.from_dict(columns)


def regions(image_id: str) -> Regions:
    features = np.arange(24, dtype=np.float32).reshape(4, 6)
    probs = np.full((4, 5), 0.2, dtype=np.float32)
    return Regions(image_id, (10, 40), BOXES, region_features=features, class_probs=probs)


def written(caption: str, classes: dict[int, str], best: dict[int, int]) -> GroundedCaption:
    """With all weight of a word on one region."""
    weights = np.zeros((len(caption.split()), 4))
    for word, region in best.items():
        weights[word, region] = 1
    return GroundedCaption(caption, [], weights, regions("a"), object_classes=classes)


# Words


def test_a_phrase_is_of_its_last_word_with_a_letter():
    words = ["two", "dogs", ",", "3", "."]
    assert head_word(words, 0, 5) == 1
    assert head_word(words, 2, 5) is None


def test_classes_are_lemmas_of_phrases_with_boxes_by_their_number(rows):
    vocabulary = {"dog", "dogs", "man", "shirt"}
    assert head_nouns(rows, 1, vocabulary) == ["dog", "man", "shirt"]  # dogs and dog; grass has no box
    assert head_nouns(rows, 2, vocabulary) == ["dog"]
    assert head_nouns(rows.remove_columns("phrases"), 1, vocabulary) == []


def test_a_class_whose_lemma_is_no_word_has_its_commonest_form_and_what_is_no_noun_is_no_class():
    boxed = [phrase(0, start, start + 1, [0, 0, 20, 20]) for start in range(5)]
    columns = {"captions": [["Sunglasses sunglasses Sunglass one black"]], "phrases": [boxed]}
    assert head_nouns(Dataset.from_dict(columns), 1, {"sunglasses", "one", "black"}) == ["sunglasses"]
    assert object_words({"sunglasses", "one"}, ["sunglasses"]) == {"sunglasses": "sunglasses"}


def test_words_with_the_lemma_of_a_class_name_objects():
    vocabulary = ["dogs", "dog", "women", "woman", "runs", "puppies", "men"]
    found = object_words(vocabulary, ["dog", "woman", "puppy", "man"])
    # "puppy" and "man" are no words of the vocabulary, so they take no part.
    assert found == {"dog": "dog", "dogs": "dog", "woman": "woman", "women": "woman"}


def test_a_list_of_classes_is_read_and_an_empty_or_broken_one_refused(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("Man\n\ndog \nman\n")
    assert read_object_classes(path) == ["man", "dog"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="has no object class; expected a name on each line"):
        read_object_classes(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="is no list of object classes"):
        read_object_classes(path)


def test_the_480_classes_of_flickr30k_are_their_own_lemmas(golden_dir):
    classes = read_object_classes(golden_dir / "data" / "flickr30k_object_classes_480.txt")
    assert len(classes) == 480
    found = object_words(classes, classes)
    assert sum(found[name] != name for name in classes) <= 5  # some are each other's plural


def test_captions_have_the_box_around_a_phrases_boxes_at_its_last_word(rows):
    first, second = reference_objects(rows[0], ["dog", "man"])
    assert first["tokens"] == ["a", "man", "in", "a", "red", "shirt", "holds", "two", "dogs", "."]
    assert (first["classes"], first["indices"]) == (["man", "dog"], [1, 8])
    assert first["boxes"] == [[0, 0, 20, 20], [40, 0, 80, 20]]
    assert first["parts"][1] == [[40, 0, 60, 20], [60, 0, 80, 20]]
    assert (second["classes"], second["indices"]) == (["dog"], [1])
    assert reference_objects(rows[1], ["grass"]) == [
        {"tokens": ["grass"], "classes": [], "indices": [], "boxes": [], "parts": []}
    ]


# Scores


def test_f1_is_that_of_the_boxes_in_pixels_of_the_annotation(rows):
    # man right; dog at region 0: wrong for both captions.
    caption = written("a man and a dog", {1: "man", 4: "dog"}, {1: 0, 4: 0})
    scores = score_objects([caption, written("grass", {}, {})], rows, ["dog", "man"])
    prediction = {"classes": ["man", "dog"], "boxes": [[0, 0, 20, 20], [0, 0, 20, 20]]}
    references = [reference_objects(row, ["dog", "man"]) for row in rows]
    expected = grounding_f1([prediction, {"classes": [], "boxes": []}], references)
    # Precision: man is right in one caption and not said in the other, dog never right: 1/4. Recall: man 1, dog 0: 1/2.
    assert scores["f1_all"] == expected["f1_all"] == pytest.approx(1 / 3)
    assert scores["objects_per_caption"] == 1.0
    # The best region for dog, 3, fits "the dog", and the box around both dogs by 21/41. Precision 3/4, recall 1.
    assert scores["oracle"]["f1_all"] == pytest.approx(6 / 7)
    assert scores["region_recall"] == 1.0


@pytest.mark.parametrize("right", [0, 1])
def test_the_best_region_is_that_of_what_f1_counts_most(right):
    # Recall has two of three entries at the other region, but precision asks for the first alone.
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], dtype=np.float32)
    first, second = boxes[right].tolist(), boxes[1 - right].tolist()
    phrases = [phrase(0, 0, 1, first), phrase(0, 2, 3, second), phrase(0, 4, 5, second)]
    columns = {"captions": [["man and man and man"]], "phrases": [phrases], "width": [40], "height": [20]}
    record = Regions("a", (20, 40), boxes, region_features=np.zeros((2, 3), dtype=np.float32))
    for chosen, expected in ((right, 0.5), (1 - right, 0.0)):
        weights = np.eye(2)[[chosen]]
        caption = GroundedCaption("man", [], weights, record, object_classes={0: "man"})
        scores = score_objects([caption], Dataset.from_dict(columns), ["man"])
        assert scores["f1_all"] == pytest.approx(expected)
        assert scores["oracle"]["f1_all"] == pytest.approx(0.5)


def test_the_share_of_regions_that_the_prior_reads_is_told(captioner):
    model, processor = captioner
    prior = model.decoder.prior
    prior.semantic.weight.data = torch.tensor([[-1.0, -1, -1, -1, -1]])
    prior.spatial.weight.data = torch.tensor([[1.0, 0, 0, 0, 0]])  # x1, which is 0 of the first region
    images = ImageInputs({"a": regions("a"), "b": regions("b")})
    expected = {"spatial_alive": 0.75, "semantic_alive": 0.0}
    assert live_prior(model, processor, images, ["a", "b"]) == expected


def test_a_captioner_that_does_not_attend_or_data_without_boxes_have_no_scores(rows):
    recipe = Recipe.from_dict(RECIPE | {"system": "mia", "model": MIA})
    model, processor = build_captioner(recipe, CAPTIONS, 6)
    images = ImageInputs({"a": regions("a"), "b": regions("b")}, {"a": ["man"], "b": ["dog"]})
    assert measure_objects(model, processor, rows, images) is None  # no object words are known
    processor.object_words = {"dog": "dog"}
    assert measure_objects(model, processor, rows, images) is None  # visual condition has no attention
    up_down = MIA | {"decoder_type": "up_down"}
    attending, _ = build_captioner(Recipe.from_dict(RECIPE | {"system": "mia", "model": up_down}), CAPTIONS, 6)
    assert measure_objects(attending, processor, rows.select([1]), images) is None
    found = measure_objects(attending, processor, rows, images)
    assert 0 <= found["given_captions"]["attention_correctness"] <= 1


SIZES = {"embedding_size": 8, "decoder_hidden_size": 8, "attention_hidden_size": 8, "dropout": 0.0}
MIA = {"decoder_type": "visual_condition", "hidden_size": 8, "num_attention_heads": 2, **SIZES}
RECIPE = {
    "description": "tiny",
    "system": "ss_attention",
    "dataset": {"name": "scenes"},
    "regions": {},
    "captions": {"min_count": 1},
    "model": SIZES,
}


@pytest.fixture
def captioner():
    torch.manual_seed(0)
    model, processor = build_captioner(Recipe.from_dict(RECIPE), CAPTIONS, 6, num_object_classes=5)
    return model.eval(), processor


def test_of_given_words_the_weights_of_their_regions_count(rows, captioner):
    model, processor = captioner
    images = ImageInputs({"a": regions("a"), "b": regions("b")})

    def only_region(number: int) -> None:  # the prior decides alone, by the place
        model.decoder.prior_weight = 1e6
        prior = model.decoder.prior
        prior.forward = lambda *_: torch.eye(4)[[number, number]].log()

    scores = {}
    for number in (0, 2, 3):
        only_region(number)
        scores[number] = score_given_captions(model, processor, images, rows, ["dog", "man"])
    # Region 0 is the man's; region 2 one of the two dogs, of whose common box it has 21 x 21 of 41 x 21 pixels, more
    # than half; region 3 the same of the other, and the dog of the second caption.
    assert [each["grounding_accuracy"] for each in scores.values()] == pytest.approx([0.5, 0.25, 0.5])
    assert scores[0]["attention_correctness"] == pytest.approx(1 / 3, abs=0.02)
    assert scores[2]["attention_correctness"] == pytest.approx(1 / 3, abs=0.02)
    assert scores[3]["attention_correctness"] == pytest.approx(2 / 3, abs=0.02)
    assert scores[0]["count"] == 3
    # Of four equal weights one is on the man, two on both dogs, one on the dog.
    assert scores[0]["uniform_attention"] == pytest.approx(1 / 3, abs=0.02)


# Batches


def test_a_batch_has_the_targets_of_the_captions_that_were_drawn(rows, captioner):
    _, processor = captioner
    images = ImageInputs({"a": regions("a"), "b": regions("b")})
    collator = GroundedCaptioningCollator(processor, images, rows, attention_targets=True)
    expected = {0: [1, 1, 1, 1], 1: [0, 0, 0, 1]}
    drawn = set()
    data = CaptionsPerImage(rows, 1)
    for epoch in range(8):
        data.set_epoch(epoch)
        batch = collator([data[0], data[1]])
        (number,) = data[0]["sentences"]
        drawn.add(number)
        assert batch["grounding_targets"].tolist() == [expected[number], [0, 0, 0, 0]]
        assert batch["attention_targets"][0].amax(dim=0).tolist() == expected[number]
    assert drawn == {0, 1}
    assert len(collator.matched["a"]) == 4  # matched once, for all captions
    of_image = GroundedCaptioningCollator(processor, images, rows, grounding_target="image")
    assert of_image([data[0], data[1]])["grounding_targets"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_a_withheld_image_tells_nothing_by_its_classes(captioner):
    _, processor = captioner
    sure = regions("a")
    sure.class_probs = np.eye(5, dtype=np.float32)[:4]
    blind = ImageInputs({"a": sure, "b": regions("b")}, withheld=True)
    inputs = processor(**blind.read(["a", "b"]))
    assert torch.equal(inputs["class_probs"][0], inputs["class_probs"][1])
    torch.testing.assert_close(inputs["boxes"], torch.tensor([[[0.0, 0, 1, 1]]] * 2))
