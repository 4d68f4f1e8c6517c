"""Are the objects that a captioner names where it says? F1_all and F1_loc, attention correctness, and what the regions
allow at most.

Of captions written greedily, as the evaluator of Grounded Video Description wants it, and of people's captions that the
model is given word by word.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..metrics.attention_correctness import attention_correctness
from ..metrics.grounding_f1 import grounding_f1, gt_sentence_accuracy
from ..modeling.modeling_mia import MIAForCaptioning
from ..modeling.modeling_ss_attention import SSAttentionCaptioner
from ..processing.grounding import GroundedCaption, box_coverage
from ..processing.processing_mia import MIAProcessor
from ..processing.regions import Regions, best_regions, box_iou, scale_boxes
from .caption_data import ImageInputs
from .object_words import reference_objects

HEATMAP_SIDE = 24  # cells on which regions' weights are laid, for attention correctness
_ANNOTATIONS = ["captions", "phrases", "width", "height"]  # of a row, without its photo
_F1_NAMES = ("f1_all", "precision_all", "recall_all", "f1_loc", "precision_loc", "recall_loc")


def score_objects(captions: Sequence[GroundedCaption], rows: Dataset, classes: Sequence[str]) -> dict[str, Any]:
    r"""Grounding F1 of written captions.

    Args:
        captions (list of [`GroundedCaption`]): Of each row, with `object_classes`.
        rows (`datasets.Dataset`): With "captions", "phrases", "width" and "height".
        classes (names): Those that count.

    Returns:
        `dict`: what [`grounding_f1`] returns; "oracle", the same scores if for each object word that one of the image's
        regions had been chosen that raises its precision and recall the most; "region_recall", the share of annotated
        objects that any region fits.
    """
    predictions, oracle, references = [], [], []
    fits: list[bool] = []
    for caption, row in zip(captions, rows.select_columns(_ANNOTATIONS), strict=True):
        assert caption.regions is not None  # as the processor makes captions
        size = (row["height"], row["width"])
        objects = objects_in_pixels(caption, size)
        found = scale_boxes(caption.regions.boxes, caption.regions.image_size, size)
        reference = reference_objects(row, classes)
        names, predicted = objects["clss"], objects["bbox"]
        best = [
            _best_box(found, reference, name, box, is_first=name not in names[:number])
            for number, (name, box) in enumerate(zip(names, predicted, strict=True))
        ]
        predictions.append({"classes": names, "boxes": predicted})
        oracle.append({"classes": names, "boxes": best})
        references.append(reference)
        boxes = [box for each in reference for box in each["boxes"]]
        fits += (box_iou(found, boxes, plus_one=True).max(axis=0) > 0.5).tolist() if boxes else []
    scores = grounding_f1(predictions, references, object_classes=classes)
    best_scores = grounding_f1(oracle, references, object_classes=classes)
    bounds = {
        "oracle": {name: best_scores[name] for name in _F1_NAMES},
        "region_recall": float(np.mean(fits or [False])),
    }
    return scores | bounds | {"objects_per_caption": sum(len(each["classes"]) for each in predictions) / len(rows)}


def objects_in_pixels(caption: GroundedCaption, size: tuple[int, int]) -> dict[str, list]:
    """The caption's objects, with boxes in pixels of its image in that size, (height, width)."""
    assert caption.regions is not None  # as the processor makes captions
    objects = caption.objects()
    boxes = np.array(objects["bbox"], dtype=float).reshape(-1, 4)
    return objects | {"bbox": scale_boxes(boxes, caption.regions.image_size, size).tolist()}


def _best_box(
    regions: np.ndarray, reference: Sequence[Mapping[str, list]], name: str, box: list[float], *, is_first: bool
) -> list[float]:
    """The region that F1 counts the most hits of, for an object word of a class.

    Precision compares it with the first entry of the class in each caption; recall compares the first word of the class
    with all its entries. Each counts by its share. Of equal regions that of the largest overlaps is chosen; `box` where
    no caption has the class.
    """
    first, entries = [], []
    for each in reference:
        places = zip(each["indices"], each["classes"], each["boxes"], strict=True)
        own = sorted((index, box) for index, known, box in places if known == name)
        first += [box for _, box in own[:1]]
        entries += [box for _, box in own]
    if not entries:
        return box
    rank = np.zeros(len(regions))
    for boxes in (first, entries) if is_first else (first,):
        overlaps = box_iou(regions, boxes, plus_one=True)  # (num_regions, num_boxes)
        # Less than any difference of two shares, which are of few entries.
        rank += (overlaps > 0.5).mean(axis=1) + 1e-6 * overlaps.mean(axis=1)
    return regions[int(rank.argmax())].tolist()


