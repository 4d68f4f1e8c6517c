"""Tasks of `transformers.pipeline`: photos in, words with their places out.

"phrase-grounding": the place of each phrase of a text. "grounded-captioning": a caption, and what each word is about.
"grounded-vqa": the answer to a question, and the regions it is read from.

They join transformers' registry once both `hf_grounding` and `transformers.pipelines` are imported, see `_auto`.
"""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotObjectDetection,
)
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

from .modeling.modeling_concepts import ConceptDetector
from .modeling.mutual_iterative_attention import accumulated_attention
from .processing.concepts import ConceptProcessor, RankedConcept
from .processing.extraction import GridExtractor, RegionExtractor, load_extractor
from .processing.grounding import GroundedAnswer, GroundedCaption, Grounding
from .processing.paths import below_data_root
from .processing.photos import load_photo
from .processing.processing_mia_vqa import LOCATION_SIZE, check_top_k
from .processing.regions import Regions, check_grid_fits
from .processing.words import parse_brackets


class _PhotoPipeline(Pipeline):
    """What our pipelines share: a model in evaluation mode, with a processor that can read its outputs."""

    _load_processor = True
    _load_tokenizer = False  # both are parts of the processor
    _load_image_processor = False
    _load_feature_extractor = False

    def _check_processor(self, method: str, purpose: str) -> None:
        if not hasattr(self.processor, method):
            raise ValueError(
                f"{type(self.model).__name__} has no processor for {purpose}, got "
                f"{type(self.processor).__name__}; give a model of this package, and its `processor` too."
            )
        self.model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Model and processor, which load wherever hf_grounding is installed; no copy of this file, no remote code."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


