"""Training of captioners: learning rates, scheduled sampling, gradients, what a backbone learns, and arguments."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import ResNetConfig, TrainerCallback

from hf_grounding.modeling.configuration_mia import MIAConfig
from hf_grounding.modeling.modeling_mia import MIAForCaptioning
from hf_grounding.training.caption_data import CaptioningCollator, CaptionsPerImage, ImageInputs
from hf_grounding.training.captioning import CaptioningTrainer, CaptioningTrainingArguments, build_captioner
from hf_grounding.training.recipe import Recipe
from tests.training.test_captioning import RECIPE, regions_of


class _Recorder(TrainerCallback):
    """What holds at each step."""

    def __init__(self):
        self.sampling, self.epochs, self.before, self.after = [], [], [], []

    def on_step_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        self.sampling.append(model.scheduled_sampling_prob)
        self.epochs.append(train_dataloader.dataset.epoch)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.before.append(_largest_gradient(model))

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.after.append(_largest_gradient(model))


def _largest_gradient(model: torch.nn.Module) -> float:
    return max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None)


def _recorded(
    tmp_path: Path, recorder: TrainerCallback | None = None, photos: bool = False, **settings: Any
) -> tuple[Any, CaptioningTrainer]:
    """A training on four images, two in a batch; of `photos`, by a backbone trained from its second stage on."""
    captions = [["a red dog", "dog"], ["a blue cat"], ["a dog", "a cat", "red dog"], ["blue cat"]]
    rows = Dataset.from_dict({"image_id": list("abcd"), "captions": captions})
    images = ImageInputs({name: regions_of(name) for name in "abcd"}, {name: ["dog", "cat"] for name in "abcd"})
    recipe = Recipe.from_dict(RECIPE)
    torch.manual_seed(0)
    model, processor = build_captioner(recipe, captions, 8)
    fixed = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "learning_rate": 0.01}
    recorder = recorder or _Recorder()
    args = CaptioningTrainingArguments(str(tmp_path), per_device_train_batch_size=2, **{**fixed, **settings})
    collator: Any = CaptioningCollator(processor, images)
    if photos:
        backbone = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        stage = {"freeze_backbone": False, "backbone_trainable_from": 1}
        model = MIAForCaptioning(MIAConfig(**{**model.config.to_dict(), "backbone_config": backbone, **stage}))
        collator = _PhotoCollator(processor, images)
    trainer = CaptioningTrainer(
        model=model,
        args=args,
        train_dataset=CaptionsPerImage(rows, args.captions_per_image, args.seed),
        eval_dataset=rows,
        data_collator=collator,
        processor=processor,
        eval_images=images,
        callbacks=[recorder],
    )
    trainer.train()
    return recorder, trainer


class _PhotoCollator(CaptioningCollator):
    """Random photos in place of regions."""

    def __call__(self, rows):
        inputs = super().__call__(rows)
        count = len(inputs.pop("region_features"))
        del inputs["region_mask"]
        return inputs | {"pixel_values": torch.randn(count, 3, 32, 32)}


class _WeightsRecorder(TrainerCallback):
    """What of the model has changed since the training began, by the end of each epoch."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.first, self.changed = {name: each.detach().clone() for name, each in model.named_parameters()}, []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        moved = {name for name, each in model.named_parameters() if not torch.equal(each, self.first[name])}
        self.changed.append(moved)


def test_the_backbone_learns_from_its_epoch_and_stage_on_at_its_own_rate(tmp_path: Path):
    settings = {"backbone_learning_rate": 1e-3, "backbone_start_epoch": 2, "weight_decay": 0.1}
    recorder, trainer = _recorded(tmp_path, _WeightsRecorder(), photos=True, num_train_epochs=3, **settings)
    names = {name for name in recorder.first if name.startswith("model.backbone.")}
    trained = {name for name in names if ".stages.1." in name}
    assert len(recorder.changed) == 3
    assert [moved & names for moved in recorder.changed] == [set(), set(), trained]
    assert {"output.weight", "model.project_regions.linear.weight"} <= recorder.changed[0]
    groups = [(group["initial_lr"], group["weight_decay"], group["params"]) for group in trainer.optimizer.param_groups]
    assert [(rate, decay) for rate, decay, _ in groups] == [(0.01, 0.1), (0.01, 0.0), (1e-3, 0.1), (1e-3, 0.0)]
    parameters = dict(trainer.model.named_parameters())
    assert {each for *_, params in groups[2:] for each in params} == {parameters[name] for name in trained}
    assert sum(len(params) for *_, params in groups) == sum(each.requires_grad for each in parameters.values())


def test_the_module_learns_at_a_rate_of_its_own(tmp_path: Path):
    _, trainer = _recorded(tmp_path, num_train_epochs=1, mia_learning_rate=1e-3)
    rates = {each: group["initial_lr"] for group in trainer.optimizer.param_groups for each in group["params"]}
    own = {rates[each] for name, each in trainer.model.named_parameters() if name.startswith("model.mia.")}
    others = {rates[each] for name, each in trainer.model.named_parameters() if not name.startswith("model.mia.")}
    assert (own, others) == ({1e-3}, {0.01})


def test_settings_of_a_backbone_are_refused_where_none_is_trained(tmp_path: Path):
    for setting in ({"backbone_learning_rate": 1e-5}, {"backbone_start_epoch": 8}):
        with pytest.raises(ValueError, match="are of a captioner whose backbone is trained; leave them out"):
            _recorded(tmp_path, **setting)


