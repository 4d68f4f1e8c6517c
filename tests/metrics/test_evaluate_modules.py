"""The metrics as `evaluate.Metric`: same numbers as the functions, also loaded by path."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hf_grounding.metrics
from hf_grounding.metrics import (
    attention_correctness,
    bleu,
    cider,
    compute_caption_metrics,
    grounding_f1,
    pointing_game,
    rouge_l,
    vqa_accuracy,
)

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


CAPTIONS = ["A man rides a horse .", "two dogs", "a red car"]
CAPTION_REFERENCES = [["a man on a horse", "A horse ."], ["Two dogs run .", "dogs"], ["the car is red", "a car"]]
ANSWERS = [
    {"answers": ["2"] * 4 + ["two"] * 6, "answer_type": "number", "question_type": "how many"},
    {"answers": ["red"] * 9 + ["blue"], "answer_type": "other", "question_type": "what color"},
]
WORDS = {"tokens": ["a", "man", "on", "grass"], "classes": ["man"], "indices": [1], "boxes": [[0.0, 0.0, 9.0, 9.0]]}
GROUNDED = [{"classes": ["man", "dog"], "boxes": [[0.0, 0.0, 9.0, 8.0], [0.0, 0.0, 5.0, 5.0]]}]
PURE = {"metrics": ["bleu", "rouge_l", "cider_d"]}


def _grounding(function):
    return lambda predictions, references, **switches: function(predictions, **GROUND_TRUTH, **switches)


def _answers(predictions, references):
    columns = {f"{name}s": [row[name] for row in references] for name in ("answer_type", "question_type")}
    return vqa_accuracy(predictions, [row["answers"] for row in references], **columns)


CASES = [
    ("PointingGame", POINTS, REFERENCES, _grounding(pointing_game), {"box_rule": "union", "num_resamples": 20}),
    ("AttentionCorrectness", HEATMAPS, REFERENCES, _grounding(attention_correctness), {"union_mask": True, "seed": 1}),
    ("Bleu", CAPTIONS, CAPTION_REFERENCES, bleu, {}),
    ("RougeL", CAPTIONS, CAPTION_REFERENCES, rouge_l, {}),
    ("Cider", CAPTIONS, CAPTION_REFERENCES, cider, {"variant": "cider"}),
    ("CaptionMetrics", CAPTIONS, CAPTION_REFERENCES, compute_caption_metrics, PURE),
    ("VqaAccuracy", ["two", "blue"], ANSWERS, _answers, {}),
    ("GroundingF1", GROUNDED, [[WORDS, WORDS]], grounding_f1, {"object_classes": ["man", "dog"]}),
]


@pytest.mark.parametrize("class_name, predictions, references, function, switches", CASES)
def test_metric_class_gives_the_functions_result(tmp_path, class_name, predictions, references, function, switches):
    pytest.importorskip("evaluate")
    metric = getattr(hf_grounding.metrics, class_name)(cache_dir=str(tmp_path))
    result = metric.compute(predictions=predictions, references=references, **switches)
    assert result == function(predictions, references, **switches)


@pytest.mark.parametrize("class_name, predictions, references, function, switches", CASES)
def test_metric_loads_by_the_path_of_its_file(tmp_path, class_name, predictions, references, function, switches):
    evaluate = pytest.importorskip("evaluate")
    file_name = hf_grounding.metrics._EVALUATE_CLASSES[class_name]
    metric = evaluate.load(str(FOLDER / f"{file_name}.py"), cache_dir=str(tmp_path))
    assert type(metric).__name__ == class_name
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute(**switches) == function(predictions, references, **switches)


def test_metrics_that_need_java_load_by_path_too(tmp_path):
    evaluate = pytest.importorskip("evaluate")
    for class_name in ("Meteor", "Spice"):
        metric = evaluate.load(str(FOLDER / f"{class_name.lower()}.py"), cache_dir=str(tmp_path))
        assert type(metric).__name__ == class_name


def test_every_file_has_its_class():
    files = {path.stem for path in FOLDER.glob("[!_]*.py")}
    assert files == set(hf_grounding.metrics._EVALUATE_CLASSES.values())


def test_metrics_combine(tmp_path):
    evaluate = pytest.importorskip("evaluate")
    metrics = {
        name: getattr(hf_grounding.metrics, name)(cache_dir=str(tmp_path / name))
        for name in ("Bleu", "RougeL", "Cider")
    }
    result = evaluate.combine(metrics).compute(predictions=CAPTIONS, references=CAPTION_REFERENCES)
    assert result["bleu_4"] == bleu(CAPTIONS, CAPTION_REFERENCES)["bleu_4"]
    assert result["rouge_l"] == rouge_l(CAPTIONS, CAPTION_REFERENCES)["rouge_l"]
    assert result["cider_d"] == cider(CAPTIONS, CAPTION_REFERENCES)["cider_d"]


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
