"""CIDEr-D: golden numbers of the COCO toolkit and of an SCST run, a slow literal version, files, messages."""

import json
import math
import os
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest

from hf_grounding.metrics.cider import CiderScorer, DocumentFrequencies, cider

VARIANTS: list[Any] = ["cider_d", "cider"]
CAPTIONS = [["a dog runs on grass"], ["two cats sleep on a sofa"], ["a man rides a horse"]]


def random_captions(num_images=40, num_words=7, seed=0):
    """Token lists of 0 to 11 words from a small vocabulary, 1 to 5 references."""
    rng = np.random.default_rng(seed)

    def caption():
        return [f"w{word}" for word in rng.integers(0, num_words, rng.integers(0, 12))]

    hypotheses = [caption() for _ in range(num_images)]
    return hypotheses, [[caption() for _ in range(rng.integers(1, 6))] for _ in hypotheses]


def ngrams(tokens, n):
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def literal_cider(hypotheses, references, clipped_and_penalised=True, df_references=None):
    """Section 4 of the specification, one n-gram at a time."""
    df_references = df_references or references
    documents = [
        {ngram for caption in captions for n in range(1, 5) for ngram in ngrams(caption, n)}
        for captions in df_references
    ]
    df = Counter(ngram for document in documents for ngram in document)

    def vector(tokens, n):
        weight = {ngram: math.log(len(documents)) - math.log(max(1, df[ngram])) for ngram in ngrams(tokens, n)}
        return {ngram: count * weight[ngram] for ngram, count in ngrams(tokens, n).items()}

    scores = []
    for hypothesis, captions in zip(hypotheses, references, strict=True):
        total = 0.0
        for caption in captions:
            delta = max(0, len(hypothesis) - 1) - max(0, len(caption) - 1)
            penalty = math.exp(-(delta**2) / (2 * 6**2)) if clipped_and_penalised else 1.0
            for n in range(1, 5):
                h, r = vector(hypothesis, n), vector(caption, n)
                common = [
                    (min(h[ngram], r[ngram]) if clipped_and_penalised else h[ngram]) * r[ngram]
                    for ngram in h.keys() & r.keys()
                ]
                norms = math.sqrt(sum(v * v for v in h.values())) * math.sqrt(sum(v * v for v in r.values()))
                total += sum(common) / (norms or 1) * penalty / 4
        scores.append(10 * total / len(captions))
    return scores


def test_golden_corpus_and_per_image(golden_dir):
    golden = json.loads((golden_dir / "caption_metrics.json").read_text())
    result = cider(golden["hypotheses"], golden["references"])
    assert result["cider_d"] == pytest.approx(golden["scores"]["corpus"]["CIDEr"], abs=1e-9)
    assert result["per_image"] == pytest.approx(golden["scores"]["per_image"]["CIDEr"], abs=1e-9)
    assert result["count"] == len(golden["hypotheses"])


class Scst:
    """The golden id sequences as the run wrote them: ids to the first 0, the 0 once; shorter than 8 get one."""

    def __init__(self, golden: dict[str, Any]):
        self.golden = golden
        self.train = [[self.ended(ids) for ids in captions] for captions in golden["train_captions_ids"]]
        self.references = [[self.ended(ids) for ids in captions] for captions in golden["references_ids"]]
        self.samples = [self.ended(ids) for ids in golden["samples"]]
        self.greedy = [self.ended(ids) for ids in golden["greedy"]]
        self.image_of_sample = np.repeat(np.arange(len(self.references)), golden["samples_per_image"])

    @staticmethod
    def ended(ids: list[int]) -> list[int]:
        ids = ids + [0] * (8 - len(ids))
        return ids[: ids.index(0) + 1] if 0 in ids else ids


@pytest.fixture(scope="module")
def scst(golden_dir) -> Scst:
    return Scst(json.loads((golden_dir / "scst.json").read_text()))


