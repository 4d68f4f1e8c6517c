"""`hf-grounding caption`: what is in a photo, and which place is each word about?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    BackboneOption,
    ConceptDetectorOption,
    DetectorOption,
    GridOption,
    ModelOption,
    check_local_model,
    check_picture_name,
    load_model,
    photo_networks,
    print_json,
    print_table,
    save_picture,
    working,
)

if TYPE_CHECKING:
    from PIL import Image

    from ..pipelines import GroundedCaptioningPipeline
    from ..processing.grounding import GroundedCaption, Grounding


def caption(
    photos: Annotated[list[str], typer.Argument(help="Image files or URLs.")],
    model: ModelOption,
    detector: DetectorOption = None,
    backbone: BackboneOption = None,
    grid: GridOption = None,
    concept_detector: ConceptDetectorOption = None,
    num_beams: Annotated[
        int | None, typer.Option("--num_beams", min=1, help="Width of the search; default: the model's own.")
    ] = None,
    draw: Annotated[
        Path | None, typer.Option(help="Draw the caption and each word's place to this image file.")
    ] = None,
    draw_iterations: Annotated[
        Path | None,
        typer.Option("--draw_iterations", help="Draw what mutual attention gathers, by iteration, to this image file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Results as one JSON line for each photo.")] = False,
) -> None:
    """Caption photos, and say which region each word is about.

    Prints each word with its box (x1, y1, x2, y2), in pixels of the upright photo, and the weight of that region, as
    share of all. Where the training said which words name objects, --json also has these by themselves: `clss`,
    `idx_in_sent` and `bbox`. For a file that can be scored see `hf-grounding evaluate --grounded_captions`.
    """
    pictures = {"--draw": draw, "--draw_iterations": draw_iterations}
    for option, path in pictures.items():
        if path is not None:
            check_picture_name(path, option)
            if len(photos) > 1:
                raise typer.BadParameter(f"{option} draws one photo, got {len(photos)}.")
    networks = photo_networks(detector, backbone, grid, concept_detector)
    check_local_model(model)
    with working():
        from transformers import AutoModelForImageTextToText

        from ..pipelines import GroundedCaptioningPipeline
        from ..processing.photos import load_photo

        images = [load_photo(photo) for photo in photos]
        network, processor = load_model(model, AutoModelForImageTextToText, "mia", "ss_attention")
        describe = GroundedCaptioningPipeline(network, processor=processor, **networks)
        search: dict[str, Any] = {} if num_beams is None else {"num_beams": num_beams}
    for photo, image in zip(photos, images, strict=True):
        with working():
            regions, concepts = describe.extract([image])
            (written,) = describe([image], regions=regions, concepts=concepts, **search)
        if draw is not None:  # before a reader such as `head` closes the output
            from ..visualization_captions import draw_grounded_caption

            save_picture(draw_grounded_caption(image, written), draw)
        if draw_iterations is not None:
            save_picture(_iterations(describe, image, written, concepts), draw_iterations)
        if as_json:
            print_json({"photo": photo, **written.to_dict()})
        else:
            _print(photo, written)


def _iterations(
    describe: GroundedCaptioningPipeline,
    image: Image.Image,
    written: GroundedCaption,
    concepts: list[list[str]] | None,
) -> Image.Image:
    """Of the refined row that stands for the region that counted most for a word."""
    from ..visualization_captions import draw_mutual_attention

    assert written.regions is not None  # as the processor makes captions
    words = [] if concepts is None else concepts[0]
    seen = image if describe.reads_photos else written.regions
    visual, textual = describe.accumulated_attentions(seen, words)
    row = 0 if written.region_weights is None else int(written.region_weights.max(axis=0).argmax())
    return draw_mutual_attention(image, written.regions, words, visual[:, row], textual[:, row])


def _print(photo: str, written: GroundedCaption) -> None:
    from ..visualization import Table

    if not written.groundings:
        typer.echo(f"{photo}: no words\n")
        return
    print_table(Table(f"{photo}: {written.caption}", [_row(grounding) for grounding in written.groundings]))


def _row(grounding: Grounding) -> dict[str, Any]:
    if grounding.box is None:
        return {"word": grounding.phrase, "box": None, "weight": None}
    box = ", ".join(f"{side:.0f}" for side in grounding.box)
    return {"word": grounding.phrase, "box": box, "weight": f"{grounding.score:.2f}"}
