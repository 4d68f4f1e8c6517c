"""What lies in an output folder already: checkpoints to resume from, and runs that must not be mixed or overwritten."""

import json
import logging
import re
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .recipe import RECIPE_FILE, Recipe

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"


def start_from(output_dir: Path, recipe: Recipe, *, resume: bool) -> str | None:
    r"""The checkpoint a run begins with: the last complete one to `resume`, else none.

    Raises:
        FileExistsError: If the folder holds an earlier run, and this one does not go on with it: they must not be
            mixed, nor one written over the other.
        FileNotFoundError: If there is nothing to resume.
        NotADirectoryError: If it is a file.
        ValueError: If the run to resume was one of another recipe; names the settings that differ. How a model is
            measured (`evaluation`) may differ.
    """
    if resume:
        return _checkpoint_of(output_dir, recipe)
    if output_dir.exists() and not output_dir.is_dir():
        raise NotADirectoryError(f"'{output_dir}' is a file; name a folder as `output_dir`.")
    if (output_dir / WEIGHTS).exists() or _checkpoints(output_dir):
        raise FileExistsError(
            f"'{output_dir}' holds an earlier run. Go on with it (`--resume`), name another "
            "`--output_dir`, or delete it."
        )
    return None


def _checkpoint_of(output_dir: Path, recipe: Recipe) -> str:
    checkpoint = last_complete_checkpoint(output_dir)
    if not (output_dir / RECIPE_FILE).is_file():
        raise FileNotFoundError(
            f"'{output_dir}' has no {RECIPE_FILE}, so its run is not known; train without resuming."
        )
    then, now = (_flat(asdict(each)) for each in (Recipe.load(output_dir), recipe))
    differences = [
        f"`{key}` was {then.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key != "description" and not key.startswith("evaluation.")
    ]
    if differences:
        raise ValueError(
            f"The run in '{output_dir}' has other settings: {'; '.join(differences)}. Resume with the same, or train "
            "into another `--output_dir`."
        )
    return checkpoint


def last_complete_checkpoint(output_dir: Path) -> str:
    r"""The newest checkpoint whose files are all there and not cut off.

    Raises:
        FileNotFoundError: If there is none.
    """
    for folder in _checkpoints(output_dir):
        damage = _damage(folder)
        if damage is None:
            return str(folder)
        logger.warning(
            "'%s' is incomplete (%s), as when a run ends while it is saved, and is left out.", folder, damage
        )
    raise FileNotFoundError(f"'{output_dir}' has no complete checkpoint to resume from; train without resuming.")


def _checkpoints(output_dir: Path) -> list[Path]:
    """Newest first."""
    numbered = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in output_dir.glob("checkpoint-*")}
    steps = {path: int(match[1]) for path, match in numbered.items() if match}
    return sorted(steps, key=lambda path: -steps[path])


def _damage(checkpoint: Path) -> str | None:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(checkpoint / WEIGHTS, framework="pt"):
            pass  # its header says how long the file must be
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    for name in ("optimizer.pt", "scheduler.pt"):
        if not zipfile.is_zipfile(checkpoint / name):  # its directory is at the end
            return f"{name} is missing or cut off"
    return None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
