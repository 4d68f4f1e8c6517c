"""`extract-features`, `convert-features` and `inspect`: stores that are whole, go on, and say what is wrong."""

import base64
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ConvNextImageProcessorPil,
    ResNetConfig,
    ResNetModel,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from hf_grounding.data.feature_readers import read_features
from hf_grounding.data.region_store import RegionStore
from tests.common import REPO, tiny_detector
from tests.data.feature_files import write_cocobu, write_npz_folder

from .conftest import run


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    tiny_detector(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbone")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    ConvNextImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, mode in enumerate(("RGB", "L", "RGBA", "P", "CMYK")):
        photo = Image.effect_noise((60 + number, 40), 90).convert("RGB").convert(mode)
        photo.save(folder / f"{number}.{'jpg' if mode == 'CMYK' else 'png'}")
    (folder / "notes.txt").write_text("no photo")
    return folder


def extract(photos, detector, out, *options):
    return run("extract-features", photos, "--detector", detector, "--out", out, *options)


def test_photos_become_a_store_that_inspect_shows(photos, detector, tmp_path):
    answer = extract(photos, detector, tmp_path / "store", "--num_regions", 4)
    assert answer.code == 0, answer.err
    assert f"5 photos, 5 in all: {tmp_path / 'store'}" in answer.out
    store = RegionStore(tmp_path / "store")
    assert list(store) == ["0", "1", "2", "3", "4"]
    assert store["3"].image_size == (40, 63)
    assert all(1 <= len(store[image_id]) <= 4 for image_id in store)
    facts = json.loads(run("inspect", tmp_path / "store", "--json").out)
    assert facts["images"] == 5
    assert facts["settings"]["detector"]["labels"] == ["dog", "cat", "car"]
    shown = json.loads(run("inspect", tmp_path / "store", "--image", "3", "--json").out)
    assert len(shown["regions"]) == len(store["3"])
    assert shown["regions"][0]["label"] in ("dog", "cat", "car")
    drawn = tmp_path / "out.png"
    answer = run("inspect", tmp_path / "store", "--image", "3", "--photo", photos / "3.png", "--draw", drawn)
    assert answer.code == 0, answer.err
    assert Image.open(drawn).width == 800


def test_photos_become_cells_of_a_grid_that_inspect_shows(photos, backbone, tmp_path):
    arguments = ("extract-features", photos, "--backbone", backbone, "--out", tmp_path / "store")
    answer = run(*arguments, "--grid", 2)
    assert answer.code == 0, answer.err
    regions = RegionStore(tmp_path / "store")["3"]
    assert regions.boxes.tolist() == [[0, 0, 31.5, 20], [31.5, 0, 63, 20], [0, 20, 31.5, 40], [31.5, 20, 63, 40]]
    assert regions.region_features.shape == (4, 16)
    assert regions.class_probs is None
    facts = json.loads(run("inspect", tmp_path / "store", "--json").out)
    assert facts["regions per image"] == "4 to 4"
    shown = run("inspect", tmp_path / "store", "--image", "3")
    assert "32, 20, 63, 40" in shown.out
    drawn = tmp_path / "out.png"
    answer = run("inspect", tmp_path / "store", "--image", "3", "--photo", photos / "3.png", "--draw", drawn)
    assert answer.code == 0, answer.err
    other = run(*arguments, "--grid", 3)
    assert other.code == 1
    assert "has other settings" in other.err


def test_boxes_lie_in_the_photo_as_its_exif_turns_it(photos, backbone, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn by a quarter
    Image.effect_noise((60, 40), 90).save(photos / "turned.jpg", exif=exif)
    run("extract-features", photos / "turned.jpg", "--grid", 1, "--backbone", backbone, "--out", tmp_path / "store")
    regions = RegionStore(tmp_path / "store")["turned"]
    assert regions.image_size == (60, 40)
    assert regions.boxes.tolist() == [[0, 0, 40, 60]]


def test_selection_and_features_may_be_chosen(photos, detector, tmp_path):
    options = ("--selection", "per_class", "--num_regions", 7, "--detector_features")
    answer = extract(photos, detector, tmp_path / "store", *options)
    assert answer.code == 0, answer.err
    store = RegionStore(tmp_path / "store")
    assert [store[image_id].region_features.shape for image_id in store] == [(7, 16)] * 5
    assert store.settings["choice"]["selection"] == "per_class"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give either --detector, for its regions, or --grid"),
        (["--detector", "d", "--grid", 7], "Give either --detector, for its regions, or --grid"),
        (["--grid", 7], "--grid needs --backbone"),
        (["--grid", 0, "--backbone", "b"], "--grid"),
        (["--grid", 7, "--backbone", "b", "--threshold", 0.2], "--grid has no detector, so --threshold says nothing"),
        (["--detector", "d", "--backbone", "b", "--detector_features"], "from --backbone or from the detector"),
        (["--detector", "d", "--selection", "best"], "--selection"),
    ],
)
def test_options_that_do_not_go_together_are_named(photos, tmp_path, options, message):
    answer = run("extract-features", photos, "--out", tmp_path / "store", *options)
    assert answer.code == 2
    assert message in answer.err
    assert not (tmp_path / "store").exists()


