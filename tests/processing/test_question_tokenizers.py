"""Questions to ids: how they are cut, order of ids, unknown words, padding in front, published vocabularies."""

import pytest
from transformers import AutoTokenizer

from hf_grounding.processing.question_tokenizers import train_question_tokenizer

QUESTIONS = ["What color is the dog?", "Is the man's dog running, or not?", "How many dogs?"]
WORDS = ["how", "many", "dogs", "is", "the", "man", "'s", "dog", "1000", "running"]


def cut(text: str) -> list[str]:
    tokenizer = train_question_tokenizer([text])
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@pytest.mark.parametrize(
    "text, words",
    [
        ("What color is the Dog?", ["what", "color", "is", "the", "dog"]),
        ("Are there 1,000 dogs, or not ?", ["are", "there", "1000", "dogs", "or", "not"]),
        ("Is the man's dog Tom's?", ["is", "the", "man", "'s", "dog", "tom", "'s"]),
        ("Is the man\u2019s here?", ["is", "the", "man", "'s", "here"]),
        ("a black-and-white cat. yes!", ["a", "black-and-white", "cat.", "yes!"]),
    ],
)
def test_questions_are_cut_as_by_the_public_codes(text, words):
    assert cut(text) == words


def test_words_come_by_frequency_and_alphabet_then_unknown_then_padding():
    tokenizer = train_question_tokenizer(QUESTIONS)
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    assert words[:4] == ["dog", "is", "the", "'s"]
    assert words[-2:] == ["<unk>", "<pad>"]
    assert tokenizer.pad_token_id == len(tokenizer) - 1
    assert tokenizer("zebra dog")["input_ids"] == [tokenizer.unk_token_id, 0]


def test_rare_words_are_unknown():
    vocabulary = train_question_tokenizer(QUESTIONS, min_count=2).get_vocab()
    assert vocabulary == {"dog": 0, "is": 1, "the": 2, "<unk>": 3, "<pad>": 4}
    with pytest.raises(ValueError, match="No word occurs 5 times"):
        train_question_tokenizer(QUESTIONS, min_count=5)


def test_padding_stands_in_front_and_long_questions_lose_their_end():
    tokenizer = train_question_tokenizer(vocabulary=WORDS, max_words=3)
    batch = tokenizer(["dogs", "how many dogs is the man"], padding=True, truncation=True)
    assert batch["input_ids"] == [[10, 10, 2], [0, 1, 2]]
    assert batch["attention_mask"] == [[0, 0, 1], [1, 1, 1]]
    long = train_question_tokenizer(vocabulary=WORDS)("dog " * 20, truncation=True)["input_ids"]
    assert long == [7] * 14


def test_a_published_vocabulary_keeps_its_ids_and_its_last_word_stands_for_unknown_ones():
    tokenizer = train_question_tokenizer(vocabulary=WORDS)
    assert len(tokenizer) == 11
    assert tokenizer("Is the zebra's dog running?")["input_ids"] == [3, 4, 9, 6, 7, 9]
    assert tokenizer("outrunning runningdog")["input_ids"] == [9, 9]  # unknown as a whole, not cut at the last word


def test_saved_and_loaded_it_is_the_same(tmp_path):
    tokenizer = train_question_tokenizer(QUESTIONS)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    options = {"padding": True, "truncation": True}
    texts = ["is the man's dog", "dog " * 20, "zebra"]
    assert loaded(texts, **options)["input_ids"] == tokenizer(texts, **options)["input_ids"]
    assert (loaded.padding_side, loaded.model_max_length) == ("left", 14)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"questions": ["a dog?", " ?"]}, "got ' \\?' at position 1"),
        ({"questions": ["a dog?", None]}, "got None at position 1"),
        ({"questions": "a dog?"}, "must be a list of questions"),
        ({"vocabulary": []}, "got 0 entries"),
        ({"vocabulary": ["a", "b", "a"]}, "got 3 entries, 2 of them different"),
        ({"vocabulary": ["a", "<pad>"]}, "without '<pad>'"),
    ],
)
def test_questions_and_words_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_question_tokenizer(**arguments)
