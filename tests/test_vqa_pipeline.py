"""The task "grounded-vqa" of `transformers.pipeline`: a photo and a question in, answers and their regions out."""

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from hf_grounding import GroundedAnswer, MIAForVQA, MIAVQAConfig
from hf_grounding.pipelines import GroundedVQAPipeline
from tests.tiny_answerer import ANSWERS, QUESTIONS, save_answerer
from tests.tiny_captioner import save_captioner, save_sources

FOUR = {"num_regions": 4, "nms_threshold": 1.0}  # the detector's boxes all overlap


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return save_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def pipe(sources, tmp_path_factory):
    folder = save_answerer(tmp_path_factory.mktemp("model"), sources.extraction | FOUR, append_locations=True)
    return pipeline("grounded-vqa", model=str(folder))


def noise(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def assert_equal(actual, expected):
    """The same answers. Batches add up in another order, so weights may differ in the last digits."""
    assert [answer for answer, _ in actual.answers] == [answer for answer, _ in expected.answers]
    np.testing.assert_allclose(actual.region_weights, expected.region_weights, atol=1e-5)


def test_an_answer_has_the_box_of_the_region_that_counted_most(pipe):
    assert isinstance(pipe, GroundedVQAPipeline)
    answer = pipe(noise(), QUESTIONS[0])
    assert isinstance(answer, GroundedAnswer)
    probabilities = [probability for _, probability in answer.answers]
    assert {each for each, _ in answer.answers} == set(ANSWERS)
    assert probabilities == sorted(probabilities, reverse=True)
    assert answer.region_weights.shape == (4,)
    assert answer.region_weights.sum() == pytest.approx(1, abs=1e-5)
    assert answer.groundings[0].box == pytest.approx(answer.regions.boxes[answer.region_weights.argmax()])
    assert len(pipe(noise(), QUESTIONS[0], top_k=2).answers) == 2


def test_photos_and_questions_may_be_lists_of_one_length_or_one(pipe):
    first, second = pipe(noise(0), QUESTIONS[0]), pipe(noise(1), QUESTIONS[1])
    assert first.region_weights != pytest.approx(second.region_weights, abs=1e-4)
    for answers in (
        pipe([noise(0), noise(1)], QUESTIONS),
        pipe([noise(0), noise(1)], QUESTIONS, batch_size=2),
        pipe([{"image": noise(i), "question": question} for i, question in enumerate(QUESTIONS)]),
    ):
        for actual, expected in zip(answers, (first, second), strict=True):
            assert_equal(actual, expected)
    assert_equal(pipe(noise(0), QUESTIONS)[0], first)
    assert_equal(pipe([noise(0), noise(1)], QUESTIONS[0])[0], first)
    with pytest.raises(ValueError, match="All must be given for the same photos, got 2 of `image`, 3 of `question`"):
        pipe([noise(0), noise(1)], [*QUESTIONS, "what ?"])
    with pytest.raises(ValueError, match="Give a photo and a question"):
        pipe(noise())


@pytest.mark.parametrize("settings", [{"mia_iterations": 0}, {"mia_attention": "self", "mia_output": "visual"}])
def test_a_model_that_reads_no_concepts_is_given_none(sources, tmp_path, settings):
    extraction = {name: path for name, path in sources.extraction.items() if name != "concept_detector"}
    folder = save_answerer(tmp_path, extraction | FOUR, answer_head="up_down", **settings)
    bare = pipeline("grounded-vqa", model=str(folder))
    assert bare.extract([noise()])[1] is None
    assert len(bare(noise(), QUESTIONS[0]).groundings) == 1
    with pytest.raises(ValueError, match="The model reads no concepts, so leave out `concept_detector`"):
        pipeline("grounded-vqa", model=str(folder), concept_detector=str(sources.concept_detector))


def test_without_photos_or_questions_there_are_no_answers(pipe):
    assert pipe([]) == pipe([], QUESTIONS[0]) == pipe([], []) == pipe(noise(), []) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 0}, "`top_k` must be a whole number, 1 or more, got 0"),
        ({"top_k": "2"}, "`top_k` must be a whole number, 1 or more, got '2'"),
        ({"question": 7}, "`question` must be text, or a list of texts, got 7"),
        ({"question": ["what ?", None]}, "A question must be text, got None"),
        ({"regions": [None, None]}, "`regions` of one photo must be one `Regions`, whatever is asked, got list"),
        (
            {"image": [noise()], "concepts": "dog"},
            "`concepts` must be a list, with one entry for each photo, got 'dog'",
        ),
    ],
)
def test_bad_input_is_named(pipe, given, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"image": noise(), "question": QUESTIONS, **given})


def test_a_processor_of_another_model_is_refused(pipe):
    for name, message in (("answers", "5 answers and the model 4"), ("concepts", "4 concepts and the model 3")):
        other = {"num_labels": 4} if name == "answers" else {"concept_vocab_size": 3}
        config = MIAVQAConfig(
            **{**pipe.model.config.to_dict(), "id2label": None, "label2id": None, "num_labels": 5, **other}
        )
        with pytest.raises(ValueError, match=f"The processor has {message}; give the processor that was saved with it"):
            GroundedVQAPipeline(MIAForVQA(config), processor=pipe.processor)


def test_regions_that_are_there_already_are_not_made_again(pipe, tmp_path):
    regions, concepts = pipe.extract([noise()])
    bare = pipeline("grounded-vqa", model=str(save_answerer(tmp_path, None, append_locations=True)))
    given = bare(noise(), QUESTIONS[0], regions=regions[0], concepts=concepts[0])
    assert_equal(given, pipe(noise(), QUESTIONS[0]))
    with pytest.raises(ValueError, match=r"does not say where its regions came from \(`processor.extraction`\)"):
        bare(noise(), QUESTIONS[0])


def test_regions_of_another_width_and_models_of_another_kind_are_refused(pipe, sources, tmp_path):
    other = pipeline("grounded-vqa", model=str(save_answerer(tmp_path / "narrow", sources.extraction, feature_dim=9)))
    with pytest.raises(ValueError, match="The regions have 16 features each and the model reads 9"):
        other(noise(), QUESTIONS[0])
    captioner = pipeline("grounded-captioning", model=str(save_captioner(tmp_path / "captioner", sources.extraction)))
    with pytest.raises(ValueError, match="has no processor for question answering"):
        GroundedVQAPipeline(captioner.model, processor=captioner.processor)
