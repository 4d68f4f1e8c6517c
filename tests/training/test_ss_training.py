"""Training of the Spatial-Semantic attention captioner: what it learns on scenes, and refusals before it begins."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from hf_grounding import SSAttentionCaptioner, SSAttentionProcessor
from hf_grounding.cli import app
from hf_grounding.metrics import caption_metrics
from hf_grounding.training.caption_data import CaptionsPerImage, GroundedCaptioningCollator, load_images
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
    "training": {
        **CAPTIONER["training"],
        "bf16": True,
        "scheduled_sampling_increase": 0.0,
        "eval_steps": 140,
        "save_steps": 140,
    },
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


def test_trained_it_knows_which_regions_captions_speak_of(run: Path, recipe_file: Path):
    recipe = Recipe.load(recipe_file)
    model, processor = SSAttentionCaptioner.from_pretrained(run), SSAttentionProcessor.from_pretrained(run)
    assert processor.object_words["squares"] == "square"
    assert model.config.num_object_classes == 8  # of the scenes' detector, background included
    rows = load_split(recipe, "val")
    images = load_images(recipe, rows, "val")
    collator = GroundedCaptioningCollator(processor, images, rows)
    batch = collator([CaptionsPerImage(rows, 5)[number] for number in range(20)])
    real = batch["region_mask"]
    sigma = torch.zeros(real.shape).index_add_(0, batch["image_index"], batch["grounding_targets"]).clamp(max=1)
    assert 0 < sigma.sum() < real.sum()
    beta = model(**batch).region_prior
    spoken, others = beta[sigma == 1].mean(), beta[(sigma == 0) & (real == 1)].mean()  # those are false alarms
    assert spoken > 1.2 * others
    losses = [each["loss"] for each in json.loads((run / "results.json").read_text())["curve"] if "loss" in each]
    assert losses[-1] < 0.8 * losses[0]


def test_the_best_regions_ground_at_least_as_well_as_the_captioners(run: Path):
    objects = json.loads((run / "results.json").read_text())["objects"]
    assert objects["oracle"]["f1_all"] >= objects["f1_all"]
    assert objects["region_recall"] > 0.5
    assert 0 < objects["prior"]["spatial_alive"] <= 1
    assert 0 < objects["prior"]["semantic_alive"] <= 1
    assert 0 < objects["given_captions"]["attention_correctness"] < 1


def test_evaluation_repeats_the_scores_of_the_training(run: Path):
    results, saved = evaluate(run), json.loads((run / "results.json").read_text())
    assert results["objects"] == saved["objects"]
    assert results["captions"] == saved["captions"]
    titles = [table.title for table in result_tables(results)]
    assert titles == ["Captions, x 100", "Grounding of objects, %"]


SHORT = {
    "max_steps": "2",
    "logging_steps": "1",
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": "false",
}


def _short_run(
    recipe_file: Path, folder: Path, settings: dict[str, str]
) -> tuple[SSAttentionCaptioner, dict[str, Any]]:
    results = train(Recipe.load(recipe_file, SHORT | settings), folder)
    return SSAttentionCaptioner.from_pretrained(folder), results


def test_the_baseline_and_the_ablations_are_overrides(recipe_file: Path, tmp_path: Path):
    model, results = _short_run(recipe_file, tmp_path / "plain", {"prior_weight": "0"})
    assert model.decoder.prior is None
    assert "prior" not in results["objects"]
    settings = {"ss_semantic_input": "visual", "iou_plus_one": "false", "ignore_unmatched_boxes": "false"}
    model, results = _short_run(recipe_file, tmp_path / "places", settings)
    assert model.decoder.prior.semantic.in_features == model.config.feature_dim
    processor = SSAttentionProcessor.from_pretrained(tmp_path / "places")
    assert (processor.iou_plus_one, processor.ignore_unmatched_boxes) == (False, False)


def test_the_parts_of_the_loss_are_logged_beside_their_sum(recipe_file: Path, tmp_path: Path):
    weights = {"grounding_loss_weight": "2", "attention_loss_weight": "3"}
    _, results = _short_run(recipe_file, tmp_path / "run", weights)
    steps = [entry for entry in results["curve"] if "loss" in entry]
    assert len(steps) == 2
    for entry in steps:
        parts = entry["caption_loss"] + 2 * entry["grounding_loss"] + 3 * entry["attention_loss"]
        assert entry["attention_loss"] > 0
        assert entry["loss"] == pytest.approx(parts, rel=1e-4)


def test_the_file_of_grounded_captions_is_scored_as_it_is(run: Path, tmp_path: Path):
    results = evaluate(run, grounded_captions=tmp_path / "written.json")
    files = [str(tmp_path / "written.json"), "--annotations", str(tmp_path / "written_references.json")]
    answer = CliRunner().invoke(app, ["evaluate", *files, "--json"])
    assert answer.exit_code == 0, answer.output
    scores = json.loads(answer.stdout)
    assert results["objects"]["f1_all"] > 0
    for name in ("f1_all", "f1_loc", "num_classes"):
        assert scores[name] == pytest.approx(results["objects"][name])


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


def test_a_list_of_classes_that_is_not_there_is_refused_before_the_data_are_read(tmp_path: Path):
    recipe = Recipe.from_dict({**RECIPE, "captions": {"object_classes": str(tmp_path / "none.txt")}})
    recipe.dataset.name = "nothing"
    with pytest.raises(FileNotFoundError, match=r"No list of object classes .*none.txt.*a name on each line"):
        train(recipe, tmp_path / "run")


def test_a_list_of_classes_that_no_caption_uses_is_refused(recipe_file: Path, tmp_path: Path):
    (tmp_path / "classes.txt").write_text("zebra\n")
    with pytest.raises(ValueError, match=r"None of the 1 object classes .* such as 'zebra', is a word of the training"):
        train(Recipe.load(recipe_file, {"object_classes": str(tmp_path / "classes.txt")}), tmp_path / "run")


def test_another_number_of_classes_than_the_regions_have_is_refused(recipe_file: Path, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"have 8 classes, and `num_object_classes` is 1601; set `--num_object_classes 8`"
    ):
        train(Recipe.load(recipe_file, {"num_object_classes": "1601"}), tmp_path / "run")
