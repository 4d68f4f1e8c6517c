"""Pictures of groundings: heatmap, point, boxes and phrase drawn on the photo; a run's report as one HTML file.

All drawing is PIL and numpy; matplotlib lends its colour map and its font. Colours keep their difference for
colour-blind eyes: viridis for heatmaps, two colours of Okabe and Ito for boxes, and annotated boxes are dashed besides.
"""

import base64
import difflib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .processing.grounding import Grounding
from .processing.regions import Regions, box_iou, scale_boxes

Box = Sequence[float]  # xyxy, pixels of the photo

PREDICTED = "#D55E00"  # vermillion of Okabe and Ito
ANNOTATED = "#56B4E9"  # their sky blue
DARK, LIGHT = "#1A1A1A", "#FFFFFF"
# Dark enough for white letters on them.
REGION_COLORS = ("#c0392b", "#1f618d", "#1a7340", "#856c08", "#6c3483", "#a0561a", "#117a65", "#515a5a")
HEATMAP_OPACITY = 0.7  # at the heatmap's peak; 0 where the heatmap is 0
MAX_ASPECT = 4  # height of a panel over its width, at most
SUPERSAMPLING = 2  # PIL's lines have hard edges: draw larger, then shrink
GROUPS = {"good": "Good", "typical": "Typical", "failed": "Failed"}  # of a report's examples, in order


# Pictures


def draw_grounding(
    image: Image.Image, grounding: Grounding, *, boxes: Sequence[Box] | None = None, width: int = 800
) -> Image.Image:
    r"""The photo with the phrase's heatmap, point and box, the phrase below it.

    Args:
        image (`PIL.Image.Image`): The photo the grounding was made for.
        grounding (`Grounding`): What to draw; parts that are `None` are left out.
        boxes (sequence of 4 floats each, *optional*): Annotated boxes, xyxy in pixels of `image`, drawn dashed.
        width (`int`): Of the picture, in pixels.

    Raises:
        TypeError: If `image` is not a PIL image.
        ValueError: If the heatmap is not 2-D or not finite, a box is not xyxy, or the width is below 100.
    """
    return draw_groundings(image, [grounding], boxes=None if boxes is None else [boxes], width=width)