@torch.no_grad()
def live_prior(
    model: SSAttentionCaptioner,
    processor: MIAProcessor,
    images: ImageInputs,
    image_ids: Sequence[str],
    *,
    batch_size: int = 50,
) -> dict[str, float]:
    r"""Whether the prior reads regions at all: its ReLU is on two numbers, and where one is never positive it is dead.

    Returns:
        `dict`: "spatial_alive" and "semantic_alive", the share of regions for which `W_p p_i` and `W_c c_i` are
        positive.
    """
    model.eval()
    prior, alive = model.decoder.prior, []
    assert prior is not None
    for start in range(0, len(image_ids), batch_size):
        inputs = processor(**images.read(image_ids[start : start + batch_size])).to(model.device)
        evidence = prior.evidence(*model.get_encoder().prior_inputs(**inputs))  # (images, num_regions, 2)
        alive.append((evidence[inputs["region_mask"] == 1] > 0).float().cpu())
    semantic, spatial = torch.cat(alive).mean(dim=0).tolist()
    return {"spatial_alive": spatial, "semantic_alive": semantic}


def score_given_captions(
    model: MIAForCaptioning,
    processor: MIAProcessor,
    images: ImageInputs,
    rows: Dataset,
    classes: Sequence[str],
    *,
    batch_size: int = 50,
) -> dict[str, Any]:
    r"""How well people's captions are grounded when the model is given their words.

    Returns:
        `dict`: "grounding_accuracy", mean over classes of the share of objects whose region has an IoU above 0.5
        with theirs; "attention_correctness", the weight inside an object's boxes, each region's spread over it evenly,
        with its 95 % "interval"; "uniform_attention", the same if all regions had one weight; "count" of objects.
        Objects of words behind the longest caption count as not found.
    """
    accuracies: list[list[list[list[float] | None]]] = []
    references, parts, sizes = [], [], []
    heatmaps: dict[str, list[np.ndarray]] = {"own": [], "uniform": []}
    annotations = rows.select_columns(_ANNOTATIONS)
    for number, (record, captions, weights) in enumerate(_weights_of_given(model, processor, images, rows, batch_size)):
        row = annotations[number]
        size = (row["height"], row["width"])
        found = scale_boxes(record.boxes, record.image_size, size)
        spread = np.stack([_spread(box, size) for box in found])  # (num_regions, cells)
        reference, words = reference_objects(row, classes), processor.words_of_tokens(captions)
        accuracies.append([])
        for sentence, own in enumerate(reference):
            accuracies[-1].append([])
            for head, boxes in zip(own["indices"], own["parts"], strict=True):
                tokens = np.flatnonzero(np.array(words[sentence]) == head)
                if not len(tokens):  # the caption is cut before it
                    accuracies[-1][-1].append(None)
                    continue
                mean = weights[sentence, tokens].mean(axis=0)[: len(record)]
                accuracies[-1][-1].append(found[int(mean.argmax())].tolist())
                for name, over_regions in (("own", mean), ("uniform", np.full(len(record), 1 / len(record)))):
                    heatmaps[name].append((over_regions @ spread).reshape(HEATMAP_SIDE, HEATMAP_SIDE))
                parts.append(boxes)
                sizes.append((row["width"], row["height"]))
        references.append(reference)
    accuracy = gt_sentence_accuracy(accuracies, references)
    correctness, uniform = (
        attention_correctness(np.array(maps), parts, sizes, union_mask=True) for maps in heatmaps.values()
    )
    return {
        "grounding_accuracy": accuracy["grounding_accuracy"],
        "attention_correctness": correctness["attention_correctness"],
        "interval": correctness["interval"],
        "uniform_attention": uniform["attention_correctness"],
        "count": accuracy["count"],
    }


@torch.no_grad()
def _weights_of_given(
    model: MIAForCaptioning, processor: MIAProcessor, images: ImageInputs, rows: Dataset, batch_size: int
) -> Iterator[tuple[Regions, list[str], np.ndarray]]:
    """Of each image its regions as the model reads them, its captions, and the weights (captions, T, num_regions)."""
    model.eval()
    image_ids, captions = rows["image_id"][:], rows["captions"][:]
    for start in range(0, len(image_ids), batch_size):
        shown = images.read(image_ids[start : start + batch_size])
        own = captions[start : start + batch_size]
        inputs = processor(captions=own, **shown).to(model.device)
        outputs = model(**inputs, output_attentions=True)
        weights = outputs.cross_attentions[0].mean(dim=1).float()  # over heads
        shares = (weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-6)).cpu().numpy()
        ends = np.cumsum([len(row) for row in own])
        for record, row, rows_of_image in zip(shown["regions"], own, np.split(shares, ends[:-1]), strict=True):
            yield best_regions(record, processor.max_regions), row, rows_of_image


def _spread(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(cells,) of a grid over the image: how much of the box is in each, together 1."""
    covered = box_coverage(torch.from_numpy(box)[None], *size, HEATMAP_SIDE).flatten().numpy()
    return covered / max(float(covered.sum()), 1e-6)
