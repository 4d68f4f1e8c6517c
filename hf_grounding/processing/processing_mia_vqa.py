"""Questions, regions and concepts -> tensors of `MIAForVQA`, and its outputs -> `GroundedAnswer`s."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from .grounding import GroundedAnswer, Grounding, best_region
from .image_inputs import check_concepts, concept_inputs, region_inputs
from .regions import Regions, best_regions, check_grid_fits
from .words import token_words

logger = logging.get_logger(__name__)

LOCATION_SIZE = 5  # numbers of a region's location: x1, y1, x2, y2 and area, as shares of the image
WORD_SIDES = {"padding_side": "left", "truncation_side": "right"}  # of questions


class MIAVQAProcessor(ProcessorMixin):
    r"""What a question answerer reads, from questions, `Regions` and concept words; and what it answered, with places.

    Args:
        tokenizer ([`PreTrainedTokenizerFast`]): Of the questions, by [`train_question_tokenizer`].
        concepts (list of `str`): All words that concepts are chosen from; their places in the list are their ids, and
            the id behind the last is padding, as `config.concept_vocab_size` says.
        answers (list of `str`): All answers, by the model's labels.
        max_regions (`int`): Regions of an image, the best ones.
        max_concepts (`int`): Concepts of an image, the most probable ones.
        append_locations (`bool`): Behind the features of a region put its location, x1, y1, x2, y2 and area as shares
            of the image, without which a model does not know where it is. Not in the paper.
        extraction (`dict`, *optional*): Where regions and concepts of the training came from, as in [`MIAProcessor`].

    Raises:
        ValueError: If a number is below 1, a concept or an answer is there twice, or `max_regions` is below the number
            of cells of the extraction's grid.
    """

    def __init__(
        self,
        tokenizer=None,
        concepts: Sequence[str] = (),
        answers: Sequence[str] = (),
        max_regions: int = 36,
        max_concepts: int = 36,
        append_locations: bool = False,
        extraction: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        for name, value in {"max_regions": max_regions, "max_concepts": max_concepts}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value}.")
        check_grid_fits(extraction, max_regions)
        self.concepts, self.answers = list(concepts), list(answers)
        self._concept_ids = _numbered("concepts", self.concepts)
        self._answer_ids = _numbered("answers", self.answers)
        self.max_regions, self.max_concepts = max_regions, max_concepts
        self.append_locations, self.extraction = append_locations, extraction
        super().__init__(tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        names = ["region_features", "region_mask", "boxes", "concept_ids", "concept_mask"]
        return [*names, "input_ids", "attention_mask", "labels"]

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        values = super().to_dict(*args, **kwargs)
        return {name: value for name, value in values.items() if name not in ("_concept_ids", "_answer_ids")}

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        regions: Regions | Sequence[Regions] | None = None,
        concepts: Sequence[Sequence[str]] | None = None,
        answer_scores: Sequence[Mapping[str, float]] | None = None,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Args:
            text: The questions; one image can be asked several, by giving its regions and concepts as often.
            regions ([`Regions`] or a list of them): Of each question's image, with features.
            concepts: Of each question's image the words, the most probable first. Words that are none of `concepts`
                of this processor are left out.
            answer_scores: For training: of each question how right answers are, in [0, 1]; others are 0. Only answers
                of this processor, so leave out those that are too rare for it.
            return_tensors: Only `"pt"`.
            kwargs: Of the tokenizer; by default questions are cut to its length and padded to the longest.

        Returns:
            `BatchFeature` with `region_features`, `region_mask`, `boxes` in [0, 1]; `concept_ids`, `concept_mask`;
            `input_ids`, `attention_mask`; `labels` (batch, number of answers). Each for what was given.

        Raises:
            ValueError: For an image without regions or features, a question without words, padded at its end or cut in
                front, an unknown answer, a score outside [0, 1], or numbers that differ.
        """
        if return_tensors != "pt":
            raise ValueError(f'`return_tensors` must be "pt", got {return_tensors!r}.')
        data: dict[str, Any] = {}
        if text is not None:
            data.update(self._questions([text] if isinstance(text, str) else list(text), kwargs))
        if regions is not None:
            data.update(self._regions([regions] if isinstance(regions, Regions) else list(regions)))
        if concepts is not None:
            check_concepts(concepts)
            known = [[self._concept_ids[word] for word in words if word in self._concept_ids] for words in concepts]
            data.update(concept_inputs([ids[: self.max_concepts] for ids in known], len(self.concepts)))
        if answer_scores is not None:
            data["labels"] = self._labels(answer_scores)
        names = [name for name in ("input_ids", "region_mask", "concept_ids", "labels") if name in data]
        counts = {name: len(data[name]) for name in names}
        if len(set(counts.values())) > 1:
            raise ValueError(f"All must be given for the same questions, but their numbers differ: {counts}.")
        return BatchFeature(data)

    def _regions(self, regions: list[Regions]) -> dict[str, torch.Tensor]:
        padded = region_inputs(regions, self.max_regions)
        inputs = {name: padded[name] for name in ("region_features", "region_mask", "boxes")}
        if self.append_locations:
            boxes, features = inputs["boxes"], inputs["region_features"]
            areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1, keepdim=True)
            inputs["region_features"] = torch.cat([features, boxes, areas], dim=-1)  # 0 on padding, as boxes are
        return inputs

    def _questions(self, questions: list[str], kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
        if not questions or not all(isinstance(question, str) for question in questions):
            raise ValueError(f"`text` must be questions, got {questions!r}.")
        options = {"padding": True, "truncation": True} | kwargs
        for name, side in WORD_SIDES.items():
            if (given := options.get(name, getattr(self.tokenizer, name))) != side:
                raise ValueError(
                    f"`{name}` must be {side!r}, got {given!r}: words of a question are found again by their places."
                )
        encoded = self.tokenizer(questions, return_tensors="pt", **options)
        empty = encoded["attention_mask"].sum(dim=1) == 0
        if empty.any():
            raise ValueError(f"A question has no words: {questions[empty.int().argmax()]!r}.")
        if any(question.overflowing for question in encoded.encodings):
            logger.warning_once(
                f"Questions of more than {encoded['input_ids'].shape[1]} words are cut to their first ones."
            )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _labels(self, answer_scores: Sequence[Mapping[str, float]]) -> torch.Tensor:
        if not isinstance(answer_scores, Sequence) or not all(isinstance(scores, Mapping) for scores in answer_scores):
            raise ValueError(
                "`answer_scores` must be a list with, for each question, a dictionary from answers to scores, such as "
                f'[{{"red": 0.9}}]; got {answer_scores!r}.'
            )
        labels = torch.zeros(len(answer_scores), len(self.answers))
        for question, scores in enumerate(answer_scores):
            for answer, score in scores.items():
                if answer not in self._answer_ids:
                    near = difflib.get_close_matches(str(answer), self.answers, n=1)
                    hint = f" Did you mean {near[0]!r}?" if near else ""
                    raise ValueError(
                        f"Question {question}: {answer!r} is none of the {len(self.answers)} answers of this "
                        f"processor; leave it out of `answer_scores`.{hint}"
                    )
                if not isinstance(score, Real) or not 0 <= score <= 1:
                    raise ValueError(
                        f"Question {question}: the score of {answer!r} must be a number in [0, 1], got {score!r}."
                    )
                labels[question, self._answer_ids[answer]] = score
        return labels

    def post_process_answers(
        self,
        outputs: Any,
        questions: str | Sequence[str],
        regions: Regions | Sequence[Regions],
        top_k: int = 5,
    ) -> list[GroundedAnswer]:
        r"""The answers with their probabilities, and the regions they were read from.

        Args:
            outputs: Of `model(..., output_attentions=True)`.
            questions (list of `str`), regions (list of [`Regions`]): As they were given to this processor.
            top_k (`int`): How many answers of each question.

        Returns:
            One [`GroundedAnswer`] for each question. The score of an answer's grounding is the weight of its region;
            that of a word's is its region's share of the word's attention, mean over glimpses. A word that the model
            was not given, because the question is long or it has no token, has no grounding.

        Raises:
            ValueError: If questions or regions do not fit to the outputs, these are without attentions, or `top_k` is
                below 1.
        """
        check_top_k(top_k)
        weights, by_token = outputs.get("region_attentions"), outputs.get("word_region_attentions")
        if weights is None:
            raise ValueError("`outputs` are without attentions; call the model with `output_attentions=True`.")
        questions = [questions] if isinstance(questions, str) else list(questions)
        given = [regions] if isinstance(regions, Regions) else list(regions)
        if not len(questions) == len(given) == len(weights):
            raise ValueError(
                f"`outputs` are of {len(weights)} questions; got {len(questions)} questions and regions of "
                f"{len(given)} images."
            )
        if outputs.logits.shape[1] != len(self.answers):
            raise ValueError(
                f"`outputs` are of {outputs.logits.shape[1]} answers, this processor has {len(self.answers)}."
            )
        probabilities = outputs.logits.detach().float().sigmoid().cpu()
        best = probabilities.topk(min(top_k, len(self.answers)), dim=1)
        answered = []
        for row, (question, record) in enumerate(zip(questions, given, strict=True)):
            record = best_regions(record, self.max_regions)  # those that the model was given
            if len(record) > weights.shape[1]:
                raise ValueError(
                    f"Image '{record.image_id}' has {len(record)} regions, but `outputs` are of at most "
                    f"{weights.shape[1]}; give the regions that the model was given."
                )
            own = weights[row, : len(record)].detach().float().cpu().numpy()
            top = [(self.answers[i], float(p)) for p, i in zip(best.values[row], best.indices[row], strict=True)]
            groundings = [best_region(top[0][0], (0, len(question.split())), own, record.boxes)]
            if by_token is not None:
                of_tokens = by_token[row, :, :, : len(record)].detach().float().mean(dim=0).cpu().numpy()
                groundings += self._word_groundings(question, of_tokens, record.boxes)
            answered.append(GroundedAnswer(question, top, groundings, own, record))
        return answered

    def _word_groundings(self, question: str, weights: np.ndarray, boxes: np.ndarray) -> list[Grounding]:
        """From the weights (num_tokens, num_regions) of a question that is padded in front, or cut at its end."""
        # So the model was given as many of its first tokens as there are weights.
        encoded = self.tokenizer(question, truncation=False, return_offsets_mapping=True, verbose=False)
        numbers = token_words(question, encoded["offset_mapping"])[: len(weights)]
        groundings = []
        for number, word in enumerate(question.split()):
            tokens = [len(weights) - len(numbers) + i for i, own in enumerate(numbers) if own == number]
            total = weights[tokens].sum(axis=0)  # (num_regions,)
            if total.sum() > 0:
                groundings.append(best_region(word, (number, number + 1), total / total.sum(), boxes))
        return groundings


def check_top_k(top_k: int) -> None:
    r"""Refuses a number of answers that is none.

    Raises:
        ValueError: If it is no whole number of 1 or more.
    """
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise ValueError(f"`top_k` must be a whole number, 1 or more, got {top_k!r}.")


def _numbered(name: str, words: list[str]) -> dict[str, int]:
    twice = [word for word, count in Counter(words).items() if count > 1]
    if twice:
        raise ValueError(f"`{name}` has {len(twice)} words more than once, such as {twice[0]!r}; ids need each once.")
    return {word: index for index, word in enumerate(words)}


__all__ = ["MIAVQAProcessor"]
