"""Recipes: one YAML file with every setting of a run.

The command line overrides any key; the resolved recipe is saved with the model.
"""

import difflib
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml
from huggingface_hub.dataclasses import strict, type_validator
from huggingface_hub.errors import StrictDataclassError

from ..processing.regions import check_grid_fits

_PACKAGE = Path(__file__).resolve().parents[1]
RECIPE_FILE = "recipe.yaml"


@strict
@dataclass
class DatasetSettings:
    """Which data: a name of `load_grounding_dataset`, the splits, and further arguments of the data set."""

    name: str
    data_dir: str | None = None  # default: the data set's folder in the data root
    train_split: str = "train"
    eval_split: str = "val"
    options: dict = field(default_factory=dict)


@strict
@dataclass
class BackboneSettings:
    """The visual network, frozen unless `model` says otherwise: a checkpoint (`path`), or random weights (`config`)."""

    levels: list[int]
    image_size: int
    path: str | None = None  # a folder, a folder below the data root, or a name on the Hub
    config: dict | None = None
    feature_dir: str | None = None  # where computed features are kept; default: in the Hugging Face cache


@strict
@dataclass
class TextSettings:
    """Word-level vocabulary of the training captions, or a pretrained encoder."""

    min_count: int = 1
    word_vectors: str | None = None  # text file "word v1 v2 ..." (.gz too) that initialises the BiLSTM's words
    encoder: str | None = None  # any AutoModel text encoder: a folder or a name on the Hub

    def validate_min_count(self) -> None:
        _check_positive(self, "min_count")


@strict
@dataclass
class EvaluationSettings:
    """Protocol of the reported scores."""

    query_heatmap: Literal["auto", "word", "sentence"] = "word"
    box_rule: Literal["any", "union"] = "any"
    min_box_area: float | int = 0.0
    regions: str | None = None  # detected regions for a baseline: an .npz file; "{split}" stands for the split

    def validate_min_box_area(self) -> None:
        if not 0 <= self.min_box_area <= 1:
            raise ValueError(f"`min_box_area` is a share of the image in [0, 1], got {self.min_box_area}; 5 % is 0.05.")

    @property
    def protocol(self) -> dict[str, Any]:
        """What the metrics depend on."""
        return {name: getattr(self, name) for name in ("query_heatmap", "box_rule", "min_box_area")}


@strict
@dataclass
class RegionSettings:
    """Regions and concepts of the images of captions or questions, extracted beforehand; those of scenes are simulated.

    With a section `backbone` the captioner reads photos in place of regions, and only concepts are as said here.
    """

    store: str | None = None  # folder of a region store, with features
    concepts: str | None = None  # an image_concepts.json
    scene_detector: dict = field(default_factory=dict)  # arguments of `SceneDetector`, where the data are scenes
    max_regions: int = 36
    max_concepts: int = 36
    append_locations: bool = False  # of a question answerer, which else does not know where its regions are
    extraction: dict | None = None  # how the store was made, for photos: see `MIAProcessor`
    withhold_image: bool = False  # the same model blind: what texts alone teach, a floor for the one that sees

    def validate_sizes(self) -> None:
        _check_positive(self, "max_regions", "max_concepts")

    def validate_extraction(self) -> None:
        check_grid_fits(self.extraction, self.max_regions)


@strict
@dataclass
class CaptionSettings:
    """Vocabulary of a captioner, how it writes when it is measured, and which of its words name objects."""

    convention: Literal["mia", "up_down"] = "mia"
    min_count: int | None = None  # default: the convention's
    max_words: int | None = None  # default: the convention's
    num_beams: int = 3
    object_classes: str | None = None  # file of class names, one a line; default: last words of the training's phrases
    min_object_count: int = 20  # of phrases with boxes, for such a word to be a class

    def validate_sizes(self) -> None:
        _check_positive(self, "min_count", "max_words", "num_beams", "min_object_count")


@strict
@dataclass
class QuestionSettings:
    """Vocabulary of the questions, and what its words start from."""

    min_count: int = 1
    split: str | None = None  # whose questions' words; default: the training split
    word_vectors: str | None = None  # text file "word v1 v2 ..." (.gz too), such as GloVe's

    def validate_min_count(self) -> None:
        _check_positive(self, "min_count")


