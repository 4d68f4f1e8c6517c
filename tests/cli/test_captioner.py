"""`train` and `evaluate` of a captioner."""

import json

import pytest
import yaml

from .conftest import RECIPE, run

SIZES = {"hidden_size": 16, "embedding_size": 16, "decoder_hidden_size": 16, "attention_hidden_size": 8}


@pytest.fixture(autouse=True, scope="module")
def no_java():
    def meteor(*_, **__):
        raise RuntimeError("no Java here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_grounding.metrics.caption_metrics.meteor", meteor)
        yield


@pytest.fixture(scope="module")
def captioner(no_java, tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    recipe = {
        "description": "Two steps on eight scenes.",
        "system": "mia",
        "dataset": RECIPE["dataset"],
        "regions": {"max_regions": 4, "max_concepts": 4},
        "captions": {"min_count": 1},
        "model": SIZES | {"decoder_type": "up_down", "num_attention_heads": 2, "intermediate_size": 16},
        "training": RECIPE["training"],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    answer = run("train", folder / "tiny.yaml", "--output_dir", folder / "model", "--num_beams", "1")
    assert answer.code == 0, answer.err
    return folder / "model", answer


def test_train_prints_scores_beside_baselines_and_leaves_a_report(captioner):
    folder, answer = captioner
    for words in ("BLEU-4", "CIDEr-D", "this model", "consensus of similar photos", "one reference against the others"):
        assert words in answer.out
    assert "METEOR is absent: no Java here" in answer.out
    page = (folder / "report.html").read_text()
    assert page.count("<figure>") == 4  # all photos of val
    for words in ("one of every 1 photos", "training loss", "consensus of similar photos", "People: "):
        assert words in page


def test_evaluate_measures_what_training_measured(captioner):
    folder, _ = captioner
    saved = json.loads((folder / "results.json").read_text())
    again = json.loads(run("evaluate", folder, "--json").out)
    for name in ("captions", "baselines", "num_beams"):
        assert again[name] == saved[name]


def test_evaluate_prints_the_protocol_and_writes_a_report_of_its_split(captioner, tmp_path):
    folder, _ = captioner
    answer = run("evaluate", folder, "--split", "test", "--report", tmp_path / "report.html")
    assert answer.code == 0, answer.err
    assert "Protocol: split test, num_images 2, beams 1" in answer.out
    assert (tmp_path / "report.html").read_text().count("<figure>") == 2


def test_without_training_images_there_is_no_consensus_and_a_warning_says_so(captioner, tmp_path, caplog):
    folder, _ = captioner
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["dataset"]["train_split"] = "nothing"
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(recipe))
    answer = run("evaluate", folder, "--recipe", tmp_path / "other.yaml", "--json")
    assert answer.code == 0, answer.err
    assert list(json.loads(answer.out)["baselines"]) == ["one reference against the others"]
    assert "there is no consensus of similar photos" in caplog.text


def test_settings_of_phrase_grounding_are_refused(captioner):
    answer = run("evaluate", captioner[0], "--min_box_area", "0.1")
    assert answer.code == 1
    assert "`min_box_area` is of phrase grounding" in answer.err
    assert "holds a captioner" in answer.err
