"""`hf-grounding extract-concepts`: photos into `image_concepts.json`, the likeliest words of each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import check_local_model, working
from .extract_features import batches, check_some_were_read, find_photos, read_photo

if TYPE_CHECKING:
    from ..processing.concepts import RankedConcept


def extract_concepts(
    images: Annotated[
        list[Path],
        typer.Argument(help="Photos, or folders of photos; a photo's id is the number it is named by, as 42.jpg is."),
    ],
    model: Annotated[str, typer.Option(help="Output folder of `hf-grounding train`, or a model on the Hub.")],
    out: Annotated[Path, typer.Option(dir_okay=False, writable=True, help="JSON file to write.")],
    top: Annotated[
        int | None, typer.Option(min=1, help="Words of a photo; default: as the model's processor says, 49.")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep_going", help="Leave out photos that cannot be read, and list them at the end.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Photos at a time.")] = 8,
) -> None:
    """Find the words that people would use for photos.

    Writes the public image_concepts.json: a list of {"image_id": 42, "image_concepts": ["dog", "grass", ...]}, the
    likeliest word first, without function words.
    """
    check_local_model(model)
    with working():
        from accelerate import PartialState
        from tqdm.auto import tqdm

        from ..pipelines import ConceptExtractor
        from ..training.common import keep_freed_memory

        keep_freed_memory()
        photos = _by_id(find_photos(images))
        extractor = ConceptExtractor.from_pretrained(model, PartialState().device)
        failed: list[str] = []

        def ranked() -> Iterator[tuple[int | str, list[RankedConcept]]]:
            with tqdm(total=len(photos), desc="concepts", unit="photo") as progress:
                for batch in batches(sorted(photos, key=_numbers_first), batch_size):
                    read = {number: read_photo(photos[number], failed if keep_going else None) for number in batch}
                    loaded = {number: photo for number, photo in read.items() if photo is not None}
                    if loaded:
                        yield from zip(loaded, extractor(list(loaded.values()), top), strict=True)
                    progress.update(len(batch))
            check_some_were_read(photos, failed)  # before an earlier file is replaced

        extractor.processor.write_image_concepts(out, ranked())
    typer.echo(f"{len(photos) - len(failed)} photos: {out}")
    for reason in failed:
        typer.echo(f"Left out: {reason}", err=True)
    if failed:
        raise typer.Exit(1)


def _by_id(photos: dict[str, Path]) -> dict[int | str, Path]:
    """Ids of `image_concepts.json`: 42 of 42.jpg and COCO_val2014_000000000042.jpg, the name where it has no number."""
    found: dict[int | str, Path] = {}
    for name, path in photos.items():
        match = re.fullmatch(r"(?:COCO_\w+_)?(\d+)", name)
        image_id = name if match is None else int(match[1])
        if image_id in found:
            raise ValueError(f"Photos '{found[image_id]}' and '{path}' have one id, {image_id}; rename one.")
        found[image_id] = path
    return found


def _numbers_first(image_id: int | str) -> tuple[int | float, str]:
    return (math.inf, image_id) if isinstance(image_id, str) else (image_id, "")
