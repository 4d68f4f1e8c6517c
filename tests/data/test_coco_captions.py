"""COCO captions: the split file and the official files, photos at hand or not, the errors of broken sources."""

import json
from pathlib import Path

import pytest
from datasets import Image
from PIL import Image as PILImage

from hf_grounding.data import AnnotationError, load_grounding_dataset

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco"

# id, folder, split, captions as people wrote them
PHOTOS = [
    (391895, "val2014", "test", ["A man with a red helmet.\n", "Man riding\na motor bike "]),
    (522418, "val2014", "restval", ["A woman cutting a cake."]),
    (57870, "train2014", "train", ['A table; the sign says "split": "odd".', "A restaurant."]),
    (60623, "val2014", "val", ["A young girl."]),
]
CAPTIONS = {
    "391895": ["A man with a red helmet.", "Man riding a motor bike"],
    "522418": ["A woman cutting a cake."],
    "57870": ['A table; the sign says "split": "odd".', "A restaurant."],
    "60623": ["A young girl."],
}


def file_name(image_id, folder):
    return f"COCO_{folder}_{image_id:012d}.jpg"


def write_photo(root, image_id, folder):
    (root / folder).mkdir(exist_ok=True)
    PILImage.new("RGB", (8, 6)).save(root / folder / file_name(image_id, folder))


def split_file():
    return {
        "images": [
            {
                "cocoid": image_id,
                "imgid": position,
                "filepath": folder,
                "filename": file_name(image_id, folder),
                "split": split,
                "sentids": [],
                "sentences": [{"tokens": ["a"], "raw": raw, "imgid": position, "sentid": 0} for raw in captions],
            }
            for position, (image_id, folder, split, captions) in enumerate(PHOTOS)
        ],
        "dataset": "coco",
    }


def official(folder):
    own = [photo for photo in PHOTOS if photo[1] == folder]
    return {
        "info": {},
        "images": [
            {"id": image_id, "file_name": file_name(image_id, folder), "width": 640, "height": 480, "license": 3}
            for image_id, *_ in own
        ],
        "annotations": [
            {"image_id": image_id, "id": 7, "caption": caption}
            for image_id, *_, captions in own
            for caption in captions
        ],
    }


