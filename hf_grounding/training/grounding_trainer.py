"""`GroundingTrainer`: transformers' Trainer with the spec's schedule and evaluation by the pointing game."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerControl

from ..data.feature_store import FeatureStore
from .arguments import RecipeTrainingArguments
from .grounding_evaluation import predict_groundings, score_groundings

METRICS = ("pointing_accuracy", "attention_correctness")  # what an evaluation during training gives


@dataclass
class GroundingTrainingArguments(RecipeTrainingArguments):
    r"""`RecipeTrainingArguments`, and what the paper's schedule needs.

    Args:
        halve_learning_rate_at (`list[int]`, *optional*): Halve the learning rate when these many epochs are done (the
            authors' notebooks: 9 and 14 of 20). Replaces `lr_scheduler_type`.
        mirror_images (`bool`): Mirror half of the training images; ours.
        metric_for_best_model (`str`): Of `GroundingTrainer.evaluate`; default the pointing game.

    Raises:
        ValueError: If there is no such metric, or as [`RecipeTrainingArguments`].
    """

    halve_learning_rate_at: list[int] | None = field(default=None)
    mirror_images: bool = field(default=False)
    metric_for_best_model: str | None = field(default=METRICS[0])

    def __post_init__(self):
        # A batch must hold distinct images and be full: its size is the number of negatives.
        self.dataloader_drop_last = True
        self.label_names = []
        metric = self.metric_for_best_model or METRICS[0]
        name = metric.removeprefix("eval_")
        if name not in METRICS and not name.startswith(f"{METRICS[0]}_"):
            raise ValueError(
                f"`metric_for_best_model` must be one of {', '.join(METRICS)} or {METRICS[0]}_<category>, "
                f"got {metric!r}."
            )
        super().__post_init__()


class _DrawNewCaptions(TrainerCallback):
    """Tells the training set its epoch.

    Accelerate's data loaders do so too, but not when their batch sampler is wrapped, as in sharded or resumed runs.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        train_dataloader.dataset.set_epoch(int(state.epoch + 1e-6))


class GroundingTrainer(Trainer):
    r"""Trains [`MultiLevelGroundingModel`] on [`CaptionPerImage`] examples.

    Args:
        eval_dataset (`datasets.Dataset`): Rows with `captions` and `phrases`.
        eval_store ([`FeatureStore`], *optional*): Maps of their images; evaluation needs them.
        protocol (`dict`): `query_heatmap`, `box_rule` and `min_box_area` of the scores.
    """

    args: GroundingTrainingArguments
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None
    control: TrainerControl

    def __init__(self, *args: Any, eval_store: FeatureStore | None = None, protocol: dict | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.eval_store = eval_store
        self.protocol = dict(protocol or {})
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, not a sum to be divided
        self.add_callback(_DrawNewCaptions())
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.args.halve_learning_rate_at is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            steps_per_epoch = len(self.train_dataset) // batch_size
            milestones = [round(epoch * steps_per_epoch) for epoch in self.args.halve_learning_rate_at]
            self.lr_scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer or self.optimizer, milestones, gamma=0.5)
        return self.lr_scheduler

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Pointing accuracy (the metric of the best checkpoint), overall and by category, and attention correctness."""
        if self.eval_store is None:
            raise ValueError("Evaluation needs `eval_store`, the feature maps of the images of `eval_dataset`.")
        started = time.perf_counter()
        protocol = dict(self.protocol)
        predictions, captions = predict_groundings(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            self.eval_dataset if eval_dataset is None else eval_dataset,
            self.eval_store,
            query_heatmap=protocol.pop("query_heatmap", None),
            batch_size=self.args.per_device_eval_batch_size,
        )
        scores = score_groundings(predictions, captions, self.model.config.num_levels, num_resamples=0, **protocol)
        metrics = {"pointing_accuracy": scores["model"]["pointing_accuracy"]}
        metrics["attention_correctness"] = scores["attention_correctness"]["attention_correctness"]
        for category, values in scores["model"]["by_category"].items():
            metrics[f"pointing_accuracy_{category}"] = values["pointing_accuracy"]
        metrics["runtime"] = time.perf_counter() - started
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
