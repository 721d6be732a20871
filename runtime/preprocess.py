"""From a picture to the model's input. H W: the picture's size; h w: the model's."""

import cv2
import numpy as np
import numpy.typing as npt

from mtmamba.metadata import ModelMetadata

Image = npt.NDArray[np.uint8]  # [H, W, 3], BGR, as OpenCV reads it


def resize_image(image: Image, size: tuple[int, int]) -> Image:
    """Resize to `size` (height, width), with no regard to the aspect: the area mean where both sides shrink (no
    aliasing), bilinear where one grows."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))


def preprocess(image: Image, metadata: ModelMetadata) -> npt.NDArray[np.float32] | Image:
    """image: [H, W, 3] uint8 BGR. Returns [3, h, w] float32, contiguous: RGB in 0..1, minus mean, over std; for a model
    that does this itself (`metadata.io` `picture`) [h, w, 3] uint8 RGB.

    The picture is resized to the model's size whatever its aspect, as the model's outputs are later resized back.
    """
    resized = resize_image(image, metadata.input_size)
    if metadata.io == "picture":
        return np.asarray(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB), np.uint8)
    std = np.asarray(metadata.std, np.float32)
    scale = 1 / (255 * std)
    shift = np.asarray(metadata.mean, np.float32) / std
    result = np.empty((3, *metadata.input_size), np.float32)
    for channel in range(3):
        np.multiply(resized[:, :, 2 - channel], scale[channel], out=result[channel], dtype=np.float32)
        result[channel] -= shift[channel]
    return result