def draw_groundings(
    image: Image.Image,
    groundings: Sequence[Grounding],
    *,
    boxes: Sequence[Sequence[Box] | None] | None = None,
    width: int = 800,
) -> Image.Image:
    r"""One panel for each phrase, as [`draw_grounding`] draws them, on a grid of up to three columns.

    Args:
        image (`PIL.Image.Image`): The photo.
        groundings (sequence of `Grounding`): At least one.
        boxes (sequence of boxes or `None` for each grounding, *optional*): Annotated; xyxy in pixels of `image`.
        width (`int`): Of the whole picture, in pixels.

    Raises:
        TypeError, ValueError: As [`draw_grounding`]; also if `groundings` is empty or `boxes` has another length.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"`image` must be a PIL image, got {type(image).__name__}. Open files by `PIL.Image.open`.")
    if not groundings:
        raise ValueError("`groundings` is empty; give at least one to draw.")
    if boxes is not None and len(boxes) != len(groundings):
        raise ValueError(f"`boxes` has {len(boxes)} entries for {len(groundings)} groundings; give boxes or None each.")
    if width < 100:
        raise ValueError(f"`width` must be 100 pixels or more, got {width}.")

    count = len(groundings)
    columns = 1 if count == 1 else 2 if count in (2, 4) else 3
    gap = width // 80 if columns > 1 else 0
    panel_width = (width - gap * (columns - 1)) // columns
    font = _font(max(14, round(panel_width / 34)))
    annotated = boxes or [None] * count
    panels = [
        _with_caption(_draw_on_photo(image, one, own_boxes or [], panel_width), one, font)
        for one, own_boxes in zip(groundings, annotated, strict=True)
    ]
    rows = [panels[start : start + columns] for start in range(0, count, columns)]
    tops = np.cumsum([0] + [max(panel.height for panel in row) + gap for row in rows]).tolist()
    legend = _legend(width, font, with_annotated=any(annotated))
    picture = Image.new("RGB", (width, tops[-1] - gap + legend.height), LIGHT)
    for row, top in zip(rows, tops, strict=False):
        for column, panel in enumerate(row):
            left = round(column * (width - panel_width) / max(columns - 1, 1))
            picture.paste(panel, (left, top))
    picture.paste(legend, (0, picture.height - legend.height))
    return picture


def draw_regions(
    image: Image.Image, regions: Regions, *, width: int = 800, max_regions: int = 12, min_score: float = 0.1
) -> Image.Image:
    r"""The photo with the boxes of its best regions, each with its label and score.

    Args:
        image (`PIL.Image.Image`): The photo, upright.
        regions ([`Regions`]): Of it; boxes are scaled from the size they are given in.
        width (`int`): Of the picture, in pixels.
        max_regions (`int`): At most so many are drawn, the first ones.
        min_score (`float`): Regions with less confidence are left out, but for the first one.
    """
    picture = image.convert("RGB").resize((width, max(1, round(image.height * width / image.width))))
    draw, font = ImageDraw.Draw(picture), _font(max(12, width // 50))
    count = min(len(regions), max_regions)
    drawn = [i for i in range(count) if i == 0 or regions.scores is None or regions.scores[i] >= min_score]
    boxes = scale_boxes(regions.boxes, regions.image_size, (picture.height, picture.width)).tolist()
    for number in reversed(drawn):  # the best on top
        color = REGION_COLORS[number % len(REGION_COLORS)]
        draw.rectangle(boxes[number], outline=color, width=max(2, width // 300))
    labels: list[Box] = []
    for number in drawn:
        text = _region_name(regions, number)
        _, _, right, bottom = draw.textbbox((2, 2), text, font=font)
        place = _free_place(boxes[number], (right + 2, bottom + 2), labels, picture.size)
        labels.append(place)
        draw.rectangle(place, fill=REGION_COLORS[number % len(REGION_COLORS)])
        draw.text((place[0] + 2, place[1] + 2), text, fill=LIGHT, font=font)
    return picture


def _region_name(regions: Regions, number: int) -> str:
    """Label and score of a region; its number if it has no label."""
    name = str(number)
    if regions.labels is not None:
        name = regions.class_name(number)
    return name if regions.scores is None else f"{name} {regions.scores[number]:.2f}"


def _free_place(box: Box, size: tuple[float, float], taken: Sequence[Box], picture: tuple[int, int]) -> Box:
    """Where a label of this size hides none of those `taken`: from above the box down its left, then its right edge."""
    width, height = size
    rows = range(-1, math.ceil((box[3] - box[1]) / height) + 1)
    places = []
    for left in (box[0], box[2] - width):
        for row in rows:
            x = min(max(0, left), max(0, picture[0] - width))
            y = min(max(0, box[1] + row * height), max(0, picture[1] - height))
            places.append((x, y, x + width, y + height))
    hidden = box_iou(places, np.reshape(taken, (-1, 4))).sum(axis=1)
    return places[int(hidden.argmin())]


def _draw_on_photo(image: Image.Image, grounding: Grounding, boxes: Sequence[Box], width: int) -> Image.Image:
    scale = min(width / image.width, MAX_ASPECT * width / image.height)  # a very tall photo leaves space at its right
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    photo = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    if grounding.heatmap is not None:
        photo = _blend_heatmap(photo, np.asarray(grounding.heatmap))

    # Lines are drawn in a larger layer, in its pixels, and shrunk with it.
    factor = SUPERSAMPLING
    layer = Image.new("RGBA", (size[0] * factor, size[1] * factor))
    draw = ImageDraw.Draw(layer)
    line = max(2, round(width / 220)) * factor
    for box in boxes:
        _draw_box(draw, _scaled_box(box, scale * factor), ANNOTATED, line, dash=6 * line)
    if grounding.box is not None:
        _draw_box(draw, _scaled_box(grounding.box, scale * factor), PREDICTED, line)
    if grounding.point is not None:
        x, y = (coordinate * scale * factor for coordinate in grounding.point)
        _draw_point(draw, x, y, radius=5 * line, line=line)
    layer = layer.resize(photo.size, Image.Resampling.BOX)
    panel = Image.new("RGB", (width, size[1]), LIGHT)
    panel.paste(Image.alpha_composite(photo.convert("RGBA"), layer).convert("RGB"))
    return panel


def _blend_heatmap(photo: Image.Image, heatmap: np.ndarray) -> Image.Image:
    """Viridis over the photo, more opaque where the heatmap is higher, so that the photo stays visible."""
    if heatmap.ndim != 2:
        raise ValueError(f"`heatmap` must be (grid_height, grid_width), got shape {heatmap.shape}.")
    if not np.isfinite(heatmap).all():
        raise ValueError(
            f"`heatmap` of shape {heatmap.shape} has {int((~np.isfinite(heatmap)).sum())} NaN or infinite values; "
            "check the image features that it was made from."
        )
    from matplotlib import colormaps

    strength = np.clip(heatmap / max(float(heatmap.max()), np.finfo(np.float32).tiny), 0, 1).astype(np.float32)
    smooth = np.asarray(Image.fromarray(strength).resize(photo.size, Image.Resampling.BICUBIC)).clip(0, 1)  # (h, w)
    opacity = HEATMAP_OPACITY * smooth[..., None]  # (h, w, 1)
    blended = (1 - opacity) * np.asarray(photo) + opacity * 255 * colormaps["viridis"](smooth)[..., :3]
    return Image.fromarray(blended.round().astype(np.uint8))


def _scaled_box(box: Box, scale: float) -> tuple[float, ...]:
    if len(box) != 4 or not (box[0] <= box[2] and box[1] <= box[3]):
        raise ValueError(f"A box must be xyxy with x1 <= x2 and y1 <= y2, got {list(box)}.")
    return tuple(coordinate * scale for coordinate in box)


def _draw_box(draw: ImageDraw.ImageDraw, box: Box, color: str, line: int, dash: int | None = None) -> None:
    """A line with a rim; dashed, and the rim dark instead of light, if `dash`, the length of a dash, is given."""
    x1, y1, x2, y2 = box
    sides = [((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))]
    for stroke, paint in ((2 * line, LIGHT if dash is None else DARK), (line, color)):
        for start, end in sides:
            length = math.dist(start, end)
            pieces = 1 if dash is None else max(1, 2 * round(length / dash / 2) - 1)  # odd: dashes meet at the corners
            stops = np.linspace(start, end, pieces + 1)
            # Square ends: half a stroke longer, so that corners close and every dash has its rim.
            direction = np.subtract(end, start) / length if length else np.array([1, 0])
            overhang = direction * stroke / 2
            for piece in range(0, pieces, 2):
                draw.line([*(stops[piece] - overhang), *(stops[piece + 1] + overhang)], fill=paint, width=stroke)


def _draw_point(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, line: int) -> None:
    """A light cross in a ring, each with a dark rim: seen on every ground."""
    for stroke, paint in ((2 * line, DARK), (line, LIGHT)):
        reach = radius + stroke / 2
        draw.ellipse([x - reach, y - reach, x + reach, y + reach], outline=paint, width=stroke)
        arm = radius / 2 + stroke / 2
        draw.line([x - arm, y, x + arm, y], fill=paint, width=stroke)
        draw.line([x, y - arm, x, y + arm], fill=paint, width=stroke)


def _with_caption(photo: Image.Image, grounding: Grounding, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The photo with the phrase and its score on a light strip below."""
    margin = round(font.size * 0.5)
    found = f"score {grounding.score:.2f}" if grounding.point is not None else "no point found"
    lines = _wrap(f"{grounding.phrase}  ({found})", font, photo.width - 2 * margin)
    line_height = round(font.size * 1.35)
    panel = Image.new("RGB", (photo.width, photo.height + line_height * len(lines) + 2 * margin), LIGHT)
    panel.paste(photo)
    ImageDraw.Draw(panel).multiline_text(
        (margin, photo.height + margin), "\n".join(lines), fill=DARK, font=font, spacing=line_height - font.size
    )
    return panel


