"""What question answerers learn from: questions about images, the answers they choose from, and batches of both.

A question with a single answer (DAQUAR, scenes) has an expert's in place of people's: it counts as if ten people had
given it. So it is right or wrong, as it is written, by the same official accuracy and soft scores as ten answers are.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from datasets import Dataset

from ..metrics.vqa_accuracy import majority_answer, soft_scores
from ..processing.processing_mia_vqa import MIAVQAProcessor
from .caption_data import ImageInputs

NUM_PEOPLE = 10  # who answer a question of VQA


@dataclass(frozen=True)
class Question:
    """A question about an image; `answers` are those of people, none where nobody's are known."""

    question_id: str
    image_id: str
    text: str
    answers: list[str]
    answer_type: str
    question_type: str

    @property
    def peoples_answers(self) -> list[str]:
        """One for each person: a single answer is that of all ten."""
        return self.answers * NUM_PEOPLE if len(self.answers) == 1 else self.answers

    @property
    def main_answer(self) -> str:
        """What the question adds to the vocabulary: people's most frequent answer, normalised, or the single one."""
        return self.answers[0] if len(self.answers) == 1 else majority_answer(self.answers)


def questions_of(rows: Dataset) -> list[Question]:
    """All questions about the images of a split, image by image."""
    columns = zip(rows["image_id"], rows["questions"], strict=True)
    return [
        Question(
            each["question_id"],
            image_id,
            each["question"],
            list(each["answers"]),
            each["answer_type"],
            each["question_type"],
        )
        for image_id, asked in columns
        for each in asked
    ]


def answered(questions: Sequence[Question], where: str) -> Sequence[Question]:
    r"""The questions, if there are some and each has an answer.

    Raises:
        ValueError: Else; names one.
    """
    if not questions:
        raise ValueError(f"The data of '{where}' have no questions; give a data set that has, such as vqa_v2.")
    without = [question.question_id for question in questions if not question.answers]
    if without:
        raise ValueError(
            f"{len(without)} of {len(questions)} questions of '{where}' have no answers, such as '{without[0]}': they "
            "can be answered (`--answers`), not learned or measured."
        )
    return questions


def answer_vocabulary(questions: Iterable[Question], min_count: int = 1, max_answers: int | None = None) -> list[str]:
    r"""Answers a model can give: main answers of at least `min_count` questions, the commonest first.

    With 9 they are the 3,129 of the training and validation questions of VQA v2.

    Raises:
        ValueError: If no answer is given so often.
    """
    counts = Counter(question.main_answer for question in questions)
    kept = [answer for answer, count in counts.items() if count >= min_count]
    kept.sort(key=lambda answer: (-counts[answer], answer))
    if not kept:
        raise ValueError(f"No answer is that of {min_count} questions; lower `answers.min_count`.")
    return kept[:max_answers]


def cooccurring_vectors(
    texts: Iterable[Sequence[int]], vectors: torch.Tensor, special: Sequence[int] = ()
) -> torch.Tensor:
    r"""For each word the mean vector of the words it stands in one text with, the rarer ones counting more.

    With w_ij = (pairs of i and j in one text) / (occurrences of j), row i is sum_j w_ij v_j / sum_j w_ij: the second
    word vectors of BAN's public code, there made from the questions' tf-idf.

    Args:
        texts: Ids of the words of each.
        vectors (`torch.Tensor` of shape `(vocab_size, size)`): Of the words.
        special: Ids that are no words.

    Returns:
        `torch.Tensor` of shape `(vocab_size, size)`; 0 for words that are always alone.
    """
    pairs: Counter[tuple[int, int]] = Counter()
    occurrences = torch.zeros(len(vectors))
    for ids in texts:
        words = [word for word in ids if word not in special]
        pairs.update(permutations(words, 2))
        occurrences.index_add_(0, torch.tensor(words, dtype=torch.long), torch.ones(len(words)))
    if not pairs:
        return torch.zeros_like(vectors)
    places = torch.tensor(list(pairs)).T  # (2, number of different pairs)
    weights = torch.tensor(list(pairs.values()), dtype=vectors.dtype) / occurrences[places[1]]
    shape = (len(vectors), len(vectors))
    together = torch.sparse_coo_tensor(places, weights, shape, check_invariants=True)
    totals = together.sum(dim=1).to_dense().clamp(min=torch.finfo(vectors.dtype).tiny)
    return torch.sparse.mm(together, vectors) / totals[:, None]


class QuestionSet(torch.utils.data.Dataset):
    """Questions, one an entry."""

    def __init__(self, questions: Sequence[Question]):
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Question:
        return self.questions[index]


class VQACollator:
    r"""Questions -> inputs of [`MIAForVQA`], with labels if asked for: the soft scores of the answers that it knows."""

    def __init__(self, processor: MIAVQAProcessor, images: ImageInputs, *, with_labels: bool = True):
        self.processor, self.images, self.with_labels = processor, images, with_labels
        self.known_answers = set(processor.answers)

    def __call__(self, questions: Sequence[Question]) -> dict[str, Any]:
        shown = self.images.read([question.image_id for question in questions])
        if self.with_labels:
            shown["answer_scores"] = [self._scores(question) for question in questions]
        return dict(self.processor(text=[question.text for question in questions], **shown))

    def _scores(self, question: Question) -> dict[str, float]:
        scores = soft_scores(question.peoples_answers)
        return {answer: score for answer, score in scores.items() if answer in self.known_answers}
