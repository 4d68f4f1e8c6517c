"""Tokenizers of questions, as the public codes of visual question answering cut them.

Words are lower-cased; `,` and `?` are dropped where they stand (`1,000` -> `1000`), `'s` is a word of its own, and so
is whatever else is between spaces. A question keeps its first 14 words. Short ones are padded in front, so that a
recurrent network ends on the last word. Ids are those of the words, the last of which stands for unknown ones, and then
padding.
"""

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .words import PAD, UNKNOWN, train_words

MAX_WORDS = 14


def train_question_tokenizer(
    questions: Iterable[str] = (),
    min_count: int = 1,
    vocabulary: Sequence[str] | None = None,
    max_words: int = MAX_WORDS,
) -> PreTrainedTokenizerFast:
    r"""Word-level tokenizer of the words of questions, the commonest first, equals by alphabet, and then `<unk>`.

    Args:
        questions: Of the training split.
        min_count (`int`): Words seen less often are unknown.
        vocabulary (list of `str`, *optional*): A published one, in the order of its ids, in place of words of the
            questions. As in the public code its last word stands for unknown ones.
        max_words (`int`): Words that `truncation=True` keeps, the first ones.

    Raises:
        ValueError: If a question has no words, no word is frequent enough, or the vocabulary has a word twice.
    """
    if vocabulary is None:
        counter = _word_level({UNKNOWN: 0})
        train_words(counter, _checked(questions), min_count, special_tokens=[])
        ids = counter.get_vocab()
        words = [*sorted(ids, key=ids.__getitem__), UNKNOWN]
    else:
        words = list(vocabulary)
        if not words or len({*words, PAD}) != len(words) + 1:
            raise ValueError(
                f"`vocabulary` must be a list of different words without {PAD!r}, got {len(words)} entries, "
                f"{len(set(words))} of them different."
            )
    tokenizer = _word_level({word: index for index, word in enumerate([*words, PAD])})
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        # Not inside another word: special tokens are found before words are.
        unk_token=AddedToken(words[-1], single_word=True, special=True, normalized=False),
        padding_side="left",
        truncation_side="right",
        model_max_length=max_words,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _word_level(vocabulary: dict[str, int]) -> Tokenizer:
    unknown = max((word for word in vocabulary if word != PAD), key=vocabulary.__getitem__)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    replaced = {"\u2019": "'", ",": "", "?": "", "'s": " 's"}
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), *(normalizers.Replace(old, new) for old, new in replaced.items())]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _checked(questions: Iterable[str]) -> Iterator[str]:
    if isinstance(questions, str):
        raise ValueError(f"`questions` must be a list of questions, got one text: {questions!r}.")
    for index, question in enumerate(questions):
        if not isinstance(question, str) or not question.strip(" ,?"):
            raise ValueError(f"Questions must be text with words, got {question!r} at position {index}; leave it out.")
        yield question


__all__ = ["train_question_tokenizer"]
