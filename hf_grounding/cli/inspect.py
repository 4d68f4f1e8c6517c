"""`hf-grounding inspect`: what is in a store of regions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .common import check_picture_name, print_json, print_table, save_picture, working


def inspect(
    store: Annotated[Path, typer.Argument(help="Folder of `hf-grounding extract-features`.")],
    image: Annotated[str | None, typer.Option(help="Id of an image: lists its regions.")] = None,
    photo: Annotated[Path | None, typer.Option(dir_okay=False, help="Its photo, to draw on.")] = None,
    draw: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the photo with its regions here.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file against its checksum.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line.")] = False,
) -> None:
    """Show what a store of regions holds, and the regions of one image."""
    if draw is not None and (image is None or photo is None):
        raise typer.BadParameter("--draw needs --image, whose regions, and --photo, on which.")
    if photo is not None and draw is None:
        raise typer.BadParameter("--photo is what --draw draws on; give --draw too, or leave it out.")
    if draw is not None:
        check_picture_name(draw)
    with working():
        from ..data.region_store import RegionStore

        regions_of = RegionStore(store)
        if verify:
            regions_of.verify()
    if image is None:
        _show_store(describe(regions_of), as_json=as_json)
        return
    try:
        regions = regions_of[image]
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    if draw is not None and photo is not None:
        with working():
            from ..processing.photos import load_photo
            from ..visualization import draw_regions

            save_picture(draw_regions(load_photo(photo), regions), draw)
    _show_regions(regions, as_json=as_json)


def _show_store(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name}: {value}")


def _show_regions(regions: Any, *, as_json: bool) -> None:
    from ..visualization import Table

    rows = region_rows(regions)
    if as_json:
        print_json({"image_id": regions.image_id, "image_size": regions.image_size, "regions": rows})
    elif not rows:
        typer.echo(f"Image '{regions.image_id}' has no regions.")
    else:
        height, width = regions.image_size
        note = f"Photo of {width} x {height} pixels; boxes xyxy."
        print_table(Table(f"Regions of '{regions.image_id}'", rows, note))


def describe(store: Any) -> dict[str, Any]:
    """Numbers and settings of a store."""
    counts = [len(store[image_id]) for image_id in store]
    return {
        "images": len(counts),
        "regions": sum(counts),
        "regions per image": f"{min(counts, default=0)} to {max(counts, default=0)}",
        "settings": store.settings,
    }


def region_rows(regions: Any) -> list[dict[str, Any]]:
    """A row for each region: label, score, box."""
    rows = []
    for number, box in enumerate(regions.boxes.tolist()):
        row: dict[str, Any] = {"region": number}
        if regions.labels is not None:
            row["label"] = regions.class_name(number)
        if regions.scores is not None:
            row["score"] = f"{regions.scores[number]:.3f}"
        rows.append(row | {"box": ", ".join(f"{side:.0f}" for side in box)})
    return rows
