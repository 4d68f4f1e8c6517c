"""`hf-grounding convert-features`: feature files people have, into a store of regions."""

import json
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import one_line, working


def convert_features(
    source: Annotated[Path, typer.Argument(help="File or folder of features.", metavar="FILE")],
    format_: Annotated[str, typer.Option("--from", help="bottom-up-tsv, cocobu, npz, regions-npz or vqa-hdf5.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the store; run again, it goes on.")],
    image_sizes: Annotated[
        str | None,
        typer.Option(
            "--image_sizes",
            help="JSON file {image id: [height, width]}, where files lack them; or boxes: the least that holds them.",
        ),
    ] = None,
    index: Annotated[Path | None, typer.Option(dir_okay=False, help="Of vqa-hdf5: the pickle image id -> row.")] = None,
    box_dir: Annotated[
        Path | None, typer.Option("--box_dir", file_okay=False, help="Of cocobu: folder of the boxes.")
    ] = None,
    background_column: Annotated[
        str | None,
        typer.Option(
            "--background_column", help="Of npz: column of `cls_prob` that is no object, or none; default: 0."
        ),
    ] = None,
    detector: Annotated[str | None, typer.Option(help="Name of the detector, kept with the regions.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the features: float16 or float32.")] = "float16",
    keep_going: Annotated[
        bool, typer.Option("--keep_going", help="Leave out images that cannot be used, and list them at the end.")
    ] = False,
) -> None:
    """Convert region features into a store, one image at a time.

    Damaged rows are named with the reason; with --keep_going they are left out and the exit code is 1.
    """
    with working():
        from tqdm.auto import tqdm

        from ..data.feature_readers import read_features
        from ..data.region_store import RegionStoreWriter
        from ..processing.regions import ImageError

        failed: list[Exception] = []
        options: dict[str, Any] = {"index": index, "detector": detector, "box_dir": box_dir}
        options = {name: value for name, value in options.items() if value is not None}
        if image_sizes is not None:
            options["image_sizes"] = "boxes" if image_sizes == "boxes" else read_image_sizes(Path(image_sizes))
        if background_column is not None:
            options["background_column"] = _parse_column(background_column)
        if keep_going:
            options["on_error"] = failed
        reader = iter(read_features(source, format_, **options))
        first = next(reader, None)
        _check_some_are_left(first is not None, failed)
        # Not the file's name: the parts of one set of features, such as train and val, may go into one store.
        settings = {"converted_from": format_} | ({} if first is None else first.settings)
        count, seen = 0, set()
        with RegionStoreWriter(out, settings, dtype, detector=detector or "") as writer:
            for regions in tqdm(chain([] if first is None else [first], reader), desc="images", unit="image"):
                if regions.image_id in seen:
                    twice = ValueError(f"'{source}' has image '{regions.image_id}' more than once; keep one of them.")
                    if not keep_going:
                        raise twice
                    failed.append(twice)
                    continue
                seen.add(regions.image_id)
                regions.settings = settings
                if writer.done(regions.image_id):
                    continue
                try:
                    writer.add(regions)
                    count += 1
                except ImageError as too_large:
                    if not keep_going:
                        raise
                    failed.append(too_large)
            _check_some_are_left(any(map(writer.done, seen)), failed)
    typer.echo(f"{count} images: {out}")
    for error in failed:
        typer.echo(f"Left out: {one_line(error)}", err=True)
    if failed:
        raise typer.Exit(1)


def _check_some_are_left(some: bool, failed: list[Exception]) -> None:
    if failed and not some:
        raise ValueError(f"None of the images could be used, so nothing is written. {one_line(failed[0])}")


def _parse_column(text: str) -> int | None:
    if text.lower() == "none":
        return None
    if not text.isdecimal():
        raise typer.BadParameter(f"--background_column must be a column, counted from 0, or none; got {text!r}.")
    return int(text)


def read_image_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Sizes by image id from JSON.

    Raises:
        ValueError: If the file is no such JSON; names the first entry that is not (height, width).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = dict(content)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"'{path}' cannot be read as JSON of {{image id: [height, width]}} ({error}).") from error
    for image_id, size in entries.items():
        if not isinstance(size, list) or len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
            raise ValueError(f"In '{path}', image '{image_id}' must have [height, width] in pixels, got {size!r}.")
    return {image_id: (height, width) for image_id, (height, width) in entries.items()}
