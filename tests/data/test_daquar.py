"""DAQUAR: both layouts give the same rows; the errors of broken files."""

import json
from pathlib import Path

import pytest
from PIL import Image as PILImage

from hf_grounding.data import GROUNDING_FEATURES, AnnotationError, load_grounding_dataset

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "vqa" / "daquar"

# image, question as the files have it, answer, question as rows have it, answer type, question type
QUESTIONS = [
    ("image3", "how many lamps are in the image3 ?", "2", "how many lamps are ?", "number", "how many"),
    ("image3", "what is on the desk in this image3 ?", "book, lamp", "what is on the desk ?", "other", "what"),
    ("image7", "what is the colour of it in the image7 ?", "red", "what is the colour of it ?", "other", "what color"),
    ("image3", "who is left of the image3 ?", "man", "who is left of the image ?", "other", "other"),
]
TEXT = "".join(f"{raw}\n{answer}\n" for _, raw, answer, *_ in QUESTIONS)
LINES = [
    {"image_id": image_id, "question_raw": raw, "answer": answer, "width": 8, "height": 6}
    for image_id, raw, answer, *_ in QUESTIONS
]


@pytest.fixture
def folder(tmp_path):
    """Both layouts, photos as .png."""
    root = tmp_path / "daquar"
    (root / "images").mkdir(parents=True)
    for image_id in ("image3", "image7"):
        PILImage.new("RGB", (8, 6)).save(root / "images" / f"{image_id}.png")
    (root / "qa.894.raw.train.txt").write_text(TEXT)
    write_lines(root, LINES)
    return root


def write_lines(root, lines):
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def load(folder, **settings):
    return load_grounding_dataset("daquar", data_dir=folder, cache_dir=folder / "cache", **settings)


@pytest.mark.parametrize("layout", ["jsonl", "text"])
def test_a_row_is_an_image_with_its_questions(folder, layout):
    rows = load(folder, layout=layout)["train"]
    assert rows.features == GROUNDING_FEATURES
    assert rows["image_id"][:] == ["image3", "image7"]
    assert rows[0]["image"].size == (8, 6)
    assert [(row["width"], row["height"]) for row in rows] == [(8, 6) if layout == "jsonl" else (None, None)] * 2
    first, second = rows["questions"]
    assert [each["question_id"] for each in first + second] == ["3000", "3001", "3002", "7000"]
    assert [each["answers"] for each in first + second] == [["2"], ["book, lamp"], ["man"], ["red"]]
    types = [(each["question"], each["answer_type"], each["question_type"]) for each in first + second]
    assert types == [tuple(row[3:]) for row in sorted(QUESTIONS, key=lambda row: row[0])]


def test_photos_may_lie_elsewhere(folder, tmp_path):
    (folder / "images").rename(tmp_path / "photos")
    assert load(folder, image_dir=str(tmp_path / "photos"))["train"][1]["image"].size == (8, 6)
    with pytest.raises(AnnotationError, match=r"asks about image 'image3', but its photo is not there.*`image_dir`"):
        load(folder)


def test_an_edited_file_is_read_again(folder):
    assert len(load(folder)["train"]) == 2
    write_lines(folder, LINES[:2])
    assert len(load(folder)["train"]) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"train.txt' is empty"),
        (TEXT + "what is it in the image3 ?\n", r"line 9: a question without its answer. Is the file cut off"),
        (
            "what is it ?\nlamp\n",
            r"line 1: expected a question that names its image, such as 'image3', got 'what is it",
        ),
        ("what is in the image3 ?\n\n\nlamp\n", r"line 1: expected a question and its answer, got .* and ''"),
        (b"\xff\xfe\xff", r"cannot be read as UTF-8 text"),
    ],
)
def test_a_broken_text_is_refused_with_its_line(folder, text, message):
    (folder / "qa.894.raw.train.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(AnnotationError, match=message):
        load(folder, layout="text")


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"image_id": "image3", "quest', r"line 2: no JSON \(.*\)\. Is the file cut off"),
        ("[1]", r"line 2: expected an object with `image_id`, .*; there is no good `image_id`"),
        (json.dumps(LINES[0] | {"answer": 2}), r"line 2: .*; there is no good `answer`"),
        (json.dumps(LINES[0] | {"answer": " "}), r"line 2: expected a question and its answer, got .* and ''"),
        (json.dumps(LINES[0] | {"image_id": "../image3"}), r"line 2: `image_id` must be such as 'image3', got '../im"),
    ],
)
def test_a_broken_line_is_refused(folder, line, message):
    (folder / "train.jsonl").write_text(f"{json.dumps(LINES[0])}\n{line}\n")
    with pytest.raises(AnnotationError, match=message):
        load(folder)


def test_folders_without_a_known_layout_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no questions of DAQUAR: expected '<split>.jsonl' or 'qa.<split>"):
        load(tmp_path)
    (folder / "qa.37.raw.train.txt").write_text(TEXT)
    with pytest.raises(AnnotationError, match=r"both of 'train'. Move one of them away"):
        load(folder, layout="text")
    with pytest.raises(ValueError, match="`layout` must be one of jsonl, text, got 'txt'"):
        load(folder, layout="txt")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/vqa/daquar")
def test_the_real_files_have_the_questions_and_photos_they_are_known_to_have(tmp_path):
    lines, text = (
        load_grounding_dataset("daquar", data_dir=SHARED, cache_dir=tmp_path, layout=layout)
        for layout in ("jsonl", "text")
    )
    counts = {split: (len(rows), sum(map(len, rows["questions"]))) for split, rows in lines.items()}
    assert counts == {"train": (694, 5999), "val": (100, 796)}
    for split, rows in lines.items():
        assert rows["questions"][:] == text[split]["questions"][:]
    assert lines["val"][0]["image"].size == (lines["val"][0]["width"], lines["val"][0]["height"])
    asked = [question for questions in lines["val"]["questions"] for question in questions]
    assert not any("image3" in question["question"] for question in asked)
    assert sum(question["question_type"] == "how many" for question in asked) == 101
