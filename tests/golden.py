"""Golden files: tensors that the original codes computed; each file's manifest says how."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class Golden:
    """Tensors of a golden file in one precision, its settings, and the tolerance of that precision."""

    def __init__(self, folder: Path, name: str, precision: str):
        self.dtype = getattr(torch, precision)
        manifest = json.loads((folder / f"{name}.manifest.json").read_text(encoding="utf-8"))
        self.settings: dict[str, Any] = manifest["config"]
        self.tolerance = manifest["tolerance"]["float64" if precision == "float64" else "float32_abs"]
        tensors = load_file(folder / f"{name}.safetensors")
        self.tensors = {key: x.to(self.dtype) if x.is_floating_point() else x for key, x in tensors.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def official_state(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Parameters under the names of the original code; of files with several models, that of this prefix."""
        start = f"{prefix}official_state_dict/"
        return {key.removeprefix(start): x for key, x in self.tensors.items() if key.startswith(start)}

    def check(self, name: str, actual: torch.Tensor) -> None:
        torch.testing.assert_close(actual, self[name], rtol=0, atol=self.tolerance)
