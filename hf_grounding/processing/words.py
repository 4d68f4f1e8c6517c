"""Word-level tokenizers, and the words and phrases of a sentence.

A word is a white-space token, as in the captions of Flickr30k Entities; phrases are spans of words. Tokenizers may cut
words further (punctuation, subwords); `token_words` says which word each token belongs to.
"""

import gzip
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN = "<pad>", "<unk>"


@dataclass(frozen=True)
class Phrase:
    """A span of white-space tokens of a sentence, end exclusive."""

    text: str
    start: int
    end: int


def head_word(words: Sequence[str], start: int, end: int) -> int | None:
    """Which word of a phrase, `words[start:end]`, names its object: number of the last one with a letter in it; `None`
    if there is none."""
    return next((number for number in range(end - 1, start - 1, -1) if any(map(str.isalpha, words[number]))), None)


def train_word_tokenizer(captions: Iterable[str], min_count: int = 1) -> PreTrainedTokenizerFast:
    r"""Word-level tokenizer of all words seen `min_count` times or more, lower-cased.

    Punctuation at a word's end is split off.

    Raises:
        ValueError: If no word is left.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[.,!?;:]+$"), behavior="isolated")]
    )
    train_words(tokenizer, captions, min_count, special_tokens=[PAD, UNKNOWN])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def train_words(tokenizer: Tokenizer, captions: Iterable[str], min_count: int, special_tokens: Sequence[str]) -> None:
    r"""Gives a word-level `tokenizer` the words that it cuts captions into, the commonest first, equals by alphabet.

    Raises:
        ValueError: If no word occurs `min_count` times or more.
    """
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31 - 1, min_frequency=min_count, special_tokens=list(special_tokens), show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    if tokenizer.get_vocab_size() == len(special_tokens):
        raise ValueError(
            f"No word occurs {min_count} times or more in the captions; lower `min_count` or give more captions."
        )


def load_word_vectors(path: str | os.PathLike, vocabulary: Mapping[str, int]) -> torch.Tensor:
    r"""Vectors of a vocabulary's words from a text file in GloVe's format.

    Args:
        path (`str` or `os.PathLike`): Lines "word v1 v2 ...", all equally long; packed if the name ends in ".gz".
        vocabulary (mapping of `str` to `int`): Words and their ids, such as `tokenizer.get_vocab()`.

    Returns:
        `torch.Tensor` of shape `(largest id + 1, width)`, 0 for words that the file lacks.

    Raises:
        ValueError: If lines differ in length, a value is no finite number, or no word of the vocabulary is there.
    """
    path = Path(path)
    found: dict[int, torch.Tensor] = {}
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            word, *values = line.rstrip().split(" ")
            if word not in vocabulary:
                continue
            try:
                vector = torch.tensor([float(value) for value in values])
            except ValueError:
                vector = torch.tensor([torch.nan])
            width = len(next(iter(found.values()), vector))
            if len(vector) != width or not vector.isfinite().all() or not width:
                raise ValueError(
                    f"Line {number} of '{path}' must be a word and {width or 'some'} numbers, got {line[:60]!r}."
                )
            found[vocabulary[word]] = vector
    if not found:
        raise ValueError(f"'{path}' has no word of the vocabulary; lines must read `word v1 v2 ...`.")
    vectors = torch.zeros(max(vocabulary.values()) + 1, len(next(iter(found.values()))))
    vectors[list(found)] = torch.stack(list(found.values()))
    return vectors


def word_offsets(text: str) -> list[tuple[int, int]]:
    """Character span of each white-space token."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def token_words(text: str, token_offsets: list[tuple[int, int]]) -> list[int]:
    """Index of the white-space token each token lies in; -1 for special tokens and padding (empty offsets)."""
    word_of_char: dict[int, int] = {}
    for index, (start, end) in enumerate(word_offsets(text)):
        word_of_char.update(dict.fromkeys(range(start, end), index))
    # The first character that is part of a word: subword tokenizers may count the space before a word in.
    return [next((word_of_char[i] for i in range(*span) if i in word_of_char), -1) for span in token_offsets]


def unknown_words(tokenizer: PreTrainedTokenizerFast, phrases: Iterable[str]) -> list[str]:
    """Words of the phrases that a tokenizer has no token for, in order, each once."""
    words = dict.fromkeys(word for phrase in phrases for word in phrase.split())
    ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in words}
    return [word for word in words if tokenizer.unk_token_id in ids[word]]


def parse_brackets(text: str) -> tuple[str, list[Phrase]]:
    r"""`"[a man] rides [a horse]"` -> `"a man rides a horse"` and its phrases; text without brackets is one phrase.

    Raises:
        ValueError: If brackets are nested, unbalanced or empty.
    """
    if not re.fullmatch(r"[^\[\]]*(\[\s*[^\[\]\s][^\[\]]*\][^\[\]]*)*", text):
        raise ValueError(f"Brackets in {text!r} must enclose one phrase each, such as '[a man] rides [a horse]'.")
    words: list[str] = []
    phrases: list[Phrase] = []
    for piece in re.findall(r"\[[^\]]*\]|[^\[]+", text):
        start, inside = len(words), piece.startswith("[")
        words += piece.strip("[]").split()
        if inside:
            phrases.append(Phrase(" ".join(words[start:]), start, len(words)))
    sentence = " ".join(words)
    return sentence, phrases or [Phrase(sentence, 0, len(words))]


def as_phrase(value: Any, text: str) -> Phrase:
    r"""`Phrase` of a phrase given as one, as `(start, end)`, as a dataset's `dict` with `start` and `end`, or as words.

    Raises:
        ValueError: If the span is not inside the sentence or the words are not in it, or it is none of these.
    """
    words = text.split()
    if isinstance(value, str):
        wanted = value.split()
        starts = [i for i in range(len(words) - len(wanted) + 1) if words[i : i + len(wanted)] == wanted]
        if not wanted or not starts:
            raise ValueError(
                f"Phrase {value!r} is not in {text!r}; give words of the sentence, or a (start, end) span of them."
            )
        start, end = starts[0], starts[0] + len(wanted)
    elif isinstance(value, dict) and value.keys() >= {"start", "end"}:
        start, end = value["start"], value["end"]
    elif isinstance(value, Phrase):
        start, end = value.start, value.end
    elif isinstance(value, tuple | list) and len(value) == 2:
        start, end = value
    else:
        raise ValueError(
            f"A phrase is words of the sentence, a (start, end) span or a dict with `start` and `end`; got {value!r}."
        )
    if not 0 <= start < end <= len(words):
        raise ValueError(
            f"Span ({start}, {end}) is not inside the {len(words)} words of {text!r}; the end is exclusive."
        )
    return Phrase(" ".join(words[start:end]), start, end)
