"""Captions, phrases, questions and answers about a drawn scene, true by construction.

A phrase about one object has just enough words that no other object fits it; a phrase about several fits all of them
and no other. "left of" and its like hold when the boxes do not overlap in that direction and the distance is larger
than in the other one; "in front of" holds when one shape hides a part of the other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

from .scene_drawing import ATTRIBUTES, VOCABULARY, Scene, SceneObject

__all__ = ["describe_scene", "matching", "question_scene", "relation_holds"]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
NUM_CAPTIONS = 5


@dataclass(frozen=True)
class Mention:
    """A noun phrase and the objects (indices) it stands for."""

    words: str
    objects: tuple[int, ...]


Part = str | Mention  # of a caption


def matching(objects: Sequence[SceneObject], words: dict[str, str]) -> tuple[int, ...]:
    """Indices of the objects with all these attributes, e.g. `{"color": "red", "shape": "circle"}`."""
    return tuple(
        index for index, item in enumerate(objects) if all(getattr(item, name) == word for name, word in words.items())
    )


def relation_holds(scene: Scene, one: int, relation: str, other: int) -> bool:
    """Whether object `one` is e.g. "left of" object `other`; see the module for what that takes."""
    if relation in ("right of", "below", "behind"):
        opposite = {"right of": "left of", "below": "above", "behind": "in front of"}[relation]
        return relation_holds(scene, other, opposite, one)
    if relation == "in front of":
        return (one, other) in scene.covers
    a, b = scene.objects[one], scene.objects[other]
    right, down = b.middle[0] - a.middle[0], b.middle[1] - a.middle[1]
    if relation == "left of":
        return a.box[2] <= b.box[0] and right > abs(down)
    return a.box[3] <= b.box[1] and down > abs(right)


def attribute_sets(attributes: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """All ways to name some of the attributes, the shortest first."""
    return tuple(names for count in range(1, len(attributes) + 1) for names in combinations(attributes, count))


def describe_scene(rng: random.Random, scene: Scene) -> tuple[list[str], list[dict[str, Any]]]:
    """Five different captions and their phrases, as the columns `captions` and `phrases` have them."""
    captions: list[str] = []
    phrases: list[dict[str, Any]] = []
    while len(captions) < NUM_CAPTIONS:
        parts = _caption(rng, scene)
        caption = " ".join(part.words if isinstance(part, Mention) else part for part in parts)
        if caption in captions:
            continue
        position = 0
        for part in parts:
            words = part.words if isinstance(part, Mention) else part
            start, position = position, position + len(words.split())
            if isinstance(part, Mention):
                members = [scene.objects[index] for index in part.objects]
                phrases.append(
                    {
                        "sentence": len(captions),
                        "start": start,
                        "end": position,
                        "phrase": words,
                        "entity_id": "+".join(str(index + 1) for index in part.objects),
                        "types": sorted({item.shape for item in members}),
                        "boxes": [list(item.box) for item in members],
                    }
                )
        captions.append(caption)
    return captions, phrases


def _caption(rng: random.Random, scene: Scene) -> list[Part]:
    """One caption in parts. Objects can always be listed, and in enough ways for five captions of any scene."""
    kind = rng.choice(("relation", "relation", "place", "count", "list"))
    shuffled = rng.sample(range(len(scene.objects)), len(scene.objects))
    if kind == "relation" and (true := _true_relations(scene)):
        one, relation, other = rng.choice(true)
        verb = rng.choice(("is", "can be seen", ""))
        sentence: list[Part] = [_mention(rng, scene, one), verb, relation, _mention(rng, scene, other), "."]
        return [part for part in sentence if part]
    if kind == "place" and (place := _place(scene, shuffled[0])):
        mention = _mention(rng, scene, shuffled[0])
        opening, verb = rng.choice((("", "is"), ("there is", ""), ("", "")))
        return [part for part in (opening, mention, verb, place, ".") if part]
    if kind == "count" and (group := _group(rng, scene)):
        others = [index for index in shuffled if index not in group.objects]
        rest: list[Part] = ["and", _mention(rng, scene, others[0])] if others else []
        return ["there are", group, *rest, "."]
    first, *middle, last = (_mention(rng, scene, index) for index in shuffled[: rng.randint(2, 3)])
    opening = rng.choice(("a picture of", "we see", ""))
    commas: list[Part] = [part for mention in middle for part in (",", mention)]
    sentence = [opening, first, *commas, "and", last, "."]
    return [part for part in sentence if part]


def _true_relations(scene: Scene) -> list[tuple[int, str, int]]:
    return [
        (one, relation, other)
        for one, other in permutations(range(len(scene.objects)), 2)
        for relation in RELATIONS
        if relation_holds(scene, one, relation, other)
    ]


def _place(scene: Scene, index: int) -> str | None:
    """Where in the image an object is; None in the middle third of a side, where words get vague."""
    x, y = (int(3 * edge / len(scene.pixels)) for edge in scene.objects[index].middle)
    return {
        (0, 0): "in the top left corner",
        (2, 0): "in the top right corner",
        (0, 2): "in the bottom left corner",
        (2, 2): "in the bottom right corner",
        (1, 0): "at the top",
        (1, 2): "at the bottom",
        (0, 1): "on the left side",
        (2, 1): "on the right side",
    }.get((x, y))


def _noun(words: dict[str, str], plural: bool = False) -> str:
    """The attributes in the order they are said; "object" where the shape is not one of them."""
    said = [words[name] for name in ATTRIBUTES[:-1] if name in words]
    noun = words.get("shape", "object")
    return " ".join([*said, noun + ("es" if noun.endswith("s") else "s") * plural])


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _words(item: SceneObject, names: Sequence[str]) -> dict[str, str]:
    return {name: getattr(item, name) for name in names}


def _unique_noun(rng: random.Random, scene: Scene, index: int, without: str = "") -> str | None:
    """Words that fit this object alone, more often than not its shape too; None if it takes the attribute `without`."""
    item = scene.objects[index]
    order = sorted(attribute_sets(scene.attributes), key=lambda names: rng.random() + 0.7 * ("shape" not in names))
    for names in order:
        if without not in names and matching(scene.objects, _words(item, names)) == (index,):
            return _noun(_words(item, names))
    return None


def _mention(rng: random.Random, scene: Scene, index: int) -> Mention:
    noun = _unique_noun(rng, scene, index)
    assert noun is not None  # no two objects of a scene share all words
    return Mention(_with_article(noun), (index,))


def _group(rng: random.Random, scene: Scene) -> Mention | None:
    """Two or more objects that share one or two words, and all that do: "two red circles"."""
    groups = {}
    for item in scene.objects:
        for names in attribute_sets(scene.attributes):
            words = _words(item, names)
            members = matching(scene.objects, words)
            if len(names) <= 2 and len(members) >= 2:
                groups[f"{NUMBERS[len(members)]} {_noun(words, plural=True)}"] = members
    return Mention(*rng.choice(list(groups.items()))) if groups else None


def question_scene(rng: random.Random, scene: Scene, image_id: str) -> list[dict[str, Any]]:
    """At most one question of each type, as the column `questions` has them: only those with one right answer."""
    makers = {
        "exists": ("yes/no", _ask_exists),
        "relation": ("yes/no", _ask_relation),
        "count": ("number", _ask_count),
        "color": ("other", _ask_color),
        "shape": ("other", _ask_shape),
        "relation_shape": ("other", _ask_relation_shape),
    }
    questions = []
    for question_type, (answer_type, ask) in makers.items():
        if asked := ask(rng, scene):
            questions.append(
                {
                    "question_id": f"{image_id}-{question_type}",
                    "question": asked[0],
                    "answers": [asked[1]],
                    "answer_type": answer_type,
                    "question_type": question_type,
                }
            )
    return questions


def _ask_exists(rng: random.Random, scene: Scene) -> tuple[str, str]:
    answer = rng.choice(("yes", "no"))
    while True:
        words = _words(rng.choice(scene.objects), rng.choice(attribute_sets(scene.attributes)))
        if answer == "no":  # a near miss: one word is changed, so that every word of the question counts
            name = rng.choice(list(words))
            words[name] = rng.choice(VOCABULARY[name])
        if bool(matching(scene.objects, words)) == (answer == "yes"):
            return f"is there {_with_article(_noun(words))} ?", answer


def _ask_relation(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    true = _true_relations(scene)
    if not true:
        return None
    one, relation, other = rng.choice(true)
    answer = rng.choice(("yes", "no"))
    if answer == "no":  # asked the wrong way round
        one, other = other, one
    return f"is the {_unique_noun(rng, scene, one)} {relation} the {_unique_noun(rng, scene, other)} ?", answer


def _ask_count(rng: random.Random, scene: Scene) -> tuple[str, str]:
    words = _words(
        rng.choice(scene.objects),
        rng.choice([(), *(names for names in attribute_sets(scene.attributes) if len(names) <= 2)]),
    )
    return f"how many {_noun(words, plural=True)} are there ?", str(len(matching(scene.objects, words)))


def _ask_color(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    index = rng.randrange(len(scene.objects))
    noun = _unique_noun(rng, scene, index, without="color")
    return (f"what color is the {noun} ?", scene.objects[index].color) if noun else None


def _ask_shape(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    index = rng.randrange(len(scene.objects))
    noun = _unique_noun(rng, scene, index, without="shape")
    return (f"what shape is the {noun} ?", scene.objects[index].shape) if noun else None


def _ask_relation_shape(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    """ "what shape is left of the red circle ?", where just one object is, and every other is clearly not."""
    true = _true_relations(scene)
    rng.shuffle(true)
    for one, relation, other in true:
        rivals = [index for index in range(len(scene.objects)) if index not in (one, other)]
        if not any(_may_hold(scene, rival, relation, other) for rival in rivals):
            noun = _unique_noun(rng, scene, other)
            return f"what shape is {relation} the {noun} ?", scene.objects[one].shape
    return None


def _may_hold(scene: Scene, one: int, relation: str, other: int) -> bool:
    """Whether a reader could think that the relation holds: the looser side of [`relation_holds`]."""
    a, b = scene.objects[one].middle, scene.objects[other].middle
    return {
        "left of": a[0] < b[0],
        "right of": a[0] > b[0],
        "above": a[1] < b[1],
        "below": a[1] > b[1],
    }.get(relation, (one, other) in scene.covers or (other, one) in scene.covers)
