"""What the model reads of each image, computed once for a data set and kept until backbone or images change.

That is the feature maps of a frozen backbone, or the pixels where the backbone is trained.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from datasets import Dataset, Image
from PIL import ImageOps
from tqdm.auto import tqdm

from ..data.feature_store import FeatureStore, FeatureStoreWriter

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """Where feature stores are kept unless a recipe says otherwise."""
    home = os.environ.get("HF_HOME") or os.path.join(os.path.expanduser("~"), ".cache", "huggingface")
    return Path(home) / "hf_grounding"


def feature_store(
    model: Any,
    processor: Any,
    dataset: Dataset,
    cache_dir: str | os.PathLike,
    *,
    flip: bool = False,
    bf16: bool = False,
    batch_size: int = 8,
) -> FeatureStore:
    r"""Store of `model.get_feature_maps` of every image (of its pixels, if the backbone trains).

    It is read from `cache_dir` when it is there. Its name is a hash of all that the maps depend on: weights of the
    backbone, levels, image processor, precision and images (content, or path, size and time of files), so a change of
    any of them computes anew and never reads old features.

    Args:
        model ([`MultiLevelGroundingModel`] or [`ConceptDetector`]): With a backbone.
        processor ([`MultiLevelGroundingProcessor`] or [`ConceptProcessor`]): Its image processor makes the pixels.
        dataset (`datasets.Dataset`): Columns `image_id` and `image`.
        flip (`bool`): Mirror every image left to right.
        bf16 (`bool`): Run the backbone in bfloat16.
    """
    settings = {
        "backbone": _hash_weights(model.backbone) if model.config.freeze_backbone else None,
        "levels": list(model.config.backbone_levels) if model.config.freeze_backbone else ["pixels"],
        "image_processor": {k: v for k, v in processor.image_processor.to_dict().items() if not k.startswith("_")},
        "flip": flip,
        "bf16": bf16,
        "images": _hash_images(dataset),
    }
    name = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:20]
    folder = Path(cache_dir) / f"features-{name}"
    if not folder.exists():
        _compute(model, processor, dataset, folder, settings, flip, bf16, batch_size)
    store = FeatureStore(folder)
    logger.info("Features of %d images: %s", len(store), folder)
    return store


@torch.no_grad()
def _compute(model, processor, dataset, folder, settings, flip, bf16, batch_size) -> None:
    device = next(model.parameters()).device
    settings = json.loads(json.dumps(settings, default=str))
    with FeatureStoreWriter(folder, dataset["image_id"], settings) as writer:
        starts = range(0, len(dataset), batch_size)
        for start in tqdm(starts, desc="features of mirrored images" if flip else "features of images", unit="batch"):
            rows = range(start, min(start + batch_size, len(dataset)))
            photos = [read_photo(dataset, row) for row in rows]
            photos = [ImageOps.mirror(photo) for photo in photos] if flip else photos
            pixels = processor.image_processor(photos, return_tensors="pt")["pixel_values"]
            pixels = pixels.to(device, memory_format=torch.channels_last)  # convolutions on a CPU are much faster so
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                maps = model.get_feature_maps(pixels) if model.config.freeze_backbone else (pixels,)
            writer.write([level.float().movedim(1, -1).cpu().numpy() for level in maps])


def read_photo(dataset: Dataset, row: int) -> PIL.Image.Image:
    r"""The upright photo of a row.

    Raises:
        ValueError: If it cannot be read; names the image.
    """
    try:
        return ImageOps.exif_transpose(dataset[row]["image"])
    except Exception as error:  # damaged files end in many kinds of errors: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"The photo of image '{dataset['image_id'][row]}' cannot be read: {error}") from error


def _hash_weights(module: torch.nn.Module) -> str:
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy() if tensor.ndim else repr(tensor).encode()
        )
    return digest.hexdigest()


def _hash_images(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for row in dataset.select_columns(["image_id", "image"]).cast_column("image", Image(decode=False)):
        image = row["image"]
        if image is None:
            raise ValueError(
                f"Image '{row['image_id']}' of the data set has no photo, which the backbone reads; complete the "
                "folder of the photos, or say where it is (`dataset.options`)."
            )
        if image["bytes"] is not None:
            content: Any = hashlib.sha256(image["bytes"]).hexdigest()
        else:
            stat = os.stat(image["path"])
            content = (image["path"], stat.st_size, stat.st_mtime_ns)
        digest.update(repr((row["image_id"], content)).encode())
    return digest.hexdigest()


def read_inputs(store: FeatureStore, image_ids: Sequence[str], device: torch.device | None = None) -> dict[str, Any]:
    """Rows of a store as `feature_maps` or `pixel_values` of the model.

    Each is float32 (batch, channels, height, width), channels last in memory.
    """
    maps = tuple(torch.from_numpy(level).to(device).float().movedim(-1, 1) for level in store.read(image_ids))
    return {"pixel_values": maps[0]} if store.settings["levels"] == ["pixels"] else {"feature_maps": maps}
