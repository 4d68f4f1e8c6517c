"""Grounding F1: does a generated caption name the objects of the image, each with the right box?

F1_all and F1_loc of "Grounded Video Description" (CVPR 2019), as its released evaluator computes them on Flickr30k
Entities, and that evaluator's accuracy for ground-truth sentences. Boxes include their last pixel: widths and heights
are x2 - x1 + 1 and y2 - y1 + 1. A box is right where its IoU with the annotated one exceeds 0.5; a single pixel is
never right.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

_PRESENT, _PRECISION, _RECALL = 0, 1, 4  # columns of the statistics
_COMPARED, _RIGHT, _LANGUAGE_ERROR = 0, 1, 2  # of the three of precision and the three of recall
_IOU_RULE = "> 0.5, widths and heights + 1"

# Nouns that end like a plural and stay as they are.
_UNCHANGED = """
    abdomen always amen atlas binoculars canvas christmas clothes gas goggles goods has headquarters jeans leggings lens
    news overalls pajamas pants pyjamas ramen regimen scissors series shorts species specimen tights tongs trousers was
    yes
"""
# The list of object classes has "graffitus".
_IRREGULAR = """
    mice:mouse oxen:ox graffiti:graffitus skis:ski taxis:taxi bikinis:bikini kiwis:kiwi menus:menu
    birdies:birdie bowties:bowtie brownies:brownie cookies:cookie goalies:goalie hoodies:hoodie movies:movie
    neckties:necktie pies:pie rookies:rookie selfies:selfie smoothies:smoothie ties:tie veggies:veggie zombies:zombie
    avalanches:avalanche axes:axe caches:cache headaches:headache moustaches:moustache mustaches:mustache
    atlases:atlas buses:bus cactuses:cactus campuses:campus canvases:canvas circuses:circus gases:gas lenses:lens
    octopuses:octopus quizzes:quiz viruses:virus walruses:walrus
    canoes:canoe foes:foe hoes:hoe oboes:oboe tiptoes:tiptoe toes:toe
    bookshelves:bookshelf calves:calf dwarves:dwarf elves:elf halves:half hooves:hoof housewives:housewife knives:knife
    leaves:leaf lives:life loaves:loaf scarves:scarf shelves:shelf thieves:thief wives:wife wolves:wolf
