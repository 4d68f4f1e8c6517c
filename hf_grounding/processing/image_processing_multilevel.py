"""Image side of the processor: RGB, resized to a fixed size, normalised.

The aspect is ignored, as in section 3.1 of arXiv 1811.11683.
"""

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling

from .photos import eight_bits


class MultiLevelGroundingImageProcessorPil(PilBackend):
    r"""Photo -> `pixel_values`.

    Set `size`, `image_mean` and `image_std` to what the backbone was trained with; the defaults scale to [-1, 1].
    """

    resample = PILImageResampling.BICUBIC
    size = {"height": 448, "width": 448}
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    model_input_names = ["pixel_values"]

    def convert_to_rgb(self, image: Any, **kwargs: Any) -> np.ndarray:
        return super().convert_to_rgb(eight_bits(image) if isinstance(image, Image.Image) else image, **kwargs)


__all__ = ["MultiLevelGroundingImageProcessorPil"]
