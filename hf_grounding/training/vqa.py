"""Question answerers: training with soft targets by the schedules of the two answer heads' public codes.

Questions, answers and batches are in `vqa_data.py`, what is answered and how it is scored in `vqa_evaluation.py`.
"""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import EarlyStoppingCallback, Trainer, TrainerControl, set_seed

from ..modeling.configuration_mia_vqa import MIAVQAConfig
from ..modeling.modeling_mia_vqa import MIAForVQA
from ..processing.paths import below_data_root
from ..processing.processing_mia_vqa import LOCATION_SIZE, MIAVQAProcessor
from ..processing.question_tokenizers import train_question_tokenizer
from ..processing.words import load_word_vectors
from .arguments import RecipeTrainingArguments
from .caption_data import ImageInputs, extraction_of, load_inputs
from .checkpoints import start_from
from .common import (
    REPORT_FILE,
    epoch_scheduler,
    keep_freed_memory,
    load_split,
    run_training,
    saved_curve,
    set_learning_rate,
    training_facts,
    write_results,
)
from .recipe import Recipe
from .vqa_data import Question, QuestionSet, VQACollator, answer_vocabulary, answered, cooccurring_vectors, questions_of
from .vqa_evaluation import (
    answer_questions,
    measure_answers,
    report_answers,
    run_facts,
    score_answers,
    write_answers,
)

logger = logging.getLogger(__name__)

ANSWERS_FILE = "answers.json"


@dataclass
class VQATrainingArguments(RecipeTrainingArguments):
    r"""`RecipeTrainingArguments`, and what the schedules of the answer heads need.

    Args:
        adamax (`bool`): Adamax in place of `optim`, as both public codes; its betas and epsilon are torch's, so
            `optim_args`, `adam_beta1`, `adam_beta2` and `adam_epsilon` are not read.
        lr_epoch_factors (list of `float`): Of the learning rate in the first epochs, the last one in those that follow
            too. Replaces `lr_scheduler_type`, and its `warmup_steps` are refused beside it. BAN: 0.5, 1, 1.5, 2.
        lr_decay_epochs (list of `int`): Epochs, counted from 0, from which on the learning rate is multiplied by
            `lr_decay_factor`. Replaces `lr_scheduler_type` likewise. BAN: 10 and 12.
        lr_decay_factor (`float`): BAN: 0.25.
        mia_learning_rate (`float`, *optional*): As in [`CaptioningTrainingArguments`].
        metric_for_best_model (`str`): Only the accuracy is measured while a model is trained.

    Raises:
        ValueError: If a value is out of its range, or as [`RecipeTrainingArguments`].
    """

    adamax: bool = field(default=False)
    lr_epoch_factors: list[float | int] = field(default_factory=list)
    lr_decay_epochs: list[int] = field(default_factory=list)
    lr_decay_factor: float = field(default=0.25)
    mia_learning_rate: float | None = field(default=None)
    metric_for_best_model: str | None = field(default="vqa_accuracy")

    def __post_init__(self):
        self.label_names = ["labels"]
        metric = self.metric_for_best_model or "vqa_accuracy"
        if metric.removeprefix("eval_") != "vqa_accuracy":
            raise ValueError(f"`metric_for_best_model` must be vqa_accuracy, got {metric!r}.")
        factors = [*self.lr_epoch_factors, self.lr_decay_factor]
        if not all(factor > 0 and math.isfinite(factor) for factor in factors):
            raise ValueError(f"`lr_epoch_factors` and `lr_decay_factor` must be above 0 and finite, got {factors}.")
        if any(epoch < 0 for epoch in self.lr_decay_epochs):
            raise ValueError(f"`lr_decay_epochs` are counted from 0, got {self.lr_decay_epochs}.")
        if self.warmup_steps and (self.lr_epoch_factors or self.lr_decay_epochs):
            raise ValueError(
                f"`warmup_steps` is {self.warmup_steps}, but `lr_epoch_factors` and `lr_decay_epochs` set the learning "
                "rate; leave it out, and warm up by `lr_epoch_factors`."
            )
        if self.mia_learning_rate is not None and not 0 < self.mia_learning_rate < math.inf:
            raise ValueError(f"`mia_learning_rate` must be above 0, got {self.mia_learning_rate}.")
        super().__post_init__()

    def learning_rate_factor(self, epoch: int) -> float:
        """Of the learning rate in an epoch, counted from 0."""
        factors = self.lr_epoch_factors or [1]
        decays = sum(epoch >= start for start in self.lr_decay_epochs)
        return factors[min(epoch, len(factors) - 1)] * self.lr_decay_factor**decays


