"""Drawn groundings and the HTML report."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hf_grounding.processing.grounding import Grounding
from hf_grounding.processing.regions import Regions, box_iou
from hf_grounding.visualization import (
    ANNOTATED,
    LIGHT,
    PREDICTED,
    REGION_COLORS,
    Example,
    Report,
    Table,
    _charts,
    _font,
    _free_place,
    _wrap,
    draw_grounding,
    draw_groundings,
    draw_regions,
    write_report,
)

GREY = (90, 90, 90)


@pytest.fixture
def photo() -> Image.Image:
    return Image.new("RGB", (100, 80), GREY)


def grounding(phrase="a red ball", box=None, point=None, heatmap=None, score=0.5) -> Grounding:
    return Grounding(phrase, (0, len(phrase.split())), box, point, score, heatmap)


def peak_at(row: int, column: int) -> np.ndarray:
    heatmap = np.zeros((4, 5), dtype=np.float32)
    heatmap[row, column] = 0.3
    return heatmap


def rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def has_color(picture: Image.Image, color: str, area: tuple[int, int, int, int]) -> bool:
    return bool((np.asarray(picture.crop(area)) == rgb(color)).all(axis=-1).any())


def test_heatmap_colours_its_peak_and_leaves_the_rest_of_the_photo(photo):
    # 100 x 80 drawn 400 wide: the photo is 400 x 320, cell (1, 4) of 4 x 5 is 320..400 x 80..160
    picture = draw_grounding(photo, grounding(heatmap=peak_at(1, 4)), width=400)
    red, green, blue = picture.getpixel((390, 120))
    assert min(red, green) > blue + 50  # the yellow end of viridis
    assert picture.getpixel((10, 300)) == GREY


def test_photo_shows_through_the_peak():
    black, white = (Image.new("RGB", (100, 80), color) for color in ("black", "white"))
    flat = grounding(heatmap=np.ones((2, 2), dtype=np.float32))
    dark, light = (draw_grounding(photo, flat, width=100).getpixel((5, 5)) for photo in (black, white))
    assert np.subtract(light, dark).min() > 50


def test_heatmap_of_zeros_and_missing_parts_leave_the_photo_as_it_is(photo):
    picture = draw_grounding(photo, grounding(heatmap=np.zeros((4, 5), dtype=np.float32)), width=200)
    assert (np.asarray(picture.crop((0, 0, 200, 160))) == GREY).all()


def test_box_and_point_stand_at_their_pixels_scaled_to_the_picture(photo):
    # scale 8: the box's left side is at x = 160, its middle at y = 320; the point at (560, 400)
    picture = draw_grounding(photo, grounding(box=(20, 20, 50, 60), point=(70, 50)), width=800)
    assert has_color(picture, PREDICTED, (158, 315, 162, 325))
    assert not has_color(picture, PREDICTED, (170, 170, 390, 470))
    assert picture.getpixel((560, 400)) == rgb(LIGHT)
    assert not has_color(picture, ANNOTATED, (0, 0, 800, 640))


def test_annotated_box_is_dashed(photo):
    picture = draw_grounding(photo, grounding(), boxes=[(20, 20, 80, 60)], width=800)
    top_side = np.asarray(picture)[160, 200:600]
    painted = (top_side == rgb(ANNOTATED)).all(axis=-1)
    assert 0.2 < painted.mean() < 0.8
    assert (top_side == GREY).all(axis=-1).any()


def test_box_without_area_is_drawn(photo):
    picture = draw_grounding(photo, grounding(box=(50, 40, 50, 40)), boxes=[(20, 20, 20, 20)], width=200)
    assert has_color(picture, PREDICTED, (96, 76, 104, 84))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_photos_of_every_mode_can_be_drawn(mode):
    assert draw_grounding(Image.new(mode, (20, 20)), grounding(heatmap=peak_at(0, 0)), width=200).mode == "RGB"


def test_the_photo_is_left_alone(photo):
    draw_grounding(photo, grounding(box=(1, 1, 50, 50), point=(5, 5), heatmap=peak_at(0, 0)))
    assert photo.getextrema() == tuple((value, value) for value in GREY)


@pytest.mark.parametrize("count, columns", [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3)])
def test_panels_fill_a_grid_of_the_asked_width(photo, count, columns):
    picture = draw_groundings(photo, [grounding(heatmap=np.ones((1, 1)))] * count, width=600)
    assert picture.width == 600
    first_row = np.asarray(picture)[20]
    panels = np.count_nonzero(np.diff((first_row == rgb(LIGHT)).all(axis=-1).astype(int)) == 1) + 1
    assert panels == columns
    photo_height = (600 // columns) * 80 / 100
    rows = -(-count // columns)
    assert rows * photo_height < picture.height < rows * (photo_height + 50) + 50  # captions, legend


def test_long_phrases_are_wrapped_within_the_width():
    font = _font(16)
    text = "a very long phrase about many small dogs " * 4 + "w" * 80
    lines = _wrap(text, font, 200)
    assert all(font.getlength(line) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"image": np.zeros((4, 4, 3))}, TypeError, r"must be a PIL image, got ndarray"),
        ({"groundings": []}, ValueError, r"`groundings` is empty"),
        ({"boxes": [None, None]}, ValueError, r"2 entries for 1 groundings"),
        ({"boxes": [[(5, 0, 2, 2)]]}, ValueError, r"must be xyxy .* got \[5, 0, 2, 2\]"),
        ({"boxes": [[(0, 0, 2)]]}, ValueError, r"must be xyxy"),
        ({"groundings": [grounding(box=(np.nan, 0, 1, 1))]}, ValueError, r"must be xyxy"),
        ({"width": 20}, ValueError, r"100 pixels or more, got 20"),
        ({"groundings": [grounding(heatmap=np.full((2, 2), np.nan))]}, ValueError, r"has 4 NaN or infinite values"),
        ({"groundings": [grounding(heatmap=np.ones((1, 2, 2)))]}, ValueError, r"got shape \(1, 2, 2\)"),
    ],
)
def test_what_cannot_be_drawn_is_said(photo, arguments, error, message):
    with pytest.raises(error, match=message):
        draw_groundings(**{"image": photo, "groundings": [grounding()], **arguments})


class _Outside(HTMLParser):
    """Collects everything that would make a browser run code or fetch something."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "link", "iframe", "object", "base"):
            self.found.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]


