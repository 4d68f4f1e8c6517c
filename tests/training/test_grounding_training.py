"""Training of phrase grounding: resuming, several processes, mirroring, schedules, and what a run leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_grounding import MultiLevelGroundingModel, load_grounding_dataset
from hf_grounding.data.feature_store import FeatureStore, FeatureStoreWriter
from hf_grounding.training.checkpoints import last_complete_checkpoint
from hf_grounding.training.common import load_split
from hf_grounding.training.features import feature_store, read_inputs
from hf_grounding.training.grounding_data import CaptionPerImage, GroundingCollator, mirror
from hf_grounding.training.grounding_evaluation import box_accuracy, predict_groundings, score_groundings
from hf_grounding.training.grounding_trainer import GroundingTrainer, GroundingTrainingArguments
from hf_grounding.training.recipe import Recipe
from hf_grounding.training.run import build_model, train

ROOT = Path(__file__).resolve().parents[2]

RECIPE = {
    "description": "tiny",
    "dataset": {"name": "scenes", "options": {"num_train": 24, "num_val": 6, "num_test": 0, "image_size": 64}},
    "backbone": {
        "config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
        "levels": [1, 2],
        "image_size": 64,
    },
    "model": {
        "supervision": "boxes",
        "grid_size": 4,
        "hidden_size": 12,
        "visual_hidden_sizes": [12],
        "word_embedding_size": 6,
    },
    "training": {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
        "optim": "sgd",
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    recipe = json.loads(json.dumps(RECIPE))
    recipe["backbone"]["feature_dir"] = str(tmp_path / "features")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


SCRIPT = """
import sys, time
from hf_grounding.training.recipe import Recipe
from hf_grounding.training import run, grounding_trainer
if sys.argv[3:] == ["slowly"]:
    step = grounding_trainer.GroundingTrainer.training_step
    def slow(self, *args, **kwargs):
        time.sleep(0.5)
        return step(self, *args, **kwargs)
    grounding_trainer.GroundingTrainer.training_step = slow
run.train(Recipe.load(sys.argv[1]), sys.argv[2], resume=sys.argv[3:] == ["resume"])
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def _losses(results: Path) -> dict[int, float]:
    curve = json.loads((results / "results.json").read_text())["curve"]
    return {entry["step"]: entry["loss"] for entry in curve if "loss" in entry}


