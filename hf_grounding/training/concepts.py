"""Concept detectors from captions: training, and evaluation by mean average precision.

An image's labels are the words of all its captions; nothing says where they are.
"""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerControl, set_seed

from ..data.feature_store import FeatureStore
from ..metrics.concept_ranking import concept_average_precision
from ..modeling.configuration_concepts import ConceptDetectorConfig
from ..modeling.modeling_concepts import ConceptDetector
from ..processing.concepts import FUNCTION_WORDS, ConceptProcessor, commonest_words
from ..visualization import write_report
from .arguments import RecipeTrainingArguments
from .checkpoints import start_from
from .common import (
    REPORT_FILE,
    evaluation_facts,
    keep_freed_memory,
    level_channels,
    load_backbone,
    load_split,
    run_training,
    saved_curve,
    training_facts,
    write_results,
)
from .features import default_cache_dir, feature_store, read_inputs
from .recipe import Recipe
from .report import build_concept_report

logger = logging.getLogger(__name__)

METRIC = "mean_average_precision"
NUM_WORDS = 200  # so many of the commonest content words are evaluated


@dataclass
class ConceptTrainingArguments(RecipeTrainingArguments):
    r"""`RecipeTrainingArguments` of a concept detector.

    Args:
        metric_for_best_model (`str`): The one of `ConceptTrainer.evaluate`: mean average precision.

    Raises:
        ValueError: If there is no such metric, or as [`RecipeTrainingArguments`].
    """

    metric_for_best_model: str | None = field(default=METRIC)

    def __post_init__(self):
        self.label_names = ["labels"]
        metric = self.metric_for_best_model or METRIC
        if metric.removeprefix("eval_") != METRIC:
            raise ValueError(f"`metric_for_best_model` must be {METRIC}, got {metric!r}.")
        super().__post_init__()


class ConceptCollator:
    r"""Rows with `image_id` and `captions` -> inputs of [`ConceptDetector`], with labels.

    Args:
        processor ([`ConceptProcessor`]): With the vocabulary.
        store ([`FeatureStore`]): Maps of the images.
    """

    def __init__(self, processor: ConceptProcessor, store: FeatureStore):
        self.processor, self.store = processor, store

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        labels = self.processor.labels([row["captions"] for row in rows])
        return {"labels": labels, **read_inputs(self.store, [row["image_id"] for row in rows])}


