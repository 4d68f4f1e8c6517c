"""Captioners: training by cross entropy, and evaluation of what they write with the caption metrics."""

import logging
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerControl, set_seed

from ..data.region_store import RegionStore
from ..data.scene_regions import SceneDetector, scene_concepts
from ..metrics.caption_baselines import consensus_captions, mean_features, one_against_the_others
from ..metrics.caption_metrics import compute_caption_metrics
from ..modeling.configuration_mia import MIAConfig
from ..modeling.modeling_mia import MIAForCaptioning
from ..processing.caption_tokenizers import train_caption_tokenizer
from ..processing.concepts import read_image_concepts
from ..processing.grounding import GroundedCaption
from ..processing.paths import below_data_root
from ..processing.processing_mia import MIAProcessor
from ..processing.regions import Regions
from ..visualization import write_report
from .arguments import RecipeTrainingArguments
from .checkpoints import start_from
from .common import (
    REPORT_FILE,
    evaluation_facts,
    keep_freed_memory,
    load_split,
    run_training,
    saved_curve,
    training_facts,
    write_results,
)
from .recipe import Recipe, RegionSettings
from .report import build_caption_report, evenly_spaced

logger = logging.getLogger(__name__)

METRICS = ("cider_d", "bleu_4", "rouge_l")  # of an evaluation during training; none needs Java
NUM_EXAMPLES = 12  # pictures of the report


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
    metric_for_best_model: str | None = field(default=METRICS[0])

    def __post_init__(self):
        self.label_names = ["labels"]
        metric = self.metric_for_best_model or METRICS[0]
        if metric.removeprefix("eval_") not in METRICS:
            raise ValueError(f"`metric_for_best_model` must be one of {', '.join(METRICS)}, got {metric!r}.")
        for name in ("captions_per_image", "lr_decay_every", "scheduled_sampling_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        if self.lr_decay_start < 0:
            raise ValueError(f"`lr_decay_start` must be 0 or more, got {self.lr_decay_start}.")
        for name in ("scheduled_sampling_increase", "scheduled_sampling_max"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        for name in ("max_grad_value", "lr_decay_factor"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")
        super().__post_init__()


class ImageInputs:
    r"""Regions and concepts of images by their id, as a captioner's processor takes them.

    Args:
        regions: Of each image, such as a [`RegionStore`].
        concepts (*optional*): Ranked words of each image.
        withheld (`bool`): Give for every image one region of zeros, the whole image, and no concepts.
    """

    def __init__(
        self,
        regions: Mapping[str, Regions] | RegionStore,
        concepts: Mapping[str, list[str]] | None = None,
        *,
        withheld: bool = False,
    ):
        self.regions, self.concepts, self.withheld = regions, concepts, withheld

    def check(self, image_ids: Sequence[str], where: str) -> None:
        """Raises a ValueError if an image lacks regions or concepts."""
        for name, known in (("regions", self.regions), ("concepts", self.concepts)):
            missing = [] if known is None else [image_id for image_id in image_ids if image_id not in known]
            if missing:
                raise ValueError(
                    f"{len(missing)} of {len(image_ids)} images of '{where}' have no {name}, such as '{missing[0]}'; "
                    f"extract them with `hf-grounding extract-{'features' if name == 'regions' else 'concepts'}`."
                )
        empty = [image_id for image_id in image_ids if not len(self.regions[image_id])]
        if empty:
            raise ValueError(
                f"In {len(empty)} of {len(image_ids)} images of '{where}' no region was found, such as '{empty[0]}'; "
                "extract the cells of a grid (`--grid`) in place of a detector's regions, or leave such images out."
            )

    def read(self, image_ids: Sequence[str]) -> dict[str, Any]:
        """Arguments of [`MIAProcessor`]."""
        inputs: dict[str, Any] = {"regions": [self.regions[image_id] for image_id in image_ids]}
        if self.concepts is not None:
            inputs["concepts"] = [self.concepts[image_id] for image_id in image_ids]
        if self.withheld:  # not even the numbers of regions and concepts may tell images apart
            inputs = {name: [_withheld(value) for value in values] for name, values in inputs.items()}
        return inputs

    def mean_features(self, image_ids: Sequence[str]) -> np.ndarray:
        """Of the regions as they are: (images, feature_dim)."""
        records = (self.regions[image_id] for image_id in image_ids)
        return mean_features([record.region_features for record in records if record.region_features is not None])


def _withheld(value: Any) -> Any:
    """What stands for the regions or concepts of an image that is not shown."""
    if not isinstance(value, Regions):
        return []
    if value.region_features is None:
        return value  # the processor says what is missing
    height, width = value.image_size
    nothing = np.zeros((1, value.region_features.shape[1]), dtype=np.float32)
    return Regions(value.image_id, value.image_size, np.array([[0, 0, width, height]]), region_features=nothing)


class CaptionsPerImage(torch.utils.data.Dataset):
    r"""Image i with some of its captions, drawn by seed, epoch and image alone, as [`CaptionPerImage`] draws."""

    def __init__(self, rows: Dataset, captions_per_image: int, seed: int = 0):
        self.image_ids, self.captions = rows["image_id"][:], rows["captions"][:]
        self.captions_per_image, self.seed, self.epoch = captions_per_image, seed, 0

    def __len__(self) -> int:
        return len(self.image_ids)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        captions = self.captions[index]
        if len(captions) > self.captions_per_image:
            rng = random.Random(f"{self.seed}/{self.epoch}/{self.image_ids[index]}")
            captions = rng.sample(captions, self.captions_per_image)
        return {"image_id": self.image_ids[index], "captions": captions}


class CaptioningCollator:
    r"""Rows with `image_id` and `captions` -> inputs of [`MIAForCaptioning`] with labels."""

    def __init__(self, processor: MIAProcessor, images: ImageInputs):
        self.processor, self.images = processor, images

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = self.images.read([row["image_id"] for row in rows])
        return dict(self.processor(captions=[row["captions"] for row in rows], **inputs))


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
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, not a sum to be divided
        self.add_callback(_EachEpoch())
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """With gradients clipped by value before each step, if asked for."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        if self.args.max_grad_value is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            limit = self.args.max_grad_value
            optimizer.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_value_(parameters, limit))
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        factor = self.args.lr_decay_factor
        if factor is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            batches = math.ceil(len(self.train_dataset) / (self.args.train_batch_size * self.args.world_size))
            steps_per_epoch = math.ceil(batches / self.args.gradient_accumulation_steps)

            def scale(step: int) -> float:
                epochs = step // steps_per_epoch - self.args.lr_decay_start
                return factor ** max(0, epochs // self.args.lr_decay_every)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.create_optimizer(), scale)
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


def write_captions(
    model: MIAForCaptioning,
    processor: MIAProcessor,
    images: ImageInputs,
    image_ids: Sequence[str],
    *,
    num_beams: int = 1,
    batch_size: int = 50,
) -> list[str]:
    """A caption for each image."""
    model.eval()
    captions: list[str] = []
    for start in range(0, len(image_ids), batch_size):
        inputs = processor(**images.read(image_ids[start : start + batch_size])).to(model.device)
        sequences = model.generate(**inputs, num_beams=num_beams, do_sample=False)
        captions += processor.batch_decode(sequences)
    return captions


def ground_captions(
    model: MIAForCaptioning,
    processor: MIAProcessor,
    images: ImageInputs,
    image_ids: Sequence[str],
    *,
    num_beams: int = 1,
) -> list[tuple[Regions, GroundedCaption]]:
    """For each image the regions that the model sees, and its caption with the region of each word."""
    model.eval()
    shown = images.read(image_ids)
    inputs = processor(**shown).to(model.device)
    outputs = model.generate(
        **inputs, num_beams=num_beams, do_sample=False, return_dict_in_generate=True, output_attentions=True
    )
    captions = processor.post_process_grounded_captions(outputs, shown["regions"])
    return list(zip(shown["regions"], captions, strict=True))


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    r"""Caption metrics, and how varied the captions are.

    Returns:
        `dict`: "captions", name -> score, with "absent", and "distinct", "mean_length" and "vocabulary" of what was
        written.
    """
    scores = compute_caption_metrics(captions, references, metrics=["bleu", "meteor", "rouge_l", "cider_d"])
    words = [caption.split() for caption in captions]
    variety = {
        "distinct": len(set(captions)),
        "mean_length": sum(map(len, words)) / len(words),
        "vocabulary": len({word for row in words for word in row}),
    }
    if len(captions) >= 20 and variety["distinct"] <= len(captions) // 20:
        logger.warning("Only %d distinct captions for %d images.", variety["distinct"], len(captions))
    return {"captions": {name: value for name, value in scores.items() if name != "per_image"} | variety}


def load_images(recipe: Recipe, rows: Dataset, split: str) -> ImageInputs:
    r"""Regions and concepts of a split, from the recipe's files, or simulated for scenes.

    Raises:
        ValueError: If an image lacks captions, regions or concepts, or no store is named.
    """
    bare = [row for row, captions in enumerate(rows["captions"]) if not captions]
    if bare:
        example = rows["image_id"][bare[0]]
        raise ValueError(f"{len(bare)} images of '{split}' have no caption, such as '{example}'; leave them out.")
    images = _simulated(recipe, rows) if recipe.dataset.name == "scenes" else _extracted(recipe.images)
    images.check(rows["image_id"], split)
    return images


def _simulated(recipe: Recipe, rows: Dataset) -> ImageInputs:
    options = {name: recipe.dataset.options[name] for name in ("attributes",) if name in recipe.dataset.options}
    detector = SceneDetector(**options, **recipe.images.scene_detector)
    concepts = {row["image_id"]: scene_concepts(row, **options) for row in rows}
    regions = {row["image_id"]: detector(row) for row in rows}
    return ImageInputs(regions, concepts, withheld=recipe.images.withhold_image)


def _extracted(settings: RegionSettings) -> ImageInputs:
    if settings.store is None:
        raise ValueError("Section `regions` names no `store`; make one with `hf-grounding extract-features`.")
    concepts = None
    if settings.concepts is not None:
        found = read_image_concepts(below_data_root(settings.concepts))
        concepts = {str(image_id): words for image_id, words in found.items()}
    return ImageInputs(RegionStore(below_data_root(settings.store)), concepts, withheld=settings.withhold_image)


def build_captioner(
    recipe: Recipe, captions: Sequence[Sequence[str]], feature_dim: int
) -> tuple[MIAForCaptioning, MIAProcessor]:
    """Untrained model and processor of a recipe; the vocabulary is that of `captions`."""
    settings, sources = recipe.captions, recipe.images
    tokenizer = train_caption_tokenizer(
        (caption for row in captions for caption in row),
        convention=settings.convention,
        min_count=settings.min_count,
        max_words=settings.max_words,
    )
    special = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
    config = MIAConfig(
        vocab_size=len(tokenizer),
        feature_dim=feature_dim,
        **{name: getattr(tokenizer, name) for name in special},
        **recipe.model,
    )
    model = MIAForCaptioning(config)
    generation = model.generation_config
    generation.max_new_tokens = tokenizer.model_max_length
    generation.num_beams = settings.num_beams
    if settings.num_beams > 1:
        generation.length_penalty = 0.0
    never = {getattr(tokenizer, name) for name in special} - {tokenizer.eos_token_id}
    generation.suppress_tokens = sorted(never)  # a word that nobody can read is no word
    sizes = {"max_regions": sources.max_regions, "max_concepts": sources.max_concepts}
    return model, MIAProcessor(None, tokenizer, extraction=sources.extraction, **sizes)


def train_captioner(recipe: Recipe, output_dir: str | os.PathLike, *, resume: bool = False) -> dict[str, Any]:
    r"""Trains a captioner by its recipe, keeps the best checkpoint and evaluates it; see `run.train`."""
    output_dir = Path(output_dir)
    checkpoint = start_from(output_dir, recipe, resume=resume)
    keep_freed_memory()
    args = CaptioningTrainingArguments(output_dir=str(output_dir), **recipe.training)
    set_seed(args.seed)
    train_split, eval_split = recipe.dataset.train_split, recipe.dataset.eval_split
    train_rows, eval_rows = load_split(recipe, train_split), load_split(recipe, eval_split)
    train_images = load_images(recipe, train_rows, train_split)
    eval_images = load_images(recipe, eval_rows, eval_split)
    features = train_images.regions[train_rows["image_id"][0]].region_features
    if features is None:
        raise ValueError("The regions have no features; extract them again with a `--backbone`.")
    model, processor = build_captioner(recipe, train_rows["captions"][:], features.shape[1])
    if model.config.uses_concepts and train_images.concepts is None:
        raise ValueError(
            "This captioner reads concepts, and section `regions` names no `concepts`; make them with `hf-grounding "
            "extract-concepts`, or set `mia_iterations: 0` and a decoder without concepts."
        )
    trainer = CaptioningTrainer(
        model=model,
        args=args,
        train_dataset=CaptionsPerImage(train_rows, args.captions_per_image, args.seed),
        eval_dataset=eval_rows,
        data_collator=CaptioningCollator(processor, train_images),
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


def measure_captioner(
    model: MIAForCaptioning,
    processor: MIAProcessor,
    recipe: Recipe,
    split: str,
    rows: Dataset,
    images: ImageInputs,
    training: tuple[Dataset, ImageInputs] | None = None,
) -> dict[str, Any]:
    """Scores of the captions of a split, written with the recipe's beams, and of [`measure_baselines`]."""
    num_beams = recipe.captions.num_beams
    captions = write_captions(model, processor, images, rows["image_id"], num_beams=num_beams)
    results = score_captions(captions, rows["captions"][:])
    results["baselines"] = measure_baselines(rows, images, training)
    facts = {"num_beams": num_beams, "image_withheld": images.withheld}
    return results | facts | evaluation_facts(split, rows)


def measure_baselines(
    rows: Dataset, images: ImageInputs, training: tuple[Dataset, ImageInputs] | None = None
) -> dict[str, dict[str, Any]]:
    r"""Scores, as [`score_captions`] gives them, of captions that need no captioner.

    Args:
        training (*optional*): Images with captions to borrow; without them that baseline is left out. An image that is
            one of them borrows from the others.

    Returns:
        `dict`: "consensus of similar photos" by [`consensus_captions`]; "one human caption" by
        [`one_against_the_others`], where images have several.
    """
    references = rows["captions"][:]
    baselines = {}
    if training is not None:
        train_rows, train_images = training
        position = {image_id: row for row, image_id in enumerate(train_rows["image_id"])}
        borrowed = consensus_captions(
            images.mean_features(rows["image_id"]),
            train_images.mean_features(train_rows["image_id"]),
            train_rows["captions"][:],
            own=[position.get(image_id, -1) for image_id in rows["image_id"]],
        )
        baselines["consensus of similar photos"] = score_captions(borrowed, references)["captions"]
    people, others = one_against_the_others(references)
    if people:
        baselines["one human caption"] = score_captions(people, others)["captions"]
    return baselines


def evaluate_captioner(
    model_dir: str | os.PathLike, recipe: Recipe, split: str, report: str | os.PathLike | None = None
) -> dict[str, Any]:
    r"""Measures a trained captioner on a split of its recipe's data; see `run.evaluate`."""
    rows = load_split(recipe, split)
    images = load_images(recipe, rows, split)
    model = MIAForCaptioning.from_pretrained(model_dir).to(PartialState().device)
    processor = MIAProcessor.from_pretrained(model_dir)
    results = measure_captioner(model, processor, recipe, split, rows, images, _training_images(recipe))
    if report is not None:
        title = f"{Path(model_dir).resolve().name} on {split}: {recipe.description}"
        with_curve = results | {"curve": saved_curve(Path(model_dir))}
        report_captioner(Path(report), title, with_curve, model, processor, recipe, rows, images)
    return results


def report_captioner(
    path: Path,
    title: str,
    results: Mapping[str, Any],
    model: MIAForCaptioning,
    processor: MIAProcessor,
    recipe: Recipe,
    rows: Dataset,
    images: ImageInputs,
) -> None:
    """Writes the report of a captioner whose `results` are known."""
    chosen = evenly_spaced(len(rows), NUM_EXAMPLES)
    image_ids = [rows["image_id"][index] for index in chosen]
    shown = ground_captions(model, processor, images, image_ids, num_beams=recipe.captions.num_beams)
    examples = dict(zip(chosen, shown, strict=True))
    write_report(path, build_caption_report(title, results, examples, rows, asdict(recipe)))


def _training_images(recipe: Recipe) -> tuple[Dataset, ImageInputs] | None:
    """Training images, where they are at hand: a model can be measured without them."""
    split = recipe.dataset.train_split
    try:
        rows = load_split(recipe, split)
        return rows, load_images(recipe, rows, split)
    except (ValueError, OSError) as error:
        logger.warning("Without the training images there is no consensus of similar photos to compare with: %s", error)
        return None
