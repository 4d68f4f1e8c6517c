"""Everything pip needs to know about hf-grounding, and our one build step: recipes/ travels in the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithRecipes(build_py):
    """Copies `recipes/<name>/` to `hf_grounding/recipes/<name>/` in the build.

    Recipes stand at the top of the repository, where newcomers look, and must reach users who only have the wheel.
    An editable install reads them from the checkout.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._recipe_files().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target, preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        recipe_files = [] if self.editable_mode else list(self._recipe_files().values())
        return super().get_outputs(include_bytecode) + recipe_files

    def _recipe_files(self) -> dict[str, str]:
        """Source path -> path in the build, for every recipe's README.md and YAML files."""
        target_root = Path(self.build_lib, "hf_grounding")
        files = sorted([*Path("recipes").glob("*/README.md"), *Path("recipes").glob("*/*.yaml")])
        return {str(file): str(target_root / file) for file in files}


setup(
    name="hf-grounding",
    version=re.search(r'^__version__ = "(.+)"$', (ROOT / "hf_grounding/__init__.py").read_text(), re.MULTILINE)[1],
    description="Vision-and-language models that show which place in the picture each word stands for",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["visual grounding", "image captioning", "visual question answering", "transformers", "pytorch"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["hf_grounding", "hf_grounding.*"]),
    package_data={"hf_grounding": ["py.typed", "templates/*.j2"]},
    include_package_data=False,
    install_requires=[
        "torch>=2.6",
        "transformers>=5.20,<6",
        "huggingface-hub>=2,<3",
        "tokenizers>=0.22",
        "safetensors>=0.5",
        "datasets>=5,<6",
        "accelerate>=1.10",
        "evaluate>=0.4.6",
        "numpy>=2",
        "pillow>=11",
        "pyyaml",
        "jinja2",
        "tqdm",
        "matplotlib",
        "typer>=0.19",
        "rich",
    ],
    extras_require={
        "coco": ["pycocoevalcap>=1.2"],  # METEOR and SPICE, which need Java too
        "formats": ["h5py"],  # old feature files in HDF5
        "onnx": ["onnxruntime"],  # detectors as ONNX files
        "dev": [
            *("pytest", "hypothesis", "ruff", "mypy", "types-PyYAML", "build", "setuptools>=77"),
            *("pycocoevalcap>=1.2", "pycocotools", "h5py", "lmdb", "onnxruntime"),
        ],
    },
    entry_points={"console_scripts": ["hf-grounding=hf_grounding.cli:main"]},
    cmdclass={"build_py": BuildWithRecipes},
)