def test_golden_id_strings(scst):
    for example, ids in (("sample_0_empty", 0), ("sample_1", 1), ("sample_last_no_end", -1)):
        assert " ".join(map(str, scst.samples[ids])) == scst.golden["strings_example"][example]


def test_golden_document_frequencies(scst):
    df = DocumentFrequencies.of(scst.train)
    assert df.num_images == scst.golden["num_train_images"]
    for text, count in scst.golden["document_frequency_examples"].items():
        ids = [int(word) for word in text.split()]
        number = df.ngrams.find(DocumentFrequencies.of([[ids], [ids]]).ngrams)[-1]  # the longest n-gram comes last
        assert df.counts[number] == count, text


def test_golden_rewards_with_the_frequencies_of_the_training_captions(scst):
    scorer = CiderScorer(scst.references, df=DocumentFrequencies.of(scst.train))
    golden = scst.golden["ciderD_train_df"]
    assert scorer(scst.samples, scst.image_of_sample) == pytest.approx(golden["samples"], abs=1e-9)
    assert scorer(scst.greedy) == pytest.approx(golden["greedy"], abs=1e-9)
    advantage = scorer(scst.samples, scst.image_of_sample) - scorer(scst.greedy)[scst.image_of_sample]
    assert advantage == pytest.approx(scst.golden["advantage_per_sample"], abs=1e-9)


