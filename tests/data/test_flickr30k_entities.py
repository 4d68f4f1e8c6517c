"""Flickr30k Entities: both layouts, the errors of broken sources, the cache and streaming."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image
from PIL import Image as PILImage

from hf_grounding.data import AnnotationError, load_grounding_dataset

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "flickr8k_entities"

SENTENCES = """\
[/EN#7/people/clothing A girl in red] feeds [/EN#8/animals two goats] .
It is sunny while [/EN#0/notvisual she] stands in [/EN#9/scene a field]
"""
ANNOTATION = """\
<annotation>
  <filename>12.jpg</filename>
  <size><width>500</width><height>375</height><depth>3</depth></size>
  <object><name>8</name><bndbox><xmin>300</xmin><ymin>200</ymin><xmax>400</xmax><ymax>375</ymax></bndbox></object>
  <object>
    <name>7</name><name>8</name>
    <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>120</xmax><ymax>370</ymax></bndbox>
  </object>
  <object><name>9</name><scene>1</scene><nobndbox>1</nobndbox></object>
</annotation>
"""
GIRL, GOAT = [1.0, 2.0, 120.0, 370.0], [300.0, 200.0, 400.0, 375.0]
EXPECTED_CAPTIONS = ["A girl in red feeds two goats .", "It is sunny while she stands in a field"]
EXPECTED_PHRASES = [
    # sentence, start, end, phrase, entity_id, types, boxes
    (0, 0, 4, "A girl in red", "7", ["people", "clothing"], [GIRL]),
    (0, 5, 7, "two goats", "8", ["animals"], [GOAT, GIRL]),  # in the order of the XML; a box may have two names
    (1, 4, 5, "she", "0", ["notvisual"], []),
    (1, 7, 9, "a field", "9", ["scene"], []),
]
PHRASE_KEYS = ("sentence", "start", "end", "phrase", "entity_id", "types", "boxes")


@pytest.fixture
def folder(tmp_path):
    """Original layout with two images in `train` and one in `test`; 12 and 34 have the same annotation."""
    root = tmp_path / "flickr"
    for name in ("Annotations", "Sentences", "images"):
        (root / name).mkdir(parents=True)
    for image_id in ("12", "34"):
        (root / "Annotations" / f"{image_id}.xml").write_text(ANNOTATION)
        (root / "Sentences" / f"{image_id}.txt").write_text(SENTENCES)
        PILImage.new("RGB", (8, 6)).save(root / "images" / f"{image_id}.jpg")
    (root / "train.txt").write_text("12\n34\n")
    (root / "test.txt").write_text("34")
    (root / "README.txt").write_text("no id list")
    return root


@pytest.fixture
def load(folder, tmp_path):
    def load(**kwargs):
        return load_grounding_dataset(
            "flickr30k_entities", **{"data_dir": folder, "cache_dir": tmp_path / "cache", **kwargs}
        )

    return load


def rows(dataset):
    return list(dataset.cast_column("image", Image(decode=False)))


def write_parquet(folder, name="train"):
    phrases = [dict(zip(PHRASE_KEYS, phrase, strict=True), scene=False, nobox=False) for phrase in EXPECTED_PHRASES]
    row = {
        "image_id": "12",
        "width": 8,
        "height": 6,
        "original_width": 500,
        "original_height": 375,
        "captions": EXPECTED_CAPTIONS,
        "phrases": phrases,
    }
    pq.write_table(pa.Table.from_pylist([row]), folder / f"{name}.parquet")


def test_original_layout_gives_the_rows_worked_out_by_hand(load, folder):
    dataset = load()
    assert {split: len(dataset[split]) for split in dataset} == {"train": 2, "test": 1}
    row = rows(dataset["train"])[0]
    assert (row["image_id"], row["width"], row["height"]) == ("12", 500, 375)
    assert row["captions"] == EXPECTED_CAPTIONS
    assert [tuple(phrase[key] for key in PHRASE_KEYS) for phrase in row["phrases"]] == EXPECTED_PHRASES
    assert row["questions"] == []
    assert row["image"]["path"] == str(folder / "images" / "12.jpg")
    assert dataset["train"][0]["image"].size == (8, 6)


def test_parquet_layout_gives_the_same_row(load, folder, tmp_path):
    from_original = rows(load(split="train"))[0]
    parquet_folder = tmp_path / "parquet"
    parquet_folder.mkdir()
    write_parquet(parquet_folder, "held_out")
    dataset = load(data_dir=parquet_folder, image_dir=folder / "images")
    assert list(dataset) == ["held_out"]
    assert rows(dataset["held_out"]) == [from_original]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/flickr8k_entities beside the checkout")
def test_both_layouts_of_the_real_sample_agree(load):
    original = load(data_dir=SHARED / "original_format", image_dir="../images")
    parquet = load(data_dir=SHARED, streaming=True)
    compared = 0
    for split in ("train", "val"):
        by_id = {row["image_id"]: row for row in rows(original[split])}
        for row in parquet[split].cast_column("image", Image(decode=False)):
            if expected := by_id.get(row["image_id"]):
                assert row == expected
                compared += 1
    assert compared == 160


@pytest.mark.parametrize("place", ["flickr30k-images", "."])
def test_photos_are_found_in_each_usual_place(load, folder, place):
    (folder / place).mkdir(exist_ok=True)
    for photo in (folder / "images").iterdir():
        photo.rename(folder / place / photo.name)
    assert rows(load(split="test"))[0]["image"]["path"] == str(folder / place / "34.jpg")


def test_image_dir_is_relative_to_the_data_folder(load, folder):
    (folder / "images").rename(folder.parent / "photos")
    assert load(split="train", image_dir="../photos")[0]["image"].size == (8, 6)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("Sentences/34.txt", "Fine .\n[/EN#1/people A man walks .\n", r"34\.txt', line 2: broken phrase mark-up"),
        ("Sentences/34.txt", "A man] walks .\n", r"34\.txt', line 1: broken phrase mark-up at 'A man\] walks"),
        ("Sentences/34.txt", "[/EN#x/people A man] walks .\n", r"34\.txt', line 1: broken phrase mark-up"),
        ("Sentences/34.txt", "[/EN#1/people  ] walks .\n", r"34\.txt', line 1: phrase without words"),
        ("Sentences/34.txt", "One .\n\nThree .\n", r"34\.txt', line 2: empty caption"),
        ("Sentences/34.txt", b"caf\xe9 .\n", r"34\.txt' must be UTF-8"),
        ("Sentences/34.txt", "word " * 300_000, r"34\.txt' is larger than"),
        ("Annotations/34.xml", "<annotation>\n<size>\n</annotation>", r"34\.xml', line 3: malformed XML"),
        ("Annotations/34.xml", "<annotation/>", r"34\.xml' has no <size>"),
        ("Annotations/34.xml", ANNOTATION.replace("500", "wide"), r"34\.xml': <width> in <size> .* got 'wide'"),
        ("Annotations/34.xml", ANNOTATION.replace("<xmin>1</xmin>", ""), r"34\.xml', object 2: <xmin> .* got None"),
        ("Annotations/34.xml", ANNOTATION.replace(">120<", ">0<"), r"34\.xml', object 2: expected xmin <= xmax"),
        ("Annotations/34.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', r"34\.xml' declares a"),
        ("Annotations/34.xml", '<!DOCTYPE a><annotation/>'.encode("utf-16"), r"34\.xml' must be UTF-8"),
        ("Annotations/34.xml", ANNOTATION.replace(">500<", ">0<"), r"'34': width and height must .*, got 0 x"),
        ("train.txt", "12\n34 35\n", r"train\.txt', line 2: expected one image id, got '34 35'"),
        ("train.txt", "\n", r"train\.txt' is empty"),
        ("train.txt", "12\n56\n", r"Cannot read '.*56\.xml'"),
    ],
)  # fmt: skip
def test_broken_sources_are_named(load, folder, file, content, message):
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AnnotationError, match=message):
        load()


def test_a_missing_photo_is_named_with_the_places_looked_at(load, folder):
    (folder / "images" / "34.jpg").unlink()
    with pytest.raises(AnnotationError, match=r"test\.txt' lists image '34'.*images/34\.jpg.*Give `image_dir`"):
        load()


def test_a_parquet_file_without_the_columns_is_named(load, tmp_path):
    pq.write_table(pa.table({"image_id": ["1"]}), tmp_path / "train.parquet")
    with pytest.raises(AnnotationError, match=r"train\.parquet' has no column \['captions', "):
        load(data_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(image_id=7), r"has the image id 7; image ids are text"),
        (lambda row: row.update(image_id=None), r"has the image id None"),
        (lambda row: row.update(original_width=-1), r"image '12': width and height must be whole numbers above 0"),
        (lambda row: row.update(original_height=None), r"image '12': width and height .* got 500 x None"),
        (lambda row: row.update(captions=[]), r"image '12': expected one caption or more"),
        (lambda row: row.update(captions=["A man .", " "]), r"image '12': expected one caption or more, none of them"),
        (lambda row: row["phrases"][0].pop("types"), r"image '12': a phrase has no types; it has"),
        (lambda row: row["phrases"][0].update(boxes=None), r"image '12': a phrase has no boxes"),
        (lambda row: row["phrases"][0].update(sentence=9), r"image '12': a phrase is of sentence 9"),
    ],
)
def test_a_broken_row_of_a_parquet_file_is_named(load, folder, change, message):
    write_parquet(folder)
    table = pq.read_table(folder / "train.parquet").to_pylist()
    change(table[0])
    pq.write_table(pa.Table.from_pylist(table), folder / "train.parquet")
    with pytest.raises(AnnotationError, match=message) as caught:
        load(split="train")
    assert "train.parquet'" in str(caught.value)


def test_what_is_no_parquet_file_is_named(load, folder):
    write_parquet(folder)
    for content in (b"", b"PAR1 and no more", (folder / "train.parquet").read_bytes()[:-20]):
        (folder / "train.parquet").write_bytes(content)
        with pytest.raises(AnnotationError, match=r"train\.parquet' cannot be read as parquet"):
            load(split="train")


@pytest.mark.parametrize(
    "names",
    [["train", "train-00000-of-00001"], ["train-00000-of-00002"], ["train-00000-of-00003", "train-00001-of-00003"]],
)
def test_parts_of_a_split_must_be_all_there_and_alone(load, folder, names):
    write_parquet(folder)
    content = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").unlink()
    for name in names:
        (folder / f"{name}.parquet").write_bytes(content)
    with pytest.raises(AnnotationError, match="Split 'train' must be one file or all of its parts, got train"):
        load(split="train")


def test_an_image_in_two_parts_is_refused(load, folder):
    write_parquet(folder)
    content = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").unlink()
    for part in range(2):
        (folder / f"train-0000{part}-of-00002.parquet").write_bytes(content)
    with pytest.raises(AnnotationError, match="has image '12' more than once"):
        load(split="train")


def test_a_byte_order_mark_is_no_part_of_the_first_word(load, folder):
    path = folder / "Sentences" / "12.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(split="train")[0]["captions"] == EXPECTED_CAPTIONS


def test_a_folder_of_neither_layout_is_refused(load, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no Flickr30k Entities folder: expected '<split>\.parquet'"):
        load(data_dir=tmp_path)
    for id_list in ("train.txt", "test.txt"):
        (folder / id_list).unlink()
    with pytest.raises(FileNotFoundError, match="has no id list"):
        load()


def test_a_missing_split_names_the_ones_there_before_anything_is_read(load, folder):
    (folder / "Sentences" / "34.txt").write_text("broken ]")
    with pytest.raises(ValueError, match=r"no split 'val' here.* Known: test, train\."):
        load(split="val")


def test_an_edited_annotation_is_read_again_and_an_unedited_one_is_not(load, folder):
    first = load(split="train")
    assert load(split="train").cache_files == first.cache_files
    path = folder / "Annotations" / "12.xml"
    before = path.stat()
    path.write_text(ANNOTATION.replace("<xmin>1</xmin>", "<xmin>3</xmin>"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time: only the contents differ
    assert load(split="train")[0]["phrases"][0]["boxes"] == [[3.0, 2.0, 120.0, 370.0]]


def test_an_edited_parquet_file_is_read_again(load, folder, monkeypatch):
    write_parquet(folder)
    assert load(split="train")[0]["captions"] == EXPECTED_CAPTIONS
    monkeypatch.setitem(globals(), "EXPECTED_CAPTIONS", ["Another .", "And another one ."])
    write_parquet(folder)
    assert load(split="train")[0]["captions"] == ["Another .", "And another one ."]


def test_a_stream_has_the_rows_of_the_cache(load):
    assert rows(load(split="train", streaming=True)) == rows(load(split="train"))


def test_a_stream_reads_an_annotation_only_when_its_row_is_asked_for(load, folder):
    (folder / "Sentences" / "34.txt").write_text("broken ]")
    stream = iter(load(split="train", streaming=True))
    assert next(stream)["image_id"] == "12"
    with pytest.raises(AnnotationError, match=r"34\.txt"):
        next(stream)


@pytest.mark.parametrize("layout", ["original", "parquet"])
def test_two_processes_give_the_rows_of_one_in_order(load, folder, monkeypatch, tmp_path, layout):
    (folder / "train.txt").write_text("12\n34\n56\n")
    for name in ("Annotations/{}.xml", "Sentences/{}.txt", "images/{}.jpg"):
        (folder / name.format(56)).write_bytes((folder / name.format(12)).read_bytes())
    if layout == "parquet":
        write_parquet(folder)
        (row,) = pq.read_table(folder / "train.parquet").to_pylist()
        three = [row | {"image_id": image_id} for image_id in ("12", "34", "56")]
        pq.write_table(pa.Table.from_pylist(three), folder / "train.parquet")
    expected = rows(load(split="train"))
    monkeypatch.setattr("hf_grounding.data.flickr30k_entities.SHARD_SIZE", 1)
    assert load(split="train", streaming=True).num_shards == 3
    assert rows(load(split="train", num_proc=2, cache_dir=tmp_path / "other")) == expected


def test_a_broken_source_is_named_by_a_worker_process_too(load, folder, monkeypatch):
    (folder / "Sentences" / "34.txt").write_text("broken ]")
    monkeypatch.setattr("hf_grounding.data.flickr30k_entities.SHARD_SIZE", 1)
    with pytest.raises(AnnotationError, match=r"34\.txt', line 1"):
        load(num_proc=2)


def test_image_ids_that_are_paths_are_refused(load, folder):
    (folder / "train.txt").write_text("../../elsewhere/12\n")
    with pytest.raises(AnnotationError, match="which is a path; image ids are plain names"):
        load(split="train")


def test_a_split_may_lie_in_several_parquet_files_named_as_on_the_hub(folder, tmp_path):
    whole = load_grounding_dataset("flickr30k_entities", data_dir=folder, cache_dir=tmp_path / "cache", split="train")
    table = pa.Table.from_pylist(
        [
            {
                "image_id": row["image_id"],
                "original_width": row["width"],
                "original_height": row["height"],
                "captions": row["captions"],
                "phrases": row["phrases"],
            }
            for row in whole
        ]
    )
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "images").symlink_to(folder / "images")
    for part in range(2):
        pq.write_table(table.slice(part, 1), parts / f"train-0000{part}-of-00002.parquet")
    for streaming in (False, True):
        cut = load_grounding_dataset(
            "flickr30k_entities", data_dir=parts, cache_dir=tmp_path / "cache", split="train", streaming=streaming
        )
        assert [row["image_id"] for row in cut] == ["12", "34"]
    pq.write_table(table, parts / "more photos.parquet")
    with pytest.raises(AnnotationError, match=r"more photos\.parquet' names no split"):
        load_grounding_dataset("flickr30k_entities", data_dir=parts, cache_dir=tmp_path / "cache", split="train")


def test_an_image_listed_twice_is_refused(folder, tmp_path):
    (folder / "train.txt").write_text("12\n34\n12\n")
    with pytest.raises(AnnotationError, match=r"train\.txt' names image '12' more than once"):
        load_grounding_dataset("flickr30k_entities", data_dir=folder, cache_dir=tmp_path / "cache", split="train")
