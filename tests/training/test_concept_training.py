"""Training of concept detectors: better than chance, resumed as if never stopped, wrong settings refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_grounding import ConceptDetector, ConceptProcessor, load_grounding_dataset
from hf_grounding.processing.concepts import FUNCTION_WORDS
from hf_grounding.training.concepts import ConceptTrainer, ConceptTrainingArguments, build_detector, score_concepts
from hf_grounding.training.recipe import Recipe
from hf_grounding.training.run import evaluate, train

RECIPE = {
    "description": "tiny",
    "system": "concept_detector",
    "dataset": {"name": "scenes", "options": {"num_train": 64, "num_val": 24, "num_test": 0, "image_size": 64}},
    "backbone": {
        "config": {
            "model_type": "resnet",
            "embedding_size": 16,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "layer_type": "basic",
        },
        "levels": [1],
        "image_size": 64,
    },
    "model": {
        "freeze_backbone": True,
        "num_concepts": 30,
        "hidden_sizes": [32],
        "normalize_features": True,
        "last_layer_lr_multiplier": 2,
    },
    "training": {
        "max_steps": 40,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 20,
        "save_steps": 20,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("concepts")
    recipe = json.loads(json.dumps(RECIPE))
    recipe["backbone"]["feature_dir"] = str(folder / "features")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def run(recipe_file: Path) -> Path:
    folder = recipe_file.parent / "run"
    train(Recipe.load(recipe_file), folder)
    return folder


def test_a_run_leaves_a_loadable_model_better_than_chance(run: Path):
    results = json.loads((run / "results.json").read_text())
    scores = results["concepts"]
    assert scores["mean_average_precision"] > scores["chance"] + 0.05
    assert results["baselines"]["word frequency"] == pytest.approx(scores["chance"])
    assert not set(scores["by_concept"]) & set(FUNCTION_WORDS)
    assert "concept" in (run / "report.html").read_text()
    model, processor = ConceptDetector.from_pretrained(run), ConceptProcessor.from_pretrained(run)
    assert list(model.config.id2label.values()) == processor.concepts
    assert len(processor.concepts) == 30
    photos = load_grounding_dataset("scenes", split="val", num_train=1, num_val=2, num_test=0, image_size=64)["image"]
    with torch.no_grad():
        probs = model(**processor(photos[:2])).concept_probs
    assert [len(words) for words in processor.rank(probs, top=5)] == [5, 5]
    assert Recipe.load(run).system == "concept_detector"


def test_evaluation_repeats_the_numbers_of_the_training(run: Path, tmp_path: Path):
    results = evaluate(run, report=tmp_path / "report.html")
    saved = json.loads((run / "results.json").read_text())
    assert results["concepts"] == saved["concepts"]
    assert "average precision" in (tmp_path / "report.html").read_text()
    assert evaluate(run, split="val[:5]")["num_images"] == 5
    with pytest.raises(ValueError, match=r"`box_rule` is of phrase grounding, and .* holds a concept detector"):
        evaluate(run, box_rule="any")
    with pytest.raises(ValueError, match="holds a concept_detector, and the recipe is of a multilevel_grounding"):
        evaluate(run, recipe="multilevel_scenes")


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(run: Path, recipe_file: Path, tmp_path: Path):
    for path in run.iterdir():  # as it was when its first checkpoint was there
        if path.name in ("recipe.yaml", "checkpoint-20"):
            (tmp_path / path.name).symlink_to(path)
    train(Recipe.load(recipe_file), tmp_path, resume=True)
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (run, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        train(Recipe.load(recipe_file), tmp_path)
    with pytest.raises(ValueError, match=r"other settings: `model.dropout` was None and is 0.5"):
        train(Recipe.load(recipe_file, {"dropout": "0.5"}), tmp_path, resume=True)


def test_the_last_layer_learns_faster_and_the_frozen_backbone_not_at_all(recipe_file: Path, tmp_path: Path):
    model, processor = build_detector(Recipe.load(recipe_file), [["a red ball"], ["a blue cube"]])
    args = ConceptTrainingArguments(output_dir=str(tmp_path), learning_rate=1e-3, use_cpu=True, report_to="none")
    trainer = ConceptTrainer(model=model, args=args, processor=processor, eval_store=None)
    rates = {
        id(parameter): group["lr"] for group in trainer.create_optimizer().param_groups for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        expected = None if "backbone" in name else 2e-3 if "classifier" in name else 1e-3
        assert rates.get(id(parameter)) == expected


def test_words_that_the_detector_does_not_have_count_as_chance():
    processor = ConceptProcessor(concepts=["a", "dog"])
    captions = [["a dog", "the puppy"], ["a cat"], ["dog on a mat"], ["a cat"]]
    # dog ranks 0.9 (yes), 0.8 (no), 0.7 (yes), 0.1 (no): (1/1 + 2/3) / 2. Two of the four images have cat, one has mat
    # and one puppy.
    probs = np.array([[0.5, 0.9], [0.5, 0.8], [0.5, 0.7], [0.5, 0.1]])
    scores = score_concepts(probs, processor, captions)
    assert scores["concepts"]["by_concept"] == pytest.approx({"cat": 0.5, "dog": 5 / 6, "mat": 0.25, "puppy": 0.25})
    assert scores["concepts"]["unknown"] == ["cat", "mat", "puppy"]
    assert scores["concepts"]["share_by_concept"]["dog"] == 0.5
    assert scores["baselines"] == {"word frequency": pytest.approx(0.375)}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("system", "concept_detectr", "`system` must be one of .* Did you mean `concept_detector`"),
        ("model.grid_size", "4", "Section `model` has no key `grid_size`"),
        ("model.feature_channels", "4", "Section `model` has no key `feature_channels`"),
        ("mirror_images", "true", "No section of the recipe has a key `mirror_images`"),
        ("training.halve_learning_rate_at", "[1]", "Section `training` has no key `halve_learning_rate_at`"),
        ("dropuot", "0.1", "Did you mean `dropout`"),
        (
            "min_count",
            "3",
            "A concept detector has no `min_count`, which is of the section `captions` or `questions`",
        ),
        ("box_rule", "union", "A concept detector has no `box_rule`, which is of the section `evaluation`"),
        ("text.min_count", "3", "A concept detector has no settings in section `text`"),
        ("regions", "{store: x}", "A concept detector has no settings in section `regions`"),
        ("backbone.levels", "[1, 2]", r"A concept detector reads one level, got `backbone.levels` \[1, 2\]"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_computed(recipe_file: Path, key: str, value: str, message: str):
    with pytest.raises(ValueError, match=message):
        Recipe.load(recipe_file, {key: value})


def test_a_metric_that_is_not_measured_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="`metric_for_best_model` must be mean_average_precision, got 'loss'"):
        ConceptTrainingArguments(output_dir=str(tmp_path), metric_for_best_model="loss")


def test_a_split_without_captions_is_refused(recipe_file: Path, tmp_path: Path, monkeypatch):
    rows = load_grounding_dataset("scenes", split="val", num_train=1, num_val=2, num_test=0, image_size=64)
    bare = rows.map(lambda row: {"captions": []})
    monkeypatch.setattr("hf_grounding.training.concepts.load_split", lambda recipe, split: bare)
    with pytest.raises(ValueError, match="Split 'train' has no image with captions"):
        train(Recipe.load(recipe_file), tmp_path / "out")
