"""Readers of the two kinds of file in Flickr30k Entities: `Sentences/<id>.txt` and `Annotations/<id>.xml`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .schema import AnnotationError

__all__ = ["parse_annotation", "parse_sentences", "read_source"]

MAX_SOURCE_BYTES = 2**20  # the largest file of the data set has about 40 KB
PHRASE = re.compile(r"\[/EN#(\d+)/([^\s\[\]]+)\s([^\[\]]*)\]")  # [/EN#<chain>/<type>[/<type>...] word word]


def read_source(path: Path) -> str:
    """Text of a small UTF-8 file. Raises [`AnnotationError`] if it is missing, not UTF-8 or over `MAX_SOURCE_BYTES`."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise AnnotationError(f"Cannot read '{path}': {error.strerror}. The data folder is not complete.") from error
    if len(content) > MAX_SOURCE_BYTES:
        raise AnnotationError(f"'{path}' is larger than {MAX_SOURCE_BYTES} bytes, so it is no annotation of one image.")
    try:
        return content.decode("utf-8-sig")  # some editors put a byte order mark first
    except UnicodeDecodeError as error:
        raise AnnotationError(f"'{path}' must be UTF-8 text: {error}.") from error


def parse_sentences(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Captions without mark-up, and the marked phrases in reading order.

    A phrase has `sentence`, `start`, `end` (white-space tokens of that caption, end exclusive), `phrase`, `entity_id`
    and `types`. Phrases tagged `notvisual` have `entity_id` "0".

    Raises:
        AnnotationError: If a line is empty or its mark-up is broken; names the line.
    """
    captions: list[str] = []
    phrases: list[dict[str, Any]] = []
    # Not `splitlines`, which would also cut at Unicode separators inside a caption.
    for number, line in enumerate(read_source(path).rstrip("\n").split("\n"), start=1):
        tokens: list[str] = []
        position = 0
        for match in PHRASE.finditer(line):
            chain, types, words = match[1], match[2].split("/"), match[3].split()
            if not words:
                raise AnnotationError(f"'{path}', line {number}: phrase without words: '{match[0]}'.")
            tokens += _plain_words(line[position : match.start()], path, number)
            phrases.append(
                {
                    "sentence": number - 1,
                    "start": len(tokens),
                    "end": len(tokens) + len(words),
                    "phrase": " ".join(words),
                    "entity_id": "0" if "notvisual" in types else chain,
                    "types": types,
                }
            )
            tokens += words
            position = match.end()
        tokens += _plain_words(line[position:], path, number)
        if not tokens:
            raise AnnotationError(f"'{path}', line {number}: empty caption; expected one caption on each line.")
        captions.append(" ".join(tokens))
    return captions, phrases


def _plain_words(text: str, path: Path, number: int) -> list[str]:
    """Words outside phrases. A bracket left there means that a phrase is not closed, not opened or has a broken tag."""
    if "[" in text or "]" in text:
        raise AnnotationError(
            f"'{path}', line {number}: broken phrase mark-up at '{text.strip()}'; "
            "expected [/EN#<chain>/<type> words] with both brackets."
        )
    return text.split()


def parse_annotation(path: Path) -> tuple[int, int, dict[str, list[list[int]]]]:
    """`(width, height, boxes)` of one image: boxes xyxy by chain, 1-based inclusive pixels, in the order of the file.

    Chains flagged as `scene` or `nobndbox` have no entry. A box with several names belongs to each of them.

    Raises:
        AnnotationError: If the file is no such XML, or declares a document type or entities, which could make a small
            file expand without limit.
    """
    text = read_source(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise AnnotationError(f"'{path}' declares a document type or entities; annotations have none. Remove them.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise AnnotationError(f"'{path}', line {error.position[0]}: malformed XML: {error}.") from error
    size = root.find("size")
    if size is None:
        raise AnnotationError(f"'{path}' has no <size>; expected <size> with <width> and <height>.")
    boxes: dict[str, list[list[int]]] = {}
    for number, item in enumerate(root.iter("object"), start=1):
        corners = item.find("bndbox")
        if corners is None:
            continue
        where = f"'{path}', object {number}"
        box = [_integer(corners, tag, where) for tag in ("xmin", "ymin", "xmax", "ymax")]
        if box[2] < box[0] or box[3] < box[1]:
            raise AnnotationError(f"{where}: expected xmin <= xmax and ymin <= ymax, got {box}.")
        for name in item.iter("name"):
            boxes.setdefault((name.text or "").strip(), []).append(box)
    return _integer(size, "width", f"'{path}'"), _integer(size, "height", f"'{path}'"), boxes


def _integer(parent: ElementTree.Element, tag: str, where: str) -> int:
    text = parent.findtext(tag)
    try:
        return int(text or "")
    except ValueError:
        raise AnnotationError(f"{where}: <{tag}> in <{parent.tag}> must be a whole number, got {text!r}.") from None
