"""What builders of data sets with files on disk share: the folder, a hash of the files, and errors that name them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import BuilderConfig, GeneratorBasedBuilder
from datasets.exceptions import DatasetGenerationError

from .schema import AnnotationError

__all__ = ["SourceFilesBuilder", "data_folder", "hash_files"]

_CHUNK_BYTES = 1 << 20


class SourceFilesBuilder(GeneratorBasedBuilder):
    """A builder whose [`AnnotationError`] comes out as it is, also from a worker process."""

    def _prepare_split_single(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        # `datasets` hides every error behind "An error occurred while generating the dataset", and what it hid is lost
        # on the way out of a worker process, so the one that names the file has to come out here.
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, AnnotationError):
                raise error.__cause__ from None
            raise


def data_folder(config: BuilderConfig) -> Path:
    """`data_dir` as an absolute path; ValueError if there is none."""
    if config.data_dir is None:
        raise ValueError("`data_dir` is missing: give the folder of the data set.")
    return Path(os.path.abspath(config.data_dir))


def hash_files(paths: Iterable[Path]) -> str:
    """Hash of names and contents; about a second for the 63,000 files of Flickr30k Entities."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open(path, "rb") as file:
            digest.update(f"{path.name} {os.fstat(file.fileno()).st_size} ".encode())
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
