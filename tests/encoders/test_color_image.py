"""Colour image: vectors tell colours, shapes, places and textures apart."""

import colorsys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmkd.encoders.color_image import ColorImageEncoder

RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 160, 30)


def draw(shape: str, color: tuple[int, int, int], *, size: int = 96, shift: int = 0) -> Image.Image:
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    low, high = size // 4 + shift, 3 * size // 4 + shift
    if shape == "disc":
        pen.ellipse((low, low, high, high), fill=color)
    elif shape == "box":
        pen.rectangle((low, low, high, high), fill=color)
    else:
        pen.polygon([(low, high), (high, high), ((low + high) // 2, low)], fill=color)
    return image


def encode(*images: Image.Image) -> NDArray[np.float32]:
    return ColorImageEncoder().encode(images)


@pytest.mark.parametrize("held", ["color", "shape"])
def test_separates_colour_and_shape(held: str) -> None:
    shapes, colors = ("disc", "box", "triangle"), (RED, BLUE, GREEN)
    kinds = [(s, c) for s in shapes for c in colors]
    train = encode(*(draw(s, c) for s, c in kinds))
    moved = encode(*(draw(s, c, size=130, shift=4) for s, c in kinds))
    nearest = (moved @ train.T).argmax(axis=1)
    axis = 1 if held == "color" else 0
    assert [kinds[i][axis] for i in nearest] == [kind[axis] for kind in kinds]


def test_same_shape_or_same_colour_is_closer_than_neither() -> None:
    base, other_color, other_shape, neither = encode(
        draw("disc", RED), draw("disc", BLUE), draw("triangle", RED), draw("triangle", BLUE)
    )
    assert base @ other_color > base @ neither + 0.01
    assert base @ other_shape > base @ neither + 0.01


def test_tells_where_a_colour_is() -> None:
    left = Image.new("RGB", (64, 64), "white")
    left.paste(RED, (0, 0, 32, 64))
    right = left.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert encode(left)[0] @ encode(right)[0] < 0.97


def test_tells_textures_of_one_colour_apart() -> None:
    rows = np.indices((64, 64))[0]
    striped = np.where(rows % 4 < 2, 60, 200).astype(np.uint8)
    noisy = np.random.default_rng(0).permutation(striped.ravel()).reshape(64, 64)
    turned = striped.T.copy()
    a, b, c = encode(*(Image.fromarray(x).convert("RGB") for x in (striped, noisy, turned)))
    assert a @ b < 0.9
    assert a @ c < 0.9


def test_size_of_the_picture_hardly_matters() -> None:
    small, large = encode(draw("disc", RED, size=128), draw("disc", RED, size=512))
    assert small @ large > 0.97


def test_hue_is_a_circle() -> None:
    def flat(hue: float) -> Image.Image:
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, 0.8, 0.8))
        return Image.new("RGB", (16, 16), (red, green, blue))

    before, after, far = encode(flat(-0.02), flat(0.02), flat(0.5))
    assert before @ after > before @ far + 0.1


def test_colour_histogram_equals_a_count_by_hand() -> None:
    # 8 x 8, half black and half white: two joint bins of one half, so two square roots of 1/2;
    # each of four groups has length 1, the whole vector too
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))
    vector = ColorImageEncoder(image_size=8).encode([image])[0]
    joint = vector[120 : 120 + 64]
    np.testing.assert_allclose(np.flatnonzero(joint), [0, 63])
    np.testing.assert_allclose(joint[[0, 63]], np.sqrt(0.5) / 2, atol=1e-6)


def test_edges_equal_a_count_by_hand() -> None:
    # one vertical edge: all strength at orientation 0, in the two middle columns of the grid
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (4, 0, 8, 8))
    shapes = ColorImageEncoder(image_size=8).encode([image])[0][184 : 184 + 128]
    expected = np.zeros((4, 4, 8))
    expected[:, 1:3, 0] = np.sqrt(1 / 8) / 2
    np.testing.assert_allclose(shapes.reshape(4, 4, 8), expected, atol=1e-6)


def test_vectors_have_length_one_and_no_batch_effect() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 70, 50, 3), dtype=np.uint8)
    images = [*(Image.fromarray(x) for x in noise), Image.new("RGB", (9, 9), "black")]
    vectors = encode(*images)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(ColorImageEncoder().encode(images, batch_size=1), vectors)


@pytest.mark.parametrize("size", [0, 4, 30])
def test_wrong_size_is_an_error(size: int) -> None:
    with pytest.raises(ValueError, match=f"image_size: got {size}, wanted a multiple of 4"):
        ColorImageEncoder(image_size=size)
