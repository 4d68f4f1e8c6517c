"""Phrase grounding measured: pointing game, attention correctness, level choice, boxes, and trivial baselines."""

from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm

from ..data.feature_store import FeatureStore
from ..metrics import (
    attention_correctness,
    center_points,
    level_selection_rates,
    most_confident_region_points,
    pointing_game,
    random_points,
)
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
) -> tuple[dict[str, list], dict[str, list]]:
    r"""Ground every phrase; each process takes its share of the images and all get all results.

    Phrases that no metric counts (without boxes, notvisual) are among them: which ones count is the metrics' decision.
    Of the levels, those of words that nothing in the image answers to (R_t = 0) are left out.

    Returns:
        Lists with one entry for each phrase, in the order of the data set: `image_id`, `image_size` (width, height),
        `phrase`, `sentence`, `span`, `categories`, `boxes`, `point` (NaN = none), `heatmap` (grid), `score`, `levels`
        (of its words) and `box` (None without `with_boxes`). And lists with one entry for each caption:
        `sentence_level` and `other_levels` (of its words that are in no phrase).
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    state = PartialState()
    rows = dataset.select_columns(["image_id", "width", "height", "captions", "phrases"])
    # Images without captions have nothing to ground; the processor refuses them.
    captioned = [i for i, captions in enumerate(rows["captions"]) if captions]
    with state.split_between_processes(captioned) as mine:
        records: list[tuple[list[dict], dict]] = []
        starts = range(0, len(mine), batch_size)
        for start in tqdm(starts, desc="grounding", unit="batch", disable=not state.is_local_main_process, leave=False):
            batch = [rows[i] for i in mine[start : start + batch_size]]
            records += _ground_batch(model, processor, batch, store, device, query_heatmap, with_boxes)
    model.train(was_training)
    records = gather_object(records) if state.num_processes > 1 else records
    phrases = [phrase for caption_phrases, _ in records for phrase in caption_phrases]
    if not phrases:
        raise ValueError("This split has no phrases; grounding cannot be measured on it.")
    return _columns(phrases), _columns([caption for _, caption in records])


def _columns(records: list[dict[str, Any]]) -> dict[str, list]:
    return {name: [record[name] for record in records] for name in records[0]}


def _ground_batch(model, processor, batch, store, device, query_heatmap, with_boxes) -> list[tuple[list[dict], dict]]:
    """Records of the phrases of each caption, and of the caption."""
    captions = [(row, sentence) for row in batch for sentence in range(len(row["captions"]))]
    phrases = [[phrase for phrase in row["phrases"] if phrase["sentence"] == sentence] for row, sentence in captions]
    inputs = processor(text=[row["captions"] for row in batch], phrases=phrases).to(device)
    inputs.update(read_inputs(store, [row["image_id"] for row in batch], device))
    # The class's forward: on the model itself the Trainer may have put one that runs in bfloat16, where the peak of a
    # heatmap is often shared by several cells.
    outputs = type(model).forward(model, **inputs)
    levels = outputs.word_levels.masked_fill(outputs.word_scores <= 0, -1)
    results = zip(
        captions,
        phrases,
        inputs["phrase_mask"].bool(),
        processor.phrase_heatmaps(outputs, inputs, query_heatmap),
        levels,
        outputs.sentence_levels.tolist(),
        strict=True,
    )
    records = []
    for (row, _), mine, masks, (heatmaps, scores), word_levels, sentence_level in results:
        heatmaps = heatmaps.float().cpu()
        points = heatmap_points(heatmaps, row["height"], row["width"])
        boxes = heatmap_boxes(heatmaps, points, row["height"], row["width"]) if with_boxes else [None] * len(points)
        grounded = zip(mine, masks, points.tolist(), boxes, heatmaps.numpy(), scores.tolist(), strict=False)
        its_phrases = [
            {
                "image_id": row["image_id"],
                "image_size": (row["width"], row["height"]),
                "phrase": phrase["phrase"],
                "sentence": phrase["sentence"],
                "span": (phrase["start"], phrase["end"]),
                "categories": phrase["types"],
                "boxes": phrase["boxes"],
                "point": point,
                "box": None if box is None else box.tolist(),
                "heatmap": heatmap,
                "score": score,
                "levels": _real_levels(word_levels[mask]),
            }
            for phrase, mask, point, box, heatmap, score in grounded
        ]
        caption = {"sentence_level": sentence_level, "other_levels": _real_levels(word_levels[~masks.any(dim=0)])}
        records.append((its_phrases, caption))
    return records


def _real_levels(levels: torch.Tensor) -> list[int]:
    return levels[levels >= 0].tolist()


def score_groundings(
    predictions: dict[str, list],
    captions: dict[str, list],
    num_levels: int,
    *,
    min_box_area: float = 0.0,
    box_rule: str = "any",
    regions: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
    num_resamples: int = 1000,
) -> dict[str, Any]:
    r"""Metrics of [`predict_groundings`]' result beside those of trivial answers, all with one protocol.

    Args:
        predictions, captions: Of [`predict_groundings`].
        num_levels (`int`): Levels of the model.
        min_box_area, box_rule, num_resamples: Of [`pointing_game`].
        regions: Boxes and confidences of the regions detected in each image, for one more trivial answer: the centre of
            the most confident one. An image that is not among them is a miss.
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
        "levels": _level_rates(predictions, captions, num_levels),
        "baselines": {"random point": points(random_points(sizes)), "image centre": points(center_points(sizes))},
    }
    if regions is not None:
        scores["baselines"]["most confident region"] = points(_region_points(regions, predictions["image_id"]))
    if predictions["box"][0] is not None:
        protocol: dict[str, Any] = {
            "categories": predictions["categories"],
            "box_rule": box_rule,
            "min_box_area": min_box_area,
        }
        counted = pointing_hits(predictions["point"], boxes, sizes, **protocol)[1].nonzero()[0]
        scores["boxes"] = box_accuracy([predictions["box"][i] for i in counted], [boxes[i] for i in counted])
    return scores


