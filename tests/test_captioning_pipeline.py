"""The task "grounded-captioning" of `transformers.pipeline`: photos in, captions with the place of each word out."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, pipeline

from hf_grounding import GroundedCaption, MIAProcessor
from hf_grounding.modeling.mutual_iterative_attention import accumulated_attention
from hf_grounding.pipelines import ConceptExtractor, GroundedCaptioningPipeline
from hf_grounding.processing.extraction import load_extractor
from hf_grounding.processing.photos import load_photo
from hf_grounding.processing.regions import Regions, grid_boxes
from tests.tiny_captioner import BACKBONE, save_captioner, save_sources

FOUR = {"num_regions": 4, "nms_threshold": 1.0}  # the detector's boxes all overlap


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return save_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def model_dir(sources, tmp_path_factory):
    return save_captioner(tmp_path_factory.mktemp("model"), sources.extraction | FOUR)


@pytest.fixture(scope="module")
def pipe(model_dir):
    return pipeline("grounded-captioning", model=str(model_dir))


def noise(width=90, height=60, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def captioner(folder, extraction=None, settings=None, **arguments) -> GroundedCaptioningPipeline:
    return pipeline("grounded-captioning", model=str(save_captioner(folder, extraction, **settings or {})), **arguments)


def assert_equal(actual, expected):
    """The same captions. Batches add up in another order, so weights may differ in the last digits."""
    assert actual.caption == expected.caption
    np.testing.assert_allclose(actual.region_weights, expected.region_weights, atol=1e-5)
    for one, other in zip(actual.groundings, expected.groundings, strict=True):
        assert (one.phrase, one.token_span, one.box) == (other.phrase, other.token_span, other.box)


def test_every_word_of_the_caption_has_the_box_of_its_heaviest_region(pipe):
    written = pipe(noise())
    assert isinstance(written, GroundedCaption)
    assert [one.phrase for one in written.groundings] == written.caption.split()
    assert len(written.groundings) == 4
    assert written.region_weights.shape == (4, 4)
    np.testing.assert_allclose(written.region_weights.sum(axis=1), 1, atol=1e-5)
    for weights, one in zip(written.region_weights, written.groundings, strict=True):
        assert one.box == pytest.approx(written.regions.boxes[weights.argmax()])
        assert one.score == pytest.approx(weights.max())
    assert (written.regions.boxes >= 0).all()
    assert (written.regions.boxes <= [90, 60, 90, 60]).all()


def test_regions_and_concepts_are_those_of_the_extraction_that_the_processor_names(pipe, sources):
    photo = noise()
    (regions,), (concepts,) = pipe.extract([photo])
    extractor = load_extractor(detector=str(sources.detector), backbone=str(sources.backbone), **FOUR)
    (expected,) = extractor([photo], ["photo"])
    np.testing.assert_array_equal(regions.boxes, expected.boxes)
    np.testing.assert_allclose(regions.region_features, expected.region_features, atol=1e-6)
    (ranked,) = ConceptExtractor.from_pretrained(str(sources.concept_detector))([photo])
    assert concepts == [concept.word for concept in ranked]
    assert_equal(pipe(photo, regions=regions, concepts=concepts), pipe(photo))


def test_regions_and_concepts_that_are_given_are_read_and_nothing_is_loaded(pipe, tmp_path):
    (regions,), (concepts,) = pipe.extract([noise()])
    alone = captioner(tmp_path)
    assert_equal(alone(noise(), regions=regions, concepts=concepts), pipe(noise()))
    (fewer,) = alone([noise()], regions=[regions.select(slice(2))], concepts=[concepts])
    assert fewer.region_weights.shape == (4, 2)


def test_of_more_regions_than_the_model_takes_the_surest_are_read_and_their_boxes_given(pipe):
    (regions,), (concepts,) = pipe.extract([noise()])
    many = regions.select([0, 1, 2, 3, 0, 1, 2, 3])  # the processor keeps 6
    many.boxes[:, 0] = np.arange(8)
    many.scores[:] = [0.1, 0.2, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    written = pipe(noise(), regions=many, concepts=concepts)
    assert written.regions.boxes[:, 0].tolist() == [2, 3, 4, 5, 6, 7]
    assert_equal(written, pipe(noise(), regions=many.select(slice(2, 8)), concepts=concepts))


def test_given_concepts_change_what_is_written(pipe):
    weights = [pipe(noise(), concepts=words).region_weights for words in (["dog"], ["cat", "car"])]
    assert np.abs(weights[0] - weights[1]).max() > 1e-3


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_list_gives_what_its_photos_give_in_any_batch_size(pipe, batch_size):
    photos = [noise(90, 60, 1), noise(40, 70, 2), noise(64, 64, 3)]
    for actual, photo in zip(pipe(photos, batch_size=batch_size), photos, strict=True):
        assert_equal(actual, pipe(photo))


def test_dictionaries_paths_and_generators_are_taken(pipe, tmp_path):
    noise().save(tmp_path / "photo.png")
    (regions,), _ = pipe.extract([noise()])
    expected = pipe(noise())
    assert_equal(pipe(tmp_path / "photo.png"), expected)
    assert_equal(pipe({"image": str(tmp_path / "photo.png"), "regions": regions}), expected)
    assert_equal(next(iter(pipe(photo for photo in [noise()]))), expected)


def test_arguments_of_generate_pass_through(pipe):
    assert len(pipe(noise(), max_new_tokens=2).groundings) == 2
    both = pipe([noise(), noise(seed=1)], num_beams=3, num_return_sequences=2, batch_size=2)
    assert [len(row) for row in both] == [2, 2]
    assert both[0][0].caption != both[0][1].caption
    assert_equal(both[1][0], pipe(noise(seed=1), num_beams=3))
    with pytest.raises(ValueError, match="num_bems"):
        pipe(noise(), num_bems=2)


def test_another_source_of_regions_may_be_named(model_dir, sources):
    cells = pipeline("grounded-captioning", model=str(model_dir), grid=2)(noise())
    assert cells.regions.boxes.tolist() == [[0, 0, 45, 30], [45, 0, 90, 30], [0, 30, 45, 60], [45, 30, 90, 60]]
    same = pipeline("grounded-captioning", model=str(model_dir), detector=str(sources.detector))
    assert same.extraction["num_regions"] == 4


def test_a_grid_of_more_cells_than_the_model_reads_is_refused(model_dir):
    with pytest.raises(ValueError, match=r"A grid of 3 has 9 cells, more than the 6 regions .* Raise it to 9"):
        pipeline("grounded-captioning", model=str(model_dir), grid=3)


def test_names_are_looked_up_below_the_data_root(model_dir, sources, monkeypatch):
    monkeypatch.setenv("HF_GROUNDING_DATA", str(sources.detector.parent))
    names = {name: name for name in sources._fields}
    here = pipeline("grounded-captioning", model=str(model_dir), **names)
    assert here(noise()).caption


def test_boxes_lie_in_the_photo_as_its_exif_turns_it(pipe, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn by a quarter
    noise().save(tmp_path / "turned.png", exif=exif)
    written = pipe(tmp_path / "turned.png")
    assert written.regions.image_size == (90, 60)
    assert_equal(written, pipe(load_photo(tmp_path / "turned.png")))


def test_a_model_that_reads_concepts_alone_needs_no_detector_and_gives_no_boxes(sources, tmp_path):
    concept_detector = {"concept_detector": str(sources.concept_detector)}
    settings = {"decoder_type": "concept_attention", "mia_iterations": 0}
    written = captioner(tmp_path, concept_detector, settings)(noise())
    assert len(written.groundings) == 4
    assert written.region_weights is None
    assert [one.box for one in written.groundings] == [None] * 4


def test_a_model_without_concepts_needs_no_concept_detector(sources, tmp_path):
    extraction = {"detector": str(sources.detector), "backbone": str(sources.backbone)}
    assert captioner(tmp_path, extraction, {"mia_iterations": 0})(noise()).region_weights is not None


def test_a_model_that_reads_photos_itself_needs_no_detector_and_gives_the_cells_of_its_map(sources, tmp_path):
    extraction = {"concept_detector": str(sources.concept_detector)}
    pipe = captioner(tmp_path, extraction, {"backbone_config": BACKBONE, "decoder_type": "visual_attention"})
    photos = [noise(), noise(40, 70, 2)]
    first, second = pipe(photos, batch_size=2)
    side = int(len(first.regions) ** 0.5)  # of the map, for photos of the size that the image processor makes
    assert side > 1
    for written, photo in ((first, photos[0]), (second, photos[1])):
        assert len(written.groundings) == 4
        assert written.regions.image_size == (photo.height, photo.width)
        np.testing.assert_allclose(written.regions.boxes, grid_boxes(side, side, (photo.height, photo.width)))
        for weights, one in zip(written.region_weights, written.groundings, strict=True):
            assert one.box == pytest.approx(written.regions.boxes[weights.argmax()])
        assert_equal(written, pipe(photo))
    regions, (concepts,) = pipe.extract(photos[:1])
    assert regions is None
    visual, textual = pipe.accumulated_attentions(photos[0], concepts)
    assert visual.shape[1:] == (side**2, side**2)
    np.testing.assert_allclose(textual.sum(axis=-1), 1, atol=1e-5)
    features = np.zeros((4, 16), dtype=np.float32)
    given = Regions("a", (60, 90), grid_boxes(2, 2, (60, 90)), region_features=features)
    assert pipe(noise(), regions=given).region_weights.shape == (4, 4)
    with pytest.raises(ValueError, match="reads photos by a backbone of its own, so leave out `grid`"):
        pipeline("grounded-captioning", model=str(tmp_path), grid=2)


def test_accumulated_attention_of_one_iteration_is_that_of_the_module(pipe):
    (regions,), (concepts,) = pipe.extract([noise()])
    visual, textual = pipe.accumulated_attentions(regions, concepts)
    assert visual.shape == (2, len(regions), len(regions))
    assert textual.shape[:2] == (2, len(regions))
    refined = pipe.model.model(**pipe.processor(regions=regions, concepts=[concepts]), output_attentions=True)
    np.testing.assert_allclose(visual[0], refined.attentions[0][0].mean(dim=0).detach(), atol=1e-6)
    second = refined.attentions[1][0].mean(dim=0).detach().numpy()
    np.testing.assert_allclose(visual[1], second @ visual[0], atol=1e-6)
    np.testing.assert_allclose(textual.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("decoder", "settings", "held"),
    [
        ("visual_attention", {"mia_output": "visual"}, "concepts"),
        ("concept_attention", {"mia_output": "textual", "mia_order": "textual_first"}, "regions"),
    ],
)
def test_rows_that_an_iteration_does_not_refine_hold_what_they_held(sources, tmp_path, decoder, settings, held):
    describe = captioner(tmp_path, sources.extraction | FOUR, {"decoder_type": decoder, **settings})
    (regions,), (concepts,) = describe.extract([noise()])
    visual, textual = describe.accumulated_attentions(regions, concepts)
    assert visual.shape == (2, 4, 4)
    assert textual.shape[:2] == (2, 4)
    refined = describe.model.model(**describe.processor(regions=regions, concepts=[concepts]), output_attentions=True)
    assert len(refined.attentions) == (1 if held == "regions" else 2)
    assert len(refined.textual_attentions) == (1 if held == "concepts" else 2)
    for weights, attentions in ((visual, refined.attentions), (textual, refined.textual_attentions)):
        expected = torch.cat(accumulated_attention(attentions))[[0, -1], :, : weights.shape[-1]].detach()
        np.testing.assert_allclose(weights, expected, atol=1e-6)
    describe.model.model.mia.steps = describe.model.model.mia.steps[-1:]  # as with one iteration
    one, other = describe.accumulated_attentions(regions, concepts)
    unrefined = one if held == "regions" else other
    np.testing.assert_array_equal(unrefined[0], np.eye(4)[:, : unrefined.shape[-1]])


@pytest.mark.parametrize(
    ("decoder", "output", "sizes"), [("visual_attention", "visual", (4, 0)), ("concept_attention", "textual", (0, 3))]
)
def test_a_side_that_self_attention_does_not_read_gathers_nothing(sources, tmp_path, decoder, output, sizes):
    settings = {"decoder_type": decoder, "mia_attention": "self", "mia_output": output}
    describe = captioner(tmp_path, sources.extraction | FOUR, settings)
    regions, concepts = describe.extract([noise()])
    assert (regions is None, concepts is None) == (output == "textual", output == "visual")
    given = None if regions is None else regions[0], [] if concepts is None else concepts[0][:3]
    visual, textual = describe.accumulated_attentions(*given)
    assert (visual.shape[0], visual.shape[2], textual.shape[0], textual.shape[2]) == (2, sizes[0], 2, sizes[1])
    for weights in (visual, textual):
        np.testing.assert_allclose(weights.sum(axis=-1), 1 if weights.shape[-1] else 0, atol=1e-5)


def test_saved_it_loads_with_its_processor_and_extraction(pipe, sources, tmp_path):
    pipe.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, MIAProcessor)
    assert processor.extraction == sources.extraction | FOUR
    assert_equal(pipeline("grounded-captioning", model=str(tmp_path))(noise()), pipe(noise()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector": None}, "does not say where its regions came from .* Give `detector` and `backbone`, or `grid`"),
        ({"scene_detector": {}}, "trained on simulated regions of generated scenes.* Train one on photos"),
        ({"backbone": None}, "regions have no features: give the `backbone` of the model's training"),
        (
            {"concept_detector": None},
            "reads concepts, and does not say where they came from .* Give `concept_detector`",
        ),
        ({"detector": "nothing/here"}, "The detector 'nothing/here' cannot be loaded"),
        ({"num_region": 3}, r"RegionExtractor has no setting `num_region`\. Did you mean `num_regions`\?"),
        ({"grid": 2}, "Regions need either a `detector` or a `grid`"),
    ],
    ids=str,
)
def test_an_extraction_that_lacks_something_is_named(sources, tmp_path, changes, message):
    extraction = {name: value for name, value in (sources.extraction | changes).items() if value is not None}
    pipe = captioner(tmp_path, extraction)
    with pytest.raises(ValueError, match=message):
        pipe(noise())


def test_features_of_another_size_than_the_model_s_are_named(sources, tmp_path):
    pipe = captioner(tmp_path, sources.extraction, {"feature_dim": 12})
    with pytest.raises(ValueError, match=r"regions have 16 features each and the model reads 12 .* `backbone`"):
        pipe(noise())


def test_another_model_as_concept_detector_is_refused(model_dir):
    pipe = pipeline("grounded-captioning", model=str(model_dir), concept_detector=str(model_dir))
    with pytest.raises(ValueError, match="cannot be loaded: it is a mia, no concept_detector"):
        pipe(noise())


def test_photos_and_regions_of_different_number_are_refused(pipe):
    regions, _ = pipe.extract([noise()])
    with pytest.raises(ValueError, match="same photos, got 2 of `image`, 1 of `regions`"):
        pipe([noise(), noise()], regions=regions)


def test_a_model_without_its_processor_is_refused(pipe):
    with pytest.raises(ValueError, match="MIAForCaptioning has no processor for captioning, got NoneType"):
        GroundedCaptioningPipeline(model=pipe.model)
    with pytest.raises(ValueError, match=r'Give a photo, or \{"image": photo\}; got a dictionary of \[\'photo\'\]'):
        pipe({"photo": noise()})
    with pytest.raises(FileNotFoundError, match=r"No photo 'nothing\.jpg'"):
        pipe("nothing.jpg")
