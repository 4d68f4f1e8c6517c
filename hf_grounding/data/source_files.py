"""What builders of data sets with files on disk share: their folder, a hash of files, errors naming them, photos."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from datasets import BuilderConfig, Features, GeneratorBasedBuilder
from datasets.exceptions import DatasetGenerationError

from .schema import AnnotationError

__all__ = ["CocoPhotosConfig", "SourceFilesBuilder", "SourceFilesConfig", "data_folder", "find_coco_photo"]

_CHUNK_BYTES = 1 << 20


@dataclass(eq=False)  # BuilderConfig brings its own comparison
class SourceFilesConfig(BuilderConfig):
    """Settings of a data set with files on disk."""

    def annotations(self) -> Iterable[Path]:
        """The files that are read, photos aside."""
        raise NotImplementedError

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Features | None = None) -> str:
        """Names the cache folder after what is read, too, so that an edited file is read again."""
        contents = hash_files(self.annotations())
        return super().create_config_id({**config_kwargs, "contents": contents}, custom_features)


@dataclass(eq=False)
class CocoPhotosConfig(SourceFilesConfig):
    """Settings of a data set whose photos lie in COCO's folders `train2014/`, `val2014/`, ..., or are not there."""

    PHOTO_DIRS: ClassVar[tuple[str, ...]] = ()

    image_dir: str | None = None

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Features | None = None) -> str:
        """As of all; photos that came later are seen, too."""
        photos = [name for name in self.PHOTO_DIRS if (self.photo_root / name).is_dir()]
        return super().create_config_id({**config_kwargs, "photos": photos}, custom_features)

    @property
    def photo_root(self) -> Path:
        """Absolute."""
        return Path(os.path.abspath(data_folder(self) / (self.image_dir or ".")))


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


def find_coco_photo(config: CocoPhotosConfig, photo_dir: str, file_name: str, where: str) -> Path | None:
    r"""A photo; `None` if no photos are there, neither its folder nor `image_dir`.

    Raises:
        AnnotationError: If it is missing from a folder that is there.
    """
    folder = config.photo_root / photo_dir
    photo = folder / file_name
    if photo.is_file():
        return photo
    if config.image_dir is None and not folder.is_dir():
        return None
    raise AnnotationError(
        f"{where}: its photo '{photo}' is not there. Complete the folder, or give another `image_dir`; with neither "
        "folder nor `image_dir` the rows have no photos."
    )


def hash_files(paths: Iterable[Path]) -> str:
    """Hash of names and contents; about a second for the 63,000 files of Flickr30k Entities."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open(path, "rb") as file:
            digest.update(f"{path.name} {os.fstat(file.fileno()).st_size} ".encode())
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
