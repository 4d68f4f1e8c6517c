"""`hf-grounding answer`: answers with probabilities, a picture, and one line for mistakes."""

import json
import re

import pytest
from PIL import Image

from tests.tiny_answerer import ANSWERS, QUESTIONS, save_answerer
from tests.tiny_captioner import save_captioner, save_sources

from .conftest import run


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return save_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def model(sources, tmp_path_factory):
    return save_answerer(tmp_path_factory.mktemp("models") / "answerer", sources.extraction)


@pytest.fixture
def photo(tmp_path):
    Image.effect_noise((90, 60), 80).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_it_prints_the_likeliest_answers_and_the_region_that_counted_most(photo, model):
    answer = run("answer", photo, QUESTIONS[0], "--model", model, "--top", 2)
    assert answer.code == 0, answer.err
    title, heading, *rows, note = answer.out.rstrip().splitlines()
    assert title.strip() == QUESTIONS[0]
    assert heading.split() == ["answer", "probability"]
    assert len(rows) == 2
    assert all(row.split()[0] in ANSWERS for row in rows)
    assert re.fullmatch(r"Region that counted most: \d+, \d+, \d+, \d+, weight [01]\.\d\d\.", note.strip())
    assert answer.err == ""


def test_with_json_it_prints_one_line_for_each_question(photo, model):
    answer = run("answer", photo, *QUESTIONS, "--model", model, "--json")
    assert answer.code == 0, answer.err
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [line["question"] for line in lines] == QUESTIONS
    assert {each["answer"] for each in lines[0]["answers"]} == set(ANSWERS)
    assert lines[0]["photo"] == str(photo)
    assert [word["phrase"] for word in lines[1]["groundings"][1:]] == ["what", "is", "on", "the", "grass"]


def test_a_question_may_be_longer_than_a_file_name(photo, model):
    answer = run("answer", photo, "what is on the grass " * 15, "--model", model, "--json")
    assert answer.code == 0, answer.err
    assert len(json.loads(answer.out)["groundings"]) == 1 + 14


def test_it_draws_the_regions_and_the_answers(photo, model, tmp_path):
    answer = run("answer", photo, QUESTIONS[0], "--model", model, "--draw", tmp_path / "new" / "answer.png")
    assert answer.code == 0, answer.err
    assert Image.open(tmp_path / "new" / "answer.png").width == 1000


def test_regions_of_another_source_may_be_named(photo, model, sources):
    options = ("--grid", 2, "--backbone", sources.backbone, "--concept_detector", sources.concept_detector)
    line = json.loads(run("answer", photo, QUESTIONS[0], "--model", model, *options, "--json").out)
    x1, _, x2, _ = line["groundings"][0]["box"]
    assert x2 - x1 == 45


def test_mistakes_are_named_in_one_line(photo, model, sources, tmp_path):
    captioner = save_captioner(tmp_path / "captioner", sources.extraction)
    drawn = run("answer", photo, *QUESTIONS, "--model", model, "--draw", "out.png")
    assert drawn.code == 2
    assert "--draw draws one answer, got 2 questions" in drawn.err
    both = run("answer", photo, QUESTIONS[0], "--model", model, "--grid", 2, "--detector", "yolo")
    assert both.code == 2
    assert "Give either --detector" in both.err
    other = run("answer", photo, QUESTIONS[0], "--model", captioner)
    assert other.code == 1
    assert "cannot be loaded: it is a mia, no mia_vqa" in other.err
    second = run("answer", photo, photo, QUESTIONS[0], "--model", model)
    assert second.code == 2
    assert "is a file. Give one photo, and then questions about it." in second.err
    below = run("answer", photo, QUESTIONS[0], "--model", model, "--draw", photo / "out.png")
    assert below.code == 2
    assert "is a file and no folder" in below.err
    misspelt = run("answer", photo, QUESTIONS[0], "--model", model, "--backbone", f"{sources.backbone}s")
    assert misspelt.code == 1
    assert f"Did you mean '{sources.backbone}'?" in misspelt.err
    empty = run("answer", photo, QUESTIONS[0], " ? ", "--model", model)
    assert empty.code == 1
    assert "has no words: ' ? '" in empty.err


def test_words_that_the_model_does_not_know_are_told(photo, model):
    answer = run("answer", photo, "how many zebras, on the moon ?", "--model", model)
    assert answer.code == 0
    assert answer.err == "The model does not know: zebras, moon.\n"