def test_killed_twice_it_ends_with_the_store_of_an_undisturbed_run(detector, backbone, tmp_path):
    pick, photos, store = random.Random(0), tmp_path / "photos", tmp_path / "killed"
    photos.mkdir()
    for number in range(30):
        size = 400 + 10 * (number % 5), 300  # of a few sizes, so that batches fall apart differently
        Image.effect_noise(size, 90).convert("RGB").save(photos / f"{number:02}.jpg", quality=95)
    options = ("--backbone", backbone, "--batch_size", 3, "--images_per_part", 2)
    command = ["extract-features", photos, "--detector", detector, "--out", store, *options]
    kept: dict[str, bytes] = {}
    for more in (3, 4):
        code = "from hf_grounding.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, command)], cwd=REPO, stderr=subprocess.DEVNULL
        )
        while len(list(store.glob("*.safetensors"))) < len(kept) + more:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.002)
        time.sleep(pick.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        parts = files(store)
        assert kept.items() <= parts.items()  # what was stored is not made again
        kept = parts
        RegionStore(store).verify()
    assert not (store / "index.json").exists()
    done = len(RegionStore(store))
    answer = run(*command)
    assert answer.code == 0, answer.err
    assert f"{30 - done} photos, 30 in all" in answer.out
    assert kept.items() <= files(store).items()
    assert {path.suffix for path in store.iterdir()} == {".safetensors", ".json"}
    assert extract(photos, detector, tmp_path / "whole", *options).code == 0
    resumed, whole = RegionStore(store), RegionStore(tmp_path / "whole")
    assert resumed.image_ids == whole.image_ids == [f"{number:02}" for number in range(30)]
    assert resumed.settings == whole.settings
    for image_id in whole:
        for name in ("boxes", "region_features", "class_probs", "labels", "scores"):
            # Batches differ after a kill, and with them the order of sums.
            actual, expected = getattr(resumed[image_id], name), getattr(whole[image_id], name)
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3, err_msg=f"{image_id} {name}")


def files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob("*.safetensors")}


def test_run_again_it_does_only_what_is_new(photos, detector, tmp_path):
    extract(photos, detector, tmp_path / "store")
    before = {path.name for path in (tmp_path / "store").glob("*.safetensors")}
    Image.effect_noise((50, 50), 90).save(photos / "new.png")
    answer = extract(photos, detector, tmp_path / "store")
    assert "1 photos, 6 in all" in answer.out
    assert before < {path.name for path in (tmp_path / "store").glob("*.safetensors")}
    other = extract(photos, detector, tmp_path / "store", "--num_regions", 2)
    assert other.code == 1
    assert "has other settings" in other.err


def test_it_goes_on_with_the_same_weights_wherever_they_lie_and_refuses_others(photos, detector, backbone, tmp_path):
    moved = {}
    for name, folder in (("detector", detector), ("backbone", backbone)):
        moved[name] = shutil.copytree(folder, tmp_path / "moved" / name)
    extract(photos / "0.png", detector, tmp_path / "store", "--backbone", backbone)
    answer = extract(photos, moved["detector"], tmp_path / "store", "--backbone", moved["backbone"])
    assert answer.code == 0, answer.err
    assert "4 photos, 5 in all" in answer.out
    for name, kind in (("detector", YolosForObjectDetection), ("backbone", ResNetModel)):
        network = kind.from_pretrained(moved[name])
        next(network.parameters()).data += 1
        network.save_pretrained(moved[name])
        answer = extract(photos, moved["detector"], tmp_path / "store", "--backbone", moved["backbone"])
        assert answer.code == 1
        assert re.search(rf"`settings\.{name}\.weights` is '\w+' in the store, '\w+' here: other weights", answer.err)
        shutil.copytree(detector, moved["detector"], dirs_exist_ok=True)
    assert len(RegionStore(tmp_path / "store")) == 5


