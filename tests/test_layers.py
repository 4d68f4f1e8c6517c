"""Who may import whom inside the package (the layers), and what nobody may import at import time."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hf_grounding"

# layer -> the layers, or single modules, it may import from besides itself
MAY_IMPORT = {
    "modeling": set(),
    "processing": set(),
    "metrics": set(),
    "hub": set(),
    "data": {"processing.paths", "processing.regions"},
    "visualization": {"processing"},
    "visualization_captions": {"processing", "visualization"},
    "pipelines": {"processing", "modeling"},
    "training": {"data", "metrics", "processing", "modeling", "visualization", "visualization_captions"},
    "cli": {
        "training",
        "pipelines",
        "hub",
        "visualization",
        "visualization_captions",
        "data",
        "metrics",
        "processing",
        "modeling",
    },
}
ROOT_MODULES = {"__init__", "__main__", "_auto"}  # they expose the package as a whole, so they may import all of it
FLAT = {"modeling", "processing"}  # saved with a checkpoint, which copies `from .sibling import name` only
BREAKS_CPU_INSTALLS = {"torchvision", "timm"}


def imports(tree: ast.AST, module: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Every import statement, wherever it stands, with the full name of each module it may load."""
    package = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            yield from ((node, f"{source}.{alias.name}") for alias in node.names)


def runs_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but the bodies of functions."""
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from runs_at_import(child)


def violations(source: str, module: str) -> list[str]:
    """What `source`, the text of the module with this full name, imports against the rules."""
    tree = ast.parse(source)
    layer = module.split(".")[1]
    at_import = set(runs_at_import(tree))
    found = []
    for node, target in imports(tree, module):
        where = f"{module}:{node.lineno} imports {target}"
        if target.split(".")[0] in BREAKS_CPU_INSTALLS and node in at_import:
            found.append(f"{where}: breaks CPU installs, import it inside the function that needs it")
        if not f"{target}.".startswith("hf_grounding."):
            continue
        if layer in FLAT and not (
            isinstance(node, ast.ImportFrom) and node.level == 1 and "." not in (node.module or "")
        ):
            found.append(f"{where}: write `from .sibling import name`, only that is saved with a checkpoint")
        if layer in ROOT_MODULES:
            continue
        inside = target.removeprefix("hf_grounding").removeprefix(".")
        allowed = MAY_IMPORT[layer] | {layer, "__version__"}
        if not any(f"{inside}.".startswith(f"{name}.") for name in allowed):
            found.append(f"{where}: {layer} may import only {sorted(allowed)}")
    return found


def module_name(file: Path) -> str:
    """Full name of a file's module; a package's own file keeps `.__init__`, so that one dot means its folder."""
    return ".".join(["hf_grounding", *file.relative_to(PACKAGE).with_suffix("").parts])


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_every_module_imports_only_what_its_layer_may(file):
    assert violations(file.read_text(encoding="utf-8"), module_name(file)) == []


def test_every_module_belongs_to_a_layer():
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert found <= MAY_IMPORT.keys() | ROOT_MODULES


@pytest.mark.parametrize(
    "module, source, hint",
    [
        ("modeling.modeling_x", "from ..processing.words import Words", "write `from .sibling"),
        ("modeling.modeling_x", "from hf_grounding.modeling.outputs import Output", "write `from .sibling"),
        ("modeling.modeling_x", "from .blocks.attention import Attention", "write `from .sibling"),
        ("modeling.modeling_x", "from hf_grounding.processing import words", "modeling may import only"),
        ("processing.processing_x", "import hf_grounding.modeling.outputs", "processing may import only"),
        ("metrics.pointing_game", "from ..processing.grounding import Grounding", "metrics may import only"),
        ("metrics.pointing_game", "from .. import data", "metrics may import only"),
        ("metrics.pointing_game", "def f():\n    from ..data import schema", "metrics may import only"),
        ("data.scenes", "from ..processing.grounding import Grounding", "data may import only"),
        ("training.trainer", "from ..cli import main", "training may import only"),
        ("pipelines", "from .training import trainer", "pipelines may import only"),
        ("visualization", "import hf_grounding", "visualization may import only"),
        ("cli.train", "import torchvision", "breaks CPU installs"),
        ("cli.train", "try:\n    from timm.models import create\nexcept ImportError:\n    pass", "breaks CPU installs"),
        ("cli.train", "class C:\n    import timm", "breaks CPU installs"),
    ],
)
def test_the_check_catches_a_forbidden_import(module, source, hint):
    (message,) = [message for message in violations(source, f"hf_grounding.{module}") if hint in message]
    assert message.startswith(f"hf_grounding.{module}:")


@pytest.mark.parametrize(
    "module, source",
    [
        ("modeling.modeling_x", "import torch\nfrom transformers import AutoModel\nfrom .outputs import Output"),
        ("modeling.__init__", "from .outputs import Output"),
        ("data.scenes", "from .schema import FEATURES\nfrom ..processing.regions import Regions"),
        ("visualization", "from .processing.grounding import Grounding"),
        ("training.trainer", "from ..data import load\nfrom ..metrics.pointing_game import pointing_game"),
        ("cli.train", "from .. import __version__, training\nfrom .common import options"),
        ("processing.extraction", "def detect():\n    import torchvision"),
        ("metrics.pointing_game", "import hf_grounding_extras"),
    ],
)
def test_the_check_lets_a_proper_import_pass(module, source):
    assert violations(source, f"hf_grounding.{module}") == []
