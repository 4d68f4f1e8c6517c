"""Both metrics against the released evaluator's own functions, on every golden pointing file there is."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from hf_grounding.metrics import attention_correctness, pointing_game


class Golden(NamedTuple):
    name: str
    content: dict
    tolerance: float  # of attention correctness; hits are exact

    def column(self, key: str) -> list:
        return [phrase[key] for phrase in self.content["phrases"]]

    @property
    def ground_truth(self) -> dict:
        return {"boxes": self.column("boxes_xyxy"), "image_sizes": self.column("image_wh"), "num_resamples": 0}


@pytest.fixture(scope="module")
def goldens(golden_dir: Path) -> list[Golden]:
    files = [path for path in sorted(golden_dir.glob("multilevel_pointing_*.json")) if ".manifest" not in path.name]
    assert files, f"no multilevel_pointing_*.json in {golden_dir}"
    manifests = [json.loads(path.with_suffix(".manifest.json").read_text()) for path in files]
    return [
        Golden(path.name, json.loads(path.read_text()), manifest["tolerance"]["attention_correctness"])
        for path, manifest in zip(files, manifests, strict=True)
    ]


def test_golden_every_hit_is_the_evaluators(goldens):
    for golden in goldens:
        for phrase in golden.content["phrases"]:
            result = pointing_game([phrase["point_xy"]], [phrase["boxes_xyxy"]], [phrase["image_wh"]], num_resamples=0)
            assert result["hits"] == phrase["hit"], (golden.name, phrase)


def test_golden_accuracy_over_all_phrases(goldens):
    for golden in goldens:
        result = pointing_game(golden.column("point_xy"), **golden.ground_truth)
        assert result["pointing_accuracy"] == pytest.approx(golden.content["accuracy_all"], abs=1e-12), golden.name


def test_golden_accuracy_under_the_5_percent_rule(goldens):
    for golden in goldens:
        result = pointing_game(golden.column("point_xy"), **golden.ground_truth, min_box_area=0.05)
        expected = golden.content["accuracy_5_percent_rule"]
        assert result["pointing_accuracy"] == pytest.approx(expected, abs=1e-12), golden.name
        assert result["count"] == sum(golden.column("kept_by_5_percent_rule")), golden.name


def test_golden_5_percent_rule_keeps_the_same_phrases(goldens):
    for golden in goldens:
        # A category of its own for each phrase tells which ones were counted.
        names = [[str(row)] for row in range(len(golden.content["phrases"]))]
        result = pointing_game(golden.column("point_xy"), **golden.ground_truth, categories=names, min_box_area=0.05)
        kept = [name in result["by_category"] for (name,) in names]
        assert kept == golden.column("kept_by_5_percent_rule"), golden.name


def test_golden_attention_correctness_of_every_phrase(goldens):
    for golden in goldens:
        for phrase in golden.content["phrases"]:
            heatmap = square(phrase["pooled_heatmap"])
            result = attention_correctness([heatmap], [phrase["boxes_xyxy"]], [phrase["image_wh"]], num_resamples=0)
            expected = pytest.approx(phrase["attention_correctness"], abs=golden.tolerance)
            assert result["attention_correctness"] == expected, (golden.name, phrase)


def test_golden_attention_correctness_over_all_phrases(goldens):
    for golden in goldens:
        heatmaps = [square(heatmap) for heatmap in golden.column("pooled_heatmap")]
        result = attention_correctness(heatmaps, **golden.ground_truth)
        expected = pytest.approx(golden.content["attention_correctness_all"], abs=golden.tolerance)
        assert result["attention_correctness"] == expected, golden.name


def square(heatmap: list) -> np.ndarray:
    """The grid as rows and columns, whether the file holds it so or flattened (grids are square)."""
    values = np.array(heatmap, dtype=float)
    side = round(values.size**0.5)
    return values.reshape(side, side)
