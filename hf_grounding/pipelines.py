"""`pipeline("phrase-grounding", model=...)`: a photo and text in, the place of each phrase out.

The task joins transformers' registry once both `hf_grounding` and `transformers.pipelines` are imported, see `_auto`.
"""

import os
from typing import Any

from transformers import AutoModelForZeroShotObjectDetection
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

from .processing.grounding import Grounding
from .processing.photos import load_photo
from .processing.words import parse_brackets

TASK = "phrase-grounding"


class PhraseGroundingPipeline(Pipeline):
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

    _load_processor = True
    _load_tokenizer = False  # both are parts of the processor
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not hasattr(self.processor, "post_process_grounding"):
            raise ValueError(
                f"{type(self.model).__name__} has no processor for phrase grounding, got "
                f"{type(self.processor).__name__}; give a model of this package, and its `processor` too."
            )
        self.model.eval()

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

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Model and processor, which load wherever hf_grounding is installed; no copy of this file, no remote code."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def register_pipeline() -> None:
    """Makes the task known to `transformers.pipeline`."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=PhraseGroundingPipeline,
            pt_model=AutoModelForZeroShotObjectDetection,
            type="multimodal",
        )
