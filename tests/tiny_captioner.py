"""A captioner of random weights with all that a photo needs, saved to folders: detector, backbone, concept detector."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetModel

from hf_grounding import (
    ConceptDetector,
    ConceptDetectorConfig,
    ConceptProcessor,
)
from hf_grounding.processing.caption_tokenizers import train_caption_tokenizer
from hf_grounding.processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from hf_grounding.training.captioning import CAPTIONERS
from tests.common import tiny_detector

WORDS = ["a", "dog", "runs", "on", "grass", "cat", "in", "car"]
BACKBONE = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


class Sources(NamedTuple):
    detector: Path
    backbone: Path
    concept_detector: Path

    @property
    def extraction(self) -> dict[str, Any]:
        return {name: str(path) for name, path in self._asdict().items()}


def save_sources(folder: Path) -> Sources:
    """What makes regions with 16 features, and concepts."""
    sources = Sources(*(folder / name for name in Sources._fields))
    tiny_detector(sources.detector)
    torch.manual_seed(0)
    ResNetModel(BACKBONE).save_pretrained(sources.backbone)
    ConvNextImageProcessorPil().save_pretrained(sources.backbone)
    concepts = ["dog", "grass", "cat", "car"]
    config = ConceptDetectorConfig(
        backbone_config=BACKBONE, feature_channels=16, id2label=dict(enumerate(concepts)), bias_init=0.0
    )
    ConceptDetector(config).save_pretrained(sources.concept_detector)
    image_processor = MultiLevelGroundingImageProcessorPil(size={"height": 64, "width": 64})
    ConceptProcessor(image_processor, concepts).save_pretrained(sources.concept_detector)
    return sources


def save_captioner(
    folder: Path, extraction: dict[str, Any] | None, system: str = "mia", object_words: Any = None, **settings: Any
) -> Path:
    """Writes four words; weights larger than those that training starts from, so that attention is not uniform."""
    tokenizer = train_caption_tokenizer([" ".join(WORDS)], min_count=1)
    sizes = dict.fromkeys(("hidden_size", "embedding_size", "decoder_hidden_size", "attention_hidden_size"), 8)
    defaults: dict[str, Any] = {"decoder_type": "up_down", "feature_dim": 16, "num_attention_heads": 2, **sizes}
    torch.manual_seed(0)
    config_class, model_class, processor_class = CAPTIONERS[system]
    model = model_class(config_class(vocab_size=len(tokenizer), **defaults | settings))
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.7)
    model.generation_config.max_new_tokens = 4
    model.generation_config.suppress_tokens = [0, 1, 2, 3]  # no special token, not even the end
    model.save_pretrained(folder)
    known = {"extraction": extraction, "object_words": object_words}
    processor_class(None, tokenizer, max_regions=6, max_concepts=6, **known).save_pretrained(folder)
    return folder
