"""Image vectors without any model: statistics of colour, shape and texture.

From: PIL RGB images. To: ``[n, 362]`` float32 of length 1. Sources: colour histograms, Swain and
Ballard, IJCV 1991; orientation histograms, Dalal and Triggs, CVPR 2005; local binary patterns,
Ojala et al., TPAMI 2002; square-rooted histograms, Arandjelovic and Zisserman, CVPR 2012.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.encoders.base import checked_images, encode_in_batches, unit_rows
from mmkd.errors import refuse

_HUES, _SATURATIONS, _VALUES = 12, 4, 8
_LEVELS = 4  # of red, green and blue in the joint histogram
_ORIENTATIONS, _SHAPE_GRID = 8, 4
_PATTERNS = 10  # rotation-invariant uniform patterns of 8 neighbours: 0..8, and the rest
_PYRAMID = (1, 2)  # whole picture, then its four quarters


class ColorImageEncoder:
    """Hand-made image descriptor: four groups of histograms that count alike.

    * hue, saturation and value, in the whole picture and in its quarters (120 numbers);
    * red, green and blue jointly, 4 levels each (64);
    * directions of edges, weighted by their strength, on a 4 x 4 grid (128);
    * local binary patterns, in the whole picture and in its quarters (50).

    Every histogram is square-rooted, so a dot product compares distributions (Hellinger). The
    picture is squashed to a square first. Vectors do not depend on the batch at all.

    Args:
        image_size: Side in pixels that pictures are brought to; a multiple of 4.

    Raises:
        ValueError: ``image_size`` is no multiple of 4.
    """

    version: ClassVar[int] = 1

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with these options, a line each."""
        size = options.get("image_size", 64)
        if size >= 8 and size % _SHAPE_GRID == 0:
            return []
        return [f"image_size: got {size}, wanted a multiple of 4 from 8 up; use 64"]

    def __init__(self, *, image_size: int = 64) -> None:
        refuse(self.check(image_size=image_size))
        self.modality = "image"
        cells = sum(grid * grid for grid in _PYRAMID)
        self.dim = (
            cells * (_HUES + _SATURATIONS + _VALUES)
            + _LEVELS**3
            + _SHAPE_GRID**2 * _ORIENTATIONS
            + cells * _PATTERNS
        )
        self._size = image_size

    def encode(self, inputs: Sequence[Image.Image], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Encodes n images into ``[n, dim]`` float32 of length 1; see `Encoder`."""
        images = checked_images(inputs, batch_size=batch_size)
        return encode_in_batches(images, self._describe, dim=self.dim, batch_size=batch_size)

    def _describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        side = (self._size, self._size)
        squares = [image.resize(side, Image.Resampling.BILINEAR) for image in images]
        rgb = np.stack([np.asarray(image) for image in squares])  # [n, s, s, 3] uint8
        hsv = np.stack([np.asarray(image.convert("HSV")) for image in squares])
        grey = np.stack([np.asarray(image.convert("L")) for image in squares])  # [n, s, s]
        groups = (_tones(hsv), _colours(rgb), _shapes(grey), _textures(grey))
        return unit_rows(np.concatenate([unit_rows(np.sqrt(group)) for group in groups], axis=1))


def _tones(hsv: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Histograms of hue, saturation and value over the pyramid."""
    hue, saturation, value = (hsv[..., channel].astype(np.float32) for channel in range(3))
    # the hue of a grey or black pixel is noise: it counts by how colourful the pixel is
    colourful = saturation * value / 255**2
    place = hue * (_HUES / 256)
    lower = place.astype(np.int64)
    share = place - lower  # red is next to both ends, and a small shift must move little
    found = []
    for grid in _PYRAMID:
        count = _counter(hsv.shape[0], hsv.shape[1], grid)
        hues = count(lower, _HUES, colourful * (1 - share))
        hues += count((lower + 1) % _HUES, _HUES, colourful * share)
        saturations = count(_bins(saturation, _SATURATIONS), _SATURATIONS, None)
        values = count(_bins(value, _VALUES), _VALUES, None)
        pixels = np.float32((hsv.shape[1] // grid) ** 2)
        cells = np.concatenate([hues, saturations, values], axis=2) / pixels / grid**2
        found.append(cells.reshape(hsv.shape[0], -1))
    return np.concatenate(found, axis=1)


def _colours(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Joint histogram of red, green and blue."""
    levels = rgb.astype(np.int64) * _LEVELS // 256
    joint = (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
    count = _counter(rgb.shape[0], rgb.shape[1], 1)
    return count(joint, _LEVELS**3, None).reshape(len(rgb), -1)


def _shapes(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Edge strength by direction on a grid, as shares of the picture's total."""
    light = grey.astype(np.float32)
    down, right = np.zeros_like(light), np.zeros_like(light)
    down[:, 1:-1] = light[:, 2:] - light[:, :-2]
    right[:, :, 1:-1] = light[:, :, 2:] - light[:, :, :-2]
    strength: NDArray[np.float32] = np.hypot(down, right)
    # an edge from dark to light is the same shape as one from light to dark: half a turn
    place = (np.arctan2(down, right) / np.pi % 1.0) * _ORIENTATIONS
    lower = place.astype(np.int64)
    share = (place - lower).astype(np.float32)
    count = _counter(grey.shape[0], grey.shape[1], _SHAPE_GRID)
    cells = count(lower % _ORIENTATIONS, _ORIENTATIONS, strength * (1 - share))
    cells += count((lower + 1) % _ORIENTATIONS, _ORIENTATIONS, strength * share)
    return cells.reshape(len(grey), -1)


def _textures(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Histograms of rotation-invariant uniform local binary patterns over the pyramid."""
    size = grey.shape[1]
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    code = np.zeros(grey.shape, np.int64)
    for bit, (row, column) in enumerate(around):
        neighbour = padded[:, row : row + size, column : column + size]
        code |= (neighbour >= grey).astype(np.int64) << bit
    pattern = _UNIFORM[code]
    found = []
    for grid in _PYRAMID:
        count = _counter(grey.shape[0], size, grid)
        found.append(count(pattern, _PATTERNS, None).reshape(len(grey), -1))
    return np.concatenate(found, axis=1)


def _uniform_patterns() -> NDArray[np.int64]:
    """Pattern of each of the 256 codes: its number of ones if they are in one run, else 9."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1  # [256, 8]
    changes = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), _PATTERNS - 1)


_UNIFORM = _uniform_patterns()

_Count = Callable[[NDArray[np.int64], int, NDArray[np.float32] | None], NDArray[np.float32]]


def _counter(images: int, size: int, grid: int) -> _Count:
    """A function that counts bins ``[n, s, s]`` in the cells of a grid: ``[n, grid**2, bins]``."""
    band = np.arange(size) * grid // size
    cell = band[:, None] * grid + band[None, :]  # [s, s]
    cells = grid * grid
    place = np.arange(images)[:, None, None] * cells + cell  # [n, s, s]

    def count(
        found: NDArray[np.int64], bins: int, weights: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        index = (place * bins + found).ravel()
        flat = None if weights is None else weights.ravel()
        total = np.bincount(index, weights=flat, minlength=images * cells * bins)
        return total.reshape(images, cells, bins).astype(np.float32)

    return count


def _bins(channel: NDArray[np.float32], bins: int) -> NDArray[np.int64]:
    return (channel * (bins / 256)).astype(np.int64)
