"""SPICE: how Java is called and its results are read, with a stub that plays `java`.

The toolkit's jar was never run on captions for these tests: its CoreNLP models could not be had. `SCORES` was written
by the jar's own scoring classes (`edu.anu.spice.SpiceStats`) from tuples made by hand, so the format of the results is
the real one; parsing of captions is not tested.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import pytest

from hf_grounding.metrics._java import JavaMetricUnavailable
from hf_grounding.metrics.spice import MODELS, spice

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stub is a script with a `#!` line")


def f_scores(image: int, **scores: float | None) -> dict:
    return {"image_id": image, "scores": {name: {"f": f} for name, f in scores.items()}}


# Tuples of the prediction and of the references:
# 0: dog, (dog red), (dog ball chase) | dog, (dog red), (dog large), ball, (dog ball chase), (dog two)
# 1: girl                             | girl, (girl blue), table
# 2: none                             | cat
SCORES = [
    f_scores(0, All=0.8, Relation=1.0, Cardinality=0.0, Attribute=0.5, Size=0.0, Color=1.0, Object=1.0),
    f_scores(1, All=0.5, Relation=None, Cardinality=None, Attribute=0.0, Size=None, Color=0.0, Object=2 / 3),
    f_scores(2, All=0.0, Relation=None, Cardinality=None, Attribute=None, Size=None, Color=None, Object=0.0),
]
PREDICTIONS = ["A red dog chases a ball.", "A girl", ""]
REFERENCES = [["Two large, red dogs chase a ball!", "A dog"], ["A girl in blue at a table"], ["A cat — café"]]

STUB = """#!{python} -S
import json, os, sys, time
if sys.argv[1] == "-version":
    sys.exit(os.environ.get("STUB_VERSION", 'openjdk version "1.8.0_242"'))
mode = os.environ.get("STUB")
print("Parsing reference captions", file=sys.stderr, flush=True)
print("SPICE evaluation took: 1 s")
if mode == "fail":
    sys.exit("java.lang.NullPointerException: stub")
if mode == "hang":
    time.sleep(60)
asked = sys.argv[sys.argv.index("edu.anu.spice.SpiceScorer") + 1]
with open(os.environ["STUB_LOG"], "w") as log:
    json.dump([sys.argv[1:], os.getcwd(), json.load(open(asked))], log)
if mode != "nothing":
    with open(sys.argv[sys.argv.index("-out") + 1], "w") as file:
        file.write(os.environ["STUB_ANSWER"])
