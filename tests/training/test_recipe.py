"""Recipes: each of ours can be run and saved, keys find their section, what a system does not have is refused."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import get_scheduler

from hf_grounding.training.captioning import CAPTIONERS, CaptioningTrainer, CaptioningTrainingArguments
from hf_grounding.training.recipe import Recipe, list_recipes, recipes_dir

CAPTIONER = {
    "description": "tiny",
    "system": "mia",
    "dataset": {"name": "scenes"},
    "regions": {"max_regions": 6},
    "model": {"decoder_type": "up_down"},
}


def _load(folder: Path, values: dict, **overrides: str) -> Recipe:
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return Recipe.load(folder, overrides)


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_of_ours_is_explained_and_saved_as_it_is_loaded(name: str, tmp_path: Path):
    recipe = Recipe.load(name)
    recipe.save(tmp_path)
    assert Recipe.load(tmp_path) == recipe
    readme = (recipes_dir() / name / "README.md").read_text()
    assert readme.startswith(f"# {name}\n")
    assert f"hf-grounding train {name} " in readme
    if recipe.system in CAPTIONERS:
        CAPTIONERS[recipe.system][0](**recipe.model)
        CaptioningTrainingArguments(output_dir=str(tmp_path), **recipe.training)


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.startswith(("mia_", "ss_"))])
def test_every_command_and_option_in_the_readme_of_a_captioner_can_be_run(name: str):
    readme = (recipes_dir() / name / "README.md").read_text()
    commands = re.findall(r"^ +hf-grounding train (.+?(?: \\\n.+?)*)$", readme, re.MULTILINE)
    options = [f"{name} {text}" for text in re.findall(r"`(--[^`]+)`", readme)]
    assert any(command.startswith(f"{name} ") for command in commands)
    for command in (*commands, *options):
        source, *words = shlex.split(command.replace("\\\n", " "), comments=True)
        overrides = {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}
        overrides.pop("output_dir", None)
        recipe = Recipe.load(source, overrides)
        if recipe.system in CAPTIONERS:
            CAPTIONERS[recipe.system][0](**recipe.model)


def test_the_transformer_of_the_paper_trains_by_the_schedule_of_its_inventors():
    training = Recipe.load("mia_transformer_coco").training
    args = CaptioningTrainingArguments(output_dir="x", **training)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, num_warmup_steps=args.get_warmup_steps(10**6))
    for step in (1, 500, 20_000, 45_678, 170_000):
        expected = 512**-0.5 * min(step**-0.5, step * 20_000**-1.5)  # Vaswani et al. (2017), equation 3
        assert scheduler.lr_lambdas[0](step) * args.learning_rate == pytest.approx(expected)


def test_the_rate_of_the_official_code_falls_from_the_21st_epoch_on():
    training = Recipe.load("mia_visual_attention_coco").training
    trainer = SimpleNamespace(
        args=CaptioningTrainingArguments(output_dir="x", **training), train_dataset=range(113_287), lr_scheduler=None
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=trainer.args.learning_rate)
    scale = CaptioningTrainer.create_scheduler(trainer, 0, optimizer).lr_lambdas[0]
    steps_per_epoch = 7081  # 113,287 photos, 16 a batch
    for epoch in (1, 20, 21, 22, 30):
        expected = 0.5 ** (max(0, epoch - 20) / 50)
        assert scale((epoch - 1) * steps_per_epoch) == pytest.approx(expected), epoch
        assert scale(epoch * steps_per_epoch - 1) == pytest.approx(expected), epoch


def test_what_the_readme_of_the_captioner_overrides_are_settings_of_it():
    readme = (recipes_dir() / "mia_up_down_flickr8k" / "README.md").read_text()
    commands = readme[readme.index("train mia_up_down_flickr8k") : readme.index("## ")]
    pairs = re.findall(r"--([a-z_.]+) ([^\s`]+)", commands)
    overrides = {key: value for key, value in pairs if key != "output_dir"}
    assert len(overrides) == 8
    recipe = Recipe.load("mia_up_down_flickr8k", overrides)
    assert (recipe.images.store, recipe.images.concepts) == ("features", "image_concepts.json")
    config = CAPTIONERS[recipe.system][0](**recipe.model)
    assert config.mia_iterations == 0
    assert not config.uses_concepts
    args = CaptioningTrainingArguments(output_dir="x", **recipe.training)
    assert (args.lr_decay_factor, args.lr_decay_every, args.max_grad_value, args.max_grad_norm) == (0.8, 3, 0.1, 0)


def test_a_captioner_saved_and_loaded_again_is_the_same(tmp_path: Path):
    changes = {"regions.scene_detector": "{miss_rate: 0.2}", "convention": "up_down", "max_concepts": "4"}
    recipe = _load(tmp_path, CAPTIONER, **changes, learning_rate="1e-3", num_beams="5")
    assert recipe.images.scene_detector == {"miss_rate": 0.2}
    assert (recipe.captions.convention, recipe.captions.num_beams, recipe.images.max_concepts) == ("up_down", 5, 4)
    recipe.save(tmp_path)
    assert Recipe.load(tmp_path) == recipe


@pytest.mark.parametrize("name", ["multilevel_flickr8k", "multilevel_flickr8k_boxes", "concepts_flickr8k"])
def test_a_recipe_saved_before_there_were_captioners_loads_as_ever(name: str, tmp_path: Path):
    recipe = Recipe.load(name)
    recipe.save(tmp_path)
    saved = tmp_path / "recipe.yaml"
    values = yaml.safe_load(saved.read_text())
    del values["regions"], values["captions"]
    saved.write_text(yaml.safe_dump(values))
    assert Recipe.load(tmp_path) == recipe


def test_a_key_that_names_a_section_of_another_system_is_of_its_own_section():
    # `regions` of phrase grounding are those of a baseline, `min_count` of a captioner is of `captions`, else of `text`
    assert Recipe.load("multilevel_flickr8k", {"regions": "some.npz"}).evaluation.regions == "some.npz"
    assert Recipe.load("multilevel_flickr8k", {"min_count": "7"}).text.min_count == 7
    assert Recipe.load("mia_up_down_flickr8k", {"min_count": "7"}).captions.min_count == 7


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("regions.stor", "x", "Section `regions` has no key `stor`. Did you mean `store`?"),
        ("captions.num_beam", "3", "Section `captions` has no key `num_beam`. Did you mean `num_beams`?"),
        ("max_region", "3", "No section of the recipe has a key `max_region`. Did you mean `max_regions`?"),
        ("model.decoder", "up_down", "Section `model` has no key `decoder`."),
        ("model.vocab_size", "9", "Section `model` has no key `vocab_size`"),
        ("model.feature_dim", "9", "Section `model` has no key `feature_dim`"),
        ("training.mirror_images", "true", "Section `training` has no key `mirror_images`"),
        ("max_grad_value", "much", "expected float, got str"),
        ("regions.max_regions", "0", "`max_regions` must be 1 or more, got 0"),
        ("regions.max_concepts", "-1", "`max_concepts` must be 1 or more, got -1"),
        ("regions.extraction", "{grid: 3}", "A grid of 3 has 9 cells, more than the 6 regions"),
        ("captions.num_beams", "0", "`num_beams` must be 1 or more, got 0"),
        ("captions.min_count", "0", "`min_count` must be 1 or more, got 0"),
        ("captions.max_words", "0", "`max_words` must be 1 or more, got 0"),
        ("captions.convention", "coco", "expected one of ('mia', 'up_down'), got coco"),
        ("regions", "features", "Section `regions` must be a mapping of keys to values, got 'features'"),
        ("text.min_count", "3", "A captioner has no settings in section `text`; leave it out"),
        (
            "backbone",
            "{levels: [1, 2], image_size: 64}",
            "A captioner reads one level, got `backbone.levels` [1, 2]",
        ),
        ("box_rule", "any", "A captioner has no `box_rule`, which is of the section `evaluation`"),
        ("regions.store", "x", "Regions and concepts of scenes are simulated; leave `regions.store` out"),
        ("regions.concepts", "x", "Regions and concepts of scenes are simulated; leave `regions.concepts` out"),
        (
            "regions.scene_detector",
            "{mis_rate: 0}",
            "`regions.scene_detector` has no key `mis_rate`. Did you mean `miss_",
        ),
        ("regions.scene_detector", "{attributes: [color]}", "`regions.scene_detector` has no key `attributes`"),
    ],
)
def test_what_a_captioner_does_not_have_is_refused(tmp_path: Path, key: str, value: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        _load(tmp_path, CAPTIONER, **{key: value})


def test_a_detector_of_scenes_is_of_no_other_data(tmp_path: Path):
    values = CAPTIONER | {"dataset": {"name": "flickr30k_entities"}, "regions": {"scene_detector": {"seed": 1}}}
    with pytest.raises(ValueError, match=r"scene_detector` is of the data set 'scenes', not of 'flickr30k_entities'"):
        _load(tmp_path, values)


def test_a_captioner_needs_its_regions(tmp_path: Path):
    with pytest.raises(ValueError, match="The recipe has no `regions`"):
        _load(tmp_path, {key: value for key, value in CAPTIONER.items() if key != "regions"})
    with pytest.raises(ValueError, match="A captioner has no `backbone`"):
        _ = _load(tmp_path, CAPTIONER).network
    with pytest.raises(ValueError, match="A phrase grounding model has no `regions`"):
        _ = Recipe.load("multilevel_scenes").images
    with pytest.raises(ValueError, match="A phrase grounding model has no settings in section `captions`"):
        Recipe.load("multilevel_scenes", {"captions.num_beams": "2"})
