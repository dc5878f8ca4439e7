"""Facet values to a small picture: a shape in a colour with a pattern, drawn by Pillow.

Size, place, shade, turn and background vary, so that no two pictures of a kind are alike.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

PICTURE_SIZE_PX: Final = 64
_RGB: Final[dict[str, tuple[int, int, int]]] = {
    "red": (205, 40, 40),
    "orange": (240, 130, 20),
    "yellow": (235, 210, 40),
    "green": (50, 150, 60),
    "teal": (30, 170, 170),
    "blue": (45, 75, 200),
    "purple": (130, 50, 165),
    "grey": (110, 110, 115),
}
Polygon = list[tuple[float, float]]


def draw(facets: Mapping[str, str], rng: np.random.Generator) -> Image.Image:
    """Draws one item.

    Args:
        facets: Facet name to value; colour, shape and pattern are read.
        rng: Source of randomness.

    Returns:
        An RGB picture of `PICTURE_SIZE_PX` pixels square.
    """
    size = PICTURE_SIZE_PX
    backdrop = int(rng.integers(215, 256))
    tint = rng.integers(-8, 9, 3)
    picture = Image.new("RGB", (size, size), _rgb(np.clip(backdrop + tint, 0, 255)))
    shade = np.array(_RGB[facets["colour"]]) * rng.uniform(0.85, 1.1) + rng.integers(-12, 13, 3)
    fill = _rgb(np.clip(shade, 0, 255))
    surface = Image.new("RGB", (size, size), fill)
    _decorate(ImageDraw.Draw(surface), facets["pattern"], _rgb(np.clip(shade * 0.55, 0, 255)), rng)
    picture.paste(surface, mask=_silhouette(facets["shape"], rng))
    return picture


def _rgb(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def _silhouette(shape: str, rng: np.random.Generator) -> Image.Image:
    """A mask of the shape, of random size and place, slightly turned."""
    radius = rng.uniform(0.26, 0.42) * PICTURE_SIZE_PX
    x, y = rng.uniform(radius, PICTURE_SIZE_PX - radius, 2)
    turn = rng.uniform(-0.25, 0.25)
    mask = Image.new("L", (PICTURE_SIZE_PX, PICTURE_SIZE_PX))
    pen = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if shape == "ring":
            hole = radius * 0.55
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        pen.polygon(_corners(shape, x, y, radius, turn), fill=255)
    return mask


def _corners(shape: str, x: float, y: float, radius: float, turn: float) -> Polygon:
    """Corners around a centre, from distances and angles; straight up is the first."""
    if shape == "star":
        spokes = [(radius * (1.0 if n % 2 == 0 else 0.42), n / 10) for n in range(10)]
    elif shape == "cross":
        # Twelve corners: three for each quarter, the inner one at the arm's width.
        arm = math.atan(0.35) / math.tau
        quarter = [(radius, -arm), (radius, arm), (radius * 0.47, 0.125)]
        spokes = [(far, around + n / 4) for n in range(4) for far, around in quarter]
    elif shape == "square":
        spokes = [(radius, 0.125 + n / 4) for n in range(4)]
    else:
        spokes = [(radius, n / 3) for n in range(3)]
    return [
        (x + far * math.sin(math.tau * around + turn), y - far * math.cos(math.tau * around + turn))
        for far, around in spokes
    ]


def _decorate(
    pen: ImageDraw.ImageDraw, pattern: str, ink: tuple[int, int, int], rng: np.random.Generator
) -> None:
    step = int(rng.integers(8, 12))
    start = int(rng.integers(-step, 0))
    places = range(start, PICTURE_SIZE_PX + step, step)
    if pattern == "striped":
        slant = int(rng.integers(-6, 7))
        for at in places:
            pen.line((at, 0, at + slant, PICTURE_SIZE_PX), fill=ink, width=3)
    elif pattern == "dotted":
        for x in places:
            for y in places:
                pen.ellipse((x, y, x + 4, y + 4), fill=ink)
    elif pattern == "checked":
        half = step // 2
        for column, x in enumerate(range(start, PICTURE_SIZE_PX, half)):
            for y in range(start + half * (column % 2), PICTURE_SIZE_PX, 2 * half):
                pen.rectangle((x, y, x + half - 1, y + half - 1), fill=ink)
