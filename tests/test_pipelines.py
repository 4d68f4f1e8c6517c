"""The task "phrase-grounding" of `transformers.pipeline`: photos and texts in every form, batches, broken photos."""

import base64
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, pipeline

from hf_grounding import MultiLevelGroundingConfig, MultiLevelGroundingModel, MultiLevelGroundingProcessor
from hf_grounding.pipelines import PhraseGroundingPipeline
from hf_grounding.processing.image_processing_multilevel import MultiLevelGroundingImageProcessorPil
from hf_grounding.processing.photos import load_photo
from hf_grounding.processing.words import train_word_tokenizer

REPO = Path(__file__).resolve().parents[1]
TEXT = "[a man] in a boat watches [a red bird]"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_word_tokenizer(["a man in a red boat watches a bird"])
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    config = MultiLevelGroundingConfig(
        backbone_config=backbone,
        backbone_levels=[1, 2],
        level_channels=[8, 16],
        grid_size=6,
        hidden_size=16,
        word_embedding_size=8,
        vocab_size=len(tokenizer),
    )
    MultiLevelGroundingModel(config).save_pretrained(folder)
    image_processor = MultiLevelGroundingImageProcessorPil(size={"height": 64, "width": 64})
    MultiLevelGroundingProcessor(image_processor, tokenizer, grid_size=6).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(model_dir):
    return pipeline("phrase-grounding", model=str(model_dir))


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def photo():
    return noise(90, 60)


def assert_equal(actual, expected):
    """The same groundings. Batches add up in another order, so scores may differ in the last digits."""
    assert [grounding.phrase for grounding in actual] == [grounding.phrase for grounding in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one.token_span == other.token_span
        assert one.point == other.point
        assert one.score == pytest.approx(other.score, abs=1e-5)
        np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-5)


@pytest.mark.parametrize("first", ["import hf_grounding", "from transformers import pipeline"])
def test_task_is_known_after_import_in_either_order(first, model_dir):
    code = (
        f"{first}\nimport hf_grounding\nfrom transformers import pipeline\n"
        f"print(type(pipeline('phrase-grounding', model={str(model_dir)!r})).__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "PhraseGroundingPipeline", result.stderr


def test_marked_phrases_come_back_in_their_order_with_pixels_of_the_photo(pipe, photo):
    man, bird = pipe(photo, TEXT)
    assert (man.phrase, man.token_span) == ("a man", (0, 2))
    assert (bird.phrase, bird.token_span) == ("a red bird", (6, 9))
    for grounding in (man, bird):
        (x, y), (x1, y1, x2, y2) = grounding.point, grounding.box
        assert 0 <= x1 <= x < x2 <= 90
        assert 0 <= y1 <= y < y2 <= 60
        assert 0 <= grounding.score <= 1
        assert grounding.heatmap.shape == (6, 6)


def test_text_without_brackets_is_one_phrase(pipe, photo):
    (grounding,) = pipe(photo, "a man in a boat")
    assert (grounding.phrase, grounding.token_span) == ("a man in a boat", (0, 5))


def test_words_around_a_phrase_are_its_context(pipe, photo):
    alone, within = pipe(photo, "a red bird")[0], pipe(photo, TEXT)[1]
    assert not np.allclose(alone.heatmap, within.heatmap)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_list_gives_what_its_entries_give_in_any_batch_size(pipe, batch_size):
    photos = [noise(90, 60, seed) if seed % 2 else noise(40, 70, seed) for seed in range(3)]
    texts = [TEXT, "a bird", "[a man] watches [a bird] in [a boat]"]
    together = pipe(photos, texts, batch_size=batch_size)
    assert len(together) == 3
    for groundings, photo, text in zip(together, photos, texts, strict=True):
        assert_equal(groundings, pipe(photo, text))


def test_one_text_goes_with_all_photos_and_one_photo_with_all_texts(pipe, photo):
    other = noise(50, 50, 1)
    for_all_photos = pipe([photo, other], TEXT)
    assert_equal(for_all_photos[1], pipe(other, TEXT))
    for_all_texts = pipe(photo, ["a man", TEXT])
    assert [len(groundings) for groundings in for_all_texts] == [1, 2]


def test_dictionaries_lists_and_generators_of_them_are_taken(pipe, photo):
    expected = pipe(photo, TEXT)
    entry = {"image": photo, "text": TEXT}
    assert_equal(pipe(entry), expected)
    assert_equal(pipe([entry])[0], expected)
    assert_equal(next(iter(pipe(entry for _ in range(2)))), expected)


def test_a_photo_may_be_a_path_a_text_path_or_a_data_uri(pipe, photo, tmp_path):
    file = tmp_path / "photo.png"
    photo.save(file)
    uri = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    expected = pipe(photo, TEXT)
    for source in (file, str(file), uri):
        assert_equal(pipe(source, TEXT), expected)


def test_options_can_be_given_to_the_pipeline_and_to_a_call(pipe, model_dir, photo):
    narrow, wide = (pipe(photo, "a man", box_threshold=threshold)[0].box for threshold in (0.99, 0.01))
    assert (narrow[2] - narrow[0]) * (narrow[3] - narrow[1]) < (wide[2] - wide[0]) * (wide[3] - wide[1])
    by_sentence = pipe(photo, TEXT, query_heatmap="sentence")
    assert np.array_equal(by_sentence[0].heatmap, by_sentence[1].heatmap)
    always = pipeline("phrase-grounding", model=str(model_dir), query_heatmap="sentence")
    assert_equal(always(photo, TEXT), by_sentence)


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
@pytest.mark.parametrize("opened", [False, True], ids=["a path", "an opened photo"])
def test_a_photo_is_turned_upright_as_its_exif_says(pipe, tmp_path, opened, mode):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn by a quarter, clockwise
    photo = noise(90, 60) if mode == "RGB" else Image.fromarray(np.arange(90 * 60, dtype=np.uint16).reshape(60, 90))
    photo.save(tmp_path / "turned.png", exif=exif)
    source = Image.open(tmp_path / "turned.png") if opened else tmp_path / "turned.png"
    assert load_photo(source).size == (60, 90)
    upright = load_photo(photo.transpose(Image.Transpose.ROTATE_270))
    assert_equal(pipe(source, TEXT), pipe(upright, TEXT))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_photos_of_every_mode_become_rgb(pipe, mode, tmp_path):
    if mode == "I;16":
        photo = Image.fromarray(np.linspace(0, 65535, 60 * 90).reshape(60, 90).astype(np.uint16))
    else:
        photo = noise(90, 60).convert("L" if mode == "LA" else "RGB").convert(mode)
    assert photo.mode == mode
    loaded = load_photo(photo)
    assert loaded.mode == "RGB"
    low, high = loaded.convert("L").getextrema()
    assert (low < 60, high > 190) == (True, True)  # neither black nor clipped to white
    assert np.asarray(loaded).mean() < 200
    assert pipe(photo, "a man")[0].point is not None


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_a_photo_of_32_bit_pixels_is_refused_and_not_clipped(tmp_path, dtype):
    path = tmp_path / "depth.tiff"
    Image.fromarray(np.linspace(0, 60000, 60).reshape(6, 10).astype(dtype)).save(path)
    with pytest.raises(ValueError, match=r"depth\.tiff' cannot be read .*32-bit numbers .* save it with 8 or 16 bits"):
        load_photo(path)


def test_no_photos_and_no_texts_give_no_groundings(pipe, photo):
    assert pipe([], []) == []
    assert pipe(photo, []) == []
    assert pipe([], "a man") == []


def test_a_photo_larger_than_pil_opens_is_refused_with_what_to_do(tmp_path, monkeypatch):
    noise(90, 60).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        ValueError, match=r"large\.png' is larger than PIL opens: .*raise `PIL\.Image\.MAX_IMAGE_PIXELS`"
    ):
        load_photo(tmp_path / "large.png")