@pytest.fixture
def report(photo) -> Report:
    return Report(
        title="Scenes & <b>shapes</b>",
        settings={"model": {"levels": [0, 1]}, "learning_rate": 0.0001, "text_config": None},
        protocol={"split": "val"},
        metrics=[Table("Pointing (percent)", [{"category": "all", "accuracy": 57.0}], note="200 images")],
        curve=[{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0, "accuracy": 0.25}],
        examples=[Example("failed", "<script>alert(1)</script>", photo), Example("good", "a ball", photo, note="hit")],
        rule="highest, middle and lowest score",
    )


def test_report_holds_everything_and_fetches_nothing(tmp_path, report):
    path = write_report(tmp_path / "new" / "report.html", report)
    html = path.read_text(encoding="utf-8")
    outside = _Outside()
    outside.feed(html)
    assert outside.found == []
    assert not re.search(r"url\(|@import", html)
    for text in (">57.0<", "200 images", "model.levels", "0, 1", "0.0001", "text_config", "split", report.rule, "hit"):
        assert text in html
    assert html.index("<h3>Good</h3>") < html.index("<h3>Failed</h3>")
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert [Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures] == [(100, 80)] * 2
    assert list(path.parent.iterdir()) == [path]


def test_report_escapes_what_it_is_given(tmp_path, report):
    html = write_report(tmp_path / "report.html", report).read_text(encoding="utf-8")
    assert "Scenes &amp; &lt;b&gt;shapes" in html
    assert "<script" not in html


def test_report_of_nothing_but_a_title_has_no_empty_sections(tmp_path):
    html = write_report(tmp_path / "report.html", Report("Nothing yet")).read_text(encoding="utf-8")
    assert "<h1>Nothing yet</h1>" in html
    assert "<h2>" not in html


