"""The report of a run: examples chosen by the stated rule, numbers as the metrics give them, pictures in pixels."""

import re

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage

from hf_grounding.metrics import pointing_game
from hf_grounding.metrics.pointing_game import pointing_hits
from hf_grounding.training import report as report_module
from hf_grounding.training.common import describe_machine
from hf_grounding.training.grounding_evaluation import score_groundings
from hf_grounding.training.report import build_report, choose_examples, protocol_of, result_tables
from hf_grounding.visualization import write_report

SIZE = (200, 100)  # of the annotated image; the stored photo is half as large
BOX = [100.0, 20.0, 180.0, 60.0]


def make_predictions(points, scores, image_ids, categories=None):
    n = len(points)
    return {
        "image_id": list(image_ids),
        "image_size": [SIZE] * n,
        "phrase": ["red ball"] * n,
        "sentence": [0] * n,
        "span": [(1, 3)] * n,
        "categories": categories or [["ball"]] * n,
        "boxes": [[BOX]] * n,
        "point": points,
        "box": [[90.0, 20.0, 170.0, 60.0]] * n,
        "heatmap": [np.eye(4, dtype=np.float32)] * n,
        "score": scores,
        "levels": [[0, 1]] * n,
    }


# two captions with the phrases above and further words
CAPTIONS = {"other_levels": [[1, 1], [0]], "sentence_level": [1, 1]}


def make_rows(image_ids):
    photos = [PILImage.new("RGB", (100, 50), "grey") for _ in image_ids]
    columns = {
        "image_id": list(image_ids),
        "image": photos,
        "width": [SIZE[0]] * len(photos),
        "height": [SIZE[1]] * len(photos),
        "captions": [["a red ball rolls"]] * len(photos),
    }
    return Dataset.from_dict(columns).cast_column("image", Image())


HIT, MISS, NONE = [120.0, 40.0], [5.0, 5.0], [float("nan")] * 2


@pytest.fixture
def predictions():
    points = [HIT, MISS, HIT, MISS, HIT, NONE]
    return make_predictions(points, [0.2, 0.5, 0.9, 0.7, 0.4, 0.0], ["a", "a", "b", "b", "c", "c"])


@pytest.fixture
def results(predictions):
    return score_groundings(predictions, CAPTIONS, 2, num_resamples=10) | {
        "split": "val",
        "num_images": 3,
        "query_heatmap": "word",
    }


def choose(predictions, count, **protocol):
    hits, counted = pointing_hits(
        predictions["point"],
        predictions["boxes"],
        predictions["image_size"],
        categories=predictions["categories"],
        **protocol,
    )
    return choose_examples(predictions, hits, counted, count)


def test_good_are_the_hits_and_failed_the_misses_of_highest_score_one_for_each_photo(predictions):
    groups, _ = choose(predictions, 6)
    assert groups["good"] == [2, 4, 0]
    assert groups["failed"] == [3, 1, 5]
    predictions["image_id"][4] = "b"  # the hit of .4 now shares the photo of the hit of .9
    assert choose(predictions, 6)[0]["good"] == [2, 0]


def test_typical_are_evenly_spaced_whether_hit_or_miss(predictions):
    groups, rule = choose(predictions, 2)
    assert groups["typical"] == [1, 4]
    assert "one of every 3 phrases" in rule
    assert "6 phrases counted, of which 50.0% are hits" in rule


def test_phrases_that_do_not_count_are_never_shown(predictions):
    predictions["categories"][2] = ["notvisual"]
    groups, rule = choose(predictions, 6)
    assert 2 not in [index for indices in groups.values() for index in indices]
    assert "5 phrases counted" in rule
    with pytest.raises(ValueError, match="None of the 6 queries is left"):
        choose(predictions, 6, min_box_area=0.5)


def test_equal_scores_keep_the_order_of_the_data_set():
    predictions = make_predictions([HIT] * 4, [0.5] * 4, "abcd")
    assert choose(predictions, 3)[0]["good"] == [0, 1, 2]


@pytest.mark.parametrize("box_rule", ["any", "union"])
def test_hits_are_those_the_pointing_game_counts(box_rule):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (50, 2))
    boxes = [[[10, 10, 40, 40], [60, 60, 90, 90]] for _ in points]
    categories = [["notvisual"] if i % 7 == 0 else ["x"] for i in range(50)]
    hits, counted = pointing_hits(points, boxes, [[100, 100]] * 50, categories=categories, box_rule=box_rule)
    game = pointing_game(points, boxes, [[100, 100]] * 50, categories=categories, box_rule=box_rule, num_resamples=0)
    assert (hits[counted].sum(), counted.sum()) == (game["hits"], game["count"])
    assert 0 < game["hits"] < game["count"]


