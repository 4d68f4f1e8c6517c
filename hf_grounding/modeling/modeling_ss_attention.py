"""Spatial-Semantic attention captioner ("Spatial-Semantic Attention for Grounded Image Captioning").

Up-Down looks at regions by what they look like and by the words so far. Here a second term asks what does not depend on
words: is a region, by its place in the image and its class, one that captions speak of?

    beta = softmax_i( W_b ReLU [W_c c_i; W_p p_i] )     -> `RegionPrior`
    gamma_t = alpha_t + lambda beta                     -> `SpatialSemanticDecoder`; alpha_t is Up-Down's attention
    L = L_ce + mu L_gnd,  L_gnd = - sum_i sigma_i log beta_i
                                                        -> `grounding_loss`, and `SSAttentionCaptioner.forward`

sigma_i is 1 for the regions that fit the boxes of the caption's objects best (`SSAttentionProcessor` finds them).
p_i and c_i are inputs, so L_gnd trains W_b, W_c and W_p alone; the rest of the network sees it through beta. A written
word is grounded in the region of its largest gamma.

No code of the paper was released. What it leaves open is a setting of [`SSAttentionConfig`]; the rest is the Up-Down of
`caption_decoders.py`. Beyond the paper: Mutual Iterative Attention in front (`mia_iterations`), gamma divided by its
sum (`renormalize_weights`), and supervision of alpha at object words (`attention_loss_weight`).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache
from transformers.utils import ModelOutput, auto_docstring, can_return_tuple
from transformers.utils.generic import maybe_autocast

from .caption_decoders import ImageMemory, UpDownDecoder, at_least_float32
from .configuration_ss_attention import SSAttentionConfig
from .modeling_mia import CaptionEncoder, MIACaptioningOutput, MIAForCaptioning


@dataclass
class SSAttentionOutput(MIACaptioningOutput):
    r"""Output of [`SSAttentionCaptioner`]: that of [`MIACaptioningOutput`], where `cross_attentions` are the weights by
    which words are grounded (`config.grounding_weights`), and `loss` is the sum of

    Args:
        caption_loss (scalar): L_ce.
        grounding_loss (scalar): L_gnd, before its weight. Only with `grounding_targets`.
        attention_loss (scalar): Of alpha at object words, before its weight. Only with `attention_targets`.
        region_prior (`(B, num_regions)`): beta, sums to 1 for each image, 0 on padding.
    """

    caption_loss: torch.FloatTensor | None = None
    grounding_loss: torch.FloatTensor | None = None
    attention_loss: torch.FloatTensor | None = None
    region_prior: torch.FloatTensor | None = None


def location_vectors(boxes: torch.Tensor, image_sizes: torch.Tensor | None, order: str) -> torch.Tensor:
    r"""p_i: the corners of a box, and its share s of the image: (B, n, 4) -> (B, n, 5).

    Args:
        boxes: xyxy in [0, 1].
        image_sizes (`(B, 2)`, *optional*): (height, width); then corners are in pixels. s is a share either way.
        order: "xxyys" for [x1, x2, y1, y2, s], or "xyxys".
    """
    share = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1, keepdim=True)  # (B, n, 1)
    if image_sizes is not None:
        boxes = boxes * image_sizes.to(boxes.dtype)[:, None, [1, 0, 1, 0]]
    corners = boxes[..., [0, 2, 1, 3]] if order == "xxyys" else boxes
    return torch.cat([corners, share], dim=-1)


class PriorLayer(nn.Linear):
    """A layer of the prior; its first weights are torch's without their signs.

    The paper does not say how it begins. With torch's own weights the ReLU of a whole branch is 0 for all regions in
    one of seven beginnings, and then for good, and where W_b is negative, what a branch finds counts against a region.
    """

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            for parameter in self.parameters():  # a negative bias as well could silence a branch
                parameter.abs_()


class RegionPrior(nn.Module):
    r"""`b_i = W_b ReLU([W_c c_i; W_p p_i])`, `beta = softmax_i(b)`: how much captions speak of each region, by its
    class and its place alone. W_c, W_p and what they give are one number each (section 3.2).

    Computed in float32 at least, also under autocast: three numbers a region cost nothing, and places that differ by
    pixels are alike in bfloat16.

    Shapes: `semantic` (B, n, num_object_classes or feature_dim), `spatial` (B, n, 5 or feature_dim), `region_mask`
    (B, n), with a region of each image -> log beta (B, n); beta is 0 on padding, each row sums to 1.
    """

    def __init__(self, config: SSAttentionConfig):
        super().__init__()
        semantic_size = config.num_object_classes if config.ss_semantic_input == "classes" else config.feature_dim
        spatial_size = 5 if config.ss_spatial_input == "boxes" else config.feature_dim
        self.semantic = PriorLayer(semantic_size, 1, bias=config.ss_bias)  # W_c
        self.spatial = PriorLayer(spatial_size, 1, bias=config.ss_bias)  # W_p
        self.score = PriorLayer(2, 1, bias=config.ss_bias)  # W_b

    def forward(self, semantic: torch.Tensor, spatial: torch.Tensor, region_mask: torch.Tensor) -> torch.Tensor:
        with maybe_autocast(semantic.device.type, enabled=False):
            scores = _exactly(self.score, self.evidence(semantic, spatial).relu()).squeeze(-1)  # (B, n)
            return scores.masked_fill(region_mask == 0, torch.finfo(scores.dtype).min).log_softmax(dim=-1)

    def evidence(self, semantic: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
        """`[W_c c_i; W_p p_i]`, before its ReLU: (B, n, 2)."""
        with maybe_autocast(semantic.device.type, enabled=False):
            return torch.cat([_exactly(self.semantic, semantic), _exactly(self.spatial, spatial)], dim=-1)


def _exactly(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """A layer in float32 at least, whatever its weights are kept in."""
    weight = at_least_float32(layer.weight)
    return F.linear(x.to(weight.dtype), weight, None if layer.bias is None else layer.bias.to(weight.dtype))


class SpatialSemanticDecoder(UpDownDecoder):
    r"""Up-Down with `gamma_t = alpha_t + lambda beta`, which sums to 1 + lambda."""

    def __init__(self, config: SSAttentionConfig):
        super().__init__(config)
        self.prior_weight = config.prior_weight  # lambda
        self.prior = RegionPrior(config) if config.uses_prior else None
        self.renormalize = config.renormalize_weights

    def weigh(self, alpha: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
        gamma = alpha + self.prior_weight * prior.to(alpha.dtype)
        return gamma / (1 + self.prior_weight) if self.renormalize else gamma


def grounding_loss(log_beta: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    r"""L_gnd of each caption, `- sum_i sigma_i log beta_i`; 0 without positive regions.

    sigma is not divided by its sum: for P positive regions the least that beta can reach is `P log P`.

    Shapes: `log_beta`, `targets` sigma (N, n), 0 or 1 -> (N,).
    """
    return -(targets * log_beta).sum(dim=-1)


def attention_loss(alpha: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    r"""Of each caption: - log alpha, mean over the target regions and the tokens of an object word, sum over words.

    Shapes: `alpha`, `targets` (N, T, n), 1 / (number of the word's tokens) at target regions, all 0 where a token is of
    no object's word or no region fits -> (N,).
    """
    alpha = at_least_float32(alpha)
    num_regions = (targets > 0).sum(dim=-1, keepdim=True).clamp(min=1)
    targets = targets / num_regions
    return -(targets * alpha.clamp(min=torch.finfo(alpha.dtype).tiny).log()).sum(dim=(-2, -1))


@auto_docstring(custom_intro="Up-Down captioner whose attention also knows where a region is and what class it has.")
class SSAttentionCaptioner(MIAForCaptioning):
    config: SSAttentionConfig
    decoder: SpatialSemanticDecoder
    _make_decoder = SpatialSemanticDecoder

    def get_encoder(self, modality: str | None = None) -> "SSAttentionEncoder":
        return SSAttentionEncoder(self.model, self.decoder)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        r"""Writes captions, see [`MIAForCaptioning.generate`]; `region_attentions` are those of
        `config.grounding_weights`, so that those of "gamma" sum to 1 + lambda.

        An output with `output_attentions=True` also has the `region_prior` beta of each image.
        """
        outputs = super().generate(*args, **kwargs)
        features = args[0] if args else kwargs.get("inputs")
        inputs = kwargs if features is None else {**kwargs, "region_features": features}
        told = isinstance(outputs, ModelOutput) and "region_attentions" in outputs
        if told and self.decoder.prior is not None and inputs.get("region_features") is not None:
            with torch.no_grad():
                outputs["region_prior"] = self.get_encoder().log_prior(**inputs).exp()
        return outputs

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        region_features: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        class_probs: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        concept_ids: torch.Tensor | None = None,
        concept_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        grounding_targets: torch.Tensor | None = None,
        attention_targets: torch.Tensor | None = None,
        encoder_outputs: ImageMemory | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> SSAttentionOutput:
        r"""
        region_features (`torch.Tensor` of shape `(batch, num_regions, feature_dim)`, *optional*):
            Features of detected regions.
        region_mask (`torch.Tensor` of shape `(batch, num_regions)`, *optional*):
            1 = real region, 0 = padding. Default: all are real.
        boxes (`torch.Tensor` of shape `(batch, num_regions, 4)`, *optional*):
            xyxy in [0, 1], shares of the image's width and height.
        class_probs (`torch.Tensor` of shape `(batch, num_regions, num_object_classes)`, *optional*):
            Detector posterior. With one column more the first is taken for the background, and left out.
        image_sizes (`torch.Tensor` of shape `(batch, 2)`, *optional*):
            (height, width) in pixels; only read with `config.normalize_boxes` False.
        concept_ids (`torch.LongTensor` of shape `(batch, num_concepts)`, *optional*):
            Words of the image, the most probable first; only for a model that reads concepts (`config.uses_concepts`).
        concept_mask (`torch.Tensor` of shape `(batch, num_concepts)`, *optional*):
            1 = real concept, 0 = padding.
        labels (`torch.LongTensor` of shape `(num_captions, num_tokens)`, *optional*):
            Captions with the end token, without the start; -100 = not scored, only behind a caption's end.
        image_index (`torch.LongTensor` of shape `(num_captions,)`, *optional*):
            Image of each caption, which share what is computed of it. Default: one caption for each image.
        grounding_targets (`torch.Tensor` of shape `(num_captions, num_regions)`, *optional*):
            sigma: 1 = the region fits one of the caption's annotated boxes best.
        attention_targets (`torch.Tensor` of shape `(num_captions, num_tokens, num_regions)`, *optional*):
            The same for the object that each token of `labels` names, divided by the number of its word's tokens; all
            0 for other tokens.
        encoder_outputs ([`ImageMemory`], *optional*):
            What [`SSAttentionEncoder`] made of the image.
        """
        memory = encoder_outputs
        if memory is None:
            memory = self.get_encoder()(
                region_features=region_features,
                region_mask=region_mask,
                boxes=boxes,
                class_probs=class_probs,
                image_sizes=image_sizes,
                concept_ids=concept_ids,
                concept_mask=concept_mask,
                output_attentions=output_attentions,
            )
        supervised = bool(self.config.attention_loss_weight) and labels is not None and attention_targets is not None
        outputs = super().forward(
            encoder_outputs=memory,
            decoder_input_ids=decoder_input_ids,
            labels=labels,
            image_index=image_index,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions or supervised,
            **{**kwargs, "return_dict": True},  # mixed precision may call this without its decorator
        )
        log_beta = memory.row_log_prior
        if log_beta is not None and image_index is not None:
            log_beta = log_beta.index_select(0, image_index)  # (N, n)
        losses = {}
        if labels is not None:
            targets = grounding_targets if self.config.grounding_loss_weight else None
            alpha = outputs.cross_attentions[0][:, 0] if supervised else None
            losses = self._losses(outputs.loss, labels, log_beta, targets, alpha, attention_targets)
        weights = outputs.cross_attentions if output_attentions else None
        if weights and log_beta is not None and self.config.grounding_weights == "gamma":
            gamma = self.decoder.weigh(weights[0], log_beta[:, None, None].exp())
            if labels is not None and self.training:  # 0 behind a caption's end, as alpha
                gamma = gamma * (labels != -100)[:, None, : gamma.shape[2], None]
            weights = (gamma,)
        return SSAttentionOutput(**{**outputs, "cross_attentions": weights, **losses}, region_prior=memory.row_prior)

    def _losses(
        self,
        word_loss: torch.Tensor,
        labels: torch.Tensor,
        log_beta: torch.Tensor | None,
        grounding_targets: torch.Tensor | None,
        alpha: torch.Tensor | None,
        attention_targets: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """L and its parts; `word_loss` is the mean over scored words."""
        loss = word_loss
        if self.config.ce_reduction == "sum":
            loss = loss * (labels != -100).sum() / len(labels)
        losses = {"caption_loss": loss}
        if log_beta is not None and grounding_targets is not None:
            _check_targets("grounding_targets", grounding_targets, log_beta.shape)
            losses["grounding_loss"] = grounding_loss(log_beta, grounding_targets.to(log_beta.dtype)).mean()
            loss = loss + self.config.grounding_loss_weight * losses["grounding_loss"]
        if alpha is not None and attention_targets is not None:
            _check_targets("attention_targets", attention_targets, (*labels.shape, alpha.shape[-1]))
            attention_targets = attention_targets[:, : alpha.shape[1]]  # a training step ends with its longest caption
            losses["attention_loss"] = attention_loss(alpha, attention_targets.to(alpha.dtype)).mean()
            loss = loss + self.config.attention_loss_weight * losses["attention_loss"]
        return {"loss": loss, **losses}


def _check_targets(name: str, targets: torch.Tensor, shape: tuple[int, ...]) -> None:
    if targets.shape != shape:
        raise ValueError(
            f"`{name}` must have shape {tuple(shape)}, as the captions and the regions, got {tuple(targets.shape)}."
        )


class SSAttentionEncoder(CaptionEncoder):
    """[`CaptionEncoder`], and beta, which no word changes either."""

    decoder: SpatialSemanticDecoder

    def forward(
        self,
        boxes: torch.Tensor | None = None,
        class_probs: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ImageMemory:
        """Takes what [`SSAttentionCaptioner`] takes of images."""
        memory = super().forward(**kwargs)
        if self.decoder.prior is not None:
            kwargs["region_mask"] = memory.row_mask
            log_beta = self.log_prior(boxes=boxes, class_probs=class_probs, image_sizes=image_sizes, **kwargs)
            memory.row_log_prior, memory.row_prior = log_beta, log_beta.exp()
        return memory

    def log_prior(
        self, region_features: torch.Tensor, region_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """log beta (B, n) of a model that has a prior."""
        assert self.decoder.prior is not None
        shape = region_features.shape[:2]
        mask = torch.ones(shape, device=region_features.device) if region_mask is None else region_mask
        return self.decoder.prior(*self.prior_inputs(region_features, **kwargs), mask)

    def prior_inputs(
        self,
        region_features: torch.Tensor,
        boxes: torch.Tensor | None = None,
        class_probs: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """c_i and p_i, or what the configuration puts in their places."""
        config = self.model.config
        shape = region_features.shape[:2]
        semantic = spatial = region_features
        if config.reads_classes:
            semantic = _classes(class_probs, shape, config.num_object_classes)
        if config.reads_boxes:
            spatial = _locations(boxes, image_sizes, shape, config)
        return semantic, spatial


def _classes(class_probs: torch.Tensor | None, shape: torch.Size, num_classes: int) -> torch.Tensor:
    """(B, n, num_object_classes)"""
    came = "nothing" if class_probs is None else f"shape {tuple(class_probs.shape)}"
    if class_probs is None or class_probs.ndim != 3 or class_probs.shape[:2] != shape:
        raise ValueError(
            f"This model reads classes: `class_probs` must be ({shape[0]}, {shape[1]}, {num_classes}) as "
            f"`region_features`, got {came}. Extract regions with a detector, which gives them, or train with "
            "`ss_semantic_input: visual`."
        )
    if class_probs.numel():
        low, high = class_probs.detach().aminmax()
        if not (low >= 0 and high <= 1.001):  # half precision may round 1 up; NaN is neither
            raise ValueError(
                f"`class_probs` must be probabilities, in [0, 1], got {low:.1f} to {high:.1f}; extract the regions "
                "again."
            )
    if class_probs.shape[-1] == num_classes + 1:
        return class_probs[..., 1:]
    if class_probs.shape[-1] != num_classes:
        raise ValueError(
            f"`class_probs` has {class_probs.shape[-1]} classes, but the model reads {num_classes} "
            f"(`config.num_object_classes`), or {num_classes + 1} with a background in front. Give regions of the "
            "detector of its training."
        )
    return class_probs


def _locations(
    boxes: torch.Tensor | None, image_sizes: torch.Tensor | None, shape: torch.Size, config: SSAttentionConfig
) -> torch.Tensor:
    """(B, n, 5)"""
    if boxes is None or boxes.shape != (*shape, 4):
        came = "nothing" if boxes is None else f"shape {tuple(boxes.shape)}"
        raise ValueError(
            f"This model reads places: `boxes` must be ({shape[0]}, {shape[1]}, 4) as `region_features`, got {came}. "
            "Give those of the regions, as `SSAttentionProcessor` does, or train with `ss_spatial_input: visual`."
        )
    if boxes.numel():
        low, high = boxes.detach().aminmax()
        if not (low >= -0.5 and high <= 1.5):  # a box may stick out of the image a little; NaN is neither
            raise ValueError(
                f"`boxes` must be in [0, 1], shares of the image's width and height, got {low:.1f} to {high:.1f}; "
                "divide pixels by the image size, as `SSAttentionProcessor` does."
            )
    if config.normalize_boxes:
        return location_vectors(boxes, None, config.location_order)
    if image_sizes is None or image_sizes.shape != (shape[0], 2):
        came = "nothing" if image_sizes is None else f"shape {tuple(image_sizes.shape)}"
        raise ValueError(
            f"With `config.normalize_boxes` False the model reads pixels: `image_sizes` must be ({shape[0]}, 2), "
            f"(height, width) of each image, got {came}."
        )
    return location_vectors(boxes, image_sizes, config.location_order)


__all__ = ["SSAttentionCaptioner"]
