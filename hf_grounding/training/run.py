"""A run from its recipe: data, backbone, tokenizer, model, training, evaluation.

What `hf-grounding train` and `evaluate` do.
"""

import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoConfig, AutoModel, AutoTokenizer, set_seed

from ..data.feature_store import FeatureStore
from ..data.region_files import read_region_boxes
from ..modeling.configuration_multilevel import MultiLevelGroundingConfig
from ..modeling.modeling_multilevel import MultiLevelGroundingModel
from ..modeling.text_encoders import PretrainedTextEncoder
from ..processing.paths import below_data_root
from ..processing.processing_multilevel import MultiLevelGroundingProcessor
from ..processing.words import load_word_vectors, train_word_tokenizer
from ..visualization import write_report
from .captioning import CAPTIONERS, evaluate_captioner, train_captioner
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
from .concepts import evaluate_concepts, train_concepts
from .features import default_cache_dir, feature_store
from .grounding_data import CaptionPerImage, GroundingCollator
from .grounding_evaluation import predict_groundings, score_groundings
from .grounding_trainer import GroundingTrainer, GroundingTrainingArguments
from .recipe import RECIPE_FILE, SYSTEM_NOUNS, Recipe
from .report import build_report
from .vqa import evaluate_answerer, train_answerer

logger = logging.getLogger(__name__)


