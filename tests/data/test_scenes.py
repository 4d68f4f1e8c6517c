"""Generated scenes: what is said is true of the pixels, and the same seed draws the same scene everywhere."""

import io
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Image
from PIL import Image as PILImage

from hf_grounding.data import load_grounding_dataset
from hf_grounding.data.scene_drawing import (
    SHAPES,
    VOCABULARY,
    draw_background,
    draw_scene,
    sample_objects,
    sample_scene,
)
from hf_grounding.data.scene_language import describe_scene, question_scene
from hf_grounding.data.scenes import ScenesConfig, scene_row

RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows():
    return [scene_row(0, "train", index) for index in range(150)]


@pytest.fixture(scope="module")
def told():
    """(scene, captions, phrases, questions) of some scenes."""
    result = []
    for seed in range(150):
        rng = random.Random(seed)
        scene = sample_scene(rng, 128)
        result.append((scene, *describe_scene(rng, scene), question_scene(rng, scene, "x")))
    return result


def fitting(scene, noun):
    """Objects that fit a noun phrase, found word by word."""
    singular = {**{shape: shape for shape in SHAPES}, **{f"{shape}s": shape for shape in SHAPES}, "crosses": "cross"}
    kept = list(scene.objects)
    for word in noun.split():
        if word in ("a", "an", "the", "object", "objects", "two", "three", "four", "five", "six"):
            continue
        word = singular.get(word, word)
        (attribute,) = (name for name, words in VOCABULARY.items() if word in words)
        kept = [item for item in kept if getattr(item, attribute) == word]
    return kept


def holds(box, relation, other):
    """What a relation says about two boxes; "in front of" and "behind" only say that they meet."""
    dx, dy = (other[0] + other[2] - box[0] - box[2]) / 2, (other[1] + other[3] - box[1] - box[3]) / 2
    return {
        "left of": box[2] <= other[0] and dx > abs(dy),
        "right of": other[2] <= box[0] and -dx > abs(dy),
        "above": box[3] <= other[1] and dy > abs(dx),
        "below": other[3] <= box[1] and -dy > abs(dx),
    }.get(relation, min(box[2], other[2]) >= max(box[0], other[0]) and min(box[3], other[3]) >= max(box[1], other[1]))


def split_relation(text):
    """`("... is", "left of", "the ...")`, or None."""
    for relation in RELATIONS:
        if f" {relation} " in text:
            before, after = text.split(f" {relation} ")
            return before, relation, after
    return None


def test_spans_cut_the_phrase_out_of_its_caption(rows):
    for row in rows:
        assert len(set(row["captions"])) == 5
        for caption in row["captions"]:
            assert caption == " ".join(caption.lower().split())
            assert caption.endswith(" .")
        for phrase in row["phrases"]:
            tokens = row["captions"][phrase["sentence"]].split()
            assert " ".join(tokens[phrase["start"] : phrase["end"]]) == phrase["phrase"]


def test_a_phrase_has_the_boxes_of_all_objects_that_fit_it_and_no_other(told):
    for scene, _, phrases, _ in told:
        for phrase in phrases:
            meant = fitting(scene, phrase["phrase"])
            assert phrase["boxes"] == [list(item.box) for item in meant]
            assert phrase["types"] == sorted({item.shape for item in meant})
            count = phrase["phrase"].split()[0]
            assert len(meant) == {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}[count]


def test_equal_entities_have_equal_boxes_and_different_ones_do_not(rows):
    for row in rows:
        pairs = {(phrase["entity_id"], str(phrase["boxes"])) for phrase in row["phrases"]}
        assert len(pairs) == len({entity for entity, _ in pairs}) == len({boxes for _, boxes in pairs})


