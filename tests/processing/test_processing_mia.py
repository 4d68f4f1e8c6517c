"""Regions, concepts and captions to tensors by hand; written captions to words with boxes, worked by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.generation import GenerateEncoderDecoderOutput

from hf_grounding.modeling.configuration_mia import MIAConfig
from hf_grounding.modeling.modeling_mia import MIAForCaptioning
from hf_grounding.processing.caption_tokenizers import (
    caption_tokenizer_from_words,
    train_subword_caption_tokenizer,
)
from hf_grounding.processing.grounding import Grounding
from hf_grounding.processing.processing_mia import MIAProcessor
from hf_grounding.processing.regions import Regions, best_regions

WORDS = ["a", "man", "horse", "dog", "rides"]
# mia: <pad> 0, <start> 1, <end> 2, <unk> 3, then the words from 4; up_down: <end> 0, the words from 1, UNK 6


def make_processor(convention: str = "mia", **settings) -> MIAProcessor:
    return MIAProcessor(None, caption_tokenizer_from_words(WORDS, convention=convention, max_words=5), **settings)


def make_regions(count: int, image_id: str = "1", dim: int = 3, scores=None) -> Regions:
    """Region i is 10 x 10 pixels at (10 i, 0), and its features are i, i + 1, ..."""
    boxes = np.array([[10 * i, 0, 10 * i + 10, 10] for i in range(count)], dtype=np.float32).reshape(count, 4)
    features = np.arange(count)[:, None] + np.arange(dim, dtype=np.float32)
    return Regions(image_id, (20, 200), boxes, region_features=features.astype(np.float32), scores=scores)


def outputs_of(sequences, region_attentions=None) -> GenerateEncoderDecoderOutput:
    """As `generate` of a captioner gives them."""
    outputs = GenerateEncoderDecoderOutput(sequences=torch.tensor(sequences), cross_attentions=())
    if region_attentions is not None:
        outputs["region_attentions"] = torch.tensor(region_attentions)
    return outputs


# Inputs of the model


def test_regions_are_padded_to_the_image_with_most_and_masked():
    batch = make_processor()(regions=[make_regions(2), make_regions(3, "2")])
    assert set(batch) == {"region_features", "region_mask"}
    assert batch["region_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["region_features"].dtype == torch.float32
    assert batch["region_features"][0].tolist() == [[0, 1, 2], [1, 2, 3], [0, 0, 0]]
    alone = make_processor()(regions=make_regions(2))
    assert torch.equal(alone["region_features"], batch["region_features"][:1, :2])


def test_an_image_with_more_regions_keeps_the_best():
    batch = make_processor(max_regions=2)(regions=make_regions(4, scores=np.array([0.1, 0.5, 0.2, 0.9])))
    assert batch["region_features"][0, :, 0].tolist() == [1, 3]
    assert make_processor(max_regions=2)(regions=make_regions(4))["region_features"][0, :, 0].tolist() == [0, 1]


@pytest.mark.parametrize("convention, ids", [("mia", [[7, 3], [6, 0]]), ("up_down", [[4, 6], [3, 0]])])
def test_concepts_are_words_of_the_captions_and_others_unknown(convention, ids):
    batch = make_processor(convention, max_concepts=2)(concepts=[["Dog", "zebra", "man"], ["horse"]])
    assert batch["concept_ids"].tolist() == ids
    assert batch["concept_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["concept_ids"].dtype == torch.long


def test_a_concept_that_captions_cut_into_several_words_is_unknown():
    assert make_processor()(concepts=[["dog's", "man-horse", "a man"]])["concept_ids"].tolist() == [[3, 3, 3]]


def test_an_image_without_concepts_has_an_empty_mask():
    batch = make_processor()(concepts=[[], []])
    assert batch["concept_ids"].tolist() == [[0], [0]]
    assert batch["concept_mask"].tolist() == [[0], [0]]


@pytest.mark.parametrize(
    "convention, labels",
    [
        ("mia", [[4, 5, 8, 4, 6, 2], [7, 2, -100, -100, -100, -100]]),
        ("up_down", [[1, 2, 5, 1, 3, 0], [4, 0, -100, -100, -100, -100]]),
    ],
)
def test_labels_end_with_the_end_token_and_only_padding_is_ignored(convention, labels):
    batch = make_processor(convention)(captions=["A man rides a horse.", "dog"])
    assert set(batch) == {"labels"}
    assert batch["labels"].tolist() == labels


def test_a_long_caption_is_cut_before_its_end_token():
    assert make_processor()(captions=["a a a a a dog dog"])["labels"].tolist() == [[4] * 5 + [2]]


def test_captions_of_one_image_share_it_by_their_index():
    batch = make_processor()(
        regions=[make_regions(1), make_regions(1, "2")], captions=[["a dog", "dog"], ["a man", "horse", "zebra"]]
    )
    assert batch["image_index"].tolist() == [0, 0, 1, 1, 1]
    assert batch["labels"][:, 0].tolist() == [4, 7, 4, 6, 3]
    mixed = make_processor()(captions=["a dog", ["a man", "horse"]])
    assert mixed["image_index"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("convention, ids", [("mia", [[1, 4, 7], [1, 4, 3]]), ("up_down", [[0, 1, 4], [0, 1, 6]])])
def test_prompts_begin_with_the_start_token_and_have_no_end(convention, ids):
    assert make_processor(convention)(text=["a dog", "a zebra"])["decoder_input_ids"].tolist() == ids
    assert make_processor(convention)(text="a dog")["decoder_input_ids"].tolist() == ids[:1]


def test_photos_become_pixels():
    photos = [Image.new("RGB", (30, 20)), Image.new("RGB", (20, 30))]
    batch = make_processor()(images=photos, captions=["a dog", "a man"], size={"height": 32, "width": 32})
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["labels"].shape == (2, 3)


BARE = Regions("7", (20, 200), np.array([[0, 0, 10, 10]], dtype=np.float32))


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"captions": ["a dog"], "return_tensors": "np"}, "`return_tensors` must be \"pt\", got 'np'"),
        ({"regions": [make_regions(1), make_regions(0, "9")]}, "Image '9' has no regions. Extract them with"),
        ({"regions": BARE}, "Image '7' has no region features. .* a `--backbone`"),
        ({"regions": []}, "There is nothing to pad: `regions` is empty"),
        (
            {"regions": [make_regions(1), make_regions(1, "2", dim=4)]},
            "image '1' has 3 columns, image '2' has 4 columns",
        ),
        ({"concepts": []}, "`concepts` is empty; expected a list of words for each image"),
        ({"concepts": ["dog", "horse"]}, "Image 0 needs a list of words as its concepts, got 'dog'"),
        ({"concepts": [["dog"], [3]]}, r"Image 1 needs a list of words as its concepts, got \[3\]"),
        ({"captions": "a dog"}, "`captions` must hold a caption, or a list of them, for each image; got 'a dog'"),
        ({"captions": []}, r"`captions` must hold a caption, or a list of them, for each image; got \[\]"),
        ({"captions": ["a dog", " "]}, r"Image 1 needs captions with at least one word each, got \[' '\]"),
        ({"captions": [["a dog"], []]}, r"Image 1 needs captions with at least one word each, got \[\]"),
        ({"captions": [["a dog", None]]}, r"Image 0 needs captions .*, got \['a dog', None\]"),
        ({"text": ["a dog", "dog"]}, "`text` must begin all captions with equally many words"),
        ({"text": []}, "`text` must begin all captions with equally many words"),
        (
            {"regions": [make_regions(1)], "concepts": [["dog"]] * 2, "captions": [["a", "dog", "man"]] * 3},
            "their numbers differ: {'region_mask': 1, 'concept_ids': 2, 'captions': 3}",
        ),
        ({"regions": [make_regions(1)], "text": ["a", "a"]}, "differ: {'region_mask': 1, 'decoder_input_ids': 2}"),
    ],
)
def test_what_does_not_fit_is_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_processor()(**inputs)


@pytest.mark.parametrize("name", ["max_regions", "max_concepts"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be 1 or more, got 0"):
        make_processor(**{name: 0})


def test_of_a_grid_every_cell_must_be_read():
    extraction = {"grid": 7, "backbone": "weights/resnet"}
    assert make_processor(max_regions=49, extraction=extraction).max_regions == 49
    with pytest.raises(ValueError, match=r"A grid of 7 has 49 cells, more than the 36 regions .* Raise it to 49"):
        make_processor(extraction=extraction)


def test_saved_and_loaded_it_makes_the_same_inputs_and_keeps_where_regions_come_from(tmp_path):
    extraction = {"detector": "weights/yolox", "backbone": "weights/mobilenet", "num_regions": 5}
    processor = make_processor("up_down", max_regions=2, max_concepts=3, extraction=extraction)
    inputs = {"regions": make_regions(4), "concepts": [["dog", "zebra"]], "captions": [["a dog rides", "a man"]]}
    expected = processor(**inputs)
    processor.save_pretrained(tmp_path)
    assert "concept_ids" not in (tmp_path / "processor_config.json").read_text()
    loaded = MIAProcessor.from_pretrained(tmp_path)
    assert (loaded.max_regions, loaded.max_concepts, loaded.extraction) == (2, 3, extraction)
    actual = loaded(**inputs)
    assert set(actual) == set(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert MIAProcessor.from_pretrained(tmp_path, max_regions=1).max_regions == 1


# Captions with regions


def test_each_word_gets_the_region_that_counted_most():
    # a dog <end>: "a" looks at region 0, "dog" at region 2; what the end token looks at belongs to no word.
    outputs = outputs_of([[1, 4, 7, 2]], [[[0.5, 0.2, 0.3], [0.1, 0.2, 0.7], [0.0, 1.0, 0.0]]])
    (caption,) = make_processor().post_process_grounded_captions(outputs, make_regions(3))
    assert caption.caption == "a dog"
    assert caption.groundings == [
        Grounding("a", (0, 1), (0, 0, 10, 10), (5, 5), pytest.approx(0.5)),
        Grounding("dog", (1, 2), (20, 0, 30, 10), (25, 5), pytest.approx(0.7)),
    ]
    np.testing.assert_allclose(caption.region_weights, [[0.5, 0.2, 0.3], [0.1, 0.2, 0.7]], rtol=1e-6)
    saved = json.loads(json.dumps(caption.to_dict()))
    assert saved["caption"] == "a dog"
    assert saved["groundings"][1]["box"] == [20, 0, 30, 10]


def test_phrases_are_words_or_spans_and_get_the_mean_of_their_words():
    # Region 0 is first of "a" (.6) but region 1 of "a dog": (.4 + .8) / 2 = .6 against (.6 + .2) / 2 = .4.
    outputs = outputs_of([[1, 4, 7, 2]], [[[0.6, 0.4], [0.2, 0.8], [1.0, 0.0]]])
    processor, regions = make_processor(), make_regions(2)
    (caption,) = processor.post_process_grounded_captions(outputs, regions, phrases=[["a dog", (0, 1)]])
    assert [each.phrase for each in caption.groundings] == ["a dog", "a"]
    assert [each.token_span for each in caption.groundings] == [(0, 2), (0, 1)]
    assert [each.box for each in caption.groundings] == [(10, 0, 20, 10), (0, 0, 10, 10)]
    assert [each.score for each in caption.groundings] == pytest.approx([0.6, 0.6])
    (none,) = processor.post_process_grounded_captions(outputs, regions, phrases=[[]])
    assert none.groundings == []


def test_a_word_of_several_pieces_gets_their_mean():
    tokenizer = train_subword_caption_tokenizer(["abc abd", "b c d"], vocab_size=12)
    pieces = ["▁", "a", "b", "▁", "d"]
    assert set(pieces) <= tokenizer.get_vocab().keys(), "the pieces below are no longer in the vocabulary"
    ids = tokenizer.convert_tokens_to_ids(pieces)
    weights = [[0.3, 0.7], [0.6, 0.4], [0.9, 0.1], [0.1, 0.9], [0.3, 0.7], [1.0, 0.0]]
    outputs = outputs_of([[1, *ids, 2]], [weights])
    (caption,) = MIAProcessor(None, tokenizer).post_process_grounded_captions(outputs, make_regions(2))
    assert caption.caption == "ab d"
    # ab: "▁", "a", "b" -> (.3 + .6 + .9) / 3 = .6; d: "▁", "d" -> (.1 + .3) / 2 = .2
    np.testing.assert_allclose(caption.region_weights, [[0.6, 0.4], [0.2, 0.8]], rtol=1e-6)
    assert [each.box for each in caption.groundings] == [(0, 0, 10, 10), (10, 0, 20, 10)]


def test_a_piece_that_begins_a_word_that_never_comes_belongs_to_none():
    tokenizer = train_subword_caption_tokenizer(["abc abd", "b c d"], vocab_size=12)
    ids = tokenizer.convert_tokens_to_ids(["▁", "a", "▁"])
    outputs = outputs_of([[1, *ids, 2]], [[[0.2, 0.8], [0.4, 0.6], [1.0, 0.0], [1.0, 0.0]]])
    (caption,) = MIAProcessor(None, tokenizer).post_process_grounded_captions(outputs, make_regions(2))
    np.testing.assert_allclose(caption.region_weights, [[0.3, 0.7]], rtol=1e-6)


def test_unknown_words_are_left_out_with_their_weights():
    outputs = outputs_of([[1, 4, 3, 7, 2]], [[[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.5, 0.5]]])
    (caption,) = make_processor().post_process_grounded_captions(outputs, make_regions(2))
    assert caption.caption == "a dog"
    np.testing.assert_allclose(caption.region_weights, [[0.9, 0.1], [0.2, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("convention, sequence", [("mia", [1, 2, 0]), ("up_down", [0, 0, 0])])
def test_an_empty_caption_has_no_groundings(convention, sequence):
    outputs = outputs_of([sequence], [[[0.5, 0.5], [0.5, 0.5]]])
    (caption,) = make_processor(convention).post_process_grounded_captions(outputs, make_regions(2))
    assert (caption.caption, caption.groundings, caption.region_weights.shape) == ("", [], (0, 2))


def test_several_captions_of_an_image_follow_one_another_and_padded_regions_are_cut():
    one_hot = np.eye(3, dtype=np.float32)
    weights = one_hot[[[0, 0], [1, 1], [2, 0], [1, 2]]]
    outputs = outputs_of([[1, 7, 2], [1, 6, 2], [1, 5, 2], [1, 7, 2]], weights.tolist())
    # The first image has two regions and a row of padding.
    captions = make_processor().post_process_grounded_captions(outputs, [make_regions(2), make_regions(3, "2")])
    assert [each.caption for each in captions] == ["dog", "horse", "man", "dog"]
    assert [each.groundings[0].box[0] for each in captions] == [0, 10, 20, 10]
    assert [each.region_weights.shape for each in captions] == [(1, 2), (1, 2), (1, 3), (1, 3)]


def test_boxes_are_of_the_regions_that_the_model_was_given():
    scores = np.array([0.1, 0.5, 0.2, 0.9])
    processor, regions = make_processor(max_regions=2), make_regions(4, scores=scores)
    given = best_regions(regions, 2)  # 1 and 3
    features = processor(regions=regions)["region_features"][0]
    np.testing.assert_array_equal(features, given.region_features)
    outputs = outputs_of([[1, 4, 7, 2]], [[[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]]])
    (caption,) = processor.post_process_grounded_captions(outputs, regions)
    assert [list(each.box) for each in caption.groundings] == regions.boxes[[1, 3]].tolist()


def test_of_photos_that_the_model_read_the_cells_are_boxes_all_of_them():
    weights = np.full((2, 2, 49), 0.01)
    weights[0, 0, 48] = weights[1, 0, 7] = 0.52  # the last cell, and the first of the second row
    outputs = outputs_of([[1, 7, 2], [1, 7, 2]], weights)
    first, second = make_processor().post_process_grounded_captions(outputs, target_sizes=[(70, 140), (700, 7)])
    assert first.groundings[0].box == pytest.approx((120, 60, 140, 70))
    assert second.groundings[0].box == pytest.approx((0, 100, 1, 200))
    assert (len(first.regions), first.regions.image_size) == (49, (70, 140))
    (word,) = make_processor().post_process_grounded_captions(outputs_of([[1, 7, 2]]), target_sizes=[(70, 140)])
    assert word.groundings == [Grounding("dog", (0, 1), None, None, 0.0)]


def test_a_decoder_without_attention_gives_words_without_boxes():
    (caption,) = make_processor().post_process_grounded_captions(outputs_of([[1, 4, 7, 2]]), make_regions(2))
    assert caption.groundings == [Grounding("a", (0, 1), None, None, 0.0), Grounding("dog", (1, 2), None, None, 0.0)]
    assert caption.region_weights is None


def test_words_of_a_prompt_have_no_box_and_phrases_are_of_the_written_ones():
    # "a dog" was given, "rides" written.
    outputs = outputs_of([[1, 4, 7, 8, 2]], [[[0.2, 0.8], [0.9, 0.1]]])
    processor, regions = make_processor(), make_regions(2)
    (caption,) = processor.post_process_grounded_captions(outputs, regions)
    assert [each.box for each in caption.groundings] == [None, None, (10, 0, 20, 10)]
    assert np.isnan(caption.region_weights[:2]).all()
    (phrase,) = processor.post_process_grounded_captions(outputs, regions, [["dog rides"]])[0].groundings
    assert (phrase.box, phrase.score) == ((10, 0, 20, 10), pytest.approx(0.8))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"regions": [make_regions(2)] * 3}, "2 captions do not belong to 3 images' `regions`"),
        ({"regions": []}, "2 captions do not belong to 0 images' `regions`"),
        ({"regions": None, "target_sizes": [(9, 9)] * 2}, "as a square grid of cells, but `outputs` are of 2 regions"),
        ({"regions": None}, "Give either the `regions` that the model read, or the `target_sizes` of its photos"),
        ({"target_sizes": [(9, 9)] * 2}, "Give either the `regions`"),
        ({"regions": make_regions(3, "5")}, "Image '5' has 3 regions, but `outputs` are of at most 2"),
        ({"phrases": [["dog"]]}, "`phrases` has 1 entries for 2 captions"),
        ({"phrases": [["dog"], ["cat"]]}, "Phrase 'cat' is not in 'dog'"),
        ({"phrases": [["dog"], [(0, 2)]]}, r"Span \(0, 2\) is not inside the 1 words"),
        ({"outputs": torch.tensor([[1, 7, 2]])}, "`outputs` must be of `model.generate.*got Tensor"),
        (
            {"outputs": GenerateEncoderDecoderOutput(sequences=torch.tensor([[1, 7, 2]]))},
            "`outputs` must be of `model.generate.* got one without attentions",
        ),
    ],
)
def test_regions_and_phrases_that_do_not_fit_to_the_captions_are_refused(change, message):
    arguments = {
        "outputs": outputs_of([[1, 7, 2], [1, 7, 2]], [[[0.5, 0.5]] * 2] * 2),
        "regions": [make_regions(2), make_regions(2)],
    }
    with pytest.raises(ValueError, match=message):
        make_processor().post_process_grounded_captions(**(arguments | change))


def make_model(decoder: str) -> MIAForCaptioning:
    torch.manual_seed(0)
    config = MIAConfig(
        decoder_type=decoder,
        vocab_size=9,
        feature_dim=3,
        hidden_size=8,
        embedding_size=8,
        decoder_hidden_size=8,
        attention_hidden_size=4,
        intermediate_size=8,
        num_attention_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    return MIAForCaptioning(config).eval()


@pytest.mark.parametrize("decoder", ["visual_attention", "concept_attention", "visual_condition", "up_down"])
def test_padding_of_regions_concepts_and_captions_changes_nothing(decoder: str):
    processor, model = make_processor(), make_model(decoder)
    regions = [make_regions(4), make_regions(6, "2"), make_regions(2, "3")]
    concepts = [["dog"], ["man", "horse", "a", "dog", "rides", "zebra", "man"], []]
    captions = ["a dog", "a man rides a horse", "dog"]
    with torch.no_grad():
        batch = model(**processor(regions=regions, concepts=concepts, captions=captions)).logits
        for row, record, words, caption in zip(batch, regions, concepts, captions, strict=True):
            (alone,) = model(**processor(regions=record, concepts=[words], captions=[caption])).logits
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", ["visual_attention", "up_down", "transformer", "visual_condition"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_what_a_model_writes_is_grounded_with_or_without_a_prompt(decoder: str, options: dict):
    processor, model = make_processor(max_regions=3), make_model(decoder)
    regions = [make_regions(2), make_regions(5, "2", scores=np.array([0.1, 0.9, 0.2, 0.8, 0.7]))]
    settings = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_attentions": True, **options}
    for prompt in ({}, {"text": ["a dog", "a man"]}):
        inputs = processor(regions=regions, concepts=[["dog"], ["man", "horse"]], **prompt)
        outputs = model.generate(**inputs, **settings)
        captions = processor.post_process_grounded_captions(outputs, regions)
        assert [each.caption for each in captions] == processor.batch_decode(outputs.sequences)
        assert len(captions) == 2 * options.get("num_return_sequences", 1)
        for number, caption in enumerate(captions):
            assert " ".join(each.phrase for each in caption.groundings) == caption.caption
            if decoder == "visual_condition":
                assert caption.region_weights is None
                continue
            given = len(prompt.get("text", [""])[0].split())
            written = caption.region_weights[given:]
            np.testing.assert_allclose(written.sum(axis=1), np.ones(len(written)), rtol=1e-5)
            assert [each.box is None for each in caption.groundings] == [True] * given + [False] * len(written)
            kept = regions[number * 2 // len(captions)].boxes[[0, 1] if number * 2 < len(captions) else [1, 3, 4]]
            assert all(list(each.box) in kept.tolist() for each in caption.groundings[given:])
