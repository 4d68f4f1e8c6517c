"""Training of captioners: what it learns, resuming, several processes, photos, and refusals before it begins."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from hf_grounding.data.region_store import RegionStoreWriter
from hf_grounding.data.scene_regions import SceneDetector
from hf_grounding.metrics import caption_metrics
from hf_grounding.metrics.cider import cider
from hf_grounding.modeling.modeling_mia import MIAForCaptioning
from hf_grounding.processing.concepts import write_image_concepts
from hf_grounding.processing.processing_mia import MIAProcessor
from hf_grounding.processing.regions import Regions, grid_boxes
from hf_grounding.training import captioning
from hf_grounding.training.caption_data import CaptionsPerImage, load_images
from hf_grounding.training.caption_evaluation import ground_captions, score_captions, write_captions
from hf_grounding.training.captioning import build_captioner
from hf_grounding.training.common import load_split
from hf_grounding.training.recipe import Recipe
from hf_grounding.training.run import evaluate, train

ROOT = Path(__file__).resolve().parents[2]

RECIPE = {
    "description": "tiny",
    "system": "mia",
    "dataset": {
        "name": "scenes",
        "options": {"num_train": 60, "num_val": 20, "num_test": 0, "image_size": 64, "attributes": ["color", "shape"]},
    },
    "regions": {"max_regions": 6, "max_concepts": 6},
    "captions": {"min_count": 1, "num_beams": 2},
    "model": {
        "decoder_type": "visual_attention",
        "hidden_size": 32,
        "embedding_size": 32,
        "attention_hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "mia_iterations": 1,
        "mia_dropout": 0.05,
        "dropout": 0.05,
    },
    "training": {
        "num_train_epochs": 14,
        "per_device_train_batch_size": 6,
        "captions_per_image": 4,
        "learning_rate": 1e-2,
        "max_grad_value": 0.1,
        "lr_decay_factor": 0.7,
        "lr_decay_every": 2,
        "lr_decay_start": 4,
        "scheduled_sampling_increase": 0.05,
        "scheduled_sampling_every": 6,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 70,
        "save_steps": 70,
        "load_best_model_at_end": True,
        "logging_steps": 10,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


def _no_java(*_: Any, **__: Any) -> Any:
    raise RuntimeError("Java takes longer than all else.")


@pytest.fixture(scope="module", autouse=True)
def _without_meteor():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_metrics, "meteor", _no_java)
        yield


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("captioning") / "config.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def run(recipe_file: Path) -> Path:
    folder = recipe_file.parent / "run"
    train(Recipe.load(recipe_file), folder)
    return folder


def _results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


# A whole run


def test_a_captioner_of_scenes_knows_that_its_regions_were_simulated(run: Path, recipe_file: Path):
    recipe, processor = Recipe.load(recipe_file), MIAProcessor.from_pretrained(run)
    scenes = load_split(recipe, "val")
    regions = SceneDetector(**processor.extraction["scene_detector"])(scenes[0])
    assert regions.settings == load_images(recipe, scenes, "val").regions[scenes["image_id"][0]].settings


def test_the_loss_falls_and_captions_are_those_of_their_images(run: Path, recipe_file: Path):
    results = _results(run)
    losses = [entry["loss"] for entry in results["curve"] if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    recipe = Recipe.load(recipe_file)
    rows = load_split(recipe, "val")
    images, ids, references = load_images(recipe, rows, "val"), rows["image_id"][:], rows["captions"][:]
    model, processor = MIAForCaptioning.from_pretrained(run), MIAProcessor.from_pretrained(run)
    own = cider(write_captions(model, processor, images, ids), references)["cider_d"]
    of_others = cider(write_captions(model, processor, images, ids[1:] + ids[:1]), references)["cider_d"]
    torch.manual_seed(0)
    untrained, _ = build_captioner(recipe, references, model.config.feature_dim)
    assert own > of_others + 0.2
    assert own > cider(write_captions(untrained, processor, images, ids), references)["cider_d"] + 0.2
    # An image's caption does not depend on the others in its batch, which are padded to one length.
    assert write_captions(model, processor, images, ids, batch_size=1) == write_captions(model, processor, images, ids)
    best = max(entry["eval_cider_d"] for entry in results["curve"] if "eval_cider_d" in entry)
    assert own == pytest.approx(best)


def test_evaluation_repeats_the_numbers_of_the_training(run: Path):
    results, saved = evaluate(run), _results(run)
    assert results["captions"] == saved["captions"]
    assert (results["split"], results["num_images"], results["num_beams"]) == ("val", 20, 2)
    assert set(results["captions"]["absent"]) == {"meteor"}
    assert evaluate(run, split="val[:5]")["num_images"] == 5
    with pytest.raises(ValueError, match=r"`box_rule` is of phrase grounding, and .* holds a captioner"):
        evaluate(run, box_rule="any")
    with pytest.raises(ValueError, match="holds a mia, and the recipe is of a multilevel_grounding"):
        evaluate(run, recipe="multilevel_scenes")


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(run: Path, recipe_file: Path, tmp_path: Path):
    for path in run.iterdir():  # as it was when its first checkpoint was there
        if path.name in ("recipe.yaml", "checkpoint-70"):
            (tmp_path / path.name).symlink_to(path)
    train(Recipe.load(recipe_file), tmp_path, resume=True)
    whole, resumed = (load_file(folder / "checkpoint-140" / "model.safetensors") for folder in (run, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert _results(tmp_path)["captions"] == _results(run)["captions"]
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        train(Recipe.load(recipe_file), tmp_path)
    with pytest.raises(ValueError, match=r"other settings: `captions.num_beams` was 2 and is 5"):
        train(Recipe.load(recipe_file, {"num_beams": "5"}), tmp_path, resume=True)


def test_batches_read_by_workers_train_the_same_model(recipe_file: Path, tmp_path: Path):
    weights = []
    for workers in (0, 1):  # two epochs, since workers must hear of the second
        settings = {"max_steps": "4", "per_device_train_batch_size": "30", "save_steps": "4", "eval_steps": "4"}
        folder = tmp_path / str(workers)
        train(Recipe.load(recipe_file, settings | {"dataloader_num_workers": str(workers)}), folder)
        weights.append(load_file(folder / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


SCRIPT = """
import sys
from hf_grounding.metrics import caption_metrics
from hf_grounding.training import captioning, run
from hf_grounding.training.recipe import Recipe
def no_java(*args, **kwargs):
    raise RuntimeError("Java takes longer than all else.")
