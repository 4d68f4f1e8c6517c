"""Training of question answerers: answers and targets, schedules, whole runs, baselines, refusals before it begins."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file

from hf_grounding.data.region_store import RegionStoreWriter
from hf_grounding.data.result_files import read_vqa_results
from hf_grounding.modeling.modeling_mia_vqa import MIAForVQA
from hf_grounding.processing.concepts import write_image_concepts
from hf_grounding.processing.processing_mia_vqa import MIAVQAProcessor
from hf_grounding.processing.regions import Regions, grid_boxes
from hf_grounding.training.caption_data import load_inputs
from hf_grounding.training.common import load_split
from hf_grounding.training.recipe import Recipe
from hf_grounding.training.run import evaluate, train
from hf_grounding.training.vqa import VQATrainer, VQATrainingArguments, build_answerer, warn_of_seen
from hf_grounding.training.vqa_data import (
    Question,
    QuestionSet,
    VQACollator,
    answer_vocabulary,
    answered,
    cooccurring_vectors,
    questions_of,
)
from hf_grounding.training.vqa_evaluation import (
    answer_questions,
    ground_answers,
    measure_answers,
    measure_baselines,
    score_answers,
    write_answers,
)

RECIPE = {
    "description": "tiny",
    "system": "mia_vqa",
    "dataset": {
        "name": "scenes",
        "options": {"num_train": 40, "num_val": 10, "num_test": 0, "image_size": 64, "attributes": ["color", "shape"]},
    },
    "regions": {
        "max_regions": 6,
        "max_concepts": 6,
        "append_locations": True,
        "scene_detector": {"num_distractors": 0},
    },
    "model": {
        "answer_head": "ban",
        "num_glimpses": 2,
        "hidden_size": 32,
        "question_hidden_size": 32,
        "word_embedding_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "mia_iterations": 1,
        **dict.fromkeys(["dropout", "mia_dropout", "attention_dropout", "bilinear_dropout", "classifier_dropout"], 0.0),
    },
    "training": {
        "num_train_epochs": 16,
        "per_device_train_batch_size": 16,
        "adamax": True,
        "learning_rate": 1e-2,
        "lr_epoch_factors": [0.5, 1],
        "lr_decay_epochs": [12],
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 80,
        "save_steps": 80,
        "load_best_model_at_end": True,
        "logging_steps": 10,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


def question(answers: list[str], number: int = 0, question_type: str = "what", answer_type: str = "other") -> Question:
    return Question(str(number), "1", "what is it ?", answers, answer_type, question_type)


def tiny_recipe(tmp_path: Path, **sections: dict[str, Any]) -> Recipe:
    values = {name: RECIPE.get(name, {}) for name in RECIPE.keys() | sections.keys()}
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return Recipe.load(tmp_path / "config.yaml")


# Answers and words


def test_a_single_answer_counts_as_that_of_ten_people():
    questions = [question(["red lamp, a bed"]), question(["2"] * 3 + ["3"] * 7)]
    scores = score_answers(["red lamp, a bed", "2"], questions)
    assert scores["vqa_accuracy"] == pytest.approx((1 + 0.9) / 2)  # exact, and the official accuracy of 3 of 10
    assert score_answers(["red lamp bed", "2"], questions)["vqa_accuracy"] == pytest.approx(0.45)


def test_the_vocabulary_has_main_answers_of_enough_questions_the_commonest_first():
    ten = ["Two"] * 4 + ["the dog"] * 6  # the majority, normalised
    questions = [question(ten), question(["dog"]), question(["a cup"]), question(["a cup"]), question(["bed"])]
    assert answer_vocabulary(questions) == ["a cup", "dog", "bed"]
    assert answer_vocabulary(questions, min_count=2) == ["a cup", "dog"]
    assert answer_vocabulary(questions, max_answers=1) == ["a cup"]
    with pytest.raises(ValueError, match=r"No answer is that of 3 questions; lower `answers.min_count`"):
        answer_vocabulary(questions, min_count=3)


def test_labels_are_soft_scores_of_known_answers_alone(tmp_path):
    recipe = tiny_recipe(tmp_path)
    _, processor = build_answerer(recipe, ["what is it ?"], ["2", "net"], ["red"], feature_dim=4)
    regions = {"1": Regions("1", (8, 8), np.array([[0, 0, 4, 4]]), region_features=np.ones((1, 4)))}

    class Inputs:
        def read(self, image_ids):
            return {"regions": [regions[image_id] for image_id in image_ids]}

    batch = VQACollator(processor, Inputs())([question(["2"] * 3 + ["mesh"] * 7), question(["net"]), question(["x"])])
    assert batch["labels"].tolist() == [pytest.approx([0.9, 0]), [0, 1], [0, 0]]
    assert batch["region_features"][0].tolist() == [[1, 1, 1, 1, 0, 0, 0.5, 0.5, 0.25]]
    assert "labels" not in VQACollator(processor, Inputs(), with_labels=False)([question(["2"])])


def test_second_word_vectors_are_means_of_the_words_beside_a_word_the_rarer_ones_counting_more():
    vectors = torch.tensor([[1.0, 0], [0, 1], [2, 2], [5, 5]])
    # Texts "0 1", "0 2", "1", "3" with 9 as padding: word 1 stands twice, so it counts 1/2 beside word 0, and word 2 1.
    mean_of_0 = (0.5 * vectors[1] + 1.0 * vectors[2]) / 1.5
    found = cooccurring_vectors([[9, 0, 1], [9, 0, 2], [9, 9, 1], [9, 9, 3]], vectors, special=[9])
    torch.testing.assert_close(found, torch.stack([mean_of_0, vectors[0], vectors[0], torch.zeros(2)]))


def test_word_vectors_are_where_a_model_starts(tmp_path):
    (tmp_path / "vectors.txt").write_text("what 1 2\nit 3 4\n")
    recipe = tiny_recipe(
        tmp_path, questions={"word_vectors": str(tmp_path / "vectors.txt")}, model={"word_embedding_size": 2}
    )
    model, processor = build_answerer(recipe, ["what is it ?"], ["2"], ["red"], feature_dim=4)
    words = processor.tokenizer.convert_tokens_to_ids(["what", "it", "is"])
    # "is" has no vector of its own, and its second one is the mean of those of "what" and "it".
    expected = torch.tensor([[1.0, 2, 1.5, 2], [3, 4, 0.5, 1], [0, 0, 2, 3]])
    torch.testing.assert_close(model.get_input_embeddings().weight[words], expected)


# Schedules


def test_the_learning_rate_follows_the_factors_of_the_epochs(tmp_path):
    # BAN: warm-up .5, 1, 1.5, 2, then x .25 from the epochs 10 and 12 on
    args = VQATrainingArguments(str(tmp_path), lr_epoch_factors=[0.5, 1, 1.5, 2], lr_decay_epochs=[10, 12])
    factors = [args.learning_rate_factor(epoch) for epoch in range(13)]
    assert factors == [0.5, 1, 1.5, *[2] * 7, 0.5, 0.5, 0.125]
    assert VQATrainingArguments(str(tmp_path)).learning_rate_factor(5) == 1


def make_trainer(tmp_path: Path, **settings: Any) -> VQATrainer:
    recipe = tiny_recipe(tmp_path)
    model, processor = build_answerer(recipe, ["what is it ?"], ["2"], ["red"], feature_dim=4)
    args = VQATrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **settings)
    return VQATrainer(
        model=model,
        args=args,
        train_dataset=QuestionSet([question(["2"])] * 20),
        processor=processor,
        eval_questions=[],
        eval_images=None,
    )


def test_the_trainer_steps_as_the_arguments_say(tmp_path):
    trainer = make_trainer(
        tmp_path, adamax=True, learning_rate=1.0, lr_epoch_factors=[0.5, 2], per_device_train_batch_size=10
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=6)
    assert type(trainer.optimizer) is torch.optim.Adamax
    rates = []
    for _ in range(5):  # two steps an epoch
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates == [0.5, 0.5, 2, 2, 2]
    assert type(make_trainer(tmp_path, optim="adamw_torch").create_optimizer()) is torch.optim.AdamW


def test_the_module_learns_at_a_rate_of_its_own(tmp_path):
    trainer = make_trainer(tmp_path, adamax=True, learning_rate=1.0, mia_learning_rate=0.1)
    rates = {each: group["lr"] for group in trainer.create_optimizer().param_groups for each in group["params"]}
    parameters = dict(trainer.model.named_parameters())
    assert {rates[each] for name, each in parameters.items() if name.startswith("model.mia.")} == {0.1}
    assert {rates[each] for name, each in parameters.items() if not name.startswith("model.mia.")} == {1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_epoch_factors": [0.5, 0]}, "`lr_epoch_factors` and `lr_decay_factor` must be above 0"),
        ({"lr_epoch_factors": [float("nan")]}, "`lr_epoch_factors` and `lr_decay_factor` must be above 0 and finite"),
        ({"lr_epoch_factors": [0.5, 1], "warmup_steps": 0.1}, "`warmup_steps` is 0.1, but `lr_epoch_factors` and"),
        ({"lr_decay_epochs": [-1]}, "`lr_decay_epochs` are counted from 0, got"),
        ({"metric_for_best_model": "loss"}, "`metric_for_best_model` must be vqa_accuracy, got 'loss'"),
    ],
)
def test_schedules_that_cannot_be_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        VQATrainingArguments(str(tmp_path), **settings)


# Scores


def test_baselines_are_the_commonest_answers_of_the_training_questions():
    training = [question(["red"], i, "color") for i in range(3)] + [
        question([str(i % 2)], i, "count") for i in range(4)
    ]
    questions = [question(["red"], 0, "color"), question(["0"], 1, "count"), question(["red"], 2, "new")]
    baselines = measure_baselines(questions, training)
    assert baselines["majority answer"]["vqa_accuracy"] == pytest.approx(2 / 3)
    by_type = baselines["majority answer of the question type"]
    assert by_type["vqa_accuracy"] == 1  # of equally common answers the first by alphabet; a new type has that of all
    assert by_type["by_question_type"]["count"] == {"vqa_accuracy": 1, "count": 1}


def test_what_an_answerer_can_reach_is_stated():
    questions = [question(["lamp"]), question(["unknown"]), question(["no"] * 7 + ["yes"] * 3)]
    answers = measure_answers(["lamp", "lamp", "yes"], questions, ["lamp", "yes"])["answers"]
    assert answers["reachable"] == pytest.approx((1 + 0 + 0.9) / 3)
    assert answers["distinct"] == 2


def test_what_can_be_reached_counts_known_answers_that_the_accuracy_takes_for_the_same():
    # "Two" is "2" once people differ: 5 of 10 agree with either known answer, which is full accuracy.
    differ, agree = question(["Two"] * 5 + ["three"] * 5), question(["Two"] * 10)
    assert measure_answers(["2"], [differ], ["2", "3"])["answers"]["reachable"] == 1
    # Where all agree it must be their text: "2" is not "Two".
    assert measure_answers(["2"], [agree], ["2", "3"])["answers"]["reachable"] == 0
    assert measure_answers(["2"], [agree], ["2", "Two"])["answers"]["reachable"] == 1


def test_questions_of_the_training_are_told_where_they_are_measured(caplog):
    training, other = [question(["2"], number) for number in range(3)], question(["2"], 7)
    assert warn_of_seen([other], training, "val", "train") == 0
    assert not caplog.records
    assert warn_of_seen([training[0], training[2], other], training, "val", "train+val") == 2
    assert "2 of the 3 questions of 'val' are also in the training split 'train+val'" in caplog.text


# A whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vqa")
    train(tiny_recipe(folder), folder / "run")
    return folder / "run"


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_it_learns_its_questions_from_their_images(run: Path):
    losses = [entry["loss"] for entry in results_of(run)["curve"] if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    recipe = Recipe.load(run)
    rows = load_split(recipe, "train")
    questions, images = questions_of(rows), load_inputs(recipe, rows, "train")
    model, processor = MIAForVQA.from_pretrained(run), MIAVQAProcessor.from_pretrained(run)
    answers = answer_questions(model, processor, images, questions)
    images.withheld = True
    blind = answer_questions(model, processor, images, questions)
    assert score_answers(answers, questions)["vqa_accuracy"] > score_answers(blind, questions)["vqa_accuracy"] + 0.2
    images.withheld = False
    assert answer_questions(model, processor, images, questions, batch_size=7) == answers
    grounded = ground_answers(model, processor, images, questions[:3])
    assert [each.answers[0][0] for each in grounded] == answers[:3]


def test_an_answerer_of_scenes_knows_that_its_regions_were_simulated(run: Path):
    recipe = Recipe.load(run)
    extraction = {
        "scene_detector": {"attributes": recipe.dataset.options["attributes"], **recipe.images.scene_detector}
    }
    assert MIAVQAProcessor.from_pretrained(run).extraction == extraction


def test_evaluation_repeats_the_numbers_of_the_training(run: Path, tmp_path: Path):
    saved, results = results_of(run), evaluate(run, answers=tmp_path / "answers.json", report=tmp_path / "report.html")
    assert results["answers"] == saved["answers"]
    assert results["baselines"] == saved["baselines"]
    assert json.loads((tmp_path / "answers.json").read_text()) == json.loads((run / "answers.json").read_text())
    assert set(saved["answers"]["by_answer_type"]) == {"yes/no", "number", "other"}
    assert saved["accuracy"] == "exact match with one answer"
    for page in (run / "report.html", tmp_path / "report.html"):
        text = page.read_text()
        assert "majority answer of the question type" in text
        assert text.count("<img") == 12
    with pytest.raises(ValueError, match=r"`box_rule` is of phrase grounding, and .* holds a question answerer"):
        evaluate(run, box_rule="any")


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(run: Path, tmp_path: Path):
    first, last = sorted((path.name for path in run.glob("checkpoint-*")), key=lambda name: int(name.split("-")[1]))[
        ::2
    ]
    for name in ("recipe.yaml", first):
        (tmp_path / name).symlink_to(run / name)
    train(Recipe.load(run), tmp_path, resume=True)
    whole, resumed = (load_file(folder / last / "model.safetensors") for folder in (run, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_answers_are_written_as_the_official_evaluator_reads_them(tmp_path: Path):
    asked = [question(["2"] * 10, 458752000), question(["net"] * 10, 9)]
    write_answers(tmp_path / "answers.json", asked, ["2", "mesh"])
    assert json.loads((tmp_path / "answers.json").read_text())[0] == {"question_id": 458752000, "answer": "2"}
    entries = [
        {
            "question_id": int(each.question_id),
            "answers": [{"answer": answer} for answer in each.answers],
            "answer_type": "other",
            "question_type": "what",
        }
        for each in asked
    ]
    (tmp_path / "questions.json").write_text(json.dumps({"questions": entries}))
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": entries}))
    files = (tmp_path / name for name in ("answers.json", "questions.json", "annotations.json"))
    assert read_vqa_results(*files).predictions == ["2", "mesh"]


@pytest.mark.parametrize("question_id", ["007", "9" * 5000, "\u0663"], ids=["zeros", "long", "arabic"])
def test_ids_that_would_change_as_numbers_stay_text(tmp_path: Path, question_id: str):
    write_answers(tmp_path / "answers.json", [question(["2"], question_id)], ["2"])
    assert json.loads((tmp_path / "answers.json").read_text()) == [{"question_id": question_id, "answer": "2"}]


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "answers.json"
    write_answers(file, [question(["2"])], ["2"])
    before = file.read_text()

    def full_disk(self: Path, text: str, **kwargs: Any) -> int:
        with self.open("w") as half:
            half.write(text[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_answers(file, [question(["3"])], ["3"])
    assert file.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["answers.json"]


# Photos with stored regions


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    """DAQUAR of two photos, with a region store of their grids and a file of concepts."""
    root = tmp_path / "daquar"
    (root / "images").mkdir(parents=True)
    lines = {"train": [], "val": []}
    with RegionStoreWriter(tmp_path / "store", {}, detector="grid") as writer:
        for number, split in ((1, "train"), (2, "train"), (3, "val")):
            name = f"image{number}"
            Image.effect_noise((32, 24), 80).convert("RGB").save(root / "images" / f"{name}.jpg")
            features = np.random.default_rng(number).random((4, 6), dtype=np.float32)
            writer.add(Regions(name, (24, 32), grid_boxes(2, 2, (24, 32)), region_features=features))
            for what, answer in (("how many beds are", str(number % 2)), ("what is on the desk", "lamp, book")):
                lines[split] += [f"{what} in the {name} ?", answer]
    for split, texts in lines.items():
        (root / f"qa.{split}.txt").write_text("\n".join(texts))
    write_image_concepts(tmp_path / "concepts.json", {f"image{number}": ["bed", "lamp"] for number in (1, 2, 3)})
    return tmp_path


def rooms_recipe(rooms: Path, **regions: Any) -> Recipe:
    sections = {
        "dataset": {"name": "daquar", "data_dir": str(rooms / "daquar"), "options": {}},
        "regions": {"scene_detector": {}, "store": str(rooms / "store"), "concepts": str(rooms / "concepts.json")}
        | regions,
        "training": {"max_steps": 2, "eval_steps": 2, "save_steps": 2},
    }
    return tiny_recipe(rooms, **sections)


def test_photos_are_read_from_a_store_and_a_file_of_concepts(rooms: Path):
    results = train(rooms_recipe(rooms), rooms / "run")
    assert results["answers"]["by_question_type"].keys() == {"how many", "what"}
    assert [entry["question_id"] for entry in json.loads((rooms / "run" / "answers.json").read_text())] == [3000, 3001]
    processor = MIAVQAProcessor.from_pretrained(rooms / "run")
    assert (processor.concepts, processor.answers) == (["bed", "lamp"], ["lamp, book", "0", "1"])


def test_withheld_images_are_all_alike(rooms: Path):
    recipe = rooms_recipe(rooms, withhold_image=True)
    rows = load_split(recipe, "train")
    first, second = load_inputs(recipe, rows, "train").read(rows["image_id"])["regions"]
    assert len(first) == len(second) == 1
    assert (first.region_features == 1).all()
    assert train(recipe, rooms / "blind")["image_withheld"]


def test_what_is_missing_is_named_before_the_training(rooms: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="Mutual attention reads concepts, and section `regions` names no `concepts`"):
        train(rooms_recipe(rooms, concepts=None), rooms / "run")
    with pytest.raises(ValueError, match="names no `store`; make one with `hf-grounding extract-features`"):
        train(rooms_recipe(rooms, store=None), rooms / "run")
    with pytest.raises(ValueError, match="A question answerer has no settings in section `captions`"):
        tiny_recipe(tmp_path, captions={"num_beams": 5})
    with pytest.raises(ValueError, match=r"A captioner has no `regions.append_locations`; leave it out"):
        Recipe.load("mia_scenes", {"regions.append_locations": "true"})
    with pytest.raises(ValueError, match="`min_count` must be 1 or more, got 0"):
        tiny_recipe(tmp_path, answers={"min_count": 0})


def test_questions_without_answers_can_be_answered_but_not_measured():
    with pytest.raises(ValueError, match=r"1 of 2 questions of 'test' have no answers, such as '7': they can be"):
        answered([question(["2"]), question([], 7)], "test")
    with pytest.raises(ValueError, match="The data of 'train' have no questions"):
        answered(questions_of(Dataset.from_dict({"image_id": ["1"], "questions": [[]]})), "train")