"""
_NOUNS = {noun: noun for noun in _UNCHANGED.split()} | {
    plural: singular for plural, _, singular in (pair.partition(":") for pair in _IRREGULAR.split())
}
# The first ending that fits decides.
_ENDINGS = (
    *(("ss", "ss"), ("us", "us"), ("is", "is")),
    *(("children", "child"), ("men", "man"), ("feet", "foot"), ("teeth", "tooth"), ("geese", "goose")),
    *(("shoes", "shoe"), ("oes", "o"), ("ies", "y")),
    *(("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("zzes", "zz")),
    ("s", ""),
)


def lemmatize_noun(word: str) -> str:
    """Lower-cased singular of an English noun by rules for the plural and a list of common irregular nouns.

    Made for nouns as captions have them; other words come out as some stem ("holds" -> "hold", "was" -> "was"), which
    does no harm where only nouns are looked for.

    Example:

        >>> [lemmatize_noun(word) for word in ("Dogs", "women", "benches", "puppies", "glass", "jeans")]
        ['dog', 'woman', 'bench', 'puppy', 'glass', 'jeans']
    """
    word = word.lower()
    if word in _NOUNS:
        return _NOUNS[word]
    if len(word) > 2:  # shorter ones are no plurals: "is", "as", the token "'s"
        for plural, singular in _ENDINGS:
            if word.endswith(plural):
                return word.removesuffix(plural) + singular
    return word


def grounding_f1(
    predictions: Sequence[Mapping[str, Any] | None],
    references: Sequence[Sequence[Mapping[str, Any]]],
    *,
    lemmatizer: Callable[[str], str] | None = None,
    object_classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    r"""F1 of grounded object words in generated captions, averaged over object classes.

    Precision compares every predicted object word with each reference caption of its image: with the box of the first
    word of the same class if the caption has one, else it is an error of language, unless the caption has the word
    without a box. Recall compares every reference entry with the first predicted word of its class; none is an error
    of language. Errors of language count as wrong boxes for F1_all and not at all for F1_loc. Both are averaged within
    each class and summed over classes, divided by the number of classes in the references of images with a prediction.

    Args:
        predictions (n mappings or `None`): One caption per image: "classes" (class of each object word, in the order
            of the caption, repeated as often as said) and "boxes" (one xyxy box each, pixels). `None` where an image
            has no prediction: its reference entries count as not found, also for F1_loc.
        references (n lists of mappings): For each image its captions: "tokens" (words; empty ones are passed over) and
            for its annotated words "classes", "indices" (place in "tokens", each once) and "boxes" (one xyxy box each).
        lemmatizer (`Callable`, optional): Word -> lemma, to find a predicted class among a caption's words without a
            box. Default is [`lemmatize_noun`]; published numbers used Stanford CoreNLP.
        object_classes (names, optional): Predicted words and reference entries of other classes are passed over; the
            latter then are words without a box. Default: all classes count.

    Returns:
        `dict`: "f1_all", "precision_all", "recall_all", "f1_loc", "precision_loc", "recall_loc" in [0, 1], 0 where
        there is nothing to divide by; "num_classes" (the divisor), "count" (images) and "protocol" (lemmatizer, IoU
        rule, number of object classes, images without a prediction).

    Raises:
        ValueError: For no images, lists of different lengths, missing keys, boxes that are not finite xyxy, or indices
            that are repeated or outside the tokens.

    Example:

        >>> tokens = ["a", "man", "on", "grass"]
        >>> caption = {"tokens": tokens, "classes": ["man"], "indices": [1], "boxes": [[0, 0, 9, 9]]}
        >>> prediction = {"classes": ["man", "dog"], "boxes": [[0, 0, 9, 8], [0, 0, 5, 5]]}
        >>> result = grounding_f1([prediction], [[caption]])
        >>> result["precision_all"], result["recall_all"], result["f1_loc"], result["num_classes"]
        (1.0, 1.0, 1.0, 1)
    """
    statistics = grounding_f1_statistics(predictions, references, lemmatizer=lemmatizer, object_classes=object_classes)
    sums = statistics.sum(axis=0)
    scores = grounding_f1_scores(sums)
    return {
        **{name: float(score) for name, score in scores.items()},
        "num_classes": int((sums[:, _PRESENT] > 0).sum()),
        "count": len(references),
        "protocol": {
            "lemmatizer": _name_of(lemmatizer),
            "iou": _IOU_RULE,
            "num_object_classes": None if object_classes is None else len(set(object_classes)),
            "images_without_prediction": sum(prediction is None for prediction in predictions),
        },
    }


def grounding_f1_statistics(
    predictions: Sequence[Mapping[str, Any] | None],
    references: Sequence[Sequence[Mapping[str, Any]]],
    *,
    lemmatizer: Callable[[str], str] | None = None,
    object_classes: Sequence[str] | None = None,
) -> np.ndarray:
    r"""What grounding F1 is made of, so that sums over any images give the F1 of these images.

    Args and errors: as in [`grounding_f1`].

    Returns:
        `np.ndarray` of shape `(images, classes, 7)`: how often the class is in the references of an image with a
        prediction; then of precision, and of recall: boxes compared, those of them right, errors of language.
    """
    _check_images("predictions", predictions, references)
    if isinstance(object_classes, str):
        raise ValueError(f"`object_classes` must be a list of names, got the string {object_classes!r}; use [...].")
    kept = None if object_classes is None else frozenset(object_classes)
    lemma = functools.cache(lemmatizer or lemmatize_noun)
    events: list[tuple[int, int, int]] = []  # image, class, column
    numbers: dict[str, int] = {}
    for image, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        captions = _read_captions(reference, image, kept)
        events += [
            (image, numbers.setdefault(name, len(numbers)), column)
            for name, column in _outcomes(prediction, captions, f"predictions[{image}]", kept, lemma)
        ]
    statistics = np.zeros((len(references), len(numbers), 7), dtype=np.int32)
    if events:
        np.add.at(statistics, tuple(np.transpose(events)), 1)
    return statistics


def grounding_f1_scores(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of both modes, each (...), of sums of `grounding_f1_statistics` (..., classes, 7)."""
    num_classes = np.maximum(1, (sums[..., _PRESENT] > 0).sum(axis=-1))
    scores: dict[str, np.ndarray] = {}
    for mode, language_errors_count in (("all", True), ("loc", False)):
        means = []
        for first in (_PRECISION, _RECALL):
            compared, right, language_errors = np.moveaxis(sums[..., first : first + 3], -1, 0)
            outcomes = compared + language_errors if language_errors_count else compared
            means.append((right / np.maximum(1, outcomes)).sum(axis=-1) / num_classes)
        p, r = means
        f1 = 2 * p * r / np.where(p + r > 0, p + r, 1)
        scores |= {f"f1_{mode}": f1, f"precision_{mode}": p, f"recall_{mode}": r}
    return scores


