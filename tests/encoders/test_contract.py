"""What every encoder promises, whatever its kind."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mmkd.encoders import ENCODERS, Encoder, PreparingEncoder
from mmkd.encoders.precomputed import PrecomputedEncoder
from mmkd.errors import EncoderError

# padding and the blocking of matrix products change the order of float32 sums, nothing else
TOLERANCE = 2e-6


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
    return [
        *(Image.fromarray(one) for one in noise),
        Image.new("RGB", (64, 64), "red"),
        Image.new("RGB", (1, 1), "white"),
        Image.new("RGB", (700, 3), "black"),
        Image.linear_gradient("L").convert("RGB"),
        Image.radial_gradient("L").convert("RGB"),
    ]


@pytest.fixture
def inputs(encoder: Encoder, catalogue: list[str]) -> Sequence[Any]:
    if isinstance(encoder, PrecomputedEncoder):
        return [str(row) for row in range(1, 9)]
    return pictures() if encoder.modality == "image" else catalogue


def test_every_kind_is_tested(encoders: dict[str, Encoder]) -> None:
    assert {kind.split()[0] for kind in encoders} == set(ENCODERS)


def test_gives_one_finite_float32_vector_each(encoder: Encoder, inputs: Sequence[Any]) -> None:
    vectors = encoder.encode(inputs)
    assert isinstance(encoder, Encoder)
    assert vectors.shape == (8, encoder.dim)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(4), axis=0)) == 8


def test_same_inputs_give_the_same_bits(encoder: Encoder, inputs: Sequence[Any]) -> None:
    np.testing.assert_array_equal(encoder.encode(inputs), encoder.encode(inputs))


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_batch_size_never_changes_vectors(
    encoder: Encoder, inputs: Sequence[Any], batch_size: int
) -> None:
    expected = encoder.encode(inputs, batch_size=8)
    assert_close(encoder.encode(inputs, batch_size=batch_size), expected)


def test_vectors_come_in_the_order_of_the_inputs(encoder: Encoder, inputs: Sequence[Any]) -> None:
    order = np.random.default_rng(1).permutation(len(inputs))
    shuffled = encoder.encode([inputs[i] for i in order], batch_size=3)
    assert_close(shuffled, encoder.encode(inputs)[order])


def test_neighbours_in_a_batch_have_no_influence(encoder: Encoder, inputs: Sequence[Any]) -> None:
    alone = np.concatenate([encoder.encode([one]) for one in inputs])
    assert_close(alone, encoder.encode(inputs))


def test_no_input_gives_no_vector(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_one_bare_input_is_an_error(encoder: Encoder, inputs: Sequence[Any]) -> None:
    with pytest.raises(EncoderError, match="wrap it in a list"):
        encoder.encode(inputs[0])


def test_wrong_sort_of_input_is_named_by_position(encoder: Encoder, inputs: Sequence[Any]) -> None:
    wrong: list[Any] = [*inputs[:2], None]
    with pytest.raises(EncoderError, match="input 2 is a NoneType"):
        encoder.encode(wrong)


def test_batch_size_zero_is_an_error(encoder: Encoder, inputs: Sequence[Any]) -> None:
    with pytest.raises(EncoderError, match="batch_size 0"):
        encoder.encode(inputs, batch_size=0)


@pytest.mark.parametrize(
    "text",
    ["", " \n\t", "x" * 100_000, "long words " * 9_000, "\ud800 broken", "\0", "🧸🚀", "نص عربي"],
    ids=["empty", "blank", "one long word", "long", "surrogate", "null", "emoji", "arabic"],
)
def test_any_text_gives_a_finite_vector(
    encoders: dict[str, Encoder], catalogue: list[str], text: str
) -> None:
    for encoder in encoders.values():
        if encoder.modality == "text":
            both = encoder.encode([text, catalogue[0]])
            assert np.isfinite(both).all()
            assert_close(both[1:], encoder.encode(catalogue[:1]))


def test_prepared_images_give_the_vectors_of_images(encoders: dict[str, Encoder]) -> None:
    preparing = [one for one in encoders.values() if isinstance(one, PreparingEncoder)]
    assert preparing
    for encoder in preparing:
        elsewhere = pickle.loads(pickle.dumps(encoder.prepare))  # as a worker process gets it
        prepared = [elsewhere(image) for image in pictures()]
        assert all(array.dtype == np.float32 and array.shape[0] == 3 for array in prepared)
        found = encoder.encode_prepared(prepared, batch_size=3)
        np.testing.assert_array_equal(found, encoder.encode(pictures(), batch_size=3))
        assert encoder.encode_prepared([]).shape == (0, encoder.dim)


def test_image_encoders_of_models_prepare(encoders: dict[str, Encoder]) -> None:
    # no model, no images, and a library that prepares and encodes in one call
    without = {"color_image", "precomputed", "sentence_transformer clip image"}
    for kind, encoder in encoders.items():
        wanted = encoder.modality == "image" and kind not in without
        assert isinstance(encoder, PreparingEncoder) == wanted, kind


def test_image_modes_are_brought_to_rgb(encoders: dict[str, Encoder]) -> None:
    rgb = pictures()[0]
    for encoder in encoders.values():
        if encoder.modality == "image" and not isinstance(encoder, PrecomputedEncoder):
            opaque = encoder.encode([rgb.convert("RGBA")])
            assert_close(opaque, encoder.encode([rgb]))


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    # relative to the length of a vector, which differs between encoders
    scale = np.linalg.norm(expected, axis=1).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=TOLERANCE)
