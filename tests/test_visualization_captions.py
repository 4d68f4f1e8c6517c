"""Drawn captions, and what mutual attention gathers by iteration."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from hf_grounding import (
    GroundedAnswer,
    GroundedCaption,
    draw_grounded_answer,
    draw_grounded_caption,
    draw_mutual_attention,
)
from hf_grounding.processing.grounding import Grounding
from hf_grounding.processing.regions import Regions
from hf_grounding.visualization import PREDICTED, REGION_COLORS

GREY = (120, 120, 120)
BOXES = np.array([[0, 0, 50, 80], [60, 40, 90, 70], [10, 10, 40, 30]], dtype=float)


@pytest.fixture
def photo() -> Image.Image:
    return Image.new("RGB", (100, 80), GREY)


def written(words="a dog runs", best=(0, 1, 0), weight=0.6, regions=None) -> GroundedCaption:
    """Each word's best region has this weight, the others share the rest."""
    regions = regions or Regions("1", (80, 100), BOXES)
    weights = np.full((len(best), 3), (1 - weight) / 2)
    weights[np.arange(len(best)), list(best)] = weight
    groundings = [
        Grounding(word, (i, i + 1), tuple(regions.boxes[best[i]].tolist()), None, weight)
        for i, word in enumerate(words.split())
    ]
    return GroundedCaption(words, groundings, weights, regions)


def area(picture: Image.Image, color: str, box=None) -> int:
    return int((np.asarray(picture.crop(box) if box else picture) == ImageColor.getrgb(color)).all(axis=-1).sum())


def test_regions_of_content_words_are_outlined_in_colours_that_the_caption_repeats(photo):
    picture = draw_grounded_caption(photo, written())
    # Scale 9.76, from (12, 12) on: the right side of the dog's box is at x = 890, of the runner's at 500.
    assert area(picture, REGION_COLORS[0], (884, 500, 896, 550)) > 100
    assert area(picture, REGION_COLORS[1], (494, 300, 506, 350)) > 100
    caption = (0, 800, 1000, 850)
    assert area(picture, REGION_COLORS[0], caption) > 20
    assert area(picture, REGION_COLORS[1], caption) > 20


def test_words_of_one_region_share_its_colour(photo):
    picture = draw_grounded_caption(photo, written("brown dog runs", (1, 1, 0)))
    assert area(picture, REGION_COLORS[1]) > 0
    assert area(picture, REGION_COLORS[2]) == 0


def test_only_the_surest_words_are_outlined(photo):
    caption = written("dog cat runs", (0, 1, 2))
    caption.groundings[1].score = 0.9
    picture = draw_grounded_caption(photo, caption, max_words=1)
    assert area(picture, REGION_COLORS[0], (592, 420, 604, 680)) > 100  # the cat's left side, x = 598
    assert area(picture, REGION_COLORS[1]) == 0


def test_a_word_s_panel_is_as_bright_as_its_weights(photo):
    caption = written("dog", (1,), weight=1.0)
    with_panels = draw_grounded_caption(photo, caption)
    caption.region_weights = None
    left, top = 12, draw_grounded_caption(photo, caption).height  # three columns of 317, scale 3.17
    assert with_panels.getpixel((left + 75 * 3.17, top + 55 * 3.17)) == GREY
    assert with_panels.getpixel((left + 10, top + 10)) == (30, 30, 30)


def test_function_words_have_no_panel(photo):
    heights = {
        words: draw_grounded_caption(photo, written(words, (0,) * 6)).height
        for words in ("a on the of dog in", "dog cat man boy car sky")
    }
    assert heights["a on the of dog in"] < heights["dog cat man boy car sky"]  # one row of five, and two


def test_only_words_that_name_objects_are_outlined_where_they_are_known(photo):
    caption = written()
    caption.object_classes = {1: "dog"}
    picture = draw_grounded_caption(photo, caption)
    assert area(picture, REGION_COLORS[0], (884, 500, 896, 550)) > 100  # the dog's right side, x = 890
    assert area(picture, REGION_COLORS[1]) == 0


@pytest.mark.parametrize("ground", [GREY, (255, 255, 255), (0, 0, 0)])
def test_the_prior_shows_as_faint_outlines_below_the_words_regions(ground):
    photo = Image.new("RGB", (100, 80), ground)
    caption = written("a dog", (0, 1))
    before = draw_grounded_caption(photo, caption)
    caption.region_prior = np.array([0.2, 0.2, 0.6])
    after = draw_grounded_caption(photo, caption)

    def changed(box) -> float:
        one, two = (np.asarray(picture.crop(box), dtype=float) for picture in (before, after))
        return float(np.abs(one - two).max())

    strong, weak = changed((104, 120, 116, 280)), changed((494, 300, 506, 700))  # left of region 2, right of region 0
    assert strong > 1.5 * weak > 30  # as the roots of .6 and .2
    assert area(after, REGION_COLORS[0]) == area(before, REGION_COLORS[0])  # the dog's box is drawn over it
    assert after.height > before.height + 12  # a line says what the outlines are


