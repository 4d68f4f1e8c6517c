"""Tokenizers of caption decoders: ids by hand in both conventions, what a word is, conversion, subwords, real text."""

import random

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_grounding.metrics.ptb_tokenizer import ptb_tokenize
from hf_grounding.processing.caption_tokenizers import (
    CONVENTIONS,
    caption_tokenizer_from_words,
    train_caption_tokenizer,
    train_subword_caption_tokenizer,
    with_convention,
)
from hf_grounding.processing.words import train_word_tokenizer, unknown_words

# a 4, horse 3, man 2, riding 2, dog 1
CAPTIONS = ["A man, riding a horse .", "a horse", "Man riding a HORSE!", "dog"]
VOCABULARIES = {
    "mia": ["<pad>", "<start>", "<end>", "<unk>", "a", "horse", "man", "riding", "dog"],
    "up_down": ["<end>", "a", "horse", "man", "riding", "dog", "UNK"],
}
SPECIAL_IDS = {"mia": (0, 1, 2, 3), "up_down": (0, 0, 0, 6)}
both = pytest.mark.parametrize("convention", list(CONVENTIONS))


def special_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int, int, int]:
    return tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id


def vocabulary(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))


def words_of(caption: str) -> list[str]:
    """The words a caption is cut into: a vocabulary made of it alone has them all."""
    tokenizer = train_caption_tokenizer([caption], min_count=1)
    return tokenizer.convert_ids_to_tokens(tokenizer(caption, add_special_tokens=False)["input_ids"])


@pytest.fixture(params=list(CONVENTIONS))
def trained(request) -> tuple[str, PreTrainedTokenizerFast]:
    return request.param, train_caption_tokenizer(CAPTIONS, convention=request.param, min_count=1)


def test_ids_are_those_of_the_convention_and_words_come_by_count_then_alphabet(trained):
    convention, tokenizer = trained
    assert vocabulary(tokenizer) == VOCABULARIES[convention]
    assert special_ids(tokenizer) == SPECIAL_IDS[convention]


@pytest.mark.parametrize(
    "convention, ids",
    [("mia", [[4, 6, 7, 4, 5, 2], [3, 5, 2, 0, 0, 0]]), ("up_down", [[1, 3, 4, 1, 2, 0], [6, 2, 0, 0, 0, 0]])],
)
def test_captions_become_words_and_one_end_token_padded_on_the_right(convention, ids):
    tokenizer = train_caption_tokenizer(CAPTIONS, convention=convention, min_count=1)
    encoded = tokenizer(["A man, riding a horse .", "zebra horse"], padding=True)
    assert encoded["input_ids"] == ids
    assert encoded["attention_mask"] == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert encoded.keys() == {"input_ids", "attention_mask"}


def test_a_prompt_has_words_alone(trained):
    _, tokenizer = trained
    ids = tokenizer("a man", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "man"]


def test_decoding_gives_the_words_without_start_end_and_padding(trained):
    _, tokenizer = trained
    ids = tokenizer(["A man, riding a horse .", "a"], padding=True)["input_ids"]
    written = [[tokenizer.bos_token_id, *row] for row in ids]
    assert tokenizer.batch_decode(written, skip_special_tokens=True) == ["a man riding a horse", "a"]


def test_offsets_point_into_the_caption_as_given(trained):
    _, tokenizer = trained
    text = "A  man, -- RIDING"
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert [text[start:end] for start, end in offsets] == ["A", "man", "RIDING", ""]


@pytest.mark.parametrize(
    "settings, kept", [({}, {"mia": 20, "up_down": 16}), ({"max_words": 3}, dict.fromkeys(CONVENTIONS, 3))]
)
@both
def test_truncated_captions_end_with_the_end_token(convention, settings, kept):
    tokenizer = train_caption_tokenizer(CAPTIONS, convention=convention, min_count=1, **settings)
    horse, end = tokenizer.convert_tokens_to_ids(["horse", "<end>"])
    assert tokenizer("horse " * 30, truncation=True)["input_ids"] == [horse] * kept[convention] + [end]


