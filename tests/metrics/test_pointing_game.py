"""Pointing game: values worked by hand, a slow literal version, properties, messages."""

import math

import numpy as np
import pytest

from hf_grounding.metrics import pointing_game

SIZE = (100, 100)


def random_queries(n=200, seed=0):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, 60, size=(n, 3, 2, 2)), axis=2).reshape(n, 3, 4)
    return {
        "points": rng.integers(0, 60, size=(n, 2)).astype(float),
        "boxes": [rows[:count].tolist() for rows, count in zip(corners, rng.integers(0, 4, n), strict=True)],
        "image_sizes": rng.integers(60, 80, size=(n, 2)),
        "categories": [[name for name in ("people", "scene", "notvisual") if rng.random() < 0.3] for _ in range(n)],
        "image_ids": rng.integers(0, 30, n).tolist(),
    }


def take(queries, rows):
    return {name: [values[row] for row in rows] for name, values in queries.items()}


def literal_hits(points, boxes, image_sizes, categories, box_rule, min_box_area):
    """One hit (1), miss (0) or None (skipped) per query, rule by rule as the specification words them."""
    hits = []
    for (x, y), query_boxes, (width, height), names in zip(points, boxes, image_sizes, categories, strict=True):
        if "notvisual" in names or not query_boxes:
            hits.append(None)
            continue
        union = [pick(box[i] for box in query_boxes) for i, pick in enumerate((min, min, max, max))]
        if (union[2] - union[0]) * (union[3] - union[1]) / (width * height) < min_box_area:
            hits.append(None)
            continue
        candidates = query_boxes if box_rule == "any" else [union]
        hits.append(int(any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in candidates)))
    return hits


@pytest.mark.parametrize("box_rule", ["any", "union"])
@pytest.mark.parametrize("min_box_area", [0.0, 0.05, 0.3])
def test_equals_the_rules_applied_one_query_at_a_time(box_rule, min_box_area):
    queries = random_queries()
    result = pointing_game(**queries, box_rule=box_rule, min_box_area=min_box_area, num_resamples=0)
    columns = {name: values for name, values in queries.items() if name != "image_ids"}
    hits = literal_hits(**columns, box_rule=box_rule, min_box_area=min_box_area)
    counted = [hit for hit in hits if hit is not None]
    assert (result["hits"], result["count"]) == (sum(counted), len(counted))
    assert result["pointing_accuracy"] == sum(counted) / len(counted)
    assert sum(result["skipped"].values()) == hits.count(None)
    for name in ("people", "scene"):
        rows = [
            hit for hit, names in zip(hits, queries["categories"], strict=True) if hit is not None and name in names
        ]
        assert result["by_category"][name]["pointing_accuracy"] == pytest.approx(sum(rows) / len(rows), abs=1e-12)
        assert result["by_category"][name]["count"] == len(rows)


@pytest.mark.parametrize(
    "point, hit", [((10, 20), 1), ((30, 40), 1), ((9.99, 20), 0), ((30, 40.01), 0), ((math.nan, math.nan), 0)]
)
def test_bounds_belong_to_the_box_and_no_point_is_a_miss(point, hit):
    assert pointing_game([point], [[[10, 20, 30, 40]]], [SIZE])["hits"] == hit


def test_point_between_two_boxes_hits_only_their_union():
    # Boxes span x 0..10 and 20..30; x = 15 lies in neither, but in the rectangle 0..30 around both.
    boxes = [[[0, 0, 10, 10], [20, 0, 30, 10]]]
    assert pointing_game([(15, 5)], boxes, [SIZE])["pointing_accuracy"] == 0
    assert pointing_game([(15, 5)], boxes, [SIZE], box_rule="union")["pointing_accuracy"] == 1


def test_small_box_is_judged_by_the_rectangle_around_all_boxes():
    # Two boxes of 1 % each; the rectangle around them is 50 x 10 = 5 % of 100 x 100, and exactly 5 % is kept.
    boxes = [[[0, 0, 10, 10], [40, 0, 50, 10]], [[0, 0, 10, 10]]]
    result = pointing_game([(5, 5), (5, 5)], boxes, [SIZE, SIZE], min_box_area=0.05)
    assert result["count"] == 1
    assert result["skipped"] == {"skipped_category": 0, "no_boxes": 0, "small_box": 1}


def test_phrase_with_two_types_counts_in_both_but_once_overall():
    box = [[0, 0, 10, 10]]
    result = pointing_game(
        [(5, 5), (50, 50), (50, 50)], [box, box, box], [SIZE] * 3, categories=[["people", "other"], ["other"], []]
    )
    assert (result["hits"], result["count"]) == (1, 3)
    scores = {name: (row["pointing_accuracy"], row["count"]) for name, row in result["by_category"].items()}
    assert scores == {"other": (0.5, 2), "people": (1.0, 1)}


def test_score_is_micro_over_queries_not_the_mean_over_images():
    # Image a: 3 hits of 3, image b: 0 of 1. Micro 3/4; the mean over images would be 1/2.
    points = [(5, 5)] * 3 + [(50, 50)]
    result = pointing_game(points, [[[0, 0, 10, 10]]] * 4, [SIZE] * 4, image_ids=["a", "a", "a", "b"])
    assert result["pointing_accuracy"] == 0.75


