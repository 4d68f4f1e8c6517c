"""Which words of captions name objects, and of what class: from a list of classes, or from the training's phrases.

A word names an object if its lemma is that of a class; a phrase is of the class of its last word ("a man in a red
shirt" are two phrases), see `head_word`. Lemmas are those of grounding F1.
"""

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..metrics.grounding_f1 import lemmatize_noun
from ..processing.words import head_word

_lemma = functools.cache(lemmatize_noun)

# Lemmas that end phrases and name no class of object: "the other", "a man in black", "the back", "two". Of all lemmas
# of 20 phrases with boxes or more in Flickr8k these are no nouns, or say where in an object something is.
_NO_OBJECTS = {
    *("another", "back", "each", "one", "open", "other", "outside", "someone", "something", "top", "two"),
    *("black", "blue", "brown", "green", "pink", "purple", "red", "white", "yellow"),
}


def read_object_classes(path: Path) -> list[str]:
    r"""Names in a file, one a line, such as the 480 classes of Grounded Video Description.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It has no name, or is no text.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"No list of object classes '{path}' (`captions.object_classes`); give a text file, a name on each line."
        )
    try:
        names = [line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no list of object classes, a name on each line: {error}") from error
    classes = list(dict.fromkeys(filter(None, names)))
    if not classes:
        raise ValueError(f"'{path}' has no object class; expected a name on each line.")
    return classes


def head_nouns(rows: Dataset, min_count: int, vocabulary: Collection[str]) -> list[str]:
    r"""Object classes from phrases with boxes: lemmas of their last words, the commonest first.

    A lemma that is no word of the vocabulary ("sunglass") is named by its commonest form ("sunglasses"), and those that
    are no nouns are left out.

    Args:
        rows (`datasets.Dataset`): With "captions" and, or there are no classes, "phrases".
        min_count (`int`): Phrases that a class has at least.
        vocabulary: Words that captioners write.
    """
    if "phrases" not in rows.column_names:
        return []
    forms: dict[str, Counter[str]] = {}
    for captions, phrases in zip(rows["captions"], rows["phrases"], strict=True):
        words = [caption.lower().split() for caption in captions]
        for phrase in phrases:
            head = head_word(words[phrase["sentence"]], phrase["start"], phrase["end"]) if phrase["boxes"] else None
            if head is not None:
                word = words[phrase["sentence"]][head]
                forms.setdefault(_lemma(word), Counter())[word] += 1
    counts = {noun: own.total() for noun, own in forms.items() if noun not in _NO_OBJECTS and own.total() >= min_count}
    return [
        noun if noun in vocabulary else forms[noun].most_common(1)[0][0]
        for noun in sorted(counts, key=lambda noun: (-counts[noun], noun))
    ]


def object_words(vocabulary: Iterable[str], classes: Iterable[str]) -> dict[str, str]:
    """Words of a vocabulary with the lemma of a class -> the class; of classes that are words themselves."""
    words = set(vocabulary)
    by_lemma: dict[str, str] = {}
    for name in classes:
        if name in words:
            by_lemma.setdefault(_lemma(name), name)
    return {word: by_lemma[_lemma(word)] for word in sorted(words) if _lemma(word) in by_lemma}


def reference_objects(row: Mapping[str, Any], classes: Iterable[str]) -> list[dict[str, list]]:
    r"""The captions of an image as grounding F1 reads them.

    Args:
        row: Of a data set: "captions" and "phrases".
        classes: Phrases of others are words without a box, as are those without boxes.

    Returns:
        For each caption "tokens", and of its phrases with a class "classes", "indices" (the phrase's last word),
        "boxes" (the one around the phrase's boxes, as F1 takes one), and "parts" (the boxes themselves).
    """
    by_lemma = {_lemma(name): name for name in classes}
    captions: list[dict[str, list]] = [
        {"tokens": caption.lower().split(), "classes": [], "indices": [], "boxes": [], "parts": []}
        for caption in row["captions"]
    ]
    for phrase in row["phrases"]:
        caption = captions[phrase["sentence"]]
        head = head_word(caption["tokens"], phrase["start"], phrase["end"]) if phrase["boxes"] else None
        name = None if head is None else by_lemma.get(_lemma(caption["tokens"][head]))
        if name is not None and head not in caption["indices"]:
            x1, y1, x2, y2 = zip(*phrase["boxes"], strict=True)
            values = (name, head, [min(x1), min(y1), max(x2), max(y2)], phrase["boxes"])
            for key, value in zip(("classes", "indices", "boxes", "parts"), values, strict=True):
                caption[key].append(value)
    return captions
