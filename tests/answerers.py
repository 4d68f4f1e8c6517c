"""Small question answerers and their inputs, shared by the tests of heads, models and processors."""

from typing import Any

import torch

from hf_grounding import MIAForVQA, MIAVQAConfig

CASES = [(head, iterations) for head in ("up_down", "ban") for iterations in (0, 2)]
CASE_IDS = [f"{head}-{'with' if iterations else 'without'}_mia" for head, iterations in CASES]

PAD, HIDDEN = 12, 12
# Of three questions about three images; questions are padded in front, the others behind.
QUESTION_MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]])
QUESTIONS = torch.tensor([[3, 7, 1, 0, 5], [PAD, PAD, 4, 9, 2], [PAD, PAD, PAD, PAD, 8]])
REGION_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
CONCEPT_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
CONCEPTS = torch.tensor([[4, 1, 0, 5], [2, 4, 0, 0], [3, 5, 1, 0]])
LABELS = torch.tensor([[1.0, 0.3, 0, 0, 0], [0, 0, 0.6, 0, 0], [0, 0, 0, 0, 0.9]])


def small_config(answer_head: str, mia_iterations: int = 2, **settings: Any) -> MIAVQAConfig:
    """Twelve words and padding, six concepts, five answers, regions of 6 numbers, d = 8, H = 12, two glimpses."""
    sizes: dict[str, Any] = {
        "vocab_size": 13,
        "word_embedding_size": 4,
        "question_hidden_size": HIDDEN,
        "feature_dim": 6,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "concept_vocab_size": 6,
        "num_glimpses": 2,
        "num_counted_objects": 3,
        "num_labels": 5,
    }
    return MIAVQAConfig(answer_head=answer_head, mia_iterations=mia_iterations, **{**sizes, **settings})


def small_answerer(answer_head: str, mia_iterations: int = 2, seed: int = 0, **settings: Any) -> MIAForVQA:
    """With weights larger than those that training starts from, so that attention is not near uniform."""
    torch.manual_seed(seed)
    model = MIAForVQA(small_config(answer_head, mia_iterations, **settings)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("scale"):
            parameter.data *= 2.0
        elif name.endswith("bias"):
            parameter.data.normal_(std=0.3)
    return model


def without_dropout(answer_head: str, mia_iterations: int = 2, **settings: Any) -> MIAForVQA:
    rates = dict.fromkeys(
        ["dropout", "mia_dropout", "attention_dropout", "bilinear_dropout", "classifier_dropout"], 0.0
    )
    return small_answerer(answer_head, mia_iterations, **rates, **settings)


def small_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 4, 6, generator=generator).masked_fill(REGION_MASK[..., None] == 0, 0)
    corners = torch.rand(3, 4, 2, 2, generator=generator).sort(dim=2).values
    return {
        "region_features": features,
        "region_mask": REGION_MASK.clone(),
        "boxes": corners.flatten(2).masked_fill(REGION_MASK[..., None] == 0, 0),
        "concept_ids": CONCEPTS.clone(),
        "concept_mask": CONCEPT_MASK.clone(),
        "input_ids": QUESTIONS.clone(),
        "attention_mask": QUESTION_MASK.clone(),
    }


def inputs_of(row: int) -> dict[str, torch.Tensor]:
    """Of one question, without its padding."""
    inputs = {name: value[row, None] for name, value in small_inputs().items()}
    words = int(QUESTION_MASK[row].sum())
    regions, concepts = int(REGION_MASK[row].sum()), int(CONCEPT_MASK[row].sum())
    for name in inputs:
        if name in ("input_ids", "attention_mask"):
            inputs[name] = inputs[name][:, -words:]
        else:
            inputs[name] = inputs[name][:, : concepts if name.startswith("concept") else regions]
    return inputs
