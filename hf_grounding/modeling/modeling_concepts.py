"""Concept detector: which words of captions are in a picture, and where (Fang et al., CVPR 2015, arXiv 1411.4952).

"From Captions to Visual Concepts and Back", section 3: each location of a convolutional map gives each word a
probability, and a word is in the picture if it is at one location at least (noisy-OR multiple-instance learning). So it
learns from captions alone. The vocabulary and the ranking of words are in `processing/concepts.py`.

Where we differ from the literal equation, values agree: `1 - prod_j (1 - p_j)` and the cross entropy are computed from
the log-odds of the noisy-OR, which stay exact and have bounded gradients where p rounds to 0 or 1 (`noisy_or_logits`),
in float32 at least.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, auto_docstring, can_return_tuple

from .configuration_concepts import ConceptDetectorConfig
from .modeling_multilevel import BackboneLevels

SMALLEST_SUM = 1e-12  # below, 1 - exp(-S) is S to all digits


@dataclass
class ConceptDetectorOutput(ModelOutput):
    r"""Output of [`ConceptDetector`]; everything in float32 at least.

    Args:
        loss (scalar): `config.loss_weight` times the binary cross entropy, mean over words and images. Only with
            `labels`.
        logits (`(batch, num_concepts)`): Log-odds of `concept_probs`, so `concept_probs = sigmoid(logits)`.
        concept_probs (`(batch, num_concepts)`): Noisy-OR over the locations. Words are ranked by it.
        max_probs (`(batch, num_concepts)`): Maximum over the locations, never above `concept_probs`.
        location_probs (`(batch, num_concepts, height, width)`): Probability of each word at each location.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    concept_probs: torch.FloatTensor | None = None
    max_probs: torch.FloatTensor | None = None
    location_probs: torch.FloatTensor | None = None


def noisy_or_logits(location_logits: torch.Tensor) -> torch.Tensor:
    r"""Log-odds of the noisy-OR `P = 1 - prod_j (1 - sigmoid(z_j))` over the last two dimensions.

    (..., height, width) -> (...), with `P = sigmoid` of them to all digits.

    With `S = -sum_j log(1 - p_j)` they are `log(exp(S) - 1) = S + log(1 - exp(-S))`, and `log S = log sum_j exp(z_j)`
    where S is so small that the difference is below rounding (or S itself would be 0). Each gradient lies in [0, 1].
    """
    total = -F.logsigmoid(-location_logits).sum(dim=(-2, -1))  # S
    safe = total.clamp(min=SMALLEST_SUM)  # both branches of `where` need finite gradients
    tiny = location_logits.flatten(-2).logsumexp(dim=-1)
    return torch.where(total < SMALLEST_SUM, tiny, safe + torch.log(-torch.expm1(-safe)))


class WordLayer(nn.Conv2d):
    """The last 1x1 convolution, one logit for each word; a class of its own because it starts differently."""


class ConceptHead(nn.Module):
    r"""1x1 convolutions from the map to one logit for each word and location.

    (batch, channels, height, width) -> (batch, num_concepts, height, width).
    """

    def __init__(self, config: ConceptDetectorConfig):
        super().__init__()
        widths = [config.feature_channels, *config.hidden_sizes]
        self.standardize = (
            nn.LayerNorm(config.feature_channels, elementwise_affine=False)
            if config.normalize_features
            else nn.Identity()
        )
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = nn.ModuleList(nn.Conv2d(n_in, n_out, kernel_size=1) for n_in, n_out in pairwise(widths))
        self.classifier = WordLayer(widths[-1], config.num_concepts, kernel_size=1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        x = self.standardize(feature_map.movedim(1, -1)).movedim(-1, 1)
        for layer in self.hidden:
            x = layer(self.dropout(x)).relu()
        return self.classifier(self.dropout(x))


class ConceptDetectorPreTrainedModel(PreTrainedModel):
    config: ConceptDetectorConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules: list[str] = []

    @torch.no_grad()
    def _init_weights(self, module):
        # By layer: transformers does not ask for modules without parameters of their own, as `ConceptHead`.
        if isinstance(module, WordLayer):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.constant_(module.bias, self.config.bias_init)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)


