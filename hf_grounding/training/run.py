"""A run from its recipe: data, backbone, tokenizer, model, training, evaluation.

What `hf-grounding train` and `evaluate` do.
"""

import ctypes
import gzip
import json
import logging
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel, set_seed

from ..data import data_root, load_grounding_dataset
from ..data.feature_store import FeatureStore
from ..data.region_files import read_region_boxes
from ..modeling.configuration_multilevel import MultiLevelGroundingConfig
from ..modeling.modeling_multilevel import MultiLevelGroundingModel, choose_maps
from ..modeling.text_encoders import PretrainedTextEncoder
from ..processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from ..processing.processing_multilevel import MultiLevelGroundingProcessor
from ..processing.words import train_word_tokenizer
from ..visualization import write_report
from .checkpoints import check_output_dir, checkpoint_to_resume
from .features import default_cache_dir, feature_store
from .grounding_data import CaptionPerImage, GroundingCollator
from .grounding_evaluation import predict_groundings, score_groundings
from .grounding_trainer import GroundingTrainer, GroundingTrainingArguments
from .recipe import RECIPE_FILE, Recipe
from .report import build_report

logger = logging.getLogger(__name__)

RESULTS_FILE, REPORT_FILE = "results.json", "report.html"


def load_split(recipe: Recipe, split: str) -> Dataset:
    """One split of the recipe's data set."""
    settings = recipe.dataset
    data_dir = None if settings.data_dir is None else _below_data_root(settings.data_dir)
    return load_grounding_dataset(settings.name, split=split, data_dir=data_dir, **settings.options)


def build_model(
    recipe: Recipe, captions: Iterable[str]
) -> tuple[MultiLevelGroundingModel, MultiLevelGroundingProcessor]:
    r"""Untrained model and processor of a recipe; the vocabulary is that of `captions`, the training split's."""
    backbone, text = recipe.backbone, recipe.text
    size = {"height": backbone.image_size, "width": backbone.image_size}
    if backbone.path is not None and backbone.config is None:
        path = _below_data_root(backbone.path)
        network = AutoModel.from_pretrained(path)
        pretrained = AutoImageProcessor.from_pretrained(path)
        colours = {"image_mean": pretrained.image_mean, "image_std": pretrained.image_std}
    elif backbone.config is not None and backbone.path is None:
        network = AutoModel.from_config(AutoConfig.for_model(**backbone.config))
        colours = {}
    else:
        raise ValueError("Section `backbone` needs either `path` (pretrained weights) or `config` (random weights).")
    image_processor = MultiLevelGroundingImageProcessorPil(size=size, **colours)
    tokenizer = (
        AutoTokenizer.from_pretrained(text.encoder) if text.encoder else train_word_tokenizer(captions, text.min_count)
    )
    config = MultiLevelGroundingConfig(
        backbone_config=network.config,
        backbone_levels=backbone.levels,
        level_channels=_level_channels(network, backbone.levels),
        text_config=AutoConfig.from_pretrained(text.encoder) if text.encoder else None,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        **recipe.model,
    )
    model = MultiLevelGroundingModel(config)
    model.get_submodule("backbone.model").load_state_dict(network.state_dict())
    if isinstance(model.text_encoder, PretrainedTextEncoder):
        model.text_encoder.set_model(AutoModel.from_pretrained(text.encoder))
    elif text.word_vectors:
        _load_word_vectors(model, tokenizer, Path(_below_data_root(text.word_vectors)))
    processor = MultiLevelGroundingProcessor(
        image_processor, tokenizer, grid_size=config.grid_size, query_heatmap=recipe.evaluation.query_heatmap
    )
    return model, processor


