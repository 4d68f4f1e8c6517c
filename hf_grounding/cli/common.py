"""What the commands share: one line for a user's mistake, results on stdout and all else on stderr, finding a model."""

import difflib
import errno
import functools
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from ..processing.paths import below_data_root

if TYPE_CHECKING:
    from PIL import Image

    from ..visualization import Table

# Of each kind of model: what its folder holds one of, and where such folders come from.
FOLDERS = {
    "model": (("config.json",), "Make one: `hf-grounding train`."),
    "backbone": (("config.json",), "Give the folder of a transformers vision model, or its name on the Hub."),
    "detector": (
        ("config.json", "*.onnx"),
        "Give the folder of an object detector of transformers or of an ONNX YOLOX, or a name on the Hub.",
    ),
}
DEBUG = "HF_GROUNDING_DEBUG"  # set to see the traceback of an error

# Options of the commands that describe photos; `photo_networks` makes a pipeline's arguments of the last four.
ModelOption = Annotated[str, typer.Option(help="Output folder of `hf-grounding train`, or a model on the Hub.")]
DetectorOption = Annotated[
    str | None, typer.Option(help="Of the regions, as of extract-features; default: that of the model's training.")
]
BackboneOption = Annotated[str | None, typer.Option(help="Of the regions' features; default likewise.")]
GridOption = Annotated[
    int | None, typer.Option(min=1, help="Without detector: the cells of a grid, 7 for 7 x 7; default likewise.")
]
ConceptDetectorOption = Annotated[
    str | None, typer.Option("--concept_detector", help="Of the photo's likely words; default likewise.")
]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with one line on stderr and exit code 1 in place of a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()  # a full disk behind `> file` shows here
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise  # typer's own
        except KeyboardInterrupt:
            _complain("Interrupted.")
            raise typer.Exit(130) from None
        except Exception as error:
            if os.environ.get(DEBUG):
                raise
            _complain(f"Error: {_message(error)}")
            _drop_unwritten_output()
            raise typer.Exit(1) from None

    return run


def one_line(error: object) -> str:
    return " ".join(str(error).split())


def _message(error: Exception) -> str:
    from huggingface_hub.errors import StrictDataclassError

    explained = isinstance(error, ValueError | OSError | ImportError | StrictDataclassError)  # they talk to people
    text = one_line(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{text}. Free some space, or write to another disk."
    return text if explained and text else f"{type(error).__name__}: {text} ({DEBUG}=1 shows where)"


def _complain(text: str) -> None:
    for bar in list(getattr(tqdm, "_instances", ())):  # one left open would share its line with the message
        bar.close()
    typer.secho(text, fg=typer.colors.RED, err=True)


def _drop_unwritten_output() -> None:
    """Python would try again to write it when it ends, and complain in its own words."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def working(level: int = logging.WARNING) -> Iterator[None]:
    """What libraries print goes to stderr, as do our log messages from `level` on; no bars for loading weights."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_grounding").setLevel(level)
    hub_logging.disable_propagation()  # it has a handler of its own
    transformers_logging.disable_progress_bar()
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        # A warning is for people here: its words, not the line of code.
        warnings.showwarning = lambda message, *_: typer.echo(f"Warning: {one_line(message)}", err=True)
        yield


