r"""Tokenizers of caption decoders: word vocabularies in two id conventions, and subwords.

A tokenizer made here gives the ids of a caption's words and then the end token; there is no start token, because models
shift `labels` right by themselves. A prompt takes `add_special_tokens=False`. Where end and padding are one id, only
`attention_mask` tells the first from the rest. `decode(..., skip_special_tokens=True)` also leaves unknown words out.

Words are those that caption metrics see: lower case, Penn Treebank clitics (`man's` -> `man 's`, `isn't` -> `is n't`),
hyphens kept, punctuation marks dropped. So a written caption is scored as it was written.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .words import PAD, UNKNOWN, train_words

# On lower-cased text, the first that matches; what none matches is dropped.
_WORD = "|".join(
    [
        r"[^\W_]+(?=n't(?!\w))|n't(?!\w)|'(?:[smd]|re|ve|ll)(?!\w)",  # is|n't, man|'s
        r"(?<!\w)(?:can(?=not(?!\w))|(?:gon|wan)(?=na(?!\w))|got(?=ta(?!\w))|(?:gim|lem)(?=me(?!\w)))",  # can|not
        r"\d+(?:[.,:/]\d+)+",  # 1,000 10:30 1/2
        r"(?<!\w)[a-z](?:\.[a-z])+\.?(?!\w)",  # u.s. a.m.
        r"(?<!\w)[dol]'[^\W_]+",  # o'clock
        r"[^\W_]+(?:-[^\W_]+)*",
        r"[&#$%+=@]",
    ]
)


@dataclass(frozen=True)
class Convention:
    r"""Ids of special tokens, and the limits of the source.

    Attributes:
        first, last: Special tokens before the words, from id 0, and after them.
        pad, bos, eos, unk: The one for padding, start, end and unknown words.
        min_count: Words seen less often are unknown.
        max_words: Longest caption.
    """

    first: tuple[str, ...]
    last: tuple[str, ...]
    pad: str
    bos: str
    eos: str
    unk: str
    min_count: int
    max_words: int


CONVENTIONS = {
    "mia": Convention(
        first=(PAD, "<start>", "<end>", UNKNOWN),
        last=(),
        pad=PAD,
        bos="<start>",
        eos="<end>",
        unk=UNKNOWN,
        min_count=5,
        max_words=20,
    ),
    "up_down": Convention(
        first=("<end>",), last=("UNK",), pad="<end>", bos="<end>", eos="<end>", unk="UNK", min_count=6, max_words=16
    ),
}


def train_caption_tokenizer(
    captions: Iterable[str], *, convention: str = "mia", min_count: int | None = None, max_words: int | None = None
) -> PreTrainedTokenizerFast:
    r"""Word-level tokenizer of the frequent words of captions, the commonest first, equals by alphabet.

    Args:
        captions: Captions of the training split.
        convention: `"mia"`: `<pad>` 0, `<start>` 1, `<end>` 2, `<unk>` 3, then the words. `"up_down"`: id 0 is padding,
            start and end (`<end>`), then the words, `UNK` last.
        min_count: Words seen less often are unknown; by default 5 (`"mia"`) or 6 (`"up_down"`), as in the two sources.
        max_words: Words that `truncation=True` keeps; the end token comes on top. By default 20 or 16.

    Raises:
        ValueError: If a caption is blank or no text, no word is frequent enough, or the convention is unknown.
    """
    chosen = _convention(convention)
    counter = Tokenizer(models.WordLevel(unk_token=chosen.unk))
    counter.normalizer, counter.pre_tokenizer = _normalizer(), _pre_tokenizer()
    train_words(
        counter, _checked_captions(captions), chosen.min_count if min_count is None else min_count, special_tokens=[]
    )
    vocabulary = counter.get_vocab()
    return caption_tokenizer_from_words(
        sorted(vocabulary, key=vocabulary.__getitem__), convention=convention, max_words=max_words
    )


def caption_tokenizer_from_words(
    words: Sequence[str], *, convention: str = "mia", max_words: int | None = None
) -> PreTrainedTokenizerFast:
    r"""Word-level tokenizer of a published vocabulary: `words` in the order of their ids, without special tokens.

    A word that captions are never cut into, such as `","`, keeps its id and can be written; no text is encoded as it.
    The other arguments are those of [`train_caption_tokenizer`].

    Raises:
        ValueError: If there are no words, one is blank, no text, a special token or there twice, or the convention is
            unknown.
    """
    chosen = _convention(convention)
    words = _checked_words(words)
    vocabulary = {token: i for i, token in enumerate((*chosen.first, *words, *chosen.last))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=chosen.unk))
    backend.normalizer, backend.pre_tokenizer = _normalizer(), _pre_tokenizer()
    return _wrap(backend, chosen, chosen.max_words if max_words is None else max_words)


def train_subword_caption_tokenizer(
    captions: Iterable[str], vocab_size: int, *, max_tokens: int = 40
) -> PreTrainedTokenizerFast:
    r"""Tokenizer of pieces of words by a unigram language model, the algorithm of SentencePiece.

    Only characters that are not in the captions are unknown. Special ids are those of the `"mia"` convention, words are
    cut as above before they are cut into pieces, and `word_ids()` of an encoding counts them. Pieces that are about
    equally likely may swap ids from one training to the next: keep the tokenizer with the checkpoint.

    Args:
        captions: Captions of the training split.
        vocab_size: Largest number of ids, the four special tokens among them.
        max_tokens: Pieces that `truncation=True` keeps; the end token comes on top.

    Raises:
        ValueError: If a caption is blank or no text, there is no word, or `vocab_size` is too small for the characters.
    """
    chosen = CONVENTIONS["mia"]
    backend = Tokenizer(models.Unigram())
    backend.normalizer = _normalizer()
    backend.pre_tokenizer = pre_tokenizers.Sequence([_pre_tokenizer(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(chosen.first), unk_token=chosen.unk, show_progress=False
    )
    captions = list(_checked_captions(captions))
    try:
        backend.train_from_iterator(captions, trainer)
    except Exception as error:  # tokenizers has no class of its own for it
        raise ValueError(f"No vocabulary of {vocab_size} pieces: {error}. Give a larger `vocab_size`.") from error
    if backend.get_vocab_size() == len(chosen.first):
        raise ValueError("There is no word in the captions, only punctuation or nothing; give more captions.")
    return _wrap(backend, chosen, max_tokens)


@dataclass(frozen=True)
class ConvertedTokenizer:
    r"""A tokenizer in another convention, and how a checkpoint's ids and rows go over to it.

        converted = with_convention(tokenizer, "mia")
        new_embedding.weight.data = old_embedding.weight[converted.input_rows]
        new_output.weight.data = old_output.weight[converted.output_rows]
        new_output.bias.data = old_output.bias[converted.output_rows].masked_fill(converted.never_written, -1e4)

    Attributes:
        tokenizer: The same words in the other convention.
        new_ids (`torch.LongTensor` of shape `(old_size,)`): The new id of each old one in labels, where id 0 of
            `"up_down"` is the end token (padding is -100 there).
        input_rows (`torch.LongTensor` of shape `(new_size,)`): The old id whose word embedding each new id takes. Id 0
            of `"up_down"` takes that of the start token, the one that is read.
        output_rows (`torch.LongTensor` of shape `(new_size,)`): The old id whose row of the output layer each new id
            takes. Id 0 of `"up_down"` takes that of the end token, the one that is written.
    """

    tokenizer: PreTrainedTokenizerFast
    new_ids: torch.Tensor
    input_rows: torch.Tensor
    output_rows: torch.Tensor

    @property
    def never_written(self) -> torch.Tensor:
        """Bool of shape `(new_size,)`: new ids without an old label; to take no probability, they need a low bias."""
        return ~torch.isin(torch.arange(len(self.output_rows)), self.new_ids)


def with_convention(tokenizer: PreTrainedTokenizerFast, convention: str) -> ConvertedTokenizer:
    r"""The words of a word-level caption tokenizer in the other convention (or the same, which changes nothing).

    Raises:
        ValueError: If the tokenizer is not of [`train_caption_tokenizer`] or [`caption_tokenizer_from_words`], or the
            convention is unknown.
    """
    old, new = _convention_of(tokenizer), _convention(convention)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    words = tokens[len(old.first) : len(tokens) - len(old.last)]
    converted = caption_tokenizer_from_words(words, convention=convention, max_words=tokenizer.model_max_length - 1)
    new_tokens = converted.convert_ids_to_tokens(list(range(len(converted))))
    return ConvertedTokenizer(
        tokenizer=converted,
        new_ids=_ids_of(tokens, old, converted, new, _WRITTEN),
        input_rows=_ids_of(new_tokens, new, tokenizer, old, _READ),
        output_rows=_ids_of(new_tokens, new, tokenizer, old, _WRITTEN),
    )


# Where one token has several of these roles, the last one counts.
_READ, _WRITTEN = ("pad", "eos", "bos", "unk"), ("pad", "bos", "eos", "unk")


def _ids_of(
    tokens: list[str],
    source: Convention,
    target_tokenizer: PreTrainedTokenizerFast,
    target: Convention,
    roles: Sequence[str],
) -> torch.Tensor:
    """Ids, in `target_tokenizer`, of the tokens of a tokenizer in the convention `source`."""
    same_role = {getattr(source, role): getattr(target, role) for role in roles}
    vocabulary = target_tokenizer.get_vocab()
    return torch.tensor([vocabulary[same_role.get(token, token)] for token in tokens])


def _convention(name: str) -> Convention:
    if name not in CONVENTIONS:
        nearest = difflib.get_close_matches(str(name), CONVENTIONS, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"`convention` must be one of {list(CONVENTIONS)}, got {name!r}.{hint}")
    return CONVENTIONS[name]


def _convention_of(tokenizer: PreTrainedTokenizerFast) -> Convention:
    special = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    for chosen in CONVENTIONS.values():
        word_level = isinstance(tokenizer.backend_tokenizer.model, models.WordLevel)
        if word_level and special == (chosen.pad, chosen.bos, chosen.eos, chosen.unk):
            return chosen
    raise ValueError(
        "Only tokenizers of `train_caption_tokenizer` and `caption_tokenizer_from_words` have a convention; this is a "
        f"{type(tokenizer.backend_tokenizer.model).__name__} with padding, start, end and unknown tokens {special}."
    )


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Replace("\u2019", "'"), normalizers.Lowercase()])


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)


def _wrap(backend: Tokenizer, chosen: Convention, max_length: int) -> PreTrainedTokenizerFast:
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {chosen.eos}", special_tokens=[(chosen.eos, backend.token_to_id(chosen.eos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=chosen.pad,
        bos_token=chosen.bos,
        eos_token=chosen.eos,
        # Not inside "TRUNK": special tokens are found before words are.
        unk_token=AddedToken(chosen.unk, single_word=True, special=True, normalized=False),
        padding_side="right",
        model_max_length=max_length + 1,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,  # it would join "man 's"
    )


def _checked_captions(captions: Iterable[str]) -> Iterator[str]:
    if isinstance(captions, str):
        raise ValueError(f"`captions` must be a list of captions, got one text: {captions!r}.")
    for index, caption in enumerate(captions):
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"Captions must be text with words, got {caption!r} at position {index}; leave it out.")
        yield caption


def _checked_words(words: Sequence[str]) -> list[str]:
    if isinstance(words, str):
        raise ValueError(f"`words` must be a list of words, got one text: {words!r}.")
    words = list(words)
    if not words:
        raise ValueError("`words` is empty; give the words in the order of their ids.")
    special = {token for each in CONVENTIONS.values() for token in each.first + each.last}
    for index, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"Words must be text, got {word!r} at position {index} of `words`.")
        if word in special:
            raise ValueError(
                f"Special token {word!r} is at position {index} of `words`; leave it out, each convention adds its own."
            )
    twice = [word for word, count in Counter(words).items() if count > 1]
    if twice:
        raise ValueError(f"`words` has {len(twice)} words more than once, such as {twice[0]!r}; ids need each once.")
    return words
