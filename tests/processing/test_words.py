"""Word tokenizers, the word each token belongs to, bracketed text, the ways to name a phrase, word vectors."""

import gzip

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hf_grounding.processing.words import (
    Phrase,
    as_phrase,
    load_word_vectors,
    parse_brackets,
    token_words,
    train_word_tokenizer,
    unknown_words,
    word_offsets,
)

CAPTIONS = ["A man rides a horse .", "Two dogs, one red ball!", "a man-made lake"]


def subword_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tiny tokenizer that cuts words, as those of published text encoders do."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]") if kind == "wordpiece" else models.BPE(unk_token="[UNK]"))
    settings = {"vocab_size": 300, "special_tokens": special, "show_progress": False}
    if kind == "wordpiece":
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**{**settings, "vocab_size": 45})
    else:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.pre_tokenizer = byte_level if kind == "byte level" else pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(**{**settings, "vocab_size": 50})
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[str], list[int]]:
    encoded = tokenizer(text, return_offsets_mapping=True)
    return tokenizer.convert_ids_to_tokens(encoded["input_ids"]), token_words(text, encoded["offset_mapping"])


def test_word_tokenizer_lower_cases_and_splits_punctuation_at_the_end_of_words():
    tokens, words = encode(train_word_tokenizer(CAPTIONS), "Two DOGS, one man-made ball!!")
    assert tokens == ["two", "dogs", ",", "one", "man-made", "ball", "<unk>"]
    assert words == [0, 1, 1, 2, 3, 4, 4]


def test_punctuation_alone_is_a_word_of_its_own():
    tokens, words = encode(train_word_tokenizer(CAPTIONS), "a horse .")
    assert (tokens, words) == (["a", "horse", "."], [0, 1, 2])


def test_rare_words_are_unknown():
    tokenizer = train_word_tokenizer(CAPTIONS, min_count=2)
    assert sorted(tokenizer.get_vocab()) == ["<pad>", "<unk>", "a"]
    assert encode(tokenizer, "a man")[0] == ["a", "<unk>"]


def test_padding_is_id_zero_on_the_right():
    tokenizer = train_word_tokenizer(CAPTIONS)
    encoded = tokenizer(["a man", "a man rides"], padding=True)
    assert tokenizer.pad_token_id == 0
    assert encoded["input_ids"][0][2] == 0
    assert encoded["attention_mask"] == [[1, 1, 0], [1, 1, 1]]
    assert "token_type_ids" not in encoded


def test_a_tokenizer_without_words_is_refused():
    with pytest.raises(ValueError, match="No word occurs 5 times or more in the captions; lower `min_count`"):
        train_word_tokenizer(CAPTIONS, min_count=5)


def test_word_tokenizer_survives_saving(tmp_path):
    tokenizer = train_word_tokenizer(CAPTIONS)
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert encode(loaded, "Two dogs, one cat") == encode(tokenizer, "Two dogs, one cat")


def test_words_are_what_stands_between_white_space():
    assert word_offsets("  a  man,\n\tsmiling ") == [(2, 3), (5, 9), (11, 18)]


@pytest.mark.parametrize("kind", ["wordpiece", "byte level", "metaspace"])
def test_every_subword_belongs_to_its_word_and_special_tokens_to_none(kind):
    text = "a horse rides  two men"
    tokens, words = encode(subword_tokenizer(kind), text)
    assert len(tokens) > len(text.split()) + 2, "the tokenizer must cut words for this test"
    assert (words[0], words[-1]) == (-1, -1)  # [CLS] and [SEP]
    inside = [word for word in words[1:-1] if word >= 0]  # a piece of nothing but white space is no word's
    assert sorted(set(inside)) == [0, 1, 2, 3, 4]
    assert inside == sorted(inside)


def test_a_token_that_starts_with_the_space_before_a_word_belongs_to_the_word():
    # "a man": offsets as byte-level and metaspace tokenizers give them; (1, 2) is the space alone
    assert token_words("a man", [(0, 1), (1, 5), (1, 2), (3, 5), (0, 0)]) == [0, 1, -1, 1, -1]


@pytest.mark.parametrize(
    "text, sentence, phrases",
    [
        ("[a man] rides [a horse]", "a man rides a horse", [("a man", 0, 2), ("a horse", 3, 5)]),
        ("two dogs play", "two dogs play", [("two dogs play", 0, 3)]),
        ("see  [ the   dog ]", "see the dog", [("the dog", 1, 3)]),
        ("[one][two]", "one two", [("one", 0, 1), ("two", 1, 2)]),
        ("[a dog], running", "a dog , running", [("a dog", 0, 2)]),
    ],
)
def test_brackets_mark_phrases_and_text_without_them_is_one(text, sentence, phrases):
    assert parse_brackets(text) == (sentence, [Phrase(*phrase) for phrase in phrases])


