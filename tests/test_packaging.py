"""What a user gets: public names, light import, registration with the Auto classes, and the contents of the wheel."""

import ast
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import hf_grounding

REPO = Path(__file__).resolve().parents[1]


def run_fresh(code: str) -> str:
    """Standard output of `code` in a new interpreter, where nothing has been imported yet."""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_is_light():
    heavy = ["torch", "torchvision", "timm", "matplotlib", "datasets"]
    assert run_fresh(f"import sys, hf_grounding; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_no_public_name_brings_torchvision_or_timm():
    code = (
        "import sys, hf_grounding\n"
        "for name in hf_grounding.__all__: getattr(hf_grounding, name)\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('torchvision', 'timm')])"
    )
    assert run_fresh(code) == "[]"


@pytest.mark.parametrize("name", hf_grounding.__all__)
def test_public_name_resolves_and_is_listed(name):
    value = getattr(hf_grounding, name)
    assert name in dir(hf_grounding)
    assert name == getattr(value, "__name__", name)


def test_type_checkers_see_the_public_names():
    tree = ast.parse(Path(hf_grounding.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == hf_grounding._HOMES


def test_unknown_name_answers_with_the_nearest():
    with pytest.raises(AttributeError, match=r"no `draw_groundigs`\. Did you mean `draw_groundings`\?"):
        hf_grounding.draw_groundigs  # noqa: B018


LOOK_UP = """
import sys
import hf_grounding, transformers
from transformers import AutoConfig, CONFIG_MAPPING
config = CONFIG_MAPPING["multilevel_grounding"]
from transformers import AutoModel, AutoModelForZeroShotObjectDetection
found = [config, AutoModel._model_mapping[config], AutoModelForZeroShotObjectDetection._model_mapping[config]]
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
found.append(IMAGE_PROCESSOR_MAPPING[config]["pil"])
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
found.append(PROCESSOR_MAPPING[config])
found.append(PIPELINE_REGISTRY.supported_tasks["phrase-grounding"]["impl"])
from transformers import AutoModelForImageTextToText
mia = CONFIG_MAPPING["mia"]
found += [mia, AutoModel._model_mapping[mia], AutoModelForImageTextToText._model_mapping[mia]]
found += [PROCESSOR_MAPPING[mia], PIPELINE_REGISTRY.supported_tasks["grounded-captioning"]["impl"]]
from transformers import AutoModelForVisualQuestionAnswering
vqa = CONFIG_MAPPING["mia_vqa"]
found += [vqa, AutoModelForVisualQuestionAnswering._model_mapping[vqa], PROCESSOR_MAPPING[vqa]]
print(*[class_.__name__ for class_ in found])
print(sum(type(finder).__module__ == "hf_grounding._auto" for finder in sys.meta_path))
"""


@pytest.mark.parametrize(
    "imported_before",
    [
        "",
        "import transformers; from transformers import AutoProcessor",
        # A file of ours that itself imports an Auto class is half-imported when that class becomes available.
        "import hf_grounding.modeling.modeling_multilevel",
        "from hf_grounding import MultiLevelGroundingProcessor",
    ],
    ids=["nothing", "auto_classes", "model", "processor"],
)
def test_auto_classes_know_our_classes_in_whatever_order_of_imports(imported_before):
    classes, finders_left = run_fresh(imported_before + LOOK_UP).splitlines()
    assert classes.split() == [
        "MultiLevelGroundingConfig",
        "MultiLevelGroundingModel",
        "MultiLevelGroundingModel",
        "MultiLevelGroundingImageProcessorPil",
        "MultiLevelGroundingProcessor",
        "PhraseGroundingPipeline",
        "MIAConfig",
        "MIAModel",
        "MIAForCaptioning",
        "MIAProcessor",
        "GroundedCaptioningPipeline",
        "MIAVQAConfig",
        "MIAForVQA",
        "MIAVQAProcessor",
    ]
    assert finders_left == "0"


def test_installed_version_is_the_one_in_the_source():
    try:
        installed = version("hf-grounding")
    except PackageNotFoundError:
        pytest.skip("hf-grounding runs from the checkout here, it is not installed")
    assert installed == hf_grounding.__version__


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory) -> set[str]:
    """Names of the files in a wheel built from a copy of the sources and one recipe."""
    pytest.importorskip("setuptools", minversion="77", reason="building the wheel needs setuptools>=77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in [*REPO.glob("hf_grounding/**/*"), *REPO.glob("tests/*.py")]:
        if path.is_file() and "__pycache__" not in path.parts:
            (source / path.relative_to(REPO)).parent.mkdir(parents=True, exist_ok=True)
            (source / path.relative_to(REPO)).write_bytes(path.read_bytes())
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        (source / name).write_bytes((REPO / name).read_bytes())
    recipe = source / "recipes" / "some_recipe"
    recipe.mkdir(parents=True)
    for name in ("README.md", "config.yaml", "left_over.bin"):
        (recipe / name).write_text("")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", out, source]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_has_every_module_template_and_recipe(wheel_files):
    modules = {str(path.relative_to(REPO)) for path in REPO.glob("hf_grounding/**/*.py")}
    data = {"hf_grounding/py.typed", "hf_grounding/templates/report.html.j2"}
    recipes = {"hf_grounding/recipes/some_recipe/README.md", "hf_grounding/recipes/some_recipe/config.yaml"}
    assert {name for name in wheel_files if ".dist-info/" not in name} == modules | data | recipes


def test_wheel_has_the_licence_and_the_command(wheel_files):
    inside = {name.partition(".dist-info/")[2] for name in wheel_files}
    assert {"licenses/LICENSE", "entry_points.txt"} <= inside
