"""`train`, `evaluate` and `extract-concepts` of a concept detector."""

import json

import pytest
import yaml
from PIL import Image

from hf_grounding import ConceptProcessor
from hf_grounding.processing.concepts import FUNCTION_WORDS, read_image_concepts

from .conftest import RECIPE, run


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    recipe = RECIPE | {"system": "concept_detector", "model": {"freeze_backbone": True, "num_concepts": 20}}
    recipe["backbone"] = RECIPE["backbone"] | {"levels": [-1], "feature_dir": str(folder / "features")}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    answer = run("train", folder / "tiny.yaml", "--output_dir", folder / "model", "--dropout", "0.1")
    assert answer.code == 0, answer.err
    assert "mean average precision" in answer.out
    return folder / "model"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, mode in (("7.png", "RGB"), ("12345678901.png", "L"), ("COCO_val2014_000000000042.png", "RGBA")):
        Image.effect_noise((60, 40), 90).convert("RGB").convert(mode).save(folder / name)
    return folder


def extract(photos, model, out, *options):
    return run("extract-concepts", photos, "--model", model, "--out", out, *options)


def test_evaluate_prints_the_table_and_the_protocol(detector):
    answer = run("evaluate", detector, "--split", "test")
    assert answer.code == 0, answer.err
    assert "Concepts, %" in answer.out
    assert "word frequency" in answer.out
    assert "Protocol: split test, num_images 2, words 200 commonest of the split's captions" in answer.out
    results = json.loads(run("evaluate", detector, "--json").out)
    assert results["concepts"] == json.loads((detector / "results.json").read_text())["concepts"]
    answer = run("evaluate", detector, "--min_box_area", "0.1")
    assert answer.code == 1
    assert "`min_box_area` is of phrase grounding" in answer.err


def test_photos_become_the_public_file_with_numbers_as_ids(detector, photos, tmp_path):
    out = tmp_path / "new" / "image_concepts.json"
    answer = extract(photos, detector, out, "--top", 5, "--batch_size", 2)
    assert answer.code == 0, answer.err
    assert f"3 photos: {out}" in answer.out
    concepts = read_image_concepts(out, ConceptProcessor.from_pretrained(detector).concepts)
    assert list(concepts) == [7, 42, 12345678901]
    assert all(len(words) == 5 and not set(words) & set(FUNCTION_WORDS) for words in concepts.values())


def test_a_broken_photo_stops_or_is_left_out_and_named(detector, photos, tmp_path):
    (photos / "3.png").write_bytes(b"no picture")
    stopped = extract(photos, detector, tmp_path / "out.json")
    assert stopped.code == 1
    assert "3.png' cannot be read as an image" in stopped.err
    assert not (tmp_path / "out.json").exists()
    answer = extract(photos, detector, tmp_path / "out.json", "--keep_going", "--batch_size", 1)
    assert answer.code == 1
    assert "3 photos: " in answer.out
    assert "Left out: '" in answer.err
    assert list(read_image_concepts(tmp_path / "out.json")) == [7, 42, 12345678901]


def test_a_photo_without_a_number_has_its_name_as_id(detector, photos, tmp_path):
    (photos / "7.png").rename(photos / "image7.png")
    assert extract(photos, detector, tmp_path / "out.json").code == 0
    assert list(read_image_concepts(tmp_path / "out.json")) == [42, 12345678901, "image7"]


def test_photos_with_one_id_are_refused_before_the_work(detector, photos, tmp_path):
    Image.new("RGB", (8, 8)).save(photos / "042.png")
    answer = extract(photos, detector, tmp_path / "out.json")
    assert answer.code == 1
    assert "have one id, 42; rename one" in answer.err


def test_models_that_are_none_or_another_s_are_named(trained, detector, photos, tmp_path):
    assert "No model folder" in extract(photos, tmp_path / "nothing", tmp_path / "out.json").err
    answer = extract(photos, trained.model, tmp_path / "out.json")
    assert answer.code == 1
    assert "cannot be loaded: it is a multilevel_grounding, no concept_detector" in answer.err
