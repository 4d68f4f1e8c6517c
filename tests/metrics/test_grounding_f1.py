"""Grounding F1: golden numbers of the released evaluator, worked examples, a slow literal version, messages."""

import functools
import json
from collections import defaultdict

import numpy as np
import pytest

from hf_grounding.metrics.grounding_f1 import grounding_f1, gt_sentence_accuracy, lemmatize_noun

MODES = ("all", "loc")
MAN = {"tokens": ["a", "man"], "classes": ["man"], "indices": [1], "boxes": [[0, 0, 9, 9]]}


@pytest.fixture(scope="module")
def golden(golden_dir) -> dict:
    """Made with the released evaluator on synthetic data; see `grounding_f1.manifest.json` beside it."""
    return json.loads((golden_dir / "grounding_f1.json").read_text())


def golden_arguments(case: dict) -> dict:
    """A case of the golden file, where predictions are keyed by image and names differ, for `grounding_f1`."""
    predictions, references = [], []
    for image in case["reference"]:
        (prediction,) = case["prediction"].get(str(image["image_id"]), [None])
        predictions.append(prediction and {"classes": prediction["clss"], "boxes": prediction["bbox"]})
        references.append(
            [
                caption_of(
                    caption["tokens"], caption["process_clss"], caption["process_idx"], caption["process_bnd_box"]
                )
                for caption in image["captions"]
            ]
        )
    return {"predictions": predictions, "references": references}


def caption_of(tokens, classes, indices, boxes) -> dict:
    return {"tokens": tokens, "classes": classes, "indices": indices, "boxes": boxes}


def scores(result: dict, mode: str) -> tuple[float, float, float]:
    return result[f"precision_{mode}"], result[f"recall_{mode}"], result[f"f1_{mode}"]


def test_golden_scores_of_every_case(golden):
    for name, case in golden["cases"].items():
        result = grounding_f1(**golden_arguments(case), lemmatizer=lambda word: golden["lemma"].get(word, word))
        for mode in MODES:
            expected = case["scores"][mode]
            # null is 0/0 in the evaluator
            values = (expected["precision"], expected["recall"], expected["f1"] or 0.0)
            assert scores(result, mode) == pytest.approx(values, abs=1e-9), (name, mode)
        assert result["count"] == len(case["split"])


def test_worked_example_of_the_two_modes():
    # C = {man, ball}; man is right, dog is an error of language, grass is in the caption without a box.
    caption = caption_of(
        ["a", "man", "holds", "a", "ball", "near", "grass"],
        ["man", "ball"],
        [1, 4],
        [[0, 0, 9, 9], [20, 20, 29, 29]],
    )
    prediction = {"classes": ["man", "dog", "grass"], "boxes": [[0, 0, 9, 9], [0, 0, 5, 5], [1, 1, 2, 2]]}
    result = grounding_f1([prediction], [[caption]])
    assert scores(result, "all") == scores(result, "loc") == (0.5, 0.5, 0.5)
    assert (result["num_classes"], result["count"]) == (2, 1)


@pytest.mark.parametrize(
    "box, hit",
    [
        ([0, 0, 9, 4], 0.0),  # 50 / 100: not more than half
        ([0, 0, 9, 5], 1.0),  # 60 / 100
        ([5, 5, 14, 14], 0.0),  # 25 / 175
        ([0, 0, 9, 19], 0.0),  # 100 / 200
        ([0, 0, 9, 18], 1.0),  # 100 / 190
        ([20, 20, 29, 29], 0.0),  # apart in both directions
        ([10, 0, 19, 9], 0.0),  # side by side, nothing shared
        ([40, 40, 49, 49], 0.0),
    ],
)
def test_worked_example_of_the_iou_rule(box, hit):
    result = grounding_f1([{"classes": ["man"], "boxes": [box]}], [[MAN]])
    assert scores(result, "loc") == (hit, hit, hit)
    assert gt_sentence_accuracy([[[box]]], [[MAN]])["grounding_accuracy"] == hit


def test_a_single_pixel_is_never_right():
    pixel, line = [3, 3, 3, 3], [3, 3, 3.5, 3]  # areas 1 and 1.5, IoU 2/3
    for box, annotated, hit in ((pixel, pixel, 0.0), (pixel, line, 0.0), (line, pixel, 0.0), (line, line, 1.0)):
        result = grounding_f1([{"classes": ["man"], "boxes": [box]}], [[MAN | {"boxes": [annotated]}]])
        assert scores(result, "all") == (hit, hit, hit)


