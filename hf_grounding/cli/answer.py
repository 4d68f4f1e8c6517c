"""`hf-grounding answer`: questions about a photo, and which regions are the answers read from?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from ..processing.grounding import GroundedAnswer


def answer(
    photo: Annotated[str, typer.Argument(help="Image file or URL.")],
    questions: Annotated[list[str], typer.Argument(help='About the photo, such as "How many chairs are there?".')],
    model: ModelOption,
    detector: DetectorOption = None,
    backbone: BackboneOption = None,
    grid: GridOption = None,
    concept_detector: ConceptDetectorOption = None,
    top: Annotated[int, typer.Option(min=1, help="How many answers.")] = 5,
    draw: Annotated[
        Path | None, typer.Option(help="Draw the regions by their weight, and the answers, to this image file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Results as one JSON line for each question.")] = False,
) -> None:
    """Answer questions about a photo, and say which region counted most.

    Prints the likeliest answers with their probabilities, and the box (x1, y1, x2, y2) of that region, in pixels of the
    upright photo, with its weight.
    """
    if draw is not None:
        check_picture_name(draw)
        if len(questions) > 1:
            raise typer.BadParameter(f"--draw draws one answer, got {len(questions)} questions.")
    for question in questions:
        if os.path.isfile(question):  # `Path.is_file` raises where a text is too long for a name
            raise typer.BadParameter(f"'{question}' is a file. Give one photo, and then questions about it.")
    networks = photo_networks(detector, backbone, grid, concept_detector)
    check_local_model(model)
    with working():
        from transformers import AutoModelForVisualQuestionAnswering

        from ..pipelines import GroundedVQAPipeline
        from ..processing.photos import load_photo
        from ..processing.words import unknown_words

        image = load_photo(photo)
        network, processor = load_model(model, AutoModelForVisualQuestionAnswering, "mia_vqa")
        processor(text=questions)  # before any network reads the photo: have all of them words?
        ask = GroundedVQAPipeline(network, processor=processor, **networks)
        regions, concepts = ask.extract([image])
        count = len(questions)
        made = {"regions": regions and regions * count, "concepts": concepts and concepts * count}
        answers = ask([image] * count, questions, top_k=top, **made)
        bare = [question.translate(str.maketrans("", "", "?,")) for question in questions]  # as the tokenizer reads it
        if unknown := unknown_words(processor.tokenizer, bare):
            typer.echo(f"The model does not know: {', '.join(unknown)}.", err=True)
    if draw is not None:  # before a reader such as `head` closes the output
        from ..visualization_captions import draw_grounded_answer

        save_picture(draw_grounded_answer(image, answers[0]), draw)
    for answered in answers:
        if as_json:
            print_json({"photo": photo, **answered.to_dict()})
        else:
            _print(answered)


def _print(answered: GroundedAnswer) -> None:
    from ..visualization import Table

    rows = [{"answer": answer, "probability": f"{probability:.2f}"} for answer, probability in answered.answers]
    place = answered.groundings[0]
    box = "" if place.box is None else ", ".join(f"{side:.0f}" for side in place.box)
    print_table(Table(answered.question, rows, f"Region that counted most: {box}, weight {place.score:.2f}."))