def test_saved_and_loaded_by_auto_tokenizer_it_is_the_same(trained, tmp_path):
    convention, tokenizer = trained
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert vocabulary(loaded) == VOCABULARIES[convention]
    assert special_ids(loaded) == SPECIAL_IDS[convention]
    settings = {"padding": True, "truncation": True, "return_offsets_mapping": True}
    texts = ["A man's TRUNK", "horse " * 30]
    assert dict(loaded(texts, **settings)) == dict(tokenizer(texts, **settings))
    assert loaded.decode([*loaded("Man RIDING")["input_ids"]], skip_special_tokens=True) == "man riding"


@both
def test_rare_words_are_unknown_from_the_count_of_the_convention_on(convention):
    least = {"mia": 5, "up_down": 6}[convention]
    tokenizer = train_caption_tokenizer(["often"] * least + ["rarely"] * (least - 1), convention=convention)
    assert unknown_words(tokenizer, ["often rarely"]) == ["rarely"]


@both
def test_the_order_of_captions_does_not_matter(convention):
    captions = [f"{word} thing" for word in "abcdefghijklmnop"] * 2
    shuffled = random.Random(0).sample(captions, len(captions))
    first, second = (train_caption_tokenizer(each, convention=convention, min_count=1) for each in (captions, shuffled))
    assert vocabulary(first) == vocabulary(second)


@pytest.mark.parametrize(
    "caption, words",
    [
        ("A man, riding a horse .", "a man riding a horse"),
        ("A man's dog isn't his; they're the boys'", "a man 's dog is n't his they 're the boys"),
        ("the man \u2019s dog, don\u2019t", "the man 's dog do n't"),
        ("T-shirt - x-ray -- 'hello' \"you\" ...", "t-shirt x-ray hello you"),
        ("Cannot gonna, cannoth", "can not gon na cannoth"),
        ("o'clock at 10:30 a.m. with 1,000", "o'clock at 10:30 a.m. with 1,000"),
        ("caf\u00e9 & 50 %", "caf\u00e9 & 50 %"),
    ],
)
def test_words_are_those_of_the_caption_metrics(caption, words):
    assert words_of(caption) == words.split()
    assert ptb_tokenize(caption) == words.split()
    assert ptb_tokenize(words) == words.split()


def test_brackets_are_dropped_though_the_metrics_write_them_out():
    assert words_of("a (red) dog") == ["a", "red", "dog"]


def test_words_in_capitals_are_not_taken_for_the_unknown_token():
    tokenizer = train_caption_tokenizer(["a TRUNK"], convention="up_down", min_count=1)
    assert tokenizer.decode(tokenizer("TRUNK a")["input_ids"], skip_special_tokens=True) == "trunk a"


def test_a_published_vocabulary_keeps_its_order_and_the_words_that_are_never_read():
    tokenizer = caption_tokenizer_from_words(["zebra", ",", "a"], convention="up_down")
    assert vocabulary(tokenizer) == ["<end>", "zebra", ",", "a", "UNK"]
    assert tokenizer("a , Zebra")["input_ids"] == [3, 1, 0]
    assert tokenizer.decode([1, 2, 3]) == "zebra , a"


