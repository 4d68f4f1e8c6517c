"""Photos as people have them: files, URLs, any mode and orientation -> upright RGB."""

import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers.image_utils import load_image


def load_photo(image: Any, timeout: float | None = None) -> Image.Image:
    r"""Photo from a path, URL, data URI or PIL image: upright (EXIF) and RGB.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image, is cut off, or has more pixels than PIL opens.
    """
    source = os.fspath(image) if isinstance(image, os.PathLike) else image
    is_file = isinstance(source, str) and not source.startswith(("http://", "https://", "data:image/"))
    if is_file and not os.path.exists(source):
        raise FileNotFoundError(f"No photo '{source}'.")
    if is_file and os.path.isdir(source):
        raise ValueError(f"'{source}' is a folder; give one photo.")
    name = f"'{source[:200]}'" if isinstance(source, str) else f"The photo ({type(source).__name__})"
    try:
        photo = Image.open(source) if is_file else source
        if isinstance(photo, Image.Image):
            photo = eight_bits(ImageOps.exif_transpose(photo))
        return load_image(photo, timeout=timeout)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is larger than PIL opens: {error} Make it smaller, or, if you trust it, raise "
            "`PIL.Image.MAX_IMAGE_PIXELS`."
        ) from error
    except Exception as error:  # damaged files end in many kinds of errors: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def eight_bits(image: Image.Image) -> Image.Image:
    r"""The image with at most 8 bits a channel: PIL would clip the values of others at 255 instead of scaling them.

    Raises:
        ValueError: If its pixels are 32-bit integers above 255 or fractions, whose range is not known.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "F" or (image.mode == "I" and np.abs(np.asarray(image)).max() > 255):
        raise ValueError(
            f"its pixels are 32-bit numbers (mode {image.mode!r}), and how bright they are is not known; save it with "
            "8 or 16 bits a channel."
        )
    return image
