"""Questions, regions, concepts and answers to tensors by hand; outputs to answers with boxes, worked by hand."""

import json

import numpy as np
import pytest
import torch

from hf_grounding.modeling.modeling_mia_vqa import MIAVQAOutput
from hf_grounding.processing.processing_mia_vqa import MIAVQAProcessor
from hf_grounding.processing.question_tokenizers import train_question_tokenizer
from hf_grounding.processing.regions import Regions
from tests.answerers import small_answerer

WORDS = ["what", "is", "the", "man", "'s", "dog", "<unk>"]  # ids 0 to 6, padding 7
CONCEPTS = ["man", "horse", "dog"]  # ids 0 to 2, padding 3
ANSWERS = ["yes", "no", "2", "red"]


def make_processor(**settings) -> MIAVQAProcessor:
    tokenizer = train_question_tokenizer(vocabulary=WORDS, max_words=5)
    return MIAVQAProcessor(tokenizer, **{"concepts": CONCEPTS, "answers": ANSWERS, **settings})


def make_regions(count: int, image_id: str = "1", scores=None) -> Regions:
    """Region i is 10 x 10 pixels at (10 i, 0) of 40 x 100, and its features are i, i + 1, i + 2."""
    boxes = np.array([[10 * i, 0, 10 * i + 10, 10] for i in range(count)], dtype=np.float32).reshape(count, 4)
    features = (np.arange(count)[:, None] + np.arange(3)).astype(np.float32)
    return Regions(image_id, (40, 100), boxes, region_features=features, scores=scores)


# Inputs of the model


