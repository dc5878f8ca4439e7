"""Image encoders: all that they share, and their preprocessing, apart from the model.

From: PIL RGB images, or what ``prepare`` made of them, ``[3, height, width]`` float32 each. To:
``[n, dim]`` float32. ``prepare`` (a library's transform or a model's image processor, with a card's
changes) can be pickled, so worker processes run it ahead of the model (see `PreparingEncoder`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.encoders.base import checked_images, encode_in_batches, unit_rows
from mmkd.errors import EncoderError, refuse

# Pillow's own threshold of suspicion: 256 MiB as RGB, more than any catalogue picture needs
MAX_PIXELS = 89_478_485


class ImageEncoder:
    """Encodes pictures with a torch model; a kind gives ``prepare`` and `_forward`.

    Another batch size moves float32 vectors by about 1e-6.

    Args:
        prepare: From a PIL RGB image to the array the model takes; it can be pickled.
        model: The model's name, for messages.
        device: Where the model runs.
        dtype: Type of the pixels; None keeps float32.
        normalize: Whether vectors are scaled to length 1.

    Raises:
        EncoderError: One image gets different vectors.
    """

    prepare: Callable[[Image.Image], NDArray[np.float32]]
    modality: str
    dim: int

    def __init__(
        self,
        prepare: Callable[[Image.Image], NDArray[np.float32]],
        *,
        model: str,
        device: Any,
        dtype: Any,
        normalize: bool,
    ) -> None:
        self.prepare = prepare
        self.modality = "image"
        self._device, self._dtype, self._normalize = device, dtype, normalize
        # a model's config names its width in many ways; one image tells it, and that all fits
        probe = [prepare(Image.linear_gradient("L").convert("RGB"))]
        first, second = self._vectors(probe), self._vectors(probe)
        if not np.array_equal(first, second):
            raise EncoderError(
                f"model {model} gives one image different vectors, as models do that mask patches "
                "at random; choose one that is made to encode"
            )
        self.dim = int(first.shape[1])

    def encode(self, inputs: Sequence[Image.Image], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Encodes n images into ``[n, dim]`` float32; see `Encoder`."""
        return encode_in_batches(
            checked_images(inputs, batch_size=batch_size),
            lambda part: self._vectors([self.prepare(image) for image in part]),
            dim=self.dim,
            batch_size=batch_size,
        )

    def encode_prepared(
        self, prepared: Sequence[NDArray[np.float32]], *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Encodes n images that went through ``prepare``; see `PreparingEncoder`."""
        return encode_in_batches(prepared, self._vectors, dim=self.dim, batch_size=batch_size)

    def features(self, inputs: Sequence[Image.Image]) -> list[NDArray[np.float32]]:
        """Pixels of n images; see `TunableEncoder`."""
        return [self.prepare(image) for image in checked_images(inputs, batch_size=1)]

    def differentiable(self, features: Sequence[NDArray[np.float32]]) -> Any:
        """``[n, dim]`` with gradients, of n prepared images; see `TunableEncoder`."""
        import torch

        pixels = torch.from_numpy(np.stack(features))  # [n, 3, height, width]
        return self._forward(pixels.to(self._device, self._dtype))

    def _forward(self, pixels: Any) -> Any:
        """``[b, dim]`` tensor of a ``[b, 3, height, width]`` pixels, in inference mode."""
        raise NotImplementedError

    def _vectors(self, prepared: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return self._rows(self.differentiable(prepared))

    def _rows(self, found: Any) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = found.float().cpu().numpy()  # [b, dim]
        return unit_rows(vectors) if self._normalize else vectors


def check_resized(image: Image.Image, side: int | None) -> None:
    """Refuse a picture that would be too large once its shorter side is brought to ``side``.

    A line of 8000 x 1 becomes 1,792,000 x 224 before its middle is cut out.

    Args:
        image: The picture.
        side: In pixels; None where a picture's shape is not kept.

    Raises:
        EncoderError: It would have more than `MAX_PIXELS`.
    """
    shorter, longer = sorted(image.size)
    if side is None or side * side * longer <= MAX_PIXELS * shorter:
        return
    raise EncoderError(
        f"too narrow: {image.width} x {image.height} pixels would be resized to "
        f"{side * longer // shorter} x {side}, at most {MAX_PIXELS} are made"
    )


def image_transform(transform: Callable[[Image.Image], Any]) -> Callable[[Image.Image], Any]:
    """``prepare`` of a torchvision-style transform, which gives ``[3, height, width]`` tensors."""
    return functools.partial(_transformed, transform, _shorter_side(transform))


def _transformed(
    transform: Callable[[Image.Image], Any], side: int | None, image: Image.Image
) -> Any:
    check_resized(image, side)
    return transform(image).numpy()


def _shorter_side(transform: Any) -> int | None:
    """What a torchvision-style transform brings a picture's shorter side to, if it keeps shapes."""
    sides = []
    for step in getattr(transform, "transforms", [transform]):
        size = getattr(step, "size", None)
        size = [size] if isinstance(size, int) else list(size or ())
        name = type(step).__name__
        if size and ((name == "Resize" and len(size) == 1) or name == "ResizeKeepRatio"):
            sides.append(max(size))
    return max(sides, default=None)


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
        ValueError: ``image_resize_mode`` is neither, or comes without ``image_size``.
    """

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with these options, a line each."""
        mode = options.get("image_resize_mode")
        if mode is None:
            return []
        if mode not in ("shortest", "squash"):
            return [
                f"image_resize_mode: got {mode!r}, which is unknown to transformers; use shortest "
                "or squash"
            ]
        if options.get("image_size", 0) is None:
            return ["image_resize_mode needs image_size; add it to the card"]
        return []

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
        refuse(self.check(image_size=image_size, image_resize_mode=image_resize_mode))
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
        self._side = processor_side(processor, changes)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """``[3, height, width]`` float32 of one RGB image; EncoderError if it is too narrow."""
        check_resized(image, self._side)
        found = self._processor(images=image, return_tensors="pt", **self._changes)
        array: NDArray[np.float32] = found["pixel_values"][0].numpy()
        return array


def processor_side(processor: Any, changes: Mapping[str, Any] | None = None) -> int | None:
    """What a transformers image processor brings a picture's shorter side to, if it keeps shapes.

    Args:
        processor: The processor; None has no say.
        changes: Of its settings.
    """
    size = (changes or {}).get("size") or getattr(processor, "size", None) or {}
    side = size.get("shortest_edge") if hasattr(size, "get") else None
    bounded = hasattr(size, "get") and size.get("longest_edge")
    return int(side) if side and not bounded else None


def _sizes(side: int, mode: str) -> dict[str, Any]:
    square = {"height": side, "width": side}
    if mode == "squash":
        return {"do_resize": True, "size": square, "do_center_crop": False}
    size = {"shortest_edge": side}
    return {"do_resize": True, "size": size, "do_center_crop": True, "crop_size": square}