"""


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch) -> Path:
    """An installed toolkit with its own models, whose `java` answers with `SCORES`."""
    folder = tmp_path / "pycocoevalcap" / "spice"
    (folder / "lib").mkdir(parents=True)
    for name in ("../__init__.py", "spice-1.0.jar", *(f"lib/{name}" for name in MODELS)):
        (folder / name).touch()
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(STUB.format(python=sys.executable))
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(java.parent))
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "log.json"))
    monkeypatch.setenv("STUB_ANSWER", json.dumps(SCORES))
    monkeypatch.delenv("HF_GROUNDING_SPICE_MODELS", raising=False)
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return folder.resolve()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "my models"
    folder.mkdir()
    for name in MODELS:
        (folder / name).touch()
    return folder.resolve()


def command_of(toolkit: Path) -> list[str]:
    return json.loads((toolkit.parents[1] / "log.json").read_text())[0]


def class_path_of(toolkit: Path) -> list[str]:
    command = command_of(toolkit)
    return command[command.index("-cp") + 1].split(os.pathsep)


def test_means_over_images_with_undefined_categories_left_out(toolkit):
    result = spice(PREDICTIONS, REFERENCES)
    assert result["spice"] == pytest.approx((0.8 + 0.5 + 0.0) / 3)
    assert result["per_image"] == [0.8, 0.5, 0.0]
    assert result["count"] == 3
    expected = {"relation": 1, "cardinality": 0, "attribute": 0.25, "size": 0, "color": 0.5, "object": 5 / 9}
    assert result["by_category"] == pytest.approx(expected)


def test_a_category_of_no_image_is_nan(toolkit, monkeypatch):
    monkeypatch.setenv("STUB_ANSWER", json.dumps([{**SCORES[2], "image_id": 0}]))
    result = spice(["a"], [["a cat"]])
    assert math.isnan(result["by_category"]["relation"])
    assert result["by_category"]["object"] == result["spice"] == 0.0


def test_scores_are_of_the_image_they_name(toolkit, monkeypatch):
    monkeypatch.setenv("STUB_ANSWER", json.dumps(SCORES[::-1]))
    assert spice(PREDICTIONS, REFERENCES)["per_image"] == [0.8, 0.5, 0.0]


def test_java_gets_the_captions_tokenised_as_in_the_toolkit(toolkit):
    spice(PREDICTIONS, REFERENCES)
    asked = json.loads((toolkit.parents[1] / "log.json").read_text())[2]
    assert asked == [
        {
            "image_id": 0,
            "test": "a red dog chases a ball",
            "refs": ["two large red dogs chase a ball", "a dog"],
        },
        {"image_id": 1, "test": "a girl", "refs": ["a girl in blue at a table"]},
        {"image_id": 2, "test": "", "refs": ["a cat café"]},
    ]


def test_tokens_are_taken_as_they_are(toolkit):
    spice([["A", 1], ["b"], []], [[["c"]]] * 3)
    asked = json.loads((toolkit.parents[1] / "log.json").read_text())[2]
    assert [image["test"] for image in asked] == ["A 1", "b", ""]


def test_command_is_the_toolkits_without_its_cache(toolkit):
    spice(PREDICTIONS, REFERENCES)
    command = command_of(toolkit)
    assert command[0] == "-Xmx8G"
    assert "-Duser.language=en" in command
    main = command.index("edu.anu.spice.SpiceScorer")
    assert [command[main + 2], *command[main + 4 :]] == ["-out", "-subset", "-silent"]


def test_it_works_in_a_folder_of_its_own_that_is_gone_afterwards(toolkit):
    before = sorted(toolkit.rglob("*"))
    spice(PREDICTIONS, REFERENCES)
    command, folder, _ = json.loads((toolkit.parents[1] / "log.json").read_text())
    assert all(str(Path(path).resolve().parent) == os.path.realpath(folder) for path in command if ".json" in path)
    assert not Path(folder).exists()
    assert sorted(toolkit.rglob("*")) == before


def test_models_beside_the_toolkits_jar_are_found(toolkit):
    spice(PREDICTIONS, REFERENCES)
    assert class_path_of(toolkit) == [str(toolkit / name) for name in ("spice-1.0.jar", *(f"lib/{m}" for m in MODELS))]


def test_models_of_the_environment_variable_come_before_the_toolkits(toolkit, models, monkeypatch):
    monkeypatch.setenv("HF_GROUNDING_SPICE_MODELS", str(models))
    spice(PREDICTIONS, REFERENCES)
    assert class_path_of(toolkit)[1:] == [str(models / name) for name in MODELS]


def test_models_of_the_argument_come_first_also_from_a_relative_path(toolkit, models, monkeypatch):
    monkeypatch.setenv("HF_GROUNDING_SPICE_MODELS", "/nowhere")
    monkeypatch.chdir(models.parent)
    spice(PREDICTIONS, REFERENCES, models_dir=models.name)
    assert class_path_of(toolkit)[1:] == [str(models / name) for name in MODELS]


@pytest.mark.parametrize("missing", [MODELS[:1], MODELS[1:], MODELS])
def test_missing_models_are_named_with_what_to_do(toolkit, models, missing):
    for name in missing:
        (models / name).unlink()
    with pytest.raises(JavaMetricUnavailable) as raised:
        spice(PREDICTIONS, REFERENCES, models_dir=models)
    message = str(raised.value)
    assert f"'{models}' has no {' and no '.join(missing)}: unpack" in message
    assert "`models_dir`" in message
    assert "HF_GROUNDING_SPICE_MODELS" in message
    assert "\n" not in message


@pytest.mark.parametrize("version", ["17.0.15", "15", "25-ea"])
def test_java_without_javascript_is_refused_at_once(toolkit, monkeypatch, version):
    # SpiceScorer.java, at its end, calls `getEngineByName("JavaScript")`, which is null from Java 15 on.
    monkeypatch.setenv("STUB_VERSION", f'openjdk version "{version}" 2025-04-15')
    with pytest.raises(
        JavaMetricUnavailable, match=rf"Java 8 to 14, and '.*java' is Java {version[:2]}, .*install Java 8"
    ):
        spice(PREDICTIONS, REFERENCES)


@pytest.mark.parametrize("version", ['java version "1.8.0_361"', 'openjdk version "14.0.2"', "something else"])
def test_older_java_and_one_of_unknown_version_are_tried(toolkit, monkeypatch, version):
    monkeypatch.setenv("STUB_VERSION", f"Picked up JAVA_TOOL_OPTIONS: -Da=b\n{version}")
    assert spice(PREDICTIONS, REFERENCES)["count"] == 3


def test_nothing_is_printed(toolkit, capfd):
    spice(PREDICTIONS, REFERENCES)
    assert capfd.readouterr() == ("", "")


def test_java_that_fails_shows_what_it_wrote(toolkit, monkeypatch):
    monkeypatch.setenv("STUB", "fail")
    with pytest.raises(
        RuntimeError, match=r"exit code 1. Java wrote:\nParsing reference captions\njava.*Exception: stub"
    ):
        spice(PREDICTIONS, REFERENCES)


def test_java_that_hangs_is_stopped(toolkit, monkeypatch):
    monkeypatch.setenv("STUB", "hang")
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"SPICE of 3 captions took Java more than `timeout` = 0\.5 seconds"):
        spice(PREDICTIONS, REFERENCES, timeout=0.5)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("answer", ["", "[", "{}", "[]", json.dumps(SCORES[:2]), '[{"image_id": 0}]'])
def test_results_that_cannot_be_read_are_an_error_of_java(toolkit, monkeypatch, answer):
    monkeypatch.setenv("STUB_ANSWER", answer)
    with pytest.raises(
        RuntimeError, match=r"SPICE failed: Java's results cannot be read[^$]*Parsing reference captions"
    ):
        spice(PREDICTIONS, REFERENCES)


def test_results_that_are_not_there_are_an_error_of_java(toolkit, monkeypatch):
    monkeypatch.setenv("STUB", "nothing")
    with pytest.raises(RuntimeError, match="results cannot be read"):
        spice(PREDICTIONS, REFERENCES)


def test_missing_java_is_said(toolkit, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JavaMetricUnavailable, match="SPICE needs Java, and there is no `java` on `PATH`"):
        spice(PREDICTIONS, REFERENCES)


def test_missing_package_is_said(toolkit, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(JavaMetricUnavailable, match=r'pip install "hf_grounding\[coco\]"'):
        spice(PREDICTIONS, REFERENCES)


def test_missing_jar_is_said(toolkit):
    (toolkit / "spice-1.0.jar").unlink()
    with pytest.raises(JavaMetricUnavailable, match=r"SPICE needs '.*spice-1.0.jar', which is missing"):
        spice(PREDICTIONS, REFERENCES)