class ConceptTrainer(Trainer):
    r"""Trains [`ConceptDetector`] on rows with `image_id` and `captions`.

    Args:
        eval_dataset (`datasets.Dataset`): Such rows.
        processor ([`ConceptProcessor`]): Names the concepts. Not `processing_class`, of which the Trainer wants a
            tokenizer.
        eval_store ([`FeatureStore`]): Maps of the images of `eval_dataset`.
    """

    args: ConceptTrainingArguments
    optimizer: torch.optim.Optimizer | None
    control: TrainerControl

    def __init__(self, *args: Any, processor: ConceptProcessor, eval_store: FeatureStore, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.processor, self.eval_store = processor, eval_store
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, not a sum to be divided
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """With the groups of [`ConceptDetector.parameter_groups`]."""
        if self.optimizer is None:
            detector = self.accelerator.unwrap_model(self.model if model is None else model)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, detector)
            groups = detector.parameter_groups(self.args.learning_rate, self.args.weight_decay)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean average precision."""
        started = time.perf_counter()
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.accelerator.unwrap_model(self.model)
        probs = predict_concepts(model, self.eval_store, rows["image_id"], self.args.per_device_eval_batch_size)
        scores = score_concepts(probs, self.processor, rows["captions"])
        metrics = {METRIC: scores["concepts"][METRIC], "runtime": time.perf_counter() - started}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@torch.no_grad()
def predict_concepts(
    model: ConceptDetector, store: FeatureStore, image_ids: Sequence[str], batch_size: int = 8
) -> np.ndarray:
    """Probability of every concept in every image: (images, concepts)."""
    model.eval()
    batches = [image_ids[start : start + batch_size] for start in range(0, len(image_ids), batch_size)]
    probs = [model(**read_inputs(store, batch, model.device)).concept_probs.float().cpu() for batch in batches]
    return torch.cat(probs).numpy()


def score_concepts(probs: np.ndarray, processor: ConceptProcessor, captions: Sequence[Sequence[str]]) -> dict[str, Any]:
    r"""Mean average precision over the commonest content words of the captions, beside a trivial baseline.

    Content words are all but the function words of the public evaluation code. A word that the detector does not have
    counts with the same score for every image.

    Args:
        probs (`np.ndarray` of shape `(images, concepts)`): Of [`predict_concepts`].
        processor ([`ConceptProcessor`]): Names the concepts.
        captions: Those of each image.

    Returns:
        `dict`: "concepts", what [`concept_average_precision`] returns, with "share_by_concept", name -> share of images
        that have the word, "unknown", words the detector does not have, and "protocol"; "baselines", name -> mean
        average precision.
    """
    common = commonest_words(captions, NUM_WORDS + len(FUNCTION_WORDS))
    words = [word for word in common if word not in FUNCTION_WORDS][:NUM_WORDS]
    labels = ConceptProcessor(processor.image_processor, words).labels(captions).numpy()
    columns = {word: column for column, word in enumerate(processor.concepts)}
    scores = np.zeros(labels.shape)
    for position, word in enumerate(words):
        if word in columns:
            scores[:, position] = probs[:, columns[word]]
    concepts = concept_average_precision(scores, labels, concepts=words)
    concepts["share_by_concept"] = dict(zip(words, labels.mean(axis=0).tolist(), strict=True))
    concepts["unknown"] = [word for word in words if word not in columns]
    concepts["protocol"] = {"words": f"{NUM_WORDS} commonest of the split's captions", "without": list(FUNCTION_WORDS)}
    frequencies = np.broadcast_to(labels.mean(axis=0), labels.shape)  # the same for every image
    baseline = concept_average_precision(frequencies, labels)
    return {"concepts": concepts, "baselines": {"word frequency": baseline[METRIC]}}


def build_detector(recipe: Recipe, captions: Sequence[Sequence[str]]) -> tuple[ConceptDetector, ConceptProcessor]:
    r"""Untrained model and processor of a recipe; the concepts are the commonest words of `captions`.

    They are as many as `model.num_concepts`, by default 1,000, or fewer where there are no more words.
    """
    settings = dict(recipe.model)
    network, image_processor = load_backbone(recipe.network)
    processor = ConceptProcessor(image_processor)
    words = processor.build_vocabulary(captions, settings.pop("num_concepts", None) or 1000)
    (level,) = recipe.network.levels
    config = ConceptDetectorConfig(
        backbone_config=network.config,
        backbone_level=level,
        feature_channels=level_channels(network, [level])[0],
        id2label=dict(enumerate(words)),
        **settings,
    )
    model = ConceptDetector(config)
    model.get_submodule("backbone.model").load_state_dict(network.state_dict())
    return model, processor


def train_concepts(recipe: Recipe, output_dir: str | os.PathLike, *, resume: bool = False) -> dict[str, Any]:
    r"""Trains a concept detector by its recipe, keeps the best checkpoint and evaluates it; see `run.train`."""
    output_dir = Path(output_dir)
    checkpoint = start_from(output_dir, recipe, resume=resume)
    keep_freed_memory()
    args = ConceptTrainingArguments(output_dir=str(output_dir), **recipe.training)
    set_seed(args.seed)
    train_rows = _with_captions(load_split(recipe, recipe.dataset.train_split), recipe.dataset.train_split)
    eval_rows = _with_captions(load_split(recipe, recipe.dataset.eval_split), recipe.dataset.eval_split)
    model, processor = build_detector(recipe, train_rows["captions"])
    cache_dir = recipe.network.feature_dir or default_cache_dir()
    model.to(args.device)
    with args.main_process_first(desc="features of the frozen backbone"):
        store = feature_store(model, processor, train_rows, cache_dir, bf16=args.bf16)
        eval_store = feature_store(model, processor, eval_rows, cache_dir, bf16=args.bf16)
    set_seed(args.seed)  # whether features were computed or found must not change the run
    trainer = ConceptTrainer(
        model=model,
        args=args,
        train_dataset=train_rows.select_columns(["image_id", "captions"]),
        eval_dataset=eval_rows,
        data_collator=ConceptCollator(processor, store),
        processor=processor,
        eval_store=eval_store,
    )
    started = time.perf_counter()
    trained = run_training(trainer, processor, recipe, checkpoint)
    probs = predict_concepts(trained, eval_store, eval_rows["image_id"])
    results = score_concepts(probs, processor, eval_rows["captions"])
    results |= evaluation_facts(recipe.dataset.eval_split, eval_rows) | training_facts(trainer, started)
    if trainer.is_world_process_zero():
        write_results(output_dir, results)
        title = f"{output_dir.name}: {recipe.description}"
        report = build_concept_report(title, results, processor.rank(probs), eval_rows, asdict(recipe))
        write_report(output_dir / REPORT_FILE, report)
    return results


def evaluate_concepts(
    model_dir: str | os.PathLike, recipe: Recipe, split: str, report: str | os.PathLike | None = None
) -> dict[str, Any]:
    r"""Measures a trained concept detector on a split of its recipe's data; see `run.evaluate`."""
    rows = _with_captions(load_split(recipe, split), split)
    model = ConceptDetector.from_pretrained(model_dir).to(PartialState().device)
    processor = ConceptProcessor.from_pretrained(model_dir)
    bf16 = bool(recipe.training.get("bf16", False))  # as the features of a training with these settings
    store = feature_store(model, processor, rows, recipe.network.feature_dir or default_cache_dir(), bf16=bf16)
    probs = predict_concepts(model, store, rows["image_id"])
    results = score_concepts(probs, processor, rows["captions"]) | evaluation_facts(split, rows)
    if report is not None:
        title = f"{Path(model_dir).resolve().name} on {split}: {recipe.description}"
        with_curve = results | {"curve": saved_curve(Path(model_dir))}
        page = build_concept_report(title, with_curve, processor.rank(probs), rows, asdict(recipe))
        write_report(Path(report), page)
    return results


def _with_captions(rows: Dataset, split: str) -> Dataset:
    kept = [index for index, captions in enumerate(rows["captions"]) if captions]
    if not kept:
        raise ValueError(f"Split '{split}' has no image with captions, from which concepts are learned and measured.")
    if len(kept) < len(rows):
        logger.warning("%d images of '%s' have no captions and are left out.", len(rows) - len(kept), split)
        rows = rows.select(kept)
    return rows