def test_shards_are_joined_by_the_last(photos, detector, tmp_path):
    first = extract(photos, detector, tmp_path / "store", "--shard", "0/2")
    assert "not finished: 1/2" in first.err
    second = extract(photos, detector, tmp_path / "store", "--shard", "1/2")
    assert second.code == 0, second.err
    assert sorted(RegionStore(tmp_path / "store")) == ["0", "1", "2", "3", "4"]
    assert (tmp_path / "store" / "index.json").exists()


def test_a_broken_photo_stops_or_is_left_out_and_named(photos, detector, tmp_path):
    (photos / "2.png").write_bytes(b"no picture")
    stopped = extract(photos, detector, tmp_path / "a")
    assert stopped.code == 1
    assert "2.png' cannot be read as an image" in stopped.err
    answer = extract(photos, detector, tmp_path / "b", "--keep_going")
    assert answer.code == 1
    assert "4 photos, 5 in all" in answer.out
    assert "Left out: '" in answer.err
    assert len(RegionStore(tmp_path / "b")) == 4


def test_a_photo_whose_features_float16_cannot_hold_is_left_out_or_stored_as_float32(backbone, tmp_path):
    photos, loud = tmp_path / "photos", shutil.copytree(backbone, tmp_path / "loud")
    network = ResNetModel.from_pretrained(loud)
    network.embedder.embedder.normalization.weight.data *= 1e6
    network.save_pretrained(loud)
    photos.mkdir()
    for name, gray in (("dark", 127), ("light", 255), ("middle", 128)):  # 127.5 is 0 after the processor
        Image.new("L", (40, 40), gray).save(photos / f"{name}.png")
    arguments = ("extract-features", photos, "--grid", 2, "--backbone", loud, "--out")
    stopped = run(*arguments, tmp_path / "a")
    assert stopped.code == 1
    assert "light.png': Image 'light': `region_features` has numbers" in stopped.err
    assert "too large for float16. A store of float32 holds larger ones (`--dtype float32`)" in stopped.err
    answer = run(*arguments, tmp_path / "b", "--keep_going")
    assert answer.code == 1
    assert "2 photos, 3 in all" in answer.out
    assert "Left out: Photo '" in answer.err
    assert list(RegionStore(tmp_path / "b")) == ["dark", "middle"]
    assert run(*arguments, tmp_path / "c", "--dtype", "float32").code == 0
    assert RegionStore(tmp_path / "c")["light"].region_features.max() > 65504


def test_a_photo_too_elongated_for_the_detector_is_named_and_left_out(photos, detector, tmp_path):
    keeps_aspect = shutil.copytree(detector, tmp_path / "keeps_aspect")
    YolosImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 200}).save_pretrained(keeps_aspect)
    Image.new("RGB", (2000, 1)).save(photos / "00.png")
    stopped = extract(photos, keeps_aspect, tmp_path / "a")
    assert stopped.code == 1
    assert "00.png': A photo of 2000 x 1 pixels cannot be prepared for detector '" in stopped.err
    answer = extract(photos, keeps_aspect, tmp_path / "b", "--keep_going")
    assert answer.code == 1
    assert "Left out: Photo '" in answer.err
    assert list(RegionStore(tmp_path / "b")) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--detector", "{root}/weights/detectr"],
            r"No detector folder '.*detectr'. Did you mean '.*weights/detector'\?",
        ),
        (["--detector", "weights/detectr"], r"No detector folder '.*detectr'. Did you mean '.*weights/detector'\?"),
        (
            ["--detector", "weights/detector", "--backbone", "weights/x"],
            "No backbone folder '.*x'. Give the folder of a t",
        ),
        (
            ["--detector", "weights/empty"],
            r"empty' holds no detector: there is no config.json and no \*.onnx in it. Give",
        ),
        (
            ["--grid", 2, "--backbone", "weights/empty"],
            "empty' holds no backbone: there is no config.json in it. Give the",
        ),
        (["--detector", "weights/yolox"], r"yolox' must hold one \.onnx file and labels\.txt"),
        (
            ["--detector", "none/such"],
            r"detector 'none/such' cannot be loaded \(it is no folder here, so it must be a nam",
        ),
    ],
)
def test_networks_that_are_not_there_are_named(photos, detector, tmp_path, monkeypatch, options, message):
    monkeypatch.setenv("HF_GROUNDING_DATA", str(tmp_path))
    shutil.copytree(detector, tmp_path / "weights" / "detector")
    (tmp_path / "weights" / "empty").mkdir()
    (tmp_path / "weights" / "yolox").mkdir()
    (tmp_path / "weights" / "yolox" / "net.onnx").touch()
    options = [str(option).format(root=tmp_path) for option in options]
    answer = run("extract-features", photos, *options, "--out", tmp_path / "store")
    assert answer.code == 1
    assert re.search(message, answer.err), answer.err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--shard", "2/2"], 2, "--shard must be i/n with i from 0 to n - 1, such as 0/4; got '2/2'"),
        (["--dtype", "int8"], 1, "`dtype` must be 'float16' or 'float32', got 'int8'"),
        (["--num_regions", "0"], 2, "--num_regions"),
    ],
)
def test_wrong_options_are_named(photos, detector, tmp_path, options, code, message):
    answer = extract(photos, detector, tmp_path / "store", *options)
    assert answer.code == code
    assert message in answer.err


