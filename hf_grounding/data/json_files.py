"""JSON files that people have, COCO annotations among them, and the checks whose messages name the file.

Every file may be gzipped. Ids are compared as text, because one file often has numbers where the other has strings.
"""

from __future__ import annotations

import gzip
import json
import os
import reprlib
import zlib
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from .schema import AnnotationError

__all__ = ["JsonFile", "captions_by_image", "refuse", "refuse_without_references"]

_MAX_BYTES = 2_000_000_000  # of JSON, unpacked: parsed, it takes several times as much memory
_CHUNK_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_IDS = 5  # named in a message

_KINDS: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


class JsonFile:
    r"""Content of a file, and the checks whose messages name the file.

    Args:
        path: The file, gzipped or not.
        keep (names, *optional*): Keys of objects that are read; the others are dropped while the file is parsed, so
            that a large file does not fill the memory with what nobody asks for.

    Raises (all methods too):
        FileNotFoundError: No such file.
        AnnotationError: It cannot be read, is no JSON, has no entries, or (the methods) is not what was asked for.
    """

    def __init__(self, path: str | os.PathLike, keep: Collection[str] | None = None):
        self.path = path
        self.content = _load(path, keep)

    def __str__(self) -> str:
        return f"'{self.path}'"

    def check(self, value: Any, what: str, kind: type) -> Any:
        """`value`, if it is of this kind; the message begins with `what` it is."""
        if not isinstance(value, kind):
            raise AnnotationError(f"In {self}, {what} must be {_KINDS[kind]}, got {_SHORT.repr(value)}.")
        return value

    def value(self, entry: Any, what: str, kind: type, *keys: str) -> Any:
        """The checked value that `entry` has under the first of `keys` that it has."""
        self.check(entry, what, dict)
        for key in keys:
            if key in entry:
                return self.check(entry[key], f"`{key}` of {what}", kind)
        raise AnnotationError(f"In {self}, {what} has no {' or '.join(f'`{key}`' for key in keys)}.")

    def by_id(self, noun: str, *, part: str | None = None, key: str | None = None) -> dict[str, dict]:
        """Entries by id, in the order of the list that the file is, or has as this part; each id once."""
        key = key or f"{noun}_id"
        if part is None:
            entries, place = self.check(self.content, "the top level", list), ""
        else:
            entries, place = self.value(self.content, "the top level", list, part), f" of `{part}`"
        if not entries:
            raise AnnotationError(f"{self} has no entries{place}.")
        ids = [self.entry_id(entry, f"entry {row}{place}", key) for row, entry in enumerate(entries)]
        repeated = [entry_id for entry_id, count in Counter(ids).items() if count > 1]
        refuse(repeated, noun, f"more than one entry in {self}", "keep one of each")
        return dict(zip(ids, entries, strict=True))

    def entry_id(self, entry: Any, what: str, key: str) -> str:
        """The id that `entry` has under `key`, as text."""
        entry_id = self.value(entry, what, object, key)
        if not isinstance(entry_id, int | str) or isinstance(entry_id, bool):
            raise AnnotationError(
                f"In {self}, `{key}` of {what} must be a whole number or text, got {_SHORT.repr(entry_id)}."
            )
        return str(entry_id)


def _load(path: str | os.PathLike, keep: Collection[str] | None) -> Any:
    """What the JSON file holds, gzipped or not."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                raise _too_large(path)
            # Not told by the name: browsers unpack what they download and keep its ".gz".
            packed = file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
            content = bytearray()
            # By chunks, because a small gzipped file may unpack to any size.
            source = gzip.GzipFile(fileobj=file) if packed else file
            while chunk := source.read(_CHUNK_BYTES):
                content += chunk
                if len(content) > _MAX_BYTES:
                    raise _too_large(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"No file '{path}'.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise AnnotationError(f"'{path}' cannot be read ({error}).") from error
    if not content:
        raise AnnotationError(f"'{path}' is empty.")
    try:
        value = json.loads(content, object_pairs_hook=lambda pairs: _object(pairs, keep))
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"'{path}' cannot be read as JSON ({error}).") from error
    if not value:
        raise AnnotationError(f"'{path}' has no entries.")
    return value


def _too_large(path: str | os.PathLike) -> AnnotationError:
    return AnnotationError(f"'{path}' holds more than {_MAX_BYTES / 1e9:g} GB; give only the part to score.")


def _object(pairs: list[tuple[str, Any]], keep: Collection[str] | None) -> dict[str, Any]:
    """A JSON object. Of a key that comes twice `json` keeps one value; here it may be an image with two entries."""
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise AnnotationError(f"an object has {_counted(repeated, 'key')} more than once, such as {_some(repeated)}")
    return values if keep is None else {key: value for key, value in pairs if key in keep}


def captions_by_image(file: JsonFile) -> dict[str, list[str]]:
    """Captions of every image of COCO annotations, `{"images": [...], "annotations": [...]}`; at least one each."""
    captions: dict[str, list[str]] = {image_id: [] for image_id in file.by_id("image", part="images", key="id")}
    unknown = []
    for row, entry in enumerate(file.value(file.content, "the top level", list, "annotations")):
        what = f"entry {row} of `annotations`"
        image_id, caption = file.entry_id(entry, what, "image_id"), file.value(entry, what, str, "caption")
        if image_id in captions:
            captions[image_id].append(caption)
        else:
            unknown.append(image_id)
    refuse(unknown, "image", f"captions but no entry in `images` of {file}", "list them there")
    refuse_without_references(captions, file)
    return captions


def refuse_without_references(captions: dict[str, list], file: JsonFile) -> None:
    """[`AnnotationError`] if an image has no caption."""
    bare = [image_id for image_id, given in captions.items() if not given]
    refuse(bare, "image", f"no reference caption in {file}", "leave them out or add some")


def refuse(ids: Iterable[str], noun: str, trouble: str, hint: str) -> None:
    """[`AnnotationError`] in one line if there are `ids` in `trouble`; each is counted once."""
    ids = list(dict.fromkeys(ids))
    if ids:
        verb = "has" if len(ids) == 1 else "have"
        raise AnnotationError(f"{_counted(ids, noun)} {verb} {trouble}, such as {_some(ids)}; {hint}.")


def _counted(items: Collection[str], noun: str) -> str:
    return f"1 {noun}" if len(items) == 1 else f"{len(items)} {noun}s"


def _some(ids: list[str]) -> str:
    """The first ids, escaped and cut where they would break the line."""
    return ", ".join(_SHORT.repr(entry_id)[1:-1] for entry_id in ids[:_MAX_IDS])
