"""Does a caption name the objects, attributes and relations that people name? SPICE (ECCV 2016), run in Java.

The jar of the optional package `pycocoevalcap` parses captions with models of Stanford CoreNLP 3.6.0. These come with
no package: unpack `stanford-corenlp-full-2015-12-09.zip`, and give its folder as `models_dir` or in the environment
variable `HF_GROUNDING_SPICE_MODELS`.

The toolkit keeps parses of captions in a database beside its jar. Here there is none: it changes no score, takes native
code, and each call would start it empty.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._captions import Caption, Tokens, read_captions
from ._java import LOCALE, JavaMetricUnavailable, check_jar, java_executable, java_failure, toolkit_folder

MODELS_VARIABLE = "HF_GROUNDING_SPICE_MODELS"
MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
CATEGORIES = ("Relation", "Cardinality", "Attribute", "Size", "Color", "Object")
LAST_JAVA = 14  # the jar writes its results with the JavaScript engine, which Java 15 no longer has


def spice(
    predictions: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    *,
    models_dir: str | os.PathLike | None = None,
    timeout: float = 3600.0,
) -> dict[str, Any]:
    r"""SPICE as the COCO toolkit computes it: F-score of scene graph tuples, after its tokenisation of the captions.

    Takes minutes for thousands of images, 8 GB of memory, and Java 8 to 14.

    Args:
        predictions, references: As in `bleu`.
        models_dir (path, *optional*): Folder with `stanford-corenlp-3.6.0.jar` and its `-models.jar`. Default: the
            environment variable `HF_GROUNDING_SPICE_MODELS`, then where the toolkit puts them.
        timeout (`float`): Seconds that Java may take.

    Returns:
        `dict` with "spice" in [0, 1], the mean over images; "per_image", one value each; "by_category", the mean for
        tuples of one kind ("relation", "cardinality", "attribute", "size", "color", "object") over the images whose
        references have any, NaN if there are none; "count", the images.

    Raises:
        JavaMetricUnavailable: If Java, `pycocoevalcap` or the models are missing, or Java is too new.
        RuntimeError: If Java fails; shows what it wrote.
        TimeoutError: If it takes longer than `timeout`.
        ValueError: As in `bleu`.
    """
    hypotheses, read = read_captions(predictions, references)
    images = [
        {"image_id": image, "test": _sentence(prediction), "refs": [_sentence(caption) for caption in captions]}
        for image, (prediction, captions) in enumerate(zip(hypotheses, read, strict=True))
    ]
    java, class_path = _find_java_and_jars(models_dir)
    with tempfile.TemporaryDirectory(prefix="hf_grounding_spice_") as folder, tempfile.TemporaryFile() as stderr:
        asked, answered = Path(folder) / "captions.json", Path(folder) / "scores.json"
        asked.write_text(json.dumps(images), encoding="ascii")  # Java reads it in the encoding of the system
        command = [java, "-Xmx8G", *LOCALE, f"-Djava.io.tmpdir={folder}", "-cp", class_path]
        command += ["edu.anu.spice.SpiceScorer", str(asked), "-out", str(answered), "-subset", "-silent"]
        try:
            ended = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"SPICE of {len(images)} captions took Java more than `timeout` = {timeout:g} seconds; it was stopped."
            ) from None
        if ended.returncode:
            raise java_failure("SPICE", f"Java ended with exit code {ended.returncode}", stderr)
        try:
            return _read_scores(answered.read_text(encoding="utf-8"), len(images))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise java_failure("SPICE", f"Java's results cannot be read ({error!r})", stderr) from error


def _find_java_and_jars(models_dir: str | os.PathLike | None) -> tuple[str, str]:
    """Path of `java`, and the class path; `JavaMetricUnavailable` says what is missing."""
    java = java_executable("SPICE")
    toolkit = toolkit_folder("SPICE", "spice")
    jar = check_jar("SPICE", toolkit / "spice-1.0.jar")
    folder = Path(models_dir or os.environ.get(MODELS_VARIABLE) or toolkit / "lib").resolve()
    missing = [name for name in MODELS if not (folder / name).is_file()]
    if missing:
        raise JavaMetricUnavailable(
            f"SPICE needs the models of Stanford CoreNLP 3.6.0, and '{folder}' has no {' and no '.join(missing)}: "
            "unpack https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip and give its folder "
            f"as `models_dir` or in the environment variable {MODELS_VARIABLE}."
        )
    version = subprocess.run([java, "-version"], capture_output=True, text=True, errors="replace", check=False).stderr
    number = re.search(r'version "(?:1\.)?(\d+)', version)
    if number and int(number[1]) > LAST_JAVA:
        raise JavaMetricUnavailable(
            f"SPICE needs Java 8 to {LAST_JAVA}, and '{java}' is Java {number[1]}, which has no JavaScript engine to "
            "write the results with: install Java 8 and put its bin folder first on `PATH`."
        )
    # The jar's manifest adds the other libraries, which are beside it.
    return java, os.pathsep.join(map(str, [jar, *(folder / name for name in MODELS)]))


def _read_scores(content: str, num_images: int) -> dict[str, Any]:
    """The result of `spice` from what the jar writes: for each image {"image_id", "scores": {"All": {"f"}, ...}}."""
    scores = {item["image_id"]: item["scores"] for item in json.loads(content)}
    if set(scores) != set(range(num_images)):
        raise ValueError(f"they are of {len(scores)} images, not of {num_images}")
    per_image = [float(scores[image]["All"]["f"]) for image in range(num_images)]
    by_category = {}
    for name in CATEGORIES:
        values = [scores[image][name]["f"] for image in range(num_images)]
        defined = [value for value in values if value is not None]  # NaN, where no reference has such a tuple
        by_category[name.lower()] = float(np.mean(defined)) if defined else math.nan
    return {"spice": float(np.mean(per_image)), "per_image": per_image, "by_category": by_category, "count": num_images}


def _sentence(tokens: Tokens) -> str:
    return " ".join(map(str, tokens))