@pytest.fixture
def folder(tmp_path):
    """Both kinds of annotation file, no photos."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "dataset_coco.json").write_text(json.dumps(split_file()))
    for name in ("train2014", "val2014"):
        (root / "annotations" / f"captions_{name}.json").write_text(json.dumps(official(name)))
    return root


@pytest.fixture
def load(folder, tmp_path):
    def load(**kwargs):
        return load_grounding_dataset(
            "coco_captions", **{"data_dir": folder, "cache_dir": tmp_path / "cache", **kwargs}
        )

    return load


def rows(dataset):
    return list(dataset.cast_column("image", Image(decode=False)))


def ids(dataset):
    return {split: rows["image_id"][:] for split, rows in dataset.items()}


def test_the_split_file_gives_three_splits_and_restval_is_trained_on(load):
    dataset = load()
    assert ids(dataset) == {"train": ["522418", "57870"], "val": ["60623"], "test": ["391895"]}
    expected = {"image_id": "391895", "image": None, "width": None, "height": None}
    assert rows(dataset["test"]) == [expected | {"captions": CAPTIONS["391895"], "phrases": [], "questions": []}]


def test_the_official_files_give_their_own_two_splits_with_sizes(load, folder):
    dataset = load(year=2014)
    assert ids(dataset) == {"train": ["57870"], "val": ["391895", "522418", "60623"]}
    assert {row["image_id"]: row["captions"] for split in dataset.values() for row in split} == CAPTIONS
    assert (dataset["val"][0]["width"], dataset["val"][0]["height"]) == (640, 480)
    (folder / "dataset_coco.json").unlink()
    assert ids(load()) == ids(dataset)


def test_photos_are_found_below_the_data_folder_or_the_image_folder(load, folder):
    for image_id, name, *_ in PHOTOS:
        write_photo(folder, image_id, name)
    dataset = load()
    assert dataset["train"][1]["image"].size == (8, 6)
    photo = folder / "val2014" / "COCO_val2014_000000391895.jpg"
    assert rows(dataset["test"])[0]["image"]["path"] == rows(load(year=2014)["val"])[0]["image"]["path"] == str(photo)
    photos = folder.parent / "photos"
    photos.mkdir()
    for name in ("train2014", "val2014"):
        (folder / name).rename(photos / name)
    dataset = load(image_dir="../photos")
    assert rows(dataset["test"])[0]["image"]["path"] == str(photos / "val2014" / "COCO_val2014_000000391895.jpg")


def test_photos_that_came_after_the_rows_were_prepared_are_seen(load, folder):
    assert load(split="val")[0]["image"] is None
    for image_id, name, *_ in PHOTOS:
        write_photo(folder, image_id, name)
    assert load(split="val")[0]["image"].size == (8, 6)


def test_a_photo_missing_from_a_folder_that_is_there_is_named(load, folder):
    write_photo(folder, 60623, "val2014")
    with pytest.raises(AnnotationError, match=r"coco\.json', image '522418': its photo '.*522418\.jpg' is not there"):
        load()


def test_without_photos_in_the_image_folder_that_was_given_nothing_is_loaded(load):
    with pytest.raises(AnnotationError, match=r"its photo '.*elsewhere/val2014/.*' is not there"):
        load(image_dir="elsewhere")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/coco beside the checkout")
def test_the_real_sample_loads_whole_and_streams_the_same(load):
    dataset, stream = load(data_dir=SHARED), load(data_dir=SHARED, streaming=True)
    assert {split: (len(rows), sum(map(len, rows["captions"]))) for split, rows in dataset.items()} == {
        "train": (80, 400),
        "val": (79, 395),
    }
    for split, prepared in dataset.items():
        assert rows(stream[split]) == rows(prepared)
    row = dataset["val"][0]
    assert (row["image_id"], row["width"], row["height"]) == ("397133", 640, 427)
    assert min(row["image"].size) == 256  # the sample's photos are smaller than the annotated ones


def change(part, row, **values):
    return lambda content: content[part][row].update(values)


def drop(part, row, key):
    return lambda content: content[part][row].pop(key)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("images"), r"dataset_coco\.json' must say the `split`.* got none"),
        (drop("images", 1, "split"), r"dataset_coco\.json', image '522418' has no `split`"),
        (change("images", 1, split="dev"), r"dataset_coco\.json' must say the `split`.* got \['dev', 'test', "),
        (drop("images", 1, "cocoid"), r"dataset_coco\.json', entry 1 of `images` has no `cocoid`"),
        (change("images", 1, cocoid=391895), r"1 image has more than one entry in '.*_coco\.json', such as 391895"),
        (change("images", 1, cocoid=1.5), r"`cocoid` of entry 1 of `images` must be a whole number or text, got 1\.5"),
        (change("images", 1, sentences=[]), r"dataset_coco\.json', image '522418': expected one caption or more"),
        (change("images", 1, sentences=[{}]), r"dataset_coco\.json', a sentence of image '522418' has no `raw`"),
        (change("images", 1, sentences=[{"raw": " \n"}]), r"'522418': expected one caption .*, none of them empty"),
        (change("images", 1, filepath="../secret"), r"'522418': the photo's folder and file must be plain names"),
        (change("images", 1, filename=".."), r"'522418': the photo's folder and file must be plain names, got '\.\.'"),
    ],
)  # fmt: skip
def test_a_broken_entry_of_the_split_file_is_named(load, folder, edit, message):
    content = split_file()
    edit(content)
    (folder / "dataset_coco.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=message):
        load()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("images"), r"val2014\.json', the top level has no `images`"),
        (lambda content: content.pop("annotations"), r"val2014\.json', the top level has no `annotations`"),
        (change("images", 1, id=391895), r"1 image has more than one entry in '.*val2014\.json', such as 391895"),
        (change("annotations", 0, image_id=1), r"1 image has captions but no entry in `images` of .*, such as 1;"),
        (change("annotations", 2, image_id=391895), r"1 image has no reference caption in '.*json', such as 522418"),
        (drop("annotations", 2, "caption"), r"val2014\.json', entry 2 of `annotations` has no `caption`"),
        (change("annotations", 2, caption=" "), r"val2014\.json', image '522418': .* none of them empty"),
        (change("images", 1, width=0), r"`width` of image '522418' must be a whole number of pixels above 0, got 0"),
        (drop("images", 1, "height"), r"val2014\.json', image '522418' has no `height`"),
        (change("images", 1, file_name="a/b.jpg"), r"folder and file must be plain names, got 'a/b\.jpg'"),
    ],
)  # fmt: skip
def test_a_broken_entry_of_an_official_file_is_named(load, folder, edit, message):
    content = official("val2014")
    edit(content)
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=message):
        load(year=2014)


@pytest.mark.parametrize("name", ["dataset_coco.json", "annotations/captions_val2014.json"])
def test_a_file_that_was_cut_off_or_is_empty_is_named(load, folder, name):
    path = folder / name
    year = None if name.startswith("dataset") else 2014
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(AnnotationError, match=rf"{path.name}' cannot be read as JSON"):
        load(year=year)
    path.write_bytes(b"")
    with pytest.raises(AnnotationError, match=rf"{path.name}' is empty"):
        load(year=year)


def test_a_part_of_the_split_file_has_the_splits_of_its_images(load, folder):
    content = split_file()
    del content["images"][2:]
    (folder / "dataset_coco.json").write_text(json.dumps(content))
    assert ids(load()) == {"train": ["522418"], "test": ["391895"]}
    with pytest.raises(ValueError, match=r"no split 'val' here.* Known: test, train\."):
        load(split="val")


def test_an_edited_file_is_read_again_and_an_unedited_one_is_not(load, folder):
    first = load(split="val")
    assert load(split="val").cache_files == first.cache_files
    path = folder / "dataset_coco.json"
    path.write_text(path.read_text().replace("A young girl.", "A young boy."))
    assert load(split="val")[0]["captions"] == ["A young boy."]


@pytest.mark.parametrize("year", [None, 2014])
def test_a_stream_has_the_rows_of_the_cache(load, year):
    for split, prepared in load(year=year).items():
        assert rows(load(split=split, year=year, streaming=True)) == rows(prepared)


def test_of_two_years_one_must_be_chosen(load, folder):
    (folder / "dataset_coco.json").unlink()
    (folder / "annotations" / "captions_val2017.json").write_text(json.dumps(official("val2014")))
    with pytest.raises(ValueError, match=r"official files of 2014 and 2017\. Give `year`"):
        load()
    assert ids(load(year=2017)) == {"val": ["391895", "522418", "60623"]}
    with pytest.raises(ValueError, match=r"`year` must be one of 2014, 2017, got 2015"):
        load(year=2015)


def test_a_folder_without_captions_is_refused(load, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no captions of COCO: expected 'dataset_coco\.json', or "):
        load(data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected 'annotations/captions_train2017\.json'"):
        load(year=2017)
