"""Training of the Spatial-Semantic attention captioner: what it learns on scenes, and refusals before it begins."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hf_grounding import SSAttentionCaptioner, SSAttentionProcessor
from hf_grounding.metrics import caption_metrics
from hf_grounding.training.caption_data import load_images
from hf_grounding.training.caption_evaluation import measure_objects
from hf_grounding.training.captioning import build_captioner
from hf_grounding.training.common import load_split
from hf_grounding.training.recipe import Recipe
from hf_grounding.training.report import result_tables
from hf_grounding.training.run import evaluate, train
from tests.training.test_captioning import RECIPE as CAPTIONER

RECIPE = {
    **CAPTIONER,
    "system": "ss_attention",
    "regions": {"max_regions": 8},
    "captions": {"min_count": 1, "num_beams": 2, "min_object_count": 5},
    "model": {"embedding_size": 32, "decoder_hidden_size": 32, "attention_hidden_size": 16, "dropout": 0.05},
    "training": {**CAPTIONER["training"], "scheduled_sampling_increase": 0.0, "eval_steps": 140, "save_steps": 140},
}


@pytest.fixture(scope="module", autouse=True)
def _without_meteor():
    def no_java(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Java takes longer than all else.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_metrics, "meteor", no_java)
        yield


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ss_attention") / "config.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def run(recipe_file: Path) -> Path:
    train(Recipe.load(recipe_file), recipe_file.parent / "run")
    return recipe_file.parent / "run"


def test_trained_it_grounds_objects_better_than_untrained(run: Path, recipe_file: Path):
    results, recipe = json.loads((run / "results.json").read_text()), Recipe.load(recipe_file)
    model, processor = SSAttentionCaptioner.from_pretrained(run), SSAttentionProcessor.from_pretrained(run)
    assert processor.object_words["squares"] == "square"
    assert model.config.num_object_classes == 8  # of the scenes' detector, background included
    rows = load_split(recipe, "val")
    images = load_images(recipe, rows, "val")
    torch.manual_seed(0)
    untrained, _ = build_captioner(recipe, load_split(recipe, "train")["captions"][:], 48, 8)
    floor, found = measure_objects(untrained, processor, rows, images), results["objects"]
    assert found["f1_all"] > floor["f1_all"] + 0.05
    assert found["oracle"]["f1_all"] >= found["f1_all"]
    assert found["region_recall"] > 0.5
    assert found["given_captions"]["grounding_accuracy"] > floor["given_captions"]["grounding_accuracy"]
    # The prior has learned which regions captions speak of: objects, and not the detector's false alarms.
    losses = [each["loss"] for each in results["curve"] if "loss" in each]
    assert losses[-1] < 0.8 * losses[0]


def test_evaluation_repeats_the_scores_of_the_training(run: Path):
    results, saved = evaluate(run), json.loads((run / "results.json").read_text())
    assert results["objects"] == saved["objects"]
    assert results["captions"] == saved["captions"]
    titles = [table.title for table in result_tables(results)]
    assert titles == ["Captions, x 100", "Grounding of objects, %"]


@pytest.mark.parametrize(
    "settings", [{"prior_weight": 0}, {"ss_semantic_input": "visual"}, {"attention_loss_weight": 1}]
)
def test_the_baseline_and_the_ablations_are_overrides(recipe_file: Path, tmp_path: Path, settings):
    overrides = {f"model.{name}": str(value) for name, value in settings.items()}
    short = {"max_steps": "2", "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": "false"}
    results = train(Recipe.load(recipe_file, overrides | short), tmp_path / "run")
    assert 0 <= results["objects"]["f1_loc"] <= 1


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"backbone": {"levels": [-1], "image_size": 32}},
            "A grounded captioner has no settings in section `backbone`",
        ),
        ({"model": {"prior_wieght": 1}}, "has no key `prior_wieght`. Did you mean `prior_weight`"),
        ({"captions": {"min_object_count": 0}}, "`min_object_count` must be 1 or more, got 0"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict({**RECIPE, **change})


def test_a_list_of_classes_that_is_not_there_is_refused(recipe_file: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        train(Recipe.load(recipe_file, {"object_classes": str(tmp_path / "none.txt")}), tmp_path / "run")