def test_worked_example_of_repeated_words():
    # Both words are compared with the entry of the smallest index, both entries with the first word.
    a, b = [0, 0, 9, 9], [50, 50, 59, 59]
    tokens = ["man", "x", "x", "x", "x", "x", "man"]
    prediction = {"classes": ["man", "man"], "boxes": [a, b]}
    for caption in (
        caption_of(tokens, ["man", "man"], [1, 6], [a, b]),
        caption_of(tokens, ["man", "man"], [6, 1], [b, a]),
    ):
        result = grounding_f1([prediction], [[caption]])
        assert scores(result, "all") == scores(result, "loc") == (0.5, 0.5, 0.5)


def test_entries_of_an_image_without_prediction_are_not_found_in_both_modes():
    # Recall of man: 1 in the first image, 0 in the second; dog is only in the second and thus not in C.
    dog = caption_of(["dog"], ["dog"], [0], [[0, 0, 9, 9]])
    result = grounding_f1([{"classes": ["man"], "boxes": [[0, 0, 9, 9]]}, None], [[MAN], [MAN, dog]])
    for mode in MODES:
        assert scores(result, mode) == pytest.approx((1, 0.5, 2 / 3), abs=1e-12)
    assert result["num_classes"] == 1
    assert result["protocol"]["images_without_prediction"] == 1


@pytest.mark.parametrize(
    "prediction", [None, {"classes": [], "boxes": []}, {"classes": ["dog"], "boxes": [[0, 0, 9, 9]]}]
)
def test_nothing_right_gives_0(prediction):
    result = grounding_f1([prediction], [[MAN]])
    assert scores(result, "all") == scores(result, "loc") == (0, 0, 0)
    assert grounding_f1([prediction], [[]])["f1_all"] == 0


def test_a_class_never_compared_still_divides_the_located_score():
    caption = caption_of(["man", "dog"], ["man", "dog"], [0, 1], [[0, 0, 9, 9]] * 2)
    result = grounding_f1([{"classes": ["man"], "boxes": [[0, 0, 9, 9]]}], [[caption]])
    assert scores(result, "loc") == (0.5, 0.5, 0.5)


def test_object_classes_pass_over_all_other_words():
    # "sky" is predicted, "person" annotated: without them man is the only class, and found.
    caption = caption_of(["man", "person"], ["man", "person"], [0, 1], [[0, 0, 9, 9], [50, 50, 59, 59]])
    prediction = {"classes": ["sky", "man", "person"], "boxes": [[0, 0, 9, 9]] * 3}
    result = grounding_f1([prediction], [[caption]], object_classes=["man", "dog"])
    assert scores(result, "all") == (1, 1, 1)
    assert result["num_classes"] == 1
    assert result["protocol"]["num_object_classes"] == 2
    assert grounding_f1([prediction], [[caption]])["f1_all"] == 0.5


def random_images(seed: int, n: int = 40) -> tuple[list, list]:
    rng = np.random.default_rng(seed)
    names = ["man", "woman", "dog", "ball", "tree"]
    words = [*names, "men", "dogs", "trees", "the", "", "is"]

    def random_boxes(count):
        corners = rng.integers(0, 3, size=(count, 2))
        return np.concatenate([corners, corners + rng.integers(0, 5, size=(count, 2))], axis=1).tolist()

    predictions, references = [], []
    for _ in range(n):
        count = rng.integers(0, 5)
        prediction = {"classes": rng.choice(names, count).tolist(), "boxes": random_boxes(count)}
        predictions.append(None if rng.random() < 0.1 else prediction)
        captions = []
        for _ in range(5):
            tokens = rng.choice(words, rng.integers(1, 10)).tolist()
            indices = rng.permutation(len(tokens))[: rng.integers(0, 5)].tolist()
            classes = rng.choice(names, len(indices)).tolist()
            captions.append(caption_of(tokens, classes, indices, random_boxes(len(indices))))
        references.append(captions)
    return predictions, references


