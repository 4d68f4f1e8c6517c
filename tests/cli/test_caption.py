"""`hf-grounding caption`: words with boxes and weights, pictures, and one line for mistakes."""

import json
import re

import pytest
from PIL import Image

from tests.tiny_captioner import BACKBONE, save_captioner, save_sources

from .conftest import run


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return save_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def model(sources, tmp_path_factory):
    return save_captioner(tmp_path_factory.mktemp("models") / "captioner", sources.extraction)


@pytest.fixture
def photo(tmp_path):
    Image.effect_noise((90, 60), 80).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_it_prints_the_caption_and_each_word_with_box_and_weight(photo, model):
    answer = run("caption", photo, "--model", model)
    assert answer.code == 0, answer.err
    title, heading, *rows = answer.out.rstrip().splitlines()
    path, caption = title.strip().split(": ")
    assert path == str(photo)
    assert heading.split() == ["word", "box", "weight"]
    assert [row.split()[0] for row in rows] == caption.split()
    assert all(re.search(r"\d+, \d+, \d+, \d+ +[01]\.\d\d *$", row) for row in rows)
    assert answer.err == ""


def test_with_json_it_prints_one_line_for_each_photo(photo, model):
    answer = run("caption", photo, photo, "--model", model, "--num_beams", 2, "--json")
    assert answer.code == 0, answer.err
    first, second = (json.loads(line) for line in answer.out.splitlines())
    assert first == second
    assert first["photo"] == str(photo)
    assert [word["phrase"] for word in first["groundings"]] == first["caption"].split()
    assert all(len(word["box"]) == 4 and 0 <= word["score"] <= 1 for word in first["groundings"])


def test_it_draws_the_caption_and_the_iterations(photo, model, tmp_path):
    out = tmp_path / "new"
    pictures = ("--draw", out / "caption.png", "--draw_iterations", out / "iterations.jpg")
    answer = run("caption", photo, "--model", model, *pictures)
    assert answer.code == 0, answer.err
    assert Image.open(out / "caption.png").width == 1000
    assert Image.open(out / "iterations.jpg").width == 1200
    assert len(list(out.iterdir())) == 2


def test_regions_of_another_source_may_be_named(photo, model, sources):
    options = ("--grid", 2, "--backbone", sources.backbone, "--concept_detector", sources.concept_detector)
    words = json.loads(run("caption", photo, "--model", model, *options, "--json").out)["groundings"]
    assert all(word["box"][2] - word["box"][0] == 45 for word in words)


@pytest.fixture
def grounded(sources, tmp_path):
    words = {"dog": "dog", "cat": "cat", "car": "car", "grass": "grass"}
    return save_captioner(
        tmp_path / "grounded", sources.extraction, "ss_attention", words, num_object_classes=3, mia_iterations=0
    )


def test_a_grounded_captioner_tells_its_objects_as_evaluate_reads_them(photo, grounded, tmp_path):
    answer = run("caption", photo, "--model", grounded, "--draw", tmp_path / "out.png", "--json")
    assert answer.code == 0, answer.err
    told, words = json.loads(answer.out), json.loads(answer.out)["caption"].split()
    objects = [number for number, word in enumerate(words) if word in ("dog", "cat", "car", "grass")]
    assert told["idx_in_sent"] == objects
    assert told["clss"] == [words[number] for number in objects]
    assert told["bbox"] == [told["groundings"][number]["box"] for number in objects]
    assert Image.open(tmp_path / "out.png").width == 1000
    results, references = tmp_path / "results.json", tmp_path / "references.json"
    results.write_text(json.dumps([{"image_id": "1", **told}]))
    reference = {"tokens": words, "classes": told["clss"], "indices": told["idx_in_sent"], "boxes": told["bbox"]}
    references.write_text(json.dumps({"1": [reference]}))
    scores = json.loads(run("evaluate", results, "--annotations", references, "--json").out)
    assert objects
    assert scores["f1_all"] == 1


