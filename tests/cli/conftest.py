"""A tiny model, trained once by the command itself, and a way to call the command."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from hf_grounding.cli import app

RECIPE = {
    "description": "Two steps on eight scenes.",
    "dataset": {"name": "scenes", "options": {"num_train": 8, "num_val": 4, "num_test": 2, "image_size": 64}},
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
    "model": {"grid_size": 4, "hidden_size": 16, "visual_hidden_sizes": [16], "word_embedding_size": 8},
    "training": {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "bf16": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
    },
}


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def run(*arguments) -> Answer:
    """`hf-grounding` with these arguments; output is as wide as a long message needs."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # a traceback is never an answer
    return Answer(result.exit_code, result.stdout, result.stderr)


class Trained(NamedTuple):
    recipe: Path
    model: Path
    photo: Path
    answer: Answer


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("cli")
    recipe, photo = folder / "tiny.yaml", folder / "photo.png"
    settings = json.loads(json.dumps(RECIPE))
    settings["backbone"]["feature_dir"] = str(folder / "features")
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    Image.effect_noise((90, 60), 80).convert("RGB").save(photo)
    answer = run("train", recipe, "--output_dir", folder / "model", "--learning_rate", "1e-3", "--json")
    assert answer.code == 0, answer.err
    return Trained(recipe, folder / "model", photo, answer)