def literal_hit(box, reference) -> int:
    (x1, y1, x2, y2), (u1, v1, u2, v2) = box, reference
    width, height = x2 - x1 + 1, y2 - y1 + 1
    reference_width, reference_height = u2 - u1 + 1, v2 - v1 + 1
    if (width, height) == (1, 1) or (reference_width, reference_height) == (1, 1):
        return 0
    overlap = max(0, min(x2, u2) - max(x1, u1) + 1) * max(0, min(y2, v2) - max(y1, v1) + 1)
    return int(overlap / (width * height + reference_width * reference_height - overlap) > 0.5)


def literal_scores(predictions, references, mode, lemma) -> tuple[float, float, float]:
    """Section "F1_all and F1_loc" of the specification, rule by rule, with one list of outcomes per class."""
    universe, precision, recall = set(), defaultdict(list), defaultdict(list)
    for prediction, captions in zip(predictions, references, strict=True):
        for caption in captions:
            entries = sorted(zip(caption["indices"], caption["classes"], caption["boxes"], strict=True))
            if prediction is not None:
                universe.update(caption["classes"])
                others = [
                    lemma(token)
                    for index, token in enumerate(caption["tokens"])
                    if index not in caption["indices"] and token != ""
                ]
                for name, box in zip(prediction["classes"], prediction["boxes"], strict=True):
                    same_class = [reference for _, other, reference in entries if other == name]
                    if same_class:
                        precision[name].append(literal_hit(box, same_class[0]))
                    elif lemma(name) not in others and mode == "all":
                        precision[name].append(0)
            for _, name, reference in entries:
                if prediction is None:
                    recall[name].append(0)
                elif name in prediction["classes"]:
                    first = prediction["classes"].index(name)
                    recall[name].append(literal_hit(prediction["boxes"][first], reference))
                elif mode == "all":
                    recall[name].append(0)
    p, r = (sum(sum(hits) / len(hits) for hits in side.values()) / len(universe) for side in (precision, recall))
    return p, r, 2 * p * r / (p + r) if p + r else 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_rules_applied_one_word_at_a_time(seed, mode):
    predictions, references = random_images(seed)
    for lemma in (lemmatize_noun, str):
        expected = literal_scores(predictions, references, mode, lemma)
        assert scores(grounding_f1(predictions, references, lemmatizer=lemma), mode) == pytest.approx(
            expected, abs=1e-12
        )
        assert expected[2] > 0


def test_order_of_images_and_of_entries_does_not_matter():
    predictions, references = random_images(seed=9)
    reversed_references = [
        [{"tokens": caption["tokens"]} | {key: caption[key][::-1] for key in ("classes", "indices", "boxes")}]
        for image in references[::-1]
        for caption in image[:1]
    ]
    ours = grounding_f1(predictions, [image[:1] for image in references])
    theirs = grounding_f1(predictions[::-1], reversed_references)
    for mode in MODES:
        assert scores(ours, mode) == pytest.approx(scores(theirs, mode), abs=1e-12)


def test_the_lemmatizer_finds_words_without_a_box_and_is_named():
    caption = MAN | {"tokens": ["a", "man", "with", "dogs"]}
    prediction = {"classes": ["man", "dog"], "boxes": [[0, 0, 9, 9]] * 2}
    by_rules = grounding_f1([prediction], [[caption]])
    as_written = grounding_f1([prediction], [[caption]], lemmatizer=str.lower)
    assert (by_rules["precision_all"], by_rules["protocol"]["lemmatizer"]) == (1.0, "plural rules")
    # The list of zeros of a class outside the references adds nothing.
    assert (as_written["precision_all"], as_written["protocol"]["lemmatizer"]) == (1.0, "str.lower")
    anonymous = grounding_f1([prediction], [[caption]], lemmatizer=functools.partial(str.lower))
    assert anonymous["protocol"]["lemmatizer"] == "partial"


@pytest.mark.parametrize("token, name", [("dogs", "dog"), ("dog", "dogs")])
def test_a_word_unknown_to_the_lemmatizer_lowers_precision(token, name):
    # The class is annotated in the second caption; in the first the word has no box.
    captions = [MAN | {"tokens": ["a", "man", "with", token]}, caption_of([name], [name], [0], [[0, 0, 9, 9]])]
    prediction = {"classes": [name], "boxes": [[0, 0, 9, 9]]}
    assert grounding_f1([prediction], [captions])["precision_all"] == 0.5  # [1] for the class, the other is man
    assert grounding_f1([prediction], [captions], lemmatizer=str)["precision_all"] == 0.25  # [0, 1]