def test_photos_named_by_coco_have_its_numbers_as_ids(photos, detector, tmp_path):
    for before, after in (
        ("0.png", "COCO_val2014_000000000042.png"),
        ("1.png", "000000000007.png"),
        ("2.png", "02.png"),
    ):
        (photos / before).rename(photos / after)
    extract(photos, detector, tmp_path / "store")
    assert set(RegionStore(tmp_path / "store").image_ids) == {"42", "7", "02", "3", "4"}


def test_a_folder_gives_its_photos_alone_and_each_once(photos, detector, tmp_path):
    for name in ("._0.png", ".hidden.jpg", "paper.pdf", "features.h5", "film.mpg"):
        (photos / name).write_bytes(b"no photo")
    (tmp_path / "link").symlink_to(photos)
    answer = run(
        *("extract-features", photos / "1.png", photos, tmp_path / "link" / "2.png"),
        *("--detector", detector, "--out", tmp_path / "store"),
    )
    assert answer.code == 0, answer.err
    assert list(RegionStore(tmp_path / "store")) == ["0", "1", "2", "3", "4"]


def test_what_is_not_there_is_named(photos, detector, tmp_path):
    assert "No photo or folder" in extract(tmp_path / "nothing", detector, tmp_path / "store").err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no photos in it" in extract(empty, detector, tmp_path / "store").err
    (photos / "1.jpg").write_bytes((photos / "4.jpg").read_bytes())
    assert "have one id, '1'" in extract(photos, detector, tmp_path / "store").err
    assert run("inspect", tmp_path / "nothing").code == 1
    assert "--draw needs --image" in run("inspect", tmp_path / "nothing", "--draw", "x.png").err
    undrawn = run("inspect", tmp_path / "nothing", "--image", "1", "--photo", "x.png")
    assert undrawn.code == 2
    assert "--photo is what --draw draws on; give --draw too, or leave it out" in undrawn.err


def _tsv(path, num_rows, damage=None, first=0, factor=1):
    rows = []
    for number in range(first, first + num_rows):
        boxes = np.array([[0, 0, 10, 10], [5, 5, 20, 20]], dtype=np.float32)
        features = np.full((2, 8), factor * number, dtype=np.float32)
        encoded = [base64.b64encode(array.tobytes()).decode() for array in (boxes, features)]
        rows.append("\t".join([str(number), "40", "30", "2", *encoded]))
    if damage is not None:
        rows[damage] = rows[damage][:-5]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_old_feature_files_become_a_store(tmp_path):
    answer = run(
        "convert-features", _tsv(tmp_path / "a.tsv", 3), "--from", "bottom-up-tsv", "--out", tmp_path / "store"
    )
    assert answer.code == 0, answer.err
    store = RegionStore(tmp_path / "store")
    assert store["2"].region_features.tolist() == [[2.0] * 8] * 2
    assert store["2"].image_size == (30, 40)
    assert store.settings["converted_from"] == "bottom-up-tsv"
    assert store.settings.items() >= next(iter(read_features(tmp_path / "a.tsv", "bottom-up-tsv"))).settings.items()


def test_files_of_one_set_go_into_one_store(tmp_path):
    train, val = _tsv(tmp_path / "train.tsv", 3), _tsv(tmp_path / "val.tsv", 5)
    for source in (train, val):
        assert run("convert-features", source, "--from", "bottom-up-tsv", "--out", tmp_path / "store").code == 0
    assert list(RegionStore(tmp_path / "store")) == list("01234")


