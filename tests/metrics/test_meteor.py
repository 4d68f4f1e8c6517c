"""METEOR: the COCO toolkit's values where Java and its jar are, and the Java process, with a stub that plays it."""

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from hf_grounding.metrics._java import JavaMetricUnavailable
from hf_grounding.metrics.meteor import MeteorProcess, _processes, meteor

needs_java = pytest.mark.skipif(
    shutil.which("java") is None or find_spec("pycocoevalcap") is None,
    reason="needs `java` on PATH and the package pycocoevalcap",
)
needs_stub = pytest.mark.skipif(os.name == "nt", reason="the stub is a script with a `#!` line")

CAT, CATS = [["a", "cat"]], [[["a", "cat"], ["the", "cat"]]]
# Answers as the jar does, but the score is its process id, which tells the processes apart.
STUB = """#!{python} -S
import os, sys, time
for number, line in enumerate(sys.stdin):
    mode = os.environ.get("STUB")
    if mode == "hang":
        time.sleep(60)
    if mode == "die" and number == 1:
        sys.exit("Exception in thread main: out of stub")
    fields = line.split("|||")
    if mode == "error":
        print("Error: specify stub", flush=True)
    elif fields[0] == "SCORE ":
        print("1.0 " * 23, flush=True)
    else:
        print((str(os.getpid()) + "\\n") * len(fields), end="", flush=True)
print("not to be shown", file=sys.stderr)
"""


@pytest.fixture
def own_process(monkeypatch):
    """For a test that changes what `java` is; the others share one process, as programs do."""
    with MeteorProcess() as process:
        monkeypatch.setitem(_processes, os.getpid(), process)
        yield process


@pytest.fixture
def stub(own_process: MeteorProcess, tmp_path: Path, monkeypatch) -> None:
    """A `java` that needs no Java, and a toolkit without its jars' content."""
    folder = tmp_path / "pycocoevalcap" / "meteor"
    (folder / "data").mkdir(parents=True)
    for name in ("../__init__.py", "meteor-1.5.jar", "data/paraphrase-en.gz"):
        (folder / name).touch()
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(STUB.format(python=sys.executable))
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(java.parent))
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict:
    return json.loads((golden_dir / "caption_metrics.json").read_text())


@needs_java
def test_golden_corpus_and_every_image_are_the_toolkits(golden):
    result = meteor(golden["hypotheses"], golden["references"])
    assert result["meteor"] == pytest.approx(golden["scores"]["corpus"]["METEOR"], abs=1e-9)
    assert result["per_image"] == pytest.approx(golden["scores"]["per_image"]["METEOR"], abs=1e-9)
    assert result["count"] == len(golden["references"])


@needs_java
def test_a_second_call_in_the_same_process_gives_the_same(golden):
    first, second = (meteor(golden["hypotheses"], golden["references"]) for _ in range(2))
    assert first == second


@needs_java
def test_tokens_are_taken_as_they_are(golden):
    predictions = [caption.split() for caption in golden["tokenized_hypotheses"]]
    references = [[caption.split() for caption in captions] for captions in golden["tokenized_references"]]
    assert meteor(predictions, references) == meteor(golden["hypotheses"], golden["references"])


@needs_java
@pytest.mark.parametrize("empty", ["", [], "...", "|||", "\n"])
def test_an_empty_prediction_scores_0_and_leaves_the_others_alone(empty):
    references = [["a cat sleeps"], ["a dog"], ["two birds fly"]]
    scores = meteor(["a cat", empty, "birds fly"], references)["per_image"]
    without = meteor(["a cat", "birds fly"], references[::2])["per_image"]
    assert scores == [without[0], 0.0, without[1]]


@needs_java
@pytest.mark.parametrize("captions", [[[]], [["\n", "EVAL ||| 1"], ["a", "cat"]]])
def test_references_do_not_break_the_protocol(captions):
    expected = meteor(CAT, CATS)["per_image"]
    assert meteor(CAT * 2, [captions, *CATS])["per_image"][1:] == expected


@needs_java
def test_text_other_than_english_reaches_java_whole():
    # One letter of an accented word lost to a wrong encoding would give less than identical words.
    same = meteor(["un café naïve 猫"], [["un café naïve 猫"]])["meteor"]
    assert same == meteor(["un cafe naive cat"], [["un cafe naive cat"]])["meteor"]


@needs_java
def test_the_language_of_the_system_does_not_matter(golden, own_process, monkeypatch):
    # In a German locale the jar cannot read its own numbers.
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    result = meteor(golden["hypotheses"], golden["references"])
    assert result["meteor"] == pytest.approx(golden["scores"]["corpus"]["METEOR"], abs=1e-9)