def test_the_lemmatizer_never_sees_an_empty_token():
    seen = []
    caption = MAN | {"tokens": ["", "man", "", "here"]}
    grounding_f1([{"classes": ["man"], "boxes": [[0, 0, 9, 9]]}], [[caption]], lemmatizer=lambda w: seen.append(w) or w)
    assert seen == ["here"]


@pytest.mark.parametrize(
    "plural, singular",
    [
        *(("dogs", "dog"), ("T-shirts", "t-shirt"), ("benches", "bench"), ("boxes", "box"), ("dishes", "dish")),
        *(
            ("ladies", "lady"),
            ("hoodies", "hoodie"),
            ("ties", "tie"),
            ("potatoes", "potato"),
            ("snowshoes", "snowshoe"),
        ),
        *(
            ("men", "man"),
            ("firemen", "fireman"),
            ("women", "woman"),
            ("grandchildren", "grandchild"),
            ("feet", "foot"),
        ),
        *(("leaves", "leaf"), ("knives", "knife"), ("gloves", "glove"), ("buses", "bus"), ("houses", "house")),
        *(("glasses", "glass"), ("sunglasses", "sunglass"), ("skis", "ski"), ("mustaches", "mustache")),
        *(("graffiti", "graffitus"), ("people", "people"), ("jeans", "jeans"), ("clothes", "clothes"), ("'s", "'s")),
        *(("grass", "grass"), ("bus", "bus"), ("tennis", "tennis"), ("specimen", "specimen"), ("is", "is"), ("", "")),
    ],
)
def test_lemma_of_a_noun(plural, singular):
    assert lemmatize_noun(plural) == singular


def test_object_classes_are_lemmas_and_their_plurals_lead_to_them(golden_dir):
    classes = (golden_dir / "data" / "flickr30k_object_classes_480.txt").read_text().split()
    # The list has these beside "paper" and "outfit", against its own rule.
    changed = [name for name in classes if lemmatize_noun(name) != name]
    assert changed == ["outfits", "papers"]
    regular = [
        name for name in classes if name[-1] not in "sxyfoh" and not name.endswith(("man", "foot", "tooth", "child"))
    ]
    assert [name for name in regular if lemmatize_noun(name + "s") != name] == []


def test_accuracy_on_reference_captions_is_averaged_over_classes():
    # man: right in the first caption, wrong in the second, no box in the third; dog: right.
    a, b = [0, 0, 9, 9], [50, 50, 59, 59]
    with_dog = caption_of(["dog", "man"], ["man", "dog"], [1, 0], [a, b])
    result = gt_sentence_accuracy([[[a, b], [b]], [[None]]], [[with_dog, MAN], [MAN]])
    assert result["by_class"] == {
        "dog": {"grounding_accuracy": 1.0, "count": 1},
        "man": {"grounding_accuracy": 1 / 3, "count": 3},
    }
    assert result["grounding_accuracy"] == pytest.approx((1 + 1 / 3) / 2, abs=1e-12)
    assert (result["num_classes"], result["count"]) == (2, 4)


