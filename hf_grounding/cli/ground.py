"""`hf-grounding ground`: where in a photo are the phrases?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .common import check_local_model, check_picture_name, load_model, print_json, save_picture, working

if TYPE_CHECKING:
    from ..processing.grounding import Grounding


def ground(
    photo: Annotated[str, typer.Argument(help="Image file or URL.")],
    text: Annotated[
        str, typer.Argument(help='A phrase, or a sentence with its phrases marked: "[a man] rides [a horse]".')
    ],
    model: Annotated[str, typer.Option(help="Output folder of `hf-grounding train`, or a model on the Hub.")],
    draw: Annotated[Path | None, typer.Option(help="Draw heatmaps, points and boxes to this image file.")] = None,
    query_heatmap: Annotated[
        Literal["word", "sentence", "auto"] | None,
        typer.Option("--query_heatmap", help="Heatmap of a phrase: of its words, of the sentence, or by its length."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Results as one JSON line.")] = False,
) -> None:
    """Find phrases in a photo.

    Prints point (x, y), box (x1, y1, x2, y2) and score of each phrase, in pixels of the upright photo.
    """
    if draw is not None:
        check_picture_name(draw)
    check_local_model(model)
    with working():
        from transformers import AutoModelForZeroShotObjectDetection

        from ..pipelines import PhraseGroundingPipeline
        from ..processing.photos import load_photo
        from ..processing.words import unknown_words

        image = load_photo(photo)
        network, processor = load_model(model, AutoModelForZeroShotObjectDetection, "multilevel_grounding")
        groundings = PhraseGroundingPipeline(network, processor=processor)(image, text, query_heatmap=query_heatmap)
        unknown = unknown_words(processor.tokenizer, [grounding.phrase for grounding in groundings])
        if unknown:
            typer.echo(f"The model does not know: {', '.join(unknown)}.", err=True)
    if draw is not None:
        from ..visualization import draw_groundings

        save_picture(draw_groundings(image, groundings), draw)
    if as_json:
        print_json({"photo": photo, "text": text, "groundings": [grounding.to_dict() for grounding in groundings]})
        return
    for grounding in groundings:
        typer.echo(_line(grounding))


def _line(grounding: "Grounding") -> str:
    if grounding.point is None or grounding.box is None:
        return f"{grounding.phrase}: not found"
    point, box = (", ".join(f"{x:.0f}" for x in numbers) for numbers in (grounding.point, grounding.box))
    return f"{grounding.phrase}: point ({point}), box ({box}), score {grounding.score:.2f}"