def test_words_without_boxes_and_captions_without_words_are_drawn(photo):
    groundings = [Grounding("dog", (0, 1), None, None, 0.0)]
    without = draw_grounded_caption(photo, GroundedCaption("dog", groundings))
    assert without.getpixel((400, 300)) == GREY
    empty = GroundedCaption("", [], np.zeros((0, 3)), Regions("1", (80, 100), BOXES))
    assert draw_grounded_caption(photo, empty).width == 1000


@pytest.mark.parametrize("size", [(20, 600), (600, 20)], ids=["tall", "wide"])
def test_photos_of_any_shape_and_regions_of_another_size_are_drawn(size):
    regions = Regions("1", (80, 100), BOXES)
    assert draw_grounded_caption(Image.new("L", size), written(regions=regions), width=300).width == 300


def test_outlines_are_as_opaque_as_their_weights_and_bars_as_long(photo):
    regions = Regions("1", (80, 100), BOXES)
    weights, concepts = np.array([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]), np.array([[0.2, 0.8], [0.1, 0.4]])
    picture = draw_mutual_attention(photo, regions, ["dog", "grass"], weights, concepts)
    assert picture.width == 1200
    first, second = (area(picture, PREDICTED, (left, 0, left + 600, picture.height)) for left in (0, 600))
    assert first > 1.3 * second  # two opaque outlines, then one
    bars = [area(picture, REGION_COLORS[1], (left, 0, left + 600, picture.height)) for left in (0, 600)]
    assert bars[0] == pytest.approx(2 * bars[1], rel=0.05)


def test_an_answer_has_bars_by_probability_and_outlines_by_weight(photo):
    def drawn(weights, probability, word="yes"):
        answers = [(word, probability), ("no", 0.05)]
        grounding = Grounding(word, (0, 3), (0, 0, 50, 80), None, max(weights))
        answer = GroundedAnswer("is it ?", answers, [grounding], np.array(weights), Regions("1", (80, 100), BOXES))
        return draw_grounded_answer(photo, answer)

    sure, unsure = drawn([0.9, 0.05, 0.05], 0.9), drawn([0.35, 0.32, 0.33], 0.3)
    assert area(sure, REGION_COLORS[1]) > 2.5 * area(unsure, REGION_COLORS[1])  # 0.95 of a bar and 0.35 of it
    left_of_it = (12 + 585 - 8, 450, 12 + 585 + 8, 600)  # its left one, x = 598
    assert np.asarray(unsure.crop(left_of_it)).std() > 3 * np.asarray(sure.crop(left_of_it)).std()
    long = drawn([0.9, 0.05, 0.05], 0.9, "a word wider than the whole picture " * 5)
    assert area(long, REGION_COLORS[1]) > 0.4 * area(sure, REGION_COLORS[1])  # its bar has its place


def test_one_iteration_and_more_concepts_than_regions_are_drawn(photo):
    regions = Regions("1", (80, 100), BOXES)
    words = ["dog", "grass", "cat", "car", "sky"]
    assert draw_mutual_attention(photo, regions, words, np.ones((1, 3)) / 3, np.ones((1, 3)) / 3).width == 1200


@pytest.mark.parametrize(
    ("region_weights", "concept_weights", "message"),
    [
        (np.ones((2, 4)), np.ones((2, 2)), r"`region_weights` must be \(iterations, 3\).* got \(2, 4\)"),
        (np.ones(3), np.ones((1, 2)), r"`region_weights` must be \(iterations, 3\)"),
        (np.ones((0, 3)), np.ones((0, 2)), r"`region_weights` must be \(iterations, 3\)"),
        (np.ones((2, 3)), np.ones((1, 2)), r"`concept_weights` must be \(2, 2 or fewer\)"),
        (np.ones((2, 3)), np.ones((2, 3)), r"`concept_weights` must be \(2, 2 or fewer\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(photo, region_weights, concept_weights, message):
    with pytest.raises(ValueError, match=message):
        draw_mutual_attention(photo, Regions("1", (80, 100), BOXES), ["dog", "cat"], region_weights, concept_weights)


def test_a_picture_too_narrow_for_text_is_refused(photo):
    with pytest.raises(ValueError, match="`width` must be 200 pixels or more, got 100"):
        draw_grounded_caption(photo, written(), width=100)
