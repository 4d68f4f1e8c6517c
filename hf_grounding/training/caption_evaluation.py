"""What captioners write: captions of a split, their scores beside baselines, and the report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..metrics.caption_baselines import consensus_captions, one_against_the_others
from ..metrics.caption_metrics import compute_caption_metrics
from ..modeling.modeling_mia import MIAForCaptioning
from ..modeling.modeling_ss_attention import SSAttentionCaptioner
from ..processing.grounding import GroundedCaption
from ..processing.processing_mia import MIAProcessor
from ..visualization import write_report
from .caption_data import ImageInputs
from .common import evaluation_facts, write_json
from .object_grounding import live_prior, objects_in_pixels, score_given_captions, score_objects
from .object_words import reference_objects
from .recipe import Recipe
from .report import build_caption_report, evenly_spaced

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 24  # pictures in the report


def write_captions(
    model: MIAForCaptioning,
    processor: MIAProcessor,
    images: ImageInputs,
    image_ids: Sequence[str],
    *,
    num_beams: int = 1,
    batch_size: int = 50,
) -> list[str]:
    """A caption for each image."""
    model.eval()
    captions: list[str] = []
    for start in range(0, len(image_ids), batch_size):
        inputs = processor(**images.read(image_ids[start : start + batch_size])).to(model.device)
        sequences = model.generate(**inputs, num_beams=num_beams, do_sample=False)
        captions += processor.batch_decode(sequences)
    return captions


def ground_captions(
    model: MIAForCaptioning,
    processor: MIAProcessor,
    images: ImageInputs,
    image_ids: Sequence[str],
    *,
    num_beams: int = 1,
    batch_size: int = 50,
) -> list[GroundedCaption]:
    """For each image its caption with the region of each word."""
    model.eval()
    captions: list[GroundedCaption] = []
    for start in range(0, len(image_ids), batch_size):
        shown = images.read(image_ids[start : start + batch_size])
        inputs = processor(**shown).to(model.device)
        outputs = model.generate(
            **inputs, num_beams=num_beams, do_sample=False, return_dict_in_generate=True, output_attentions=True
        )
        where: dict[str, Any] = {"regions": shown.get("regions")}
        if "regions" not in shown:
            where = {"target_sizes": [(photo.height, photo.width) for photo in shown["images"]]}
        captions += processor.post_process_grounded_captions(outputs, **where)
    return captions


def write_grounded_captions(
    path: Path, model: MIAForCaptioning, processor: MIAProcessor, rows: Dataset, images: ImageInputs
) -> None:
    r"""Captions written greedily, with boxes, in the file that `hf-grounding evaluate` and the evaluator of Grounded
    Video Description read: `{"results": {"1007": [{"clss": ["man"], "idx_in_sent": [1], "bbox": [[0, 0, 9, 9]]}]}}`.

    Each entry also has its "caption". Boxes are in pixels of the images as they were annotated, where the rows tell
    their "width" and "height". Where they have phrases, `<name>_references.json` beside it holds people's captions with
    the objects and boxes that the file is scored against.

    Raises:
        ValueError: For a captioner that knows no object words, or does not attend to detected regions.
    """
    if not processor.object_words or images.regions is None:
        raise ValueError(
            "This captioner does not know which words name objects, or reads no detected regions, so there are no "
            "boxes to write; train it on phrases with boxes, or with `captions.object_classes`."
        )
    written = ground_captions(model, processor, images, rows["image_id"][:])
    if written[0].region_weights is None:
        raise ValueError("This captioner does not attend to regions, so its words have no boxes to write.")
    sizes = [caption.regions.image_size for caption in written if caption.regions is not None]
    if {"width", "height"} <= set(rows.column_names):
        sizes = list(zip(rows["height"], rows["width"], strict=True))
    entries = {
        image_id: [{"caption": caption.caption, **objects_in_pixels(caption, size)}]
        for image_id, caption, size in zip(rows["image_id"], written, sizes, strict=True)
    }
    write_json(path, {"results": entries})
    if "phrases" in rows.column_names:
        classes = sorted(set(processor.object_words.values()))
        annotated = rows.select_columns(["image_id", "captions", "phrases"])
        references = {row["image_id"]: reference_objects(row, classes) for row in annotated}
        write_json(path.with_name(f"{path.stem}_references.json"), {"annotations": references})


def measure_objects(
    model: MIAForCaptioning, processor: MIAProcessor, rows: Dataset, images: ImageInputs
) -> dict[str, Any] | None:
    r"""Grounding of the objects that are named, in captions written greedily and in people's.

    Returns:
        What [`score_objects`] returns, "given_captions" of [`score_given_captions`], and "prior" of [`live_prior`] of
        a captioner that has one; `None` for a captioner that does not attend to detected regions, or data without
        phrases of its object classes.
    """
    if not processor.object_words or images.regions is None or "phrases" not in rows.column_names:
        return None
    classes = sorted(set(processor.object_words.values()))
    annotations = rows.select_columns(["captions", "phrases"])
    if not any(caption["classes"] for row in annotations for caption in reference_objects(row, classes)):
        return None
    written = ground_captions(model, processor, images, rows["image_id"][:])
    if written[0].region_weights is None:
        return None
    given = score_given_captions(model, processor, images, rows, classes)
    scores = score_objects(written, rows, classes) | {"given_captions": given}
    if isinstance(model, SSAttentionCaptioner) and model.decoder.prior is not None:
        scores["prior"] = live_prior(model, processor, images, rows["image_id"][:])
    return scores


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    r"""Caption metrics, and how varied the captions are.

    Returns:
        `dict`: "captions", name -> score, with "absent", and "distinct", "mean_length" and "vocabulary" of what was
        written.
    """
    scores = compute_caption_metrics(captions, references, metrics=["bleu", "meteor", "rouge_l", "cider_d"])
    words = [caption.split() for caption in captions]
    variety = {
        "distinct": len(set(captions)),
        "mean_length": sum(map(len, words)) / len(words),
        "vocabulary": len({word for row in words for word in row}),
    }
    if len(captions) >= 20 and variety["distinct"] <= len(captions) // 20:
        logger.warning("Only %d distinct captions for %d images.", variety["distinct"], len(captions))
    return {"captions": {name: value for name, value in scores.items() if name != "per_image"} | variety}


def measure_captioner(
    model: MIAForCaptioning,
    processor: MIAProcessor,
    recipe: Recipe,
    split: str,
    rows: Dataset,
    images: ImageInputs,
    training: tuple[Dataset, ImageInputs] | None = None,
) -> dict[str, Any]:
    """Scores of the captions of a split, written with the recipe's beams; of [`measure_objects`], where it says
    something, as "objects"; and of [`measure_baselines`]."""
    num_beams = recipe.captions.num_beams
    captions = write_captions(model, processor, images, rows["image_id"], num_beams=num_beams)
    results = score_captions(captions, rows["captions"][:])
    objects = measure_objects(model, processor, rows, images)
    if objects is not None:
        results["objects"] = objects
    results["baselines"] = measure_baselines(rows, images, training)
    facts = {"num_beams": num_beams, "image_withheld": images.withheld}
    return results | facts | evaluation_facts(split, rows)


def measure_baselines(
    rows: Dataset, images: ImageInputs, training: tuple[Dataset, ImageInputs] | None = None
) -> dict[str, dict[str, Any]]:
    r"""Scores, as [`score_captions`] gives them, of captions that need no captioner.

    Args:
        training (*optional*): Images with captions to borrow; without them, or without region features to compare by,
            that baseline is left out. An image that is one of them borrows from the others.

    Returns:
        `dict`: "consensus of similar photos" by [`consensus_captions`]; "one reference against the others" by
        [`one_against_the_others`], where images have several.
    """
    references = rows["captions"][:]
    baselines = {}
    if training is not None and images.regions is not None:
        train_rows, train_images = training
        position = {image_id: row for row, image_id in enumerate(train_rows["image_id"])}
        borrowed = consensus_captions(
            images.mean_features(rows["image_id"]),
            train_images.mean_features(train_rows["image_id"]),
            train_rows["captions"][:],
            own=[position.get(image_id, -1) for image_id in rows["image_id"]],
        )
        baselines["consensus of similar photos"] = score_captions(borrowed, references)["captions"]
    people, others = one_against_the_others(references)
    if people:
        baselines["one reference against the others"] = score_captions(people, others)["captions"]
    return baselines


def report_captioner(
    path: Path,
    title: str,
    results: Mapping[str, Any],
    model: MIAForCaptioning,
    processor: MIAProcessor,
    recipe: Recipe,
    rows: Dataset,
    images: ImageInputs,
) -> None:
    """Writes the report of a captioner whose `results` are known."""
    chosen = evenly_spaced(len(rows), NUM_EXAMPLES)
    image_ids = [rows["image_id"][index] for index in chosen]
    shown = ground_captions(model, processor, images, image_ids, num_beams=recipe.captions.num_beams)
    examples = dict(zip(chosen, shown, strict=True))
    write_report(path, build_caption_report(title, results, examples, rows, asdict(recipe)))
