"""Pictures of captions and answers: which regions they are about, and what mutual attention gathers by iteration."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from .processing.concepts import FUNCTION_WORDS
from .processing.grounding import GroundedAnswer, GroundedCaption, Grounding
from .processing.regions import Regions, scale_boxes
from .visualization import DARK, LIGHT, PREDICTED, REGION_COLORS, Box, _draw_box, _font, _free_place

QUIET = "#8A8A8A"  # of words that are not outlined
FAINT = "#FFFFFF"  # of the regions' prior
PALER = 0.15  # a photo whose outlines have one colour; more would change what colour things are
DIMMEST = 0.25  # brightness of what a word gives no weight
MAX_HEIGHT = 1.2  # of a photo in a picture, over its width


def draw_grounded_caption(
    image: Image.Image, caption: GroundedCaption, *, width: int = 1000, max_words: int = 6
) -> Image.Image:
    r"""The photo with the regions of the caption's surest words, the caption, and a small panel for each word.

    In the photo and the caption a region and its words have one colour. In a word's panel the brightness of a region is
    its weight, over that of the strongest, which is outlined. Function words, such as "a" and "on", have neither; nor
    have others than objects', where the caption knows which words name objects. Its `region_prior` shows as faint
    outlines in the photo, the fainter the smaller.

    Args:
        image (`PIL.Image.Image`): The photo, upright.
        caption ([`GroundedCaption`]): Of it.
        width (`int`): Of the picture, in pixels.
        max_words (`int`): So many words have their regions outlined in the photo, those of the largest weights; no
            more than there are colours (8).

    Raises:
        ValueError: If the width is below 200.
    """
    if width < 200:
        raise ValueError(f"`width` must be 200 pixels or more, got {width}.")
    font, margin = _font(max(14, width // 42)), max(6, width // 80)
    colors = _word_colors(caption, min(max_words, len(REGION_COLORS)))
    inner = width - 2 * margin
    parts = [_photo_of_words(image, caption, colors, inner)]
    if caption.region_prior is not None:
        told = "Faint outlines: how much a region counts whatever the word."
        parts.append(_line(told, inner, _font(max(12, width // 60)), QUIET))
    parts.append(_colored_text(caption, colors, inner, font))
    if caption.region_weights is not None:
        shown = _content_words(caption)
        columns = min(5, max(3, len(shown)))
        panel_width = (inner - margin * (columns - 1)) // columns
        panels = [_word_panel(image, caption, one, colors.get(number), panel_width) for number, one in shown.items()]
        parts += [_row(panels[i : i + columns], inner, margin) for i in range(0, len(panels), columns)]
    return _framed(_stacked(parts, inner, margin), margin)


def draw_grounded_answer(image: Image.Image, answer: GroundedAnswer, *, width: int = 1000) -> Image.Image:
    r"""The photo with its regions, the more opaque the more they counted, the question, and a bar for each answer.

    The region that counted most has its weight, the share of all, written on it.

    Args:
        image (`PIL.Image.Image`): The photo, upright.
        answer ([`GroundedAnswer`]): Of a question about it.
        width (`int`): Of the picture, in pixels.

    Raises:
        ValueError: If the width is below 200.
    """
    if width < 200:
        raise ValueError(f"`width` must be 200 pixels or more, got {width}.")
    font, margin = _font(max(14, width // 42)), max(6, width // 80)
    inner = width - 2 * margin
    words, probabilities = zip(*answer.answers, strict=True)
    whole = Grounding(answer.question, (0, len(answer.question.split())), None, None, 1.0)
    question = GroundedCaption(answer.question, [whole])
    photo = _weighted_outlines(image, answer.regions, answer.region_weights, inner)
    best = int(answer.region_weights.argmax())
    (box,) = scale_boxes(answer.regions.boxes[[best]], answer.regions.image_size, (photo.height, photo.width)).tolist()
    _write_label(photo, f"{answer.region_weights[best]:.2f}", box, PREDICTED, _font(max(13, width // 48)), [])
    parts = [
        photo,
        _line("The more opaque an outline, the more its region counted.", inner, _font(max(12, width // 60)), QUIET),
        _colored_text(question, {0: DARK}, inner, font),
        _bars(words, np.array(probabilities), 1.0, inner, font),
    ]
    return _framed(_stacked(parts, inner, margin), margin)


def draw_mutual_attention(
    image: Image.Image,
    regions: Regions,
    concepts: Sequence[str],
    region_weights: np.ndarray,
    concept_weights: np.ndarray,
    *,
    width: int = 1200,
    num_concepts: int = 8,
) -> Image.Image:
    r"""Which regions and concepts one refined row holds after each iteration, after Figure 5 of arXiv 1905.06139.

    Regions are outlined, the more opaque the larger their weight; the strongest concepts have bars, one scale for all
    iterations.

    Args:
        image (`PIL.Image.Image`): The photo, upright.
        regions ([`Regions`]): Of it.
        concepts (list of `str`): Of it; those beyond the weights are left out.
        region_weights (`np.ndarray` of shape `(iterations, num_regions)`): Accumulated over the iterations.
        concept_weights (`np.ndarray` of shape `(iterations, num_concepts)`): Likewise.
        width (`int`): Of the picture, in pixels.
        num_concepts (`int`): How many concepts have bars, those strongest at the end.

    Raises:
        ValueError: If weights and regions, or the numbers of iterations, do not fit.
    """
    iterations = len(region_weights)
    if region_weights.ndim != 2 or region_weights.shape[1] != len(regions) or not iterations:
        raise ValueError(
            f"`region_weights` must be (iterations, {len(regions)}), a column for each region, got "
            f"{region_weights.shape}."
        )
    if concept_weights.ndim != 2 or len(concept_weights) != iterations or concept_weights.shape[1] > len(concepts):
        raise ValueError(
            f"`concept_weights` must be ({iterations}, {len(concepts)} or fewer), a row for each iteration and a "
            f"column for each concept, got {concept_weights.shape}."
        )
    margin = max(6, width // 80)
    panel_width = (width - margin * (iterations + 1)) // iterations
    font = _font(max(12, min(panel_width // 18, width // 50)))
    strongest = np.argsort(-concept_weights[-1], kind="stable")[:num_concepts]
    words, longest = [concepts[i] for i in strongest], float(concept_weights[:, strongest].max(initial=0))
    panels = []
    for number, (own, of_concepts) in enumerate(zip(region_weights, concept_weights, strict=True), start=1):
        title = f"after {number} iteration{'s' if number > 1 else ''}"
        photo = _weighted_outlines(image, regions, own, panel_width)
        bars = _bars(words, of_concepts[strongest], longest, panel_width, font)
        panels.append(_stacked([_line(title, panel_width, font), photo, bars], panel_width, margin // 2))
    return _framed(_row(panels, width - 2 * margin, margin), margin)


# A caption


def _content_words(caption: GroundedCaption) -> dict[int, Grounding]:
    """By their number."""
    if caption.object_classes is not None:
        objects = caption.object_classes.keys()
        return {i: one for i, one in enumerate(caption.groundings) if objects & set(range(*one.token_span))}
    return {i: one for i, one in enumerate(caption.groundings) if one.phrase.lower() not in FUNCTION_WORDS}


def _word_colors(caption: GroundedCaption, max_words: int) -> dict[int, str]:
    """Number of a grounding -> colour of its region, for the surest ones; those of one region share it."""
    placed = {number: one for number, one in _content_words(caption).items() if one.box is not None}
    surest = sorted(placed, key=lambda number: -placed[number].score)[:max_words]
    by_box: dict[Box | None, str] = {}
    for number in sorted(surest):
        by_box.setdefault(placed[number].box, REGION_COLORS[len(by_box)])
    return {number: by_box[placed[number].box] for number in sorted(surest)}


def _photo_of_words(image: Image.Image, caption: GroundedCaption, colors: dict[int, str], width: int) -> Image.Image:
    photo = _fitted(image, width)
    if caption.region_prior is not None and caption.regions is not None:
        boxes = _scaled(image, caption, photo, caption.regions.boxes)
        shares, line = np.sqrt(caption.region_prior), max(2, width // 400)  # a tenth of the largest is still seen
        _outline(photo, boxes, shares, DARK, 2 * line, opacity=0.7)  # on bright ground too
        _outline(photo, boxes, shares, FAINT, line, opacity=0.7)
    draw, font, line = ImageDraw.Draw(photo), _font(max(13, width // 48)), max(3, width // 250)
    words: dict[str, list[Grounding]] = {}
    for number, color in colors.items():
        words.setdefault(color, []).append(caption.groundings[number])
    places = {color: _scaled(image, caption, photo, [ones[0].box])[0] for color, ones in words.items()}
    for color, box in sorted(places.items(), key=lambda pair: -_area(pair[1])):  # the smallest on top
        _draw_box(draw, box, color, line)
    labels: list[Box] = []
    for color, ones in words.items():
        text = "  ".join(f"{one.phrase} {one.score:.2f}" for one in ones)
        labels.append(_write_label(photo, text, places[color], color, font, labels))
    return photo


def _colored_text(
    caption: GroundedCaption, colors: dict[int, str], width: int, font: ImageFont.FreeTypeFont
) -> Image.Image:
    """The caption, broken into lines, its words in the colours of their regions."""
    by_word: dict[int, str] = {}
    for number, color in colors.items():
        by_word |= dict.fromkeys(range(*caption.groundings[number].token_span), color)
    space, height, x, y = font.getlength(" "), round(font.size * 1.4), 0.0, 0
    placed = []
    for number, word in enumerate(caption.caption.split()):
        length = font.getlength(word)
        if x and x + length > width:
            x, y = 0.0, y + height
        placed.append((x, y, word, by_word.get(number, QUIET)))
        x += length + space
    text = Image.new("RGB", (width, y + height), LIGHT)
    draw = ImageDraw.Draw(text)
    for left, top, word, color in placed:
        draw.text((left, top), word, fill=color, font=font)
    return text


def _word_panel(
    image: Image.Image, caption: GroundedCaption, one: Grounding, color: str | None, width: int
) -> Image.Image:
    """The photo as bright as the word's weights, and below it the word and the weight of the strongest region."""
    photo, font = _fitted(image, width), _font(max(11, min(20, width // 11)))
    if caption.regions is not None and caption.region_weights is not None and one.box is not None:
        weights = caption.region_weights[slice(*one.token_span)].mean(axis=0)
        boxes = _scaled(image, caption, photo, caption.regions.boxes)
        photo = Image.fromarray(
            (np.asarray(photo) * _brightness(boxes, weights, photo.size)[..., None]).astype(np.uint8)
        )
        (box,) = _scaled(image, caption, photo, [one.box])
        _draw_box(ImageDraw.Draw(photo), box, color or QUIET, max(2, width // 100))
    text = _line(f"{one.phrase}  {one.score:.2f}", width, font, color or QUIET)
    return _stacked([photo, text], width, 2)


def _brightness(boxes: list[Box], weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width): of each pixel, by the heaviest region that it lies in."""
    shares = weights / max(float(weights.max()), np.finfo(np.float32).tiny)
    brightness = np.full((size[1], size[0]), DIMMEST, dtype=np.float32)
    for number in np.argsort(shares, kind="stable"):  # the heaviest painted last
        x1, y1, x2, y2 = (round(side) for side in boxes[number])
        brightness[y1:y2, x1:x2] = DIMMEST + (1 - DIMMEST) * shares[number]
    return brightness


# Iterations


def _weighted_outlines(image: Image.Image, regions: Regions, weights: np.ndarray, width: int) -> Image.Image:
    """The photo, paler, with each region's outline as opaque as its weight over the largest."""
    photo = Image.blend(_fitted(image, width), Image.new("RGB", _fitted_size(image, width), LIGHT), PALER)
    boxes = scale_boxes(regions.boxes, regions.image_size, (photo.height, photo.width)).tolist()
    _outline(photo, boxes, weights, PREDICTED, max(2, width // 130))
    return photo


def _bars(
    words: Sequence[str], weights: np.ndarray, longest: float, width: int, font: ImageFont.FreeTypeFont
) -> Image.Image:
    """A line for each word: the word, its bar and its weight."""
    height, gap = round(font.size * 1.5), font.size // 2
    words = [_shortened(word, width // 2, font) for word in words]
    left = round(max((font.getlength(word) for word in words), default=0)) + gap
    room = max(1, width - left - round(font.getlength(" 0.00")) - gap)
    bars = Image.new("RGB", (width, height * max(1, len(words))), LIGHT)
    draw = ImageDraw.Draw(bars)
    for number, (word, weight) in enumerate(zip(words, weights.tolist(), strict=True)):
        middle = height * (number + 0.5)
        length = room * weight / max(longest, np.finfo(np.float32).tiny)
        draw.text((left - gap / 2, middle), word, fill=DARK, font=font, anchor="rm")
        draw.rectangle([left, middle - height * 0.3, left + length, middle + height * 0.3], fill=REGION_COLORS[1])
        draw.text((left + length + gap / 2, middle), f"{weight:.2f}", fill=DARK, font=font, anchor="lm")
    return bars


# Of both


def _write_label(
    photo: Image.Image, text: str, box: Box, color: str, font: ImageFont.FreeTypeFont, taken: Sequence[Box]
) -> Box:
    """Writes into the photo beside a box, where none of those `taken` is hidden, and says where that is."""
    draw = ImageDraw.Draw(photo)
    _, _, right, bottom = draw.textbbox((4, 3), text, font=font)
    place = _free_place(box, (right + 4, bottom + 4), taken, photo.size)
    draw.rectangle(place, fill=color)
    draw.text((place[0] + 4, place[1] + 3), text, fill=LIGHT, font=font)
    return place


def _shortened(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """With an ellipsis in place of letters beyond the width."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _outline(
    photo: Image.Image, boxes: list[Box], weights: np.ndarray, color: str, line: int, opacity: float = 1.0
) -> None:
    """Draws boxes into the photo, each as opaque as its weight over the largest, which has `opacity`."""
    strongest = max(float(weights.max()), np.finfo(np.float32).tiny)
    for number in np.argsort(weights, kind="stable"):
        layer = Image.new("RGBA", photo.size)
        alpha = round(255 * opacity * float(weights[number]) / strongest)
        ImageDraw.Draw(layer).rectangle(boxes[number], outline=(*ImageColor.getrgb(color), alpha), width=line)
        photo.paste(layer, mask=layer)


def _fitted_size(image: Image.Image, width: int) -> tuple[int, int]:
    scale = min(width / image.width, MAX_HEIGHT * width / image.height)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _fitted(image: Image.Image, width: int) -> Image.Image:
    return image.convert("RGB").resize(_fitted_size(image, width), Image.Resampling.LANCZOS)


def _scaled(image: Image.Image, caption: GroundedCaption, photo: Image.Image, boxes: object) -> list[Box]:
    """Boxes of a caption in pixels of the drawn photo, inside it."""
    size = (image.height, image.width) if caption.regions is None else caption.regions.image_size
    limits = [photo.width - 1, photo.height - 1] * 2
    return scale_boxes(np.array(boxes, dtype=float), size, (photo.height, photo.width)).clip(0, limits).tolist()


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _line(text: str, width: int, font: ImageFont.FreeTypeFont, color: str = DARK) -> Image.Image:
    """One line of text; letters beyond the width are cut."""
    line = Image.new("RGB", (width, round(font.size * 1.4)), LIGHT)
    ImageDraw.Draw(line).text((0, 0), text, fill=color, font=font)
    return line


def _framed(picture: Image.Image, margin: int) -> Image.Image:
    framed = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), LIGHT)
    framed.paste(picture, (margin, margin))
    return framed


def _row(panels: Sequence[Image.Image], width: int, gap: int) -> Image.Image:
    row = Image.new("RGB", (width, max(panel.height for panel in panels)), LIGHT)
    left = 0
    for panel in panels:
        row.paste(panel, (left, 0))
        left += panel.width + gap
    return row


def _stacked(parts: Sequence[Image.Image], width: int, gap: int) -> Image.Image:
    picture = Image.new("RGB", (width, sum(part.height for part in parts) + gap * (len(parts) - 1)), LIGHT)
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height + gap
    return picture
