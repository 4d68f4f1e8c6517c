"""Concept vocabulary, labels, ranking, padding, and `image_concepts.json` with its errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_grounding.processing.concepts import (
    FUNCTION_WORDS,
    ConceptProcessor,
    RankedConcept,
    caption_words,
    commonest_words,
    read_image_concepts,
    write_image_concepts,
)
from hf_grounding.processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from hf_grounding.processing.words import train_word_tokenizer

CONCEPTS = ["a", "man", "horse", "on", "dog"]


def make_processor(**settings: Any) -> ConceptProcessor:
    image_processor = MultiLevelGroundingImageProcessorPil(size={"height": 6, "width": 8})
    return ConceptProcessor(image_processor, **{"concepts": CONCEPTS, "num_concepts": 3, **settings})


def photos(count: int) -> list[Image.Image]:
    arrays = np.random.default_rng(0).integers(256, size=(count, 10, 20, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in arrays]


# Words and vocabulary


@pytest.mark.parametrize(
    "caption, words",
    [
        ("A man rides, slowly, a man-made horse .", ["a", "man", "rides", "slowly", "a", "man-made", "horse"]),
        ("Two dogs & a ball - on grass!?", ["two", "dogs", "a", "ball", "on", "grass"]),
        ("a child's 3 toys ; \n\tred", ["a", "child's", "3", "toys", "red"]),
        ("Ein Mädchen läuft.", ["ein", "mädchen", "läuft"]),
        (" ... ", []),
        ("", []),
    ],
)
def test_words_of_a_caption(caption, words):
    assert caption_words(caption) == words


@pytest.mark.parametrize(
    "caption", ["A Man rides, slowly .", "it's U.S. made!? yes; no", "Größe 3.5 m, \xa0 ja", "x...;"]
)
def test_words_are_cut_as_by_the_word_tokenizer(caption):
    tokenizer = train_word_tokenizer([caption])
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(caption)["input_ids"])
    assert caption_words(caption) == [token for token in tokens if any(sign.isalnum() for sign in token)]


def test_the_commonest_words_come_first_and_equally_common_ones_by_the_alphabet():
    captions = ["a dog", "A cat and a dog .", "the dog"]  # dog 3, a 3, and 1, cat 1, the 1
    assert commonest_words(captions) == ["a", "dog", "and", "cat", "the"]
    assert commonest_words(captions, size=3) == ["a", "dog", "and"]
    assert commonest_words(reversed(captions), size=3) == ["a", "dog", "and"]
    assert commonest_words([captions[:2], captions[2]]) == commonest_words(captions)


def test_the_vocabulary_is_kept_by_the_processor():
    processor = make_processor(concepts=())
    assert processor.build_vocabulary(["a dog", "a cat"], size=2) == processor.concepts == ["a", "cat"]


@pytest.mark.parametrize(
    "captions, size, message",
    [
        (["a dog"], 0, "`size` must be 1 or more"),
        ([" . "], 9, "captions have no words"),
        ([], 9, "captions have no words"),
        ([["a dog", 3]], 9, r"Captions must be a text, or a list of texts, .* got \['a dog', 3\] at 0"),
        ([None], 9, "got None at 0"),
    ],
)
def test_captions_without_a_vocabulary_are_refused(captions, size, message):
    with pytest.raises(ValueError, match=message):
        make_processor().build_vocabulary(captions, size)


def test_the_fourteen_function_words_are_the_default():
    assert len(FUNCTION_WORDS) == 14
    assert ConceptProcessor().concept_stopwords == list(FUNCTION_WORDS)
    assert ConceptProcessor().num_concepts == 49
    assert ConceptProcessor().concepts == []


# Labels


def test_labels_mark_the_words_of_all_captions_of_an_image():
    labels = make_processor().labels([["A man .", "a horse on a hill"], "Dog, dog!", ["nothing known"]])
    assert labels.tolist() == [[1, 1, 1, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert labels.dtype == torch.float32


def test_labels_equal_a_literal_look_up():
    rng = np.random.default_rng(1)
    captions = [[" ".join(rng.choice([*CONCEPTS, "tree"], size=3)) for _ in range(2)] for _ in range(20)]
    expected = [[float(any(word in text.split() for text in row)) for word in CONCEPTS] for row in captions]
    assert make_processor().labels(captions).tolist() == expected


def test_a_call_gives_what_the_model_takes():
    inputs = make_processor()(images=photos(2), text=["a dog", ["a man", "a man on a horse"]])
    assert set(inputs) == {"pixel_values", "labels"}
    assert inputs["pixel_values"].shape == (2, 3, 6, 8)
    assert inputs["labels"].tolist() == [[1, 0, 0, 0, 1], [1, 1, 1, 1, 0]]
    assert set(make_processor()(images=photos(1)[0])) == {"pixel_values"}
    assert make_processor()(text="a dog")["labels"].tolist() == [[1, 0, 0, 0, 1]]
    assert make_processor()(photos(1), size={"height": 4, "width": 4})["pixel_values"].shape == (1, 3, 4, 4)
    assert make_processor().model_input_names == ["pixel_values", "labels"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text": ["a dog"]}, "2 images but text for 1"),
        ({"text": ["a dog", []]}, "Image 1 has no captions"),
        ({"return_tensors": "np"}, '`return_tensors` must be "pt"'),
    ],
)
def test_calls_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_processor()(images=photos(2), **arguments)


def test_without_a_vocabulary_there_are_no_labels_and_ranks():
    processor = make_processor(concepts=())
    for use in (lambda: processor.labels(["a dog"]), lambda: processor.rank(torch.zeros(1, 0))):
        with pytest.raises(ValueError, match="has no `concepts`; give them, or call `build_vocabulary`"):
            use()


# Ranking and padding


def test_ranked_words_are_in_order_and_without_function_words():
    probs = torch.tensor([[0.99, 0.2, 0.6, 0.98, 0.4], [0.1, 0.5, 0.5, 0.1, 0.5]])
    ranked = make_processor().rank(probs)
    assert [[each.word for each in row] for row in ranked] == [["horse", "dog", "man"], ["man", "horse", "dog"]]
    assert [each.prob for each in ranked[0]] == pytest.approx([0.6, 0.4, 0.2])
    assert ranked[1][0] == RankedConcept("man", 0.5)


def test_of_equally_likely_words_the_earlier_comes_first():
    words = [f"word{i}" for i in range(1000)]
    ranked = make_processor(concepts=words).rank(torch.arange(1000)[None] % 2 / 2, top=1000)
    assert [each.word for each in ranked[0]] == words[1::2] + words[::2]


def test_only_the_top_is_kept():
    probs = torch.tensor([[0.9, 0.2, 0.6, 0.9, 0.4]])
    assert [each.word for each in make_processor().rank(probs, top=1)[0]] == ["horse"]
    assert [each.word for each in make_processor(num_concepts=2).rank(probs)[0]] == ["horse", "dog"]
    assert [each.word for each in make_processor().rank(probs, top=99)[0]] == ["horse", "dog", "man"]


def test_other_function_words_or_none_can_be_left_out():
    probs = torch.tensor([[0.9, 0.2, 0.6, 0.8, 0.4]])
    assert [each.word for each in make_processor(concept_stopwords=()).rank(probs)[0]] == ["a", "on", "horse"]
    assert [each.word for each in make_processor(concept_stopwords=["horse"]).rank(probs)[0]] == ["a", "on", "dog"]
    assert make_processor(concept_stopwords=CONCEPTS).rank(probs) == [[]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_precision_is_ranked_as_a_literal_sort(dtype):
    probs = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    for row, ranked in zip(probs.tolist(), make_processor().rank(probs.requires_grad_()), strict=True):
        kept = [(word, prob) for word, prob in zip(CONCEPTS, row, strict=True) if word not in FUNCTION_WORDS]
        assert [tuple(each) for each in ranked] == sorted(kept, key=lambda pair: -pair[1])


@pytest.mark.parametrize(
    "probs, top, message",
    [
        (torch.zeros(2, 4), None, r"must be \(images, 5\), one column for each of `concepts`; got \(2, 4\)"),
        (torch.zeros(5), None, r"got \(5,\)"),
        (torch.tensor([[0.0] * 5, [torch.nan] * 5]), None, r"NaN or infinite values in rows \[1\]"),
        (torch.zeros(2, 5), 0, "`top` must be 1 or more"),
    ],
)
def test_probabilities_that_cannot_be_ranked_are_refused(probs, top, message):
    with pytest.raises(ValueError, match=message):
        make_processor().rank(probs, top)


def test_ids_are_cut_and_padded_with_a_mask():
    padded = make_processor().pad([[4, 3, 2, 1], [1], []])
    assert padded["concept_ids"].tolist() == [[4, 3, 2], [1, 5, 5], [5, 5, 5]]
    assert padded["concept_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert padded["concept_ids"].dtype == padded["concept_mask"].dtype == torch.int64
    assert make_processor().pad([[1]], pad_id=0)["concept_ids"].tolist() == [[1, 0, 0]]


def test_words_become_ids_of_the_vocabulary():
    processor = make_processor()
    ranked = processor.rank(torch.tensor([[0.9, 0.2, 0.6, 0.9, 0.4]]), top=2)
    encoded = processor.encode([*ranked, ["man"]])
    assert encoded["concept_ids"].tolist() == [[2, 4, 5], [1, 5, 5]]
    assert encoded["concept_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match="not in `concepts`: 'cat', 'tree'"):
        processor.encode([["man", "tree"], ["cat"]])


def test_words_become_ids_of_a_caption_tokenizer():
    tokenizer = train_word_tokenizer(["a man and a dog"])
    ids = make_processor().encode([["dog", "horse"], ["man", "a", "dog", "man"]], tokenizer)["concept_ids"]
    expected = [["dog", "<unk>", "<pad>"], ["man", "a", "dog"]]
    assert ids.tolist() == [tokenizer.convert_tokens_to_ids(row) for row in expected]
    with pytest.raises(ValueError, match=r"The tokenizer has no '\[PAD\]'; set `pad_word`"):
        make_processor(pad_word="[PAD]").encode([["dog"]], tokenizer)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"concepts": ["dog", "a", "dog"]}, "words more than once: 'dog'"),
        ({"concepts": ["dog", ""]}, "Concepts must be words other than the padding '<pad>', got ''"),
        ({"concepts": ["<pad>"]}, "got '<pad>'"),
        ({"concepts": "dog"}, "lists of words, got one text"),
        ({"concept_stopwords": "a"}, "lists of words, got one text"),
        ({"num_concepts": 0}, "`num_concepts` must be 1 or more, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_processor(**settings)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    processor = make_processor(concept_stopwords=["a"], pad_word="[PAD]")
    processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["processor_config.json"]
    loaded = ConceptProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    for name in ("concepts", "concept_stopwords", "num_concepts", "pad_word"):
        assert getattr(loaded, name) == getattr(processor, name), name
    for name, value in processor(images=photos(2), text=["a dog", "a man"]).items():
        assert torch.equal(loaded(images=photos(2), text=["a dog", "a man"])[name], value)


# image_concepts.json


def test_written_and_read_the_concepts_are_the_same(tmp_path):
    processor, path = make_processor(), tmp_path / "new" / "image_concepts.json"
    concepts = {7: ["horse", "dog"], 3: ["man"], 12345678901: []}
    processor.write_image_concepts(path, concepts)
    assert processor.read_image_concepts(path) == concepts
    assert list(processor.read_image_concepts(path)) == [7, 3, 12345678901]
    assert [file.name for file in path.parent.iterdir()] == ["image_concepts.json"]
    assert json.loads(path.read_text()) == [
        {"image_id": 7, "image_concepts": ["horse", "dog"]},
        {"image_id": 3, "image_concepts": ["man"]},
        {"image_id": 12345678901, "image_concepts": []},
    ]


def test_ranked_words_can_be_written_as_they_are(tmp_path):
    processor, path = make_processor(), tmp_path / "image_concepts.json"
    ranked = processor.rank(torch.tensor([[0.9, 0.2, 0.6, 0.9, 0.4], [0.9, 0.5, 0.1, 0.9, 0.4]]), top=2)
    processor.write_image_concepts(path, zip(np.array([5, 6]), ranked, strict=True))
    assert read_image_concepts(path) == {5: ["horse", "dog"], 6: ["man", "dog"]}


def test_no_image_and_any_words_can_be_written(tmp_path):
    write_image_concepts(tmp_path / "a.json", {})
    assert read_image_concepts(tmp_path / "a.json") == {}
    write_image_concepts(tmp_path / "c.json", {2: ["dog"], "image3": ["man"]})
    assert read_image_concepts(tmp_path / "c.json") == {2: ["dog"], "image3": ["man"]}
    write_image_concepts(tmp_path / "b.json", {1: ['qu"ote', "größe", "\ud800"]})
    assert read_image_concepts(tmp_path / "b.json") == {1: ['qu"ote', "größe", "\ud800"]}


def test_a_public_file_of_another_layout_is_read(tmp_path):
    path = tmp_path / "image_concepts.json"
    path.write_bytes(b'\xef\xbb\xbf[{"image_concepts": ["man", "dog"], "image_id": 9, "split": "val"}]')
    assert read_image_concepts(path) == {9: ["man", "dog"]}


ENTRY = '{"image_id": 3, "image_concepts": ["dog"]}'


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is not JSON, or is cut off"),
        (f"[{ENTRY}", "is not JSON, or is cut off"),
        ("[" * 100_000, "is not JSON, or is cut off"),
        ("\x00", "is not JSON, or is cut off"),
        ("[" + "9" * 5000 + "]", "is not JSON, or is cut off"),
        (ENTRY, "must hold a list of"),
        (f"[{ENTRY}, 5]", r"Entry 1 of .*image_concepts.json must be .*, got 5"),
        ('[{"image_id": 3}]', r"Entry 0 of .* must be"),
        (f"[{ENTRY}, {ENTRY}]", "Entry 1 of .* has the `image_id` 3 of entry 0; give each image once"),
        (ENTRY.replace("3", '"3"').join("[]"), "has the `image_id` '3', which must be a whole number"),
        (ENTRY.replace("3", "3.0").join("[]"), "has the `image_id` 3.0"),
        (ENTRY.replace("3", "true").join("[]"), "has the `image_id` True"),
        (ENTRY.replace('["dog"]', '"dog"').join("[]"), r"\(image 3\) must have a list of words, got 'dog'"),
        (ENTRY.replace('["dog"]', "null").join("[]"), "must have a list of words, got None"),
        (ENTRY.replace('"dog"', '"dog", 4').join("[]"), "must have a list of words"),
        (ENTRY.replace('"dog"', '"cat", "dog", "tree", "cat"').join("[]"), "not in the vocabulary: 'cat', 'tree'"),
    ],
)
def test_files_that_are_wrong_are_refused_with_entry_and_reason(tmp_path, text, message):
    path = tmp_path / "image_concepts.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        make_processor().read_image_concepts(path)
    assert len(str(error.value)) < 500


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_image_concepts(tmp_path / "none.json")


def test_a_damaged_file_gives_our_error_or_what_is_in_it(tmp_path):
    path, rng = tmp_path / "image_concepts.json", np.random.default_rng(0)
    write_image_concepts(path, {1: ["man", "dog"], 22: ["horse"]}, CONCEPTS)
    whole = path.read_bytes()
    for _ in range(1000):
        damaged = bytearray(whole[: rng.integers(len(whole) + 1)] if rng.random() < 0.3 else whole)
        for position in rng.integers(max(1, len(damaged)), size=rng.integers(1, 4)):
            damaged[position : position + 1] = rng.bytes(1)
        path.write_bytes(damaged)
        try:
            concepts = read_image_concepts(path)
        except ValueError as error:
            assert "image_concepts.json" in str(error)  # noqa: PT017 - not every damage is one
        else:
            assert all(isinstance(word, str) for words in concepts.values() for word in words)


@pytest.mark.parametrize(
    "concepts, message",
    [
        ([(1, ["dog"]), (1, ["man"])], "Entry 1 for .* has the `image_id` 1 of entry 0"),
        ([(1, ["dog"]), (2, ["cat"])], r"Entry 1 for .* \(image 2\) has words that are not in the vocabulary: 'cat'"),
        ({"": ["dog"]}, "has the `image_id` '', which must be a whole number, or a name that is none"),
        ({1: "dog"}, "must have a list of words, got 'dog'"),
        ({1: [""]}, "must have a list of words"),
    ],
)
def test_nothing_is_written_when_something_is_wrong(tmp_path, concepts, message):
    path = tmp_path / "image_concepts.json"
    path.write_text("as before")
    with pytest.raises(ValueError, match=message):
        make_processor().write_image_concepts(path, concepts)
    assert path.read_text() == "as before"
    assert [file.name for file in tmp_path.iterdir()] == ["image_concepts.json"]


def test_a_writer_that_is_stopped_leaves_the_old_file(tmp_path):
    def interrupted():
        yield 1, ["dog"]
        raise KeyboardInterrupt

    path: Path = tmp_path / "image_concepts.json"
    path.write_text("as before")
    with pytest.raises(KeyboardInterrupt):
        write_image_concepts(path, interrupted())
    assert path.read_text() == "as before"
    assert len(list(tmp_path.iterdir())) == 1
