"""`hf-grounding extract-features`: photos into a store of regions or of grid cells, with features."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from .common import found_network, one_line, working

if TYPE_CHECKING:
    from PIL import Image

    from ..data.region_store import RegionStoreWriter
    from ..processing.extraction import GridExtractor, RegionExtractor
    from ..processing.regions import ImageError, Regions

Item = TypeVar("Item")


def extract_features(
    context: typer.Context,
    images: Annotated[
        list[Path], typer.Argument(help="Photos, or folders of photos; a photo's id is its name, or COCO's number.")
    ],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the store; run again, it goes on.")],
    detector: Annotated[
        str | None, typer.Option(help="A transformers object detector, or a folder with an ONNX YOLOX and labels.txt.")
    ] = None,
    grid: Annotated[
        int | None, typer.Option(min=1, help="Without detector: the cells of a grid, 7 for 7 x 7, from the backbone.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="A transformers vision model for the regions' features; default: none.")
    ] = None,
    detector_features: Annotated[
        bool, typer.Option("--detector_features", help="Features: states of the detector's queries, no backbone's.")
    ] = False,
    selection: Annotated[
        Literal["class_agnostic", "per_class"],
        typer.Option(help="How overlapping regions are left out; per_class is the rule of the bottom-up features."),
    ] = "class_agnostic",
    num_regions: Annotated[
        int, typer.Option("--num_regions", min=1, help="At most so many regions a photo; per_class: exactly so many.")
    ] = 36,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Adaptive number: only regions with this confidence, but some.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the features: float16 or float32.")] = "float16",
    shard: Annotated[str, typer.Option(help="i/n: only every n-th photo, from the i-th on, into shard i.")] = "0/1",
    keep_going: Annotated[
        bool, typer.Option("--keep_going", help="Leave out photos that cannot be used, and list them at the end.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Photos at a time.")] = 8,
    images_per_part: Annotated[
        int, typer.Option("--images_per_part", min=1, help="Photos in each file; a kill loses so many at most.")
    ] = 256,
) -> None:
    """Detect regions in photos, or lay a grid on them, and store them with their features.

    Photos of any mode and orientation. Killed at any moment and run again, it finishes what is missing. Several
    processes may each write a shard; the last to finish joins them.
    """
    number, total = _parse_shard(shard)
    _check_source(context)
    with working():
        from accelerate import PartialState
        from tqdm.auto import tqdm

        from ..data.region_store import RegionStoreWriter, merge_shards
        from ..processing.extraction import RegionExtractor, load_extractor
        from ..training.common import keep_freed_memory

        keep_freed_memory()
        photos = find_photos(images)
        choice: dict[str, Any] = {"num_regions": num_regions, "selection": selection, "threshold": threshold}
        extractor = load_extractor(
            detector=found_network(detector, "detector"),
            backbone=found_network(backbone, "backbone"),
            grid=grid,
            device=PartialState().device,
            **(choice | {"detector_features": detector_features} if grid is None else {}),
        )
        name = extractor.detector.name if isinstance(extractor, RegionExtractor) else ""
        failed: list[str] = []
        left_out = failed if keep_going else None
        with RegionStoreWriter(
            out, extractor.settings, dtype, (number, total), detector=name, images_per_part=images_per_part
        ) as writer:
            own = [image_id for image_id in sorted(photos)[number::total] if not writer.done(image_id)]
            with tqdm(total=len(own), desc="regions", unit="photo") as progress:
                for batch in batches(own, batch_size):
                    read = {image_id: read_photo(photos[image_id], left_out) for image_id in batch}
                    loaded = {image_id: photo for image_id, photo in read.items() if photo is not None}
                    for image_id, regions in regions_of(extractor, loaded).items():
                        add_regions(writer, regions, photos[image_id], left_out)
                    progress.update(len(batch))
            check_some_were_read(own, failed)
    if total > 1:
        try:
            merge_shards(out)
        except ValueError as error:  # the other shards are still at work
            typer.echo(one_line(error), err=True)
    typer.echo(f"{len(own) - len(failed)} photos, {len(photos)} in all: {out}")
    for reason in failed:
        typer.echo(f"Left out: {reason}", err=True)
    if failed:
        raise typer.Exit(1)


def find_photos(paths: list[Path]) -> dict[str, Path]:
    r"""Photos by id, of files and of the folders' files that are not hidden; one that is there twice counts once.

    The id is the name without its ending; of a name that COCO gave (`COCO_val2014_000000000042.jpg` or
    `000000000042.jpg`) it is the number, "42", as in COCO's annotations and in the feature files made of its photos.

    Raises:
        FileNotFoundError: If a path is not there, or a folder has no photos.
        ValueError: If two photos have one id.
    """
    from PIL import Image

    # Those of images alone: PIL also writes PDF, and knows HDF5 by sight.
    endings = {
        ending
        for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and Image.MIME.get(kind, "").startswith("image/")
    }
    photos: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"No photo or folder '{path}'.")
        files = [path]
        if path.is_dir():
            visible = (file for file in path.iterdir() if not file.name.startswith("."))  # `._42.jpg` is of macOS
            files = sorted(file for file in visible if file.suffix.lower() in endings and file.is_file())
            if not files:
                raise FileNotFoundError(f"Folder '{path}' has no photos in it.")
        for file in files:
            coco = re.fullmatch(r"(?:COCO_\w+_)?(\d{12})", file.stem)
            image_id = str(int(coco[1])) if coco else file.stem
            if image_id in photos and not file.samefile(photos[image_id]):
                raise ValueError(f"Photos '{photos[image_id]}' and '{file}' have one id, '{image_id}'; rename one.")
            photos[image_id] = file
    return photos


def regions_of(
    extractor: RegionExtractor | GridExtractor, photos: dict[str, Image.Image]
) -> dict[str, Regions | ImageError]:
    """Regions of each photo, or why it has none: a batch that fails goes again, photo by photo."""
    from ..processing.regions import ImageError

    try:
        return dict(zip(photos, extractor(list(photos.values()), list(photos)), strict=True)) if photos else {}
    except ImageError as error:
        if len(photos) == 1:
            return dict.fromkeys(photos, error)
        found = [regions_of(extractor, {image_id: photo}) for image_id, photo in photos.items()]
        return {image_id: regions for one in found for image_id, regions in one.items()}


def add_regions(writer: RegionStoreWriter, regions: Regions | ImageError, path: Path, failed: list[str] | None) -> None:
    """Stores a photo's regions; if it has none, or the store cannot hold them, an error, or the reason in `failed`."""
    from ..processing.regions import ImageError

    try:
        if isinstance(regions, ImageError):
            raise regions
        writer.add(regions)
    except ImageError as error:
        reason = f"Photo '{path}': {one_line(error)}"
        if failed is None:
            raise ImageError(reason) from error
        failed.append(reason)