def test_golden_rewards_with_the_frequencies_of_the_batch(scst):
    images = [*scst.image_of_sample, *range(len(scst.greedy))]
    result = cider(scst.samples + scst.greedy, [scst.references[image] for image in images])
    golden = scst.golden["ciderD_corpus_df"]
    assert result["per_image"] == pytest.approx(golden["samples"] + golden["greedy"], abs=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_words", [2, 7, 100])
def test_equals_the_formula_applied_ngram_by_ngram(variant, num_words):
    hypotheses, references = random_captions(num_words=num_words)
    expected = literal_cider(hypotheses, references, clipped_and_penalised=variant == "cider_d")
    result = cider(hypotheses, references, variant=variant)
    assert max(expected) > 0.1
    assert result["per_image"] == pytest.approx(expected, abs=1e-10)
    assert result[variant] == pytest.approx(np.mean(expected), abs=1e-10)
    assert result["count"] == 40


@pytest.mark.parametrize("variant", VARIANTS)
def test_frequencies_of_other_captions_equal_the_formula(variant):
    hypotheses, references = random_captions(num_words=12)
    _, others = random_captions(num_images=90, num_words=9, seed=1)  # w9 to w11 are unknown to it
    expected = literal_cider(hypotheses, references, variant == "cider_d", df_references=others)
    result = cider(hypotheses, references, df=DocumentFrequencies.of(others), variant=variant)
    assert result["per_image"] == pytest.approx(expected, abs=1e-10)


def test_value_worked_by_hand():
    # Every n-gram is in one image of two but "a", which is in both: weights log 2 and 0.
    # Hypothesis "a red" against "a red dog": n = 1: red * red / (1 * sqrt 2); n = 2: 1 / (1 * sqrt 2); longer: none.
    # One word less: penalty exp(-1 / 72).
    result = cider(["a red", "a cat"], [["a red dog"], ["a cat"]])
    expected = 10 * (2 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert result["per_image"] == pytest.approx([expected, 10 * 2 / 4], abs=1e-12)
    assert result["cider_d"] == pytest.approx((expected + 5) / 2, abs=1e-12)


def test_repeated_words_help_without_clipping_only():
    # "dog dog" has the direction of "dog"; clipped, its product with it is half as large beside its norm.
    references = [["dog"], ["cat"]]
    once, twice = (
        [cider([text, "cat"], references, variant=variant)["per_image"][0] for variant in VARIANTS]
        for text in ("dog", "dog dog")
    )
    assert once == pytest.approx([10 / 4, 10 / 4], abs=1e-12)
    assert twice == pytest.approx([10 / 4 / 2 * math.exp(-1 / 72), 10 / 4], abs=1e-12)


@pytest.mark.parametrize("num_words", [1, 2, 3, 9])
def test_penalty_grows_with_the_difference_of_the_lengths(num_words):
    # Only the word x is shared; its cosine with three words x y z is 1 / sqrt 3.
    hypothesis = ["x", *map(str, range(num_words - 1))]
    result = cider([hypothesis, ["u"]], [[["x", "y", "z"]], [["u"]]])
    cosine = 1 / math.sqrt(3) / math.sqrt(num_words)
    expected = 10 / 4 * cosine * math.exp(-((num_words - 3) ** 2) / 72)
    assert result["per_image"][0] == pytest.approx(expected, abs=1e-12)


def test_text_and_its_tokens_score_the_same():
    tokens = [[caption.split() for caption in captions] for captions in CAPTIONS]
    texts = cider(["A dog runs!", "two cats", "a man's horse"], CAPTIONS)
    assert texts == cider([["a", "dog", "runs"], ["two", "cats"], ["a", "man", "'s", "horse"]], tokens)
    assert min(texts["per_image"]) > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_scorer_takes_images_repeated_and_in_any_order(variant):
    hypotheses, references = random_captions()
    images: Any = np.random.default_rng(2).integers(0, 40, 100)
    captions = [hypotheses[row % 40] for row in range(100)]
    scorer = CiderScorer(references, df=DocumentFrequencies.of(references), variant=variant)
    expected = cider(
        captions,
        [references[image] for image in images],
        df=DocumentFrequencies.of(references),
        variant=variant,
    )
    assert scorer(captions, images).tolist() == pytest.approx(expected["per_image"], abs=1e-12)
    assert scorer(captions, images.tolist()).tolist() == scorer(captions, images).tolist()
    one_by_one = [scorer([caption], [image])[0] for caption, image in zip(captions, images, strict=True)]
    assert one_by_one == pytest.approx(expected["per_image"], abs=1e-12)


def test_scorer_without_images_is_cider():
    hypotheses, references = random_captions()
    scorer = CiderScorer(references)
    assert scorer(hypotheses).tolist() == cider(hypotheses, references)["per_image"]
    assert scorer(hypotheses[::-1], range(39, -1, -1))[::-1] == pytest.approx(scorer(hypotheses), abs=1e-12)


def test_scoring_leaves_the_scorer_as_it_was():
    hypotheses, references = random_captions()
    scorer = CiderScorer(references)
    first = scorer(hypotheses)
    scorer([["unknown", "words"], ["w1"]], [3, 3])
    assert scorer(hypotheses).tolist() == first.tolist()


def test_frequencies_of_the_references_are_the_default():
    hypotheses, references = random_captions()
    df = DocumentFrequencies.of(references)
    assert cider(hypotheses, references, df=df)["per_image"] == pytest.approx(
        cider(hypotheses, references)["per_image"], abs=1e-12
    )


@pytest.mark.parametrize("as_type", [str, os.fspath, lambda path: path])
def test_frequencies_from_a_file_equal_those_given(tmp_path, as_type):
    hypotheses, references = random_captions()
    df = DocumentFrequencies.of(random_captions(seed=1)[1])
    path = tmp_path / "folder" / "train.npz"
    df.save(as_type(path))
    from_file = cider(hypotheses, references, df=as_type(path))
    assert from_file == cider(hypotheses, references, df=df)
    assert from_file["per_image"] != cider(hypotheses, references)["per_image"]
    assert [file.name for file in path.parent.iterdir()] == ["train.npz"]


def test_saving_replaces_the_file(tmp_path):
    path = tmp_path / "train"  # no suffix is added
    DocumentFrequencies.of(CAPTIONS).save(path)
    DocumentFrequencies.of(CAPTIONS[:2]).save(path)
    assert DocumentFrequencies.load(path).num_images == 2
    assert [file.name for file in tmp_path.iterdir()] == ["train"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "train.npz"
    DocumentFrequencies.of(CAPTIONS).save(path)

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        DocumentFrequencies.of(CAPTIONS[:2]).save(path)
    assert DocumentFrequencies.load(path).num_images == 3
    assert [file.name for file in tmp_path.iterdir()] == ["train.npz"]


@pytest.mark.parametrize("number", [int, str])
def test_frequencies_of_ids_keep_their_type(tmp_path, number):
    references = [[[number(word[1:]) for word in caption] for caption in captions] for captions in random_captions()[1]]
    df = DocumentFrequencies.of(references)
    df.save(tmp_path / "ids.npz")
    loaded = DocumentFrequencies.load(tmp_path / "ids.npz")
    assert loaded.ngrams.vocabulary == df.ngrams.vocabulary
    assert {type(token) for token in loaded.ngrams.vocabulary} == {number}
    assert loaded.counts.tolist() == df.counts.tolist()
    assert loaded.num_images == 40
    assert [keys.tolist() for keys in loaded.ngrams.keys] == [keys.tolist() for keys in df.ngrams.keys]


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    path = tmp_path / "train.npz"
    DocumentFrequencies.of(CAPTIONS).save(path)
    content = path.read_bytes()
    for length in {0, 1, 10, *range(0, len(content), 50), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"train\.npz' cannot be read as document frequencies"):
            DocumentFrequencies.load(path)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("a dog")
    np.savez(tmp_path / "other.npz", tokens=np.arange(3))
    np.save(tmp_path / "array.npz.npy", np.arange(3))
    for name in ("text.npz", "other.npz", "array.npz.npy"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read as document frequencies"):
            DocumentFrequencies.load(tmp_path / name)


def test_a_file_whose_counts_do_not_fit_is_refused(tmp_path):
    df = DocumentFrequencies.of(CAPTIONS)
    DocumentFrequencies(df.ngrams, df.counts[:-1], df.num_images).save(tmp_path / "train.npz")
    with pytest.raises(ValueError, match="it is damaged"):
        CiderScorer(CAPTIONS, df=tmp_path / "train.npz")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        cider(["a dog"], [["a dog"]], df=tmp_path / "none.npz")


@pytest.mark.parametrize("tokens", [["a", 1], [1.5, 2.5], ["a\x00"], [2**70]])
def test_frequencies_of_other_tokens_cannot_be_saved(tmp_path, tokens):
    df = DocumentFrequencies.of([[tokens], [tokens]])
    with pytest.raises(ValueError, match="all texts, or all whole numbers"):
        df.save(tmp_path / "train.npz")
    assert list(tmp_path.iterdir()) == []


def test_one_image_warns_and_scores_zero():
    with pytest.warns(UserWarning, match="references of one image every score is 0"):
        result = cider(["a dog"], [["a dog", "the dog"]])
    assert result == {"cider_d": 0.0, "per_image": [0.0], "count": 1}


def test_one_image_with_frequencies_of_more_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = cider(["two cats sleep on a sofa"], [CAPTIONS[1]], df=DocumentFrequencies.of(CAPTIONS))
    assert result["cider_d"] == pytest.approx(10, abs=1e-12)


@pytest.mark.parametrize("hypothesis", ["", "...", "zebra", "zebras and giraffes"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_in_common_is_zero(hypothesis, variant):
    assert cider([hypothesis] * 3, CAPTIONS, variant=variant)["per_image"] == [0, 0, 0]


def test_references_without_words_are_zero_and_no_crash():
    assert cider(["a dog", ""], [[""], ["", "..."]])["per_image"] == [0, 0]
    assert cider(["a dog", "a cat"], [[""], ["a cat"]])["per_image"] == pytest.approx([0, 5], abs=1e-12)


def test_no_captions_have_no_scores():
    assert CiderScorer(CAPTIONS)([], []).shape == (0,)


@pytest.mark.parametrize(
    "captions, images, hint",
    [
        (["a", "b"], None, "Got 2 predictions for 3 images"),
        (["a", "b"], [0], "Got 2 predictions for 1 images"),
        (["a", "b"], [0, 3], r"positions in the references \(0 to 2\), got \[0, 3\]"),
        (["a", "b"], [-1, 0], r"positions in the references \(0 to 2\), got \[-1, 0\]"),
        (["a", None], [0, 1], "Prediction 1 must be text or a list of tokens, got None"),
    ],
)
def test_scorer_refuses_what_fits_no_image(captions, images, hint):
    with pytest.raises(ValueError, match=hint):
        CiderScorer(CAPTIONS)(captions, images)


@pytest.mark.parametrize(
    "predictions, references, hint",
    [
        (["a", "b"], [["a"]], "2 predictions for references of 1 images"),
        ([], [], "nothing to score"),
        (["a", "b"], [["a"], []], r"image 1 has \[\]"),
        (["a", "b"], [["a"], "a dog"], "image 1 has 'a dog'"),
        (["a", 5], [["a"], ["b"]], "Prediction 1 must be text or a list of tokens, got 5"),
        (["a", "b"], [["a"], [None]], "A reference of image 1 must be text or a list of tokens, got None"),
    ],
)
def test_messages_name_the_image_and_what_came(predictions, references, hint):
    with pytest.raises(ValueError, match=hint):
        cider(predictions, references)


def test_an_unknown_variant_is_named():
    variant: Any = "cider_r"
    with pytest.raises(ValueError, match="cider_r"):
        cider(["a", "b"], [["a"], ["b"]], variant=variant)


def test_frequencies_of_arrays_of_ids_can_be_saved_and_those_without_words_cannot(tmp_path):
    frequencies = DocumentFrequencies.of([[np.array([1, 2, 3])], [[4, 5]]])
    frequencies.save(tmp_path / "df.npz")
    loaded = DocumentFrequencies.load(tmp_path / "df.npz")
    assert loaded.ngrams.vocabulary == {number: number - 1 for number in range(1, 6)}
    with pytest.raises(ValueError, match="There are no words"):
        DocumentFrequencies.of([[""], ["..."]]).save(tmp_path / "none.npz")


@pytest.mark.parametrize("images", [[1.9], [True], ["0"]])
def test_images_are_whole_numbers(images):
    with pytest.raises(ValueError, match="`images` must be whole numbers"):
        CiderScorer([["a dog"], ["two cats"]])(["a dog"], images)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], 5, "predictions for references of 5 images"),
        (5, [["a"]], "`predictions` must be a list of one caption per image, got 5"),
        ("a dog", [["a"]], "`predictions` must be a list of one caption per image, got 'a dog'"),
    ],
)
def test_what_is_no_list_is_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        cider(predictions, references)


def test_frequencies_of_other_tokens_than_the_references_are_refused():
    words, ids = DocumentFrequencies.of([["a man"], ["a dog"]]), [[[1, 2]], [[3]]]
    with pytest.raises(ValueError, match="frequencies are of texts and the references are ids"):
        cider([[1, 2], [3]], ids, df=words)
    with pytest.raises(ValueError, match="`df` must be `DocumentFrequencies` or a file of them, got 5"):
        CiderScorer(ids, df=5)


def test_captions_of_arrays_are_taken_and_nested_tokens_are_not():
    references = [np.array(["a man", "a dog"]), np.array(["two cats"])]
    assert cider(["a man", "cats"], references) == cider(["a man", "cats"], [list(row) for row in references])
    with pytest.raises(ValueError, match="Prediction 0 must be text or a list of tokens, got"):
        cider([[["a"]], ["b"]], references)
    scorer = CiderScorer(references)
    for wrong in ("ab", (word for word in ("a", "b"))):
        with pytest.raises(ValueError, match="`predictions` must be a list of captions"):
            scorer(wrong)
    for images in (0, [[0]]):
        with pytest.raises(ValueError, match="`images` must be whole numbers"):
            scorer(["a"], images)