@auto_docstring(custom_intro="Concept detector: the probability of each word of a vocabulary in an image, and where.")
class ConceptDetector(ConceptDetectorPreTrainedModel):
    def __init__(self, config: ConceptDetectorConfig):
        super().__init__(config)
        self.backbone: BackboneLevels | None = BackboneLevels(config) if config.backbone_config is not None else None
        self.head = ConceptHead(config)
        self.post_init()

    def get_feature_maps(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        r"""The feature map of the backbone (batch, channels, height, width), as a tuple of one.

        Raises:
            ValueError: If the model has no backbone.
        """
        if self.backbone is None:
            raise ValueError("This model has no backbone (`config.backbone_config` is None); pass `feature_maps`.")
        return self.backbone(pixel_values.to(self.dtype))

    def parameter_groups(self, learning_rate: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        r"""Parameter groups for an optimizer: the last layer learns `config.last_layer_lr_multiplier` times faster.

        Biases and the weights of normalisations are not decayed, as in the authors' training file. Frozen parameters
        are left out.

        Example:

            >>> groups = model.parameter_groups(1.5625e-5, weight_decay=5e-4)
            >>> optimizer = torch.optim.SGD(groups, momentum=0.99)
        """
        last = {id(parameter) for parameter in self.head.classifier.parameters()}
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        for parameter in self.parameters():
            if parameter.requires_grad:
                lr = learning_rate * (self.config.last_layer_lr_multiplier if id(parameter) in last else 1)
                decay = weight_decay if parameter.ndim > 1 else 0.0
                group = groups.setdefault((lr, decay), {"params": [], "lr": lr, "weight_decay": decay})
                group["params"].append(parameter)
        return list(groups.values())

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        feature_maps: tuple[torch.Tensor, ...] | torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> ConceptDetectorOutput:
        r"""
        feature_maps (`torch.Tensor` of shape `(batch, channels, height, width)` or `tuple` of one, *optional*):
            The map of the backbone; instead of `pixel_values`.
        labels (`torch.Tensor` of shape `(batch, num_concepts)`, *optional*):
            1 = the word is in a caption of the image, 0 = it is not.
        """
        if (pixel_values is None) == (feature_maps is None):
            raise ValueError("Give either `pixel_values` or `feature_maps`, not both and not neither.")
        maps = self.get_feature_maps(pixel_values) if feature_maps is None else feature_maps
        location_logits = self.head(self._one_map(maps))  # (batch, num_concepts, height, width)
        location_logits = location_logits.to(torch.promote_types(location_logits.dtype, torch.float32))
        location_probs = location_logits.sigmoid()
        logits = noisy_or_logits(location_logits)
        return ConceptDetectorOutput(
            loss=None if labels is None else self.concept_loss(logits, labels),
            logits=logits,
            concept_probs=logits.sigmoid(),
            max_probs=location_probs.amax(dim=(-2, -1)),
            location_probs=location_probs,
        )

    def concept_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        r"""`-loss_weight * mean_bw [y log P + (1 - y) log(1 - P)]`, a scalar; both logarithms from the log-odds.

        Raises:
            ValueError: If `labels` are not (batch, num_concepts).
        """
        if labels.shape != logits.shape:
            raise ValueError(
                f"`labels` must be (batch, num_concepts) = {tuple(logits.shape)}, got {tuple(labels.shape)}; "
                "`ConceptProcessor.labels` makes them from captions."
            )
        return self.config.loss_weight * F.binary_cross_entropy_with_logits(logits, labels.to(logits))

    def _one_map(self, maps: tuple[torch.Tensor, ...] | torch.Tensor) -> torch.Tensor:
        maps = (maps,) if isinstance(maps, torch.Tensor) else tuple(maps)
        channels = self.config.feature_channels
        if len(maps) != 1 or maps[0].ndim != 4 or maps[0].shape[1] != channels:
            raise ValueError(
                f"`feature_maps` must be one (batch, {channels}, height, width) map (`config.feature_channels`), "
                f"got {[tuple(each.shape) for each in maps]}."
            )
        return maps[0].to(self.head.classifier.weight.dtype)


__all__ = ["ConceptDetector", "ConceptDetectorPreTrainedModel"]
