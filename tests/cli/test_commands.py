"""Each command does what its help says: results on stdout, one line with --json, everything else on stderr."""

import errno
import json
import logging.handlers
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import hf_grounding
from hf_grounding.cli import common
from hf_grounding.cli.list import METRICS, MODELS
from hf_grounding.data import list_datasets
from hf_grounding.training.recipe import list_recipes

from .conftest import run

REPO = Path(__file__).resolve().parents[2]


def one_line(text: str) -> dict:
    assert text.count("\n") == 1
    assert text.endswith("\n")
    return json.loads(text)


def test_help_answers_without_torch():
    code = "import sys, hf_grounding.cli; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [[], ["list"], ["train"], ["evaluate"], ["ground"], ["caption"]], ids=" ".join)
def test_help_ends_with_two_worked_examples(command):
    answer = run(*command, "--help")
    assert answer.code == 0
    *_, heading, first, second = answer.out.rstrip().splitlines()
    assert heading.strip() == "Examples:"
    for example in (first, second):
        assert example.strip().startswith(" ".join(["hf-grounding", *command]))


def test_version_is_the_package_s():
    assert run("--version") == (0, f"{hf_grounding.__version__}\n", "")


def test_list_names_everything_with_a_line_each():
    listed = one_line(run("list", "--json").out)
    assert listed["recipes"] == list_recipes()
    assert listed["datasets"] == list_datasets()
    assert set(listed["models"]) == set(MODELS)
    assert set(listed["metrics"]) == set(METRICS)
    plain = run("list").out.splitlines()
    names = [name for kind in listed.values() for name in kind]
    assert len(plain) == len(listed) + len(names)
    assert all(any(line.split()[0] == name and len(line.split()) > 3 for line in plain) for name in names)


def test_listed_models_are_those_transformers_knows_from_us():
    from transformers import CONFIG_MAPPING

    ours = {
        name for name, config in CONFIG_MAPPING._extra_content.items() if config.__module__.startswith("hf_grounding.")
    }
    assert set(MODELS) == ours


def test_train_leaves_model_results_and_report_and_answers_in_one_line(trained):
    results = one_line(trained.answer.out)
    assert results["output_dir"] == str(trained.model)
    assert {"config.json", "model.safetensors", "recipe.yaml", "results.json", "report.html"} <= {
        path.name for path in trained.model.iterdir()
    }
    assert not list(trained.model.glob(".*"))
    saved = json.loads((trained.model / "results.json").read_text())
    assert {name: saved[name] for name in results if name != "output_dir"} == {
        name: value for name, value in results.items() if name != "output_dir"
    }
    assert saved["curve"][0]["step"] == 1
    assert "training loss" in (trained.model / "report.html").read_text()


def test_train_takes_overrides_of_any_setting(trained):
    recipe = yaml.safe_load((trained.model / "recipe.yaml").read_text())
    assert recipe["training"]["learning_rate"] == 1e-3


def test_progress_of_training_goes_to_stderr(trained):
    assert "features of images" in trained.answer.err
    assert "'loss'" in trained.answer.err


