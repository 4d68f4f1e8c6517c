"""What holds for any captions: properties of BLEU, ROUGE-L and CIDEr-D, and text of every kind."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_grounding.metrics.bleu import bleu
from hf_grounding.metrics.cider import cider
from hf_grounding.metrics.ptb_tokenizer import DROPPED, ptb_tokenize
from hf_grounding.metrics.rouge_l import rouge_l

tokens = st.lists(st.sampled_from("abcdefg"), max_size=9)
image = st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4))  # prediction and references
images = st.lists(image, min_size=2, max_size=7)
any_text = st.one_of(
    st.text(),
    st.text(st.characters()),  # lone surrogates too
    st.text("😀👍🏽❤️👨‍👩‍👧é€½²'’\"“.-–—…()$#@&:;/_0123456789 \t\n\xa0\u3000abN", max_size=60),
)
some = settings(derandomize=True, max_examples=60, deadline=None)


def columns(rows) -> tuple[list, list]:
    return [prediction for prediction, _ in rows], [references for _, references in rows]


def scores(predictions, references) -> dict[str, tuple[float, list[float]]]:
    """Of every metric the value of the corpus and those of the images."""
    of_bleu = bleu(predictions, references)
    result = {f"bleu_{n}": (of_bleu[f"bleu_{n}"], of_bleu["per_image"][f"bleu_{n}"]) for n in range(1, 5)}
    others: list[tuple[str, dict[str, Any]]] = [
        ("rouge_l", rouge_l(predictions, references)),
        ("cider_d", cider(predictions, references)),
        ("cider", cider(predictions, references, variant="cider")),
    ]
    return result | {name: (values[name], values["per_image"]) for name, values in others}


@some
@given(images, st.randoms(use_true_random=False))
def test_order_of_the_images_changes_no_value(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    before, after = scores(*columns(rows)), scores(*columns([rows[row] for row in order]))
    for name, (corpus, per_image) in before.items():
        assert after[name][0] == pytest.approx(corpus, abs=1e-12), name
        assert after[name][1] == pytest.approx([per_image[row] for row in order], abs=1e-12), name


@some
@given(image, st.randoms(use_true_random=False))
def test_order_of_the_references_changes_no_value(row, random):
    prediction, references = row
    shuffled = random.sample(references, len(references))
    other = (["a", "b", "x"], [["a", "b", "y"]])
    before, after = scores(*columns([row, other])), scores(*columns([(prediction, shuffled), other]))
    for name, (corpus, per_image) in before.items():
        assert after[name][0] == pytest.approx(corpus, abs=1e-12), name
        assert after[name][1] == pytest.approx(per_image, abs=1e-12), name


@some
@given(image, tokens)
def test_another_reference_never_lowers_rouge_l(row, reference):
    prediction, references = row
    before = rouge_l([prediction], [references])["rouge_l"]
    assert rouge_l([prediction], [[*references, reference]])["rouge_l"] >= before - 1e-12


@some
@given(images)
def test_values_are_in_their_range(rows):
    for name, (corpus, per_image) in scores(*columns(rows)).items():
        values = np.array([corpus, *per_image])
        assert ((values >= 0) & (values <= (10 if "cider" in name else 1) + 1e-9)).all(), name


@some
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=2, max_size=6))
def test_a_caption_equal_to_its_only_reference_gets_the_maximum(numbers):
    captions = [[f"{row}-{number}" for number in words] for row, words in enumerate(numbers)]  # no n-gram shared
    result = scores(captions, [[caption] for caption in captions])
    assert result["rouge_l"] == (1, [1] * len(captions))
    lengths = np.array([len(caption) for caption in captions])
    for n in range(1, 5):
        values = np.array(result[f"bleu_{n}"][1])
        assert values[lengths >= n] == pytest.approx(np.ones((lengths >= n).sum()), abs=1e-7)
    for name in ("cider_d", "cider"):  # captions of fewer than four words lack the longer n-grams
        assert result[name][1] == pytest.approx(10 * np.minimum(lengths, 4) / 4, abs=1e-12), name


@some
@given(st.lists(any_text, min_size=4, max_size=4))
def test_text_of_any_kind_has_finite_values(texts):
    result = scores([texts[0], "a dog"], [texts[1:3], [texts[3]]])
    for name, (corpus, per_image) in result.items():
        assert np.isfinite([corpus, *per_image]).all(), name


@settings(some, max_examples=300)
@given(any_text)
def test_tokens_are_lower_case_words_without_white_space(text):
    for token in ptb_tokenize(text):
        assert token
        assert token not in DROPPED
        assert token == token.lower()
        assert not set(token) & set(" \t\n\r\x0b\x0c\u2028")


@some
@given(any_text, any_text)
def test_a_letter_between_line_breaks_keeps_captions_apart(first, second):
    assert ptb_tokenize(f"{first}\nx\n{second}") == [*ptb_tokenize(first), "x", *ptb_tokenize(second)]


def test_a_caption_of_ten_thousand_words():
    rng = np.random.default_rng(0)
    caption = " ".join(f"word{number}" for number in rng.integers(0, 3000, 10_000))
    assert len(ptb_tokenize(caption)) == 10_000
    result = scores([caption, "a dog", caption], [[caption], [caption], ["a dog", ""]])
    assert [values[1][0] for values in result.values()] == pytest.approx([1] * 5 + [10, 10], abs=1e-9)
    assert [result[name][1][1] for name in ("rouge_l", "cider_d", "cider")] == [0, 0, 0]
    assert max(values[1][2] for values in result.values()) < 1e-3


def test_a_word_of_ten_thousand_letters():
    assert ptb_tokenize("a" * 10_000) == ["a" * 10_000]
    assert ptb_tokenize("1" * 10_000) == ["1" * 10_000]
    assert ptb_tokenize("a-" * 5_000 + "a") == ["a-" * 5_000 + "a"]
    assert ptb_tokenize("!" * 10_000) == ["!" * 10_000]
    assert ptb_tokenize("." * 10_000) == []