@strict
@dataclass
class AnswerSettings:
    """Answers that a model chooses from: the commonest of a split."""

    min_count: int = 1  # questions with this answer; 9 for VQA v2
    max_answers: int | None = None
    split: str | None = None  # whose answers; default: the training split

    def validate_sizes(self) -> None:
        _check_positive(self, "min_count", "max_answers")


def _check_positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value}.")


@dataclass
class Recipe:
    r"""All settings of a run.

    `system` is what is trained: phrase grounding, a concept detector, a captioner or a question answerer. `model` are
    arguments of its configuration, `training` of its training arguments; the other sections are of one system or
    another.

    Raises (from `load` and `override`):
        FileNotFoundError: No such recipe; says the nearest known name.
        ValueError: An unknown key (says the nearest known one), a value of a wrong type, or YAML that cannot be read.
    """

    description: str
    dataset: DatasetSettings
    backbone: BackboneSettings | None = None
    regions: RegionSettings | None = None
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    questions: QuestionSettings = field(default_factory=QuestionSettings)
    answers: AnswerSettings = field(default_factory=AnswerSettings)
    text: TextSettings = field(default_factory=TextSettings)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    system: Literal["multilevel_grounding", "concept_detector", "mia", "ss_attention", "mia_vqa"] = (
        "multilevel_grounding"
    )

    @property
    def network(self) -> BackboneSettings:
        """Section `backbone` of a system that has one."""
        if self.backbone is None:
            raise ValueError(f"A {SYSTEM_NOUNS[self.system]} has no `backbone`.")
        return self.backbone

    @property
    def images(self) -> RegionSettings:
        """Section `regions` of a system that has one."""
        if self.regions is None:
            raise ValueError(f"A {SYSTEM_NOUNS[self.system]} has no `regions`.")
        return self.regions

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        _check_keys(values, [f.name for f in fields(cls)], "recipe")
        # A saved recipe has all sections; those that say nothing are as good as absent.
        sections = {name: section for name, section in values.items() if section is not None}
        model, training = _classes(sections)
        system = _system(sections)
        own = _SECTIONS[system]
        _check_keys(sections.get("model") or {}, _keys(model), "model")
        sections["training"] = _training_settings(sections.get("training") or {}, training)
        for name, kind in _KINDS.items():
            if name in sections:
                _check_keys(sections[name], [f.name for f in fields(kind)], name)
                try:
                    sections[name] = kind(**sections[name])
                except (TypeError, StrictDataclassError) as error:
                    raise ValueError(f"Section `{name}` of the recipe: {error}.") from error
        for required in ("description", "dataset", own[0]):
            if required not in sections:
                raise ValueError(f"The recipe has no `{required}`.")
        recipe = cls(**sections)
        untouched = cls(recipe.description, recipe.dataset)
        for name in _KINDS:
            if name not in ("dataset", *own) and getattr(recipe, name) != getattr(untouched, name):
                raise ValueError(f"A {SYSTEM_NOUNS[system]} has no settings in section `{name}`; leave it out.")
        if system != "multilevel_grounding" and recipe.backbone and len(recipe.backbone.levels) != 1:
            noun = SYSTEM_NOUNS[system]
            raise ValueError(f"A {noun} reads one level, got `backbone.levels` {recipe.backbone.levels}.")
        if recipe.regions is not None:
            if recipe.backbone and (recipe.regions.store or recipe.regions.scene_detector):
                raise ValueError(
                    "A captioner with a `backbone` reads photos; leave out `regions.store` and "
                    "`regions.scene_detector`."
                )
            if recipe.regions.append_locations and system != "mia_vqa":
                raise ValueError(f"A {SYSTEM_NOUNS[system]} has no `regions.append_locations`; leave it out.")
            _check_regions(recipe.regions, recipe.dataset.name)
        return recipe

    @classmethod
    def load(cls, source: str | os.PathLike, overrides: dict[str, str] | None = None) -> "Recipe":
        r"""Recipe from a name (`multilevel_scenes`), a YAML file, or a folder with `recipe.yaml` or `config.yaml`.

        Args:
            overrides: Key -> text of the value (read as YAML). A key is `section.key` (`dataset.options.num_train`), or
                `key` alone where one section has it.
        """
        path = find_recipe(source)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"'{path}' is no YAML file: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"'{path}' must hold sections such as `dataset:` and `training:`.")
        values = _numbers(values)
        for key, text in (overrides or {}).items():
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(f"The value of `{key}` cannot be read: {text!r} is no YAML.") from error
            _override(values, key, _numbers(value))
        return cls.from_dict(values)

    def save(self, folder: str | Path) -> None:
        """Writes `recipe.yaml` into `folder`."""
        (Path(folder) / RECIPE_FILE).write_text(
            yaml.safe_dump(asdict(self), sort_keys=False, width=120), encoding="utf-8"
        )


