"""What the command answers to mistakes: one line that says what is wrong, the right exit code, no traceback."""

import json
import re
import shutil

import pytest
import yaml
from PIL import Image

from .conftest import run


@pytest.fixture
def places(trained, tmp_path):
    """Good things and broken ones, by the names the cases below use in their arguments."""
    photo = Image.open(trained.photo)
    photo.save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("This is no photo.")
    (tmp_path / "folder").mkdir()

    def broken_model(name, file, content):
        shutil.copytree(trained.model, tmp_path / name)
        (tmp_path / name / file).unlink()
        if content is not None:
            (tmp_path / name / file).write_bytes(content)

    weights = (trained.model / "model.safetensors").read_bytes()
    broken_model("cut_weights", "model.safetensors", weights[: len(weights) // 2])
    broken_model("no_weights", "model.safetensors", None)
    broken_model("no_processor", "processor_config.json", None)
    broken_model("no_recipe", "recipe.yaml", None)
    broken_model("bad_config", "config.json", b"{")
    broken_model("other_model", "config.json", json.dumps({"model_type": "bert"}).encode())

    settings = yaml.safe_load(trained.recipe.read_text())
    recipes = {
        "not_yaml.yaml": "dataset: [",
        "no_sections.yaml": "just words",
        "no_backbone.yaml": yaml.safe_dump({key: value for key, value in settings.items() if key != "backbone"}),
        "unknown_key.yaml": yaml.safe_dump(settings | {"modle": {}}),
    }
    for name, text in recipes.items():
        (tmp_path / name).write_text(text)
    return {"tmp": tmp_path, "recipe": trained.recipe, "model": trained.model, "photo": trained.photo}


GROUND = ["ground", "{photo}", "a ball", "--model", "{model}"]
TRAIN = ["train", "{recipe}", "--output_dir", "{tmp}/out"]


def photo(name):
    return ["ground", name, "a ball", "--model", "{model}"]


def text(words):
    return ["ground", "{photo}", words, "--model", "{model}"]


def model(name):
    return ["ground", "{photo}", "a ball", "--model", name]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["grond"], r"No such command 'grond'.*'ground'"),
        (["list", "--jsno"], r"No such option.*--jsno.*--json"),
        (["ground", "{photo}"], r"Missing argument.*text"),
        (["ground", "{photo}", "a ball"], r"Missing option.*--model"),
        ([*GROUND, "--query_heatmap", "words"], r"--query_heatmap.*'words' is not one of 'word', 'sentence', 'auto'"),
        ([*GROUND, "--draw", "out.psd"], r"--draw 'out\.psd' must end in the name of an image format, such as \.png"),
        ([*TRAIN, "--min_box_area", "5"], r"`min_box_area` is a share of the image in \[0, 1\], got 5"),
        ([*GROUND, "--draw", "{photo}/out.png"], r"cannot be written: '.*photo\.png' is a file and no folder"),
        ([*GROUND, "--draw", "out.pgn"], r"--draw 'out\.pgn' must end in the name of an image format, such as \.png"),
        (["evaluate", "{model}", "--min_box_area", "5"], r"--min_box_area"),
        (["evaluate", "{model}", "--box_rule", "all"], r"--box_rule.*'all' is not one of 'any', 'union'"),
        (["train", "multilevel_scene"], r"No recipe 'multilevel_scene'.*Did you mean 'multilevel_scenes'\?"),
        (["train", "{tmp}/not_yaml.yaml"], r"not_yaml\.yaml' is no YAML file"),
        (["train", "{tmp}/no_sections.yaml"], r"must hold sections such as `dataset:`"),
        (["train", "{tmp}/no_backbone.yaml"], r"The recipe has no `backbone`"),
        (["train", "{tmp}/unknown_key.yaml"], r"no key `modle`.* Did you mean `model`\?"),
        ([*TRAIN, "--learning_rat", "1"], r"No section of the recipe has a key `learning_rat`.*`learning_rate`\?"),
        ([*TRAIN, "--dataset.nam", "scenes"], r"`dataset` has no key `nam`.*`name`\?"),
        ([*TRAIN, "--resum"], r"--resum has no value.*Did you mean --resume\?"),
        ([*TRAIN, "--seed", "--resume"], r"--seed has no value"),
        ([*TRAIN, "seed=1"], r"'seed=1' belongs to no option; settings are overridden by --key value"),
        ([*TRAIN, "--image_size", "big"], r"image_size.*expected int, got str"),
        ([*TRAIN, "--learning_rate", "abc"], r"`training`.*learning_rate.*expected float, got str"),
        ([*TRAIN, "--max_steps", "1.5"], r"max_steps.*expected int, got float"),
        ([*TRAIN, "--training.bf16", "maybe"], r"bf16.*expected bool, got str"),
        ([*TRAIN, "--mirror_images", "3"], r"mirror_images.*expected bool, got int"),
        ([*TRAIN, "--halve_learning_rate_at", "2"], r"halve_learning_rate_at.*list"),
        ([*TRAIN, "--training.output_dir", "zzz"], r"Section `training` has no key `output_dir`"),
        ([*TRAIN, "--resume_from_checkpoint", "zzz"], r"Section `training` has no key `resume_from_checkpoint`"),
        ([*TRAIN, "--dataloader_drop_last", "false"], r"Section `training` has no key `dataloader_drop_last`"),
        (["train", "mia_up_down_flickr8k", "--regions.stor", "x"], r"`regions` has no key `stor`.*`store`\?"),
        (["train", "mia_up_down_flickr8k", "--box_rule", "any"], r"A captioner has no `box_rule`, .*`evaluation`"),
        ([*TRAIN, "--regions.store", "x"], r"A phrase grounding model has no settings in section `regions`"),
        ([*TRAIN, "--min_count", "-5"], r"`min_count` must be 1 or more, got -5"),
        (["evaluate", "{model}", "--report", "."], r"--report.*is a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_arguments_exit_with_2(arguments, message, places):
    answer = run(*(argument.format(**places) for argument in arguments))
    assert answer.code == 2
    assert answer.out == ""
    last = answer.err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert re.search(message, last), last
    assert not (places["tmp"] / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (photo("{tmp}/nothing.jpg"), r"No photo '.*nothing\.jpg'"),
        (photo("{tmp}/folder"), r"folder' is a folder; give one photo"),
        (photo("{tmp}/text.jpg"), r"text\.jpg' cannot be read as an image"),
        (photo("{tmp}/empty.jpg"), r"empty\.jpg' cannot be read as an image"),
        (photo("{tmp}/cut.jpg"), r"cut\.jpg' cannot be read as an image: .*truncated"),
        (text(""), r"`text` must be words such as 'a man in red'"),
        (text("  "), r"`text` must be words such as 'a man in red'"),
        (text("[a ball"), r"Brackets in '\[a ball' must enclose one phrase each"),
        (text("a [] ball"), r"Brackets in 'a \[\] ball' must enclose one phrase each"),
        (model("{model}s"), r"No model folder '.*models'\. Did you mean '.*model'\?"),
        (model("{tmp}/folder"), r"folder' holds no model: there is no config\.json in it"),
        (model("{tmp}/bad_config"), r"bad_config.*not a valid JSON"),
        (model("{tmp}/cut_weights"), r"Model '.*cut_weights' cannot be loaded: .*incomplete"),
        (model("{tmp}/no_weights"), r"no file named model\.safetensors"),
        (model("{tmp}/no_processor"), r"Model '.*no_processor' cannot be loaded: .*processor"),
        (model("{tmp}/other_model"), r"Model '.*other_model' cannot be loaded: it is a bert, no multilevel_grounding"),
        (["evaluate", "{tmp}/nothing"], r"No model folder '.*nothing'"),
        (["evaluate", "{tmp}/no_recipe"], r"no_recipe' has no recipe\.yaml.*name a recipe \(`--recipe`\)"),
        (["evaluate", "{model}", "--recipe", "multilevel_scene"], r"Did you mean 'multilevel_scenes'\?"),
        (
            ["evaluate", "{model}", "--regions", "{tmp}/text.jpg"],
            r"text\.jpg' cannot be read as an \.npz file of regions",
        ),
        (["evaluate", "{model}", "--split", "vall"], r"no split 'vall' here\. Did you mean 'val'\?"),
        (["evaluate", "{model}", "--data_dir", "x"], r"'scenes' reads no files, so `data_dir` has no meaning"),
        (
            ["evaluate", "{model}", "--min_box_area", "0.99"],
            r"None of the \d+ queries is left to score.*Check the filters",
        ),
        ([*TRAIN, "--dataset.name", "sceens"], r"Unknown data set 'sceens'\. Did you mean 'scenes'\?"),
        ([*TRAIN, "--train_split", "trian"], r"no split 'trian' here\. Did you mean 'train'\?"),
        ([*TRAIN, "--max_steps", "-1", "--num_train_epochs", "0"], r"`num_train_epochs` must be above 0, got 0"),
        ([*TRAIN, "--per_device_train_batch_size", "0"], r"`per_device_train_batch_size` must be 1 or more, got 0"),
        ([*TRAIN, "--per_device_eval_batch_size", "0"], r"`per_device_eval_batch_size` must be 1 or more, got 0"),
        ([*TRAIN, "--gradient_accumulation_steps", "0"], r"`gradient_accumulation_steps` must be 1 or more, got 0"),
        ([*TRAIN, "--early_stopping_patience", "0"], r"`early_stopping_patience` must be 1 or more, got 0"),
        (
            [*TRAIN, "--early_stopping_patience", "1", "--eval_strategy", "no", "--load_best_model_at_end", "no"],
            r"`early_stopping_patience` needs evaluations",
        ),
        (["train", "{recipe}", "--output_dir", "{photo}"], r"photo\.png' is a file; name a folder as `output_dir`"),
        (["train", "{recipe}", "--output_dir", "{model}"], r"model' holds an earlier run\. Go on with it"),
        (["evaluate", "{model}", "--split", "val", "--report", "{photo}/x.html"], r"photo\.png"),
        (
            [*TRAIN, "--metric_for_best_model", "accuracy"],
            r"must be one of pointing_accuracy, attention_correctness or pointing_accuracy_<category>, got 'accuracy'",
        ),
        ([*TRAIN, "--resume"], r"has no complete checkpoint to resume from; train without resuming"),
        ([*TRAIN, "--attention", "sigmoid"], r"attention.*sigmoid"),
        ([*TRAIN, "--backbone.path", "x"], r"needs either `path` .* or `config`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_failed_run_exits_with_1_and_one_line(arguments, message, places):
    answer = run(*(argument.format(**places) for argument in arguments))
    assert answer.code == 1
    assert answer.out == ""
    last = answer.err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert re.search(message, last), last
    assert "Traceback" not in answer.err
