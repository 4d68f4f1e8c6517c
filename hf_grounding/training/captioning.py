"""Captioners: training by cross entropy with the schedules of the captioning papers.

Batches are in `caption_data.py`, what is written and how it is scored in `caption_evaluation.py`.
"""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerControl, set_seed
from transformers.trainer_pt_utils import nested_gather

from ..metrics.caption_metrics import compute_caption_metrics
from ..modeling.configuration_mia import MIAConfig
from ..modeling.configuration_ss_attention import SSAttentionConfig
from ..modeling.modeling_mia import MIAForCaptioning
from ..modeling.modeling_ss_attention import SSAttentionCaptioner
from ..processing.caption_tokenizers import train_caption_tokenizer
from ..processing.paths import below_data_root
from ..processing.processing_mia import MIAProcessor
from ..processing.processing_ss_attention import SSAttentionProcessor
from .arguments import RecipeTrainingArguments
from .caption_data import (
    CaptioningCollator,
    CaptionsPerImage,
    GroundedCaptioningCollator,
    ImageInputs,
    extraction_of,
    load_images,
)
from .caption_evaluation import measure_captioner, report_captioner, write_captions, write_grounded_captions
from .checkpoints import start_from
from .common import (
    REPORT_FILE,
    epoch_scheduler,
    keep_freed_memory,
    level_channels,
    load_backbone,
    load_split,
    run_training,
    saved_curve,
    set_learning_rate,
    training_facts,
    write_results,
)
from .object_words import head_nouns, object_words, read_object_classes
from .recipe import Recipe

logger = logging.getLogger(__name__)

# system -> its settings, its model and its processor
CAPTIONERS: dict[str, tuple[type[MIAConfig], type[MIAForCaptioning], type[MIAProcessor]]] = {
    "mia": (MIAConfig, MIAForCaptioning, MIAProcessor),
    "ss_attention": (SSAttentionConfig, SSAttentionCaptioner, SSAttentionProcessor),
}
LOSS_PARTS = ("caption_loss", "grounding_loss", "attention_loss")  # of a model's output, before their weights
METRICS = ("cider_d", "bleu_4", "rouge_l")  # of an evaluation during training; none needs Java


