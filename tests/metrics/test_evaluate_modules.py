"""The metrics as `evaluate.Metric`: same numbers as the functions, also loaded by path."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hf_grounding.metrics
from hf_grounding.metrics import attention_correctness, pointing_game

FOLDER = Path(hf_grounding.metrics.__file__).parent / "evaluate_modules"
POINTS = [[5.0, 5.0], [50.0, 50.0], [float("nan"), float("nan")], [1.0, 1.0]]
HEATMAPS = [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]
REFERENCES = [
    {"boxes": [[0, 0, 10, 10]], "image_size": [100, 80], "categories": ["people", "other"], "image_id": "a"},
    {"boxes": [[0, 0, 10, 10], [30, 0, 50, 50]], "image_size": [100, 80], "categories": [], "image_id": "a"},
    {"boxes": [[0, 0, 90, 70]], "image_size": [90, 70], "categories": ["people"], "image_id": "b"},
    {"boxes": [], "image_size": [90, 70], "categories": ["scene"], "image_id": "b"},
]
GROUND_TRUTH = {
    "boxes": [reference["boxes"] for reference in REFERENCES],
    "image_sizes": [reference["image_size"] for reference in REFERENCES],
    "categories": [reference["categories"] for reference in REFERENCES],
    "image_ids": [reference["image_id"] for reference in REFERENCES],
}
CASES = [
    ("PointingGame", "pointing_game", POINTS, pointing_game, {"box_rule": "union", "num_resamples": 20}),
    ("AttentionCorrectness", "attention_correctness", HEATMAPS, attention_correctness, {"union_mask": True, "seed": 1}),
]


@pytest.mark.parametrize("class_name, file_name, predictions, function, switches", CASES)
def test_metric_class_gives_the_functions_result(tmp_path, class_name, file_name, predictions, function, switches):
    pytest.importorskip("evaluate")
    metric = getattr(hf_grounding.metrics, class_name)(cache_dir=str(tmp_path))
    result = metric.compute(predictions=predictions, references=REFERENCES, **switches)
    assert result == function(predictions, **GROUND_TRUTH, **switches)


@pytest.mark.parametrize("class_name, file_name, predictions, function, switches", CASES)
def test_metric_loads_by_the_path_of_its_file(tmp_path, class_name, file_name, predictions, function, switches):
    evaluate = pytest.importorskip("evaluate")
    metric = evaluate.load(str(FOLDER / f"{file_name}.py"), cache_dir=str(tmp_path))
    assert type(metric).__name__ == class_name
    for prediction, reference in zip(predictions, REFERENCES, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute(**switches) == function(predictions, **GROUND_TRUTH, **switches)


def test_numpy_predictions_are_accepted(tmp_path):
    pytest.importorskip("evaluate")
    metric = hf_grounding.metrics.AttentionCorrectness(cache_dir=str(tmp_path))
    result = metric.compute(predictions=np.array(HEATMAPS, dtype=np.float32), references=REFERENCES)
    assert result == attention_correctness(HEATMAPS, **GROUND_TRUTH)


def test_importing_the_metrics_brings_neither_evaluate_nor_torch():
    code = (
        "import sys, hf_grounding.metrics; "
        "sys.exit(' '.join({'evaluate', 'datasets', 'torch', 'transformers'} & set(sys.modules)) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_unknown_name_is_answered_with_the_names_there_are():
    with pytest.raises(AttributeError, match=r"has no `PointingGam`; it has .*PointingGame"):
        _ = hf_grounding.metrics.PointingGam