def build_model(
    recipe: Recipe, captions: Iterable[str]
) -> tuple[MultiLevelGroundingModel, MultiLevelGroundingProcessor]:
    r"""Untrained model and processor of a recipe; the vocabulary is that of `captions`, the training split's."""
    backbone, text = recipe.network, recipe.text
    network, image_processor = load_backbone(backbone)
    tokenizer = (
        AutoTokenizer.from_pretrained(text.encoder) if text.encoder else train_word_tokenizer(captions, text.min_count)
    )
    config = MultiLevelGroundingConfig(
        backbone_config=network.config,
        backbone_levels=backbone.levels,
        level_channels=level_channels(network, backbone.levels),
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
        _load_word_vectors(model, tokenizer, Path(below_data_root(text.word_vectors)))
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
    if recipe.system == "concept_detector":
        return train_concepts(recipe, output_dir, resume=resume)
    if recipe.system in CAPTIONERS:
        return train_captioner(recipe, output_dir, resume=resume)
    if recipe.system == "mia_vqa":
        return train_answerer(recipe, output_dir, resume=resume)
    output_dir = Path(output_dir)
    checkpoint = start_from(output_dir, recipe, resume=resume)
    keep_freed_memory()
    args = GroundingTrainingArguments(output_dir=str(output_dir), **recipe.training)
    set_seed(args.seed)
    train_rows = load_split(recipe, recipe.dataset.train_split)
    eval_rows = load_split(recipe, recipe.dataset.eval_split)
    # Now, since a broken file must not cost a training.
    regions = _detected_regions(recipe, recipe.dataset.eval_split, eval_rows["image_id"])
    batch_size = args.train_batch_size * args.world_size
    if len(train_rows) < batch_size:
        raise ValueError(
            f"Split '{recipe.dataset.train_split}' has {len(train_rows)} images, which do not fill one batch of "
            f"{batch_size}; lower `per_device_train_batch_size` or give more images."
        )
    model, processor = build_model(recipe, (caption for row in train_rows["captions"] for caption in row))
    cache_dir = recipe.network.feature_dir or default_cache_dir()
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
    started = time.perf_counter()
    trained = run_training(trainer, processor, recipe, checkpoint)
    results, predictions = _evaluate_rows(
        trained, processor, recipe, recipe.dataset.eval_split, eval_rows, eval_store, regions
    )
    results |= training_facts(trainer, started)
    if trainer.is_world_process_zero():
        write_results(output_dir, results)
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
    answers: str | os.PathLike | None = None,
    grounded_captions: str | os.PathLike | None = None,
    report: str | os.PathLike | None = None,
) -> dict[str, Any]:
    r"""Measures a trained model on a split of a data set.

    Data and protocol are those of `recipe`, by default the one saved with the model; the arguments after it override
    it. `report` is an HTML file to write, `answers` a JSON file with the answers of a question answerer,
    `grounded_captions` one with a captioner's words that name objects, and their boxes, of captions written greedily.
    """
    keep_freed_memory()
    if recipe is None and not Path(model_dir, RECIPE_FILE).is_file():
        raise FileNotFoundError(
            f"'{model_dir}' has no {RECIPE_FILE}, so its data set is not known; name a recipe (`--recipe`)."
        )
    settings = Recipe.load(model_dir if recipe is None else recipe)
    kind = AutoConfig.from_pretrained(model_dir).model_type
    if kind != settings.system:
        raise ValueError(f"'{model_dir}' holds a {kind}, and the recipe is of a {settings.system}.")
    overrides = {
        "min_box_area": min_box_area,
        "box_rule": box_rule,
        "query_heatmap": query_heatmap,
        "regions": regions,
    }
    for name, value in overrides.items():
        if value is not None:
            if settings.system != "multilevel_grounding":
                noun = SYSTEM_NOUNS[settings.system]
                raise ValueError(f"`{name}` is of phrase grounding, and '{model_dir}' holds a {noun}.")
            setattr(settings.evaluation, name, value)
    if answers is not None and settings.system != "mia_vqa":
        raise ValueError(
            f"`answers` is of question answerers, and '{model_dir}' holds a {SYSTEM_NOUNS[settings.system]}."
        )
    if grounded_captions is not None and settings.system not in CAPTIONERS:
        raise ValueError(
            f"`grounded_captions` is of captioners, and '{model_dir}' holds a {SYSTEM_NOUNS[settings.system]}."
        )
    if data_dir is not None:
        settings.dataset.data_dir = data_dir
    split = split or settings.dataset.eval_split
    if settings.system == "concept_detector":
        return evaluate_concepts(model_dir, settings, split, report)
    if settings.system in CAPTIONERS:
        return evaluate_captioner(model_dir, settings, split, report, grounded_captions)
    if settings.system == "mia_vqa":
        return evaluate_answerer(model_dir, settings, split, report, answers)
    rows = load_split(settings, split)
    model = MultiLevelGroundingModel.from_pretrained(model_dir).to(PartialState().device)
    processor = MultiLevelGroundingProcessor.from_pretrained(model_dir)
    bf16 = bool(settings.training.get("bf16", False))  # as the features of a training with these settings
    regions_of_images = _detected_regions(settings, split, rows["image_id"])
    store = feature_store(model, processor, rows, settings.network.feature_dir or default_cache_dir(), bf16=bf16)
    results, predictions = _evaluate_rows(model, processor, settings, split, rows, store, regions_of_images)
    if report is not None:
        title = f"{Path(model_dir).resolve().name} on {split}: {settings.description}"
        page = build_report(
            title, results | {"curve": saved_curve(Path(model_dir))}, predictions, rows, asdict(settings)
        )
        write_report(Path(report), page)
    return results


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
    scores |= {"query_heatmap": recipe.evaluation.query_heatmap, **evaluation_facts(split, rows)}
    return scores, predictions


def _detected_regions(
    recipe: Recipe, split: str, image_ids: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    if recipe.evaluation.regions is None:
        return None
    regions: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in dict.fromkeys(part.partition("[")[0].strip() for part in split.split("+")):
        path = Path(below_data_root(recipe.evaluation.regions.replace("{split}", name)))
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


@torch.no_grad()
def _load_word_vectors(model: MultiLevelGroundingModel, tokenizer: Any, path: Path) -> None:
    """Rows of "word v1 v2 ..." for words of the vocabulary become their embeddings, scaled to the others' spread."""
    embeddings = model.get_input_embeddings().weight
    vectors, size = load_word_vectors(path, tokenizer.get_vocab()), embeddings.shape[1]
    if vectors.shape[1] != size:
        raise ValueError(
            f"Vectors of '{path}' have {vectors.shape[1]} values but `word_embedding_size` is {size}; make them equal."
        )
    (rows,) = vectors.any(dim=1).nonzero(as_tuple=True)
    embeddings[rows] = vectors[rows] * (embeddings.std() / vectors[rows].std())
    logger.info("Word vectors for %d of %d words from %s", len(rows), len(vectors), path)