def test_a_grounded_captioner_of_other_classes_says_what_it_reads(photo, sources, tmp_path):
    model = save_captioner(tmp_path / "model", sources.extraction, "ss_attention", num_object_classes=9)
    answer = run("caption", photo, "--model", model)
    assert answer.code == 1
    assert "but the model reads 9 (`config.num_object_classes`)" in answer.err


def test_a_model_that_reads_photos_needs_no_detector(photo, sources, tmp_path):
    extraction = {"concept_detector": str(sources.concept_detector)}
    backbone = {"backbone_config": BACKBONE, "decoder_type": "visual_attention"}
    model, drawn = save_captioner(tmp_path / "model", extraction, **backbone), tmp_path / "iterations.png"
    answer = run("caption", photo, "--model", model, "--draw_iterations", drawn, "--json")
    assert answer.code == 0, answer.err
    assert len(json.loads(answer.out)["groundings"]) == 4
    assert Image.open(drawn).width == 1200


def test_words_of_a_model_without_attention_to_regions_have_no_box(photo, sources, tmp_path):
    settings = {"decoder_type": "concept_attention", "mia_iterations": 0}
    model = save_captioner(tmp_path / "model", sources.extraction, **settings)
    answer = run("caption", photo, "--model", model, "--draw", tmp_path / "out.png")
    assert answer.code == 0, answer.err
    assert answer.out.count("–") == 8
    answer = run("caption", photo, "--model", model, "--draw_iterations", tmp_path / "iterations.png")
    assert answer.code == 1
    assert "has no mutual iterative attention (`config.mia_iterations` is 0)" in answer.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["caption"], 2, "Missing argument.*photos"),
        (["caption", "{photo}"], 2, "Missing option.*--model"),
        (["caption", "{photo}", "--model", "{model}", "--draw", "out.pgn"], 2, r"--draw 'out\.pgn' must end in"),
        (
            ["caption", "{photo}", "--model", "{model}", "--draw_iterations", "x"],
            2,
            "--draw_iterations 'x' must end in",
        ),
        (
            ["caption", "{photo}", "{photo}", "--model", "{model}", "--draw", "o.png"],
            2,
            "--draw draws one photo, got 2",
        ),
        (["caption", "{photo}", "--model", "{model}", "--num_beams", "0"], 2, "--num_beams"),
        (["caption", "{photo}", "--model", "{model}", "--grid", "2", "--detector", "d"], 2, "Give either --detector"),
        (
            ["caption", "{photo}", "--model", "{model}", "--grid", "3"],
            1,
            "A grid of 3 has 9 cells, more than the 6 reg",
        ),
        (["caption", "{photo}", "--model", "{model}s"], 1, "No model folder '.*'. Did you mean '.*captioner'?"),
        (
            ["caption", "{photo}", "--model", "{other}"],
            1,
            "Model '.*' cannot be loaded: it is a concept_detector, no mia or ss_attention",
        ),
        (["caption", "{photo}s", "--model", "{model}"], 1, r"No photo '.*photo\.pngs'"),
        (
            ["caption", "{photo}", "--model", "{model}", "--detector", "{model}"],
            1,
            "The detector '.*' cannot be loaded",
        ),
        (
            ["caption", "{photo}", "--model", "{model}", "--backbone", "./no"],
            1,
            r"No backbone folder 'no'\. Give the folder of a transformers vision model",
        ),
        (["caption", "{photo}", "--model", "{model}", "--detector", "{model}s"], 1, "No detector folder '.*'. Did you"),
        (
            ["caption", "{photo}", "--model", "{model}", "--concept_detector", "{other}s"],
            1,
            "No model folder '.*'. Did",
        ),
        (["caption", "{photo}", "--model", "{model}", "--concept_detector", "{model}"], 1, "is a mia, no concept_det"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_end_with_one_line_and_no_traceback(arguments, code, message, photo, model, sources):
    places = {"photo": photo, "model": model, "other": sources.concept_detector}
    answer = run(*(argument.format(**places) for argument in arguments))
    assert answer.code == code
    assert answer.out == ""
    last = answer.err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert re.search(message, last), last