def train(recipe: Recipe, output_dir: str | os.PathLike, *, resume: bool = False) -> dict[str, Any]:
    r"""Trains a recipe, keeps the best checkpoint and evaluates it.

    Model, processor, recipe, results and report are saved to `output_dir`.

    Args:
        resume (`bool`): Go on from the last complete checkpoint in `output_dir`.

    Returns:
        What [`evaluate`] returns, with the training's seconds and curve.

    Raises:
        FileExistsError: If `output_dir` holds an earlier run, and this one does not go on with it.
    """
    output_dir = Path(output_dir)
    checkpoint = None
    if resume:
        checkpoint = checkpoint_to_resume(output_dir, recipe)
    else:
        check_output_dir(output_dir)
    keep_freed_memory()
    args = GroundingTrainingArguments(output_dir=str(output_dir), **recipe.training)
    set_seed(args.seed)
    train_rows = load_split(recipe, recipe.dataset.train_split)
    eval_rows = load_split(recipe, recipe.dataset.eval_split)
    regions = _detected_regions(
        recipe, recipe.dataset.eval_split, eval_rows["image_id"]
    )  # a broken file must not cost a training
    batch_size = args.train_batch_size * args.world_size
    if len(train_rows) < batch_size:
        raise ValueError(
            f"Split '{recipe.dataset.train_split}' has {len(train_rows)} images, which do not fill one batch of "
            f"{batch_size}; lower `per_device_train_batch_size` or give more images."
        )
    model, processor = build_model(recipe, (caption for row in train_rows["captions"] for caption in row))
    cache_dir = recipe.backbone.feature_dir or default_cache_dir()
    model.to(args.device)
    with args.main_process_first(desc="features of the frozen backbone"):
        plain = feature_store(model, processor, train_rows, cache_dir, bf16=args.bf16)
        mirrored = None
        if args.mirror_images:
            mirrored = feature_store(model, processor, train_rows, cache_dir, flip=True, bf16=args.bf16)
        eval_store = feature_store(model, processor, eval_rows, cache_dir, bf16=args.bf16)
    set_seed(args.seed)  # whether features were computed or found must not change the run
    trainer = GroundingTrainer(
        model=model,
        args=args,
        train_dataset=CaptionPerImage(train_rows, seed=args.seed, flip=args.mirror_images),
        eval_dataset=eval_rows,
        eval_store=eval_store,
        data_collator=GroundingCollator(processor, plain, mirrored),
        processing_class=processor,
        protocol=recipe.evaluation.protocol,
    )
    if trainer.is_world_process_zero():
        output_dir.mkdir(parents=True, exist_ok=True)
        recipe.save(output_dir)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    # Without the wrapper for mixed precision, so that `evaluate` measures the same.
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if trainer.is_world_process_zero():
        save(output_dir, trained, processor)  # before it is measured: whatever happens there, it is kept
    results, predictions = _evaluate_rows(
        trained, processor, recipe, recipe.dataset.eval_split, eval_rows, eval_store, regions
    )
    results |= {
        "seed": args.seed,
        "training_seconds": round(time.perf_counter() - started, 1),
        "epochs": trainer.state.epoch,
        "best_step": trainer.state.best_global_step,
        "curve": trainer.state.log_history,
    }
    if trainer.is_world_process_zero():
        aside = output_dir / f".{RESULTS_FILE}.part"
        aside.write_text(json.dumps(results, indent=1), encoding="utf-8")
        aside.replace(output_dir / RESULTS_FILE)
        report = build_report(
            f"{output_dir.name}: {recipe.description}", results, predictions, eval_rows, asdict(recipe)
        )
        write_report(output_dir / REPORT_FILE, report)
    return results


def evaluate(
    model_dir: str | os.PathLike,
    *,
    recipe: str | os.PathLike | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    min_box_area: float | None = None,
    box_rule: str | None = None,
    query_heatmap: str | None = None,
    regions: str | None = None,
    report: str | os.PathLike | None = None,
) -> dict[str, Any]:
    r"""Measures a trained model on a split of a data set.

    Data and protocol are those of `recipe`, by default the one saved with the model; the arguments after it override
    it. `report` is an HTML file to write.
    """
    keep_freed_memory()
    if recipe is None and not Path(model_dir, RECIPE_FILE).is_file():
        raise FileNotFoundError(
            f"'{model_dir}' has no {RECIPE_FILE}, so its data set is not known; name a recipe (`--recipe`)."
        )
    settings = Recipe.load(model_dir if recipe is None else recipe)
    overrides = {
        "min_box_area": min_box_area,
        "box_rule": box_rule,
        "query_heatmap": query_heatmap,
        "regions": regions,
    }
    for name, value in overrides.items():
        if value is not None:
            setattr(settings.evaluation, name, value)
    if data_dir is not None:
        settings.dataset.data_dir = data_dir
    split = split or settings.dataset.eval_split
    rows = load_split(settings, split)
    model = MultiLevelGroundingModel.from_pretrained(model_dir).to(PartialState().device)
    processor = MultiLevelGroundingProcessor.from_pretrained(model_dir)
    bf16 = bool(settings.training.get("bf16", False))  # as the features of a training with these settings
    regions_of_images = _detected_regions(settings, split, rows["image_id"])
    store = feature_store(model, processor, rows, settings.backbone.feature_dir or default_cache_dir(), bf16=bf16)
    results, predictions = _evaluate_rows(model, processor, settings, split, rows, store, regions_of_images)
    if report is not None:
        title = f"{Path(model_dir).resolve().name} on {split}: {settings.description}"
        page = build_report(
            title, results | {"curve": _saved_curve(Path(model_dir))}, predictions, rows, asdict(settings)
        )
        write_report(Path(report), page)
    return results


