"""Where real data, networks and detectors lie: below one folder, wherever it is."""

import os
from pathlib import Path


def data_root() -> Path:
    """Folder of the real data: the environment variable `HF_GROUNDING_DATA`, else `../shared/data` beside the checkout.

    Raises:
        FileNotFoundError: If the folder so named does not exist.
    """
    variable = os.environ.get("HF_GROUNDING_DATA")
    checkout = Path(__file__).resolve().parents[2]
    root = Path(variable) if variable else checkout.parent / "shared" / "data"
    if not root.is_dir():
        raise FileNotFoundError(
            f"No data folder: the environment variable HF_GROUNDING_DATA is {variable or 'not set'!r} and "
            f"'{checkout.parent / 'shared' / 'data'}' is the default. Set the variable to a folder that exists, "
            "or give `data_dir`."
        )
    return root


def below_data_root(path: str) -> str:
    """A path as it is if it exists, else below the data root, else unchanged (a name on the Hub).

    One that is nowhere, but whose folder is below the data root alone, is misspelt: it is said as a path there.
    """
    if os.path.exists(path) or os.path.isabs(path):
        return path
    try:
        below = data_root() / path
    except FileNotFoundError:
        return path
    folder = os.path.dirname(path)
    is_meant = below.exists() or (folder and not os.path.isdir(folder) and below.parent.is_dir())
    return str(below) if is_meant else path