@pytest.mark.parametrize(
    "image, text, message",
    [
        (None, TEXT, "NoneType.* cannot be read as an image"),
        (3, TEXT, "int.* cannot be read as an image"),
        ("data:image/png;base64,AAAA", TEXT, "cannot be read as an image"),
        ("photo", "", "`text` must be words such as 'a man in red'"),
        ("photo", [TEXT, ""], "`text` must be words such as 'a man in red'"),
        ("photo", "[a [man]]", "must enclose one phrase each"),
        (["photo", "photo"], ["a man"], "Got 2 photos but 1 texts; give one text for each photo, or one for all"),
        ("photo", None, "Give a photo and a text"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(pipe, photo, image, text, message):
    image = [photo] * len(image) if isinstance(image, list) else photo if image == "photo" else image
    with pytest.raises(ValueError, match=message):
        pipe(image, text)


def test_a_missing_photo_is_named(pipe):
    with pytest.raises(FileNotFoundError, match=r"No photo 'nothing\.jpg'"):
        pipe("nothing.jpg", TEXT)


def test_unknown_query_heatmap_names_the_known(pipe, photo):
    with pytest.raises(ValueError, match=r"must be one of .*'auto', 'word', 'sentence'"):
        pipe(photo, TEXT, query_heatmap="words")


def test_a_model_without_its_processor_is_refused(pipe):
    with pytest.raises(
        ValueError, match="MultiLevelGroundingModel has no processor for phrase grounding, got NoneType"
    ):
        PhraseGroundingPipeline(model=pipe.model)


def test_saved_it_loads_as_a_plain_model_without_remote_code(pipe, photo, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "custom_pipelines" not in (tmp_path / "config.json").read_text()
    assert_equal(pipeline("phrase-grounding", model=str(tmp_path))(photo, TEXT), pipe(photo, TEXT))


def test_half_precision_models_run(model_dir, photo):
    half = pipeline("phrase-grounding", model=str(model_dir), dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert len(half(photo, TEXT)) == 2
