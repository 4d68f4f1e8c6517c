"""A question answerer of random weights, saved to a folder; what makes its regions is in `tiny_captioner.py`."""

from pathlib import Path
from typing import Any

import torch

from hf_grounding import MIAForVQA, MIAVQAConfig, MIAVQAProcessor
from hf_grounding.processing.question_tokenizers import train_question_tokenizer

QUESTIONS = ["how many dogs are there ?", "what is on the grass ?"]
ANSWERS = ["1", "2", "dog", "cat", "car"]
CONCEPTS = ["dog", "grass", "cat", "car"]


def save_answerer(
    folder: Path, extraction: dict[str, Any] | None, *, append_locations: bool = False, **settings: Any
) -> Path:
    """Reads regions with 16 features. Weights larger than those that training starts from: attention is not uniform."""
    tokenizer = train_question_tokenizer(QUESTIONS)
    defaults: dict[str, Any] = {
        "answer_head": "ban",
        "feature_dim": 16 + 5 * append_locations,
        "hidden_size": 8,
        "question_hidden_size": 8,
        "word_embedding_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "num_glimpses": 2,
    }
    torch.manual_seed(0)
    config = MIAVQAConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        concept_vocab_size=len(CONCEPTS),
        id2label=dict(enumerate(ANSWERS)),
        **defaults | settings,
    )
    model = MIAForVQA(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=2.0)
    model.save_pretrained(folder)
    MIAVQAProcessor(
        tokenizer,
        concepts=CONCEPTS,
        answers=ANSWERS,
        max_regions=6,
        max_concepts=6,
        append_locations=append_locations,
        extraction=extraction,
    ).save_pretrained(folder)
    return folder