_KINDS: dict[str, type] = {
    "dataset": DatasetSettings,
    "backbone": BackboneSettings,
    "regions": RegionSettings,
    "captions": CaptionSettings,
    "questions": QuestionSettings,
    "answers": AnswerSettings,
    "text": TextSettings,
    "evaluation": EvaluationSettings,
}

# Sections of each system besides `dataset`, `model` and `training`; the first must be there.
_SECTIONS = {
    "multilevel_grounding": ("backbone", "text", "evaluation"),
    "concept_detector": ("backbone",),
    "mia": ("regions", "captions", "backbone"),
    "ss_attention": ("regions", "captions"),
    "mia_vqa": ("regions", "questions", "answers"),
}

SYSTEM_NOUNS = {
    "multilevel_grounding": "phrase grounding model",
    "concept_detector": "concept detector",
    "mia": "captioner",
    "ss_attention": "grounded captioner",
    "mia_vqa": "question answerer",
}

# Settings of a model that the run finds out itself: from backbone, vocabulary and the captions' words.
_NOT_GIVEN = {
    *("backbone_config", "backbone_levels", "level_channels", "text_config", "vocab_size", "pad_token_id"),
    *("backbone_level", "feature_channels", "id2label", "label2id", "problem_type"),
    *("feature_dim", "bos_token_id", "eos_token_id", "unk_token_id", "decoder_start_token_id", "is_encoder_decoder"),
    *("concept_vocab_size",),
}


def _classes(values: dict[str, Any]) -> tuple[type, type]:
    """Classes of the sections `model` and `training`; imported here, because they bring torch."""
    from ..modeling.configuration_concepts import ConceptDetectorConfig
    from ..modeling.configuration_mia import MIAConfig
    from ..modeling.configuration_mia_vqa import MIAVQAConfig
    from ..modeling.configuration_multilevel import MultiLevelGroundingConfig
    from ..modeling.configuration_ss_attention import SSAttentionConfig
    from .captioning import CaptioningTrainingArguments
    from .concepts import ConceptTrainingArguments
    from .grounding_trainer import GroundingTrainingArguments
    from .vqa import VQATrainingArguments

    classes: dict[str, tuple[type, type]] = {
        "multilevel_grounding": (MultiLevelGroundingConfig, GroundingTrainingArguments),
        "concept_detector": (ConceptDetectorConfig, ConceptTrainingArguments),
        "mia": (MIAConfig, CaptioningTrainingArguments),
        "ss_attention": (SSAttentionConfig, CaptioningTrainingArguments),
        "mia_vqa": (MIAVQAConfig, VQATrainingArguments),
    }
    return classes[_system(values)]


def _system(values: dict[str, Any]) -> str:
    system = values.get("system", "multilevel_grounding")
    known = list(_SECTIONS)
    if system not in known:
        raise ValueError(f"`system` must be one of {', '.join(known)}, got {system!r}.{_nearest(str(system), known)}")
    return system


def _check_regions(settings: RegionSettings, dataset: str) -> None:
    """Those of scenes are simulated, those of all other data sets are read."""
    from ..data.scene_regions import SceneDetector

    if dataset == "scenes":
        for name in ("store", "concepts"):
            if getattr(settings, name) is not None:
                raise ValueError(f"Regions and concepts of scenes are simulated; leave `regions.{name}` out.")
        known = [f.name for f in fields(SceneDetector) if f.name != "attributes"]  # those of the scenes
        _check_keys(settings.scene_detector, known, "regions.scene_detector")
    elif settings.scene_detector:
        raise ValueError(f"`regions.scene_detector` is of the data set 'scenes', not of '{dataset}'; leave it out.")


