"""Settings of the Spatial-Semantic attention captioner; defaults are the paper's, and where it gives none those of the
public Up-Down code that it was built in.
"""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_mia import DecoderName, MIAConfig


@strict
class SSAttentionConfig(MIAConfig):
    r"""Settings of [`SSAttentionCaptioner`], on top of those of [`MIAConfig`].

    Args:
        num_object_classes (`int`): Length of `class_probs`; 1601 of the bottom-up detector, background first.
            Posteriors with one column more have a background in front, which is left out.
        prior_weight (`float`): Weight lambda of the prior in `gamma = alpha + lambda * beta`. 0 turns prior and
            grounding loss off, which leaves a plain Up-Down, the paper's baseline.
        grounding_loss_weight (`float`): Weight mu of the grounding loss; 0 turns it off.
        ss_spatial_input (`str`): What W_p reads of a region: "boxes", its place, or, for the ablation of Table 2,
            "visual", its features as they are passed in.
        ss_semantic_input (`str`): What W_c reads of a region: "classes", its class probabilities, or "visual".
        location_order (`str`): Of a box's numbers in W_p's input: "xxyys" is [x1, x2, y1, y2, s] of the paper, "xyxys"
            [x1, y1, x2, y2, s] of the public code; s is the box's share of the image.
        normalize_boxes (`bool`): W_p reads corners as shares of the image's width and height; else in pixels, which
            needs `image_sizes`. The paper does not say which; one checkpoint fits images of all sizes only if they are.
        ss_bias (`bool`): Biases on W_p, W_c and W_b, which the equations leave out.
        renormalize_weights (`bool`): Divide gamma by its sum, 1 + lambda; beyond the paper.
        grounding_weights (`str`): By which weights a written word is grounded: "gamma", or "alpha" without the prior.
        ce_reduction (`str`): Of the cross entropy: "sum" over a caption's words, then the mean over captions, or
            "token_mean" over all words of the batch.
        grounding_target (`str`): Which annotated boxes a caption's regions should cover: those of the "caption", or of
            all captions of its "image". Read by the training's collator.
        iou_plus_one (`bool`): When regions are matched with annotated boxes, count a box's last pixels in, as the
            evaluator of Grounded Video Description does. This and the next are the processor's in training.
        ignore_unmatched_boxes (`bool`): An annotated box that no region overlaps has no region; else it has the first.
        attention_loss_weight (`float`): Weight of a supervision of alpha at object words, as in "Grounded Video
            Description"; beyond the paper, 0 turns it off. Not with `mia_iterations`, whose rows are no single regions.
        decoder_attention_activation, decoder_attention_bias, embed_global: As in [`MIAConfig`], here as in the paper.
        mia_iterations (`int`): N of Mutual Iterative Attention in front of the decoder; beyond the paper, whose regions
            are used as they are (0).
    """

    model_type = "ss_attention"

    num_object_classes: int = 1601
    prior_weight: float | int = 0.5
    grounding_loss_weight: float | int = 1.0
    ss_spatial_input: Literal["boxes", "visual"] = "boxes"
    ss_semantic_input: Literal["classes", "visual"] = "classes"
    location_order: Literal["xxyys", "xyxys"] = "xxyys"
    normalize_boxes: bool = True
    ss_bias: bool = False
    renormalize_weights: bool = False
    grounding_weights: Literal["gamma", "alpha"] = "gamma"
    ce_reduction: Literal["sum", "token_mean"] = "sum"
    grounding_target: Literal["caption", "image"] = "caption"
    iou_plus_one: bool = True
    ignore_unmatched_boxes: bool = True
    attention_loss_weight: float | int = 0.0

    decoder_type: DecoderName = "up_down"
    mia_iterations: int = 0
    embedding_size: int = 1024
    decoder_hidden_size: int = 1024
    attention_hidden_size: int = 512
    decoder_attention_activation: Literal["tanh", "relu"] = "relu"
    decoder_attention_bias: bool = False
    embed_global: bool = False

    @property
    def uses_prior(self) -> bool:
        """Whether regions have a prior at all."""
        return self.prior_weight > 0

    @property
    def reads_boxes(self) -> bool:
        """Whether the model needs `boxes`."""
        return self.uses_prior and self.ss_spatial_input == "boxes"

    @property
    def reads_classes(self) -> bool:
        """Whether the model needs `class_probs`."""
        return self.uses_prior and self.ss_semantic_input == "classes"

    @property
    def learns_places(self) -> bool:
        """Whether the loss asks which regions captions are about."""
        return (self.uses_prior and self.grounding_loss_weight > 0) or self.attention_loss_weight > 0

    def validate_prior(self):
        for name in ("prior_weight", "grounding_loss_weight", "attention_loss_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if self.attention_loss_weight > 0 and self.mia_iterations > 0:
            raise ValueError(
                "`attention_loss_weight` teaches which region a word is about, and rows behind Mutual Iterative "
                "Attention are no single regions; set it or `mia_iterations` to 0."
            )
        if self.num_object_classes < 1:
            raise ValueError(f"`num_object_classes` must be 1 or more, got {self.num_object_classes}.")

    def validate_decoder(self):
        if self.decoder_type != "up_down":
            raise ValueError(
                f"Spatial-Semantic attention is that of 'up_down', got `decoder_type` '{self.decoder_type}'."
            )
        if self.backbone_config is not None:
            raise ValueError("Spatial-Semantic attention reads detected regions; leave `backbone_config` out.")


__all__ = ["SSAttentionConfig"]