class PhraseGroundingPipeline(_PhotoPipeline):
    r"""Where in the photo are the phrases?

    Example:

        >>> from transformers import pipeline
        >>> import hf_grounding
        >>> ground = pipeline("phrase-grounding", model="runs/multilevel_flickr8k")
        >>> man, horse = ground("photo.jpg", "[a man in red] rides [a horse]")
        >>> man.point, man.box

    Options, of the pipeline or of a call:
        query_heatmap (`str`): "word", "sentence" or "auto", see the processor; default the processor's own.
        box_threshold (`float`): Share of a heatmap's peak that still belongs to the box.
        timeout (`float`): Seconds to wait for a photo from the web.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._check_processor("post_process_grounding", "phrase grounding")

    def __call__(self, image: Any, text: str | list[str] | None = None, **kwargs: Any) -> Any:
        r"""
        Args:
            image: A photo: path, URL, or PIL image. Or a list of photos. Or, without `text`, any dictionary, list,
                data set or generator of `{"image": photo, "text": text}`.
            text: One phrase, or a sentence with its phrases in square brackets. Or a list, one for each photo; one text
                goes with all photos, and one photo with all texts.

        Returns:
            A list with the [`Grounding`] of each phrase, in the order of the text, in pixels of the upright photo. A
            list of these lists if photos or texts are a list.

        Raises:
            FileNotFoundError: If there is no such photo.
            ValueError: If the photo cannot be read, the text is empty, its brackets do not pair, or the lists differ in
                length.
        """
        if text is None:
            return super().__call__(image, **kwargs)
        if not isinstance(image, list | tuple) and isinstance(text, str):
            return super().__call__({"image": image, "text": text}, **kwargs)
        images = list(image) if isinstance(image, list | tuple) else [image] * len(text)
        texts = [text] * len(images) if isinstance(text, str) else list(text)
        if len(images) != len(texts):
            raise ValueError(
                f"Got {len(images)} photos but {len(texts)} texts; give one text for each photo, or one for all."
            )
        if not images:
            return []
        return super().__call__([{"image": one, "text": its} for one, its in zip(images, texts, strict=True)], **kwargs)

    def _sanitize_parameters(
        self, query_heatmap: str | None = None, box_threshold: float | None = None, timeout: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {"query_heatmap": query_heatmap, "box_threshold": box_threshold}
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, {name: value for name, value in given.items() if value is not None}, {}

    def preprocess(self, inputs: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        if not isinstance(inputs, dict) or not {"image", "text"} <= inputs.keys():
            raise ValueError(
                'Give a photo and a text: `pipe(photo, "a man in red")`, or {"image": photo, "text": ...}.'
            )
        if not isinstance(inputs["text"], str) or not inputs["text"].strip():
            raise ValueError(
                f"`text` must be words such as 'a man in red' or '[a man] rides [a horse]', got {inputs['text']!r}."
            )
        sentence, phrases = parse_brackets(inputs["text"])
        photo = load_photo(inputs["image"], timeout)
        pixels = self.processor.image_processor(photo, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "text": sentence, "phrases": phrases, "size": (photo.height, photo.width)}

    def _forward(self, model_inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        # Text is made to tensors here, where the batch is known: then its padding is the processor's.
        pixels = model_inputs["pixel_values"]
        one = isinstance(model_inputs["text"], str)
        text, phrases, sizes = ([model_inputs[k]] if one else model_inputs[k] for k in ("text", "phrases", "size"))
        inputs = self.processor(text=text, phrases=phrases).to(self.device)
        outputs = self.model(pixel_values=pixels, **inputs)
        groundings = self.processor.post_process_grounding(outputs, inputs, sizes, **options)
        return {"groundings": groundings[0] if one else groundings}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[Grounding]:
        return model_outputs["groundings"]


class ConceptExtractor:
    r"""Photos -> the likeliest words of each.

    Args:
        model ([`ConceptDetector`]): Which words would people use?
        processor ([`ConceptProcessor`]): Its processor.
    """

    def __init__(self, model: ConceptDetector, processor: ConceptProcessor):
        self.model, self.processor = model.eval(), processor

    @classmethod
    def from_pretrained(cls, source: str, device: Any = "cpu") -> "ConceptExtractor":
        r"""From a folder or a name on the Hub.

        Raises:
            ValueError: If it cannot be loaded, or is another kind of model.
        """
        try:
            kind = AutoConfig.from_pretrained(source).model_type
            if kind != ConceptDetector.config_class.model_type:
                raise ValueError(f"it is a {kind}, no {ConceptDetector.config_class.model_type}")
            model, processor = ConceptDetector.from_pretrained(source), ConceptProcessor.from_pretrained(source)
        except Exception as error:  # whatever is missing from it or damaged
            raise ValueError(f"Model '{source}' cannot be loaded: {error}") from error
        return cls(model.to(device), processor)

    @torch.no_grad()
    def __call__(self, photos: Sequence[Image.Image], top: int | None = None) -> list[list[RankedConcept]]:
        """The `top` likeliest words of upright RGB photos; by default as many as the processor says."""
        pixels = self.processor(images=list(photos))["pixel_values"].to(self.model.device)
        # Convolutions on a CPU are much faster with channels last in memory.
        probs = self.model(pixels.to(memory_format=torch.channels_last)).concept_probs
        return self.processor.rank(probs, top)


class _RegionPipeline(_PhotoPipeline):
    """What pipelines share whose models read regions and concepts of a photo: where these come from.

    They are made as those of the training were (`processor.extraction`), unless arguments say otherwise.
    """

    method: str  # of the processor
    purpose: str

    def __init__(
        self,
        *args: Any,
        detector: str | None = None,
        backbone: str | None = None,
        grid: int | None = None,
        concept_detector: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._check_processor(self.method, self.purpose)
        given = {"detector": detector, "backbone": backbone, "grid": grid, "concept_detector": concept_detector}
        given = {name: value for name, value in given.items() if value is not None}
        unread = [name for name in ("detector", "backbone", "grid") if name in given] if self.reads_photos else []
        if unread:
            raise ValueError(f"The model reads photos by a backbone of its own, so leave out `{unread[0]}`.")
        if concept_detector is not None and not self.reads_concepts:
            raise ValueError("The model reads no concepts, so leave out `concept_detector`.")
        extraction = dict(self.processor.extraction or {})
        if any(name in given and name not in extraction for name in ("detector", "grid")):
            # Settings of a detector's regions mean nothing to a grid, nor the reverse.
            extraction = {name: extraction[name] for name in ("backbone", "concept_detector") if name in extraction}
        self.extraction: dict[str, Any] = extraction | given
        check_grid_fits(self.extraction, self.processor.max_regions)

    @property
    def reads_photos(self) -> bool:
        """Whether the model has a backbone of its own, which takes the place of regions with features."""
        return False

    @property
    def reads_regions(self) -> bool:
        """Whether the model reads regions with features."""
        return True

    @property
    def reads_concepts(self) -> bool:
        """Whether the model reads concepts."""
        return self.model.config.uses_concepts

    @property
    def _feature_size(self) -> int:
        return self.model.config.feature_dim

    def extract(self, photos: Sequence[Image.Image]) -> tuple[list[Regions] | None, list[list[str]] | None]:
        r"""Regions and concepts of upright RGB photos, each as far as the model reads them, else `None`.

        A model with a backbone of its own reads photos in place of regions.

        Raises:
            ValueError: If it is not known how to make them, networks for it cannot be loaded, or a photo has none.
        """
        regions = self._checked(self._regions_of(photos)) if self.reads_regions else None
        return regions, self._concepts_of(photos) if self.reads_concepts else None

    @staticmethod
    def _rows(**columns: Any) -> list[dict[str, Any]]:
        """One dictionary for each photo, of lists with what belongs to each, or `None` for what is not given."""
        given = {name: values for name, values in columns.items() if values is not None}
        for name, values in given.items():
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise ValueError(f"`{name}` must be a list, with one entry for each photo, got {values!r}.")
        if len({len(values) for values in given.values()}) > 1:
            counts = ", ".join(f"{len(values)} of `{name}`" for name, values in given.items())
            raise ValueError(f"All must be given for the same photos, got {counts}.")
        return [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]

    @cached_property
    def _extractor(self) -> RegionExtractor | GridExtractor:
        settings = {name: value for name, value in self.extraction.items() if name != "concept_detector"}
        if "scene_detector" in settings:
            raise ValueError(
                "The model was trained on simulated regions of generated scenes, which no network finds in a photo. "
                "Train one on photos, or give `regions` of a `SceneDetector`."
            )
        if not {"detector", "grid"} & settings.keys():
            raise ValueError(
                "The model does not say where its regions came from (`processor.extraction`). Give `detector` and "
                "`backbone`, or `grid` and `backbone`, those of its training; or give `regions`."
            )
        if "backbone" not in settings and not settings.get("detector_features"):
            raise ValueError(
                "The regions have no features: give the `backbone` of the model's training, or "
                "`detector_features=True` in `processor.extraction`."
            )
        for name in {"detector", "backbone"} & settings.keys():
            settings[name] = below_data_root(settings[name])
        return load_extractor(**settings, device=self.device)

    @cached_property
    def _concept_extractor(self) -> ConceptExtractor:
        if "concept_detector" not in self.extraction:
            raise ValueError(
                "The model reads concepts, and does not say where they came from (`processor.extraction`). Give "
                "`concept_detector`, that of its training; or give `concepts`."
            )
        return ConceptExtractor.from_pretrained(below_data_root(self.extraction["concept_detector"]), self.device)

    def _regions_of(self, photos: Sequence[Image.Image]) -> list[Regions]:
        return self._extractor(photos, ["photo"] * len(photos))

    def _concepts_of(self, photos: Sequence[Image.Image]) -> list[list[str]]:
        ranked = self._concept_extractor(photos, self.processor.max_concepts)
        return [[concept.word for concept in row] for row in ranked]

    def _checked(self, records: list[Regions]) -> list[Regions]:
        """The records, if the model can read them."""
        wanted = self._feature_size
        for record in records:
            if not len(record):
                raise ValueError(
                    f"Image '{record.image_id}' has no regions. A detector gives more of them by a lower `min_score`."
                )
            size = 0 if record.region_features is None else record.region_features.shape[1]
            if size != wanted:
                raise ValueError(
                    f"The regions have {size} features each and the model reads {wanted} (`config.feature_dim`). Give "
                    "the `backbone` of its training, or regions of it."
                )
        return records


class GroundedCaptioningPipeline(_RegionPipeline):
    r"""What is in the photo, and where?

    Regions and concepts of a photo are made as those of the training were (`processor.extraction`), unless arguments
    say otherwise; they and the networks for it are folders, folders below the data root, or names on the Hub. A model
    with a backbone of its own reads the photo itself, and its regions are the cells of a grid.

    Example:

        >>> from transformers import pipeline
        >>> import hf_grounding
        >>> describe = pipeline("grounded-captioning", model="runs/mia_up_down_flickr8k")
        >>> caption = describe("photo.jpg")
        >>> caption.caption, [(word.phrase, word.box, word.score) for word in caption.groundings]

    Args:
        detector (`str`, *optional*): A detector for the regions, see [`load_extractor`].
        backbone (`str`, *optional*): A vision model for their features.
        grid (`int`, *optional*): Cells along each side, in place of a detector's regions.
        concept_detector (`str`, *optional*): A [`ConceptDetector`] for the concepts.

    Options, of the pipeline or of a call:
        num_beams, max_new_tokens, num_return_sequences, ...: Of `generate`; by default the model's own.
        timeout (`float`): Seconds to wait for a photo from the web.
    """

    method, purpose = "post_process_grounded_captions", "captioning"

    @property
    def reads_photos(self) -> bool:
        return self.model.config.uses_regions and self.model.config.backbone_config is not None

    @property
    def reads_regions(self) -> bool:
        return self.model.config.uses_regions and not self.reads_photos

    def __call__(self, image: Any, regions: Any = None, concepts: Any = None, **kwargs: Any) -> Any:
        r"""
        Args:
            image: A photo: path, URL, or PIL image. Or any list, data set or generator of photos, or of dictionaries
                `{"image": photo, "regions": regions, "concepts": concepts}`, the last two optional.
            regions ([`Regions`], *optional*): Of the photo, with features, if they are there already; a list of them
                for a list of photos.
            concepts (list of words, *optional*): Of the photo, likewise, the likeliest first.

        Returns:
            A [`GroundedCaption`] in pixels of the upright photo; a list of them for a list of photos. With
            `num_return_sequences` above 1 each of them is a list.

        Raises:
            FileNotFoundError: If there is no such photo.
            ValueError: If a photo cannot be read, or its regions or concepts are not given and it is not known how to
                make them, or lists differ in length.
        """
        if regions is None and concepts is None:
            return super().__call__(image, **kwargs)
        if not isinstance(image, list | tuple):
            return super().__call__({"image": image, "regions": regions, "concepts": concepts}, **kwargs)
        rows = self._rows(image=image, regions=regions, concepts=concepts)
        return super().__call__(rows, **kwargs) if rows else []

    @torch.no_grad()
    def accumulated_attentions(
        self, regions: Regions | Image.Image, concepts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""What Mutual Iterative Attention gathers in each refined row after each of its iterations, Figure 5.

        Args:
            regions, concepts: Of a photo, as [`extract`] gives them; the photo itself in place of regions for a model
                that reads photos.

        Returns:
            Weights of the regions (iterations, num_rows, num_regions) and of the concepts (iterations, num_rows,
            num_concepts), of as many as there are rows. Rows that an iteration does not refine, since nothing depends
            on it, hold what they held; a side that the module does not read has no columns.

        Raises:
            ValueError: If the model has no such module.
        """
        module = self.model.model.mia
        if module is None:
            raise ValueError("The model has no mutual iterative attention (`config.mia_iterations` is 0).")
        shown: dict[str, Any] = {"concepts": [concepts]} if self.reads_concepts else {}
        if self.model.config.uses_regions:
            shown |= {"images": [regions]} if isinstance(regions, Image.Image) else {"regions": regions}
        inputs = self.processor(**shown).to(self.device)
        refined = self.model.model(**inputs, output_attentions=True)
        num_rows = refined.last_hidden_state.shape[1]

        def after_each_iteration(side: str, attentions: tuple[torch.Tensor, ...]) -> np.ndarray:
            if side not in module.reads:
                return np.zeros((self.model.config.mia_iterations, num_rows, 0), dtype=np.float32)
            steps = accumulated_attention(attentions) if attentions else [torch.eye(num_rows)[None]]
            held = [steps[min(t, len(steps) - 1)] for t in range(self.model.config.mia_iterations)]
            return torch.cat(held).float().cpu().numpy()

        visual = after_each_iteration("visual", refined.attentions)
        textual = after_each_iteration("textual", refined.textual_attentions)
        return visual, textual[..., : inputs["concept_ids"].shape[1] if self.reads_concepts else 0]

    def _sanitize_parameters(
        self, timeout: float | None = None, **generate_kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {} if timeout is None else {"timeout": timeout}, generate_kwargs, {}

    def preprocess(self, inputs: Any, timeout: float | None = None) -> dict[str, Any]:
        entry = inputs if isinstance(inputs, dict) else {"image": inputs}
        if "image" not in entry:
            raise ValueError(f'Give a photo, or {{"image": photo}}; got a dictionary of {sorted(entry)}.')
        return {"photo": load_photo(entry["image"], timeout)} | {
            name: entry.get(name) for name in ("regions", "concepts")
        }

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        # Networks run here, where the batch is known.
        one = isinstance(model_inputs["photo"], Image.Image)
        photos, regions, concepts = (
            [model_inputs[k]] if one else model_inputs[k] for k in ("photo", "regions", "concepts")
        )
        inputs: dict[str, Any] = {}
        where: dict[str, Any] = {"target_sizes": [(photo.height, photo.width) for photo in photos]}
        if self.reads_photos and all(record is None for record in regions):
            inputs["images"] = list(photos)
        elif self.model.config.uses_regions:
            inputs["regions"] = self._checked(_filled_up(regions, photos, self._regions_of))
            where = {"regions": inputs["regions"]}
        if self.reads_concepts:
            inputs["concepts"] = _filled_up(concepts, photos, self._concepts_of)
        outputs = self.model.generate(
            **self.processor(**inputs).to(self.device),
            **{"return_dict_in_generate": True, "output_attentions": True} | generate_kwargs,
        )
        captions = self.processor.post_process_grounded_captions(outputs, **where)
        each = len(captions) // len(photos)
        rows = captions if each == 1 else [captions[start : start + each] for start in range(0, len(captions), each)]
        return {"captions": rows[0] if one else rows}

    def postprocess(self, model_outputs: dict[str, Any]) -> GroundedCaption | list[GroundedCaption]:
        return model_outputs["captions"]


class GroundedVQAPipeline(_RegionPipeline):
    r"""What is the answer, and which regions is it read from?

    Example:

        >>> from transformers import pipeline
        >>> import hf_grounding
        >>> detector, backbone = "weights/yolox_nano_coco", "weights/mobilenet_v2_1.0_224_imagenet"
        >>> sources = {"detector": detector, "backbone": backbone, "concept_detector": "runs/concepts_flickr8k"}
        >>> ask = pipeline("grounded-vqa", model="runs/vqa_ban_daquar", **sources)
        >>> answer = ask("photo.jpg", "How many chairs are there?")
        >>> answer.answers, answer.groundings[0].box

    Args:
        detector, backbone, grid, concept_detector (*optional*): Of regions and concepts, as of
            [`GroundedCaptioningPipeline`].

    Options, of the pipeline or of a call:
        top_k (`int`): How many answers of each question.
        timeout (`float`): Seconds to wait for a photo from the web.
    """

    method, purpose = "post_process_answers", "question answering"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        config, processor = self.model.config, self.processor
        pairs = {
            "words of questions": (len(processor.tokenizer), config.vocab_size),
            "answers": (len(processor.answers), config.num_labels),
        }
        if self.reads_concepts:
            pairs["concepts"] = (max(1, len(processor.concepts)), config.concept_vocab_size)
        for name, (own, models) in pairs.items():
            if own != models:
                raise ValueError(
                    f"The processor has {own} {name} and the model {models}; give the processor that was saved with it."
                )

    @property
    def _feature_size(self) -> int:
        return self.model.config.feature_dim - LOCATION_SIZE * self.processor.append_locations

    def __call__(
        self,
        image: Any,
        question: str | list[str] | None = None,
        regions: Any = None,
        concepts: Any = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        Args:
            image: A photo: path, URL, or PIL image. Or a list of photos. Or, without `question`, any dictionary, list,
                data set or generator of `{"image": photo, "question": question}`, with "regions" and "concepts" where
                they are there already.
            question: About the photo. Or a list, one for each photo; one question goes with all photos, and one photo
                with all questions.
            regions ([`Regions`], *optional*): Of the photo, with features, if they are there already; a list of them
                for a list of photos.
            concepts (list of words, *optional*): Of the photo, likewise, the likeliest first.

        Returns:
            A [`GroundedAnswer`] in pixels of the upright photo; a list of them if photos or questions are a list.

        Raises:
            FileNotFoundError: If there is no such photo.
            ValueError: If a photo cannot be read, a question is no text or has no words, regions or concepts are not
                given and it is not known how to make them, lists differ in length, or `top_k` is below 1.
        """
        several = isinstance(image, list | tuple)
        if question is None:
            return [] if several and not image else super().__call__(image, **kwargs)
        if not isinstance(question, str | list | tuple):
            raise ValueError(f"`question` must be text, or a list of texts, got {question!r}.")
        given = {"regions": regions, "concepts": concepts}
        if not several:
            if not isinstance(regions, Regions | None):
                raise ValueError(
                    f"`regions` of one photo must be one `Regions`, whatever is asked, got {type(regions).__name__}. "
                    "For regions of each question's own, give the photo as often, in a list."
                )
            if isinstance(question, str):
                return super().__call__({"image": image, "question": question, **given}, **kwargs)
            image = [image] * len(question)
            given = {name: None if values is None else [values] * len(question) for name, values in given.items()}
        rows = self._rows(
            image=image, question=[question] * len(image) if isinstance(question, str) else question, **given
        )
        return super().__call__(rows, **kwargs) if rows else []

    def _sanitize_parameters(
        self, top_k: int | None = None, timeout: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if top_k is not None:
            check_top_k(top_k)  # before a photo is read
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, {} if top_k is None else {"top_k": top_k}, {}

    def preprocess(self, inputs: Any, timeout: float | None = None) -> dict[str, Any]:
        if not isinstance(inputs, dict) or not {"image", "question"} <= inputs.keys():
            raise ValueError(
                'Give a photo and a question: `pipe(photo, "How many?")`, or {"image": photo, "question": ...}.'
            )
        if not isinstance(inputs["question"], str):
            raise ValueError(f"A question must be text, got {inputs['question']!r}.")
        return {"photo": load_photo(inputs["image"], timeout)} | {
            name: inputs.get(name) for name in ("question", "regions", "concepts")
        }

    def _forward(self, model_inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        # Networks run here, where the batch is known.
        one = isinstance(model_inputs["photo"], Image.Image)
        photos, questions, regions, concepts = (
            [model_inputs[k]] if one else model_inputs[k] for k in ("photo", "question", "regions", "concepts")
        )
        inputs = {"regions": self._checked(_filled_up(regions, photos, self._regions_of))}
        if self.reads_concepts:
            inputs["concepts"] = _filled_up(concepts, photos, self._concepts_of)
        outputs = self.model(**self.processor(text=questions, **inputs).to(self.device), output_attentions=True)
        answers = self.processor.post_process_answers(outputs, questions, inputs["regions"], **options)
        return {"answers": answers[0] if one else answers}

    def postprocess(self, model_outputs: dict[str, Any]) -> GroundedAnswer | list[GroundedAnswer]:
        return model_outputs["answers"]


def _filled_up(
    values: list[Any], photos: list[Image.Image], make: Callable[[list[Image.Image]], list[Any]]
) -> list[Any]:
    """The values, those that are `None` made from their photos."""
    missing = [photo for photo, value in zip(photos, values, strict=True) if value is None]
    made = iter(make(missing) if missing else [])
    return [next(made) if value is None else value for value in values]


TASKS = {
    "phrase-grounding": (PhraseGroundingPipeline, AutoModelForZeroShotObjectDetection),
    "grounded-captioning": (GroundedCaptioningPipeline, AutoModelForImageTextToText),
    "grounded-vqa": (GroundedVQAPipeline, AutoModelForVisualQuestionAnswering),
}


def register_pipelines() -> None:
    """Makes the tasks known to `transformers.pipeline`."""
    for task, (pipeline_class, auto_class) in TASKS.items():
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class=pipeline_class, pt_model=auto_class, type="multimodal"
            )