def test_an_image_that_is_twice_in_a_file_is_named(tmp_path):
    twice = _tsv(tmp_path / "a.tsv", 2)
    twice.write_text(twice.read_text() * 2)
    arguments = ("convert-features", twice, "--from", "bottom-up-tsv", "--out", tmp_path / "store")
    assert "has image '0' more than once; keep one of them" in run(*arguments).err
    answer = run(*arguments, "--keep_going")
    assert answer.code == 1
    assert "Left out: '" in answer.err
    assert list(RegionStore(tmp_path / "store")) == ["0", "1"]


def test_a_run_that_could_read_nothing_writes_nothing(tmp_path, detector):
    (tmp_path / "1.jpg").write_text("no photo")
    options = ("--detector", detector, "--out", tmp_path / "s", "--keep_going")
    answer = run("extract-features", tmp_path / "1.jpg", *options)
    assert answer.code == 1
    assert "None of the 1 photos could be used, so nothing is written" in answer.err
    assert not (tmp_path / "s").exists()


def test_an_image_whose_features_float16_cannot_hold_is_left_out_or_stored_as_float32(tmp_path):
    source = _tsv(tmp_path / "a.tsv", 3, factor=5e4)
    arguments = ("convert-features", source, "--from", "bottom-up-tsv", "--out")
    assert "Image '2': `region_features` has numbers" in run(*arguments, tmp_path / "x").err
    answer = run(*arguments, tmp_path / "y", "--keep_going")
    assert answer.code == 1
    assert "2 images" in answer.out
    assert "Left out: Image '2'" in answer.err
    assert "`--dtype float32`" in answer.err
    assert list(RegionStore(tmp_path / "y")) == ["0", "1"]
    assert run(*arguments, tmp_path / "z", "--dtype", "float32").code == 0


def test_what_files_lack_may_be_given_as_their_messages_say(tmp_path):
    folder = write_cocobu(tmp_path / "cocobu")
    (folder / "x_att").rename(folder / "features")
    arguments = ["convert-features", folder / "features", "--from", "cocobu", "--out", tmp_path / "a"]
    assert "give the folder of boxes as `box_dir` (`--box_dir`)" in run(*arguments).err
    arguments += ["--box_dir", folder / "x_box"]
    assert 'give `image_sizes` (`--image_sizes`: a JSON file), or "boxes" there to guess them' in run(*arguments).err
    assert not (tmp_path / "a").exists()
    answer = run(*arguments, "--image_sizes", "boxes")
    assert answer.code == 0, answer.err
    assert RegionStore(tmp_path / "a").settings["image_size_from"] == "boxes"
    one = {"cls_prob": np.ones((3, 1)), "boxes": np.array([[0, 0, 9, 9]] * 3), "features": np.ones((3, 4))}
    npz = write_npz_folder(tmp_path / "npz", **one)
    arguments = ["convert-features", npz, "--from", "npz", "--out", tmp_path / "b"]
    assert "`background_column=None` (`--background_column none`)" in run(*arguments).err
    answer = run(*arguments, "--background_column", "none")
    assert answer.code == 0, answer.err
    assert RegionStore(tmp_path / "b").settings["background_column"] is None
    wrong = run(*arguments, "--background_column", "first")
    assert wrong.code == 2
    assert "--background_column must be a column, counted from 0, or none; got 'first'" in wrong.err


def test_a_conversion_that_could_use_nothing_leaves_no_folder(tmp_path):
    damaged, huge = _tsv(tmp_path / "a.tsv", 1, damage=0), _tsv(tmp_path / "b.tsv", 2, first=1, factor=1e6)
    for source in (damaged, huge):
        arguments = ("convert-features", source, "--from", "bottom-up-tsv", "--out", tmp_path / "store")
        assert run(*arguments).code == 1
        answer = run(*arguments, "--keep_going")
        assert answer.code == 1
        assert "None of the images could be used, so nothing is written. " in answer.err
        assert not (tmp_path / "store").exists()


def test_damaged_rows_are_named_and_left_out_if_wanted(tmp_path):
    damaged = _tsv(tmp_path / "a.tsv", 3, damage=1)
    arguments = ("convert-features", damaged, "--from", "bottom-up-tsv")
    stopped = run(*arguments, "--out", tmp_path / "x")
    assert stopped.code == 1
    assert "a.tsv', row 2 (image '1')" in stopped.err
    answer = run(*arguments, "--out", tmp_path / "y", "--keep_going")
    assert answer.code == 1
    assert "2 images" in answer.out
    assert "Left out: '" in answer.err
    assert list(RegionStore(tmp_path / "y")) == ["0", "2"]
    unknown = run("convert-features", damaged, "--from", "bottom-up", "--out", tmp_path / "z")
    assert "Did you mean 'bottom-up-tsv'?" in unknown.err
