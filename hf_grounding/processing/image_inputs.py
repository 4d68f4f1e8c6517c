"""What every model that reads regions and concepts of an image is given of them."""

from collections.abc import Sequence

import torch

from .regions import Regions, normalize_boxes, pad_regions


def region_inputs(regions: Sequence[Regions], max_regions: int) -> dict[str, torch.Tensor]:
    r"""Regions of several images as one batch.

    Args:
        regions (list of [`Regions`]): One for each image, with features.
        max_regions (`int`): Images with more keep the best ones.

    Returns:
        `region_features` (batch, num_regions, feature_dim), `region_mask` (batch, num_regions), `boxes`
        (batch, num_regions, 4), xyxy in [0, 1], 0 on padding; `image_sizes` (batch, 2), (height, width); and, where the
        records have them, `class_probs` (batch, num_regions, num_object_classes).

    Raises:
        ValueError: If an image has no regions or no features; names it.
    """
    for record in regions:
        if record.region_features is None or not len(record):
            missing = "regions" if not len(record) else "region features"
            raise ValueError(
                f"Image '{record.image_id}' has no {missing}. Extract them with `hf-grounding extract-features` "
                "and a `--backbone`, or leave the image out."
            )
    padded = pad_regions(regions, max_regions)
    padded["boxes"] = normalize_boxes(padded["boxes"], padded["image_sizes"]).astype("float32")
    return {name: torch.from_numpy(values) for name, values in padded.items()}


def check_concepts(concepts: Sequence[Sequence[str]]) -> None:
    r"""Refuses what is no list of words for each image.

    Raises:
        ValueError: If it is not, or is empty; names the image.
    """
    for image, words in enumerate(concepts):
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"Image {image} needs a list of words as its concepts, got {words!r}.")
    if not concepts:
        raise ValueError("`concepts` is empty; expected a list of words for each image.")


def concept_inputs(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Ids of each image's concepts as `concept_ids` and `concept_mask` (batch, num_concepts), padded on the right."""
    ids = torch.full((len(rows), max(1, *map(len, rows))), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, (own_ids, own_mask) in zip(rows, zip(ids, mask, strict=True), strict=True):
        own_ids[: len(row)], own_mask[: len(row)] = torch.tensor(row, dtype=torch.long), 1
    return {"concept_ids": ids, "concept_mask": mask}
