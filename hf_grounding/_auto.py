"""Our classes join transformers' Auto classes and pipelines, without making `import hf_grounding` pay for torch.

Registering needs the classes themselves, and importing them brings torch and half of transformers: seconds that
`hf-grounding --help` should not cost. An Auto class cannot be used before transformers has loaded the module that
defines it, so we register right then: a finder on `sys.meta_path` watches the imports of transformers and of our own
modules, and whenever the outermost of them is complete, registers what has become possible. Waiting for the outermost
keeps half-imported modules (transformers' or ours: a modeling file may well import `AutoBackbone`) out of the way. When
all is registered the finder goes.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_loader
from types import ModuleType


def _register_configs() -> None:
    from transformers import AutoConfig

    from .modeling.configuration_concepts import ConceptDetectorConfig
    from .modeling.configuration_mia import MIAConfig
    from .modeling.configuration_mia_vqa import MIAVQAConfig
    from .modeling.configuration_multilevel import MultiLevelGroundingConfig
    from .modeling.configuration_ss_attention import SSAttentionConfig

    AutoConfig.register(ConceptDetectorConfig.model_type, ConceptDetectorConfig, exist_ok=True)
    AutoConfig.register(MIAConfig.model_type, MIAConfig, exist_ok=True)
    AutoConfig.register(MIAVQAConfig.model_type, MIAVQAConfig, exist_ok=True)
    AutoConfig.register(MultiLevelGroundingConfig.model_type, MultiLevelGroundingConfig, exist_ok=True)
    AutoConfig.register(SSAttentionConfig.model_type, SSAttentionConfig, exist_ok=True)


def _register_models() -> None:
    from transformers import (
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForImageTextToText,
        AutoModelForVisualQuestionAnswering,
        AutoModelForZeroShotObjectDetection,
    )

    from .modeling.configuration_concepts import ConceptDetectorConfig
    from .modeling.configuration_mia import MIAConfig
    from .modeling.configuration_mia_vqa import MIAVQAConfig
    from .modeling.configuration_multilevel import MultiLevelGroundingConfig
    from .modeling.configuration_ss_attention import SSAttentionConfig
    from .modeling.modeling_concepts import ConceptDetector
    from .modeling.modeling_mia import MIAForCaptioning, MIAModel
    from .modeling.modeling_mia_vqa import MIAForVQA
    from .modeling.modeling_multilevel import MultiLevelGroundingModel
    from .modeling.modeling_ss_attention import SSAttentionCaptioner

    AutoModel.register(ConceptDetectorConfig, ConceptDetector, exist_ok=True)
    AutoModelForImageClassification.register(ConceptDetectorConfig, ConceptDetector, exist_ok=True)
    AutoModel.register(MIAConfig, MIAModel, exist_ok=True)
    AutoModelForImageTextToText.register(MIAConfig, MIAForCaptioning, exist_ok=True)
    AutoModelForVisualQuestionAnswering.register(MIAVQAConfig, MIAForVQA, exist_ok=True)
    AutoModel.register(MultiLevelGroundingConfig, MultiLevelGroundingModel, exist_ok=True)
    AutoModelForZeroShotObjectDetection.register(MultiLevelGroundingConfig, MultiLevelGroundingModel, exist_ok=True)
    AutoModelForImageTextToText.register(SSAttentionConfig, SSAttentionCaptioner, exist_ok=True)


def _register_image_processors() -> None:
    from transformers import AutoImageProcessor

    from .modeling.configuration_concepts import ConceptDetectorConfig
    from .modeling.configuration_mia import MIAConfig
    from .modeling.configuration_multilevel import MultiLevelGroundingConfig
    from .modeling.configuration_ss_attention import SSAttentionConfig
    from .processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil

    classes = {"pil": MultiLevelGroundingImageProcessorPil}
    AutoImageProcessor.register(ConceptDetectorConfig, image_processor_classes=classes, exist_ok=True)
    AutoImageProcessor.register(MIAConfig, image_processor_classes=classes, exist_ok=True)
    AutoImageProcessor.register(MultiLevelGroundingConfig, image_processor_classes=classes, exist_ok=True)
    AutoImageProcessor.register(SSAttentionConfig, image_processor_classes=classes, exist_ok=True)


def _register_processors() -> None:
    from transformers import AutoProcessor

    from .modeling.configuration_concepts import ConceptDetectorConfig
    from .modeling.configuration_mia import MIAConfig
    from .modeling.configuration_mia_vqa import MIAVQAConfig
    from .modeling.configuration_multilevel import MultiLevelGroundingConfig
    from .modeling.configuration_ss_attention import SSAttentionConfig
    from .processing.concepts import ConceptProcessor
    from .processing.processing_mia import MIAProcessor
    from .processing.processing_mia_vqa import MIAVQAProcessor
    from .processing.processing_multilevel import MultiLevelGroundingProcessor
    from .processing.processing_ss_attention import SSAttentionProcessor

    AutoProcessor.register(ConceptDetectorConfig, ConceptProcessor, exist_ok=True)
    AutoProcessor.register(MIAConfig, MIAProcessor, exist_ok=True)
    AutoProcessor.register(MIAVQAConfig, MIAVQAProcessor, exist_ok=True)
    AutoProcessor.register(MultiLevelGroundingConfig, MultiLevelGroundingProcessor, exist_ok=True)
    AutoProcessor.register(SSAttentionConfig, SSAttentionProcessor, exist_ok=True)


def _register_pipelines() -> None:
    from .pipelines import register_pipelines

    register_pipelines()


class _Registrar(MetaPathFinder):
    """Watches imports of transformers and hf_grounding; registers when none of them is half done."""

    def __init__(self) -> None:
        self.imports_in_progress = 0
        self.waiting = {  # module of transformers that defines a registry -> what to register once it is loaded
            "transformers.models.auto.configuration_auto": _register_configs,
            "transformers.models.auto.modeling_auto": _register_models,
            "transformers.models.auto.image_processing_auto": _register_image_processors,
            "transformers.models.auto.processing_auto": _register_processors,
            "transformers.pipelines": _register_pipelines,
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in ("transformers", "hf_grounding"):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or type(spec.loader) is not SourceFileLoader:
            return None
        return spec_from_loader(fullname, _ReportingLoader(spec.loader.name, spec.loader.path, self))

    def register_ready(self) -> None:
        if self.imports_in_progress:
            return
        for module in [module for module in self.waiting if module in sys.modules]:
            # Taken out first: registering imports modules of ours, which leads here again.
            if register := self.waiting.pop(module, None):
                register()
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


class _ReportingLoader(SourceFileLoader):
    """The ordinary loader of a `.py` file, which tells the registrar when a module starts and when it is complete."""

    def __init__(self, fullname: str, path: str, registrar: _Registrar) -> None:
        super().__init__(fullname, path)
        self.registrar = registrar

    def exec_module(self, module: ModuleType) -> None:
        self.registrar.imports_in_progress += 1
        try:
            super().exec_module(module)
        finally:
            self.registrar.imports_in_progress -= 1
        self.registrar.register_ready()


def register_when_loaded() -> None:
    """Registers our classes with the Auto classes that are loaded, and with the others once transformers loads them."""
    registrar = _Registrar()
    sys.meta_path.insert(0, registrar)
    registrar.register_ready()