def test_every_switch_is_in_the_protocol():
    queries = random_queries()
    result = pointing_game(**queries, min_box_area=0.05, skip_categories=["scene"], num_resamples=10, seed=3)
    assert result["protocol"] == {
        "box_rule": "any",
        "box_bounds": "inclusive",
        "ties": "first maximum in row-major order",
        "min_box_area": 0.05,
        "skip_categories": ["scene"],
        "num_queries": 200,
        "num_counted": result["count"],
        "num_skipped": 200 - result["count"],
        "resampling_unit": "image",
        "num_resamples": 10,
        "seed": 3,
    }


def test_interval_contains_the_score_and_is_reproducible():
    queries = random_queries()
    result = pointing_game(**queries)
    for score in (result, *result["by_category"].values()):
        low, high = score["interval"]
        assert low < score["pointing_accuracy"] < high
    assert pointing_game(**queries)["interval"] == result["interval"]
    assert pointing_game(**queries, seed=1)["interval"] != result["interval"]
    assert pointing_game(**queries, num_resamples=0)["interval"] is None


def test_interval_has_the_width_the_normal_approximation_predicts():
    # 400 images with one query each, half hits: standard error sqrt(.25 / 400) = .025; 95 % are +- 1.96 * .025.
    points = [(5, 5), (50, 50)] * 200
    low, high = pointing_game(points, [[[0, 0, 10, 10]]] * 400, [SIZE] * 400, num_resamples=4000)["interval"]
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.006)


def test_interval_resamples_images_with_all_their_queries():
    # Two images, only hits in one, only misses in the other: a resample is 0, 1/2 or 1, however many queries there are.
    points = [(5, 5)] * 50 + [(50, 50)] * 50
    boxes, sizes = [[[0, 0, 10, 10]]] * 100, [SIZE] * 100
    by_image = pointing_game(points, boxes, sizes, image_ids=[0] * 50 + [1] * 50)
    assert by_image["interval"] == [0.0, 1.0]
    by_query = pointing_game(points, boxes, sizes)
    assert by_query["interval"][0] > 0.3
    assert by_query["protocol"]["resampling_unit"] == "query"


def test_skipped_queries_do_not_touch_score_or_interval():
    queries = random_queries()
    counted = [row for row in range(200) if queries["boxes"][row] and "notvisual" not in queries["categories"][row]]
    everything, only_counted = pointing_game(**queries), pointing_game(**take(queries, counted))
    for key in ("pointing_accuracy", "interval", "by_category", "count", "hits"):
        assert everything[key] == only_counted[key]


def test_order_of_rows_does_not_matter():
    queries = random_queries()
    shuffled = take(queries, np.random.default_rng(1).permutation(200))
    assert pointing_game(**shuffled) == pointing_game(**queries)


def test_duplicated_data_keep_every_accuracy():
    queries = random_queries()
    once, twice = pointing_game(**queries), pointing_game(**take(queries, [*range(200)] * 2))
    assert twice["count"] == 2 * once["count"]
    assert twice["pointing_accuracy"] == once["pointing_accuracy"]
    for name, score in once["by_category"].items():
        assert twice["by_category"][name]["pointing_accuracy"] == score["pointing_accuracy"]


BOX = [[0, 0, 10, 10]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"boxes": [], "points": np.empty((0, 2)), "image_sizes": np.empty((0, 2))}, "nothing to score"),
        ({"image_sizes": [SIZE]}, "`boxes` 2, `image_sizes` 1"),
        ({"points": [(1, 1)]}, "`points` 1, `boxes` 2"),
        ({"categories": [["people"]]}, "`boxes` 2, `image_sizes` 2, `categories` 1"),
        ({"image_ids": ["a", "b", "c"]}, "`image_ids` 3"),
        ({"image_ids": ["a", None]}, "`image_ids` must be .* some are None"),
        ({"points": [1, 1]}, r"`points` must have shape \(n, 2\).*got \(2,\)"),
        ({"boxes": [BOX, [[9, 0, 1, 1]]]}, r"row 1 has \[9.0, 0.0, 1.0, 1.0\].*xywh"),
        ({"boxes": [BOX, [[0, 0, math.nan, 1]]]}, "row 1 has"),
        ({"boxes": [[0, 0, 10, 10], BOX]}, "one list of xyxy boxes per query; row 0 is"),
        ({"boxes": [BOX, [[1, 2, 3]]]}, "row 1 is"),
        ({"image_sizes": [SIZE, (0, 10)]}, r"positive \(width, height\) in pixels; row 1 is \[0.0, 10.0\]"),
        ({"image_sizes": [10, 10]}, r"`image_sizes` must have shape \(n, 2\)"),
        ({"categories": ["people", "scene"]}, "row 0 is the string 'people'"),
        ({"skip_categories": "notvisual"}, "must be a list of names"),
        ({"min_box_area": 5}, r"share of the image in \[0, 1\], got 5"),
        ({"box_rule": "unoin"}, r"one of \['any', 'union'\], got 'unoin'. Did you mean 'union'\?"),
        ({"boxes": [[], []]}, "None of the 2 queries is left to score.*'no_boxes': 2"),
    ],
)
def test_error_says_what_is_wrong_and_where(arguments, message):
    valid = {"points": [(1, 1), (2, 2)], "boxes": [BOX, BOX], "image_sizes": [SIZE, SIZE]}
    with pytest.raises(ValueError, match=message):
        pointing_game(**{**valid, **arguments})
