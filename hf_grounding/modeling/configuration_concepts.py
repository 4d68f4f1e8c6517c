"""Settings of the concept detector ("From Captions to Visual Concepts and Back", CVPR 2015, arXiv 1411.4952).

Defaults are those of the authors' training file: the 1,000 commonest caption words over a map of VGG16's fc7.
"""

import math
from collections import Counter
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_multilevel import as_config


@strict
class ConceptDetectorConfig(PreTrainedConfig):
    r"""Settings of [`ConceptDetector`]. `id2label` holds the words, in the order of the model's outputs.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*): Visual network, any transformers model with a
            feature map (MobileNetV2, ResNet, ...). `None` means that `feature_maps` are always passed in.
        backbone_level (`int`): Which of the backbone's maps: an index into `hidden_states`; -1 is the last one, and
            `len(hidden_states)` stands for `last_hidden_state` where that is yet another map (MobileNetV2).
        freeze_backbone (`bool`): Keep the backbone as it is loaded and in eval mode. `False` trains it, as the paper.
        feature_channels (`int`): Channels of that map (4096 for VGG16's fc7).
        normalize_features (`bool`): Centre and scale every cell of the map over its channels first; ours.
        hidden_sizes (`list[int]`): Widths of 1x1 convolutions with ReLU between the map and the last layer; none in the
            paper, whose fc6 and fc7 are the backbone's.
        dropout (`float`): On the input of every 1x1 convolution; VGG16's own is part of the backbone.
        num_concepts (`int`, *optional*): Number of words. Default: as many as `id2label` has, else 1000.
        bias_init (`float`): First value of the last layer's bias: sigmoid(-6.58) = .0014 at every location.
        initializer_range (`float`): Standard deviation of the last layer's first weights.
        loss_weight (`float`): The loss is `loss_weight` times the binary cross entropy, mean over words and images.
        last_layer_lr_multiplier (`float`): How much faster the last layer learns, see
            [`ConceptDetector.parameter_groups`].
    """

    model_type = "concept_detector"
    keys_to_ignore_at_inference = ["location_probs"]  # of the Trainer, which would gather them for all images

    backbone_config: dict | PreTrainedConfig | None = None
    backbone_level: int = -1
    freeze_backbone: bool = False
    feature_channels: int = 4096
    normalize_features: bool = False
    hidden_sizes: list[int] | tuple[int, ...] = ()
    dropout: float | int = 0.0
    num_concepts: int | None = None
    bias_init: float | int = -6.58
    initializer_range: float | int = 0.001
    loss_weight: float | int = 20.0
    last_layer_lr_multiplier: float | int = 10.0
    id2label: dict[int, str] | dict[str, str] | None = None
    label2id: dict[str, int] | dict[str, str] | None = None
    problem_type: Literal["multi_label_classification"] = "multi_label_classification"

    def __post_init__(self, **kwargs):
        self.backbone_config = as_config(self.backbone_config, "backbone_config")
        if self.id2label is None and self.label2id is not None:
            self.id2label = {int(index): word for word, index in self.label2id.items()}
        given = {
            "num_concepts": self.num_concepts,
            "num_labels": kwargs.pop("num_labels", None),
            "id2label": None if self.id2label is None else len(self.id2label),
        }
        sizes = {name: size for name, size in given.items() if size is not None}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"The number of concepts differs between the settings: {sizes}; give new words as well.")
        self.num_concepts = next(iter(sizes.values()), 1000)
        super().__post_init__(num_labels=self.num_concepts, **kwargs)
        self.label2id = {word: index for index, word in (self.id2label or {}).items()}

    @property
    def backbone_levels(self) -> list[int]:
        """As [`MultiLevelGroundingConfig`] names its maps."""
        return [self.backbone_level]

    def validate_concepts(self):
        id2label = self.id2label or {}
        words = list(id2label.values())
        if not words or len(words) != self.num_concepts:
            raise ValueError(
                f"`num_concepts` must be 1 or more and the length of `id2label`, which is {len(words)}; "
                f"got {self.num_concepts}."
            )
        if sorted(id2label) != list(range(len(words))):
            ids = _shortened(sorted(id2label))
            raise ValueError(f"`id2label` must give a word for each of 0..{len(words) - 1}; its ids are {ids}.")
        if len(set(words)) < len(words):
            twice = [word for word, count in Counter(words).items() if count > 1]
            raise ValueError(f"`id2label` has words more than once: {_shortened(twice)}.")

    def validate_sizes(self):
        for size in (self.feature_channels, *self.hidden_sizes):
            if size < 1:
                raise ValueError(f"`feature_channels` and all `hidden_sizes` must be 1 or more, got {size}.")

    def validate_weights(self):
        for name in ("loss_weight", "last_layer_lr_multiplier"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"`initializer_range` must be 0 or more, got {self.initializer_range}.")
        if not math.isfinite(self.bias_init):
            raise ValueError(f"`bias_init` must be a number, got {self.bias_init}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}.")


def _shortened(values: list, most: int = 10) -> str:
    return ", ".join(map(repr, values[:most])) + (f" and {len(values) - most} more" if len(values) > most else "")


__all__ = ["ConceptDetectorConfig"]
