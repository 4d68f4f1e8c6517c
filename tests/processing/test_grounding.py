"""From grid heatmaps to points and boxes in pixels, and from boxes to covered cells."""

import json
from math import floor, nan

import numpy as np
import pytest
import torch

from hf_grounding.processing.grounding import Grounding, box_coverage, heatmap_boxes, heatmap_points


def random_heatmaps(n: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(n, height, width, generator=torch.Generator().manual_seed(0))


def literal_point(heatmap: torch.Tensor, height: int, width: int) -> tuple[float, float]:
    """Every pixel's value from its four nearest cells; the first largest in row-major order."""
    rows, columns = heatmap.shape
    best, point = -1.0, (nan, nan)
    for y in range(height):
        for x in range(width):
            row, column = max(0.0, (y + 0.5) * rows / height - 0.5), max(0.0, (x + 0.5) * columns / width - 0.5)
            value = 0.0
            for i, weight_y in ((floor(row), 1 - row % 1), (floor(row) + 1, row % 1)):
                for j, weight_x in ((floor(column), 1 - column % 1), (floor(column) + 1, column % 1)):
                    value += weight_y * weight_x * float(heatmap[min(i, rows - 1), min(j, columns - 1)])
            if value > best + 1e-6:
                best, point = value, (float(x), float(y))
    return point


@pytest.mark.parametrize("size", [(12, 17), (5, 5), (3, 4), (1, 1), (30, 2)], ids=str)
def test_points_are_the_first_maximum_of_the_literally_resized_heatmap(size):
    heatmaps = random_heatmaps(5, 4, 4)
    assert heatmap_points(heatmaps, *size).tolist() == [list(literal_point(x, *size)) for x in heatmaps]


def test_the_point_is_x_then_y_in_pixels():
    # the hottest cell is row 1, column 3 of 4 x 4, in an image 8 wide and 4 high: x around 7, y = 1
    heatmap = torch.zeros(1, 4, 4)
    heatmap[0, 1, 3] = 1
    assert heatmap_points(heatmap, height=4, width=8).tolist() == [[7.0, 1.0]]


def test_among_equal_maxima_the_first_in_row_major_order_is_the_point():
    heatmaps = torch.zeros(3, 4, 4)
    heatmaps[0, 2, 1] = heatmaps[0, 1, 3] = heatmaps[0, 3, 0] = 0.5
    heatmaps[1, 2, 2] = heatmaps[1, 2, 0] = 1
    heatmaps[2] = 0.25
    assert heatmap_points(heatmaps, 4, 4).tolist() == [[3.0, 1.0], [0.0, 2.0], [0.0, 0.0]]


def test_a_heatmap_of_zeros_has_neither_point_nor_box():
    heatmaps = torch.stack([torch.zeros(3, 3), torch.eye(3)])
    points = heatmap_points(heatmaps, 6, 6)
    assert points[0].isnan().all()
    assert not points[1].isnan().any()
    boxes = heatmap_boxes(heatmaps, points, 6, 6)
    assert boxes[0].isnan().all()
    assert not boxes[1].isnan().any()


def test_no_heatmaps_give_no_points_and_no_boxes():
    points = heatmap_points(torch.zeros(0, 3, 3), 4, 5)
    assert points.shape == (0, 2)
    assert heatmap_boxes(torch.zeros(0, 3, 3), points, 4, 5).shape == (0, 4)


def blocks(*places: tuple[slice, slice, float]) -> torch.Tensor:
    """A 64 x 64 heatmap, the grid on which boxes are found, so that no resizing blurs the blocks."""
    heatmap = torch.zeros(1, 64, 64)
    for rows, columns, value in places:
        heatmap[0, rows, columns] = value
    return heatmap


def box_of(heatmap: torch.Tensor, height: int, width: int, **settings: float) -> list[float]:
    return heatmap_boxes(heatmap, heatmap_points(heatmap, height, width), height, width, **settings)[0].tolist()


def test_the_box_holds_the_block_around_the_point():
    # rows 16..31 and columns 8..23 of 64: in a 128 x 320 (height x width) image y 32..64 and x 40..120
    heatmap = blocks((slice(16, 32), slice(8, 24), 1.0))
    assert box_of(heatmap, 64, 64) == [8.0, 16.0, 24.0, 32.0]
    assert box_of(heatmap, 128, 320) == [40.0, 32.0, 120.0, 64.0]


def test_a_block_that_does_not_touch_the_points_block_is_left_out():
    first, second = (slice(4, 10), slice(4, 10), 1.0), (slice(40, 60), slice(40, 60), 0.9)
    assert box_of(blocks(first, second), 64, 64) == [4.0, 4.0, 10.0, 10.0]


def test_blocks_that_touch_only_at_a_corner_are_apart():
    first, second = (slice(4, 10), slice(4, 10), 1.0), (slice(10, 20), slice(10, 20), 0.9)
    assert box_of(blocks(first, second), 64, 64) == [4.0, 4.0, 10.0, 10.0]


def test_the_region_is_followed_around_corners():
    # a U: down the left side, along the bottom, up the right side
    left = (slice(4, 30), slice(4, 8), 1.0)
    bottom, right = (slice(26, 30), slice(4, 40), 0.8), (slice(2, 30), slice(36, 40), 0.7)
    assert box_of(blocks(left, bottom, right), 64, 64) == [4.0, 2.0, 40.0, 30.0]


def test_the_threshold_is_a_share_of_the_peak():
    heatmap = blocks((slice(10, 20), slice(10, 20), 0.3), (slice(12, 15), slice(12, 15), 0.5))
    assert box_of(heatmap, 64, 64, threshold=0.7) == [12.0, 12.0, 15.0, 15.0]
    assert box_of(heatmap, 64, 64) == [10.0, 10.0, 20.0, 20.0]
    assert box_of(3 * heatmap, 64, 64) == [10.0, 10.0, 20.0, 20.0]


def test_a_constant_heatmap_gives_the_whole_image():
    assert box_of(torch.full((1, 5, 5), 0.2), 30, 40) == [0.0, 0.0, 40.0, 30.0]


@pytest.mark.parametrize("size", [(40, 90), (64, 64), (7, 5), (1, 1), (500, 3)], ids=str)
def test_boxes_lie_in_the_image_and_hold_their_point(size):
    heatmaps = random_heatmaps(20, 6, 6)
    points = heatmap_points(heatmaps, *size)
    boxes = heatmap_boxes(heatmaps, points, *size)
    height, width = size
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    centres = points + 0.5  # of the pixel
    assert (boxes[:, :2] <= centres).all()
    assert (boxes[:, 2:] >= centres).all()


def test_coverage_by_hand():
    # a 4 x 4 image on a 2 x 2 grid, cells of 2 x 2 pixels; the box from (1, 0) to (4, 3) covers
    # top left 1/2, top right all; bottom left 1/2 * 1/2, bottom right 1/2
    coverage = box_coverage(torch.tensor([[1.0, 0.0, 4.0, 3.0]]), 4, 4, 2)
    torch.testing.assert_close(coverage, torch.tensor([[0.5, 1.0], [0.25, 0.5]]))


def test_of_several_boxes_the_best_covering_one_counts():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 2.0], [1.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.5]])
    coverage = box_coverage(boxes, 4, 4, 2)
    torch.testing.assert_close(coverage, torch.tensor([[0.75, 0.0], [0.0, 0.0]]))


