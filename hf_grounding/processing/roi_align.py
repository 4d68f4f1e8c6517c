"""RoIAlign in plain torch: features of boxes from a map, bilinear and without rounding (He et al., ICCV 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

ROI_CHUNK = 64  # boxes that are pooled at once; bounds the memory of what lies between the two products


def roi_align(
    feature_map: torch.Tensor,
    boxes: Sequence[torch.Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> torch.Tensor:
    r"""RoIAlign ("Mask R-CNN", ICCV 2017): a feature map, averaged over the bins of a grid laid on each box.

    A bin is the mean of bilinear samples at evenly spread points. A sample beyond the centres of the outermost cells
    has the value of the nearest place between them, and 0 if it is more than one cell away, as in the compiled
    operation of torchvision; boxes inside the image have none of the latter. Gradients reach the map, and the boxes.

    Bilinear samples on a grid are products with one matrix for the rows and one for the columns of the map, and so are
    their means: the box's (bins, height) matrix, the map, the box's (width, bins) matrix.

    Args:
        feature_map (`torch.Tensor` of shape `(batch, channels, height, width)`): Of all images.
        boxes (list of `torch.Tensor` of shape `(num_regions, 4)`): For each image its boxes, any number; xyxy, in
            pixels of the image the map was made from.
        output_size (`int` or `tuple[int, int]`): Bins along the height and the width of a box.
        spatial_scale (`float`): Cells of the map for each pixel: 1/32 for stride 32.
        sampling_ratio (`int`): Samples along each side of a bin; 0 takes as many as a bin has cells, rounded up.
        aligned (`bool`): Place the centre of the map's first cell at half a cell, as it is. False is the older rule:
            at 0, and boxes are at least one cell wide and high.

    Returns:
        `torch.Tensor` of shape `(sum of num_regions, channels, output_height, output_width)`, of the map's dtype:
        boxes of the first image, then of the second, ...

    Raises:
        ValueError: If shapes do not fit or a setting makes no sense.
    """
    rows, columns = _roi_weights(feature_map, boxes, output_size, spatial_scale, sampling_ratio, aligned)
    channels, height, width = feature_map.shape[1:]
    pooled = []
    for cells, image_rows, image_columns in zip(feature_map, rows, columns, strict=True):
        cells = cells.to(image_rows.dtype).permute(2, 0, 1).reshape(width, channels * height)
        for y, x in zip(image_rows.split(ROI_CHUNK), image_columns.split(ROI_CHUNK), strict=True):
            across = (x.flatten(0, 1) @ cells).view(len(x), x.shape[1] * channels, height)
            both = (across @ y.mT).view(len(x), x.shape[1], channels, y.shape[1])
            pooled.append(both.permute(0, 2, 3, 1))
    return torch.cat(pooled).contiguous().to(feature_map.dtype)


def roi_mean(
    feature_map: torch.Tensor,
    boxes: Sequence[torch.Tensor],
    output_size: int | tuple[int, int] = 7,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> torch.Tensor:
    r"""Mean over the bins of [`roi_align`], which has the arguments: one vector for each box, without making the bins.

    Returns:
        `torch.Tensor` of shape `(sum of num_regions, channels)`, of the map's dtype.
    """
    rows, columns = _roi_weights(feature_map, boxes, output_size, spatial_scale, sampling_ratio, aligned)
    pooled = []
    for cells, image_rows, image_columns in zip(feature_map, rows, columns, strict=True):
        weights = image_rows.mean(dim=1)[:, :, None] * image_columns.mean(dim=1)[:, None, :]  # (n, height, width)
        pooled.append(weights.flatten(1) @ cells.flatten(1).to(weights.dtype).T)
    return torch.cat(pooled).to(feature_map.dtype)


def _roi_weights(
    feature_map: torch.Tensor,
    boxes: Sequence[torch.Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """For each image the weights of the map's rows (n, output_height, height), and of its columns, likewise."""
    if feature_map.ndim != 4:
        raise ValueError(
            f"`feature_map` must have shape (batch, channels, height, width), got {tuple(feature_map.shape)}."
        )
    if len(boxes) != len(feature_map) or len(boxes) == 0:
        raise ValueError(
            f"`boxes` must be a list with one (num_regions, 4) tensor per image; got {len(boxes)} for "
            f"{len(feature_map)} images."
        )
    for image, image_boxes in enumerate(boxes):
        if image_boxes.ndim != 2 or image_boxes.shape[1] != 4:
            raise ValueError(
                f"`boxes` must be tensors of shape (num_regions, 4); that of image {image} has shape "
                f"{tuple(image_boxes.shape)}."
            )
    bins = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(bins) != 2 or min(bins) < 1:
        raise ValueError(f"`output_size` must be one or two numbers of 1 or more, got {output_size}.")
    if not spatial_scale > 0:
        raise ValueError(f"`spatial_scale` must be above 0, got {spatial_scale}.")
    if sampling_ratio < 0:
        raise ValueError(f"`sampling_ratio` must be 0 (as many samples as needed) or more, got {sampling_ratio}.")

    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    counts = [len(image_boxes) for image_boxes in boxes]
    placed = torch.cat([image_boxes.to(feature_map.device, dtype) for image_boxes in boxes]) * spatial_scale
    if aligned:
        placed = placed - 0.5
    rows, columns = (
        _bin_weights(placed[:, axis], placed[:, axis + 2], size, num_bins, sampling_ratio, 0.0 if aligned else 1.0)
        for axis, size, num_bins in ((1, feature_map.shape[2], bins[0]), (0, feature_map.shape[3], bins[1]))
    )
    return list(rows.split(counts)), list(columns.split(counts))


def _bin_weights(
    low: torch.Tensor, high: torch.Tensor, size: int, num_bins: int, sampling_ratio: int, min_length: float
) -> torch.Tensor:
    """Share (n, num_bins, size) of each of the `size` cells of a line in the bins between `low` and `high` (n,)."""
    bin_length = (high - low).clamp(min=min_length) / num_bins  # (n,)
    if sampling_ratio > 0:
        num_samples = torch.full_like(low, sampling_ratio)
    else:
        num_samples = bin_length.detach().ceil().clamp(min=1)
    most = int(num_samples.max()) if len(low) else 1
    sample = torch.arange(most, device=low.device, dtype=low.dtype)  # (samples,)
    offsets = (sample + 0.5) / num_samples[:, None]  # (n, samples), in bins
    first = torch.arange(num_bins, device=low.device, dtype=low.dtype)
    points = low[:, None, None] + (first[:, None] + offsets[:, None]) * bin_length[:, None, None]  # (n, bins, samples)
    used = (points >= -1) & (points <= size) & (sample < num_samples[:, None])[:, None]
    cells = torch.arange(size, device=low.device, dtype=low.dtype)
    weights = (1 - (points.clamp(0, size - 1)[..., None] - cells).abs()).clamp(min=0)  # (n, bins, samples, size)
    return (weights * used[..., None]).sum(dim=2) / num_samples[:, None, None]
