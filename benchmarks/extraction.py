"""Photos to a store of regions with features: photos a second, megabytes, and what COCO would take.

    python benchmarks/extraction.py                # all photos of the train split
    python benchmarks/extraction.py DATA           # another folder than ../shared/data
    python benchmarks/extraction.py --photos 300   # to see that it runs

Runs `hf-grounding extract-features` in this process, as users run it: YOLOX nano finds up to 36 regions, the last map
of MobileNetV2 gives each 1,280 numbers in float16 (needs the extra `[onnx]`). The seconds include loading both networks
and end with a store that is whole on the disk. It is then opened, compared with its checksums, and every image is read.
The line for COCO is extrapolated: at this rate, with as many regions a photo as here. The photos are small (about 260 x
190 pixels); larger ones take longer to decode and resize, not to detect or describe.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from hf_grounding.cli import app
from hf_grounding.data.region_store import RegionStore

SHARED = Path(os.environ.get("HF_GROUNDING_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
COCO = 123_287
NUM_REGIONS, FEATURE_DIM = 36, 1280


def train_photos(data: Path) -> list[Path]:
    folder = data / "flickr8k_entities"
    names = pq.read_table(folder / "train.parquet", columns=["file_name"])["file_name"].to_pylist()
    return [folder / name for name in names]


def extract(photos: list[Path], weights: Path, store: Path) -> float:
    """Seconds that the command takes."""
    arguments = ["extract-features", *map(str, photos), "--num_regions", str(NUM_REGIONS), "--out", str(store)]
    arguments += ["--detector", str(weights / "yolox_nano_coco")]
    arguments += ["--backbone", str(weights / "mobilenet_v2_1.0_224_imagenet")]
    start = time.perf_counter()
    if app(arguments, standalone_mode=False):
        raise SystemExit("`hf-grounding extract-features` failed.")
    return time.perf_counter() - start


def count_regions(folder: Path, photos: list[Path]) -> int:
    """Regions of the store, each photo's of which are there, whole and finite."""
    store = RegionStore(folder)
    store.verify()
    assert sorted(store) == sorted(photo.stem for photo in photos)
    count = 0
    for image_id in store:
        regions = store[image_id]
        assert len(regions) <= NUM_REGIONS
        assert regions.region_features is not None
        assert regions.region_features.shape == (len(regions), FEATURE_DIM)
        assert regions.region_features.dtype == np.float16
        assert np.isfinite(regions.region_features).all()
        count += len(regions)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=SHARED, help="has flickr8k_entities/ and weights/")
    parser.add_argument("--photos", type=int, help="only the first so many")
    parser.add_argument("--folder", type=Path, help="on the disk to write to; by default the folder of temporary files")
    args = parser.parse_args()
    photos = train_photos(args.data)[: args.photos]
    with tempfile.TemporaryDirectory(prefix="extraction-", dir=args.folder) as folder:
        store = Path(folder, "store")
        seconds = extract(photos, args.data / "weights", store)
        start = time.perf_counter()
        regions = count_regions(store, photos)
        reread = time.perf_counter() - start
        megabytes = sum(path.stat().st_size for path in store.iterdir()) / 1e6
    rate = len(photos) / seconds
    print(f"\nUp to {NUM_REGIONS} regions x {FEATURE_DIM} float16; verified and read again in {reread:.2f} s:\n")
    print("| photos | regions | extraction | photos/s | store |\n|---|---|---|---|---|")
    print(f"| {len(photos):,} | {regions:,} | {seconds:,.0f} s | {rate:.1f} | {megabytes:,.0f} MB |")
    gigabytes = megabytes / 1e3 * COCO / len(photos)
    more = f"{regions * COCO / len(photos):,.0f} | {COCO / rate / 3600:.1f} h | {rate:.1f} | {gigabytes:.1f} GB"
    print(f"| {COCO:,} (COCO, extrapolated) | {more} |")


if __name__ == "__main__":
    main()
