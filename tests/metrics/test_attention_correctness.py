"""Attention correctness: values worked by hand, the literal full-size version, properties, messages."""

import time

import numpy as np
import pytest
import torch

from hf_grounding.metrics import attention_correctness


def literal_resize(heatmap, width, height):
    """Bilinear, half-pixel centres, pixel by pixel."""
    grid_height, grid_width = len(heatmap), len(heatmap[0])
    pixels = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * grid_height / height - 0.5, 0), grid_height - 1)
            u = min(max((x + 0.5) * grid_width / width - 0.5, 0), grid_width - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, grid_height - 1), min(left + 1, grid_width - 1)
            upper = heatmap[top][left] * (1 - u + left) + heatmap[top][right] * (u - left)
            lower = heatmap[bottom][left] * (1 - u + left) + heatmap[bottom][right] * (u - left)
            pixels[y, x] = upper * (1 - v + top) + lower * (v - top)
    return pixels


def literal_score(heatmap, boxes, width, height, union_mask):
    pixels = literal_resize(heatmap, width, height)
    if pixels.sum() == 0:
        return 0.0
    times = np.zeros((height, width))
    for x1, y1, x2, y2 in boxes:
        times[max(int(y1), 0) : max(int(y2), 0), max(int(x1), 0) : max(int(x2), 0)] += 1
    if union_mask:
        times = np.minimum(times, 1)
    return (pixels * times).sum() / pixels.sum()


def random_queries(n=30, grid=(4, 3), seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 25, size=(n, 2))  # some images are smaller than the grid
    boxes = []
    for width, height in sizes:
        corners = rng.uniform(-2, [width + 2, height + 2], size=(rng.integers(1, 5), 2, 2))
        boxes.append(np.sort(corners, axis=1).reshape(-1, 4).tolist())
    heatmaps = rng.random((n, *grid)) * (rng.random((n, *grid)) < 0.5)
    heatmaps[::10] = 0
    return {
        "heatmaps": heatmaps.astype(np.float32),
        "boxes": boxes,
        "image_sizes": sizes,
        "categories": [[name for name in ("people", "scene") if rng.random() < 0.5] for _ in range(n)],
        "image_ids": rng.integers(0, 10, n).tolist(),
    }


@pytest.mark.parametrize("union_mask", [False, True])
def test_equals_summing_pixels_of_the_resized_map(union_mask):
    queries = random_queries()
    result = attention_correctness(**queries, union_mask=union_mask, num_resamples=0)
    scores = [
        literal_score(heatmap, boxes, width, height, union_mask)
        for heatmap, boxes, (width, height) in zip(
            queries["heatmaps"].astype(float), queries["boxes"], queries["image_sizes"], strict=True
        )
    ]
    assert result["attention_correctness"] == pytest.approx(np.mean(scores), abs=1e-12)
    for row, score in enumerate(scores):
        columns = {name: [queries[name][row]] for name in ("heatmaps", "boxes", "image_sizes")}
        one = attention_correctness(**columns, union_mask=union_mask, num_resamples=0)
        assert one["attention_correctness"] == pytest.approx(score, abs=1e-12)


def test_resize_is_torchs_bilinear_without_align_corners():
    heatmap = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels = torch.nn.functional.interpolate(heatmap, size=(31, 40), mode="bilinear", align_corners=False)[0, 0]
    result = attention_correctness(heatmap[0].numpy(), [[[3, 4, 20, 17]]], [(40, 31)], num_resamples=0)
    expected = (pixels[4:17, 3:20].sum() / pixels.sum()).item()
    assert result["attention_correctness"] == pytest.approx(expected, abs=1e-12)


HAND = [[0.0, 0, 0], [0, 2, 1], [0, 0, 1]]  # on a 3 x 3 image the resized map is the grid itself; it sums to 4


