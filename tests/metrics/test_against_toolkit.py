"""Tokens, BLEU, ROUGE-L, CIDEr-D and METEOR beside the COCO toolkit and its Java tokeniser, on real captions.

They need `../shared/data`, Java and `pip install pycocoevalcap` (its jars come with it).
"""

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hf_grounding.metrics.bleu import bleu
from hf_grounding.metrics.cider import cider
from hf_grounding.metrics.meteor import meteor
from hf_grounding.metrics.ptb_tokenizer import ptb_tokenize
from hf_grounding.metrics.rouge_l import rouge_l

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def toolkit() -> Path:
    """Folder of `pycocoevalcap`."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs `pycocoevalcap`, which is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


@pytest.fixture(scope="module")
def java_tokenize(toolkit, tmp_path_factory) -> Callable[[list[str]], list[list[str]]]:
    """What the toolkit's `PTBTokenizer` does, without its files in the package's own folder."""
    if shutil.which("java") is None:
        pytest.skip("needs Java, which is not there")
    jar = toolkit / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    punctuations = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer").PUNCTUATIONS
    path = tmp_path_factory.mktemp("captions") / "captions.txt"

    def tokenize(captions: list[str]) -> list[list[str]]:
        path.write_bytes("\n".join(caption.replace("\n", " ") for caption in captions).encode())
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
        run = subprocess.run([*command, "-preserveLines", "-lowerCase", str(path)], capture_output=True, check=True)
        lines = run.stdout.decode().removesuffix("\n").split("\n")
        assert len(lines) == len(captions)
        return [[token for token in line.rstrip().split(" ") if token not in {*punctuations, ""}] for line in lines]

    return tokenize


def captions_of(parquet: Path) -> list[list[str]]:
    return pq.read_table(parquet, columns=["captions"])["captions"].to_pylist()


def differences(captions: list[str], expected: list[list[str]]) -> list[tuple[str, list[str], list[str]]]:
    """Captions whose tokens are not those expected, with both."""
    both = zip(captions, map(ptb_tokenize, captions), expected, strict=True)
    return [(caption, ours, theirs) for caption, ours, theirs in both if ours != theirs]


def scorer(module: str, name: str):
    return getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)()


def referit_texts(archive: Path) -> list[str]:
    """Titles, descriptions, notes and places of the `.eng` files, each on one line."""
    texts = []
    with tarfile.open(archive) as files:
        for member in files:
            file = files.extractfile(member)
            if file is not None and member.name.endswith(".eng"):
                fields = re.findall(
                    r"<(TITLE|DESCRIPTION|NOTES|LOCATION)>(.*?)</\1>", file.read().decode("latin-1"), re.S
                )
                texts += [" ".join(text.splitlines()) for _, text in fields]
    return texts


def test_flickr8k_val_has_the_toolkits_tokens_and_scores(java_tokenize, data_dir):
    images = captions_of(data_dir / "flickr8k_entities" / "val.parquet")
    assert len(images) == 966
    assert {len(captions) for captions in images} == {5}
    captions = [caption for image in images for caption in image]
    tokens = java_tokenize(captions)
    assert differences(captions, tokens) == []

    texts = [" ".join(words) for words in tokens]
    results = {row: texts[5 * row : 5 * row + 1] for row in range(len(images))}
    ground_truth = {row: texts[5 * row + 1 : 5 * row + 5] for row in range(len(images))}
    predictions, references = [image[0] for image in images], [image[1:] for image in images]

    corpus, per_image = scorer("bleu.bleu", "Bleu").compute_score(ground_truth, results, verbose=0)
    ours = bleu(predictions, references)
    for n in range(4):
        assert ours[f"bleu_{n + 1}"] == pytest.approx(corpus[n], abs=1e-9)
        np.testing.assert_allclose(ours["per_image"][f"bleu_{n + 1}"], per_image[n], rtol=0, atol=1e-9)
    for name, result, (of_corpus, of_images) in (
        (
            "rouge_l",
            rouge_l(predictions, references),
            scorer("rouge.rouge", "Rouge").compute_score(ground_truth, results),
        ),
        (
            "cider_d",
            cider(predictions, references),
            scorer("cider.cider", "Cider").compute_score(ground_truth, results),
        ),
        (
            "meteor",
            meteor(predictions, references),
            scorer("meteor.meteor", "Meteor").compute_score(ground_truth, results),
        ),
    ):
        assert result[name] == pytest.approx(of_corpus, abs=1e-9)
        np.testing.assert_allclose(result["per_image"], of_images, rtol=0, atol=1e-9)


def test_every_caption_of_the_data_has_the_java_tokenisers_tokens(java_tokenize, data_dir):
    captions = []
    for name in ("flickr8k_entities/train", "flickr8k_entities/val", "flickr30k_entities_text/train"):
        captions += [caption for image in captions_of(data_dir / f"{name}.parquet") for caption in image]
    for path in sorted((data_dir / "coco" / "annotations").glob("captions_*.json")):
        captions += [row["caption"] for row in json.loads(path.read_text())["annotations"]]
    for path in sorted((data_dir / "coco" / "results").glob("captions_*.json")):
        captions += [row["caption"] for row in json.loads(path.read_text())]
    captions += referit_texts(data_dir / "referit" / "RefClef_Captions.tgz")
    assert len(captions) > 200_000
    different = differences(captions, java_tokenize(captions))
    assert not different, f"{len(different)} of {len(captions)} captions differ, e.g. {different[:20]}"