@pytest.mark.parametrize("text", ["[a [man]]", "[a [b] c", "[a ] b]", "a] b", "[a", "[]", "[ ] b", "[]]", "]a["])
def test_nested_unbalanced_and_empty_brackets_are_refused(text):
    with pytest.raises(ValueError, match="must enclose one phrase each, such as") as error:
        parse_brackets(text)
    assert repr(text) in str(error.value)


def test_long_text_with_a_bracket_left_open_is_refused_quickly():
    with pytest.raises(ValueError, match="must enclose one phrase"):
        parse_brackets("[a man] " * 500 + "[")


@pytest.mark.parametrize(
    "value, expected",
    [
        ("a dog", Phrase("a dog", 2, 4)),
        ("  a   dog ", Phrase("a dog", 2, 4)),
        ("a", Phrase("a", 2, 3)),  # the first of several places
        ((5, 7), Phrase("a ball", 5, 7)),
        ([0, 1], Phrase("man", 0, 1)),
        ({"start": 4, "end": 5, "phrase": "chases", "boxes": []}, Phrase("chases", 4, 5)),
        (Phrase("of another text", 0, 7), Phrase("man with a dog chases a ball", 0, 7)),
    ],
)
def test_a_phrase_may_be_words_a_span_a_dict_or_a_phrase(value, expected):
    assert as_phrase(value, "man with a dog chases a ball") == expected


@pytest.mark.parametrize("words", ["a cat", "", "  ", "Man", "do", "ball a"])
def test_words_that_are_not_in_the_sentence_are_refused(words):
    with pytest.raises(ValueError, match="is not in 'man with a dog'; give words of the sentence, or a"):
        as_phrase(words, "man with a dog")


@pytest.mark.parametrize("span", [(0, 5), (-1, 2), (2, 2), (3, 1), {"start": 4, "end": 5}])
def test_spans_outside_the_sentence_are_refused(span):
    with pytest.raises(ValueError, match="is not inside the 4 words of 'man with a dog'; the end is exclusive"):
        as_phrase(span, "man with a dog")


@pytest.mark.parametrize("value", [None, 3, (1, 2, 3), {"end": 2}])
def test_what_cannot_be_a_phrase_is_refused(value):
    with pytest.raises(ValueError, match="A phrase is words of the sentence") as error:
        as_phrase(value, "man with a dog")
    assert repr(value) in str(error.value)


def test_unknown_words_are_named_once_in_order():
    tokenizer = train_word_tokenizer(["a man rides a horse ."])
    assert unknown_words(tokenizer, ["a Man", "the zebra, a horse.", "the end"]) == ["the", "zebra,", "end"]
    assert unknown_words(tokenizer, []) == []


# Word vectors

VOCABULARY = {"<pad>": 0, "dog": 1, "cat": 3}


def test_vectors_stand_at_the_ids_of_their_words_and_others_are_zero(tmp_path):
    text = "the 9 9\ncat 0.5 -1\ndog 1e-1 2\n"
    (tmp_path / "vectors.txt").write_text(text)
    with gzip.open(tmp_path / "vectors.txt.gz", "wt") as file:
        file.write(text)
    for name in ("vectors.txt", "vectors.txt.gz"):
        vectors = load_word_vectors(tmp_path / name, VOCABULARY)
        torch.testing.assert_close(vectors, torch.tensor([[0, 0], [0.1, 2], [0, 0], [0.5, -1]]))


@pytest.mark.parametrize(
    "text, message",
    [
        ("dog 1 2\ncat 1\n", "Line 2 of '.*' must be a word and 2 numbers, got 'cat 1"),
        ("the 1 2\ndog\n", "Line 2 of '.*' must be a word and some numbers, got 'dog"),
        ("dog 1 two\n", "Line 1"),
        ("dog 1 nan\n", "Line 1"),
        ("the 1 2\n", "has no word of the vocabulary"),
        ("", "has no word of the vocabulary"),
    ],
)
def test_files_without_vectors_of_the_words_are_refused(tmp_path, text, message):
    (tmp_path / "vectors.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_word_vectors(tmp_path / "vectors.txt", VOCABULARY)
