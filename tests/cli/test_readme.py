"""What the README shows of level maps does what it says."""

import re
from typing import Any

import datasets
import numpy as np
import PIL.Image

from tests.common import REPO


def test_level_maps_in_memory_and_on_disk_are_the_same(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the folder of the maps is a relative one
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "get_feature_maps" in block]
    dataset = datasets.Dataset.from_dict({"image_id": ["1000092795"], "image": [str(trained.photo)]})
    names: dict[str, Any] = {
        "folder": trained.model,
        "photos": [PIL.Image.open(trained.photo)],
        "dataset": dataset.cast_column("image", datasets.Image()),
    }
    exec(code, names)
    assert len(names["maps"]) == len(names["stored"]) == 2
    for level, stored in zip(names["maps"], names["stored"], strict=True):
        expected = level.detach().movedim(1, -1).numpy()
        np.testing.assert_allclose(stored.astype(np.float32), expected, rtol=1e-2, atol=1e-2)
        assert stored.dtype == np.float16