def test_a_run_killed_and_resumed_has_the_losses_of_an_uninterrupted_one(recipe_file: Path, tmp_path: Path):
    run = [sys.executable, "-c", SCRIPT, str(recipe_file)]
    # In a process of its own too: the number of threads changes the order of sums, and with it the last digit.
    subprocess.run([*run, str(tmp_path / "whole")], env=_environment(), check=True, capture_output=True)
    call = [*run, str(tmp_path / "killed")]
    process = subprocess.Popen(
        [*call, "slowly"], env=_environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.time() + 120
    while not list((tmp_path / "killed").glob("checkpoint-4/trainer_state.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.time() < deadline, "the run has no checkpoint after two minutes"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    half_written = tmp_path / "killed" / "checkpoint-7"  # what a kill in the middle of saving leaves
    half_written.mkdir()
    (half_written / "trainer_state.json").write_text('{"epoch": 2.')
    subprocess.run([*call, "resume"], env=_environment(), check=True, capture_output=True)
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.parametrize("supervision", ["weak", "boxes"])
def test_two_processes_train_the_model_of_one_with_the_same_global_batch(
    recipe_file: Path, tmp_path: Path, supervision: str
):
    values = yaml.safe_load(recipe_file.read_text())
    values["model"]["supervision"] = supervision
    recipe_file.write_text(yaml.safe_dump(values))
    train(Recipe.load(recipe_file), tmp_path / "one")
    values["training"]["per_device_train_batch_size"] = 4
    recipe_file.write_text(yaml.safe_dump(values))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        str(recipe_file),
        str(tmp_path / "two"),
    ]
    done = subprocess.run([sys.executable, *command], env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    untrained = load_file(tmp_path / "one" / "checkpoint-2" / "model.safetensors")
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-6, rtol=1e-4)
    assert any(not torch.equal(one[name], untrained[name]) for name in one)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[0]["model"]["count"] == results[1]["model"]["count"]


def test_a_run_leaves_a_loadable_model_its_recipe_results_and_report(recipe_file: Path, tmp_path: Path):
    results = train(Recipe.load(recipe_file, {"max_steps": "2"}), tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "recipe.yaml",
        "results.json",
        "report.html",
    } <= files
    assert ".saving" not in files
    MultiLevelGroundingModel.from_pretrained(tmp_path / "run")
    assert Recipe.load(tmp_path / "run").training["max_steps"] == 2
    assert 0 <= results["model"]["pointing_accuracy"] <= 1
    assert set(results["baselines"]) == {"random point", "image centre"}


def test_features_are_reused_until_backbone_or_images_change(recipe_file: Path, tmp_path: Path):
    folder = tmp_path / "features"
    train(Recipe.load(recipe_file, {"max_steps": "1"}), tmp_path / "a")
    first = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    train(Recipe.load(recipe_file, {"max_steps": "1"}), tmp_path / "b")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == first
    train(Recipe.load(recipe_file, {"max_steps": "1", "training.seed": "5"}), tmp_path / "c")  # other random backbone
    assert len(list(folder.iterdir())) == 2 * len(first)


def test_no_complete_checkpoint_to_resume_from_is_an_error(recipe_file: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no complete checkpoint to resume from"):
        train(Recipe.load(recipe_file), tmp_path / "new", resume=True)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        last_complete_checkpoint(tmp_path)


def test_a_damaged_checkpoint_is_passed_over_and_a_run_is_not_mixed_with_another(recipe_file: Path, tmp_path: Path):
    folder = tmp_path / "run"
    settings = {"max_steps": "4", "save_strategy": "steps", "save_steps": "1", "load_best_model_at_end": "false"}
    train(Recipe.load(recipe_file, settings), folder)
    newest, *older = sorted(folder.glob("checkpoint-*"), reverse=True)
    (folder / "checkpoint-new").mkdir()  # no number: someone's own
    assert last_complete_checkpoint(folder) == str(newest)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        whole = (newest / name).read_bytes()
        (newest / name).write_bytes(whole[:-40])
        assert last_complete_checkpoint(folder) == str(older[0])
        (newest / name).write_bytes(whole)
    (newest / "optimizer.pt").unlink()
    assert last_complete_checkpoint(folder) == str(older[0])

    with pytest.raises(FileExistsError, match="holds an earlier run"):
        train(Recipe.load(recipe_file, settings), folder)
    with pytest.raises(ValueError, match=r"other settings: `model.gamma_2` was .* and is 3.0; `training.seed` was"):
        train(Recipe.load(recipe_file, settings | {"gamma_2": "3.0", "training.seed": "8"}), folder, resume=True)
    resumed = train(Recipe.load(recipe_file, settings | {"box_rule": "union"}), folder, resume=True)
    assert resumed["model"]["protocol"]["box_rule"] == "union"
    assert (newest / "optimizer.pt").exists(), "the last step was taken again"


def test_each_epoch_draws_one_caption_of_every_image_from_seed_epoch_and_image_alone():
    rows = load_grounding_dataset("scenes", split="train", num_train=12, num_val=0, num_test=0, image_size=64)
    data = CaptionPerImage(rows, seed=3, flip=True)
    first = [data[i] for i in range(12)]
    assert [data[i] for i in reversed(range(12))] == first[::-1]
    data.set_epoch(1)
    second = [data[i] for i in range(12)]
    assert [example["image_id"] for example in second] == [example["image_id"] for example in first]
    assert second != first
    assert {example["flipped"] for example in first + second} == {True, False}
    for example, row in zip(first, rows, strict=True):
        assert example["flipped"] or example["caption"] in row["captions"]
        for phrase in example["phrases"]:
            words = example["caption"].split()[phrase["start"] : phrase["end"]]
            assert example["flipped"] or " ".join(words) == phrase["phrase"]


def test_mirroring_moves_boxes_to_the_other_side_and_swaps_left_and_right():
    example = {
        "size": (50, 100),
        "caption": "a dog left of a cat",
        "phrases": [{"start": 0, "end": 2, "boxes": [[10.0, 5.0, 30.0, 40.0]]}],
    }
    mirrored = mirror(example)
    assert mirrored["caption"] == "a dog right of a cat"
    assert mirrored["phrases"][0]["boxes"] == [[70.0, 5.0, 90.0, 40.0]]
    assert mirror(mirrored) == example
    assert mirror(example | {"caption": "Left, of it: right."})["caption"] == "right, of it: left."


def test_a_batch_reads_mirrored_examples_from_the_mirrored_images(tmp_path: Path):
    stores = []
    for name, sign in (("plain", 1), ("mirrored", -1)):
        with FeatureStoreWriter(tmp_path / name, ["a", "b", "c"], {"levels": [1]}) as writer:
            writer.write([sign * np.arange(1, 4, dtype=np.float16).reshape(3, 1, 1, 1)])
        stores.append(FeatureStore(tmp_path / name))
    examples = [
        {"image_id": image_id, "caption": image_id, "phrases": [], "size": (1, 1), "flipped": image_id == "b"}
        for image_id in "abc"
    ]
    inputs = GroundingCollator(dict, *stores)(examples)
    assert inputs["text"] == ["a", "c", "b"]
    assert inputs["feature_maps"][0].flatten().tolist() == [1.0, 3.0, -2.0]


def test_images_without_captions_are_left_out_of_the_evaluation(recipe_file: Path, tmp_path: Path):
    recipe = Recipe.load(recipe_file)
    rows = load_split(recipe, "val")
    model, processor = build_model(recipe, rows["captions"][0])
    store = feature_store(model, processor, rows, tmp_path / "features")
    bare = rows.map(lambda row, index: {"captions": row["captions"] * (index in (1, 2))}, with_indices=True)
    results, _ = predict_groundings(model, processor, bare, store, batch_size=2)
    expected, _ = predict_groundings(model, processor, rows.select([1, 2]), store)
    assert results["image_id"] == expected["image_id"]
    assert np.allclose(results["point"], expected["point"], equal_nan=True)


def test_a_backbone_needs_the_photos_of_the_data_set(recipe_file: Path, tmp_path: Path):
    recipe = Recipe.load(recipe_file)
    rows = load_split(recipe, "val")
    model, processor = build_model(recipe, rows["captions"][0])
    without = rows.remove_columns("image").map(lambda _: {"image": None}, features=rows.features)
    with pytest.raises(ValueError, match=f"Image '{rows['image_id'][0]}' of the data set has no photo, which the back"):
        feature_store(model, processor, without, tmp_path / "features")


def test_every_phrase_and_every_word_is_predicted_and_the_metrics_decide_which_count(recipe_file: Path, tmp_path: Path):
    recipe = Recipe.load(recipe_file)
    rows = load_split(recipe, "val").select([0, 1])
    model, processor = build_model(recipe, rows["captions"][0])
    store = feature_store(model, processor, rows, tmp_path / "features")
    bare = rows.map(
        lambda row: {"phrases": [{**phrase, "boxes": []} for phrase in row["phrases"][:1]] + row["phrases"][1:]}
    )
    predictions, captions = predict_groundings(model, processor, bare, store)
    assert len(predictions["phrase"]) == sum(map(len, rows["phrases"]))
    scores = score_groundings(predictions, captions, model.config.num_levels, num_resamples=0)
    assert scores["model"]["skipped"]["no_boxes"] == 2
    with torch.no_grad():
        inputs = processor(text=rows["captions"])
        inputs.update(read_inputs(store, rows["image_id"]))
        outputs = model(**inputs)
    answered = (outputs.word_scores > 0) & inputs["word_mask"].bool()
    assert scores["levels"]["count"] == answered.sum()
    assert scores["levels"]["average"][1] == pytest.approx((outputs.word_levels[answered] == 1).float().mean().item())
    assert scores["levels"]["sentence"]["rates"][1] == pytest.approx(outputs.sentence_levels.float().mean().item())


def test_a_training_split_smaller_than_a_batch_is_refused_before_anything_is_computed(
    recipe_file: Path, tmp_path: Path
):
    recipe = Recipe.load(recipe_file, {"dataset.options.num_train": "7"})
    with pytest.raises(ValueError, match="has 7 images, which do not fill one batch of 8; lower `per_device_train_b"):
        train(recipe, tmp_path / "out")


def test_evaluation_without_the_maps_of_its_images_says_what_is_missing(tmp_path: Path):
    args = GroundingTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = GroundingTrainer(model=torch.nn.Linear(1, 1), args=args, eval_dataset=[0])
    with pytest.raises(ValueError, match="Evaluation needs `eval_store`"):
        trainer.evaluate()


def test_the_learning_rate_is_halved_when_the_named_epochs_are_done(tmp_path: Path):
    args = GroundingTrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=20,
        learning_rate=1e-3,
        halve_learning_rate_at=[9, 14],
        use_cpu=True,
        report_to="none",
    )
    trainer = GroundingTrainer(model=torch.nn.Linear(1, 1), args=args, train_dataset=[0] * 80)
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(num_training_steps=200)  # 10 steps an epoch
    rates = []
    for _ in range(200):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        scheduler.step()
    # The authors' notebooks: 1e-3 in epochs 0-8, 5e-4 in 9-13, 2.5e-4 from 14 on.
    assert rates == [1e-3] * 90 + [5e-4] * 50 + [2.5e-4] * 60


def test_box_accuracy_needs_half_of_the_union_with_any_box():
    # 10 x 10 against 10 x 20 around it: IoU 100 / 200 = .5 counts; against 10 x 21: 100 / 210 does not.
    truth = [[[0, 0, 10, 20]], [[50, 50, 60, 60], [0, 0, 10, 21]], [[0, 0, 1, 1]]]
    predicted = [[0, 0, 10, 10], [0, 0, 10, 10], [np.nan] * 4]
    assert box_accuracy(predicted, truth) == {"box_accuracy": 1 / 3, "count": 3}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", "{a", "The value of `seed` cannot be read"),
        ("box_rule", "unoin", "Section `evaluation` of the recipe"),
        ("query_heatmap", "words", "Section `evaluation` of the recipe"),
        ("model.vocab_size", "40", "has no key `vocab_size`"),
        ("learning_rat", "1", "Did you mean `learning_rate`"),
        ("data.options.num_train", "8", "Section `recipe` has no key `data`"),
        ("seed.value", "8", "Section `recipe` has no key `seed`"),
        ("description.first", "8", "`description` of the recipe is no section, so `description.first` cannot be set"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_computed(recipe_file: Path, key: str, value: str, message: str):
    with pytest.raises(ValueError, match=message):
        Recipe.load(recipe_file, {key: value})


def test_strategies_may_be_switched_off_by_a_bare_no(recipe_file: Path):
    assert Recipe.load(recipe_file, {"save_strategy": "no"}).training["save_strategy"] == "no"