def _keys(model: type) -> list[str]:
    from transformers import PreTrainedConfig

    not_given = _NOT_GIVEN | {f.name for f in fields(PreTrainedConfig)}
    return [f.name for f in fields(model) if f.name not in not_given]


def _training_settings(values: Any, arguments: type) -> dict[str, Any]:
    """The section `training` with every value of its field's type, so that a slip shows now and not after the data."""
    from .arguments import FIXED

    types = {name: kind for name, kind in get_type_hints(arguments).items() if name not in FIXED}
    known = [f.name for f in fields(arguments) if f.name not in FIXED]
    _check_keys(values, known, "training")
    settings = {}
    for key, value in values.items():
        if value is False and key.endswith("_strategy"):
            value = "no"  # YAML 1.1 reads a bare `no` as False
        if isinstance(value, int) and not isinstance(value, bool) and float in (types[key], *get_args(types[key])):
            value = float(value)
        try:
            type_validator(key, value, types[key])
        except TypeError as error:
            raise ValueError(f"Section `training` of the recipe: {error}.") from error
        settings[key] = value
    return settings


def recipes_dir() -> Path:
    """Folder of the recipes: inside an installed package, beside it in a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def list_recipes() -> dict[str, str]:
    """Name -> first line of the description of every recipe that comes with the package."""
    files = sorted(recipes_dir().glob("*/config.yaml"))
    return {
        path.parent.name: yaml.safe_load(path.read_text(encoding="utf-8"))["description"].split("\n")[0]
        for path in files
    }


def find_recipe(source: str | os.PathLike) -> Path:
    """File of a recipe given by name, file or folder."""
    path = Path(source)
    candidates = (
        [path]
        if path.is_file()
        else [path / RECIPE_FILE, path / "config.yaml", recipes_dir() / str(source) / "config.yaml"]
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = list(list_recipes())
    nearest = difflib.get_close_matches(path.name, known, n=1, cutoff=0.4)
    hint = f"Did you mean '{nearest[0]}'?" if nearest else f"Known recipes: {', '.join(known)}."
    raise FileNotFoundError(
        f"No recipe '{source}': it is no file, no folder with a config.yaml, and no known name. {hint}"
    )


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    target = values
    for section in sections or filter(None, [_section_of(key, values)]):
        inner = target[section] = target.get(section) or {}
        if not isinstance(inner, dict):
            raise ValueError(f"`{section}` of the recipe is no section, so `{key}` cannot be set.")
        target = inner
    target[name] = value


def _section_of(key: str, values: dict[str, Any]) -> str | None:
    """The one section that has `key`, None for a top-level key."""
    model, training = _classes(values)
    system = _system(values)
    own = {name: kind for name, kind in _KINDS.items() if name in ("dataset", *_SECTIONS[system])}
    kinds = {**own, "model": model, "training": training}
    top_level = {f.name for f in fields(Recipe)}
    if key in top_level - (_KINDS.keys() - own.keys()):
        return None
    found = [section for section, kind in kinds.items() if key in {f.name for f in fields(kind)}]
    if not found:
        if key in top_level:
            return None  # a section of other systems
        others = [f"`{name}`" for name, kind in _KINDS.items() if key in {f.name for f in fields(kind)}]
        if others:
            raise ValueError(f"A {SYSTEM_NOUNS[system]} has no `{key}`, which is of the section {' or '.join(others)}.")
        everything = sorted({f.name for kind in kinds.values() for f in fields(kind)})
        raise ValueError(f"No section of the recipe has a key `{key}`.{_nearest(key, everything)}")
    if len(found) > 1:
        raise ValueError(
            f"`{key}` is in the sections {', '.join(found)}; write `{found[0]}.{key}` or `{found[1]}.{key}`."
        )
    return found[0]


def _check_keys(values: Any, known: list[str], where: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"Section `{where}` must be a mapping of keys to values, got {values!r}.")
    for key in values:
        if key not in known:
            raise ValueError(f"Section `{where}` has no key `{key}`.{_nearest(str(key), known)}")


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean `{close[0]}`?" if close else ""


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 (no dot) as text; people mean the number."""
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value