def _legend(width: int, font: ImageFont.FreeTypeFont, *, with_annotated: bool) -> Image.Image:
    """One line that says what the signs mean."""
    size = round(font.size * 0.8)
    small, factor = _font(size * SUPERSAMPLING), SUPERSAMPLING
    entries = ["point", "predicted box", *(["annotated box"] if with_annotated else [])]
    legend = Image.new("RGB", (width * factor, 2 * size * factor), "#EDEDED")
    draw = ImageDraw.Draw(legend)
    sign, middle, line = 1.4 * size * factor, legend.height / 2, max(1, size // 8) * factor
    x = size * factor / 2
    for entry in entries:
        swatch = (x + line, middle - sign / 3, x + sign, middle + sign / 3)
        if entry == "point":
            _draw_point(draw, x + sign / 2, middle, radius=3.2 * line, line=line)
        else:
            predicted = entry == "predicted box"
            _draw_box(draw, swatch, PREDICTED if predicted else ANNOTATED, line, dash=None if predicted else 3 * line)
        x += sign + size * factor / 2
        draw.text((x, middle), entry, fill=DARK, font=small, anchor="lm")
        x += small.getlength(entry) + size * factor
    return legend.resize((width, legend.height // factor), Image.Resampling.BOX)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines no wider than `width` pixels, broken between words; a word wider than a line is broken inside."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most of the world's letters."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


# Report


@dataclass
class Table:
    """A table of the report: rows with the same keys, which head the columns. Floats are shown with one digit."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    note: str = ""


@dataclass
class Example:
    """A picture of the report, such as [`draw_groundings`] makes. `group` is "good", "typical" or "failed"."""

    group: str
    caption: str
    image: Image.Image
    note: str = ""

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            nearest = difflib.get_close_matches(self.group, GROUPS, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"`group` must be one of {list(GROUPS)}, got {self.group!r}.{hint}")


@dataclass
class Report:
    r"""What a report tells about a run.

    Args:
        title (`str`): Its heading.
        settings (mapping): Every setting of the run; nested ones are written as `outer.inner`.
        protocol (mapping): How the numbers were measured: split, number of images, switches of the metrics.
        metrics (sequence of `Table`): The numbers, with the unit in title or column.
        curve (sequence of mappings): One for each logged step: `step`, and any of loss and metrics, which get a chart.
        examples (sequence of `Example`): Pictures in three groups.
        rule (`str`): How the examples were chosen.
    """

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Table] = ()
    curve: Sequence[Mapping[str, float]] = ()
    examples: Sequence[Example] = ()
    rule: str = ""


def write_report(path: str | Path, report: Report) -> Path:
    r"""Writes the report as one HTML file that needs nothing else: styles, charts and pictures are inside.

    Parent folders are made. The file is written aside and then renamed, so no reader meets half a report.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hf_grounding"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(show=_show, cell=cell_text, data_uri=_data_uri)
    html = environment.get_template("report.html.j2").render(
        report=report,
        facts=[
            (title, _flat(facts)) for title, facts in (("Protocol", report.protocol), ("Settings", report.settings))
        ],
        charts=_charts(report.curve),
        groups=[
            (title, examples)
            for group, title in GROUPS.items()
            if (examples := [example for example in report.examples if example.group == group])
        ],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(html, encoding="utf-8")
    return aside.replace(path)


def cell_text(value: Any) -> str:
    """A cell of a [`Table`]: one digit after the point, a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _show(value: Any) -> str:
    """A value as a reader wants it: four digits of a float, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_show, value)) or "–"
    return str(value)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _charts(curve: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """For each quantity of the curve what the template draws: its points on a field of 100 x 100, and its ranges."""
    names = dict.fromkeys(name for entry in curve for name in entry if name != "step")
    charts = []
    for name in names:
        series = np.array([(entry["step"], entry[name]) for entry in curve if name in entry], dtype=float)
        series = series[np.isfinite(series).all(axis=1)]  # a diverged loss has no place on a chart
        if len(series) == 0:
            continue
        low, high = series.min(axis=0), series.max(axis=0)
        x, y = ((series - low) / np.where(high > low, high - low, 1) * 100).T
        points = [(f"{left:.2f}", f"{100 - up:.2f}") for left, up in zip(x, y, strict=True)]
        charts.append(
            {"name": name, "points": points, "low": low.tolist(), "high": high.tolist(), "last": series[-1, 1]}
        )
    return charts
