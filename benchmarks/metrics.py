"""Caption metrics beside the COCO toolkit: seconds for an evaluation, milliseconds for a batch of rewards, memory.

    python benchmarks/metrics.py            # the tables of benchmarks/README.md: about a minute on an idle machine
    python benchmarks/metrics.py DATA       # captions from the parquet files below another folder than ../shared/data
    python benchmarks/metrics.py --smoke    # small sizes, to see that it runs

Captions are real: the column `captions` of every parquet file, five an image. The prediction for an image is a caption
of the next one. Both sides are called from this process and take turns, the toolkit's tokeniser in Java as always;
medians of the rounds. Without `pip install pycocoevalcap` and Java the table is ours alone.
"""

import argparse
import contextlib
import importlib
import importlib.util
import itertools
import os
import random
import shutil
import statistics
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hf_grounding.metrics.bleu import bleu
from hf_grounding.metrics.cider import CiderScorer, cider
from hf_grounding.metrics.ptb_tokenizer import _tokens, ptb_tokenize
from hf_grounding.metrics.rouge_l import rouge_l

SHARED = Path(os.environ.get("HF_GROUNDING_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
KARPATHY_TRAIN = 113_000  # images of the usual training split of COCO, about
Images = list[list[str]]  # five captions each


def read_images(folder: Path) -> Images:
    """Captions of all images in the parquet files below a folder that have the column."""
    images: Images = []
    for path in sorted(folder.rglob("*.parquet")):
        if "captions" in pq.read_schema(path).names:
            images += pq.read_table(path, columns=["captions"])["captions"].to_pylist()
    images = [captions[:5] for captions in images if len(captions) >= 5]
    if not images:
        raise SystemExit(f"No parquet file with five `captions` an image below {folder}; name another folder.")
    random.Random(0).shuffle(images)
    return images


def recombine(images: list[list[list[str]]], num_images: int) -> list[list[list[str]]]:
    """Tokens of more images than there are: first halves of captions of one, second halves of captions of another."""
    generator = random.Random(0)
    made = list(images[:num_images])
    while len(made) < num_images:
        heads, tails = generator.choice(images), generator.choice(images)
        made.append([h[: len(h) // 2] + t[len(t) // 2 :] for h, t in zip(heads, tails, strict=True)])
    return made


def median_seconds(functions: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median time of each function, which take turns, and what it returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    results = {}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            results[name] = function()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def median_of_batches(function: Callable[..., Any], batches: list[tuple[Any, ...]]) -> tuple[float, list[Any]]:
    """Median time of calls on different batches one after another, as in a training, and what they returned."""
    seconds, results = [], []
    function(*batches[0])  # warms up
    for batch in batches:
        started = time.perf_counter()
        results.append(function(*batch))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), results


def table(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def our_tokens(captions: list[str]) -> list[list[str]]:
    _tokens.cache_clear()  # as in a fresh process
    return [ptb_tokenize(caption) for caption in captions]


def toolkit_tokens(captions: list[str]) -> list[str]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokens = PTBTokenizer().tokenize({number: [{"caption": caption}] for number, caption in enumerate(captions)})
    return [text for texts in tokens.values() for text in texts]


def compare_evaluations(images: Images, rounds: int, toolkit: bool) -> None:
    """Tokenisation and the three metrics, each given the tokens."""
    flat = [caption for captions in images for caption in captions]
    predictions = [captions[0] for captions in images[1:] + images[:1]]
    functions: dict[str, Callable[[], Any]] = {"ours": lambda: our_tokens(flat + predictions)}
    if toolkit:
        functions["toolkit"] = lambda: toolkit_tokens(flat + predictions)
    seconds = {"tokenise": median_seconds(functions, rounds)[0]}

    hypotheses = our_tokens(predictions)
    references = [[ptb_tokenize(caption) for caption in captions] for captions in images]
    result = {number: [" ".join(tokens)] for number, tokens in enumerate(hypotheses)}
    truth = {number: [" ".join(tokens) for tokens in captions] for number, captions in enumerate(references)}
    worst = 0.0
    for name, function, theirs in (
        ("BLEU-1 to 4", lambda: bleu(hypotheses, references)["per_image"]["bleu_4"], "bleu.bleu.Bleu"),
        ("ROUGE-L", lambda: rouge_l(hypotheses, references)["per_image"], "rouge.rouge.Rouge"),
        ("CIDEr-D", lambda: cider(hypotheses, references)["per_image"], "cider.cider.Cider"),
    ):
        functions = {"ours": function}
        if toolkit:
            module, _, scorer = f"pycocoevalcap.{theirs}".rpartition(".")
            make = getattr(importlib.import_module(module), scorer)
            functions["toolkit"] = partial(toolkit_scores, make, truth, result)
        seconds[name], scores = median_seconds(functions, rounds)
        if toolkit:
            per_image = scores["toolkit"][3] if name.startswith("BLEU") else scores["toolkit"]
            worst = max(worst, float(np.abs(np.array(scores["ours"]) - per_image).max()))
    seconds["all"] = {side: sum(values[side] for values in seconds.values()) for side in functions}

    print(f"Evaluation of {len(images):,} images with 5 references, {sum(map(len, hypotheses)):,} predicted words:\n")
    table("step", "ours, s", *(["toolkit, s", "times faster"] if toolkit else []))
    for name, values in seconds.items():
        cells = [f"{values['toolkit']:.2f}", f"{values['toolkit'] / values['ours']:.1f}"] if toolkit else []
        row(name, f"{values['ours']:.3f}", *cells)
    if toolkit:
        print(f"\nLargest difference of a value of an image (BLEU-4, ROUGE-L, CIDEr-D): {worst:.1e}")


def toolkit_scores(make: Callable[[], Any], truth: dict, result: dict) -> Any:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # BLEU prints its sums
        return make().compute_score(truth, result)[1]


def compare_rewards(images: Images, batch_sizes: list[int], rounds: int, toolkit: bool) -> None:
    """CIDEr-D of batches of five captions an image; document frequencies are those of all the images."""
    references = [[ptb_tokenize(caption) for caption in captions] for captions in images]
    started = time.perf_counter()
    scorer = CiderScorer(references)
    cooked = time.perf_counter() - started
    generator = random.Random(0)

    def batch_of(size: int) -> tuple[list[int], list[list[str]]]:
        numbers = [number for number in generator.sample(range(len(images)), size // 5) for _ in range(5)]
        return numbers, [references[(number + 1) % len(images)][i % 5] for i, number in enumerate(numbers)]

    print(f"\nCIDEr-D rewards; ours cooks {len(images):,} images x 5 references once, in {cooked:.2f} s:\n")
    theirs = ["toolkit, ms", "times faster", "toolkit with cooked references, ms", "times faster"]
    table("captions", "ours, ms", *(theirs if toolkit else []))
    if toolkit:
        texts = [[" ".join(tokens) for tokens in captions] for captions in references]
        score_batch = toolkit_rewards(texts)
    worst = 0.0
    for size in batch_sizes:
        batches = [batch_of(size) for _ in range(rounds)]
        ours, scores = median_of_batches(scorer, [(captions, numbers) for numbers, captions in batches])
        cells = []
        if toolkit:
            joined = [([" ".join(tokens) for tokens in captions], numbers) for numbers, captions in batches]
            for cooked in (False, True):
                theirs, values = median_of_batches(partial(score_batch, cooked=cooked), joined)
                cells += [f"{1000 * theirs:.1f}", f"{theirs / ours:.1f}"]
            worst = max(worst, *(float(np.abs(mine - its).max()) for mine, its in zip(scores, values, strict=True)))
        row(str(size), f"{1000 * ours:.2f}", *cells)
    if toolkit:
        print(
            "\nThe toolkit's `CiderScorer` knows no frequencies but those of its references: as it is, it cooks and\n"
            "counts those of every batch. With cooked references it is given both, and its values are ours\n"
            f"(largest difference {worst:.1e})."
        )


def toolkit_rewards(texts: list[list[str]]) -> Callable[..., list[float]]:
    """Scores a batch by the toolkit's `CiderScorer`, as it is or with references and frequencies prepared."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer as ToolkitScorer
    from pycocoevalcap.cider.cider_scorer import cook_refs, cook_test

    cooked_references = [cook_refs(captions) for captions in texts]
    frequencies = Counter(
        itertools.chain.from_iterable(set(itertools.chain.from_iterable(captions)) for captions in cooked_references)
    )

    def score(captions: list[str], numbers: list[int], cooked: bool) -> list[float]:
        scorer = ToolkitScorer()
        if not cooked:
            for caption, number in zip(captions, numbers, strict=True):
                scorer += (caption, texts[number])
            return scorer.compute_score()[1].tolist()
        # It takes their number for that of the images in all; those beyond the captions are not looked at.
        scorer.crefs = [cooked_references[number] for number in numbers] + [[]] * (len(texts) - len(numbers))
        scorer.ctest = [cook_test(caption) for caption in captions]
        scorer.document_frequency = frequencies
        return scorer.compute_cider()

    return score


def measure_memory(images: Images, sizes: list[int]) -> None:
    """What `CiderScorer` holds of the references of ever more images, and a line through it."""
    tokens = [[ptb_tokenize(caption) for caption in captions] for captions in images]
    print("\nMemory of cooked references (numpy and Python objects, tracemalloc; not the captions that are given):\n")
    table("images x 5", "n-grams", "held, MiB", "peak while cooking, MiB")
    held, peaks = [], []
    for size in sizes:
        references = recombine(tokens, size)
        tracemalloc.start()
        scorer = CiderScorer(references)
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        held.append(now / 2**20)
        peaks.append(peak / 2**20)
        row(f"{size:,}", f"{len(scorer.ngrams):,}", f"{held[-1]:.0f}", f"{peaks[-1]:.0f}")
    lines = [np.polyfit(sizes, values, 1) for values in (held, peaks)]
    at = [np.polyval(line, KARPATHY_TRAIN) for line in lines]
    origin = f"beyond {len(images):,} images, halves of two real captions" if max(sizes) > len(images) else "all real"
    print(
        f"\nExtrapolated, not measured: {KARPATHY_TRAIN:,} images x 5 would hold {at[0]:.0f} MiB, with a peak of "
        f"{at[1]:.0f} MiB\n(lines of {1000 * lines[0][0]:.1f} and {1000 * lines[1][0]:.1f} MiB per 1,000 images). "
        f"No captions are repeated to fill up: {origin}.\nThe more captions, the fewer n-grams are new, so "
        "a line rather overestimates what is held."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=SHARED, help="folder with parquet files of captions")
    parser.add_argument("--images", type=int, default=5000, help="images of the evaluation")
    parser.add_argument("--rounds", type=int, default=3, help="evaluations of each side")
    parser.add_argument("--memory_sizes", type=int, nargs="+", default=[5000, 10_000, 15_000, 25_000])
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    args = parser.parse_args()
    if args.smoke:
        args.images, args.rounds, args.memory_sizes = 200, 1, [100, 200]
    toolkit = importlib.util.find_spec("pycocoevalcap") is not None and shutil.which("java") is not None
    if not toolkit:
        print("`pycocoevalcap` or Java is not there: ours alone.\n")
    images = read_images(args.data)
    evaluated = list(itertools.islice(itertools.cycle(images), args.images))
    if args.images > len(images):
        print(f"{len(images):,} images with captions, repeated to {args.images:,}.\n")
    compare_evaluations(evaluated, args.rounds, toolkit)
    compare_rewards(evaluated, [50, 100] if args.smoke else [50, 100, 250, 500], 2 if args.smoke else 15, toolkit)
    measure_memory(images, args.memory_sizes)


if __name__ == "__main__":
    main()
