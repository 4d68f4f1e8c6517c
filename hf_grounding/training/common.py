"""What the runs of all systems share: data and backbone of a recipe, facts about a run, saving."""

import ctypes
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel, Trainer

from ..data import load_grounding_dataset
from ..modeling.modeling_multilevel import choose_maps
from ..processing.extraction import load_vision_model
from ..processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from ..processing.paths import below_data_root
from .recipe import BackboneSettings, Recipe

logger = logging.getLogger(__name__)

RESULTS_FILE, REPORT_FILE = "results.json", "report.html"


def load_split(recipe: Recipe, split: str) -> Dataset:
    """One split of the recipe's data set."""
    settings = recipe.dataset
    data_dir = None if settings.data_dir is None else below_data_root(settings.data_dir)
    return load_grounding_dataset(settings.name, split=split, data_dir=data_dir, **settings.options)


def load_backbone(settings: BackboneSettings) -> tuple[PreTrainedModel, MultiLevelGroundingImageProcessorPil]:
    """Visual network of a recipe, and the image processor that makes its pixels."""
    size = {"height": settings.image_size, "width": settings.image_size}
    if settings.path is not None and settings.config is None:
        path = below_data_root(settings.path)
        network = load_vision_model(path)
        pretrained = AutoImageProcessor.from_pretrained(path)
        colours = {"image_mean": pretrained.image_mean, "image_std": pretrained.image_std}
    elif settings.config is not None and settings.path is None:
        network = AutoModel.from_config(AutoConfig.for_model(**settings.config))
        colours = {}
    else:
        raise ValueError("Section `backbone` needs either `path` (pretrained weights) or `config` (random weights).")
    return network, MultiLevelGroundingImageProcessorPil(size=size, **colours)


def evaluation_facts(split: str, rows: Dataset) -> dict[str, Any]:
    """Where and when something was measured."""
    return {
        "split": split,
        "num_images": len(rows),
        "date": date.today().isoformat(),
        "machine": describe_machine(PartialState().device),
    }


def describe_machine(device: torch.device) -> str:
    """`"x86_64, 2 cores, torch 2.13.0"`, and the GPU where `device` is one."""
    gpu = [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
    return ", ".join([platform.machine(), f"{os.cpu_count()} cores", *gpu, f"torch {torch.__version__}"])


def training_facts(trainer: Trainer, started: float) -> dict[str, Any]:
    """How a training went that began at `started` of `time.perf_counter`."""
    return {
        "seed": trainer.args.seed,
        "training_seconds": round(time.perf_counter() - started, 1),
        "epochs": trainer.state.epoch,
        "best_step": trainer.state.best_global_step,
        "curve": trainer.state.log_history,
    }


def write_results(output_dir: Path, results: dict[str, Any]) -> None:
    """`results.json`."""
    write_json(output_dir / RESULTS_FILE, results, indent=1)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Written aside and renamed, so that a full disk leaves what was there; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(json.dumps(value, indent=indent), encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def saved_curve(model_dir: Path) -> list[dict[str, float]] | None:
    """The trainer's log of the run that left its results in a folder."""
    path = model_dir / RESULTS_FILE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["curve"]
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("'%s' cannot be read (%r); the report has no training curve.", path, error)
        return None


def run_training(trainer: Trainer, processor: Any, recipe: Recipe, checkpoint: str | None) -> Any:
    """Trains into the trainer's output folder, from a checkpoint if there is one, and saves model and processor.

    Returns:
        The trained model, without the wrapper for mixed precision, so that `evaluate` measures the same.
    """
    output_dir = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        output_dir.mkdir(parents=True, exist_ok=True)
        recipe.save(output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if trainer.is_world_process_zero():
        _save(output_dir, trained, processor)  # before it is measured: whatever happens there, it is kept
    return trained


def set_learning_rate(optimizer: torch.optim.Optimizer, parameters: set[torch.nn.Parameter], rate: float) -> None:
    """Takes parameters out of their groups into groups of this rate, in all else the same."""
    for group in list(optimizer.param_groups):
        own = [each for each in group["params"] if each in parameters]
        if own:
            group["params"] = [each for each in group["params"] if each not in parameters]
            optimizer.add_param_group({**group, "params": own, "lr": rate})


def epoch_scheduler(
    trainer: Trainer, optimizer: torch.optim.Optimizer | None, factor: Callable[[int], float]
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate times the `factor` of each epoch, counted from 0."""
    args = trainer.args
    batches = math.ceil(len(trainer.train_dataset) / (args.train_batch_size * args.world_size))
    steps_per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer or trainer.create_optimizer(), lambda step: factor(step // steps_per_epoch)
    )


def _save(output_dir: Path, model: Any, processor: Any) -> None:
    """Model and processor.

    They are written aside, then each file is renamed into `output_dir`, the model's weights last.
    """
    aside = output_dir / ".saving"
    aside.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(aside)
    processor.save_pretrained(aside)
    for file in sorted(aside.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        os.replace(file, output_dir / file.name)
    aside.rmdir()


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory.

    By default it hands large blocks back to the system, and a step on a CPU makes and frees hundreds of them: much of
    its time goes into fresh pages (`benchmarks/multilevel.py` compares). Without glibc nothing happens.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**30)


def level_channels(network: PreTrainedModel, levels: list[int]) -> list[int]:
    """Channels of the chosen maps of a backbone."""
    with torch.no_grad():
        pixels = torch.zeros(1, network.config.num_channels, 64, 64)
        return [level.shape[1] for level in choose_maps(network.eval()(pixels, output_hidden_states=True), levels)]
