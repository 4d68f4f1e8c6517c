"""Small captioners and their inputs, shared by the tests of decoders, models and generation."""

from typing import Any

import torch

from hf_grounding import MIAConfig, MIAForCaptioning, SSAttentionCaptioner, SSAttentionConfig

MIA_DECODERS = (  # values of `MIAConfig.decoder_type`
    "visual_attention",
    "concept_attention",
    "visual_condition",
    "concept_condition",
    "visual_regional_attention",
    "up_down",
    "transformer",
)
DECODERS = (*MIA_DECODERS, "ss_attention")  # the last is Up-Down with a prior, a model of its own
CASES = [(name, iterations) for name in DECODERS for iterations in (0, 2)]
CASE_IDS = [f"{name}-{'with' if iterations else 'without'}_mia" for name, iterations in CASES]

PAD, START, END = 0, 1, 2
# Of three images; both kinds of padding are on the right. Image 1 has fewer concepts than regions, image 2 more.
REGION_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
CONCEPT_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
CONCEPTS = torch.tensor([[4, 7, 11, 5], [6, 4, 0, 0], [9, 12, 8, 0]])
LABELS = torch.tensor([[5, 9, 2, -100, -100], [4, 6, 8, 12, 2], [7, 2, -100, -100, -100]])


def small_config(decoder_type: str, mia_iterations: int = 2, **settings: Any) -> MIAConfig:
    """Thirteen words, regions of 6 numbers, d = 8; R = 7 in Up-Down; five classes."""
    sizes: dict[str, Any] = {
        "vocab_size": 13,
        "feature_dim": 6,
        "hidden_size": 8,
        "embedding_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "decoder_hidden_size": 7,
        "attention_hidden_size": 5,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
    }
    if decoder_type == "ss_attention":
        sizes |= {"num_object_classes": 5, "ce_reduction": "token_mean"}  # the mean over words, as all others
        return SSAttentionConfig(mia_iterations=mia_iterations, **{**sizes, **settings})
    return MIAConfig(decoder_type=decoder_type, mia_iterations=mia_iterations, **{**sizes, **settings})


def small_captioner(decoder_type: str, mia_iterations: int = 2, seed: int = 0, **settings: Any) -> MIAForCaptioning:
    """With weights larger than those that training starts from, so that attention is not near uniform."""
    torch.manual_seed(seed)  # for what does not train, such as a frozen backbone
    kind = SSAttentionCaptioner if decoder_type == "ss_attention" else MIAForCaptioning
    model = kind(small_config(decoder_type, mia_iterations, **settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            parameter.data.normal_(std=0.7, generator=generator)
    return model


def without_dropout(decoder_type: str, mia_iterations: int = 2, **settings: Any) -> MIAForCaptioning:
    rates = dict.fromkeys(["dropout", "mia_dropout", "transformer_dropout"], 0.0)
    return small_captioner(decoder_type, mia_iterations, **rates, **settings)


def small_inputs(decoder_type: str = "") -> dict[str, torch.Tensor]:
    """Of three images, as that captioner reads them."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 4, 6, generator=generator)
    features.masked_fill_(REGION_MASK[..., None] == 0, 0)
    inputs = {
        "region_features": features,
        "region_mask": REGION_MASK.clone(),
        "concept_ids": CONCEPTS.clone(),
        "concept_mask": CONCEPT_MASK.clone(),
    }
    if decoder_type == "ss_attention":
        corners = torch.rand(3, 4, 4, generator=generator)
        boxes = torch.cat([corners[..., :2] / 2, 0.5 + corners[..., 2:] / 2], dim=-1)
        classes = torch.randn(3, 4, 5, generator=generator).mul(3).softmax(dim=-1)
        padding = REGION_MASK[..., None] == 0
        inputs |= {"boxes": boxes.masked_fill(padding, 0), "class_probs": classes.masked_fill(padding, 0)}
    return inputs


def inputs_of(image: int, decoder_type: str = "") -> dict[str, torch.Tensor]:
    """Of one image, without its padding."""
    inputs = {name: value[image, None] for name, value in small_inputs(decoder_type).items()}
    regions, concepts = inputs["region_mask"].sum(), inputs["concept_mask"].sum()
    return {name: x[:, : concepts if name.startswith("concept") else regions] for name, x in inputs.items()}