def _outcomes(
    prediction: Mapping[str, Any] | None,
    captions: list["_Caption"],
    where: str,
    kept: frozenset[str] | None,
    lemma: Callable[[str], str],
) -> Iterator[tuple[str, int]]:
    """Class and column of `grounding_f1_statistics` of everything that counts in one image."""
    if prediction is None:
        yield from ((name, _RECALL + _COMPARED) for caption in captions for name in caption.classes)
        return
    predicted, _ = _read_objects(prediction, where, kept)
    for caption in captions:
        yield from ((name, _PRESENT) for name in caption.classes)
        hits = _hits(predicted.boxes, caption.boxes)  # (words, entries)
        entry_of_class = caption.first_entries()
        lemmas_without_box = {lemma(token) for token in caption.tokens_without_box()}
        for word, name in enumerate(predicted.classes):
            if name in entry_of_class:
                yield name, _PRECISION + _COMPARED
                if hits[word, entry_of_class[name]]:
                    yield name, _PRECISION + _RIGHT
            elif lemma(name) not in lemmas_without_box:
                yield name, _PRECISION + _LANGUAGE_ERROR
        for entry, name in enumerate(caption.classes):
            if name not in predicted.classes:
                yield name, _RECALL + _LANGUAGE_ERROR
                continue
            yield name, _RECALL + _COMPARED
            if hits[predicted.classes.index(name), entry]:
                yield name, _RECALL + _RIGHT


def _name_of(lemmatizer: Callable[[str], str] | None) -> str:
    return "plural rules" if lemmatizer is None else getattr(lemmatizer, "__qualname__", type(lemmatizer).__qualname__)


