"""Object detectors behind one call: photos in, candidate boxes with class probabilities out.

`TransformersDetector` is any `AutoModelForObjectDetection` (RT-DETR v2, D-FINE, DETR, ...); `YoloxDetector` an ONNX
file of YOLOX, which needs the extra `[onnx]`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image

from .regions import ImageError

# Families whose last class is "no object" and whose classes compete; the others score each class on its own.
SOFTMAX_MODELS = ("detr", "table-transformer", "yolos")


@dataclass
class Candidates:
    r"""What a detector says of one photo, before any choice.

    Args:
        boxes (`np.ndarray` of shape `(n, 4)`): xyxy in pixels of the photo, inside it.
        class_probs (`np.ndarray` of shape `(n, num_object_classes)`): Without a background class; rows need not sum
            to 1.
        features (`np.ndarray` of shape `(n, feature_dim)`, *optional*): What the detector itself holds of each box.
    """

    boxes: np.ndarray
    class_probs: np.ndarray
    features: np.ndarray | None = None


class Detector(Protocol):
    """A detector: its name, its classes, what it depends on (as `weights` their hash), and the call."""

    name: str
    labels: list[str]
    settings: dict[str, Any]

    def __call__(self, photos: Sequence[Image.Image]) -> list[Candidates]:
        """Candidates of upright RGB photos."""
        ...


class TransformersDetector:
    r"""Any object detector of transformers; features are the states of the queries after the decoder's last layer.

    Photos that the image processor makes equally large go through the model together. It is never given several sizes
    at once: it would pad them, and YOLOS, which knows no mask, then places boxes in the padded picture.

    Args:
        model: An `AutoModelForObjectDetection`, in evaluation mode.
        image_processor: Its image processor.
        activation (`str`, *optional*): "softmax" with the last class as background, or "sigmoid". Default: what the
            model family uses.

    Calling it raises an [`ImageError`] for a photo that the image processor does not take.
    """

    def __init__(self, model: Any, image_processor: Any, *, activation: Literal["softmax", "sigmoid"] | None = None):
        self.model = model.eval()
        self.image_processor = image_processor
        family = model.config.model_type
        self.activation = activation or ("softmax" if family in SOFTMAX_MODELS else "sigmoid")
        self.name = model.config.name_or_path or family
        self.labels = [model.config.id2label[number] for number in range(len(model.config.id2label))]
        self.settings = {
            "activation": self.activation,
            "processor": json.loads(image_processor.to_json_string()),
            "weights": hash_weights(model),
        }

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **kwargs: Any) -> TransformersDetector:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        return cls(
            AutoModelForObjectDetection.from_pretrained(source), AutoImageProcessor.from_pretrained(source), **kwargs
        )

    def __call__(self, photos: Sequence[Image.Image]) -> list[Candidates]:
        prepared = [self._prepare(photo) for photo in photos]
        by_size: dict[torch.Size, list[int]] = {}
        for row, inputs in enumerate(prepared):
            by_size.setdefault(inputs["pixel_values"].shape, []).append(row)
        found: dict[int, Candidates] = {}
        for rows in by_size.values():
            inputs = {name: torch.cat([prepared[row][name] for row in rows]) for name in prepared[rows[0]]}
            found.update(zip(rows, self._detect(inputs, [photos[row] for row in rows]), strict=True))
        return [found[row] for row in range(len(photos))]

    def _prepare(self, photo: Image.Image) -> Any:
        try:
            return self.image_processor(photo, return_tensors="pt")
        except Exception as error:  # processors differ in what they say when a side becomes 0
            raise ImageError(
                f"A photo of {photo.width} x {photo.height} pixels cannot be prepared for detector '{self.name}'; it "
                f"may be too elongated: {error}"
            ) from error

    @torch.no_grad()
    def _detect(self, inputs: dict[str, torch.Tensor], photos: Sequence[Image.Image]) -> list[Candidates]:
        outputs = self.model(**{name: tensor.to(self.model.device) for name, tensor in inputs.items()})
        logits = outputs.logits.float()
        probs = logits.softmax(-1)[..., :-1] if self.activation == "softmax" else logits.sigmoid()
        centers, sizes = outputs.pred_boxes.float().split(2, dim=-1)
        corners = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1).clamp(0, 1)
        scale = torch.tensor([[photo.width, photo.height] * 2 for photo in photos], device=corners.device)
        boxes = corners * scale[:, None]
        # Not `intermediate_hidden_states`: RT-DETR has (batch, layers, queries, d), D-FINE (layers, batch, queries, d),
        # DETR none. In YOLOS the queries stand behind the patches.
        states = outputs.last_hidden_state[:, -logits.shape[1] :].float()
        arrays = (tensor.cpu().numpy() for tensor in (boxes, probs, states))
        return [Candidates(*own) for own in zip(*arrays, strict=True)]


class YoloxDetector:
    r"""YOLOX as an ONNX file with raw outputs (centre, log size, objectness, classes for each cell).

    Photos are resized to fit into the square input, top left, the rest filled with 114, as BGR. A class probability is
    objectness times class score.

    Args:
        path: The `.onnx` file.
        labels (`list[str]`): Names of the classes, in the order of the outputs.
        num_threads (`int`, *optional*): Threads of ONNX Runtime; default its own choice.

    Raises:
        ImportError: If ONNX Runtime is not installed.
        ValueError: If the file is no such network, or has another number of classes.
    """

    STRIDES = (8, 16, 32)
    FILL = 114

    def __init__(self, path: str | os.PathLike, labels: Sequence[str], *, num_threads: int | None = None):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError('ONNX detectors need ONNX Runtime: pip install "hf_grounding[onnx]".') from error
        options = onnxruntime.SessionOptions()
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options)
        except Exception as error:  # ONNX Runtime raises kinds of its own
            raise ValueError(f"'{path}' cannot be loaded as an ONNX network: {' '.join(str(error).split())}") from error
        (taken,), (given,) = self.session.get_inputs(), self.session.get_outputs()
        self.labels = list(labels)
        self.input_name, self.input_size = taken.name, taken.shape[-1]
        self._cells, self._strides = _grid(self.input_size, self.STRIDES)
        if list(given.shape[1:]) != [len(self._cells), 5 + len(self.labels)]:
            raise ValueError(
                f"'{path}' gives {given.shape}, where a YOLOX of {len(self.labels)} classes and input "
                f"{self.input_size} gives (batch, {len(self._cells)}, {5 + len(self.labels)}); are the labels right?"
            )
        self.name = Path(path).stem
        self.settings = {"input_size": self.input_size, "fill": self.FILL, "weights": _hash_onnx(Path(path))}

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **kwargs: Any) -> YoloxDetector:
        """From a folder with one `.onnx` file and `labels.txt`, a name on each line."""
        files, labels = sorted(Path(folder).glob("*.onnx")), Path(folder) / "labels.txt"
        if len(files) != 1 or not labels.is_file():
            raise FileNotFoundError(f"'{folder}' must hold one .onnx file and labels.txt, a class name on each line.")
        return cls(files[0], labels.read_text(encoding="utf-8").splitlines(), **kwargs)

    def __call__(self, photos: Sequence[Image.Image]) -> list[Candidates]:
        return [self._detect(photo) for photo in photos]

    def _detect(self, photo: Image.Image) -> Candidates:
        scale = min(self.input_size / photo.width, self.input_size / photo.height)
        size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
        pixels = np.full((self.input_size, self.input_size, 3), self.FILL, dtype=np.float32)
        pixels[: size[1], : size[0]] = np.asarray(photo.resize(size, Image.Resampling.BILINEAR))[:, :, ::-1]
        (output,) = self.session.run(None, {self.input_name: pixels.transpose(2, 0, 1)[None]})
        centers = (output[0, :, :2] + self._cells) * self._strides
        sizes = np.exp(output[0, :, 2:4]) * self._strides
        boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1) / scale
        boxes = boxes.clip(0, [photo.width, photo.height] * 2)
        return Candidates(boxes.astype(np.float32), output[0, :, 4:5] * output[0, :, 5:])


def load_detector(source: str, device: Any = "cpu") -> Detector:
    """The detector of a folder with an ONNX YOLOX and `labels.txt`, else of a transformers model, on `device`."""
    if Path(source).is_dir() and list(Path(source).glob("*.onnx")):
        return YoloxDetector.from_pretrained(source)
    detector = TransformersDetector.from_pretrained(source)
    detector.model.to(device)
    return detector


def hash_weights(network: torch.nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of a network's weights: what it is, wherever its files lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, because numpy knows no bfloat16; flat, because a number alone has no dimension to be split.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_onnx(path: Path) -> str:
    """SHA-256 of an ONNX file and of the `.onnx.data` or `.onnx_data` beside it, where exporters put large weights."""
    digest = hashlib.sha256()
    for part in (path, *sorted(path.parent.glob(f"{glob.escape(path.name)}?data"))):
        digest.update(part.read_bytes())
    return digest.hexdigest()


def _grid(input_size: int, strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Corner of every cell (cells, 2), in cells, and its stride (cells, 1), level by level."""
    cells, sizes = [], []
    for stride in strides:
        side = input_size // stride
        rows, columns = np.mgrid[:side, :side]
        cells.append(np.stack([columns, rows], axis=-1).reshape(-1, 2))
        sizes.append(np.full((side * side, 1), stride))
    return np.concatenate(cells), np.concatenate(sizes)