def test_boxes_are_tight_on_what_is_seen_of_an_object():
    checked = hidden = 0
    for seed in range(40):
        rng = random.Random(seed)
        background, objects = draw_background(rng, 96), sample_objects(rng, 96)
        scene = draw_scene(background, objects)
        if scene is None:
            continue
        hidden += len(scene.covers)
        for index, item in enumerate(scene.objects):
            # The pixels that change when the object is taken away are those one sees of it.
            without = draw_scene(background, objects[:index] + objects[index + 1 :])
            if without is None:
                continue
            y, x = (scene.pixels != without.pixels).any(axis=-1).nonzero()
            assert item.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
            assert 0 <= item.box[0] < item.box[2] <= 96
            assert 0 <= item.box[1] < item.box[3] <= 96
            checked += 1
    assert checked > 100
    assert hidden > 5  # objects in front of others were among them


def test_a_row_holds_the_drawn_pixels():
    row = scene_row(3, "val", 5, image_size=80)
    image = PILImage.open(io.BytesIO(row["image"]["bytes"]))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (80, 80))
    assert (row["width"], row["height"]) == (80, 80)
    expected = sample_scene(random.Random("scenes/3/val/5"), 80).pixels
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_no_two_objects_of_a_scene_have_the_same_words(told):
    for scene, *_ in told:
        assert len({(item.size, item.texture, item.color, item.shape) for item in scene.objects}) == len(scene.objects)


def test_relations_in_captions_hold_between_the_boxes(told):
    seen = set()
    for _, captions, phrases, _ in told:
        for sentence, caption in enumerate(captions):
            if said := split_relation(caption):
                relation = said[1]
                first, second = (phrase for phrase in phrases if phrase["sentence"] == sentence)
                assert holds(first["boxes"][0], relation, second["boxes"][0])
                if relation in ("in front of", "behind"):
                    later = [int(first["entity_id"]) > int(second["entity_id"])]
                    assert later == [relation == "in front of"]
                seen.add(relation)
    assert seen == set(RELATIONS)


def test_places_in_captions_hold(told):
    seen = 0
    for _, captions, phrases, _ in told:
        for sentence, caption in enumerate(captions):
            words = caption.split()
            if "corner" in words or "side" in words or "at the" in caption:
                (box,) = next(phrase["boxes"] for phrase in phrases if phrase["sentence"] == sentence)
                x, y = (box[0] + box[2]) / 2 / 128, (box[1] + box[3]) / 2 / 128
                assert x < 1 / 3 if "left" in words else x >= 2 / 3 if "right" in words else 1 / 3 <= x < 2 / 3
                assert y < 1 / 3 if "top" in words else y >= 2 / 3 if "bottom" in words else 1 / 3 <= y < 2 / 3
                seen += 1
    assert seen > 20


def test_answers_follow_from_the_objects(told):
    seen = set()
    for scene, _, _, questions in told:
        for question in questions:
            text, kind = question["question"].removesuffix(" ?"), question["question_type"]
            if kind == "exists":
                answer = "yes" if fitting(scene, text.removeprefix("is there ")) else "no"
            elif kind == "count":
                noun = text.removeprefix("how many ").removesuffix(" are there")
                answer = str(len(fitting(scene, noun)))
            elif kind in ("color", "shape"):
                (item,) = fitting(scene, text.split(" is ")[1])
                answer = getattr(item, kind)
            else:
                before, relation, after = split_relation(text)
                (other,) = fitting(scene, after)
                in_depth = relation in ("in front of", "behind")

                def true(item, relation=relation, other=other, in_depth=in_depth, scene=scene):
                    later = scene.objects.index(item) > scene.objects.index(other)
                    return holds(item.box, relation, other.box) and (not in_depth or later == (relation != "behind"))

                if kind == "relation":
                    (item,) = fitting(scene, before.removeprefix("is "))
                    answer = "yes" if true(item) else "no"
                else:
                    # Boxes that meet need not hide anything, so depth may have more candidates than true answers.
                    shapes = [item.shape for item in scene.objects if item is not other and true(item)]
                    assert len(shapes) == 1 or in_depth
                    answer = question["answers"][0] if in_depth and question["answers"][0] in shapes else shapes[0]
            assert question["answers"] == [answer], question
            seen.add((kind, answer if question["answer_type"] == "yes/no" else ""))
    yes_no = set(itertools.product(("exists", "relation"), ("yes", "no")))
    assert seen == yes_no | {("count", ""), ("color", ""), ("shape", ""), ("relation_shape", "")}