def test_all_inputs_of_a_batch_are_padded_and_masked():
    batch = make_processor()(
        text=["What is the dog?", "man"],
        regions=[make_regions(2), make_regions(1, "2")],
        concepts=[["dog", "man"], ["horse"]],
        answer_scores=[{"red": 0.9, "yes": 0.3}, {}],
    )
    assert batch["input_ids"].tolist() == [[0, 1, 2, 5], [7, 7, 7, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]
    assert batch["region_features"].tolist() == [[[0, 1, 2], [1, 2, 3]], [[0, 1, 2], [0, 0, 0]]]
    assert batch["region_mask"].tolist() == [[1, 1], [1, 0]]
    expected = torch.tensor([[[0, 0, 0.1, 0.25], [0.1, 0, 0.2, 0.25]], [[0, 0, 0.1, 0.25], [0, 0, 0, 0]]])
    torch.testing.assert_close(batch["boxes"], expected)
    assert batch["concept_ids"].tolist() == [[2, 0], [1, 3]]
    assert batch["concept_mask"].tolist() == [[1, 1], [1, 0]]
    torch.testing.assert_close(batch["labels"], torch.tensor([[0.3, 0, 0, 0.9], [0, 0, 0, 0]]))


def test_what_is_not_given_is_left_out():
    assert set(make_processor()(text="what")) == {"input_ids", "attention_mask"}
    assert set(make_processor()(regions=make_regions(1))) == {"region_features", "region_mask", "boxes"}


def test_words_that_are_no_concepts_are_left_out_before_the_best_are_taken():
    batch = make_processor(max_concepts=2)(concepts=[["zebra", "dog", "man", "horse"], ["zebra"]])
    assert batch["concept_ids"].tolist() == [[2, 0], [3, 3]]
    assert batch["concept_mask"].tolist() == [[1, 1], [0, 0]]


def test_an_image_with_more_regions_keeps_the_best():
    batch = make_processor(max_regions=2)(regions=make_regions(4, scores=np.array([0.1, 0.5, 0.2, 0.9])))
    assert batch["region_features"][0, :, 0].tolist() == [1, 3]


def test_padding_to_a_fixed_length_is_the_tokenizers():
    assert make_processor()(text="dog", padding="max_length")["input_ids"].tolist() == [[7, 7, 7, 7, 5]]


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"text": ["dog", " ? "]}, "A question has no words: ' \\? '"),
        ({"text": []}, "`text` must be questions"),
        ({"text": ["dog", None]}, "`text` must be questions"),
        ({"regions": make_regions(0)}, "Image '1' has no regions"),
        ({"regions": Regions("7", (4, 4), np.zeros((1, 4)))}, "Image '7' has no region features"),
        ({"concepts": ["dog"]}, "Image 0 needs a list of words"),
        ({"concepts": []}, "`concepts` is empty"),
        ({"answer_scores": [{}, {"rad": 1}]}, "Question 1: 'rad' is none of the 4 answers.* Did you mean 'red'"),
        ({"answer_scores": [{"red": 1.1}]}, r"the score of 'red' must be a number in \[0, 1\], got 1.1"),
        ({"answer_scores": [{"red": float("nan")}]}, "got nan"),
        ({"answer_scores": [{"red": "1"}]}, r"the score of 'red' must be a number in \[0, 1\], got '1'"),
        ({"answer_scores": {"red": 1.0}}, "`answer_scores` must be a list with, for each question, a dictionary"),
        ({"answer_scores": ["red"]}, "`answer_scores` must be a list .* got \\['red'\\]"),
        ({"text": ["dog", "man"], "regions": make_regions(1)}, "numbers differ: {'input_ids': 2, 'region_mask': 1}"),
        ({"text": "dog", "return_tensors": "np"}, '`return_tensors` must be "pt"'),
    ],
)
def test_what_does_not_fit_is_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_processor()(**inputs)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_regions": 0}, "`max_regions` must be 1 or more"),
        ({"max_concepts": 0}, "`max_concepts` must be 1 or more"),
        ({"concepts": ["dog", "man", "dog"]}, "`concepts` has 1 words more than once, such as 'dog'"),
        ({"answers": ["yes", "yes"]}, "`answers` has 1 words more than once, such as 'yes'"),
        ({"extraction": {"grid": 7}}, "A grid of 7 has 49 cells"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_processor(**settings)


def test_saved_and_loaded_it_makes_the_same_inputs(tmp_path):
    processor = make_processor(max_regions=5, extraction={"detector": "yolox"})
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert not any(name.startswith("_") for name in saved)
    loaded = MIAVQAProcessor.from_pretrained(tmp_path)
    assert (loaded.max_regions, loaded.extraction) == (5, {"detector": "yolox"})
    inputs = {"text": ["the dog"], "concepts": [["dog"]], "answer_scores": [{"red": 1.0}]}
    for name, value in processor(**inputs).items():
        assert torch.equal(loaded(**inputs)[name], value), name


# Answers


def outputs_of(region_attentions, word_region_attentions=None) -> MIAVQAOutput:
    """Of one question: "2" is likeliest, then "no"."""
    return MIAVQAOutput(
        logits=torch.tensor([[-1.0, 0.0, 2.0, -3.0]]),
        region_attentions=torch.tensor([region_attentions]),
        word_region_attentions=None if word_region_attentions is None else torch.tensor([word_region_attentions]),
    )


def test_an_answer_comes_with_its_probability_and_its_region():
    (answer,) = make_processor().post_process_answers(
        outputs_of([0.2, 0.7, 0.1, 0.0]), "What is the dog?", make_regions(3), top_k=2
    )
    assert [name for name, _ in answer.answers] == ["2", "no"]
    assert [p for _, p in answer.answers] == pytest.approx([1 / (1 + np.exp(-2)), 0.5])
    assert answer.region_weights.tolist() == pytest.approx([0.2, 0.7, 0.1])  # without the padded region
    (grounding,) = answer.groundings
    assert (grounding.phrase, grounding.token_span) == ("2", (0, 4))
    assert grounding.box == (10, 0, 20, 10)
    assert grounding.point == (15, 5)
    assert grounding.score == pytest.approx(0.7)


def test_each_word_of_a_question_gets_its_own_region_from_all_its_tokens_and_glimpses():
    # "man's" is two tokens; the first column of tokens is padding. Two glimpses, three regions.
    first = [[0, 0, 0], [0.1, 0, 0], [0, 0.2, 0], [0, 0.1, 0.3], [0.3, 0, 0]]
    second = [[0, 0, 0], [0.1, 0, 0.1], [0, 0, 0.2], [0, 0, 0.2], [0, 0.4, 0]]
    (answer,) = make_processor().post_process_answers(
        outputs_of([0.3, 0.3, 0.4], [first, second]), ["What man's dog?"], [make_regions(3)]
    )
    words = answer.groundings[1:]
    assert [(g.phrase, g.token_span) for g in words] == [("What", (0, 1)), ("man's", (1, 2)), ("dog?", (2, 3))]
    assert [g.box[0] / 10 for g in words] == [0, 2, 1]
    # what: .1 + .1 of .3; man's: .3 + .2 + .2 of 1.0; dog: .4 of .7
    assert [g.score for g in words] == pytest.approx([2 / 3, 0.7, 4 / 7])


def test_words_behind_the_longest_question_have_no_region():
    maps = [[[0.2, 0.0]] * 5]
    (answer,) = make_processor().post_process_answers(
        outputs_of([1.0, 0.0], maps), "what is the man dog the dog", make_regions(2)
    )
    assert [g.phrase for g in answer.groundings[1:]] == ["what", "is", "the", "man", "dog"]


@pytest.mark.parametrize(("given", "seen"), [({"truncation": False}, 7), ({"max_length": 3}, 3)])
def test_words_keep_their_regions_however_the_question_was_cut(given, seen):
    question, processor = "what is the man dog the dog", make_processor()
    assert processor(question, **given)["input_ids"].shape == (1, seen)
    maps = torch.eye(seen, 7)[None].tolist()  # word i looks at region i
    (answer,) = processor.post_process_answers(outputs_of([0.0] * 6 + [1.0], maps), question, make_regions(7))
    words = [(grounding.phrase, grounding.box[0] / 10) for grounding in answer.groundings[1:]]
    assert words == list(zip(question.split()[:seen], range(seen), strict=True))


@pytest.mark.parametrize(("name", "side"), [("padding_side", "right"), ("truncation_side", "left")])
def test_sides_that_would_lose_the_places_of_words_are_refused(name, side):
    processor = make_processor()
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got '{side}'"):
        processor(["what is the", "dog"], **{name: side})
    setattr(processor.tokenizer, name, side)
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got '{side}'"):
        processor("dog")


def test_a_question_that_is_cut_is_told_once(monkeypatch):
    told = []
    monkeypatch.setattr("hf_grounding.processing.processing_mia_vqa.logger.warning_once", told.append)
    make_processor()(["what is the man dog", "dog"])
    assert not told
    make_processor()(["what is the man dog the", "dog"])
    assert told == ["Questions of more than 5 words are cut to their first ones."]


def test_boxes_are_of_the_regions_that_the_model_was_given():
    regions = make_regions(4, scores=np.array([0.1, 0.5, 0.2, 0.9]))
    (answer,) = make_processor(max_regions=2).post_process_answers(outputs_of([0.1, 0.9]), "dog", regions)
    assert answer.groundings[0].box == (30, 0, 40, 10)
    assert len(answer.regions) == 2


def test_an_answer_is_ready_for_json():
    (answer,) = make_processor().post_process_answers(outputs_of([0.2, 0.8]), "dog?", make_regions(2), top_k=1)
    told = json.loads(json.dumps(answer.to_dict()))
    assert told["question"] == "dog?"
    assert told["answers"] == [{"answer": "2", "score": pytest.approx(0.8808, abs=1e-4)}]
    assert told["groundings"][0]["box"] == [10, 0, 20, 10]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"outputs": MIAVQAOutput(logits=torch.zeros(1, 4))}, "call the model with `output_attentions=True`"),
        ({"questions": ["dog", "man"]}, "of 1 questions; got 2 questions and regions of 1 images"),
        ({"regions": [make_regions(2)] * 2}, "got 1 questions and regions of 2 images"),
        ({"top_k": 0}, "`top_k` must be a whole number, 1 or more, got 0"),
        ({"top_k": 2.0}, "`top_k` must be a whole number, 1 or more, got 2.0"),
        ({"regions": make_regions(3)}, "has 3 regions, but `outputs` are of at most 2"),
        (
            {"outputs": MIAVQAOutput(logits=torch.zeros(1, 5), region_attentions=torch.ones(1, 2))},
            "of 5 answers, this processor has 4",
        ),
    ],
)
def test_outputs_that_do_not_fit_are_refused(change, message):
    inputs = {"outputs": outputs_of([0.5, 0.5]), "questions": "dog", "regions": make_regions(2)}
    with pytest.raises(ValueError, match=message):
        make_processor().post_process_answers(**inputs | change)


@pytest.mark.parametrize("head", ["up_down", "ban"])
def test_a_models_answers_are_grounded(head):
    settings = {"vocab_size": 8, "feature_dim": 3, "concept_vocab_size": 3, "num_labels": 4}
    model, processor = small_answerer(head, **settings), make_processor()
    regions, questions = [make_regions(3), make_regions(2, "2")], ["What is the man's?", "dog"]
    inputs = processor(questions, regions, [["dog"], ["man", "horse"]])
    answers = processor.post_process_answers(model(**inputs, output_attentions=True), questions, regions)
    assert [len(answer.answers) for answer in answers] == [4, 4]
    for answer, count in zip(answers, (4, 1), strict=True):
        assert answer.region_weights.sum() == pytest.approx(1)
        assert len(answer.groundings) == (1 + count if head == "ban" else 1)
        assert answer.answers[0][1] == max(p for _, p in answer.answers)
