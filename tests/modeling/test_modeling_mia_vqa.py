"""The checks that every model passes, for question answerers; Auto classes; padding; attentions; losses; errors."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForVisualQuestionAnswering

from hf_grounding import MIAForVQA, MIAVQAConfig, MIAVQAProcessor, save_with_code
from hf_grounding.processing.question_tokenizers import train_question_tokenizer
from hf_grounding.processing.regions import Regions
from tests.answerers import (
    CASE_IDS,
    CASES,
    LABELS,
    PAD,
    QUESTION_MASK,
    REGION_MASK,
    inputs_of,
    small_answerer,
    small_config,
    small_inputs,
    without_dropout,
)
from tests.common import REPO, ModelTesterMixin, assert_same, run_python, tensors_of


class AnswererTesterMixin(ModelTesterMixin):
    answer_head, mia_iterations = "up_down", 0
    settings: dict[str, str | bool] = {}

    def make_model(self):
        return without_dropout(self.answer_head, self.mia_iterations, **self.settings)

    def make_inputs(self):
        return {**small_inputs(), "labels": LABELS}


class TestUpDown(AnswererTesterMixin):
    cancelling = ("attention.score.bias",)


class TestUpDownThatConcatenates(TestUpDown):
    settings = {"attention_type": "concat"}


class TestUpDownWithMIA(AnswererTesterMixin):
    cancelling = ("attention.score.bias", "attention.key.bias")
    mia_iterations = 2
    settings = {"mia_project_back": True}


class TestBAN(AnswererTesterMixin):
    answer_head = "ban"


class TestBANWithMIA(AnswererTesterMixin):
    answer_head, mia_iterations = "ban", 2
    cancelling = ("attention.key.bias",)


class TestUpDownOverMutuallyRefinedRegions(TestUpDownWithMIA):
    settings = {"mia_output": "visual", "share_iteration_weights": False}


class TestBANOverRegionsThatAttendToThemselves(TestBANWithMIA):
    settings = {"mia_attention": "self", "mia_output": "visual"}


class TestBANThatDoesNotCount(AnswererTesterMixin):
    answer_head = "ban"
    cancelling = ("glimpses.bias",)
    settings = {"use_counter": False}


# Sharing


def make_processor() -> MIAVQAProcessor:
    words = ["what", "is", "the", "man", "'s", "dog", "doing", "how", "many", "are", "there", "<unk>"]
    return MIAVQAProcessor(
        train_question_tokenizer(vocabulary=words),
        concepts=["man", "dog", "horse", "grass", "sky", "red"],
        answers=["yes", "no", "2", "red", "running"],
        extraction={"detector": "somewhere"},
    )


def processed(processor: MIAVQAProcessor) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    boxes = np.array([[0, 0, 10, 10], [5, 5, 20, 15], [0, 0, 30, 20]])
    regions = [
        Regions(str(count), (20, 30), boxes[:count], region_features=rng.normal(size=(count, 6)).astype("float32"))
        for count in (3, 2)
    ]
    questions = ["What is the man's dog doing?", "How many?"]
    return processor(questions, regions, [["dog", "red"], ["man"]], [{"running": 0.9}, {"2": 1.0}])


LOAD_AND_RUN = """
import json, sys
folder, results, how = sys.argv[1:]
remote = how == "without_package"
if remote:
    sys.modules["hf_grounding"] = None
else:
    import hf_grounding
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForVisualQuestionAnswering, AutoProcessor
config = AutoConfig.from_pretrained(folder, trust_remote_code=remote)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=remote)
model = AutoModelForVisualQuestionAnswering.from_pretrained(folder, trust_remote_code=remote)
inputs = load_file(f"{results}/inputs.safetensors")
encoded = processor(text=["What is the man's dog doing?", "How many?"])
assert all((encoded[name] == inputs[name]).all() for name in ("input_ids", "attention_mask"))
save_file({"logits": model(**inputs).logits.detach()}, f"{results}/logits.safetensors")
with open(f"{results}/classes.json", "w") as file:
    json.dump([[type(each).__module__, type(each).__name__] for each in (config, processor, model)], file)
