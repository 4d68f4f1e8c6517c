"""Does a generated caption say what people agree on? CIDEr-D of Vedantam et al. (CVPR 2015), also as a reward."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ._captions import Caption, NgramCounts, Ngrams, count_ngrams, read_captions, read_references, tokens_of
from ._protocol import check_choice

SIGMA = 6.0  # of the length penalty, in words
VARIANTS = ("cider_d", "cider")


class DocumentFrequencies:
    r"""In how many images each n-gram of reference captions is: the weights of CIDEr.

    Args:
        ngrams ([`Ngrams`]): The n-grams.
        counts (`np.ndarray` of shape `(len(ngrams),)`): Images of each.
        num_images (`int`): Images in all.
    """

    def __init__(self, ngrams: Ngrams, counts: np.ndarray, num_images: int):
        self.ngrams = ngrams
        self.counts = counts
        self.num_images = num_images

    @classmethod
    def of(cls, references: Sequence[Sequence[Caption]]) -> DocumentFrequencies:
        """Of the reference captions of each image, e.g. of the column `captions` of a data set."""
        return CiderScorer(references).frequencies

    def weights(self, numbers: np.ndarray) -> np.ndarray:
        """log(images / images that have it) of n-grams found in `ngrams`; one that is unknown, -1, counts once."""
        counts = np.where(numbers < 0, 0, self.counts[numbers]) if len(self.counts) else np.zeros(len(numbers))
        return np.log(self.num_images) - np.log(np.maximum(1, counts))

    def save(self, path: str | os.PathLike) -> None:
        """Writes a plain `.npz` file, aside and renamed: tokens, keys of the n-grams, counts."""
        path = Path(path)
        tokens = list(self.ngrams.vocabulary)
        if not tokens:
            raise ValueError("There are no words, so there is nothing to save.")
        array = np.array(tokens)
        # What numpy would change it may not store: it drops zeros at the end of text, and makes text of mixed tokens.
        if array.dtype.kind not in "Ui" or array.tolist() != tokens:
            raise ValueError(
                "Only frequencies of tokens that are all texts, or all whole numbers of 64 bits, can be saved."
            )
        aside = path.with_name(f".part-{path.name}")
        arrays: dict[str, Any] = {f"keys_{length}": keys for length, keys in enumerate(self.ngrams.keys, start=2)}
        arrays |= {"tokens": array, "counts": self.counts, "num_images": np.array(self.num_images)}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                np.savez_compressed(file, **arrays)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> DocumentFrequencies:
        r"""Reads what `save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: It is no such file, or is cut off.
        """
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                tokens, counts, num_images = file["tokens"].tolist(), file["counts"], int(file["num_images"])
                keys = [file[f"keys_{length}"] for length in (2, 3, 4)]
        except FileNotFoundError:
            raise FileNotFoundError(f"No file of document frequencies '{path}'.") from None
        except (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"'{path}' cannot be read as document frequencies ({error}).") from error
        ngrams = Ngrams({token: number for number, token in enumerate(tokens)}, keys)
        if counts.shape != (len(ngrams),):
            raise ValueError(f"'{path}' has {counts.shape} counts for {len(ngrams)} n-grams; it is damaged.")
        return cls(ngrams, counts, num_images)


class CiderScorer:
    r"""References prepared once, to score many sets of captions against them: rewards of a training, or a corpus.

        >>> scorer = CiderScorer(references, df="train_frequencies.npz")
        >>> rewards = scorer(sampled_captions, images)  # (len(sampled_captions),)

    Args:
        references: For each image its captions, one or more: text, tokenised by `ptb_tokenize`, or tokens (words or
            ids), taken as they are.
        df (`DocumentFrequencies` or path, *optional*): Weights of the n-grams, e.g. of the training captions. Default:
            of `references`.
        variant (`str`): "cider_d", what is called CIDEr in papers that use the COCO toolkit; "cider", without clipping
            and length penalty.

    Raises:
        FileNotFoundError: If there is no such file of frequencies.
        ValueError: As in `bleu`; if the frequencies are of other tokens than the references, text and ids. Warns if the
            weights are those of one image, as then every score is 0.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Caption]],
        *,
        df: DocumentFrequencies | str | os.PathLike | None = None,
        variant: Literal["cider_d", "cider"] = "cider_d",
    ):
        check_choice("variant", variant, VARIANTS)
        self.variant = variant
        read = read_references(references)
        captions_of_image = np.fromiter(map(len, read), np.int64, len(read))
        self.first_caption = np.concatenate([[0], captions_of_image.cumsum()])
        self.ngrams, self.counts = count_ngrams([caption for captions in read for caption in captions])
        if df is None:
            image = np.repeat(np.arange(len(read)), captions_of_image)
            documents = self.counts.documents(image, len(self.ngrams)) if len(self.ngrams) else np.zeros(0)
            self.frequencies = DocumentFrequencies(self.ngrams, documents, len(read))
        else:
            self.frequencies = _read_frequencies(df, self.ngrams)
        if self.frequencies.num_images == 1:
            warnings.warn(
                "CIDEr weighs n-grams by how rare they are among images: with the references of one image every score "
                "is 0. Give more images, or document frequencies of a larger set (`df`).",
                stacklevel=2,
            )
        self.weights = self._weights(self.ngrams, np.arange(len(self.ngrams)))
        self.lengths = self.ngrams.length
        self.norms = _norms(self.counts, self.ngrams, self.weights)

    def _weights(self, ngrams: Ngrams, numbers: np.ndarray) -> np.ndarray:
        """Weights of n-grams, given their numbers among those of the references."""
        frequencies = self.frequencies
        return frequencies.weights(numbers if frequencies.ngrams is self.ngrams else frequencies.ngrams.find(ngrams))

    def __call__(self, predictions: Sequence[Caption], images: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        r"""Score of each caption.

        Args:
            predictions: Captions as in `references`.
            images (one `int` per caption, *optional*): Whose references, as position in `references`; by default the
                captions are those of all images in order.

        Returns:
            `np.ndarray` of shape `(len(predictions),)`: 10 for a caption equal to its only reference.

        Raises:
            ValueError: If there are not as many images as captions, or an index is no image.
        """
        if isinstance(predictions, str) or not isinstance(predictions, Sized):
            raise ValueError(f"`predictions` must be a list of captions, got {predictions!r}.")
        read = [tokens_of(caption, f"Prediction {row}") for row, caption in enumerate(predictions)]
        num_images = len(self.first_caption) - 1
        image = np.arange(num_images) if images is None else np.asarray(images)
        if image.ndim != 1 or (len(image) and image.dtype.kind not in "iu"):
            raise ValueError(f"`images` must be whole numbers, positions in the references; got {images}.")
        image = image.astype(np.int64)
        if len(image) != len(read):
            raise ValueError(f"Got {len(predictions)} predictions for {len(image)} images; give one image for each.")
        if len(image) and not 0 <= image.min() <= image.max() < num_images:
            raise ValueError(f"`images` must be positions in the references (0 to {num_images - 1}), got {images}.")
        ngrams, counts = count_ngrams(read)
        known = self.ngrams.find(ngrams)
        weights = self._weights(ngrams, known)
        norms = _norms(counts, ngrams, weights)

        # Every prediction beside each of its references: `pair` numbers them.
        num_references = np.diff(self.first_caption)[image]
        pair_prediction = np.repeat(np.arange(len(image)), num_references)
        pair_caption = _ranges(self.first_caption[image], num_references)
        rows, pair, own_rows = self._shared(counts, known, pair_prediction, pair_caption)
        reference = self.counts.count[rows] * self.weights[self.counts.ngram[rows]]
        prediction = counts.count[own_rows] * weights[counts.ngram[own_rows]]
        if self.variant == "cider_d":
            prediction = np.minimum(prediction, reference)
        length = self.lengths[self.counts.ngram[rows]]
        products = np.bincount(pair * 4 + length, prediction * reference, minlength=4 * len(pair_caption))
        products = products.reshape(-1, 4)
        both = norms[pair_prediction] * self.norms[pair_caption]
        cosines = np.divide(products, both, out=np.zeros_like(both), where=both != 0)
        if self.variant == "cider_d":
            lengths = counts.num_words[pair_prediction], self.counts.num_words[pair_caption]
            cosines *= _length_penalty(*lengths)[:, None]
        return 10 * np.bincount(pair_prediction, cosines.mean(axis=1), minlength=len(image)) / num_references

    def between(self, captions: np.ndarray) -> np.ndarray:
        r"""Score of each of some references against each of them, as if it were its only reference.

        A clipped product is a sum over k: min(a, b) = [a >= 1] [b >= 1] + [a >= 2] [b >= 2] + ... for whole numbers. So
        all pairs are one product of matrices for each length of n-grams.

        Args:
            captions (`np.ndarray` of shape `(n,)`): Which, numbered through all images in order.

        Returns:
            `np.ndarray` of shape `(n, n)`: row i, column j has the score of caption i with caption j as its reference.
        """
        num_rows = np.diff(self.counts.offsets)[captions]
        rows, caption = _ranges(self.counts.offsets[captions], num_rows), np.repeat(np.arange(len(captions)), num_rows)
        count, ngram = self.counts.count[rows], self.counts.ngram[rows].astype(np.int64)
        most, own, key = 1, count, ngram
        if self.variant == "cider_d":  # a column for each n-gram and k
            most = int(count.max(initial=1))
            copies = np.repeat(np.arange(len(rows)), count)
            key = ngram[copies] * most + _ranges(np.zeros(len(rows), dtype=np.int64), count)
            caption, count, ngram, own = caption[copies], count[copies], ngram[copies], np.ones(len(copies))
        columns, column, num_captions = np.unique(key, return_inverse=True, return_counts=True)
        shared = num_captions > 1  # most n-grams are of one caption: they count in norms alone
        place, rows = shared.cumsum() - 1, shared[column]
        left, right = np.zeros((2, len(captions), shared.sum()), dtype=np.float32)
        left[caption[rows], place[column[rows]]] = own[rows]
        right[caption[rows], place[column[rows]]] = count[rows] * self.weights[ngram[rows]] ** 2
        ends = np.searchsorted(columns[shared] // most, self.ngrams.first)
        norms = self.norms[captions]
        scores = np.zeros((len(captions), len(captions)))
        for n in range(4):
            both = np.outer(norms[:, n], norms[:, n])
            products = left[:, ends[n] : ends[n + 1]] @ right[:, ends[n] : ends[n + 1]].T
            cosines = np.divide(products, both, out=np.zeros_like(both), where=both != 0)
            np.fill_diagonal(cosines, norms[:, n] != 0)
            scores += cosines
        if self.variant == "cider_d":
            num_words = self.counts.num_words[captions]
            scores *= _length_penalty(num_words[:, None], num_words)
        return 10 * scores / 4

    def _shared(
        self, counts: NgramCounts, known: np.ndarray, pair_prediction: np.ndarray, pair_caption: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """N-grams that a prediction shares with a reference: row of the reference's count, pair, row in `counts`."""
        num_rows = np.diff(self.counts.offsets)[pair_caption]
        rows = _ranges(self.counts.offsets[pair_caption], num_rows)
        pair = np.repeat(np.arange(len(pair_caption)), num_rows)
        if not len(counts.ngram):
            return rows[:0], pair[:0], rows[:0]
        size = len(self.ngrams) + 1  # so that the number of an unknown n-gram, -1, is no other prediction's last
        own = counts.caption * size + known[counts.ngram]
        order = own.argsort()
        key = pair_prediction[pair] * size + self.counts.ngram[rows]
        own_rows = order[np.searchsorted(own, key, sorter=order).clip(max=len(own) - 1)]
        shared = own[own_rows] == key
        return rows[shared], pair[shared], own_rows[shared]


def cider(
    predictions: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    *,
    df: DocumentFrequencies | str | os.PathLike | None = None,
    variant: Literal["cider_d", "cider"] = "cider_d",
) -> dict[str, Any]:
    r"""CIDEr-D, which the COCO toolkit prints as CIDEr: n-grams weighed by their rarity, compared by their cosine.

    Args:
        predictions, references: As in `bleu`.
        df, variant: As in [`CiderScorer`], which is the faster way to score many sets against the same references.

    Returns:
        `dict` with the variant's name in [0, 10], the mean over images, "per_image" and "count".

    Raises:
        ValueError: As in `bleu`; warns if the weights are those of one image.
    """
    hypotheses, read = read_captions(predictions, references)
    scores = CiderScorer(read, df=df, variant=variant)(hypotheses)
    return {variant: float(scores.mean()), "per_image": scores.tolist(), "count": len(scores)}


def _read_frequencies(df: DocumentFrequencies | str | os.PathLike, ngrams: Ngrams) -> DocumentFrequencies:
    if not isinstance(df, DocumentFrequencies | str | os.PathLike):
        raise ValueError(f"`df` must be `DocumentFrequencies` or a file of them, got {df!r}.")
    frequencies = df if isinstance(df, DocumentFrequencies) else DocumentFrequencies.load(df)
    stored, given = ({isinstance(token, str) for token in each.vocabulary} for each in (frequencies.ngrams, ngrams))
    if stored and given and not stored & given:  # every n-gram would be equally rare
        raise ValueError(
            f"The document frequencies are of {'texts' if True in stored else 'ids'} and the references are "
            f"{'texts' if True in given else 'ids'}; give frequencies of the same tokens."
        )
    return frequencies


def _length_penalty(num_words: np.ndarray, of_reference: np.ndarray) -> np.ndarray:
    """Below 1 for captions of different lengths; the toolkit takes the number of pairs for the length."""
    delta = np.maximum(0, num_words - 1) - np.maximum(0, of_reference - 1)
    return np.exp(-(delta**2) / (2 * SIGMA**2))


def _norms(counts: NgramCounts, ngrams: Ngrams, weights: np.ndarray) -> np.ndarray:
    """Length of the vector of every caption, for each length of n-grams: (captions, 4)."""
    squares = (counts.count * weights[counts.ngram]) ** 2
    sums = np.bincount(counts.caption * 4 + ngrams.length[counts.ngram], squares, minlength=4 * len(counts.num_words))
    return np.sqrt(sums).reshape(-1, 4)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (lengths[0] of them), then those from starts[1], ..."""
    ends = lengths.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
