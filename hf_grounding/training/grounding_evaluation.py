"""Phrase grounding measured: pointing game, attention correctness, level choice, boxes, and trivial baselines."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm

from ..data.feature_store import FeatureStore
from ..metrics import attention_correctness, center_points, level_selection_rates, pointing_game, random_points
from ..metrics.pointing_game import pointing_hits
from ..processing.grounding import heatmap_boxes, heatmap_points
from .features import read_inputs


@torch.no_grad()
def predict_groundings(
    model: Any,
    processor: Any,
    dataset: Dataset,
    store: FeatureStore,
    *,
    query_heatmap: str | None = None,
    batch_size: int = 16,
    with_boxes: bool = False,
) -> dict[str, list]:
    r"""Ground every phrase that has boxes; each process takes its share of the images and all get all results.

    Returns:
        Lists with one entry for each phrase, in the order of the data set: `image_id`, `image_size` (width, height),
        `phrase`, `sentence`, `span`, `categories`, `boxes`, `point` (NaN = none), `heatmap` (grid), `score`, `levels`
        (one for each word) and `box` (None without `with_boxes`).
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    state = PartialState()
    rows = dataset.select_columns(["image_id", "width", "height", "captions", "phrases"])
    # Images without captions have nothing to ground; the processor refuses them.
    captioned = [i for i, captions in enumerate(rows["captions"]) if captions]
    with state.split_between_processes(captioned) as mine:
        records: list[dict[str, Any]] = []
        starts = range(0, len(mine), batch_size)
        for start in tqdm(starts, desc="grounding", unit="batch", disable=not state.is_local_main_process, leave=False):
            batch = [rows[i] for i in mine[start : start + batch_size]]
            records += _ground_batch(model, processor, batch, store, device, query_heatmap, with_boxes)
    model.train(was_training)
    records = gather_object(records) if state.num_processes > 1 else records
    if not records:
        raise ValueError("No phrase of this split has boxes; grounding cannot be measured on it.")
    return {name: [record[name] for record in records] for name in records[0]}


def _ground_batch(model, processor, batch, store, device, query_heatmap, with_boxes) -> Iterable[dict[str, Any]]:
    phrases = [
        [phrase for phrase in row["phrases"] if phrase["sentence"] == sentence and phrase["boxes"]]
        for row in batch
        for sentence in range(len(row["captions"]))
    ]
    inputs = processor(text=[row["captions"] for row in batch], phrases=phrases).to(device)
    inputs.update(read_inputs(store, [row["image_id"] for row in batch], device))
    # The class's forward: on the model itself the Trainer may have put one that runs in bfloat16, where the peak of a
    # heatmap is often shared by several cells.
    outputs = type(model).forward(model, **inputs)
    results = iter(
        zip(
            phrases,
            inputs["phrase_mask"],
            processor.phrase_heatmaps(outputs, inputs, query_heatmap),
            outputs.word_levels,
            strict=True,
        )
    )
    for row in batch:
        mine = [next(results) for _ in row["captions"]]
        if not any(captions_phrases for captions_phrases, *_ in mine):
            continue
        heatmaps = torch.cat([heatmaps for _, _, (heatmaps, _), _ in mine]).float().cpu()
        points = heatmap_points(heatmaps, row["height"], row["width"])
        boxes = (
            heatmap_boxes(heatmaps, points, row["height"], row["width"]).tolist()
            if with_boxes
            else [None] * len(points)
        )
        flat = [
            (phrase, score, levels[mask.bool()].tolist())
            for some, masks, (_, scores), levels in mine
            for phrase, mask, score in zip(some, masks, scores.tolist(), strict=False)
        ]
        for (phrase, score, levels), point, box, heatmap in zip(
            flat, points.tolist(), boxes, heatmaps.numpy(), strict=True
        ):
            yield {
                "image_id": row["image_id"],
                "image_size": (row["width"], row["height"]),
                "phrase": phrase["phrase"],
                "sentence": phrase["sentence"],
                "span": (phrase["start"], phrase["end"]),
                "categories": phrase["types"],
                "boxes": phrase["boxes"],
                "point": point,
                "box": box,
                "heatmap": heatmap,
                "score": score,
                "levels": levels,
            }


def score_groundings(
    predictions: dict[str, list],
    num_levels: int,
    *,
    min_box_area: float = 0.0,
    box_rule: str = "any",
    num_resamples: int = 1000,
) -> dict[str, Any]:
    r"""Metrics of [`predict_groundings`]' result beside those of a random point and of the image centre.

    All are measured with one protocol.
    """
    common: dict[str, Any] = {
        "categories": predictions["categories"],
        "image_ids": predictions["image_id"],
        "min_box_area": min_box_area,
        "num_resamples": num_resamples,
    }
    boxes, sizes = predictions["boxes"], np.array(predictions["image_size"])

    def points(values: Any) -> dict[str, Any]:
        return pointing_game(values, boxes, sizes, box_rule=box_rule, **common)

    scores = {
        "model": points(predictions["point"]),
        "attention_correctness": attention_correctness(np.stack(predictions["heatmap"]), boxes, sizes, **common),
        "levels": level_selection_rates(predictions["levels"], num_levels, categories=predictions["categories"]),
        "baselines": {"random point": points(random_points(sizes)), "image centre": points(center_points(sizes))},
    }
    if predictions["box"][0] is not None:
        protocol: dict[str, Any] = {
            "categories": predictions["categories"],
            "box_rule": box_rule,
            "min_box_area": min_box_area,
        }
        counted = pointing_hits(predictions["point"], boxes, sizes, **protocol)[1].nonzero()[0]
        scores["boxes"] = box_accuracy([predictions["box"][i] for i in counted], [boxes[i] for i in counted])
    return scores


def box_accuracy(predicted: list, boxes: list[list]) -> dict[str, float]:
    r"""Share of phrases whose predicted box overlaps one of theirs with IoU of .5 or more, and their number.

    Args:
        predicted: One xyxy box for each phrase; NaN = none, a miss.
        boxes: For each phrase the list of its boxes.

    Returns:
        `dict` with "box_accuracy" in [0, 1] and "count".
    """
    hits = []
    for box, its_boxes in zip(np.array(predicted, dtype=float), boxes, strict=True):
        truth = np.asarray(its_boxes, dtype=float)
        shared = np.clip(np.minimum(box[2:], truth[:, 2:]) - np.maximum(box[:2], truth[:, :2]), 0, None).prod(axis=1)
        union = (box[2:] - box[:2]).prod() + (truth[:, 2:] - truth[:, :2]).prod(axis=1) - shared
        hits.append(bool((shared >= 0.5 * union).any()))  # NaN, no box, compares false
    return {"box_accuracy": float(np.mean(hits)), "count": len(hits)}
