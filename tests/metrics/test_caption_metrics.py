"""All caption metrics at once: those of the single functions, what is missing named, and two processes like one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_grounding.metrics import bleu, cider, compute_caption_metrics, grounding_f1, rouge_l, vqa_accuracy

ROOT = Path(__file__).resolve().parents[2]
REFERENCES = [
    ["A man rides a horse .", "a man on a brown horse"],
    ["Two dogs run on the grass .", "dogs playing"],
    ["a red car in the street", "The car is parked ."],
]
PREDICTIONS = ["a man on a horse", "two dogs playing on grass", "a red bus"]
PURE = ("bleu", "rouge_l", "cider_d")


def test_it_has_the_values_of_every_single_metric():
    result = compute_caption_metrics(PREDICTIONS, REFERENCES, metrics=PURE)
    alone = [function(PREDICTIONS, REFERENCES) for function in (bleu, rouge_l, cider)]
    assert {name: result[name] for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4")} == {
        name: alone[0][name] for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
    }
    assert (result["rouge_l"], result["cider_d"]) == (alone[1]["rouge_l"], alone[2]["cider_d"])
    assert result["per_image"] == alone[0]["per_image"] | {
        "rouge_l": alone[1]["per_image"],
        "cider_d": alone[2]["per_image"],
    }
    assert (result["count"], result["absent"]) == (3, {})


def test_without_java_its_metrics_are_absent_and_say_why(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys.modules["hf_grounding.metrics.meteor"], "_processes", {})  # none that still runs
    result = compute_caption_metrics(PREDICTIONS, REFERENCES)
    assert set(result["absent"]) == {"meteor", "spice"}
    assert all("ava" in reason or "pycocoevalcap" in reason for reason in result["absent"].values())
    assert not {"meteor", "spice"} & (result.keys() | result["per_image"].keys())
    assert result["cider_d"] > 0


def test_where_java_fails_the_other_metrics_are_kept(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap.meteor")
    java = tmp_path / "java"  # what stands in for it on a system without a runtime
    java.write_text("#!/bin/sh\necho 'Unable to locate a Java Runtime.' >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sys.modules["hf_grounding.metrics.meteor"], "_processes", {})  # none that still runs
    result = compute_caption_metrics(PREDICTIONS, REFERENCES, metrics=["bleu", "meteor"])
    assert result["bleu_1"] > 0
    assert "Unable to locate a Java Runtime" in result["absent"]["meteor"]
    assert "meteor" not in result["per_image"]


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match=r"'cider'\. Did you mean 'cider_d'"):
        compute_caption_metrics(PREDICTIONS, REFERENCES, metrics=["cider"])
    with pytest.raises(ValueError, match="`metrics` must be a list of names, got the string 'bleu'"):
        compute_caption_metrics(PREDICTIONS, REFERENCES, metrics="bleu")
    with pytest.raises(ValueError, match="`metrics` is empty; name one or more"):
        compute_caption_metrics(PREDICTIONS, REFERENCES, metrics=[])
    assert "bleu_1" in compute_caption_metrics(PREDICTIONS, REFERENCES, metrics=iter(["bleu"]))


SCRIPT = """
import json, os, sys
from accelerate import PartialState
from hf_grounding.metrics import compute_caption_metrics, gather_by_id, grounding_f1, vqa_accuracy
data = json.load(open(sys.argv[1]))
state = PartialState()
ids, captions, references = data["ids"], data["captions"], data["references"]
share = -(-len(ids) // state.num_processes)
rows = [row % len(ids) for row in range(state.process_index * share, (state.process_index + 1) * share)]
def gathered(values):
    return gather_by_id([ids[row] for row in rows], [values[row] for row in rows], order=ids)
result = {
    "captions": compute_caption_metrics(gathered(captions), references, metrics=["bleu", "rouge_l", "cider_d"]),
    "answers": vqa_accuracy(gathered(data["answers"]), data["people"]),
    "grounding": grounding_f1(gathered(data["grounded"]), data["boxes"]),
}
if state.is_main_process:
    json.dump(result, open(sys.argv[2], "w"))
"""


def test_two_processes_have_the_digits_of_one(tmp_path):
    script, data = tmp_path / "script.py", tmp_path / "data.json"
    script.write_text(SCRIPT)
    words = {"tokens": ["a", "man"], "classes": ["man"], "indices": [1], "boxes": [[0, 0, 9, 9]]}
    content = {
        "ids": ["x", "a", "m"],
        "captions": PREDICTIONS,
        "references": REFERENCES,
        "answers": ["yes", "2", "red"],
        "people": [["yes"] * 3 + ["no"] * 7, ["two"] * 10, ["red"] * 9 + ["blue"]],
        "grounded": [{"classes": ["man"], "boxes": [[0, 0, 9, y]]} for y in (3, 8, 9)],
        "boxes": [[words], [words, words], [words]],
    }
    data.write_text(json.dumps(content))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *(str(script), str(data), str(tmp_path / "two.json")),
        ],
        env=environment,
        check=True,
        capture_output=True,
    )
    expected = {
        "captions": compute_caption_metrics(PREDICTIONS, REFERENCES, metrics=PURE),
        "answers": vqa_accuracy(content["answers"], content["people"]),
        "grounding": grounding_f1(content["grounded"], content["boxes"]),
    }
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads(json.dumps(expected))


def test_examples_that_no_process_has_are_named():
    from hf_grounding.metrics import gather_by_id

    assert gather_by_id([1, 2, 1], ["a", "b", "c"], order=[2, 1]) == ["b", "a"]
    with pytest.raises(ValueError, match=r"No process has a value for 1 examples, such as \[3\]"):
        gather_by_id([1, 2], ["a", "b"], order=[1, 3])
    with pytest.raises(ValueError, match="Got 1 ids for 2 values"):
        gather_by_id([1], ["a", "b"], order=[1])