def test_default_output_folder_is_named_after_the_recipe(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = run("train", trained.recipe, "--max_steps=1")
    assert answer.code == 0, answer.err
    assert (tmp_path / "runs" / "tiny" / "model.safetensors").exists()
    assert "Phrase grounding, %" in answer.out
    assert answer.out.endswith(f"Model, results and report.html: {Path('runs', 'tiny')}\n")


def test_evaluate_measures_what_training_measured(trained):
    at_the_end, again = one_line(trained.answer.out), one_line(run("evaluate", trained.model, "--json").out)
    for name in ("model", "attention_correctness", "boxes", "baselines"):
        assert again[name] == at_the_end[name]


def test_evaluate_prints_numbers_baselines_protocol_and_levels_and_writes_a_report(trained, tmp_path):
    report = tmp_path / "new" / "report.html"
    answer = run("evaluate", trained.model, "--split", "test", "--box_rule", "union", "--report", report)
    assert answer.code == 0, answer.err
    for words in ("95 % interval", "random point", "image centre", "Level chosen", "split test", "box_rule union"):
        assert words in answer.out
    assert "on test" in report.read_text()
    assert "training loss" in report.read_text()


def test_evaluate_takes_the_data_of_another_recipe_and_regions_as_a_baseline(trained, tmp_path):
    (tmp_path / "model").mkdir()
    for file in trained.model.iterdir():
        if file.is_file() and file.name != "recipe.yaml":
            (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    whole = np.array([[0.0, 0.0, 64.0, 64.0]])
    ids = [f"scene-0-val-{i:06d}" for i in range(4)]
    arrays = {"image_ids": ids, "offsets": range(5), "boxes": whole.repeat(4, axis=0), "class_probs": np.ones((4, 2))}
    np.savez(tmp_path / "val.npz", **{name: np.array(value) for name, value in arrays.items()})
    options = ("--recipe", trained.recipe, "--regions", tmp_path / "{split}.npz", "--json")
    answer = run("evaluate", tmp_path / "model", *options)
    assert answer.code == 0, answer.err
    baselines = one_line(answer.out)["baselines"]
    centre, region = (baselines[name]["pointing_accuracy"] for name in ("image centre", "most confident region"))
    assert region == centre  # the only region is the image
    assert one_line(answer.out)["model"] == one_line(run("evaluate", trained.model, "--json").out)["model"]


def test_what_the_hub_reports_is_printed_once():
    told = logging.handlers.BufferingHandler(capacity=9)
    logging.getLogger().addHandler(told)  # where the command prints too
    try:
        with common.working():
            logging.getLogger("huggingface_hub").warning("Retrying.")
    finally:
        logging.getLogger().removeHandler(told)
    assert logging.getLogger("huggingface_hub").handlers
    assert not told.buffer


def test_a_missing_file_of_regions_leaves_the_baseline_out_and_says_so(trained, caplog):
    answer = run("evaluate", trained.model, "--regions", "nothing_{split}.npz", "--json")
    assert answer.code == 0, answer.err
    assert "most confident region" not in one_line(answer.out)["baselines"]
    assert "No file of regions 'nothing_val.npz'" in caplog.text


def test_ground_prints_a_line_for_each_phrase(trained):
    answer = run("ground", trained.photo, "[a red ball] beside [a box]", "--model", trained.model)
    assert answer.code == 0, answer.err
    first, second = answer.out.splitlines()
    assert first.startswith("a red ball: point (")
    assert second.startswith("a box: point (")


def test_ground_answers_in_one_json_line_and_draws(trained, tmp_path):
    drawing = tmp_path / "new" / "out.png"
    answer = run("ground", trained.photo, "a red ball", "--model", trained.model, "--json", "--draw", drawing)
    grounding = one_line(answer.out)["groundings"][0]
    assert grounding["phrase"] == "a red ball"
    x, y = grounding["point"]
    assert 0 <= x <= 90
    assert 0 <= y <= 60
    assert Image.open(drawing).width == 800
    assert [path.name for path in drawing.parent.iterdir()] == ["out.png"]


def test_ground_names_the_words_that_the_model_does_not_know(trained):
    answer = run("ground", trained.photo, "[a red zebra] and [zorp]", "--model", trained.model, "--json")
    assert answer.code == 0
    assert answer.err == "The model does not know: zebra, zorp.\n"
    assert len(one_line(answer.out)["groundings"]) == 2


def test_ground_is_silent_on_stderr(trained):
    assert run("ground", trained.photo, "a circle", "--model", trained.model).err == ""


def test_ctrl_c_ends_with_one_line(trained, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_grounding.training.run.train", interrupt)
    assert run("train", trained.recipe) == (130, "", "Interrupted.\n")


def test_a_full_disk_ends_with_one_line_and_no_half_picture(trained, tmp_path, monkeypatch):
    def write_some_and_fail(self, path, *_, **__):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Image.Image, "save", write_some_and_fail)
    answer = run("ground", trained.photo, "a circle", "--model", trained.model, "--draw", tmp_path / "out.png")
    assert answer.code == 1
    assert answer.out == ""
    assert answer.err.startswith("Error: [Errno 28] No space left on device")
    assert answer.err.endswith("Free some space, or write to another disk.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_behind_stdout_ends_with_one_line():
    code = "from hf_grounding.cli import main; main()"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code, "list"]
        result = subprocess.run(command, cwd=REPO, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "No space left on device" in result.stderr


def test_an_error_of_ours_names_its_type_and_how_to_see_the_traceback(monkeypatch):
    def broken(*_, **__):
        raise KeyError("lost")

    monkeypatch.setattr("hf_grounding.training.recipe.list_recipes", broken)
    assert run("list") == (1, "", "Error: KeyError: 'lost' (HF_GROUNDING_DEBUG=1 shows where)\n")
    monkeypatch.setenv(common.DEBUG, "1")
    with pytest.raises(KeyError, match="lost"):
        run("list")