@dataclass
class CaptioningTrainingArguments(RecipeTrainingArguments):
    r"""`RecipeTrainingArguments`, and what the schedules of the captioning papers need.

    Args:
        captions_per_image (`int`): Captions of an image in a batch, which share what is computed of it; drawn anew
            every epoch where an image has more. A batch is of so many images as `per_device_train_batch_size` says.
        max_grad_value (`float`, *optional*): Clip each number of the gradients at this (0.1 in both official codes),
            after they were clipped by their norm, which `max_grad_norm: 0` turns off.
        lr_decay_factor (`float`, *optional*): Multiply the learning rate by it, every `lr_decay_every` epochs after the
            first `lr_decay_start`. Replaces `lr_scheduler_type`. Up-Down: 0.8 every 3. MIA: 0.5**(1/50) = 0.9862 every
            1 after 19, so that the 21st epoch is the first with less.
        scheduled_sampling_increase (`float`): Added to the probability that the model reads its own words, every
            `scheduled_sampling_every` epochs, up to `scheduled_sampling_max` (Up-Down: 0.05 every 5 up to 0.25).
        backbone_learning_rate (`float`, *optional*): Of a backbone that is trained, in place of `learning_rate`; it
            follows the same schedule (MIA: 1e-5).
        mia_learning_rate (`float`, *optional*): Of the layers of Mutual Iterative Attention, in the same way. At a rate
            that suits a recurrent decoder, what they add to their rows can outgrow the rows. Without the module it has
            no effect, so that a recipe's baseline is one setting away.
        backbone_start_epoch (`int`): Epochs before the backbone learns (MIA: 8). Until then its gradients are dropped.
        metric_for_best_model (`str`): Of `CaptioningTrainer.evaluate`; default CIDEr-D.

    Raises:
        ValueError: If there is no such metric, a value is out of its range, or as [`RecipeTrainingArguments`].
    """

    captions_per_image: int = field(default=5)
    max_grad_value: float | None = field(default=None)
    lr_decay_factor: float | None = field(default=None)
    lr_decay_every: int = field(default=1)
    lr_decay_start: int = field(default=0)
    scheduled_sampling_increase: float = field(default=0.0)
    scheduled_sampling_every: int = field(default=5)
    scheduled_sampling_max: float = field(default=0.25)
    backbone_learning_rate: float | None = field(default=None)
    mia_learning_rate: float | None = field(default=None)
    backbone_start_epoch: int = field(default=0)
    metric_for_best_model: str | None = field(default=METRICS[0])

    def __post_init__(self):
        self.label_names = ["labels"]
        metric = self.metric_for_best_model or METRICS[0]
        if metric.removeprefix("eval_") not in METRICS:
            raise ValueError(f"`metric_for_best_model` must be one of {', '.join(METRICS)}, got {metric!r}.")
        for name in ("captions_per_image", "lr_decay_every", "scheduled_sampling_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        for name in ("lr_decay_start", "backbone_start_epoch"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        for name in ("scheduled_sampling_increase", "scheduled_sampling_max"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        for name in ("max_grad_value", "lr_decay_factor", "backbone_learning_rate", "mia_learning_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")
        super().__post_init__()


class _EachEpoch(TrainerCallback):
    """Tells training set and model their epoch: captions are drawn anew, and more own words are read."""

    def on_epoch_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        epoch = int(state.epoch + 1e-6)
        train_dataloader.dataset.set_epoch(epoch)
        increases = epoch // args.scheduled_sampling_every
        model.scheduled_sampling_prob = min(args.scheduled_sampling_max, args.scheduled_sampling_increase * increases)


class CaptioningTrainer(Trainer):
    r"""Trains [`MIAForCaptioning`] on [`CaptionsPerImage`].

    Args:
        eval_dataset (`datasets.Dataset`): Rows with `image_id` and `captions`.
        processor ([`MIAProcessor`]): Not `processing_class`, of which the Trainer wants a tokenizer.
        eval_images ([`ImageInputs`]): Regions and concepts of `eval_dataset`.
    """

    args: CaptioningTrainingArguments
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None
    control: TrainerControl

    def __init__(self, *args: Any, processor: MIAProcessor, eval_images: ImageInputs, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.processor, self.eval_images = processor, eval_images
        self.backbone_parameters = self._backbone_parameters()
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, not a sum to be divided
        self.loss_parts: dict[str, list[torch.Tensor]] = {}  # of the steps since the last entry of the log
        self.add_callback(_EachEpoch())
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))

    def _backbone_parameters(self) -> set[torch.nn.Parameter]:
        """Those of the backbone that are trained, if the arguments treat them differently; else none."""
        if self.args.backbone_learning_rate is None and not self.args.backbone_start_epoch:
            return set()
        backbone = self.model.model.backbone
        trained = set() if backbone is None else {each for each in backbone.parameters() if each.requires_grad}
        if not trained:
            raise ValueError(
                "`backbone_learning_rate` and `backbone_start_epoch` are of a captioner whose backbone is trained; "
                "leave them out, or give it a backbone with `freeze_backbone` False."
            )
        return trained

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if (self.state.epoch or 0) + 1e-6 < self.args.backbone_start_epoch:
            for parameter in self.backbone_parameters:
                parameter.grad = None  # not 0, which weight decay and moments would act upon
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        for name in LOSS_PARTS:
            if outputs.get(name) is not None:
                self.loss_parts.setdefault(name, []).append(outputs[name].detach().mean())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the parts of the loss beside their sum, of a model whose loss has parts."""
        if "loss" in logs:
            for name, values in self.loss_parts.items():
                logs[name] = nested_gather(torch.stack(values).mean(), self.args.parallel_mode).mean().item()
            self.loss_parts = {}
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """With learning rates of the backbone and of the module, and gradients clipped by value before each step, if
        asked for."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        if self.args.backbone_learning_rate is not None:
            set_learning_rate(optimizer, self.backbone_parameters, self.args.backbone_learning_rate)
        if self.args.mia_learning_rate is not None and self.model.model.mia is not None:
            set_learning_rate(optimizer, set(self.model.model.mia.parameters()), self.args.mia_learning_rate)
        if self.args.max_grad_value is not None:
            clipped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            limit = self.args.max_grad_value
            optimizer.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_value_(clipped, limit))
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        factor = self.args.lr_decay_factor
        if factor is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            start, every = self.args.lr_decay_start, self.args.lr_decay_every
            self.lr_scheduler = epoch_scheduler(
                self, optimizer, lambda epoch: factor ** max(0, (epoch - start) // every)
            )
        return self.lr_scheduler

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of captions written greedily."""
        started = time.perf_counter()
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.accelerator.unwrap_model(self.model)
        captions = write_captions(
            model, self.processor, self.eval_images, rows["image_id"], batch_size=self.args.per_device_eval_batch_size
        )
        scores = compute_caption_metrics(captions, rows["captions"][:], metrics=["bleu", "rouge_l", "cider_d"])
        metrics = {name: scores[name] for name in METRICS} | {"runtime": time.perf_counter() - started}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def build_captioner(
    recipe: Recipe, captions: Sequence[Sequence[str]], feature_dim: int | None, num_object_classes: int | None = None
) -> tuple[MIAForCaptioning, MIAProcessor]:
    """Untrained model and processor of a recipe; the vocabulary is that of `captions`.

    `feature_dim` is that of the regions; `None` for a recipe with a `backbone`, which makes its own.
    `num_object_classes` is that of their `class_probs`, if they have any.
    """
    config_class, model_class, processor_class = CAPTIONERS[recipe.system]
    settings, sources = recipe.captions, recipe.images
    tokenizer = train_caption_tokenizer(
        (caption for row in captions for caption in row),
        convention=settings.convention,
        min_count=settings.min_count,
        max_words=settings.max_words,
    )
    special = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
    network, image_processor = (None, None) if recipe.backbone is None else load_backbone(recipe.backbone)
    vision: dict[str, Any] = {"feature_dim": feature_dim}
    if recipe.backbone is not None and network is not None:
        (level,) = recipe.backbone.levels
        vision = {"backbone_config": network.config, "backbone_level": level}
        vision["feature_dim"] = level_channels(network, [level])[0]
    if recipe.system == "ss_attention" and num_object_classes is not None:
        vision["num_object_classes"] = num_object_classes
    config = config_class(
        vocab_size=len(tokenizer),
        **{name: getattr(tokenizer, name) for name in special},
        **vision | recipe.model,
    )
    model = model_class(config)
    if network is not None:
        if model.model.backbone is None:
            raise ValueError(f"The decoder '{config.decoder_type}' reads concepts alone; leave `backbone` out.")
        model.model.backbone.model.load_state_dict(network.state_dict())
    generation = model.generation_config
    generation.max_new_tokens = tokenizer.model_max_length
    generation.num_beams = settings.num_beams
    if settings.num_beams > 1:
        generation.length_penalty = 0.0
    never = {getattr(tokenizer, name) for name in special} - {tokenizer.eos_token_id}
    generation.suppress_tokens = sorted(never)  # a word that nobody can read is no word
    options: dict[str, Any] = {"max_regions": sources.max_regions, "max_concepts": sources.max_concepts}
    if isinstance(config, SSAttentionConfig):
        options |= {name: getattr(config, name) for name in ("iou_plus_one", "ignore_unmatched_boxes")}
    return model, processor_class(image_processor, tokenizer, extraction=extraction_of(recipe), **options)


def _listed_classes(recipe: Recipe) -> list[str] | None:
    """Object classes of the recipe's list, if it names one."""
    path = recipe.captions.object_classes
    return None if path is None else read_object_classes(Path(below_data_root(path)))


def _objects_of(
    processor: MIAProcessor, rows: Dataset, listed: list[str] | None, min_count: int
) -> dict[str, str] | None:
    """The vocabulary's words that name objects; `None` if neither a list nor the data say which are classes."""
    vocabulary = processor.tokenizer.get_vocab().keys() - set(processor.tokenizer.all_special_tokens)
    classes = head_nouns(rows, min_count, vocabulary) if listed is None else listed
    found = object_words(vocabulary, classes)
    if listed and not found:
        raise ValueError(
            f"None of the {len(listed)} object classes of `captions.object_classes`, such as '{listed[0]}', is a word "
            "of the training captions; give names that the captions use, or leave the list out."
        )
    return found or None


def _check_classes(config: MIAConfig, num_object_classes: int | None) -> None:
    """Whether the regions have the classes that a model reads."""
    if not isinstance(config, SSAttentionConfig) or not config.reads_classes:
        return
    if num_object_classes is None:
        raise ValueError(
            "The regions have no class probabilities, which this captioner reads; extract them with a detector "
            "(`--detector`), or set `ss_semantic_input: visual`."
        )
    if num_object_classes - config.num_object_classes not in (0, 1):  # 1: a background in front
        raise ValueError(
            f"The regions have {num_object_classes} classes, and `num_object_classes` is {config.num_object_classes}; "
            f"set `--num_object_classes {num_object_classes}`, or leave it out."
        )


def _collator(model: MIAForCaptioning, processor: MIAProcessor, images: ImageInputs, rows: Dataset) -> Any:
    config = model.config
    grounded = isinstance(processor, SSAttentionProcessor) and isinstance(config, SSAttentionConfig)
    if not grounded or not config.learns_places:
        return CaptioningCollator(processor, images)
    return GroundedCaptioningCollator(
        processor,
        images,
        rows,
        grounding_target=config.grounding_target,
        attention_targets=config.attention_loss_weight > 0,
    )


def train_captioner(recipe: Recipe, output_dir: str | os.PathLike, *, resume: bool = False) -> dict[str, Any]:
    r"""Trains a captioner by its recipe, keeps the best checkpoint and evaluates it; see `run.train`."""
    output_dir = Path(output_dir)
    checkpoint = start_from(output_dir, recipe, resume=resume)
    keep_freed_memory()
    args = CaptioningTrainingArguments(output_dir=str(output_dir), **recipe.training)
    set_seed(args.seed)
    listed = _listed_classes(recipe)  # now, since a wrong path must not cost the reading of the data
    train_split, eval_split = recipe.dataset.train_split, recipe.dataset.eval_split
    train_rows, eval_rows = load_split(recipe, train_split), load_split(recipe, eval_split)
    train_images = load_images(recipe, train_rows, train_split)
    eval_images = load_images(recipe, eval_rows, eval_split)
    feature_dim = num_object_classes = None
    if train_images.regions is not None:
        first = train_images.regions[train_rows["image_id"][0]]
        if first.region_features is None:
            raise ValueError("The regions have no features; extract them again with a `--backbone`.")
        feature_dim = first.region_features.shape[1]
        num_object_classes = None if first.class_probs is None else first.class_probs.shape[1]
    model, processor = build_captioner(recipe, train_rows["captions"][:], feature_dim, num_object_classes)
    processor.object_words = _objects_of(processor, train_rows, listed, recipe.captions.min_object_count)
    _check_classes(model.config, num_object_classes)
    if model.config.uses_concepts and train_images.concepts is None:
        raise ValueError(
            "This captioner reads concepts, and section `regions` names no `concepts`; make them with `hf-grounding "
            "extract-concepts`, or set a decoder without concepts and `mia_iterations: 0`, or `mia_attention: self` "
            "and `mia_output: visual`."
        )
    trainer = CaptioningTrainer(
        model=model,
        args=args,
        train_dataset=CaptionsPerImage(train_rows, args.captions_per_image, args.seed),
        eval_dataset=eval_rows,
        data_collator=_collator(model, processor, train_images, train_rows),
        processor=processor,
        eval_images=eval_images,
    )
    started = time.perf_counter()
    trained = run_training(trainer, processor, recipe, checkpoint)
    training = (train_rows, train_images)
    facts = training_facts(trainer, started)  # now: METEOR may take longer than the training of a small model
    results = measure_captioner(trained, processor, recipe, eval_split, eval_rows, eval_images, training) | facts
    if trainer.is_world_process_zero():
        write_results(output_dir, results)
        title = f"{output_dir.name}: {recipe.description}"
        report_captioner(output_dir / REPORT_FILE, title, results, trained, processor, recipe, eval_rows, eval_images)
    return results


def evaluate_captioner(
    model_dir: str | os.PathLike,
    recipe: Recipe,
    split: str,
    report: str | os.PathLike | None = None,
    grounded_captions: str | os.PathLike | None = None,
) -> dict[str, Any]:
    r"""Measures a trained captioner on a split of its recipe's data; see `run.evaluate`."""
    rows = load_split(recipe, split)
    images = load_images(recipe, rows, split)
    _, model_class, processor_class = CAPTIONERS[recipe.system]
    model = model_class.from_pretrained(model_dir).to(PartialState().device)
    processor = processor_class.from_pretrained(model_dir)
    if grounded_captions is not None:
        write_grounded_captions(Path(grounded_captions), model, processor, rows, images)
    results = measure_captioner(model, processor, recipe, split, rows, images, _training_images(recipe))
    if report is not None:
        title = f"{Path(model_dir).resolve().name} on {split}: {recipe.description}"
        with_curve = results | {"curve": saved_curve(Path(model_dir))}
        report_captioner(Path(report), title, with_curve, model, processor, recipe, rows, images)
    return results


def _training_images(recipe: Recipe) -> tuple[Dataset, ImageInputs] | None:
    """Training images, where they are at hand: a model can be measured without them."""
    split = recipe.dataset.train_split
    try:
        rows = load_split(recipe, split)
        return rows, load_images(recipe, rows, split)
    except (ValueError, OSError) as error:
        logger.warning("Without the training images there is no consensus of similar photos to compare with: %s", error)
        return None