@needs_java
def test_java_is_stopped_when_time_is_over_and_started_again():
    expected = meteor(CAT, CATS)
    many = 20_000  # take seconds
    with pytest.raises(TimeoutError, match=r"METEOR of 20000 captions took Java more than `timeout` = 0\.05 seconds"):
        meteor(CAT * many, CATS * many, timeout=0.05)
    assert meteor(CAT, CATS) == expected


@needs_java
def test_java_killed_between_two_calls_is_started_again():
    expected = meteor(CAT, CATS)
    java = _processes[os.getpid()]._java
    java.kill()
    java.wait()
    assert meteor(CAT, CATS) == expected


@needs_stub
def test_one_process_serves_all_calls_and_says_nothing(stub, capfd):
    assert len({meteor(CAT, CATS)["meteor"] for _ in range(3)}) == 1
    assert capfd.readouterr() == ("", "")


@needs_stub
def test_leaving_the_context_ends_java(stub):
    with MeteorProcess() as process:
        first, _ = process.score(CAT, CATS)
        java = process._java
    assert java.returncode is not None
    second, _ = process.score(CAT, CATS)  # and it may be used again
    process.close()
    assert first != second


@needs_stub
def test_questions_and_answers_larger_than_any_pipe(stub):
    many = 20_000
    result = meteor(CAT * many, [[["word"] * 100]] * many, timeout=60)
    assert result["count"] == len(result["per_image"]) == many


@needs_stub
def test_threads_share_one_process(stub):
    results = []
    threads = [
        threading.Thread(target=lambda size=size: results.append((size, meteor(CAT * size, CATS * size))))
        for size in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(size, size) for size in range(1, 9)} == {(size, result["count"]) for size, result in results}
    assert len({result["meteor"] for _, result in results}) == 1


@needs_stub
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_java_of_its_own(stub):
    before = meteor(CAT, CATS)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(meteor, (CAT, CATS))["meteor"] != before["meteor"]
    assert meteor(CAT, CATS) == before


@needs_stub
def test_java_that_dies_shows_what_it_wrote(stub, monkeypatch):
    monkeypatch.setenv("STUB", "die")
    with pytest.raises(RuntimeError, match=r"exit code 1\) after 1 of 50000 answers[^$]*thread main: out of stub"):
        meteor(CAT * 50_000, CATS * 50_000)
    monkeypatch.delenv("STUB")
    assert meteor(CAT, CATS)["count"] == 1


@needs_stub
def test_an_error_in_place_of_an_answer_is_raised(stub, monkeypatch):
    monkeypatch.setenv("STUB", "error")
    with pytest.raises(RuntimeError, match="METEOR failed: Java answered 'Error: specify stub'"):
        meteor(CAT, CATS)


@needs_stub
@pytest.mark.parametrize("many", [1, 50_000])
def test_java_that_hangs_is_stopped(stub, monkeypatch, many):
    monkeypatch.setenv("STUB", "hang")
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.5 seconds"):
        meteor(CAT * many, CATS * many, timeout=0.5)
    assert time.monotonic() - start < 10


@needs_stub
def test_an_interrupted_call_leaves_nothing_for_the_next(stub, own_process, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    before, _ = own_process.score(CAT, CATS)
    module = sys.modules["hf_grounding.metrics.meteor"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "islice", interrupt)
        with pytest.raises(KeyboardInterrupt):
            own_process.score(CAT, CATS)
    after, scores = own_process.score(CAT, CATS)
    assert after != before
    assert len(scores) == 1


def test_missing_java_is_said(own_process, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        JavaMetricUnavailable, match="METEOR needs Java, and there is no `java` on `PATH`: install a JRE"
    ):
        meteor(["a"], [["a"]])


@needs_stub
def test_missing_package_is_said(stub, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(JavaMetricUnavailable, match=r'pip install "hf_grounding\[coco\]"'):
        meteor(["a"], [["a"]])


@needs_stub
@pytest.mark.parametrize("name", ["meteor-1.5.jar", "data/paraphrase-en.gz"])
def test_missing_file_of_the_package_is_said(stub, tmp_path, name):
    (tmp_path / "pycocoevalcap" / "meteor" / name).unlink()
    with pytest.raises(JavaMetricUnavailable, match=f"METEOR needs '.*{name}', which is missing: pip install"):
        meteor(["a"], [["a"]])


@pytest.mark.parametrize(
    "predictions, references, problem",
    [(["a"], [], "predictions for references of 0"), ([], [], "nothing to score"), ([3], [["a"]], "Prediction 0")],
)
def test_wrong_input_is_said_before_java_is_needed(predictions, references, problem):
    with pytest.raises(ValueError, match=problem):
        meteor(predictions, references)


@needs_java
def test_half_a_character_as_cut_captions_have_does_not_crash():
    assert meteor(["a \ud83d man"], [["a man"]])["meteor"] > 0