caption_metrics.meteor = no_java
written = []
write = captioning.write_results
captioning.write_results = lambda *args: (written.append(args), write(*args))
results = run.train(Recipe.load(sys.argv[1]), sys.argv[2])
print("DONE", len(written), results["captions"]["cider_d"], results["captions"]["mean_length"])
"""


def test_two_processes_measure_one_model_and_write_its_results_once(recipe_file: Path, tmp_path: Path):
    values = yaml.safe_load(recipe_file.read_text())
    values["training"] |= {"per_device_train_batch_size": 5, "num_train_epochs": 2, "eval_steps": 6, "save_steps": 6}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "script.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    arguments = [str(tmp_path / "config.yaml"), str(tmp_path / "two")]
    done = subprocess.run([sys.executable, *command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = sorted(line.split() for line in done.stdout.splitlines() if line.startswith("DONE"))
    assert (first[1], second[1]) == ("0", "1")
    assert first[2:] == second[2:]
    results = _results(tmp_path / "two")
    assert results["captions"] == evaluate(tmp_path / "two")["captions"]
    # 60 images in batches of twice 5: 6 steps an epoch
    assert [entry["step"] for entry in results["curve"] if "eval_cider_d" in entry] == [6, 12]


# Photos in place of regions


@pytest.fixture(scope="module")
def photo_recipe(tmp_path_factory) -> Path:
    """A recipe whose captioner reads the photos themselves."""
    values = copy.deepcopy(RECIPE)
    values["dataset"]["options"] |= {"num_train": 12, "num_val": 4}
    network = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    values["backbone"] = {"config": {"model_type": "resnet", **network}, "levels": [2], "image_size": 32}
    values["model"] |= {"freeze_backbone": False, "backbone_trainable_from": 1}
    values["training"] |= {"num_train_epochs": 2, "eval_steps": 2, "save_steps": 2, "backbone_learning_rate": 1e-3}
    path = tmp_path_factory.mktemp("photos") / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_with_a_backbone_trains_a_captioner_that_reads_photos(photo_recipe: Path):
    folder = photo_recipe.parent / "run"
    train(Recipe.load(photo_recipe), folder)
    results = _results(folder)
    assert results["num_images"] == 4
    # There are no features to find similar photos by.
    assert set(results["baselines"]) == {"one reference against the others"}
    assert (folder / "report.html").is_file()
    assert evaluate(folder)["captions"] == results["captions"]
    model, processor = MIAForCaptioning.from_pretrained(folder), MIAProcessor.from_pretrained(folder)
    assert processor.image_processor.size == {"height": 32, "width": 32}
    assert model.config.feature_dim == 8
    recipe = Recipe.load(folder)
    rows = load_split(recipe, "val")
    (written,) = ground_captions(model, processor, load_images(recipe, rows, "val"), rows["image_id"][:1])
    assert written.regions.boxes.tolist() == grid_boxes(4, 4, (64, 64)).tolist()


def test_photos_are_upright_and_black_where_the_image_is_withheld(photo_recipe: Path):
    recipe = Recipe.load(photo_recipe)
    rows = load_split(recipe, "val")
    shown = load_images(recipe, rows, "val").read(rows["image_id"][:2])
    assert set(shown) == {"images", "concepts"}
    assert [np.array(photo).tolist() for photo in shown["images"]] == [
        np.array(rows[i]["image"].convert("RGB")).tolist() for i in range(2)
    ]
    recipe.images.withhold_image = True
    withheld = load_images(recipe, rows, "val").read(rows["image_id"][:2])
    assert withheld["concepts"] == [[], []]
    assert all(photo.size == (64, 64) and not np.array(photo).any() for photo in withheld["images"])


def test_regions_do_not_go_with_a_backbone(photo_recipe: Path):
    with pytest.raises(ValueError, match=r"reads photos; leave out `regions.store` and `regions.scene_detector`"):
        Recipe.load(photo_recipe, {"regions.scene_detector": "{miss_rate: 0.1}"})


def test_a_captioner_of_concepts_alone_has_no_use_for_a_backbone(photo_recipe: Path):
    blind = {"model.decoder_type": "concept_attention", "mia_iterations": "0"}
    with pytest.raises(ValueError, match="decoder 'concept_attention' reads concepts alone; leave `backbone` out"):
        build_captioner(Recipe.load(photo_recipe, blind), [["a dog"]], None)


# Captions of an epoch


def test_captions_are_drawn_anew_every_epoch_from_seed_epoch_and_image_alone():
    captions = [[f"caption {i} of {name}" for i in range(5)] for name in "abcdef"]
    rows = Dataset.from_dict({"image_id": list("abcdef"), "captions": captions})

    def drawn(seed: int, epoch: int, **options: Any) -> list[dict[str, Any]]:
        data = CaptionsPerImage(rows, 2, seed)
        data.set_epoch(epoch)
        return [row for batch in DataLoader(data, batch_size=2, collate_fn=list, **options) for row in batch]

    first = drawn(0, 0)
    assert [row["image_id"] for row in first] == list("abcdef")
    for row, all_of_it in zip(first, captions, strict=True):
        assert len(set(row["captions"])) == 2
        assert set(row["captions"]) <= set(all_of_it)
    assert drawn(0, 0) == first
    assert drawn(0, 0, num_workers=2) == first
    alone = CaptionsPerImage(rows.select([3]), 2, 0)
    assert alone[0] == first[3]
    assert drawn(0, 1) != first
    assert drawn(1, 0) != first
    assert [row["captions"] for row in CaptionsPerImage(rows, 5, 0)] == captions  # nothing is drawn where all are read


# Refusals


def regions_of(image_id: str, dim: int = 8, count: int = 2) -> Regions:
    rng = np.random.default_rng(ord(image_id[0]))
    boxes = np.tile(np.array([[0, 0, 5, 5]], dtype=np.float32), (count, 1))
    features = rng.normal(size=(count, dim)).astype(np.float32)
    return Regions(image_id, (10, 10), boxes, region_features=features, detector="test")


ALL = ["11", "12", "13", "21", "22", "23"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> Path:
    """A recipe on "photos", three in each split, with a store and concepts, of which tests take something away."""
    names = {"train": ALL[:3], "val": ALL[3:]}
    captions = [["a dog", "a red dog"], ["a cat"], ["a dog and a cat"]]
    photos = [Image.new("RGB", (10, 10))] * len(captions)
    rows = {
        split: Dataset.from_dict({"image_id": ids, "captions": captions, "image": photos})
        for split, ids in names.items()
    }
    monkeypatch.setattr(captioning, "load_split", lambda recipe, split: rows[split])
    monkeypatch.setattr("hf_grounding.training.run.load_split", lambda recipe, split: rows[split])
    _write_store(tmp_path / "store", [regions_of(name) for name in ALL])
    write_image_concepts(tmp_path / "concepts.json", {int(name): ["dog"] for name in ALL})
    recipe = json.loads(json.dumps(RECIPE))
    recipe["dataset"] = {"name": "flickr30k_entities"}
    recipe["regions"] |= {"store": str(tmp_path / "store"), "concepts": str(tmp_path / "concepts.json")}
    recipe["regions"]["extraction"] = {"detector": "somewhere"}
    recipe["training"] |= {"max_steps": 1, "eval_steps": 1, "save_steps": 1, "per_device_train_batch_size": 3}
    path = tmp_path / "photos.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _write_store(folder: Path, regions: list[Regions]) -> None:
    with RegionStoreWriter(folder, {}, detector="test") as writer:
        for record in regions:
            writer.add(record)


def test_a_store_and_concepts_of_files_train_a_captioner_that_knows_where_they_came_from(photos: Path, tmp_path: Path):
    results = train(Recipe.load(photos), tmp_path / "run")
    assert results["num_images"] == 3
    assert MIAProcessor.from_pretrained(tmp_path / "run").extraction == {"detector": "somewhere"}
    _write_store(tmp_path / "other", [regions_of(name, dim=5) for name in ("21", "22", "23")])
    recipe = yaml.safe_load(photos.read_text())
    recipe["regions"]["store"] = str(tmp_path / "other")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(
        ValueError, match=r"must be \(batch, num_regions, 8\) \(`config.feature_dim`\), got \(3, 2, 5\)"
    ):
        evaluate(tmp_path / "run", recipe=tmp_path / "other.yaml")


def test_images_without_regions_or_concepts_are_named(photos: Path, tmp_path: Path):
    def refused(message: str, **settings: Any) -> None:
        overrides = {f"regions.{name}": str(value) for name, value in settings.items()}
        with pytest.raises(ValueError, match=message):
            train(Recipe.load(photos, overrides), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    _write_store(tmp_path / "part", [regions_of(name) for name in ("11", "13", "21", "22", "23")])
    refused("1 of 3 images of 'train' have no regions, such as '12'; .*extract-features", store=tmp_path / "part")
    _write_store(tmp_path / "none", [regions_of(name, count=int(name != "22")) for name in ALL])
    refused("In 1 of 3 images of 'val' no region was found, such as '22'", store=tmp_path / "none")
    write_image_concepts(tmp_path / "some.json", {11: ["dog"], 12: ["dog"], 13: ["dog"], 21: ["dog"]})
    refused(
        "2 of 3 images of 'val' have no concepts, such as '22'; .*extract-concepts", concepts=tmp_path / "some.json"
    )
    (tmp_path / "cut.json").write_text((tmp_path / "some.json").read_text()[:40])
    refused("cut.json is not JSON, or is cut off", concepts=tmp_path / "cut.json")
    refused("reads concepts, and section `regions` names no `concepts`", concepts="null")
    refused("Section `regions` names no `store`; make one with `hf-grounding extract-features`", store="null")
    bare = [regions_of(name) for name in ALL]
    for record in bare:
        record.region_features = None
    _write_store(tmp_path / "bare", bare)
    refused("The regions have no features; extract them again with a `--backbone`", store=tmp_path / "bare")


def test_without_the_module_no_concepts_are_needed(photos: Path, tmp_path: Path):
    settings = {"regions.concepts": "null", "mia_iterations": "0"}
    assert train(Recipe.load(photos, settings), tmp_path / "run")["epochs"] == 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_without_captions_are_named_before_anything_is_computed(recipe_file: Path, tmp_path: Path, split: str):
    recipe = Recipe.load(recipe_file, {"dataset.options.num_train": "3", "dataset.options.num_val": "3"})

    def bare(recipe: Recipe, name: str) -> Dataset:
        rows = load_split(recipe, name)
        return rows.map(lambda row, i: {"captions": row["captions"] * (name != split or i != 1)}, with_indices=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioning, "load_split", bare)
        with pytest.raises(
            ValueError, match=f"1 images of '{split}' have no caption, such as 'scene-0-{split}-000001'"
        ):
            train(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_says_the_same_of_all_images_is_reported(caplog):
    references = [["a dog runs"]] * 20
    scores = score_captions(["a dog"] * 20, references)["captions"]
    assert "Only 1 distinct captions for 20 images." in caplog.text
    assert (scores["distinct"], scores["mean_length"], scores["vocabulary"]) == (1, 2, 2)
    caplog.clear()
    score_captions(["a dog"] * 19 + ["a cat"], references)
    score_captions(["a dog"] * 19, references[:19])  # so few may well be alike
    assert not caplog.text
