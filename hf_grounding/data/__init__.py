"""Data sets with one schema: `load_grounding_dataset("flickr30k_entities")`; `list_datasets()` names them all.

The columns are described in `schema.py`; every other file is one data set or a part of one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from datasets import (
    BuilderConfig,
    Dataset,
    DatasetDict,
    GeneratorBasedBuilder,
    IterableDataset,
    IterableDatasetDict,
)

from ..processing.paths import data_root
from .coco_captions import CocoCaptions
from .daquar import Daquar
from .flickr30k_entities import Flickr30kEntities
from .scenes import Scenes
from .schema import GROUNDING_FEATURES, AnnotationError
from .vqa_v2 import VqaV2

__all__ = ["GROUNDING_FEATURES", "AnnotationError", "data_root", "list_datasets", "load_grounding_dataset"]

# name -> builder, folder below `data_root()` it reads by default, one line
_DATASETS: dict[str, tuple[type[GeneratorBasedBuilder], str | None, str]] = {
    "coco_captions": (
        CocoCaptions,
        "coco",
        "Photos with 5 captions or more each; the split that captioners are compared on, or the official ones.",
    ),
    "daquar": (
        Daquar,
        "vqa/daquar",
        "Photos of rooms with questions of one answer each; the authors' layout or one with the photos' sizes.",
    ),
    "flickr30k_entities": (
        Flickr30kEntities,
        "flickr8k_entities",
        "Photos with 5 captions each and boxes for their phrases; original or parquet layout.",
    ),
    "scenes": (
        Scenes,
        None,
        "Drawn scenes of coloured shapes with exact captions, phrases, boxes, questions and answers; needs no files.",
    ),
    "vqa_v2": (
        VqaV2,
        "vqa/vqa_v2_subset",
        "Questions about COCO photos with ten answers each, from the official files or subsets of them.",
    ),
}


def list_datasets() -> dict[str, str]:
    """Names that [`load_grounding_dataset`] takes, each with one line about it."""
    return {name: line for name, (_, _, line) in _DATASETS.items()}


def load_grounding_dataset(
    name: str,
    *,
    split: str | None = None,
    data_dir: str | os.PathLike | None = None,
    streaming: bool = False,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
    **config_kwargs: Any,
) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
    """A data set with the columns [`GROUNDING_FEATURES`], in the way of `datasets.load_dataset`.

    Args:
        name: One of [`list_datasets`].
        split: A split or a slice of one ("train", "val[:100]"); None gives all splits as a dictionary.
        data_dir: Folder of the source files; by default the one of this data set below [`data_root`].
        streaming: Read or draw each row when it is asked for; nothing is written to disk.
        cache_dir: Where the prepared rows are kept; by default the cache of `datasets`. Rows are prepared again when
            a setting or an annotation file changes.
        num_proc: Processes that prepare the rows; the rows do not depend on it.
        config_kwargs: Settings of the data set: fields of `CocoCaptionsConfig`, `DaquarConfig`,
            `Flickr30kEntitiesConfig`, `ScenesConfig` or `VqaV2Config`.

    Raises:
        ValueError: Unknown `name`, `split` or setting, or (as [`AnnotationError`]) a source file that cannot be read.
        FileNotFoundError: No data folder, or one without a known layout.
    """
    if name not in _DATASETS:
        raise ValueError(f"Unknown data set {name!r}.{_nearest(name, _DATASETS)}")
    builder_class, default_dir, _ = _DATASETS[name]
    settings = {field.name for field in fields(builder_class.BUILDER_CONFIG_CLASS)}
    settings -= {field.name for field in fields(BuilderConfig)}
    for keyword in config_kwargs:
        if keyword not in settings:
            raise ValueError(f"Data set {name!r} has no setting `{keyword}`.{_nearest(keyword, settings)}")
    if default_dir is not None:
        # Absolute, because the rows keep the paths of the photos.
        config_kwargs["data_dir"] = os.path.abspath(data_dir or data_root() / default_dir)
    elif data_dir is not None:
        raise ValueError(f"Data set {name!r} reads no files, so `data_dir` has no meaning. Leave it out.")
    if streaming and num_proc is not None:
        raise ValueError("`num_proc` prepares a cache, which `streaming=True` does without. Give one of the two.")

    if streaming and split is not None and "[" in split:
        raise ValueError(
            f"A stream has no length, so {split!r} cannot be cut from it. Stream the whole split and `.skip(n)` or "
            "`.take(n)` its rows, or leave `streaming` out."
        )

    builder = builder_class(
        cache_dir=None if cache_dir is None else str(cache_dir),
        # The name of the cache folder costs reading every annotation; a stream has no cache.
        config_id="streaming" if streaming else None,
        **config_kwargs,
    )
    if split is not None:
        _check_split(split, [generator.name for generator in builder._split_generators(None)], name)
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split=split)


def _check_split(split: str, known: list[str], name: str) -> None:
    """Stops before the rows are prepared, not after. `split` may be a sum of slices as `datasets` reads them."""
    for part in str(split).split("+"):
        part = part.split("[")[0].strip()
        if part not in (*known, "all"):
            raise ValueError(f"Data set {name!r} has no split {part!r} here.{_nearest(part, known)}")


def _nearest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(names)}."