def print_json(value: Mapping[str, Any]) -> None:
    """One line; null where there is no number, as JSON knows no NaN."""
    typer.echo(json.dumps(_without_nan(value), allow_nan=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(table: "Table") -> None:
    """Title, aligned columns, note; no wider than the terminal where there is one."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from ..visualization import cell_text

    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    drawn = RichTable(
        title=Text(table.title), title_justify="left", caption=Text(table.note), caption_justify="left", box=None
    )
    numeric = {name for name, value in table.rows[0].items() if isinstance(value, int | float)}
    for name in table.rows[0]:
        drawn.add_column(name, justify="right" if name in numeric else "left")
    for row in table.rows:
        drawn.add_row(*(Text(cell_text(value)) for value in row.values()))
    console.print(drawn)
    console.print()


def model_folder(path: Path, kind: str = "model") -> Path:
    r"""`path`, if it holds a model of this kind of [`FOLDERS`].

    Raises:
        FileNotFoundError: Says the nearest folder beside it, or what is missing.
    """
    files, advice = FOLDERS[kind]
    if not path.is_dir():
        beside = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
        nearest = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"Did you mean '{path.parent / nearest[0]}'?" if nearest else advice
        raise FileNotFoundError(f"No {kind} folder '{path}'. {hint}")
    if not any(file.is_file() for pattern in files for file in path.glob(pattern)):
        missing = " and no ".join(files)
        advice = "Did its training end?" if kind == "model" else advice
        raise FileNotFoundError(f"'{path}' holds no {kind}: there is no {missing} in it. {advice}")
    return path


def check_local_model(model: str, kind: str = "model") -> bool:
    """Whether `model` is a folder, which must hold one of this kind, and not a name on the Hub."""
    is_local = Path(model).parent.is_dir() or model.count("/") != 1 or model.startswith((".", "/", "~"))
    if is_local:
        model_folder(Path(model), kind)
    return is_local


def found_network(name: str | None, kind: str) -> str | None:
    r"""A network of an option: its folder, here or below the data root, or its name on the Hub; None if not given.

    Raises:
        FileNotFoundError: If it is a folder and there is none, or no such network is in it.
    """
    if name is None:
        return None
    path = below_data_root(name)
    check_local_model(path, kind)
    return path


def photo_networks(
    detector: str | None, backbone: str | None, grid: int | None, concept_detector: str | None
) -> dict[str, Any]:
    r"""The options that say where a photo's regions and concepts come from, as arguments of a pipeline.

    Raises:
        typer.BadParameter: If there are a detector and a grid.
        FileNotFoundError: As [`found_network`].
    """
    if detector is not None and grid is not None:
        raise typer.BadParameter("Give either --detector, for its regions, or --grid, for the cells of a grid.")
    return {
        "detector": found_network(detector, "detector"),
        "backbone": found_network(backbone, "backbone"),
        "grid": grid,
        "concept_detector": found_network(concept_detector, "model"),
    }


def load_model(model: str, auto_class: Any, *kinds: str) -> tuple[Any, Any]:
    r"""Network and processor of a folder or a name on the Hub.

    Not by `transformers.pipeline`, whose error for a model that cannot be loaded holds whole tracebacks.

    Raises:
        ValueError: If it cannot be loaded, or is a model of none of these `kinds`.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.utils import PROCESSOR_NAME

    is_local = check_local_model(model)
    try:
        found = AutoConfig.from_pretrained(model).model_type
        if found not in kinds:
            raise ValueError(f"it is a {found}, no {' or '.join(kinds)}")
        if is_local and not Path(model, PROCESSOR_NAME).is_file():
            raise ValueError(f"there is no {PROCESSOR_NAME} in it")
        return auto_class.from_pretrained(model), AutoProcessor.from_pretrained(model)
    except Exception as error:  # whatever is missing from it or damaged
        where = "" if is_local else ", which is no folder here,"
        raise ValueError(f"Model '{model}'{where} cannot be loaded: {error}") from error


def check_picture_name(path: Path, option: str = "--draw") -> None:
    """Before the work, not after."""
    from PIL import Image

    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise typer.BadParameter(f"{option} '{path}' must end in the name of an image format, such as .png or .jpg.")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise typer.BadParameter(f"{option} '{path}' cannot be written: '{nearest}' is a file and no folder.")


def save_picture(picture: "Image.Image", path: Path) -> None:
    """Written aside and renamed, so that a full disk leaves no half picture."""
    aside = path.with_name(f".part-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        picture.save(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