def gt_sentence_accuracy(
    boxes: Sequence[Sequence[Sequence[Sequence[float] | None]]], references: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    r"""Share of reference entries whose box is found when the model reads the reference captions themselves.

    The average is over the classes in the references, each the share of its entries.

    Args:
        boxes (n lists of lists): `boxes[image][caption][entry]` is the xyxy box, in pixels, for that entry of the
            reference caption, or `None` if there is none, which counts as not found.
        references (n lists of mappings): As in [`grounding_f1`].

    Returns:
        `dict`: "grounding_accuracy" in [0, 1], "by_class" (name -> grounding_accuracy, count), "num_classes", "count"
        (entries) and "protocol" (the IoU rule).

    Raises:
        ValueError: As in [`grounding_f1`], for boxes that are not one per entry, or references without any entry.

    Example:

        >>> words, boxes = ["man", "dog"], [[0, 0, 9, 9], [5, 5, 9, 9]]
        >>> caption = {"tokens": words, "classes": words, "indices": [0, 1], "boxes": boxes}
        >>> gt_sentence_accuracy([[[[0, 0, 9, 8], None]]], [[caption]])["grounding_accuracy"]
        0.5
    """
    _check_images("boxes", boxes, references)
    hits, counts = Counter[str](), Counter[str]()
    for image, (image_boxes, reference) in enumerate(zip(boxes, references, strict=True)):
        captions = _read_captions(reference, image)
        _check_length(f"boxes[{image}]", image_boxes, "caption", len(captions))
        for number, (caption_boxes, caption) in enumerate(zip(image_boxes, captions, strict=True)):
            where = f"boxes[{image}][{number}]"
            _check_length(where, caption_boxes, "reference entry", len(caption.classes))
            given = [entry for entry, box in enumerate(caption_boxes) if box is not None]
            predicted = _read_boxes([caption_boxes[entry] for entry in given], where)
            counts.update(caption.classes)
            for entry, hit in zip(given, _hits(predicted, caption.boxes[given]).diagonal(), strict=True):
                hits[caption.classes[entry]] += int(hit)
    if not counts:
        raise ValueError("There is nothing to score: no caption of `references` has an entry.")
    accuracies = {name: hits[name] / counts[name] for name in sorted(counts)}
    return {
        "grounding_accuracy": sum(accuracies.values()) / len(accuracies),
        "by_class": {
            name: {"grounding_accuracy": accuracy, "count": counts[name]} for name, accuracy in accuracies.items()
        },
        "num_classes": len(accuracies),
        "count": counts.total(),
        "protocol": {"iou": _IOU_RULE},
    }


@dataclass(frozen=True)
class _Objects:
    """Classes (n names) and boxes (n, 4) of a caption's object words."""

    classes: list[str]
    boxes: np.ndarray


@dataclass(frozen=True)
class _Caption(_Objects):
    """A reference caption: its object words, the place of each in `tokens`."""

    indices: list[int]
    tokens: list[str]

    def first_entries(self) -> dict[str, int]:
        """For each class the entry with the smallest index."""
        descending = sorted(range(len(self.indices)), key=self.indices.__getitem__, reverse=True)
        return {self.classes[entry]: entry for entry in descending}

    def tokens_without_box(self) -> set[str]:
        return {token for index, token in enumerate(self.tokens) if token and index not in self.indices}


def _hits(predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(n, m) whether each predicted box (n, 4) is right for each reference box (m, 4): see the top of this file."""
    top_left = np.maximum(predicted[:, None, :2], reference[:, :2])  # (n, m, 2)
    bottom_right = np.minimum(predicted[:, None, 2:], reference[:, 2:])  # (n, m, 2)
    overlap = (bottom_right - top_left + 1).clip(min=0).prod(axis=-1)  # (n, m)
    predicted_sides = predicted[:, None, 2:] - predicted[:, None, :2] + 1  # (n, 1, 2)
    reference_sides = reference[:, 2:] - reference[:, :2] + 1  # (m, 2)
    union = predicted_sides.prod(axis=-1) + reference_sides.prod(axis=-1) - overlap  # (n, m)
    single_pixel = (predicted_sides == 1).all(axis=-1) | (reference_sides == 1).all(axis=-1)  # (n, m)
    return (overlap / union > 0.5) & ~single_pixel


def _read_captions(
    reference: Sequence[Mapping[str, Any]], image: int, kept: frozenset[str] | None = None
) -> list[_Caption]:
    """The checked reference captions of one image, with the entries whose class is in `kept`."""
    if isinstance(reference, str) or not isinstance(reference, Sequence):
        raise ValueError(f"`references[{image}]` must be a list of captions, got {reference!r}.")
    captions = []
    for number, caption in enumerate(reference):
        where = f"references[{image}][{number}]"
        objects, rows = _read_objects(caption, where, kept)
        tokens = _read_names(caption, "tokens", where)
        indices = _value(caption, "indices", where)
        _check_length(f"{where}['indices']", indices, "class", len(caption["classes"]))
        if not all(index in range(len(tokens)) for index in indices) or len(set(indices)) < len(indices):
            raise ValueError(
                f"`{where}['indices']` must be places in the {len(tokens)} tokens, each once, got {indices}."
            )
        captions.append(_Caption(objects.classes, objects.boxes, [indices[row] for row in rows], tokens))
    return captions


def _read_objects(source: Mapping[str, Any], where: str, kept: frozenset[str] | None) -> tuple[_Objects, list[int]]:
    """The checked object words of one caption whose class is in `kept`, and their rows in `source`."""
    classes = _read_names(source, "classes", where)
    boxes = _read_boxes(_value(source, "boxes", where), f"{where}['boxes']")
    _check_length(f"{where}['boxes']", boxes, "class", len(classes))
    rows = [row for row, name in enumerate(classes) if kept is None or name in kept]
    return _Objects([classes[row] for row in rows], boxes[rows]), rows


def _read_names(source: Mapping[str, Any], key: str, where: str) -> list[str]:
    names = _value(source, key, where)
    if isinstance(names, str) or not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`{where}['{key}']` must be a list of strings, got {names!r}.")
    return list(names)


def _read_boxes(boxes: Any, where: str) -> np.ndarray:
    """(n, 4) float."""
    try:
        array = np.asarray(boxes, dtype=float)
    except (TypeError, ValueError):
        array = np.empty(0)  # ragged, or not numbers
    if array.shape == (0,) and len(boxes) == 0:
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"`{where}` must be a list of xyxy boxes, four numbers each, got {boxes!r}.")
    bad = np.flatnonzero(~(np.isfinite(array).all(axis=1) & (array[:, :2] <= array[:, 2:]).all(axis=1)))
    if len(bad):
        raise ValueError(
            f"`{where}` must be finite xyxy with x1 <= x2 and y1 <= y2; box {bad[0]} is {array[bad[0]].tolist()}."
        )
    return array


def _value(source: Mapping[str, Any], key: str, where: str) -> Any:
    if not isinstance(source, Mapping) or key not in source:
        found = sorted(source) if isinstance(source, Mapping) else repr(source)
        raise ValueError(f"`{where}` must be a mapping with the key '{key}', got {found}.")
    return source[key]


def _check_images(argument: str, values: Sequence[Any], references: Sequence[Any]) -> None:
    if len(references) == 0:
        raise ValueError("There is nothing to score: `references` is empty; expected a list of captions per image.")
    _check_length(argument, values, "image of `references`", len(references))


def _check_length(where: str, values: Any, unit: str, expected: int) -> None:
    found = len(values) if isinstance(values, Sized) else repr(values)
    if found != expected:
        raise ValueError(f"`{where}` must have one entry per {unit}: expected {expected}, got {found}.")
