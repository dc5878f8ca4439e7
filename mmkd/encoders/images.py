"""Preprocessing of images, apart from the model: from a PIL RGB image to the array a model takes.

From: a library's transform or a model's image processor, with a card's changes. To: a callable that
can be pickled, so worker processes can run it ahead of the model (see `PreparingEncoder`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.errors import EncoderError


class ImageTransform:
    """A torchvision-style transform, from a PIL image to a tensor, giving an array.

    Args:
        transform: Gives a ``[3, height, width]`` tensor.
    """

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self._transform = transform

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """``[3, height, width]`` float32 of one RGB image."""
        array: NDArray[np.float32] = self._transform(image).numpy()
        return array


class ImageProcessor:
    """A transformers image processor, with a card's changes to it.

    Args:
        processor: As ``AutoImageProcessor`` loads it.
        image_size: Side in pixels; None keeps the model's own, as for all of the following.
        image_mean: Mean per channel.
        image_std: Standard deviation per channel.
        image_interpolation: ``"bilinear"`` or ``"bicubic"``.
        image_resize_mode: ``"shortest"`` brings the shorter side to ``image_size`` and cuts out the
            middle; ``"squash"`` brings both.

    Raises:
        EncoderError: ``image_resize_mode`` is neither, or comes without ``image_size``.
    """

    def __init__(
        self,
        processor: Any,
        *,
        image_size: int | None = None,
        image_mean: tuple[float, float, float] | None = None,
        image_std: tuple[float, float, float] | None = None,
        image_interpolation: str | None = None,
        image_resize_mode: str | None = None,
    ) -> None:
        if image_resize_mode not in (None, "shortest", "squash"):
            raise EncoderError(
                f"image_resize_mode {image_resize_mode!r} is unknown to transformers; use shortest "
                "or squash"
            )
        if image_resize_mode is not None and image_size is None:
            raise EncoderError("image_resize_mode needs image_size; add it to the card")
        changes: dict[str, Any] = {}
        if image_size is not None:
            own = "shortest" if "shortest_edge" in (processor.size or {}) else "squash"
            changes |= _sizes(image_size, image_resize_mode or own)
        if image_mean is not None:
            changes |= {"do_normalize": True, "image_mean": list(image_mean)}
        if image_std is not None:
            changes |= {"do_normalize": True, "image_std": list(image_std)}
        if image_interpolation is not None:
            changes["resample"] = Image.Resampling[image_interpolation.upper()]
        self._processor = processor
        self._changes = changes

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """``[3, height, width]`` float32 of one RGB image."""
        found = self._processor(images=image, return_tensors="pt", **self._changes)
        array: NDArray[np.float32] = found["pixel_values"][0].numpy()
        return array


def _sizes(side: int, mode: str) -> dict[str, Any]:
    square = {"height": side, "width": side}
    if mode == "squash":
        return {"do_resize": True, "size": square, "do_center_crop": False}
    size = {"shortest_edge": side}
    return {"do_resize": True, "size": size, "do_center_crop": True, "crop_size": square}