@pytest.mark.parametrize(
    "source, target, new_ids, input_rows, output_rows, never_written",
    [
        ("mia", "up_down", [0, 0, 0, 3, 1, 2], [1, 4, 5, 3], [2, 4, 5, 3], [False] * 4),
        ("up_down", "mia", [2, 4, 5, 3], [0, 0, 0, 3, 1, 2], [0, 0, 0, 3, 1, 2], [True, True] + [False] * 4),
        ("mia", "mia", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [False] * 6),
        ("up_down", "up_down", [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [False] * 4),
    ],
)
def test_conversion_by_hand(source, target, new_ids, input_rows, output_rows, never_written):
    # mia: <pad> <start> <end> <unk> dog cat; up_down: <end> dog cat UNK
    converted = with_convention(caption_tokenizer_from_words(["dog", "cat"], convention=source, max_words=9), target)
    expected = caption_tokenizer_from_words(["dog", "cat"], convention=target)
    assert vocabulary(converted.tokenizer) == vocabulary(expected)
    assert special_ids(converted.tokenizer) == special_ids(expected)
    assert converted.tokenizer.model_max_length == 10
    assert converted.new_ids.tolist() == new_ids
    assert converted.input_rows.tolist() == input_rows
    assert converted.output_rows.tolist() == output_rows
    assert converted.never_written.tolist() == never_written


@pytest.mark.parametrize("source, target", [("mia", "up_down"), ("up_down", "mia")])
def test_a_checkpoint_with_converted_rows_gives_every_caption_the_same_probability(source, target):
    torch.manual_seed(0)
    tokenizer = caption_tokenizer_from_words(["a", "dog", "runs"], convention=source)
    converted = with_convention(tokenizer, target)
    old_in, old_out = nn.Embedding(len(tokenizer), 8), nn.Linear(8, len(tokenizer))
    new_in, new_out = nn.Embedding(len(converted.tokenizer), 8), nn.Linear(8, len(converted.tokenizer))
    if source == "mia":
        old_out.bias.data[:2] = -1e4  # a trained model writes neither padding nor start
    new_in.weight.data = old_in.weight[converted.input_rows]
    new_out.weight.data = old_out.weight[converted.output_rows]
    new_out.bias.data = old_out.bias[converted.output_rows].masked_fill(converted.never_written, -1e4)

    def log_probs(tokens: PreTrainedTokenizerFast, embedding: nn.Embedding, output: nn.Linear) -> torch.Tensor:
        labels = torch.tensor(tokens("a zebra dog runs")["input_ids"])
        inputs = torch.cat([torch.tensor([tokens.bos_token_id]), labels[:-1]])  # as models shift labels
        return output(embedding(inputs)).log_softmax(-1)[torch.arange(len(labels)), labels]

    torch.testing.assert_close(log_probs(converted.tokenizer, new_in, new_out), log_probs(tokenizer, old_in, old_out))
    labels = torch.tensor(tokenizer("a zebra dog runs")["input_ids"])
    assert converted.new_ids[labels].tolist() == converted.tokenizer("a zebra dog runs")["input_ids"]


def test_subwords_spell_words_that_training_never_saw():
    captions = ["a man riding", "a woman walking", "two men walk and ride"] * 5
    tokenizer = train_subword_caption_tokenizer(captions, vocab_size=40)
    text = "Two women, riding"
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, words = encoded["input_ids"], encoded.word_ids()
    assert special_ids(tokenizer) == (0, 1, 2, 3)
    assert len(tokenizer) <= 40
    assert (ids.count(3), ids[-1], words[-1]) == (0, 2, None)
    assert len(ids) > 4, "words must be cut for this test"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "two women riding"
    spans = [
        [span for span, of in zip(encoded["offset_mapping"], words, strict=True) if of == word] for word in range(3)
    ]
    assert [text[each[0][0] : each[-1][1]] for each in spans] == ["Two", "women", "riding"]
    assert tokenizer("man " * 60, truncation=True)["input_ids"][-1] == 2


def test_subwords_survive_saving(tmp_path):
    tokenizer = train_subword_caption_tokenizer(["a man's riding", "a woman isn't walking"], vocab_size=30)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded("A woman's walking.")["input_ids"]
    assert ids == tokenizer("A woman's walking.")["input_ids"]
    assert special_ids(loaded) == (0, 1, 2, 3)
    assert loaded.decode(ids, skip_special_tokens=True) == "a woman 's walking"


@pytest.mark.parametrize("captions", [[], ["."], ["-- !"]])
def test_captions_without_words_are_refused(captions):
    with pytest.raises(ValueError, match="No word occurs 1 times or more in the captions"):
        train_caption_tokenizer(captions, min_count=1)
    with pytest.raises(ValueError, match="There is no word in the captions"):
        train_subword_caption_tokenizer(captions, 100)


@pytest.mark.parametrize("blank", [None, "", "  ", 3, ["a dog"]])
def test_captions_that_are_blank_or_no_text_are_named(blank):
    with pytest.raises(ValueError, match=r"Captions must be text with words, got .* at position 1") as error:
        train_caption_tokenizer(["a dog", blank], min_count=1)
    assert repr(blank) in str(error.value)
    with pytest.raises(ValueError, match="at position 1; leave it out"):
        train_subword_caption_tokenizer(["a dog", blank], 100)


def test_one_text_is_no_list_of_captions_or_words():
    with pytest.raises(ValueError, match="`captions` must be a list of captions, got one text: 'a dog'"):
        train_caption_tokenizer("a dog", min_count=1)
    with pytest.raises(ValueError, match="`words` must be a list of words, got one text: 'a dog'"):
        caption_tokenizer_from_words("a dog")


def test_a_subword_vocabulary_that_cannot_hold_the_characters_is_refused():
    with pytest.raises(ValueError, match=r"No vocabulary of 6 pieces: .*Give a larger `vocab_size`"):
        train_subword_caption_tokenizer(["a dog runs"], vocab_size=6)


@pytest.mark.parametrize("name, hint", [("updown", " Did you mean 'up_down'?"), ("MIA", ""), ("xyz", "")])
def test_an_unknown_convention_is_answered_with_the_nearest(name, hint):
    for make in (
        lambda: train_caption_tokenizer(CAPTIONS, convention=name),
        lambda: caption_tokenizer_from_words(["a"], convention=name),
        lambda: with_convention(caption_tokenizer_from_words(["a"]), name),
    ):
        with pytest.raises(ValueError, match="`convention` must be one of") as error:
            make()
        assert str(error.value).endswith(f"['mia', 'up_down'], got {name!r}.{hint}")


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "`words` is empty"),
        (["a", "dog", "a"], "`words` has 1 words more than once, such as 'a'"),
        (["a", " "], "Words must be text, got ' ' at position 1"),
        (["a", None], "Words must be text, got None at position 1"),
        (["a", "UNK"], "Special token 'UNK' is at position 1 of `words`; leave it out"),
        (["<pad>", "a"], "Special token '<pad>' is at position 0 of `words`; leave it out"),
    ],
)
@both
def test_word_lists_that_cannot_be_a_vocabulary_are_refused(convention, words, message):
    with pytest.raises(ValueError, match=message):
        caption_tokenizer_from_words(words, convention=convention)


