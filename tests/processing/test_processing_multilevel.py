"""The processor of the multi-level model: photos, captions and phrases to tensors, outputs to groundings, errors."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from hf_grounding.modeling.configuration_multilevel import MultiLevelGroundingConfig
from hf_grounding.modeling.modeling_multilevel import MultiLevelGroundingModel
from hf_grounding.modeling.outputs import MultiLevelGroundingOutput
from hf_grounding.processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from hf_grounding.processing.processing_multilevel import MultiLevelGroundingProcessor
from hf_grounding.processing.words import Phrase, train_word_tokenizer

CAPTIONS = ["a man rides a brown horse .", "two dogs play, and run"]


def make_processor(**settings: Any) -> MultiLevelGroundingProcessor:
    image_processor = MultiLevelGroundingImageProcessorPil(size={"height": 6, "width": 8})
    return MultiLevelGroundingProcessor(image_processor, train_word_tokenizer(CAPTIONS), **{"grid_size": 3, **settings})


def photo(width: int = 20, height: int = 10) -> Image.Image:
    array = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(array)


def data_phrase(start: int, end: int, *boxes: list[float]) -> dict[str, Any]:
    """As the data sets give them."""
    return {
        "sentence": 0,
        "start": start,
        "end": end,
        "phrase": "",
        "entity_id": "1",
        "types": [],
        "boxes": list(boxes),
    }


# Inputs


def test_a_batch_has_the_shapes_the_model_takes():
    inputs = make_processor()(images=[photo(), photo(5, 30)], text=CAPTIONS, phrases=[["a man", (3, 6)], [(0, 2)]])
    assert inputs["pixel_values"].shape == (2, 3, 6, 8)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == inputs["word_mask"].shape == (2, 7)
    assert inputs["phrase_mask"].shape == (2, 2, 7)
    assert inputs["phrases"] == [[Phrase("a man", 0, 2), Phrase("a brown horse", 3, 6)], [Phrase("two dogs", 0, 2)]]
    assert set(inputs) == {"pixel_values", "input_ids", "attention_mask", "word_mask", "phrase_mask", "phrases"}


def test_phrase_masks_mark_the_tokens_of_the_words():
    # "play," is one word of two tokens; caption 1 has 6 tokens, its second phrase is padding
    inputs = make_processor()(text=CAPTIONS, phrases=[[(0, 2), (3, 6)], ["play, and"]])
    assert inputs["phrase_mask"][0].tolist() == [[1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0]]
    assert inputs["phrase_mask"][1].tolist() == [[0, 0, 1, 1, 1, 0, 0], [0] * 7]
    assert inputs["word_mask"].tolist() == [[1] * 7, [1, 1, 1, 1, 1, 1, 0]]


def test_without_phrases_each_caption_is_one():
    inputs = make_processor()(text=CAPTIONS)
    assert inputs["phrases"] == [[Phrase(CAPTIONS[0], 0, 7)], [Phrase(CAPTIONS[1], 0, 5)]]
    assert torch.equal(inputs["phrase_mask"][:, 0], inputs["word_mask"])


def test_a_caption_may_have_no_phrases():
    inputs = make_processor()(text=CAPTIONS, phrases=[[], ["two dogs"]])
    assert inputs["phrases"] == [[], [Phrase("two dogs", 0, 2)]]
    assert inputs["phrase_mask"][0].sum() == 0


def test_options_go_to_the_tokenizer_and_to_the_image_processor():
    processor = make_processor()
    plain = processor(images=[photo(), photo()], text=CAPTIONS)
    padded = processor(images=[photo(), photo()], text=CAPTIONS, padding="max_length", max_length=9)
    assert padded["input_ids"].shape == padded["phrase_mask"].shape[::2] == (2, 9)
    assert padded["word_mask"][:, :7].equal(plain["word_mask"])
    assert padded["word_mask"][:, 7:].sum() == 0
    cut = processor(text=CAPTIONS, phrases=[["a man"], ["two dogs"]], truncation=True, max_length=3)
    assert cut["input_ids"].equal(plain["input_ids"][:, :3])
    assert cut["phrase_mask"].tolist() == [[[1, 1, 0]], [[1, 1, 0]]]
    size = {"height": 4, "width": 5}
    for options in ({"size": size}, {"images_kwargs": {"size": size}}):
        assert processor(images=photo(), text="a man", **options)["pixel_values"].shape == (1, 3, 4, 5)
    with pytest.raises(
        ValueError, match=r"Nothing is left of phrase 'a brown horse' in .* cut to 3 tokens; raise `max"
    ):
        processor(text=CAPTIONS[0], phrases=[["a brown horse"]], truncation=True, max_length=3)


def test_one_photo_and_one_string_need_no_lists():
    inputs = make_processor()(images=photo(), text="a man")
    assert inputs["pixel_values"].shape[0] == inputs["input_ids"].shape[0] == 1


def test_nested_text_says_which_image_each_caption_belongs_to():
    inputs = make_processor()(images=[photo(), photo()], text=[["a man"], ["two dogs", "a horse"]])
    assert inputs["image_index"].tolist() == [0, 1, 1]
    assert inputs["input_ids"].shape == (3, 2)
    assert "image_index" not in make_processor()(images=[photo()], text=["a man"])


def test_feature_maps_pass_through_in_place_of_images():
    maps = (torch.rand(2, 3, 4, 4), torch.rand(2, 5, 2, 2))
    inputs = make_processor()(text=CAPTIONS, feature_maps=maps)
    assert all(torch.equal(actual, level) for actual, level in zip(inputs["feature_maps"], maps, strict=True))
    assert "pixel_values" not in inputs


def test_a_longer_batch_only_pads():
    alone, together = (
        make_processor()(text="two dogs", phrases=[["dogs"]]),
        make_processor()(text=["two dogs", CAPTIONS[0]]),
    )
    for name in ("input_ids", "attention_mask", "word_mask"):
        assert together[name][0, :2].tolist() == alone[name][0].tolist()
        assert together[name][0, 2:].eq(0).all()


# Box masks


def test_box_masks_are_measured_in_the_annotated_image_even_when_the_photo_is_smaller():
    # annotated at 600 x 300 (width x height), photo stored at 20 x 10: the left third, upper two thirds
    phrases = [[data_phrase(0, 2, [0, 0, 200, 200]), data_phrase(2, 3)]]
    inputs = make_processor()(images=[photo(20, 10)], text="a man rides", phrases=phrases, target_sizes=[(300, 600)])
    assert inputs["box_masks"].shape == (1, 2, 3, 3)
    torch.testing.assert_close(inputs["box_masks"][0, 0], torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 0]]))
    assert inputs["box_masks"][0, 1].eq(0).all()


def test_box_masks_join_several_boxes_and_pad_missing_phrases():
    phrases = [[data_phrase(0, 2, [0, 0, 3, 3], [6, 6, 9, 9])], [data_phrase(0, 1), data_phrase(0, 2, [0, 0, 9, 4.5])]]
    inputs = make_processor()(text=["a man", "two dogs"], phrases=phrases, target_sizes=[(9, 9), (9, 9)])
    torch.testing.assert_close(inputs["box_masks"][0, 0], torch.diag(torch.tensor([1.0, 0, 1])))
    assert inputs["box_masks"][:, :1][1].eq(0).all()
    torch.testing.assert_close(inputs["box_masks"][1, 1], torch.tensor([[1.0] * 3, [0.5] * 3, [0.0] * 3]))
    assert inputs["box_masks"][0, 1].eq(0).all()


def test_without_target_sizes_there_are_no_box_masks():
    assert "box_masks" not in make_processor()(text="a man", phrases=[[data_phrase(0, 2, [0, 0, 3, 3])]])


# Errors


@pytest.mark.parametrize("size", [(0, 0), (5, -1), None, (3,), ("a", "b")])
def test_sizes_that_are_none_are_refused(size):
    processor = make_processor()
    inputs = processor(text=["a man", "two dogs"])
    with pytest.raises(ValueError, match=r"`target_sizes` must be \(height, width\) in pixels, 1 or more, got"):
        processor.post_process_grounding(made_up_outputs(), inputs, [(5, 5), size])


@pytest.mark.parametrize("threshold", [0, -1, 1.5, float("nan")])
def test_a_box_threshold_is_a_share(threshold):
    processor = make_processor()
    inputs = processor(text=["a man", "two dogs"])
    with pytest.raises(ValueError, match=r"`box_threshold` is a share of the peak in \(0, 1\], got"):
        processor.post_process_grounding(made_up_outputs(), inputs, [(5, 5)] * 2, box_threshold=threshold)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text": ["a man", "  "]}, "Caption 1 is empty; every caption needs at least one word"),
        ({"text": ""}, "Caption 0 is empty"),
        ({"text": []}, "`text` is empty; give a caption"),
        ({"text": 5}, "`text` must be a caption, .* got 5"),
        ({"text": "a man", "phrases": [None]}, "`phrases` must be a list of phrases for each caption"),
        ({"text": "a man", "feature_maps": ()}, r"`feature_maps` must be one map for each level.* got shapes \[\]"),
        (
            {"text": "a man", "feature_maps": (torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4))},
            r"all of the same images; got shapes \[\(1, 3, 4, 4\), \(2, 3, 4, 4\)\]",
        ),
        ({"text": [3]}, "`text` must hold strings, .* entry 0 is 3"),
        ({"text": ["a", ["b"]]}, r"`text` must hold strings, .* entry 1 is \['b'\]"),
        ({"text": [["a"], []]}, "Image 1 has no captions in `text`; give it at least one, or leave the image out"),
        ({"text": [["a"], [], ["b"]], "images": [photo()] * 3}, "Image 1 has no captions"),
        ({"text": [[]]}, "Image 0 has no captions"),
        ({"text": [["a"], "bc"]}, "one caption for each image, or for each a list of captions; got both"),
        ({"text": "a man", "phrases": [["a dog"]]}, "Phrase 'a dog' is not in 'a man'"),
        ({"text": "a man", "phrases": [[(1, 3)]]}, r"Span \(1, 3\) is not inside the 2 words of 'a man'"),
        ({"text": "a man", "phrases": ["a man"]}, r"`phrases` must be a list of phrases for each caption, such as"),
        ({"text": "a man", "phrases": [["a"], ["man"]]}, "`phrases` has 2 entries for 1 captions"),
        ({"text": ["a", "b"], "images": [photo()]}, "1 images but text for 2; give one caption, or a list of them"),
        ({"text": [["a"], ["b"]], "images": [photo()] * 3}, "3 images but text for 2"),
        ({"text": "a", "images": []}, "0 images but text for 1"),
        ({"text": ["a"], "feature_maps": (torch.zeros(2, 3, 4, 4),)}, "2 images but text for 1"),
        (
            {"text": "a", "feature_maps": (torch.zeros(3, 4, 4),)},
            r"Level 0 of `feature_maps` must be .* got \(3, 4, 4\)",
        ),
        ({"text": "a", "return_tensors": "np"}, "`return_tensors` must be \"pt\" .* got 'np'"),
    ],
)
def test_inputs_that_do_not_fit_say_what_was_expected(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_processor()(**arguments)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_are_named_by_level_and_row(value):
    maps = (torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 2, 2))
    maps[1][0, 1, 0, 1] = maps[1][2, 0, 1, 1] = value
    with pytest.raises(
        ValueError, match=r"Level 1 of `feature_maps` has NaN or infinite values in rows \[0, 2\]; extract"
    ):
        make_processor()(text=["a", "b", "c"], feature_maps=maps)


@pytest.mark.parametrize("images, named", [(3, "int"), ([None], "NoneType"), ("no-such-file.jpg", "no-such-file.jpg")])
def test_what_is_no_image_is_refused_by_what_it_is(images, named):
    with pytest.raises((TypeError, ValueError), match=named):
        make_processor()(images=images, text="a man")


@pytest.mark.parametrize(
    "phrase, sizes, message",
    [
        ("a man", [(9, 9)], "`target_sizes` asks for box masks, which need phrases with `boxes`; got 'a man'"),
        ({"start": 0, "end": 2}, [(9, 9)], "need phrases with `boxes`; got {'start': 0, 'end': 2}"),
        (data_phrase(0, 2, [5, 0, 4, 2]), [(9, 9)], r"xyxy with x1 <= x2 and y1 <= y2; got .*\[5, 0, 4, 2\]"),
        (data_phrase(0, 2, [0, 3, 4, 2]), [(9, 9)], "xyxy with x1 <= x2 and y1 <= y2"),
        (data_phrase(0, 2, [0, 0, 4]), [(9, 9)], "xyxy with x1 <= x2 and y1 <= y2"),
        (data_phrase(0, 2, [0, 0, torch.nan, 1]), [(9, 9)], "xyxy with x1 <= x2 and y1 <= y2"),
        (data_phrase(0, 2, [0, 0, 4, 4]), [(9, 0)], r"must be \(height, width\) in pixels, 1 or more, got \(9, 0\)"),
        (data_phrase(0, 2, [0, 0, 4, 4]), [(9, 9)] * 2, r"`target_sizes` has 2 entries for 1 captions; give \(height"),
    ],
)
def test_box_masks_that_cannot_be_made_say_why(phrase, sizes, message):
    with pytest.raises(ValueError, match=message):
        make_processor()(text="a man", phrases=[[phrase]], target_sizes=sizes)


def test_a_wrong_query_heatmap_is_refused():
    with pytest.raises(ValueError, match=r"`query_heatmap` must be one of \('auto', 'word', 'sentence'\), got 'mean'"):
        make_processor(query_heatmap="mean")
    processor = make_processor()
    with pytest.raises(ValueError, match="got 'words'"):
        processor.phrase_heatmaps(made_up_outputs(), processor(text=["a man", "two dogs"]), "words")


# Groundings


def made_up_outputs() -> MultiLevelGroundingOutput:
    """Two captions of two words on a 3 x 3 grid.

    Caption 0: word 0 looks at the top left cell, word 1 at the bottom right one, the sentence at the middle. Caption 1:
    its words see nothing, the sentence the top right cell.
    """
    heatmaps, sentence = torch.zeros(2, 2, 3, 3), torch.zeros(2, 3, 3)
    heatmaps[0, 0, 0, 0] = heatmaps[0, 1, 2, 2] = 1
    sentence[0, 1, 1] = sentence[1, 0, 2] = 1
    return MultiLevelGroundingOutput(
        heatmaps=heatmaps,
        word_scores=torch.tensor([[0.2, 0.6], [0.0, 0.0]]),
        sentence_heatmaps=sentence,
        sentence_scores=torch.tensor([0.9, 0.8]),
    )


def test_words_of_negative_relevance_have_no_say_in_a_phrase():
    outputs = made_up_outputs()
    outputs.word_scores = torch.tensor([[-0.2, 0.6], [-0.1, -0.3]])  # as the softmax ablation may give
    inputs = make_processor()(text=["a man", "two dogs"])
    (first, first_scores), (second, second_scores) = make_processor().phrase_heatmaps(outputs, inputs, "word")
    assert corner(first[0]) == [0, 0, 1]
    assert second.eq(0).all()
    torch.testing.assert_close(torch.cat([first_scores, second_scores]), torch.tensor([0.3, 0.0]))


def corner(heatmap: torch.Tensor) -> list[float]:
    return [round(float(heatmap[i, j]), 4) for i, j in ((0, 0), (1, 1), (2, 2))]


@pytest.mark.parametrize(
    "mode, one_word, all_words",
    [
        ("word", ([1, 0, 0], 0.2), ([0.25, 0, 0.75], 0.4)),  # weights .2 and .6; score (.2 + .6) / 2
        ("sentence", ([0, 1, 0], 0.9), ([0, 1, 0], 0.9)),
        ("auto", ([1, 0, 0], 0.2), ([0, 1, 0], 0.9)),
    ],
)
def test_query_heatmap_says_what_a_phrase_heatmap_is_made_of(mode, one_word, all_words):
    processor = make_processor(query_heatmap=mode)
    inputs = processor(text=["a man", "two dogs"], phrases=[["a", "a man"], []])
    for result in (
        processor.phrase_heatmaps(made_up_outputs(), inputs),
        make_processor().phrase_heatmaps(made_up_outputs(), inputs, mode),  # the argument goes before the setting
    ):
        heatmaps, scores = result[0]
        for expected, heatmap, score in zip((one_word, all_words), heatmaps, scores, strict=True):
            assert corner(heatmap) == expected[0]
            assert float(score) == pytest.approx(expected[1])
        assert result[1][0].shape == (0, 3, 3)


def test_groundings_are_in_pixels_of_each_original_image():
    processor = make_processor(query_heatmap="word")
    inputs = processor(text=["a man", "two dogs"], phrases=[["a", "man"], [(0, 2)]])
    (first, second), (nothing,) = processor.post_process_grounding(made_up_outputs(), inputs, [(30, 90), (7, 5)])
    assert (first.phrase, first.token_span, second.phrase, second.token_span) == ("a", (0, 1), "man", (1, 2))
    assert first.point[0] < 30
    assert first.point[1] < 10
    assert second.point[0] >= 60
    assert second.point[1] >= 20
    assert (first.box[0], first.box[1]) == (0, 0)
    assert (second.box[2], second.box[3]) == (90, 30)
    assert (first.score, second.score) == (pytest.approx(0.2), pytest.approx(0.6))
    assert first.heatmap.shape == (3, 3)
    assert first.heatmap.dtype == np.float32
    assert (nothing.point, nothing.box, nothing.score) == (None, None, 0.0)
    assert nothing.heatmap.max() == 0


def test_each_caption_is_measured_in_its_own_image():
    processor = make_processor(query_heatmap="sentence")
    inputs = processor(text=["a man", "two dogs"])
    for sizes, middle, corner_x in (([(30, 90), (9, 6)], (44.0, 14.0), 4.0), ([(9, 6), (30, 90)], (2.0, 4.0), 60.0)):
        (first,), (second,) = processor.post_process_grounding(made_up_outputs(), inputs, sizes)
        assert first.point == middle
        assert corner_x <= second.point[0] < sizes[1][1]
        assert second.box[2] == sizes[1][1]


def test_captions_that_share_an_image_share_its_size():
    processor = make_processor(query_heatmap="sentence")
    inputs = processor(text=[["a man", "two dogs"]])
    groundings = processor.post_process_grounding(made_up_outputs(), inputs, [(30, 90)])
    assert groundings[0][0].point == (44.0, 14.0)  # of the two by two middle pixels the first
    assert groundings[1][0].point[0] >= 60
    with pytest.raises(ValueError, match=r"`target_sizes` has 2 entries for 1 images; give \(height, width\) of each"):
        processor.post_process_grounding(made_up_outputs(), inputs, [(30, 90)] * 2)


def test_a_higher_threshold_gives_a_smaller_box():
    processor = make_processor(query_heatmap="sentence")
    inputs = processor(text=["a man", "two dogs"])
    sizes = [(64, 64)] * 2

    def side(threshold: float) -> float:
        grounding = processor.post_process_grounding(made_up_outputs(), inputs, sizes, box_threshold=threshold)[0][0]
        return grounding.box[2] - grounding.box[0]

    assert side(0.9) < side(0.5) < side(0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_groundings_of_a_half_precision_model_are_those_of_its_heatmaps(dtype):
    processor = make_processor(query_heatmap="word")
    inputs = processor(text=["a man", "two dogs"])
    outputs = MultiLevelGroundingOutput(**{name: value.to(dtype) for name, value in made_up_outputs().items()})
    (found,), (nothing,) = processor.post_process_grounding(outputs, inputs, [(30, 90)] * 2)
    assert found.point[0] >= 60
    assert nothing.point is None


def test_processor_and_model_fit_from_photo_to_grounding():
    torch.manual_seed(0)
    sizes = {"level_channels": [3, 5], "grid_size": 3, "hidden_size": 6, "word_embedding_size": 4}
    processor = make_processor()
    vocabulary = len(processor.tokenizer)
    config = MultiLevelGroundingConfig(**sizes, vocab_size=vocabulary, supervision="boxes")
    model = MultiLevelGroundingModel(config).eval()
    maps = (torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2))
    phrases = [[data_phrase(0, 2, [1, 1, 9, 9])], [data_phrase(0, 2), data_phrase(4, 5, [3, 3, 5, 5])]]
    inputs = processor(text=CAPTIONS, feature_maps=maps, phrases=phrases, target_sizes=[(10, 20), (30, 40)])
    with torch.no_grad():
        outputs = model(**inputs, return_loss=True)
    assert outputs.loss.isfinite()
    groundings = processor.post_process_grounding(outputs, inputs, [(10, 20), (30, 40)])
    assert [[found.phrase for found in row] for row in groundings] == [["a man"], ["two dogs", "run"]]


# Saving and pictures


def test_saved_and_loaded_the_processor_keeps_its_settings(tmp_path):
    processor = make_processor(grid_size=5, query_heatmap="sentence")
    processor.save_pretrained(tmp_path)
    MultiLevelGroundingConfig().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"processor_config.json", "tokenizer.json"}
    for loaded in (MultiLevelGroundingProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is MultiLevelGroundingProcessor
        assert type(loaded.image_processor) is MultiLevelGroundingImageProcessorPil
        assert (loaded.grid_size, loaded.query_heatmap) == (5, "sentence")
        actual, expected = (each(images=[photo()] * 2, text=CAPTIONS) for each in (loaded, processor))
        assert actual["phrases"] == expected["phrases"]
        for name in ("pixel_values", "input_ids", "attention_mask", "word_mask", "phrase_mask"):
            assert torch.equal(actual[name], expected[name]), name


def pixels_of(image: Any) -> torch.Tensor:
    return make_processor()(images=image)["pixel_values"][0]


def test_pixels_are_resized_to_the_fixed_size_and_scaled_to_minus_one_to_one():
    image = Image.new("RGB", (20, 10), (255, 0, 51))
    pixels = pixels_of(image)
    assert pixels.shape == (3, 6, 8)
    for channel, value in enumerate((1.0, -1.0, -0.6)):  # (x / 255 - 0.5) / 0.5
        torch.testing.assert_close(pixels[channel], torch.full((6, 8), value))


def test_the_picture_is_stretched_not_cropped():
    array = np.zeros((10, 40, 3), dtype=np.uint8)
    array[:, 20:] = 255  # the right half is white
    pixels = pixels_of(Image.fromarray(array))
    assert (pixels[:, :, :3] < -0.9).all()
    assert (pixels[:, :, 5:] > 0.9).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "YCbCr", "1", "I;16"])
def test_every_image_mode_gives_the_picture_in_three_channels(mode):
    grey = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 4, axis=1).repeat(6, axis=0))
    image = (
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        if mode == "I;16"
        else grey.convert("RGB").convert(mode)
    )
    assert image.mode == mode
    torch.testing.assert_close(pixels_of(image), pixels_of(grey.convert("RGB")), rtol=0, atol=0.02)


def test_sixteen_bit_greys_are_scaled_not_clipped():
    image = Image.fromarray(np.full((6, 8), 0x8080, dtype=np.uint16))
    torch.testing.assert_close(pixels_of(image), torch.full((3, 6, 8), 2 * 0x80 / 255 - 1))


def test_transparent_pixels_are_white():
    torch.testing.assert_close(pixels_of(Image.new("RGBA", (8, 6), (0, 0, 0, 0))), torch.ones(3, 6, 8))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (300, 1)])
def test_pictures_of_any_size_are_taken(size):
    torch.testing.assert_close(pixels_of(Image.new("RGB", size, (255, 255, 255))), torch.ones(3, 6, 8))


def test_a_file_is_turned_upright_and_an_opened_photo_is_taken_as_it_is(tmp_path):
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    array[4:] = 255  # white below; turned upright as the tag says (6: a quarter clockwise), white on the left
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "photo.png", exif=exif)
    upright, opened = pixels_of(str(tmp_path / "photo.png")), pixels_of(Image.open(tmp_path / "photo.png"))
    assert (upright[:, :, 0] > 0.9).all()
    assert (upright[:, :, -1] < -0.9).all()
    assert (opened[:, 0] < -0.9).all()
    assert (opened[:, -1] > 0.9).all()