@pytest.mark.parametrize(
    "boxes, score",
    [
        ([[1, 1, 2, 2]], 2 / 4),  # upper bounds exclusive: the middle pixel alone
        ([[1, 1, 3, 3]], 4 / 4),
        ([[1.9, 1.9, 2.9, 2.9]], 2 / 4),  # corners cut to whole numbers: again the middle pixel
        ([[1, 1, 1, 3]], 0.0),  # no pixel between 1 and 1
        ([[2, 0, 9, 9]], 2 / 4),  # cut at the image: the right column, 1 + 1
        ([[-5, -5, 2, 2]], 2 / 4),  # the same at the other side
        ([[50, 50, 60, 60]], 0.0),  # outside
        ([[1, 1, 2, 2], [2, 1, 3, 2]], 3 / 4),  # neighbours: 2 + 1
    ],
)
def test_mass_inside_boxes_worked_by_hand(boxes, score):
    result = attention_correctness([HAND], [boxes], [(3, 3)])
    assert result["attention_correctness"] == pytest.approx(score, abs=1e-12)


def test_overlap_counts_per_box_unless_masked():
    # Both boxes hold the middle pixel (2), the second also its right neighbour (1): 2 + 3 = 5 of 4; counted once, 3.
    boxes = [[[1, 1, 2, 2], [1, 1, 3, 2]]]
    assert attention_correctness([HAND], boxes, [(3, 3)])["attention_correctness"] == pytest.approx(5 / 4)
    masked = attention_correctness([HAND], boxes, [(3, 3)], union_mask=True)
    assert masked["attention_correctness"] == pytest.approx(3 / 4)
    assert masked["protocol"]["union_mask"] is True


def test_zero_heatmap_lowers_the_overall_score_but_not_the_category():
    result = attention_correctness(
        [HAND, np.zeros((3, 3)), np.zeros((3, 3))],
        [[[1, 1, 2, 2]]] * 3,
        [(3, 3)] * 3,
        categories=[["people"], ["people"], ["scene"]],
    )
    assert result["attention_correctness"] == pytest.approx(0.5 / 3)  # (2/4 + 0 + 0) / 3
    assert (result["count"], result["zero_heatmaps"]) == (3, 2)
    assert result["by_category"]["people"]["attention_correctness"] == pytest.approx(0.5)
    assert result["by_category"]["people"]["count"] == 1
    assert "scene" not in result["by_category"]  # nothing left to average


def test_size_of_the_scores_does_not_matter():
    queries = random_queries()
    scaled = attention_correctness(**{**queries, "heatmaps": queries["heatmaps"] * 8})
    assert scaled == attention_correctness(**queries)


def test_interval_contains_the_score_and_order_does_not_matter():
    queries = random_queries(n=100)
    result = attention_correctness(**queries)
    low, high = result["interval"]
    assert low < result["attention_correctness"] < high
    order = np.random.default_rng(1).permutation(100)
    shuffled = attention_correctness(**{name: [values[row] for row in order] for name, values in queries.items()})
    assert shuffled["attention_correctness"] == pytest.approx(result["attention_correctness"], abs=1e-12)
    assert shuffled["interval"] == pytest.approx(result["interval"], abs=1e-12)


def test_full_validation_set_takes_seconds_at_most():
    rng = np.random.default_rng(0)
    n = 12_615  # phrases with boxes of the Flickr8k val images
    boxes = np.sort(rng.uniform(0, 375, size=(n, 2, 2)), axis=1).reshape(n, 1, 4).tolist()
    sizes = np.stack([np.full(n, 500), rng.integers(300, 500, n)], axis=1)
    start = time.process_time()
    attention_correctness(rng.random((n, 18, 18), dtype=np.float32), boxes, sizes)
    assert time.process_time() - start < 10  # about 0.6 s; full-size maps would take minutes


@pytest.mark.parametrize(
    "heatmaps, message",
    [
        ([HAND, [[np.nan] * 3] * 3], "row 1 has NaN"),
        ([HAND, [[np.inf] * 3] * 3], "row 1 has infinite"),
        ([[[-1.0] * 3] * 3, HAND], "row 0 has negative"),
        ([HAND], "`heatmaps` 1, `boxes` 2"),
        (HAND, r"shape \(n, grid_height, grid_width\), got \(3, 3\)"),
        ([HAND, [[1.0]]], "grids of one size"),
    ],
)
def test_error_names_the_heatmap_that_is_wrong(heatmaps, message):
    with pytest.raises(ValueError, match=message):
        attention_correctness(heatmaps, [[[0, 0, 1, 1]]] * 2, [(3, 3)] * 2)