def test_boxes_and_point_are_drawn_in_pixels_of_the_stored_photo(predictions, results, monkeypatch):
    drawn = []

    def draw_grounding(image, grounding, *, boxes, width):
        drawn.append((image.size, grounding, boxes))
        return image

    monkeypatch.setattr(report_module, "draw_grounding", draw_grounding)
    examples = build_report("t", results, predictions, make_rows("abc"), {}).examples
    size, grounding, boxes = drawn[0]
    assert size == (100, 50)
    assert grounding.point == (60.0, 20.0)
    assert grounding.box == (45.0, 10.0, 85.0, 30.0)
    assert boxes == [(50.0, 10.0, 90.0, 30.0)]
    assert examples[0].caption == "a [red ball] rolls"
    assert examples[0].note == "Hit; ball; photo b"


def test_a_phrase_without_a_point_is_drawn_without_point_and_box(predictions, results, monkeypatch):
    drawn = []
    monkeypatch.setattr(report_module, "draw_grounding", lambda image, grounding, **_: drawn.append(grounding) or image)
    build_report("t", results, predictions, make_rows("abc"), {})
    assert sum(grounding.point is None for grounding in drawn) == 2  # among the failed, and among the typical
    assert all(grounding.box is None for grounding in drawn if grounding.point is None)


def test_tables_hold_percents_beside_the_baselines(results):
    main, boxes, levels = result_tables(results)
    assert [row["category"] for row in main.rows] == ["all", "ball"]
    assert main.rows[0]["pointing game"] == 50.0
    # the box holds 40 * 80 of 200 * 100 pixels; the centre (100, 50) lies on its bound
    assert main.rows[0]["image centre"] == 100.0
    assert main.rows[0]["phrases"] == 6
    assert re.fullmatch(r"[\d.]+ – [\d.]+", main.rows[0]["95 % interval"])
    assert boxes.rows[0]["phrases, %"] == 100.0  # 70 * 40 shared of 90 * 40
    # 6 words of the phrases chose each level; of the others one the lower and two the higher
    assert levels.rows == [
        {"category": "all words", "level 0": 46.7, "level 1": 53.3, "count": 15},
        {"category": "ball", "level 0": 50.0, "level 1": 50.0, "count": 12},
        {"category": "whole sentences", "level 0": 0.0, "level 1": 100.0, "count": 2},
    ]
    assert "most confident region" not in main.rows[0]


def test_the_most_confident_region_is_a_baseline_where_regions_are_known(predictions):
    inside, outside = [100.0, 20.0, 120.0, 40.0], [0.0, 0.0, 10.0, 10.0]
    regions = {
        "a": (np.array([outside, inside]), np.array([0.3, 0.9])),
        "b": (np.array([outside, inside]), np.array([0.9, 0.3])),
    }  # nothing is known of photo c: a miss
    scores = score_groundings(predictions, CAPTIONS, 2, regions=regions, num_resamples=10)
    assert result_tables(scores)[0].rows[0]["most confident region"] == 33.3


def test_protocol_says_how_the_numbers_were_made(results):
    protocol = protocol_of(results | {"seed": 3})
    assert protocol["split"] == "val"
    assert protocol["query_heatmap"] == "word"
    assert (protocol["phrases counted"], protocol["seed"]) == (6, 3)
    assert protocol["phrases skipped"] == "0 skipped_category + 0 no_boxes + 0 small_box"
    assert protocol["ties"] == "first maximum in row-major order"
    assert protocol["union_mask"] is False


def test_curve_takes_loss_and_metrics_from_the_log_and_nothing_else(predictions, results):
    log = [
        {"step": 10, "loss": 2.0, "grad_norm": 1.0, "epoch": 0.5},
        {"step": 20, "eval_pointing_accuracy": 0.25, "eval_runtime": 1.0},
        {"step": 20, "train_runtime": 3.0},
    ]
    report = build_report("t", results | {"curve": log}, predictions, make_rows("abc"), {})
    assert list(report.curve) == [{"step": 10, "training loss": 2.0}, {"step": 20, "pointing game, %": 25.0}]


def test_the_same_run_writes_the_same_file_which_needs_no_network(predictions, results, tmp_path):
    pages = []
    for name in ("a.html", "b.html"):
        report = build_report("A run", results, predictions, make_rows("abc"), {"seed": 0}, num_examples=2)
        pages.append(write_report(tmp_path / name, report).read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    assert not re.search(r'(src|href)="(?!data:)', pages[0])
    assert pages[0].count("<img") == 6
    for words in ("image centre", "How they were chosen: of the 6 phrases", "Good", "Typical", "Failed"):
        assert words in pages[0]


def test_the_machine_of_a_measurement_names_the_gpu_that_it_ran_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    assert ", Card 1, torch " in describe_machine(torch.device("cuda", 1))
    assert "Card" not in describe_machine(torch.device("cpu"))