def test_the_image_may_be_wider_than_high_and_boxes_may_leave_it():
    # 2 high and 8 wide; right half, with the box reaching out on three sides
    coverage = box_coverage(torch.tensor([[4.0, -1.0, 9.0, 3.0]]), height=2, width=8, grid_size=2)
    assert coverage.tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_coverage_adds_up_to_the_area_of_the_box():
    box = torch.tensor([[3.3, 7.9, 41.2, 22.6]])
    coverage = box_coverage(box, height=30, width=50, grid_size=7)
    area = (41.2 - 3.3) * (22.6 - 7.9) / (30 * 50)
    assert float(coverage.sum()) / 49 == pytest.approx(area, rel=1e-5)


def test_a_grounding_becomes_json_without_its_heatmap():
    heatmap = np.ones((3, 3), dtype=np.float32)
    grounding = Grounding("a man", (0, 2), (1.0, 2.0, 3.0, 4.0), (2.0, 3.0), 0.5, heatmap)
    expected = {"phrase": "a man", "token_span": [0, 2], "box": [1.0, 2.0, 3.0, 4.0], "point": [2.0, 3.0], "score": 0.5}
    assert json.loads(json.dumps(grounding.to_dict())) == expected
    assert "heatmap" not in repr(grounding)
    assert grounding == Grounding("a man", (0, 2), (1.0, 2.0, 3.0, 4.0), (2.0, 3.0), 0.5)
