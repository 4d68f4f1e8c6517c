"""What all tests share: no network, and the folders with golden numbers and real data where they are there."""

import os
import tempfile
from pathlib import Path

import pytest

# Before any test imports a Hugging Face library: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
_HF_HOME = tempfile.TemporaryDirectory(prefix="hf_grounding_tests_")
os.environ["HF_HOME"] = _HF_HOME.name

REPO = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"needs the folder `{variable}`, which is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Numbers made with the original code: `HF_GROUNDING_GOLDEN`, else `../shared/golden` beside the checkout."""
    return _folder("HF_GROUNDING_GOLDEN", REPO.parent / "shared" / "golden")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real photos and annotations: `HF_GROUNDING_DATA`, else `../shared/data` beside the checkout."""
    return _folder("HF_GROUNDING_DATA", REPO.parent / "shared" / "data")