def test_accuracy_on_reference_captions_equals_one_entry_at_a_time():
    rng = np.random.default_rng(3)
    _, references = random_images(seed=3)
    boxes, outcomes = [], defaultdict(list)
    for image in references:
        boxes.append([])
        for caption in image:
            found = [None if rng.random() < 0.2 else [x, y, x + 3, y + 3] for x, y, *_ in caption["boxes"]]
            boxes[-1].append(found)
            for name, box, reference in zip(caption["classes"], found, caption["boxes"], strict=True):
                outcomes[name].append(0 if box is None else literal_hit(box, reference))
    expected = np.mean([np.mean(hits) for hits in outcomes.values()])
    assert gt_sentence_accuracy(boxes, references)["grounding_accuracy"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": [[0, 0, 9]]}, r"`references\[0\]\[1\]\['boxes'\]` must be a list of xyxy boxes, four numbers each"),
        ({"boxes": [[0, 0, 9, 9], [0, 9]]}, r"`references\[0\]\[1\]\['boxes'\]` must be a list of xyxy boxes"),
        ({"boxes": [0, 0, 9, 9]}, r"`references\[0\]\[1\]\['boxes'\]` must be a list of xyxy boxes"),
        ({"boxes": [[0, 0, 9, None]]}, r"box 0 is \[0.0, 0.0, 9.0, nan\]"),
        ({"boxes": [[0, 0, 9, float("inf")]]}, "must be finite xyxy"),
        ({"boxes": [[9, 0, 0, 9]]}, r"x1 <= x2 and y1 <= y2; box 0 is \[9.0, 0.0, 0.0, 9.0\]"),
        ({"boxes": []}, "must have one entry per class: expected 1, got 0"),
        ({"indices": []}, r"\['indices'\]` must have one entry per class: expected 1, got 0"),
        ({"indices": None}, r"\['indices'\]` must have one entry per class: expected 1, got None"),
        ({"indices": [2]}, r"places in the 2 tokens, each once, got \[2\]"),
        ({"indices": [-1]}, r"places in the 2 tokens, each once, got \[-1\]"),
        (
            {"classes": ["man", "dog"], "indices": [1, 1], "boxes": [[0, 0, 9, 9]] * 2},
            r"`references\[0\]\[1\]\['indices'\]` must be places in the 2 tokens, each once, got \[1, 1\]",
        ),
        ({"classes": None}, r"\['classes'\]` must be a list of strings, got None"),
        ({"classes": "man"}, r"\['classes'\]` must be a list of strings, got 'man'"),
        ({"tokens": ["a", 1]}, r"\['tokens'\]` must be a list of strings, got \['a', 1\]"),
    ],
)
def test_wrong_references_are_named(change, message):
    captions = [MAN, MAN | change]
    with pytest.raises(ValueError, match=message):
        grounding_f1([None], [captions])
    with pytest.raises(ValueError, match=message):
        gt_sentence_accuracy([[[None], [None]]], [captions])


@pytest.mark.parametrize(
    "predictions, references, message",
    [
        ([], [], "nothing to score"),
        ([None], [[MAN], [MAN]], "`predictions` must have one entry per image of `references`: expected 2, got 1"),
        ([None], [None], r"`references\[0\]` must be a list of captions, got None"),
        ([None], [MAN], r"`references\[0\]` must be a list of captions"),
        (
            [None],
            [[["a", "man"]]],
            r"`references\[0\]\[0\]` must be a mapping with the key 'classes', got \['a', 'man'\]",
        ),
        ([{"classes": []}], [[MAN]], r"`predictions\[0\]` must be a mapping with the key 'boxes', got \['classes'\]"),
        (
            [None, {"classes": ["man"], "boxes": [[0, 0, np.nan, 9]]}],
            [[MAN]] * 2,
            r"`predictions\[1\]\['boxes'\]` must be fin",
        ),
        (
            [{"classes": ["man"], "boxes": [None]}],
            [[MAN]],
            r"`predictions\[0\]\['boxes'\]` must be a list of xyxy boxes",
        ),
        ([{"classes": ["man"], "boxes": []}], [[MAN]], r"`predictions\[0\]\['boxes'\]` must have one entry per class"),
    ],
)
def test_wrong_predictions_are_named(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        grounding_f1(predictions, references)


def test_object_classes_must_be_a_list():
    with pytest.raises(ValueError, match="`object_classes` must be a list of names, got the string 'man'"):
        grounding_f1([None], [[MAN]], object_classes="man")


@pytest.mark.parametrize(
    "boxes, message",
    [
        ([], "`boxes` must have one entry per image of `references`: expected 1, got 0"),
        ([None], r"`boxes\[0\]` must have one entry per caption: expected 1, got None"),
        ([[]], r"`boxes\[0\]` must have one entry per caption: expected 1, got 0"),
        ([[[]]], r"`boxes\[0\]\[0\]` must have one entry per reference entry: expected 1, got 0"),
        ([[[[0, 0, 9]]]], r"`boxes\[0\]\[0\]` must be a list of xyxy boxes, four numbers each"),
        ([[[[0, 0, np.nan, 9]]]], r"`boxes\[0\]\[0\]` must be finite xyxy"),
    ],
)
def test_wrong_boxes_on_reference_captions_are_named(boxes, message):
    with pytest.raises(ValueError, match=message):
        gt_sentence_accuracy(boxes, [[MAN]])


def test_accuracy_on_reference_captions_needs_an_entry():
    with pytest.raises(ValueError, match="no caption of `references` has an entry"):
        gt_sentence_accuracy([[]], [[]])
