"""A run's `report.html`: numbers beside trivial baselines, the training curve, phrases chosen by rule, not by hand."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset
from PIL import ImageOps

from ..metrics.pointing_game import pointing_hits
from ..processing.concepts import RankedConcept
from ..processing.grounding import GroundedAnswer, GroundedCaption, Grounding
from ..visualization import Example, Report, Table, draw_grounding
from ..visualization_captions import draw_grounded_answer, draw_grounded_caption
from .vqa_data import Question

# name in the trainer's log -> name in the report, factor
_CURVES = {
    "loss": ("training loss", 1),
    "eval_pointing_accuracy": ("pointing game, %", 100),
    "eval_attention_correctness": ("attention correctness, %", 100),
    "eval_mean_average_precision": ("mean average precision, %", 100),
    "eval_cider_d": ("CIDEr-D x 100", 100),
    "eval_bleu_4": ("BLEU-4, %", 100),
    "eval_rouge_l": ("ROUGE-L, %", 100),
    "eval_vqa_accuracy": ("accuracy, %", 100),
}


def build_report(
    title: str,
    results: Mapping[str, Any],
    predictions: Mapping[str, list],
    rows: Dataset,
    settings: Mapping[str, Any],
    *,
    num_examples: int = 6,
) -> Report:
    r"""Report of an evaluation, or of a training with the evaluation at its end.

    Args:
        title (`str`): Heading.
        results (`dict`): Of `training.run.train` or `evaluate`; `curve`, the trainer's log, may be absent.
        predictions (`dict`): Of `predict_groundings` on `rows`.
        rows (`datasets.Dataset`): The split that was evaluated, with the photos.
        settings (`dict`): Every setting of the run.
        num_examples (`int`): Examples of each group.
    """
    protocol = results["model"]["protocol"]
    hits, counted = pointing_hits(
        predictions["point"],
        predictions["boxes"],
        predictions["image_size"],
        categories=predictions["categories"],
        **{name: protocol[name] for name in ("box_rule", "min_box_area", "skip_categories")},
    )
    groups, rule = choose_examples(predictions, hits, counted, num_examples)
    return _report(title, results, settings, _draw_examples(groups, hits, predictions, rows), rule)


def build_concept_report(
    title: str,
    results: Mapping[str, Any],
    ranked: Sequence[Sequence[RankedConcept]],
    rows: Dataset,
    settings: Mapping[str, Any],
    *,
    num_examples: int = 6,
) -> Report:
    """As [`build_report`], of a concept detector; `ranked` are the likeliest words of each row."""
    chosen = evenly_spaced(len(rows), num_examples)
    examples = []
    for index in chosen:
        photo = ImageOps.exif_transpose(rows[index]["image"]).convert("RGB")
        photo.thumbnail((480, 480))
        words = ", ".join(f"{word} {100 * prob:.0f}" for word, prob in ranked[index][:10])
        note = f"{rows[index]['captions'][0]} Photo {rows[index]['image_id']}"
        examples.append(Example("typical", words, photo, note))
    rule = f"{_spacing(len(rows), len(chosen))}, with its ten likeliest words, in percent."
    return _report(title, results, settings, examples, rule)


def build_caption_report(
    title: str,
    results: Mapping[str, Any],
    captions: Mapping[int, GroundedCaption],
    rows: Dataset,
    settings: Mapping[str, Any],
) -> Report:
    """As [`build_report`], of a captioner; `captions` are those of the rows to show, by [`evenly_spaced`]."""
    examples = []
    for index, grounded in captions.items():
        row = rows[index]
        if row["image"] is None:
            continue  # captions and stored regions may be there without the photos
        photo = ImageOps.exif_transpose(row["image"]).convert("RGB")
        note = f"People: {' / '.join(row['captions'])} Photo {row['image_id']}"
        examples.append(Example("typical", grounded.caption, draw_grounded_caption(photo, grounded, width=480), note))
    rule = (
        f"{_spacing(len(rows), len(captions))}, with the caption written for it, where the photo is at hand. "
        "The region that counted most when a word was written has its colour; in a word's panel brightness is weight. "
        "Faint outlines, where there are any, are the regions' prior."
    )
    return _report(title, results, settings, examples, rule)


def build_answer_report(
    title: str,
    results: Mapping[str, Any],
    answered: Sequence[tuple[Question, GroundedAnswer, PIL.Image.Image | None]],
    num_questions: int,
    settings: Mapping[str, Any],
) -> Report:
    """As [`build_report`], of a question answerer; `answered` are questions by [`evenly_spaced`], with their photos."""
    examples = []
    for question, grounded, image in answered:
        if image is None:
            continue  # questions and stored regions may be there without the photos
        photo = ImageOps.exif_transpose(image).convert("RGB")
        said = ", ".join(f"{answer} ({count})" for answer, count in Counter(question.answers).most_common())
        note = f"People: {said or 'not known'}. Photo {question.image_id}"
        examples.append(Example("typical", question.text, draw_grounded_answer(photo, grounded, width=480), note))
    rule = (
        f"{_spacing(num_questions, len(answered), 'questions')}, with its three likeliest answers, where the "
        "photo is at hand. The more a region counted for the answer, the more opaque is its outline."
    )
    return _report(title, results, settings, examples, rule)


def _report(
    title: str, results: Mapping[str, Any], settings: Mapping[str, Any], examples: list[Example], rule: str
) -> Report:
    return Report(
        title=title,
        settings=settings,
        protocol=protocol_of(results),
        metrics=result_tables(results),
        curve=_curve(results.get("curve") or ()),
        examples=examples,
        rule=rule,
    )


def evenly_spaced(count: int, num_examples: int) -> list[int]:
    """`num_examples` of `count` rows, or all where they are no more: one of every k, from the first k's middle."""
    stride = max(1, count // num_examples)
    return list(range(stride // 2, count, stride))[:num_examples]


def _spacing(count: int, num_examples: int, noun: str = "photos") -> str:
    return f"one of every {max(1, count // max(1, num_examples))} {noun} in the order of the data set"


def protocol_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """How the numbers were measured, flat enough for one line."""
    facts = {name: results[name] for name in ("split", "num_images", "query_heatmap") if name in results}
    run = ("seed", "epochs", "best_step", "training_seconds", "date", "machine")
    run_facts = {name: results[name] for name in run if name in results}
    if "concepts" in results:
        return facts | results["concepts"]["protocol"] | run_facts
    if "captions" in results:
        facts |= {"beams": results["num_beams"], "tokens": "Penn Treebank, without punctuation"}
        return facts | ({"image": "withheld"} if results["image_withheld"] else {}) | run_facts
    if "answers" in results:
        facts |= {"questions": results["answers"]["count"], "accuracy": results["accuracy"]}
        return facts | ({"image": "withheld"} if results["image_withheld"] else {}) | run_facts
    pointing = results["model"]
    facts |= {name: pointing["protocol"][name] for name in ("box_rule", "min_box_area", "skip_categories", "ties")}
    facts["union_mask"] = results["attention_correctness"]["protocol"]["union_mask"]
    facts["phrases counted"] = pointing["count"]
    facts["phrases skipped"] = " + ".join(f"{count} {reason}" for reason, count in pointing["skipped"].items())
    facts["intervals"] = f"95 %, bootstrap over images, {pointing['protocol']['num_resamples']} resamples"
    return facts | run_facts


def result_tables(results: Mapping[str, Any]) -> list[Table]:
    """The numbers of a run, in percent: for the report, and for `hf-grounding evaluate`."""
    if "concepts" in results:
        return _concept_tables(results["concepts"], results["baselines"])
    if "captions" in results:
        tables = [_caption_table(results["captions"], results["baselines"])]
        return tables + ([_object_table(results["objects"])] if "objects" in results else [])
    if "answers" in results:
        return _answer_tables(results["answers"], results["baselines"])
    pointing, correctness = results["model"], results["attention_correctness"]
    baselines = results["baselines"]
    categories = sorted(pointing["by_category"], key=lambda name: -pointing["by_category"][name]["count"])

    def part(scores: Mapping[str, Any], category: str | None) -> Mapping[str, Any]:
        return scores if category is None else scores["by_category"].get(category, {})

    main = [
        {
            "category": category or "all",
            "pointing game": _percent(part(pointing, category)["pointing_accuracy"]),
            "95 % interval": _interval(part(pointing, category)["interval"]),
            **{name: _percent(part(scores, category)["pointing_accuracy"]) for name, scores in baselines.items()},
            "attention correctness": _percent(part(correctness, category).get("attention_correctness")),
            "phrases": part(pointing, category)["count"],
        }
        for category in (None, *categories)
    ]
    note = f"{', '.join(baselines)}: pointing game of trivial answers. A phrase with several categories is in each."
    tables = [Table("Phrase grounding, %", main, note)]
    if "boxes" in results:
        rows = [
            {
                "measure": "IoU of .5 or more",
                "phrases, %": _percent(results["boxes"]["box_accuracy"]),
                "phrases": results["boxes"]["count"],
            }
        ]
        tables.append(Table("Predicted boxes", rows, "Against the best of a phrase's annotated boxes."))
    return [*tables, _level_table(results["levels"], categories)]


def _concept_tables(concepts: Mapping[str, Any], baselines: Mapping[str, float], most: int = 20) -> list[Table]:
    everything = {
        "words": concepts["count"],
        "mean average precision": _percent(concepts["mean_average_precision"]),
        "chance": _percent(concepts["chance"]),
        **{name: _percent(precision) for name, precision in baselines.items()},
        "unknown to the detector": len(concepts["unknown"]),
    }
    words = [
        {"word": word, "average precision": _percent(precision), "chance": _percent(concepts["share_by_concept"][word])}
        for word, precision in list(concepts["by_concept"].items())[:most]
    ]
    note = f"{', '.join(baselines)}: every image has the same scores."
    return [
        Table("Concepts, %", [everything], note),
        Table(f"The {len(words)} commonest words, %", words, "Chance: the share of images that have the word."),
    ]


def _caption_table(captions: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        {
            "captions of": name,
            **{f"BLEU-{n}": _percent(scores[f"bleu_{n}"]) for n in range(1, 5)},
            "METEOR": _percent(scores.get("meteor")),
            "ROUGE-L": _percent(scores["rouge_l"]),
            "CIDEr-D": _percent(scores["cider_d"]),
            "distinct": scores["distinct"],
            "mean length": round(scores["mean_length"], 1),
            "vocabulary": scores["vocabulary"],
            "images": scores["count"],
        }
        for name, scores in {"this model": captions, **baselines}.items()
    ]
    notes = {
        "consensus of similar photos": "Consensus: of all captions of the 25 training photos with the most similar "
        "features, the one most like the others (CIDEr-D).",
        "one reference against the others": "One reference: each photo's first caption against its others, so with one "
        "reference fewer.",
    }
    absent = [f"{name.upper()} is absent: {why}" for name, why in captions["absent"].items()]
    return Table("Captions, x 100", rows, " ".join([*(notes[name] for name in baselines), *absent]))


def _object_table(objects: Mapping[str, Any]) -> Table:
    given, best = objects["given_captions"], objects["oracle"]
    row = {
        "F1 all": _percent(objects["f1_all"]),
        "F1 loc": _percent(objects["f1_loc"]),
        "F1 all, best regions": _percent(best["f1_all"]),
        "F1 loc, best regions": _percent(best["f1_loc"]),
        "objects found by a region": _percent(objects["region_recall"]),
        "accuracy in people's captions": _percent(given["grounding_accuracy"]),
        "attention correctness": _percent(given["attention_correctness"]),
        "of uniform weights": _percent(given["uniform_attention"]),
        "classes": objects["num_classes"],
    }
    note = (
        "F1 of captions written greedily, mean over classes; best regions: if each object word had the region that "
        "fits it best. Accuracy and attention correctness: of the objects in people's captions, word by word."
    )
    if "prior" in objects:
        row["place in the prior"] = _percent(objects["prior"]["spatial_alive"])
        row["class in the prior"] = _percent(objects["prior"]["semantic_alive"])
        note += " Place and class in the prior: regions whose own counts, its ReLU being above 0."
    return Table("Grounding of objects, %", [row], note)


def _answer_tables(answers: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    if "vqa_accuracy" not in answers:  # those of a test
        return [Table("Answers", [{"answers of": "this model", "questions": answers["count"]}])]
    everyone = {"this model": answers, **baselines}
    rows = [
        {
            "answers of": name,
            "all": _percent(scores["vqa_accuracy"]),
            **{kind: _percent(of_kind["vqa_accuracy"]) for kind, of_kind in scores["by_answer_type"].items()},
        }
        for name, scores in everyone.items()
    ]
    counts = ", ".join(f"{part['count']} {kind}" for kind, part in answers["by_answer_type"].items())
    note = (
        f"Of {answers['count']} questions, {counts}. {answers['distinct']} different answers were given; always "
        f"choosing the best of the answers that the model knows gives {_percent(answers['reachable'])}."
    )
    by_type = [
        {
            "question type": kind,
            **{name: _percent(scores["by_question_type"][kind]["vqa_accuracy"]) for name, scores in everyone.items()},
            "questions": part["count"],
        }
        for kind, part in sorted(answers["by_question_type"].items(), key=lambda pair: -pair[1]["count"])
    ]
    return [Table("Accuracy, %", rows, note), Table("Accuracy by question type, %", by_type)]


def _level_table(levels: Mapping[str, Any], categories: Sequence[str]) -> Table:
    by_category = {name: levels["by_category"][name] for name in categories if name in levels["by_category"]}
    everything = {"all words": {"rates": levels["average"], "count": levels["count"]}}
    rows = everything | by_category | {"whole sentences": levels["sentence"]}
    return Table(
        "Level chosen, %",
        [
            {
                "category": name,
                **{f"level {level}": _percent(rate) for level, rate in enumerate(row["rates"])},
                "count": row["count"],
            }
            for name, row in rows.items()
        ],
        "Of the words in phrases of each category, of all words, and of sentences. Level 0 is the backbone's lowest.",
    )


def choose_examples(
    predictions: Mapping[str, list], hits: np.ndarray, counted: np.ndarray, count: int = 6
) -> tuple[dict[str, list[int]], str]:
    r"""Phrases to show, by a rule that looks at scores, hits and order alone.

    Args:
        predictions (`dict`): Of `predict_groundings`.
        hits, counted (`np.ndarray` of shape `(n,)`): Which phrases are hits, and which count, see `pointing_hits`.
        count (`int`): Phrases of each group, fewer where there are no more.

    Returns:
        For each group the indices of its phrases, and the rule in words.
    """
    indices = np.flatnonzero(counted)
    by_score = indices[np.argsort(-np.asarray(predictions["score"])[indices], kind="stable")]

    def best(wanted: np.ndarray) -> list[int]:
        first_of_image: dict[str, int] = {}
        for index in by_score[wanted[by_score]].tolist():
            first_of_image.setdefault(predictions["image_id"][index], index)
        return list(first_of_image.values())[:count]

    stride = max(1, len(indices) // count)
    groups = {"good": best(hits), "typical": indices[stride // 2 :: stride][:count].tolist(), "failed": best(~hits)}
    rule = (
        f"of the {len(indices)} phrases counted, of which {hits[indices].mean():.1%} are hits. Good: the hits with the "
        f"highest scores, one for each photo. Typical: one of every {stride} phrases in the order of the data set, hit "
        "or miss. Failed: the misses with the highest scores, one for each photo."
    )
    return groups, rule


def _draw_examples(
    groups: Mapping[str, list[int]], hits: np.ndarray, predictions: Mapping[str, list], rows: Dataset
) -> list[Example]:
    row_of_image = {image_id: row for row, image_id in enumerate(rows["image_id"])}
    examples = []
    for group, indices in groups.items():
        for index in indices:
            phrase = {name: values[index] for name, values in predictions.items()}
            row = rows[row_of_image[phrase["image_id"]]]
            photo = ImageOps.exif_transpose(row["image"])
            # Predictions are in pixels of the annotated image; the stored photo may be smaller.
            scale = np.array([photo.width / row["width"], photo.height / row["height"]])
            found = not np.isnan(phrase["point"]).any()
            box = phrase["box"] if found and phrase.get("box") is not None else None
            grounding = Grounding(
                phrase["phrase"],
                phrase["span"],
                box=None if box is None else _scaled(box, scale),
                point=_scaled(phrase["point"], scale) if found else None,
                score=phrase["score"],
                heatmap=phrase["heatmap"],
            )
            picture = draw_grounding(
                photo, grounding, boxes=[_scaled(each, scale) for each in phrase["boxes"]], width=480
            )
            words, (start, end) = row["captions"][phrase["sentence"]].split(), phrase["span"]
            caption = " ".join([*words[:start], f"[{' '.join(words[start:end])}]", *words[end:]])
            verdict, categories = "Hit" if hits[index] else "Miss", ", ".join(phrase["categories"]) or "no category"
            note = f"{verdict}; {categories}; photo {phrase['image_id']}"
            examples.append(Example(group, caption, picture, note))
    return examples


def _scaled(coordinates: Sequence[float], scale: np.ndarray) -> tuple[Any, ...]:
    """x, y or x1, y1, x2, y2 times (x scale, y scale)."""
    return tuple((np.reshape(coordinates, (-1, 2)) * scale).ravel().tolist())


def _curve(log: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    entries = [
        {"step": entry["step"]} | {name: entry[key] * factor for key, (name, factor) in _CURVES.items() if key in entry}
        for entry in log
    ]
    return [entry for entry in entries if len(entry) > 1]


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def _interval(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}"
