"""What metrics that run in Java share: finding Java and the jars of `pycocoevalcap`, and saying what went wrong."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import IO

# The jars read numbers and lower-case words by the locale: METEOR fails in a German one.
LOCALE = ("-Duser.language=en", "-Duser.country=US")
SHOWN_CHARACTERS = 4000  # of what Java wrote before it failed


class JavaMetricUnavailable(RuntimeError):
    """Java, the package with the jars, or a file that a metric needs is not there; the message says what to do."""


def java_executable(metric: str) -> str:
    r"""Path of `java`.

    Raises:
        JavaMetricUnavailable: If it is not on `PATH`.
    """
    java = shutil.which("java")
    if java is None:
        raise JavaMetricUnavailable(
            f"{metric} needs Java, and there is no `java` on `PATH`: install a JRE (8 or newer) or add its bin folder."
        )
    return java


def toolkit_folder(metric: str, name: str) -> Path:
    r"""The folder `name` of the installed package `pycocoevalcap`, which is not imported.

    Raises:
        JavaMetricUnavailable: If the package is not installed.
    """
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise JavaMetricUnavailable(
            f"{metric} needs the jars of the package `pycocoevalcap`, which is not installed: "
            'pip install "hf_grounding[coco]".'
        )
    return Path(spec.submodule_search_locations[0]).resolve() / name


def check_jar(metric: str, path: Path) -> Path:
    r"""`path`, a file of `pycocoevalcap`.

    Raises:
        JavaMetricUnavailable: If it is not there.
    """
    if not path.is_file():
        raise JavaMetricUnavailable(
            f"{metric} needs '{path}', which is missing: "
            'pip install --force-reinstall "pycocoevalcap==1.2" brings it back.'
        )
    return path


def java_failure(metric: str, problem: str, stderr: IO[bytes]) -> RuntimeError:
    """The error to raise when Java has failed, with the end of what it wrote to `stderr`, a file."""
    stderr.seek(0)
    written = stderr.read().decode(errors="replace").strip()[-SHOWN_CHARACTERS:]
    return RuntimeError(f"{metric} failed: {problem}. Java wrote:\n{written or '(nothing)'}")