def test_the_image_centre_is_a_bad_guess(rows):
    hits = [
        any(box[0] <= 64 <= box[2] and box[1] <= 64 <= box[3] for box in phrase["boxes"])
        for row in rows
        for phrase in row["phrases"]
    ]
    assert 0.02 < np.mean(hits) < 0.3


def test_the_first_scene_stays_what_it_is():
    # When this fails on purpose, raise `Scenes.VERSION`: users have the old scenes in their caches.
    row = scene_row(0, "train", 0)
    assert row["captions"][:2] == [
        "a medium triangle can be seen right of a small dotted triangle .",
        "a medium dotted red triangle is above a medium plain heart .",
    ]
    assert [phrase["boxes"] for phrase in row["phrases"][:2]] == [[[68, 46, 102, 78]], [[9, 56, 32, 76]]]


def test_scenes_do_not_depend_on_the_hash_seed_of_the_process():
    code = "from hf_grounding.data.scenes import scene_row; print([scene_row(7, 'val', i) for i in range(4)])"
    environment = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": str(CHECKOUT)}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == repr([scene_row(7, "val", index) for index in range(4)])


def test_seeds_splits_and_indices_draw_different_scenes():
    images = [
        scene_row(seed, split, index)["image"]["bytes"]
        for seed in (0, 1)
        for split in ("train", "val", "test")
        for index in range(10)
    ]
    assert len(set(images)) == 60


def test_stream_cache_processes_and_longer_splits_have_the_same_rows(tmp_path, monkeypatch):
    def load(**kwargs):
        settings = {"split": "val", "num_train": 0, "num_val": 7, "num_test": 0, "cache_dir": tmp_path, "seed": 4}
        dataset = load_grounding_dataset("scenes", **{**settings, **kwargs})
        return list(dataset.cast_column("image", Image(decode=False)))

    cached = load()
    assert [row["image_id"] for row in cached] == [f"scene-4-val-{index:06d}" for index in range(7)]
    assert load(streaming=True) == cached
    assert load(num_val=9)[:7] == cached
    monkeypatch.setattr("hf_grounding.data.scenes.SHARD_SIZE", 2)
    assert load(num_proc=2, cache_dir=tmp_path / "other") == cached
    assert load(seed=5) != cached


@pytest.mark.parametrize("setting", [{"image_size": 32}, {"num_val": -1}, {"seed": 0.5}])
def test_impossible_settings_are_refused(setting, tmp_path):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must be a whole number"):
        load_grounding_dataset("scenes", cache_dir=tmp_path, **setting)


def test_a_data_set_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="are all 0"):
        load_grounding_dataset("scenes", cache_dir=tmp_path, num_train=0, num_val=0, num_test=0)


def test_fewer_attributes_make_plain_objects_told_apart_by_those_alone():
    for index in range(20):
        row = scene_row(0, "val", index, attributes=("color", "shape"))
        said = " ".join(phrase["phrase"] for phrase in row["phrases"])
        assert not set(said.split()) & {"small", "medium", "large", "plain", "striped", "dotted", "checkered"}
        scene = sample_scene(random.Random(f"scenes/0/val/{index}"), 128, ("color", "shape"))
        assert {item.texture for item in scene.objects} == {"plain"}
        assert len({(item.color, item.shape) for item in scene.objects}) == len(scene.objects)


def test_attributes_must_tell_objects_apart():
    with pytest.raises(ValueError, match="must be color, shape and any of size and texture"):
        ScenesConfig(name="x", attributes=["color"])
