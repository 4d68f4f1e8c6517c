"""What is measured beside a captioner: baselines, the same model blind; and how it is told."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage

from hf_grounding.processing.grounding import GroundedCaption, Grounding
from hf_grounding.processing.regions import Regions
from hf_grounding.training import report as report_module
from hf_grounding.training.caption_data import ImageInputs, load_images
from hf_grounding.training.caption_evaluation import measure_baselines
from hf_grounding.training.captioning import build_captioner
from hf_grounding.training.recipe import Recipe
from hf_grounding.training.report import build_caption_report, evenly_spaced, protocol_of, result_tables

CAPTIONS = [["a red ball", "the red ball"], ["a blue box on grass"], ["a red ball rolls", "a ball"]]
SIZES = {"hidden_size": 16, "embedding_size": 16, "decoder_hidden_size": 16, "attention_hidden_size": 8}


def make_regions(image_id: str, count: int, seed: int) -> Regions:
    boxes = np.tile([[10.0, 20.0, 60.0, 50.0]], (count, 1)) + np.arange(count)[:, None]
    features = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    return Regions(image_id, (100, 200), boxes, region_features=features)


@pytest.fixture
def rows() -> Dataset:
    photos = [PILImage.new("RGB", (40, 20), "grey") for _ in CAPTIONS]
    columns = {"image_id": list("abc"), "captions": CAPTIONS, "image": photos}
    return Dataset.from_dict(columns).cast_column("image", Image())


@pytest.fixture
def regions() -> dict[str, Regions]:
    return {
        name: make_regions(name, count, seed) for seed, (name, count) in enumerate({"a": 3, "b": 1, "c": 6}.items())
    }


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    def meteor(*_, **__):
        raise RuntimeError("no Java here")

    monkeypatch.setattr("hf_grounding.metrics.caption_metrics.meteor", meteor)


CONCEPTS = {"a": ["red", "ball"], "b": ["blue", "box", "grass"], "c": []}


def test_a_withheld_image_changes_neither_inputs_nor_words(regions):
    model, processor = build_captioner(
        Recipe.from_dict(
            {
                "description": "tiny",
                "system": "mia",
                "dataset": {"name": "scenes"},
                "regions": {},
                "captions": {"min_count": 1},
                "model": SIZES | {"decoder_type": "up_down", "num_attention_heads": 2, "intermediate_size": 16},
            }
        ),
        CAPTIONS,
        feature_dim=5,
    )
    model.eval()
    blind, seeing = ImageInputs(regions, CONCEPTS, withheld=True), ImageInputs(regions, CONCEPTS)
    inputs = processor(captions=["a red ball"] * 3, **blind.read(list("abc")))
    assert inputs["region_features"].shape == (3, 1, 5)
    assert (inputs["region_features"] == 1).all()
    assert not inputs["concept_mask"].any()
    assert all((value == value[0]).all() for value in inputs.values())
    with torch.no_grad():
        unseen = model(**inputs).logits
        seen = model(**processor(captions=["a red ball"] * 3, **seeing.read(list("abc")))).logits
    torch.testing.assert_close(unseen[1:], unseen[:1].expand(2, -1, -1))
    assert (seen[1:] - seen[:1]).abs().amax() > 1e-4
    assert blind.read(["a"])["regions"][0].boxes.tolist() == [[0, 0, 200, 100]]
    np.testing.assert_array_equal(blind.mean_features(["a", "b"]), seeing.mean_features(["a", "b"]))


def test_scenes_are_withheld_where_the_recipe_says_so():
    recipe = Recipe.load("mia_scenes", {"withhold_image": "true"})
    no_rows = Dataset.from_dict({"image_id": [], "captions": []})
    assert load_images(recipe, no_rows, "val").withheld
    assert not load_images(Recipe.load("mia_scenes"), no_rows, "val").withheld


def test_baselines_are_scored_as_captions_are(rows, regions):
    baselines = measure_baselines(rows, ImageInputs(regions))
    (name, people), *others = baselines.items()
    assert (name, others) == ("one reference against the others", [])
    # "a red ball" against "the red ball", "a red ball rolls" against "a ball": 3 + 4 words, of which 2 + 2 are in them.
    assert people["bleu_1"] == pytest.approx(4 / 7)
    assert (people["count"], people["distinct"], people["mean_length"], people["vocabulary"]) == (2, 2, 3.5, 4)
    assert people["absent"] == {"meteor": "no Java here"}


def test_an_image_that_was_trained_on_borrows_from_the_others(rows, regions):
    images = ImageInputs(regions)
    with pytest.warns(UserWarning, match="references of one image"):
        scores = measure_baselines(rows.select([1]), images, (rows, images))
    assert list(scores) == ["consensus of similar photos"]  # the image has no second caption
    assert scores["consensus of similar photos"]["bleu_1"] < 0.5  # of its own caption it would be 1


@pytest.fixture
def results(rows, regions):
    images = ImageInputs(regions)
    baselines = measure_baselines(rows, images, (rows, images))
    scores = baselines["one reference against the others"] | {"meteor": 0.25, "absent": {}}
    facts = {"split": "val", "num_images": 3, "num_beams": 3, "image_withheld": False}
    return {"captions": scores, "baselines": baselines, **facts}


def test_the_table_holds_the_model_beside_its_baselines(results):
    (table,) = result_tables(results)
    names = ["this model", "consensus of similar photos", "one reference against the others"]
    assert [row["captions of"] for row in table.rows] == names
    own, _, people = table.rows
    assert own["BLEU-1"] == 57.1
    assert (own["METEOR"], people["METEOR"]) == (25.0, None)
    assert (own["distinct"], own["mean length"], own["vocabulary"]) == (2, 3.5, 4)
    assert "METEOR is absent" not in table.note
    results["captions"]["absent"] = {"meteor": "no Java here"}
    assert result_tables(results)[0].note.endswith("METEOR is absent: no Java here")


def test_the_protocol_says_beams_and_whether_the_image_was_withheld(results):
    assert protocol_of(results)["beams"] == 3
    assert "image" not in protocol_of(results)
    assert protocol_of(results | {"image_withheld": True})["image"] == "withheld"


def test_examples_are_one_of_every_k():
    assert evenly_spaced(10, 3) == [1, 4, 7]
    assert evenly_spaced(2, 12) == [0, 1]
    assert evenly_spaced(0, 12) == []


def test_the_report_shows_captions_with_the_regions_of_their_words(results, rows, regions, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        report_module, "draw_grounded_caption", lambda photo, caption, width: drawn.append((photo, caption)) or photo
    )
    box = (0.0, 0.0, 50.0, 50.0)
    words = [Grounding(word, (i, i + 1), box, None, 0.5) for i, word in enumerate(["a", "red", "ball"])]
    without = [Grounding("ball", (0, 1), None, None, 0.0)]  # of a decoder that attends to no regions
    captions = {0: GroundedCaption("a red ball", words, regions=regions["a"]), 2: GroundedCaption("ball", without)}
    report = build_caption_report("t", results, captions, rows, {})
    assert [example.caption for example in report.examples] == ["a red ball", "ball"]
    assert report.examples[0].note == "People: a red ball / the red ball Photo a"
    assert "one of every 1 photos" in report.rule  # 2 of 3
    assert [(photo.size, caption) for photo, caption in drawn] == [((40, 20), captions[0]), ((40, 20), captions[2])]


def test_the_report_leaves_out_examples_whose_photo_is_not_at_hand(results, rows, regions):
    absent = [{**row, "image": None if row["image_id"] == "a" else row["image"]} for row in rows]
    captions = {0: GroundedCaption("a red ball", []), 2: GroundedCaption("ball", [], regions=regions["a"])}
    report = build_caption_report("t", results, captions, Dataset.from_list(absent, features=rows.features), {})
    assert [example.caption for example in report.examples] == ["ball"]
