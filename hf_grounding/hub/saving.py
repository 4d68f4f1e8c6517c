"""A checkpoint that loads without our package: model, processor and the Python files that define them."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import transformers
from transformers import PreTrainedModel, ProcessorMixin


def save_with_code(model: PreTrainedModel, processor: ProcessorMixin, save_directory: str | os.PathLike) -> None:
    r"""Saves a model and its processor with their code, to be loaded with `trust_remote_code=True`.

    Plain `save_pretrained` writes no code: such a checkpoint needs hf_grounding installed. Whoever loads this one needs
    transformers alone:

        >>> AutoModelForZeroShotObjectDetection.from_pretrained(folder, trust_remote_code=True)
        >>> AutoProcessor.from_pretrained(folder, trust_remote_code=True)

    Args:
        model ([`PreTrainedModel`]): Of this package.
        processor ([`ProcessorMixin`]): Its processor; the code of its image processor is saved too.
        save_directory (`str` or `os.PathLike`): Folder, made if it is not there.
    """
    auto_classes = {
        "AutoConfig": model.config,
        _auto_class_of(model): model,
        "AutoProcessor": processor,
    }
    if hasattr(processor, "image_processor"):  # one that reads features of regions has none
        auto_classes["AutoImageProcessor"] = processor.image_processor
    with ExitStack() as stack:
        for auto_class, part in auto_classes.items():
            stack.enter_context(_registered(part, auto_class))
        model.save_pretrained(save_directory)
        processor.save_pretrained(save_directory)


def _auto_class_of(model: PreTrainedModel) -> str:
    """The most specific Auto class that knows the model: a task's rather than the bare `AutoModel`."""
    for name in dir(transformers):
        if name.startswith("AutoModelFor"):
            known = getattr(transformers, name)._model_mapping.get(type(model.config), None)
            if known is type(model):
                return name
    return "AutoModel"


@contextmanager
def _registered(part: Any, auto_class: str) -> Iterator[None]:
    """`part` is saved with its code while the block runs.

    transformers' own registration would stay for the whole process, and leave `auto_map` in what it saves.
    """
    kind, before = type(part), type(part)._auto_class
    kind.register_for_auto_class(auto_class)
    try:
        yield
    finally:
        kind._auto_class = before
        vars(part).pop("auto_map", None)
