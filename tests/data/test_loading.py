"""`load_grounding_dataset`: names, settings and the default data folder."""

import pytest

from hf_grounding.data import GROUNDING_FEATURES, data_root, list_datasets, load_grounding_dataset
from hf_grounding.processing.paths import below_data_root


def test_every_listed_data_set_has_one_line():
    assert set(list_datasets()) == {"coco_captions", "daquar", "flickr30k_entities", "scenes", "vqa_v2"}
    assert all(line and "\n" not in line for line in list_datasets().values())


def test_an_unknown_name_answers_with_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown data set 'flickr30k'.* mean 'flickr30k_entities'.*Known: .*scenes"):
        load_grounding_dataset("flickr30k")


@pytest.mark.parametrize(
    "name, keyword, nearest", [("scenes", "num_trian", "num_train"), ("flickr30k_entities", "images_dir", "image_dir")]
)
def test_an_unknown_setting_answers_with_the_nearest(name, keyword, nearest):
    with pytest.raises(ValueError, match=f"has no setting `{keyword}`. Did you mean '{nearest}'"):
        load_grounding_dataset(name, **{keyword: 3})


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match="'scenes' reads no files"):
        load_grounding_dataset("scenes", data_dir="somewhere")
    with pytest.raises(ValueError, match="`num_proc` prepares a cache"):
        load_grounding_dataset("scenes", streaming=True, num_proc=2)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_split_answers_with_the_nearest(streaming, tmp_path):
    with pytest.raises(ValueError, match=r"no split 'trian' here\. Did you mean 'train'.* Known: test, train, val"):
        load_grounding_dataset("scenes", split="trian", streaming=streaming, cache_dir=tmp_path)


def test_a_slice_of_a_stream_says_how_to_take_rows():
    with pytest.raises(ValueError, match=r"'val\[:3\]' cannot be cut from it\. Stream the whole split and"):
        load_grounding_dataset("scenes", split="val[:3]", streaming=True)


def test_splits_can_be_sliced_and_added(tmp_path):
    sizes = {"num_train": 3, "num_val": 2, "num_test": 0}
    dataset = load_grounding_dataset("scenes", split="train[:2]+val", cache_dir=tmp_path, **sizes)
    assert [row["image_id"].split("-")[2] for row in dataset] == ["train", "train", "val", "val"]
    assert dataset.features == GROUNDING_FEATURES


def test_a_path_is_sought_here_then_below_the_data_root_and_a_name_of_the_hub_stays(monkeypatch, tmp_path):
    here, root = tmp_path / "here", tmp_path / "root"
    for folder in (here / "both" / "mine", root / "both" / "theirs", root / "there"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_GROUNDING_DATA", str(root))
    for path in ("both/mine", "both/misspelt", "org/name", "name", "./name"):
        assert below_data_root(path) == path
    for path in ("both/theirs", "there", "there/misspelt"):
        assert below_data_root(path) == str(root / path)


def test_the_environment_names_the_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_GROUNDING_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.setenv("HF_GROUNDING_DATA", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"HF_GROUNDING_DATA is '.*gone' and '.*shared/data' is the default"):
        data_root()