def test_the_best_model_of_a_tied_table_is_loaded_without_a_warning(tmp_path: Path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    each_epoch = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    _, trainer = _recorded(tmp_path, num_train_epochs=1, **each_epoch)
    assert trainer.state.best_model_checkpoint
    assert "missing keys" not in caplog.text
    assert trainer.model.model.embed_concepts.weight is trainer.model.decoder.embed_words.weight


def test_more_own_words_are_read_from_epoch_to_epoch(tmp_path: Path):
    recorder, _ = _recorded(
        tmp_path,
        num_train_epochs=7,
        scheduled_sampling_increase=0.1,
        scheduled_sampling_every=2,
        scheduled_sampling_max=0.25,
    )
    by_epoch = [0, 0, 0.1, 0.1, 0.2, 0.2, 0.25]  # 0.3 is more than the most
    assert recorder.sampling == pytest.approx([prob for prob in by_epoch for _ in range(2)])
    assert recorder.epochs == [epoch for epoch in range(7) for _ in range(2)]


def test_no_number_of_a_gradient_is_larger_than_the_limit_when_a_step_is_taken(tmp_path: Path):
    recorder, trainer = _recorded(
        tmp_path, num_train_epochs=2, max_grad_value=0.005, max_grad_norm=0, lr_decay_factor=0.5, weight_decay=0.01
    )
    assert min(recorder.before) > 0.005
    assert max(recorder.after) <= 0.005
    assert max(recorder.after) == pytest.approx(0.005)
    assert trainer.create_optimizer() is trainer.optimizer


def _rates(tmp_path: Path, num_images: int, steps: int, **settings: Any) -> list[float]:
    args = CaptioningTrainingArguments(
        str(tmp_path), learning_rate=5e-4, use_cpu=True, report_to="none", per_device_train_batch_size=6, **settings
    )
    trainer = CaptioningTrainer(
        model=torch.nn.Linear(1, 1), args=args, train_dataset=[0] * num_images, processor=None, eval_images=None
    )
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        scheduler.step()
    return rates


def test_the_learning_rate_of_up_down_falls_every_third_epoch(tmp_path: Path):
    by_epoch = [5e-4] * 3 + [4e-4] * 3 + [3.2e-4] * 3 + [2.56e-4]
    # 19 images in batches of 6 are 4 steps an epoch, the last of one image
    rates = _rates(tmp_path, 19, 40, num_train_epochs=10, lr_decay_factor=0.8, lr_decay_every=3)
    assert rates == pytest.approx([rate for rate in by_epoch for _ in range(4)])
    # The same if the run ends by its steps, and half as many of two batches each.
    assert _rates(tmp_path, 19, 40, max_steps=40, lr_decay_factor=0.8, lr_decay_every=3) == rates
    accumulated = _rates(
        tmp_path, 19, 20, num_train_epochs=10, lr_decay_factor=0.8, lr_decay_every=3, gradient_accumulation_steps=2
    )
    assert accumulated == rates[::2]


def test_the_learning_rate_of_mia_falls_in_every_epoch_from_the_21st(tmp_path: Path):
    settings = {"lr_decay_factor": 0.5 ** (1 / 50), "lr_decay_start": 19}
    rates = _rates(tmp_path, 6, 30, num_train_epochs=30, **settings)
    # The official code: epochs are counted from 1, and from 21 on the rate is 5e-4 * 0.5 ** ((epoch - 20) / 50).
    assert rates == pytest.approx([5e-4] * 20 + [5e-4 * 0.5 ** ((epoch - 20) / 50) for epoch in range(21, 31)])
    assert rates[20] == pytest.approx(4.931e-4, rel=1e-3)  # 0.986 of it


def test_without_a_factor_the_schedule_is_the_one_named(tmp_path: Path):
    assert _rates(tmp_path, 6, 4, num_train_epochs=4) == pytest.approx([5e-4, 3.75e-4, 2.5e-4, 1.25e-4])


@pytest.mark.parametrize(
    "setting, message",
    [
        (
            {"metric_for_best_model": "meteor"},
            "`metric_for_best_model` must be one of cider_d, bleu_4, rouge_l, got 'm",
        ),
        ({"captions_per_image": 0}, "`captions_per_image` must be 1 or more, got 0"),
        ({"lr_decay_every": 0}, "`lr_decay_every` must be 1 or more, got 0"),
        ({"lr_decay_start": -1}, "`lr_decay_start` must be 0 or more, got -1"),
        ({"backbone_start_epoch": -1}, "`backbone_start_epoch` must be 0 or more, got -1"),
        ({"mia_learning_rate": -1.0}, "`mia_learning_rate` must be above 0, got -1.0"),
        ({"backbone_learning_rate": 0.0}, "`backbone_learning_rate` must be above 0, got 0.0"),
        ({"lr_decay_factor": 0.0}, "`lr_decay_factor` must be above 0, got 0.0"),
        ({"max_grad_value": -0.1}, "`max_grad_value` must be above 0, got -0.1"),
        ({"scheduled_sampling_every": 0}, "`scheduled_sampling_every` must be 1 or more, got 0"),
        ({"scheduled_sampling_increase": 1.5}, r"`scheduled_sampling_increase` must be in \[0, 1\], got 1.5"),
        ({"scheduled_sampling_max": -0.1}, r"`scheduled_sampling_max` must be in \[0, 1\], got -0.1"),
        ({"num_train_epochs": 0}, "`num_train_epochs` must be above 0, got 0"),
    ],
)
def test_training_arguments_out_of_their_range_are_refused(tmp_path: Path, setting: dict, message: str):
    with pytest.raises(ValueError, match=message):
        CaptioningTrainingArguments(str(tmp_path), **setting)