def test_a_failed_report_leaves_the_old_one(tmp_path, report):
    path = write_report(tmp_path / "report.html", report)
    before = path.read_bytes()
    report.metrics = [Table("Broken", [{"a": 1}, {"b": 2}])]
    with pytest.raises(Exception, match="'a'"):
        write_report(path, report)
    assert path.read_bytes() == before


def test_curve_becomes_one_chart_for_each_quantity_without_what_is_not_finite():
    loss, accuracy = _charts(
        [{"step": 0, "loss": 3.0}, {"step": 10, "loss": float("nan"), "accuracy": 0.5}, {"step": 20, "loss": 1.0}]
    )
    assert (loss["name"], loss["points"]) == ("loss", [("0.00", "0.00"), ("100.00", "100.00")])
    assert (loss["low"], loss["high"], loss["last"]) == ([0.0, 1.0], [20.0, 3.0], 1.0)
    assert (accuracy["name"], accuracy["points"]) == ("accuracy", [("0.00", "100.00")])


def test_unknown_group_of_examples_is_named_with_the_nearest(photo):
    with pytest.raises(ValueError, match=r"got 'fail'\. Did you mean 'failed'\?"):
        Example("fail", "a ball", photo)


def test_a_very_tall_photo_is_drawn_in_a_panel_of_bounded_height():
    grounding = Grounding("a line", (0, 2), box=(0, 100, 1, 200), point=(0, 150), score=0.5, heatmap=np.eye(3))
    picture = draw_grounding(Image.new("RGB", (1, 3000), "red"), grounding, width=200)
    assert picture.width == 200
    assert picture.height < 4 * 200 + 100  # with caption and legend


def regions_of(boxes, **fields) -> Regions:
    return Regions("7", (40, 50), np.array(boxes, dtype=np.float32), **fields)  # half the size of the photo


def test_regions_are_drawn_at_their_places_with_their_labels(photo):
    # 100 x 80 drawn 400 wide; a box of the 50 x 40 photo is 8 times larger
    picture = draw_regions(photo, regions_of([[10, 20, 40, 35]]), width=400)
    assert picture.size == (400, 320)
    for side in ((79, 200, 82, 240), (318, 200, 321, 240), (150, 159, 250, 162), (150, 278, 250, 281)):
        assert has_color(picture, REGION_COLORS[0], side)
    assert not has_color(picture, REGION_COLORS[0], (84, 164, 316, 276))
    assert has_color(picture, REGION_COLORS[0], (80, 140, 100, 158))  # the label, above
    assert has_color(picture, LIGHT, (80, 140, 100, 158))


def test_weak_regions_are_not_drawn_but_for_the_first(photo):
    boxes = [[0, 10, 20, 20], [25, 10, 45, 20], [0, 25, 20, 35]]
    for scores, drawn in (([0.9, 0.2, 0.05], [True, True, False]), ([0.05, 0.04, 0.03], [True, False, False])):
        picture = draw_regions(photo, regions_of(boxes, scores=np.array(scores)))
        assert [has_color(picture, color, (0, 0, *picture.size)) for color in REGION_COLORS[:3]] == drawn


def test_labels_of_regions_hide_no_other_and_stay_in_the_picture():
    # 10 high: above the box, then down its left edge
    assert _free_place((20, 30, 90, 60), (40, 10), [], (100, 80)) == (20, 20, 60, 30)
    assert _free_place((20, 30, 90, 60), (40, 10), [(0, 15, 50, 35)], (100, 80)) == (20, 40, 60, 50)
    assert _free_place((80, 0, 99, 60), (40, 10), [], (100, 80)) == (60, 0, 100, 10)
    taken = []
    for _ in range(5):
        place = _free_place((20, 30, 90, 60), (40, 10), taken, (100, 80))
        assert not box_iou([place], np.reshape(taken, (-1, 4))).any()
        taken.append(place)


def test_a_photo_without_regions_is_drawn_as_it_is(photo):
    picture = draw_regions(photo, regions_of(np.zeros((0, 4))), width=100)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(photo))