def check_some_were_read(photos: Collection[Any], failed: list[str]) -> None:
    """Raises a ValueError where no photo could be used, so that nothing is written."""
    if photos and len(failed) == len(photos):
        raise ValueError(f"None of the {len(photos)} photos could be used, so nothing is written. {failed[0]}")


def read_photo(path: Path, failed: list[str] | None) -> Image.Image | None:
    """The photo; if it cannot be read, an error, or None and the reason in `failed`."""
    from ..processing.photos import load_photo

    try:
        return load_photo(path)
    except (ValueError, OSError) as error:
        if failed is None:
            raise
        failed.append(one_line(error))
        return None


def _parse_shard(text: str) -> tuple[int, int]:
    number, slash, total = text.partition("/")
    if not (slash and number.isdecimal() and total.isdecimal() and int(number) < int(total)):
        raise typer.BadParameter(f"--shard must be i/n with i from 0 to n - 1, such as 0/4; got {text!r}.")
    return int(number), int(total)


def _check_source(context: typer.Context) -> None:
    """Regions of a detector or cells of a grid, and no option that the one chosen would ignore."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if len(given & {"detector", "grid"}) != 1:
        raise typer.BadParameter("Give either --detector, for its regions, or --grid, for the cells of a grid.")
    if "grid" in given and "backbone" not in given:
        raise typer.BadParameter("--grid needs --backbone, whose last map gives the features of the cells.")
    if "grid" in given and (ignored := sorted(given & {"detector_features", "selection", "num_regions", "threshold"})):
        raise typer.BadParameter(f"--grid has no detector, so --{ignored[0]} says nothing; leave it out.")
    if {"backbone", "detector_features"} <= given:
        raise typer.BadParameter("Features come from --backbone or from the detector (--detector_features), not both.")


def batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    """`size` items at a time, the last ones fewer."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch
