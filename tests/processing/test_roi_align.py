"""RoIAlign: the literal loop, borders, gradients, half precision, errors."""

import math
import re

import numpy as np
import pytest
import torch

from hf_grounding.processing.roi_align import roi_align, roi_mean

HEIGHT, WIDTH = 40, 60


def random_boxes(n: int, seed: int = 0) -> np.ndarray:
    corners = np.random.default_rng(seed).random((n, 2, 2)) * [WIDTH, HEIGHT]
    return np.sort(corners, axis=1).reshape(n, 4)


def literal_sample(cells, y, x):
    """One bilinear sample of a (height, width) map, as the compiled operation takes it."""
    height, width = cells.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = cells[y0][x0] * (1 - (x - x0)) + cells[y0][x1] * (x - x0)
    bottom = cells[y1][x0] * (1 - (x - x0)) + cells[y1][x1] * (x - x0)
    return float(top * (1 - (y - y0)) + bottom * (y - y0))


def literal_roi_align(feature_map, boxes, bins, scale, ratio, aligned):
    out = []
    for maps, image_boxes in zip(feature_map, boxes, strict=True):
        for x1, y1, x2, y2 in (image_boxes.double() * scale - (0.5 if aligned else 0)).tolist():
            height, width = y2 - y1, x2 - x1
            if not aligned:
                height, width = max(height, 1), max(width, 1)
            bin_height, bin_width = height / bins[0], width / bins[1]
            rows = ratio or max(math.ceil(bin_height), 1)
            columns = ratio or max(math.ceil(bin_width), 1)
            pooled = torch.zeros(len(maps), *bins, dtype=torch.float64)
            for c, i, j in np.ndindex(pooled.shape):
                total = 0.0
                for k in range(rows):
                    for m in range(columns):
                        y = y1 + (i + (k + 0.5) / rows) * bin_height
                        x = x1 + (j + (m + 0.5) / columns) * bin_width
                        total += literal_sample(maps[c].double().numpy(), y, x)
                pooled[c, i, j] = total / (rows * columns)
            out.append(pooled)
    return torch.stack(out)


def roi_case():
    """Two maps 5 high and 7 wide at stride 8; boxes inside, across each border, outside, without area, and too many."""
    feature_map = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    odd = [
        [0, 0, 56, 40],
        [-20, -12, 20, 15],
        [40, 30, 90, 70],
        [-60, -60, -30, -30],
        [100, 90, 130, 100],
        [9, 17, 9, 17],
        [20, 8, 21, 9],
        [56, 40, 56, 40],
    ]
    inside = np.random.default_rng(1).random((6, 2, 2)) * [56, 40]
    boxes = [torch.tensor(odd, dtype=torch.float64), torch.tensor(np.sort(inside, axis=1).reshape(6, 4))]
    return feature_map, boxes


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("bins", [(2, 3), (1, 1)])
def test_roi_align_equals_the_literal_loop(bins, ratio, aligned):
    feature_map, boxes = roi_case()
    expected = literal_roi_align(feature_map, boxes, bins, 1 / 8, ratio, aligned)
    pooled = roi_align(feature_map, boxes, bins, 1 / 8, ratio, aligned)
    torch.testing.assert_close(pooled, expected, rtol=1e-9, atol=1e-12)
    single = roi_align(feature_map.float(), [x.float() for x in boxes], bins, 1 / 8, ratio, aligned)
    torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(roi_mean(feature_map, boxes, bins, 1 / 8, ratio, aligned), expected.mean(dim=(2, 3)))


def test_roi_align_of_a_ramp_is_the_place_by_hand():
    # cell (row, column) holds 10 row + column; its centre is at (column + 0.5, row + 0.5)
    ramp = (10.0 * torch.arange(6)[:, None] + torch.arange(8))[None, None]
    # box (1, 1, 5, 3) in 1 x 2 bins: centres (2, 2) and (4, 2), that is row 1.5 and columns 1.5 and 3.5
    assert roi_align(ramp, [torch.tensor([[1.0, 1, 5, 3]])], (1, 2)).tolist() == [[[[16.5, 18.5]]]]
    # the older rule takes places for rows and columns
    assert roi_align(ramp, [torch.tensor([[1.0, 1, 5, 3]])], (1, 2), aligned=False).tolist() == [[[[22.0, 24.0]]]]
    assert roi_align(ramp, [torch.tensor([[16.0, 16, 80, 48]])], (1, 2), 1 / 16).tolist() == [[[[16.5, 18.5]]]]


def test_samples_outside_take_the_border_for_one_cell_and_are_zero_beyond():
    line = torch.tensor([3.0, 1, 1, 5]).expand(1, 1, 4, 4)
    # one sample in the middle of each box of one pixel: columns -1, -1.01, 4, 4.01 (cells are 0 to 3)
    boxes = torch.tensor([[x, 1, x + 1, 2] for x in (-1.0, -1.01, 4.0, 4.01)])
    pooled = roi_align(line, [boxes], 1, sampling_ratio=1).flatten().tolist()
    assert pooled == pytest.approx([3, 0, 5, 0])


def test_boxes_inside_a_map_of_ones_give_ones():
    boxes = torch.tensor([[0.0, 0, 6, 4], [0, 0, 1, 1], [5, 3, 6, 4], [2, 2, 2, 2], [6, 4, 6, 4]])
    for ratio in (0, 2):
        torch.testing.assert_close(
            roi_align(torch.ones(1, 2, 4, 6), [boxes], 3, sampling_ratio=ratio), torch.ones(5, 2, 3, 3)
        )


def test_many_boxes_equal_one_at_a_time_and_images_may_have_none():
    feature_map = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    many = torch.tensor(random_boxes(150) / 10).float()
    pooled = roi_align(feature_map, [many[:0], many, many[:2]], 2)
    assert pooled.shape == (152, 4, 2, 2)
    assert pooled.is_contiguous()
    for row in (0, 63, 64, 149):
        torch.testing.assert_close(pooled[row : row + 1], roi_align(feature_map[1:2], [many[row : row + 1]], 2))
    torch.testing.assert_close(pooled[150:], roi_align(feature_map[2:], [many[:2]], 2))
    for ratio in (0, 2):
        assert roi_align(feature_map, [many[:0]] * 3, 2, sampling_ratio=ratio).shape == (0, 4, 2, 2)
        assert roi_mean(feature_map, [many[:0]] * 3, 2, sampling_ratio=ratio).shape == (0, 4)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradients_reach_the_map_and_the_boxes(ratio):
    feature_map = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    boxes = torch.tensor([[0.3, 0.4, 3.1, 2.2], [1.15, 0.6, 4.3, 3.7]], dtype=torch.float64)
    inputs = (feature_map.requires_grad_(), boxes.requires_grad_())
    for pool in (roi_align, roi_mean):
        assert torch.autograd.gradcheck(lambda maps, rois: pool(maps, [rois], 2, 1.0, ratio), inputs)  # noqa: B023


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_pooled_in_single_precision(dtype):
    feature_map = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    boxes = [torch.tensor(random_boxes(4) / 10)]
    for pool in (roi_align, roi_mean):
        pooled = pool(feature_map, boxes, 2)
        assert pooled.dtype == dtype
        assert torch.equal(pooled, pool(feature_map.float(), boxes, 2).to(dtype))


@pytest.mark.parametrize("pool", [roi_align, roi_mean])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"feature_map": torch.ones(3, 4, 4)}, "`feature_map` must have shape (batch, channels, height, width), got ("),
        ({"boxes": []}, "`boxes` must be a list with one (num_regions, 4) tensor per image; got 0 for 1 images."),
        ({"boxes": [torch.ones(1, 4)] * 2}, "`boxes` must be a list with one (num_regions, 4) tensor per image; got 2"),
        ({"boxes": [torch.ones(2, 5)]}, "`boxes` must be tensors of shape (num_regions, 4); that of image 0 has sh"),
        ({"output_size": 0}, "`output_size` must be one or two numbers of 1 or more, got 0."),
        ({"output_size": (1, 2, 3)}, "`output_size` must be one or two numbers of 1 or more, got (1, 2, 3)."),
        ({"spatial_scale": 0}, "`spatial_scale` must be above 0, got 0."),
        ({"sampling_ratio": -1}, "`sampling_ratio` must be 0 (as many samples as needed) or more, got -1."),
    ],
)  # fmt: skip
def test_pooling_says_what_is_wrong(pool, changes, message):
    arguments = {"feature_map": torch.ones(1, 3, 4, 4), "boxes": [torch.ones(1, 4)], "output_size": 2}
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        pool(**arguments | changes)