def test_only_word_tokenizers_of_a_convention_are_converted():
    with pytest.raises(ValueError, match=r"have a convention; this is a WordLevel with padding, .* None"):
        with_convention(train_word_tokenizer(["a dog"]), "mia")
    with pytest.raises(ValueError, match="have a convention; this is a Unigram"):
        with_convention(train_subword_caption_tokenizer(["a dog"], 20), "up_down")


@pytest.fixture(scope="module")
def real_captions(data_dir) -> dict[str, list[str]]:
    """Flickr8k: 29,380 captions to train on, 4,830 to validate."""
    files = {split: data_dir / "flickr8k_entities" / f"{split}.parquet" for split in ("train", "val")}
    for file in files.values():
        if not file.is_file():
            pytest.skip(f"needs the Flickr8k captions, which are not at {file}")
    columns = {split: pq.read_table(file, columns=["captions"])["captions"] for split, file in files.items()}
    return {split: [caption for row in column.to_pylist() for caption in row] for split, column in columns.items()}


@pytest.mark.parametrize("convention, size, unknown_share", [("mia", 2529, 0.0341), ("up_down", 2272, 0.0375)])
def test_real_captions_are_read_and_written_as_the_metrics_see_them(real_captions, convention, size, unknown_share):
    tokenizer = train_caption_tokenizer(real_captions["train"], convention=convention, max_words=100)
    assert len(tokenizer) == size
    encoded = tokenizer(real_captions["val"], add_special_tokens=False)["input_ids"]
    unknown = [row.count(tokenizer.unk_token_id) for row in encoded]
    assert sum(unknown) / sum(map(len, encoded)) == pytest.approx(unknown_share, abs=1e-4)
    written = tokenizer.batch_decode(encoded, skip_special_tokens=True)
    same = [
        text.split() == ptb_tokenize(caption)
        for text, caption, count in zip(written, real_captions["val"], unknown, strict=True)
        if not count
    ]
    assert len(same) > 3000
    assert sum(same) / len(same) >= 0.999  # measured: all 3,472 (mia) and 3,360 (up_down)
    words = set(vocabulary(tokenizer)) - set(tokenizer.all_special_tokens)
    assert [word for word in words if ptb_tokenize(word) != [word]] == []


def test_real_captions_are_spelt_by_subwords(real_captions):
    tokenizer = train_subword_caption_tokenizer(real_captions["train"], vocab_size=1000)
    encoded = tokenizer(real_captions["val"], truncation=False)["input_ids"]
    written = tokenizer.batch_decode(encoded, skip_special_tokens=True)
    same = [text.split() == ptb_tokenize(each) for text, each in zip(written, real_captions["val"], strict=True)]
    assert (
        sum(row.count(tokenizer.unk_token_id) for row in encoded) <= 1
    )  # measured: 1, an equals sign, which train lacks
    assert sum(same) / len(same) >= 0.999  # measured: 0.9996
