"""Vision-and-language models that show which place in the picture each word stands for.

Importing the package is light: public names load on first use, and our classes join transformers' Auto classes as
soon as those are loaded (see `_auto.py`).
"""

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from . import _auto

__version__ = "0.1.0.dev0"

# public name -> module that defines it
_HOMES = {
    "ConceptDetector": "modeling.modeling_concepts",
    "ConceptDetectorConfig": "modeling.configuration_concepts",
    "ConceptProcessor": "processing.concepts",
    "GroundedAnswer": "processing.grounding",
    "GroundedCaption": "processing.grounding",
    "GroundedCaptioningPipeline": "pipelines",
    "GroundedVQAPipeline": "pipelines",
    "Grounding": "processing.grounding",
    "MIAConfig": "modeling.configuration_mia",
    "MIAForCaptioning": "modeling.modeling_mia",
    "MIAForVQA": "modeling.modeling_mia_vqa",
    "MIAModel": "modeling.modeling_mia",
    "MIAProcessor": "processing.processing_mia",
    "MIAVQAConfig": "modeling.configuration_mia_vqa",
    "MIAVQAProcessor": "processing.processing_mia_vqa",
    "MultiLevelGroundingConfig": "modeling.configuration_multilevel",
    "MultiLevelGroundingModel": "modeling.modeling_multilevel",
    "MultiLevelGroundingProcessor": "processing.processing_multilevel",
    "MutualIterativeAttention": "modeling.mutual_iterative_attention",
    "PhraseGroundingPipeline": "pipelines",
    "SSAttentionCaptioner": "modeling.modeling_ss_attention",
    "SSAttentionConfig": "modeling.configuration_ss_attention",
    "SSAttentionProcessor": "processing.processing_ss_attention",
    "attention_correctness": "metrics.attention_correctness",
    "draw_grounded_answer": "visualization_captions",
    "draw_grounded_caption": "visualization_captions",
    "draw_grounding": "visualization",
    "draw_groundings": "visualization",
    "draw_mutual_attention": "visualization_captions",
    "load_grounding_dataset": "data",
    "pointing_game": "metrics.pointing_game",
    "save_with_code": "hub",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:  # the same names for editors and type checkers; tests/test_packaging.py compares the two
    from .data import load_grounding_dataset as load_grounding_dataset
    from .hub import save_with_code as save_with_code
    from .metrics.attention_correctness import attention_correctness as attention_correctness
    from .metrics.pointing_game import pointing_game as pointing_game
    from .modeling.configuration_concepts import ConceptDetectorConfig as ConceptDetectorConfig
    from .modeling.configuration_mia import MIAConfig as MIAConfig
    from .modeling.configuration_mia_vqa import MIAVQAConfig as MIAVQAConfig
    from .modeling.configuration_multilevel import MultiLevelGroundingConfig as MultiLevelGroundingConfig
    from .modeling.configuration_ss_attention import SSAttentionConfig as SSAttentionConfig
    from .modeling.modeling_concepts import ConceptDetector as ConceptDetector
    from .modeling.modeling_mia import MIAForCaptioning as MIAForCaptioning
    from .modeling.modeling_mia import MIAModel as MIAModel
    from .modeling.modeling_mia_vqa import MIAForVQA as MIAForVQA
    from .modeling.modeling_multilevel import MultiLevelGroundingModel as MultiLevelGroundingModel
    from .modeling.modeling_ss_attention import SSAttentionCaptioner as SSAttentionCaptioner
    from .modeling.mutual_iterative_attention import MutualIterativeAttention as MutualIterativeAttention
    from .pipelines import GroundedCaptioningPipeline as GroundedCaptioningPipeline
    from .pipelines import GroundedVQAPipeline as GroundedVQAPipeline
    from .pipelines import PhraseGroundingPipeline as PhraseGroundingPipeline
    from .processing.concepts import ConceptProcessor as ConceptProcessor
    from .processing.grounding import GroundedAnswer as GroundedAnswer
    from .processing.grounding import GroundedCaption as GroundedCaption
    from .processing.grounding import Grounding as Grounding
    from .processing.processing_mia import MIAProcessor as MIAProcessor
    from .processing.processing_mia_vqa import MIAVQAProcessor as MIAVQAProcessor
    from .processing.processing_multilevel import MultiLevelGroundingProcessor as MultiLevelGroundingProcessor
    from .processing.processing_ss_attention import SSAttentionProcessor as SSAttentionProcessor
    from .visualization import draw_grounding as draw_grounding
    from .visualization import draw_groundings as draw_groundings
    from .visualization_captions import draw_grounded_answer as draw_grounded_answer
    from .visualization_captions import draw_grounded_caption as draw_grounded_caption
    from .visualization_captions import draw_mutual_attention as draw_mutual_attention


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        nearest = difflib.get_close_matches(name, _HOMES, n=1)
        hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
        raise AttributeError(f"`hf_grounding` has no `{name}`.{hint}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


_auto.register_when_loaded()