"""


@pytest.mark.parametrize("how", ["with_package", "without_package"])
def test_auto_classes_load_model_and_processor_in_a_new_process(tmp_path, how):
    model, processor = small_answerer("ban"), make_processor()
    if how == "with_package":
        model.save_pretrained(tmp_path / "saved")
        processor.save_pretrained(tmp_path / "saved")
    else:
        save_with_code(model, processor, tmp_path / "saved")
    results = tmp_path / "results"
    results.mkdir()
    inputs = dict(processed(processor))
    save_file(inputs, results / "inputs.safetensors")
    alone = how == "without_package"
    run_python(LOAD_AND_RUN, str(tmp_path / "saved"), str(results), how, cwd=results if alone else REPO, isolated=alone)
    actual = load_file(results / "logits.safetensors")["logits"]
    torch.testing.assert_close(actual, model(**inputs).logits, rtol=1e-5, atol=1e-6)
    modules, names = zip(*json.loads((results / "classes.json").read_text()), strict=True)
    assert names == ("MIAVQAConfig", "MIAVQAProcessor", "MIAForVQA")
    assert all(module.startswith("transformers_modules." if alone else "hf_grounding.") for module in modules)


def test_auto_classes_know_the_answerer():
    assert AutoConfig.for_model("mia_vqa", answer_head="ban").num_glimpses == 8
    model = AutoModelForVisualQuestionAnswering.from_config(small_config("ban"))
    assert type(model) is MIAForVQA


# Batches and padding


def aligned(outputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """Of one question of the batch, cut to what it has of words and regions."""
    words, regions = int(QUESTION_MASK[row].sum()), int(REGION_MASK[row].sum())
    cut = {"logits.0": outputs["logits.0"][row, None]}
    cut["region_attentions.0"] = outputs["region_attentions.0"][row, None, :regions]
    if "word_region_attentions.0" in outputs:
        cut["word_region_attentions.0"] = outputs["word_region_attentions.0"][row, None, :, -words:, :regions]
    return cut


@pytest.mark.parametrize(("head", "iterations"), CASES, ids=CASE_IDS)
def test_a_batch_equals_its_questions_alone_without_padding(head, iterations):
    model = small_answerer(head, iterations)
    together = tensors_of(model(**small_inputs(), output_attentions=True))
    for row in range(3):
        alone = tensors_of(model(**inputs_of(row), output_attentions=True))
        alone = {name: value for name, value in alone.items() if not name.startswith("mia_attentions")}
        assert_same(aligned(together, row), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("head", "iterations"), CASES, ids=CASE_IDS)
def test_what_stands_in_padding_changes_nothing(head, iterations):
    model, inputs = small_answerer(head, iterations), small_inputs()
    expected = tensors_of(model(**inputs, output_attentions=True))
    no_region, no_word = inputs["region_mask"] == 0, inputs["attention_mask"] == 0
    inputs["region_features"][no_region] = 7.0
    inputs["boxes"][no_region] = torch.tensor([0.0, 0.0, 0.9, 0.9])
    inputs["input_ids"][no_word] = 3
    inputs["concept_ids"][inputs["concept_mask"] == 0] = 2
    actual = tensors_of(model(**inputs, output_attentions=True))
    assert not any(value.isnan().any() for value in actual.values())
    real = {name: value for name, value in actual.items() if not name.startswith("mia_attentions")}
    assert_same(real, {name: expected[name] for name in real}, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", ["up_down", "ban"])
def test_without_a_mask_padding_is_read_like_words(head):
    model, inputs = small_answerer(head, 0), small_inputs()
    mask = inputs.pop("attention_mask")
    read = model(**inputs).logits
    torch.testing.assert_close(read, model(**inputs, attention_mask=torch.ones_like(mask)).logits)
    assert not torch.allclose(read[1], model(**inputs, attention_mask=mask).logits[1], atol=1e-3)


@pytest.mark.parametrize(("iterations", "settings"), [(0, {}), (2, {"mia_attention": "self", "mia_output": "visual"})])
def test_concepts_that_the_module_does_not_need_are_not_read(iterations, settings):
    model, inputs = small_answerer("up_down", iterations, **settings), small_inputs()
    assert not model.config.uses_concepts
    expected = model(**inputs).logits
    del inputs["concept_ids"], inputs["concept_mask"]
    assert torch.equal(model(**inputs).logits, expected)
    names = [name for name, _ in model.named_parameters()]
    assert any("mia" in name for name in names) == (iterations > 0)
    assert not any("concept" in name or "textual" in name or "fusion" in name for name in names)


# Attentions


@pytest.mark.parametrize(("head", "iterations"), CASES, ids=CASE_IDS)
def test_weights_of_regions_sum_to_one_over_real_ones(head, iterations):
    outputs = small_answerer(head, iterations)(**small_inputs(), output_attentions=True)
    weights = outputs.region_attentions
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    assert not weights[REGION_MASK == 0].any()
    if head == "ban":
        maps = outputs.word_region_attentions
        assert maps.shape == (3, 2, 5, 4)
        torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(3, 2))
        assert not maps.transpose(1, 2)[QUESTION_MASK == 0].any()
        torch.testing.assert_close(maps.sum(dim=2).mean(dim=1), weights)
    else:
        assert outputs.word_region_attentions is None


@pytest.mark.parametrize("head", ["up_down", "ban"])
def test_refined_rows_count_for_the_regions_in_their_places(head):
    model, inputs = small_answerer(head), small_inputs()
    outputs = model(**inputs, output_attentions=True)
    assert len(outputs.mia_attentions) == 2
    assert outputs.mia_attentions[0].shape == (3, 2, 2, 4, 4)
    question = model.question(inputs["input_ids"], inputs["attention_mask"])
    concepts = {name: inputs[name] for name in ("concept_ids", "concept_mask")}
    image = model.model(inputs["region_features"], inputs["region_mask"], **concepts)
    weights = model.head(question, image.visual_states, inputs["region_mask"], inputs["boxes"]).weights
    actual = outputs.region_attentions if head == "up_down" else outputs.word_region_attentions
    torch.testing.assert_close(actual, weights)


@pytest.mark.parametrize(
    ("settings", "sides"),
    [
        ({}, [2, 2]),
        ({"mia_output": "visual"}, [2, 1]),
        ({"mia_output": "visual", "mia_order": "textual_first"}, [2, 2]),
        ({"mia_output": "visual", "mia_attention": "self"}, [1, 1]),
    ],
)
def test_attentions_of_the_module_have_the_sides_that_each_iteration_refines(settings, sides):
    model, inputs = small_answerer("ban", **settings), small_inputs()
    attentions = model(**inputs, output_attentions=True).mia_attentions
    assert [tuple(weights.shape) for weights in attentions] == [(3, count, 2, 4, 4) for count in sides]
    image = {name: inputs[name] for name in ("region_features", "region_mask", "concept_ids", "concept_mask")}
    for weights, visual in zip(attentions, model.model(**image, output_attentions=True).attentions, strict=True):
        assert torch.equal(weights[:, 0], visual)


def test_attentions_come_only_when_asked_for():
    outputs = small_answerer("ban")(**small_inputs())
    assert set(outputs) == {"logits"}


# Losses and beginnings


def test_the_loss_is_the_sum_over_answers_and_the_mean_over_questions():
    model = small_answerer("up_down")
    outputs = model(**small_inputs(), labels=LABELS)
    p = outputs.logits.double().sigmoid()
    expected = -(LABELS * p.log() + (1 - LABELS) * (1 - p).log()).sum() / 3
    torch.testing.assert_close(outputs.loss.double(), expected)


def test_dropout_makes_training_steps_differ_and_evaluation_not():
    for head in ("up_down", "ban"):
        model = small_answerer(head)
        assert torch.equal(model(**small_inputs()).logits, model(**small_inputs()).logits)
        model.train()
        assert not torch.equal(model(**small_inputs()).logits, model(**small_inputs()).logits)


def test_a_new_model_starts_as_the_public_codes():
    torch.manual_seed(0)
    model = MIAForVQA(small_config("ban", question_hidden_size=64, num_glimpses=8))
    assert not model.question.embed_words.weight[PAD].any()
    for module in model.modules():
        if hasattr(module, "normalized"):
            torch.testing.assert_close(module.scale, module.weight.norm()[None])
    assert model.head.attention.glimpses.weight.std().item() == pytest.approx(1, abs=0.1)
    assert all((f.weight == 1).all() for f in model.head.counter.f)


def test_word_vectors_become_the_first_vectors_of_words_and_padding_stays_zero():
    vectors = torch.arange(52.0).view(13, 4) + 1
    model = small_answerer("up_down")
    model.set_word_vectors(vectors)
    assert torch.equal(model.question.embed_words.weight[:PAD], vectors[:PAD])
    assert not model.question.embed_words.weight[PAD].any()
    both = small_answerer("ban")
    both.set_word_vectors(vectors)
    assert torch.equal(both.question.embed_words.weight[:PAD], torch.cat([vectors, vectors], dim=1)[:PAD])
    both.set_word_vectors(vectors, 2 * vectors)
    assert torch.equal(both.question.embed_words.weight[:PAD, 4:], 2 * vectors[:PAD])


def test_word_vectors_that_do_not_fit_are_refused():
    model = small_answerer("up_down")
    with pytest.raises(ValueError, match=r"must be \(13, 4\) .* got \(13, 5\)"):
        model.set_word_vectors(torch.zeros(13, 5))
    with pytest.raises(ValueError, match="one vector for each word"):
        model.set_word_vectors(torch.zeros(13, 4), torch.zeros(13, 4))


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region_features": None}, "Give `region_features`"),
        ({"region_features": torch.zeros(3, 4, 5)}, r"must be \(batch, num_regions, 6\).* got \(3, 4, 5\)"),
        ({"region_mask": torch.ones(3, 5)}, r"`region_mask` must be \(3, 4\)"),
        ({"boxes": None}, "give the `boxes`"),
        ({"boxes": torch.zeros(3, 4, 5)}, r"`boxes` must be \(3, 4, 4\), got \(3, 4, 5\)"),
        ({"concept_ids": None}, "`concept_ids` must be"),
        ({"input_ids": None}, r"`input_ids` must be \(3, num_tokens\).* got nothing"),
        ({"input_ids": torch.zeros(2, 5, dtype=torch.long)}, r"got shape \(2, 5\)"),
        ({"input_ids": torch.zeros(3, 0, dtype=torch.long)}, r"got shape \(3, 0\)"),
        ({"attention_mask": torch.ones(3, 4)}, r"`attention_mask` must be \(3, 5\), got \(3, 4\)"),
        ({"labels": torch.zeros(3, 6)}, r"`labels` must be \(3, 5\), got \(3, 6\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_inputs_that_are_missing_or_do_not_fit_say_what_was_expected(change, message):
    with pytest.raises(ValueError, match=message):
        small_answerer("ban")(**small_inputs() | change)


# Settings


def test_defaults_are_those_of_the_public_codes():
    up_down, ban = MIAVQAConfig(), MIAVQAConfig(answer_head="ban")
    assert (up_down.question_hidden_size, up_down.classifier_hidden_size) == (1024, 2048)
    assert (ban.question_hidden_size, ban.classifier_hidden_size, ban.num_glimpses) == (1280, 2560, 8)
    assert (up_down.tfidf_word_embeddings, ban.tfidf_word_embeddings) == (False, True)
    assert (up_down.counts, ban.counts) == (False, True)
    assert up_down.pad_token_id == up_down.vocab_size - 1
    assert (up_down.row_size, MIAVQAConfig(mia_iterations=0).row_size) == (512, 2048)
    assert MIAVQAConfig(mia_project_back=True).row_size == 2048


def test_answers_are_labels():
    config = MIAVQAConfig(id2label={0: "yes", 1: "no", 2: "red"})
    assert config.num_labels == 3
    assert config.label2id == {"yes": 0, "no": 1, "red": 2}
    assert MIAVQAConfig(label2id={"no": 1, "yes": 0}).id2label == {0: "yes", 1: "no"}
    assert MIAVQAConfig(**config.to_dict()).id2label == config.id2label


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer_head": "san"}, "answer_head"),
        ({"attention_type": "sum"}, "attention_type"),
        ({"mia_output": "textual"}, "mia_output"),
        ({"id2label": {0: "yes", 1: "no", 2: "yes"}}, "`id2label` has 1 answers more than once, such as 'yes'"),
        ({"id2label": {1: "yes", 2: "no"}}, "Answers must be numbered from 0 and at least one, got 2"),
        ({"num_labels": 0}, "Answers must be numbered from 0 and at least one, got 0"),
        ({"id2label": {0: "yes"}, "label2id": {"no": 0}}, "`label2id` and `id2label` are of different answers"),
        ({"num_glimpses": 0}, "`num_glimpses` must be 1 or more"),
        ({"pad_token_id": 20000}, "`pad_token_id` must be an id of the vocabulary, 0 to 19999"),
        ({"bilinear_dropout": 1.0}, r"`bilinear_dropout` must be in \[0, 1\)"),
        ({"hidden_size": 500, "num_attention_heads": 8}, "multiple of `num_attention_heads`"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(Exception, match=message):
        MIAVQAConfig(**settings)
