"""What all data sets share: the columns (`GROUNDING_FEATURES`) and the error for source files that cannot be read."""

from __future__ import annotations

from datasets import Features, Image, List, Value

__all__ = ["GROUNDING_FEATURES", "AnnotationError"]

GROUNDING_FEATURES = Features(
    {
        "image_id": Value("string"),
        "image": Image(),
        # Size of the image the boxes are annotated in; the stored photo may be smaller.
        "width": Value("int32"),
        "height": Value("int32"),
        # Tokens of a caption are its white-space separated words.
        "captions": List(Value("string")),
        "phrases": List(
            {
                "sentence": Value("int32"),  # index into `captions`
                "start": Value("int32"),  # first token
                "end": Value("int32"),  # token after the last
                "phrase": Value("string"),
                "entity_id": Value("string"),  # equal for phrases of one image that mean the same thing
                "types": List(Value("string")),
                "boxes": List(List(Value("float32"), length=4)),  # xyxy, pixels, as the source counts them
            }
        ),
        "questions": List(
            {
                "question_id": Value("string"),
                "question": Value("string"),
                "answers": List(Value("string")),
                "answer_type": Value("string"),
                "question_type": Value("string"),
            }
        ),
    }
)


class AnnotationError(ValueError):
    """A source file is malformed or missing. The message names the file and, where there is one, the line."""