def _level_rates(predictions: dict[str, list], captions: dict[str, list], num_levels: int) -> dict[str, Any]:
    """Table 3 of the paper: words of each category, all words, and whole sentences."""
    others = captions["other_levels"]
    categories = predictions["categories"] + [[]] * len(others)
    rates = level_selection_rates(predictions["levels"] + others, num_levels, categories=categories)
    sentences = level_selection_rates([[level] for level in captions["sentence_level"]], num_levels)
    return rates | {"sentence": {"rates": sentences["average"], "count": sentences["count"]}}


def _region_points(regions: dict[str, tuple[np.ndarray, np.ndarray]], image_ids: list[str]) -> np.ndarray:
    position = {image_id: index for index, image_id in enumerate(dict.fromkeys(image_ids))}
    none = (np.zeros((0, 4)), np.zeros(0))
    boxes, confidences = zip(*(regions.get(image_id, none) for image_id in position), strict=True)
    return most_confident_region_points(boxes, confidences, [position[image_id] for image_id in image_ids])


def box_accuracy(predicted: list, boxes: list[list]) -> dict[str, float]:
    r"""Share of phrases whose predicted box overlaps one of theirs with IoU of .5 or more, and their number.

    Args:
        predicted: One xyxy box for each phrase; NaN = none, a miss.
        boxes: For each phrase the list of its boxes.

    Returns:
        `dict` with "box_accuracy" in [0, 1] and "count".

    Raises:
        ValueError: If there are no phrases, or not as many lists of boxes.
    """
    if not predicted:
        raise ValueError("There is nothing to score: `predicted` is empty.")
    hits = []
    for box, its_boxes in zip(np.array(predicted, dtype=float), boxes, strict=True):
        truth = np.asarray(its_boxes, dtype=float)
        shared = np.clip(np.minimum(box[2:], truth[:, 2:]) - np.maximum(box[:2], truth[:, :2]), 0, None).prod(axis=1)
        union = (box[2:] - box[:2]).prod() + (truth[:, 2:] - truth[:, :2]).prod(axis=1) - shared
        hits.append(bool((shared >= 0.5 * union).any()))  # NaN, no box, compares false
    return {"box_accuracy": float(np.mean(hits)), "count": len(hits)}