def _saved_curve(model_dir: Path) -> list[dict[str, float]] | None:
    path = model_dir / RESULTS_FILE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["curve"]
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("'%s' cannot be read (%r); the report has no training curve.", path, error)
        return None


def _evaluate_rows(
    model,
    processor,
    recipe: Recipe,
    split: str,
    rows: Dataset,
    store: FeatureStore,
    regions: dict[str, tuple[np.ndarray, np.ndarray]] | None,
) -> tuple[dict[str, Any], dict[str, list]]:
    protocol = recipe.evaluation.protocol
    predictions, captions = predict_groundings(
        model, processor, rows, store, query_heatmap=protocol.pop("query_heatmap"), with_boxes=True
    )
    scores = score_groundings(predictions, captions, model.config.num_levels, regions=regions, **protocol)
    scores["split"] = split
    scores["query_heatmap"] = recipe.evaluation.query_heatmap
    scores["num_images"] = len(rows)
    scores["date"] = date.today().isoformat()
    scores["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    return scores, predictions


def _detected_regions(
    recipe: Recipe, split: str, image_ids: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    if recipe.evaluation.regions is None:
        return None
    regions: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in dict.fromkeys(part.partition("[")[0].strip() for part in split.split("+")):
        path = Path(_below_data_root(recipe.evaluation.regions.replace("{split}", name)))
        if not path.exists():
            logger.warning("No file of regions '%s': the most confident region is not among the baselines.", path)
            return None
        regions |= read_region_boxes(path)
    without = [image_id for image_id in image_ids if image_id not in regions]
    if len(without) == len(image_ids):
        raise ValueError(f"'{path}' has regions of none of the images of '{split}', such as '{without[0]}'.")
    if without:
        logger.warning("No regions of %d images, such as '%s': misses of that baseline.", len(without), without[0])
    return regions


def save(output_dir: Path, model: Any, processor: Any) -> None:
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


def _below_data_root(path: str) -> str:
    """A path as it is if it exists, else below the data root, else unchanged (a name on the Hub)."""
    if os.path.exists(path) or os.path.isabs(path):
        return path
    try:
        below = data_root() / path
    except FileNotFoundError:
        return path
    return str(below) if below.exists() else path


def _level_channels(network: PreTrainedModel, levels: list[int]) -> list[int]:
    with torch.no_grad():
        pixels = torch.zeros(1, network.config.num_channels, 64, 64)
        return [level.shape[1] for level in choose_maps(network.eval()(pixels, output_hidden_states=True), levels)]


@torch.no_grad()
def _load_word_vectors(model: MultiLevelGroundingModel, tokenizer: Any, path: Path) -> None:
    """Rows of "word v1 v2 ..." for words of the vocabulary become their embeddings, scaled to the others' spread."""
    embeddings = model.get_input_embeddings().weight
    vocabulary = tokenizer.get_vocab()
    size = embeddings.shape[1]
    found = {}
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            word, *values = line.split() or [""]
            if word in vocabulary:
                if len(values) != size:
                    raise ValueError(
                        f"Line {number} of '{path}' has {len(values)} values but `word_embedding_size` is {size}; "
                        "make them equal."
                    )
                found[vocabulary[word]] = torch.tensor([float(value) for value in values])
    if not found:
        raise ValueError(f"'{path}' has no word of the vocabulary; lines must read `word v1 v2 ...`.")
    rows, vectors = torch.tensor(list(found)), torch.stack(list(found.values()))
    embeddings[rows] = vectors * (embeddings.std() / vectors.std())
    logger.info("Word vectors for %d of %d words from %s", len(found), len(vocabulary), path)