class VQATrainer(Trainer):
    r"""Trains [`MIAForVQA`] on a [`QuestionSet`].

    Args:
        processor ([`MIAVQAProcessor`]): Not `processing_class`, of which the Trainer wants a tokenizer.
        eval_questions (list of [`Question`]): Measured by [`evaluate`].
        eval_images ([`ImageInputs`]): Regions and concepts of theirs.
    """

    args: VQATrainingArguments
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None
    control: TrainerControl

    def __init__(
        self,
        *,
        args: VQATrainingArguments,
        processor: MIAVQAProcessor,
        eval_questions: Sequence[Question],
        eval_images: ImageInputs,
        **kwargs: Any,
    ):
        optimizer = (torch.optim.Adamax, {"lr": args.learning_rate}) if args.adamax else None
        super().__init__(
            args=args, eval_dataset=QuestionSet(eval_questions), optimizer_cls_and_kwargs=optimizer, **kwargs
        )
        self.processor, self.eval_questions, self.eval_images = processor, eval_questions, eval_images
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, not a sum to be divided
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """With a learning rate of the module's own, if asked for."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        if self.args.mia_learning_rate is not None and self.model.model.mia is not None:
            set_learning_rate(optimizer, set(self.model.model.mia.parameters()), self.args.mia_learning_rate)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if not (self.args.lr_epoch_factors or self.args.lr_decay_epochs):
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = epoch_scheduler(self, optimizer, self.args.learning_rate_factor)
        return self.lr_scheduler

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Accuracy of the likeliest answers."""
        started = time.perf_counter()
        answers = answer_questions(
            self.accelerator.unwrap_model(self.model),
            self.processor,
            self.eval_images,
            self.eval_questions,
            batch_size=self.args.per_device_eval_batch_size,
        )
        accuracy = score_answers(answers, self.eval_questions)["vqa_accuracy"]
        metrics = {
            f"{metric_key_prefix}_vqa_accuracy": accuracy,
            f"{metric_key_prefix}_runtime": time.perf_counter() - started,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def build_answerer(
    recipe: Recipe, questions: Sequence[str], answers: Sequence[str], concepts: Sequence[str], feature_dim: int
) -> tuple[MIAForVQA, MIAVQAProcessor]:
    r"""Untrained model and processor of a recipe.

    Args:
        questions: Their words are the vocabulary.
        answers: Those that the model can give.
        concepts: Words that the concepts of images are; not kept for a model that reads none.
        feature_dim: Of the regions, as they are stored.
    """
    settings, sources = recipe.questions, recipe.images
    tokenizer = train_question_tokenizer(questions, min_count=settings.min_count)
    config = MIAVQAConfig(
        feature_dim=feature_dim + LOCATION_SIZE * sources.append_locations,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        concept_vocab_size=max(1, len(concepts)),
        id2label=dict(enumerate(answers)),
        **recipe.model,
    )
    model = MIAForVQA(config)
    if settings.word_vectors is not None:
        vectors = load_word_vectors(below_data_root(settings.word_vectors), tokenizer.get_vocab())
        seconds = None
        if config.tfidf_word_embeddings:
            ids = tokenizer(list(questions), truncation=False, verbose=False)["input_ids"]
            seconds = cooccurring_vectors(ids, vectors, special=tokenizer.all_special_ids)
        model.set_word_vectors(vectors, seconds)
    processor = MIAVQAProcessor(
        tokenizer,
        concepts=list(concepts) if config.uses_concepts else [],
        answers=list(answers),
        max_regions=sources.max_regions,
        max_concepts=sources.max_concepts,
        append_locations=sources.append_locations,
        extraction=extraction_of(recipe),
    )
    return model, processor


def train_answerer(recipe: Recipe, output_dir: str | os.PathLike, *, resume: bool = False) -> dict[str, Any]:
    r"""Trains a question answerer by its recipe, keeps the best checkpoint and evaluates it; see `run.train`.

    The answers to the questions of the evaluation are written to `answers.json` in `output_dir`.
    """
    output_dir = Path(output_dir)
    checkpoint = start_from(output_dir, recipe, resume=resume)
    keep_freed_memory()
    args = VQATrainingArguments(output_dir=str(output_dir), **recipe.training)
    set_seed(args.seed)
    train_split, eval_split = recipe.dataset.train_split, recipe.dataset.eval_split
    train_rows, eval_rows = load_split(recipe, train_split), load_split(recipe, eval_split)
    train_questions = answered(questions_of(train_rows), train_split)
    eval_questions = answered(questions_of(eval_rows), eval_split)
    train_images = load_inputs(recipe, train_rows, train_split)
    eval_images = load_inputs(recipe, eval_rows, eval_split)
    assert train_images.regions is not None  # a recipe of this system has no backbone
    features = train_images.regions[train_rows["image_id"][0]].region_features
    if features is None:
        raise ValueError("The regions have no features; extract them again with a `--backbone`.")
    seen = warn_of_seen(eval_questions, train_questions, eval_split, train_split)
    asked, counted = _vocabulary_questions(recipe, train_questions)
    known = answer_vocabulary(counted, recipe.answers.min_count, recipe.answers.max_answers)
    concepts = sorted({word for words in (train_images.concepts or {}).values() for word in words})
    model, processor = build_answerer(recipe, asked, known, concepts, features.shape[1])
    if model.config.uses_concepts and train_images.concepts is None:
        raise ValueError(
            "Mutual attention reads concepts, and section `regions` names no `concepts`; make them with `hf-grounding "
            "extract-concepts`, or set `mia_iterations: 0`, or `mia_attention: self` and `mia_output: visual`."
        )
    trainer = VQATrainer(
        model=model,
        args=args,
        train_dataset=QuestionSet(train_questions),
        data_collator=VQACollator(processor, train_images),
        processor=processor,
        eval_questions=eval_questions,
        eval_images=eval_images,
    )
    started = time.perf_counter()
    trained = run_training(trainer, processor, recipe, checkpoint)
    answers = answer_questions(trained, processor, eval_images, eval_questions)
    results = measure_answers(answers, eval_questions, known, train_questions)
    results |= run_facts(eval_split, eval_rows, eval_questions, eval_images) | training_facts(trainer, started)
    results["questions_seen_in_training"] = seen
    if trainer.is_world_process_zero():
        write_results(output_dir, results)
        write_answers(output_dir / ANSWERS_FILE, eval_questions, answers)
        title = f"{output_dir.name}: {recipe.description}"
        report_answers(
            output_dir / REPORT_FILE,
            title,
            results,
            trained,
            processor,
            recipe,
            eval_rows,
            eval_questions,
            eval_images,
        )
    return results


def warn_of_seen(questions: Sequence[Question], training: Sequence[Question], split: str, train_split: str) -> int:
    """How many of the questions are among those of the training; if any are, it says what their accuracy is not."""
    known = {(question.image_id, question.question_id) for question in training}
    seen = sum((question.image_id, question.question_id) in known for question in questions)
    if seen:
        logger.warning(
            "%d of the %d questions of '%s' are also in the training split '%s': their accuracy is that of a model "
            "which knows the answers, not of one that meets new questions.",
            *(seen, len(questions), split, train_split),
        )
    return seen


def _vocabulary_questions(recipe: Recipe, train_questions: Sequence[Question]) -> tuple[list[str], Sequence[Question]]:
    """Texts whose words are the questions' vocabulary, and questions whose answers are counted."""

    def of(split: str | None) -> Sequence[Question]:
        return train_questions if split is None else questions_of(load_split(recipe, split))

    answers_split = recipe.answers.split
    counted = train_questions if answers_split is None else answered(of(answers_split), answers_split)
    return [question.text for question in of(recipe.questions.split)], counted


def evaluate_answerer(
    model_dir: str | os.PathLike,
    recipe: Recipe,
    split: str,
    report: str | os.PathLike | None = None,
    answers: str | os.PathLike | None = None,
) -> dict[str, Any]:
    r"""Measures a trained question answerer on a split of its recipe's data; see `run.evaluate`.

    Args:
        answers (*optional*): Write the answers to this JSON file, in VQA's format for results. With it the questions
            may be those of a test, whose answers nobody knows: they are not measured then.
    """
    rows = load_split(recipe, split)
    questions = questions_of(rows)
    measured = answers is None or any(question.answers for question in questions)
    if measured:
        answered(questions, split)
    images = load_inputs(recipe, rows, split)
    model = MIAForVQA.from_pretrained(model_dir).to(PartialState().device)
    processor = MIAVQAProcessor.from_pretrained(model_dir)
    given = answer_questions(model, processor, images, questions)
    if answers is not None:
        write_answers(Path(answers), questions, given)
    results: dict[str, Any] = {"answers": {"count": len(given)}, "baselines": {}}
    if measured:
        training = _training_questions(recipe)
        results = measure_answers(given, questions, processor.answers, training)
        if training is not None:
            seen = warn_of_seen(questions, training, split, recipe.dataset.train_split)
            results["questions_seen_in_training"] = seen
    results |= run_facts(split, rows, questions, images)
    if report is not None:
        title = f"{Path(model_dir).resolve().name} on {split}: {recipe.description}"
        with_curve = results | {"curve": saved_curve(Path(model_dir))}
        report_answers(Path(report), title, with_curve, model, processor, recipe, rows, questions, images)
    return results


def _training_questions(recipe: Recipe) -> Sequence[Question] | None:
    """Of the training split, where it is at hand: a model can be measured without it."""
    try:
        return questions_of(load_split(recipe, recipe.dataset.train_split))
    except (ValueError, OSError) as error:
        logger.warning("Without the training questions there is no majority answer to compare with: %s", error)
        return None
