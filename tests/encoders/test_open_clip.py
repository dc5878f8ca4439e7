"""Towers of a tiny CLIP: equal to a bare forward pass, and never silently untrained."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmkd import EncoderCard
from mmkd.encoders import Encoder, PreparingEncoder
from mmkd.errors import EncoderError

MakeCard = Callable[..., EncoderCard]


@pytest.fixture(scope="module")
def bare(tiny_clip: tuple[Path, Path]) -> Any:
    """The same model, made without our code."""
    import json

    model = open_clip.CLIP(**json.loads(tiny_clip[0].read_text()))
    model.load_state_dict(load_file(tiny_clip[1]))
    return model.eval()


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


def test_image_tower_equals_a_bare_forward(encoders: dict[str, Encoder], bare: Any) -> None:
    transform = open_clip.image_transform(32, is_train=False, interpolation="bicubic")
    with torch.no_grad():
        expected = bare.encode_image(torch.stack([transform(p) for p in pictures()])).numpy()
    found = encoders["open_clip image"].encode(pictures(), batch_size=2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_text_tower_equals_a_bare_forward(
    encoders: dict[str, Encoder], bare: Any, catalogue: list[str]
) -> None:
    tokens = open_clip.SimpleTokenizer(context_length=16)(catalogue)
    with torch.no_grad():
        expected = bare.encode_text(tokens).numpy()
    found = encoders["open_clip text"].encode(catalogue, batch_size=3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_prompt_normalisation_and_preprocessing_take_effect(
    clip_card: MakeCard, bare: Any, catalogue: list[str]
) -> None:
    prompted = clip_card("text", prompt="a photo of ", normalize=True).build()
    tokens = open_clip.SimpleTokenizer(context_length=16)([f"a photo of {t}" for t in catalogue])
    with torch.no_grad():
        expected = bare.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(prompted.encode(catalogue), expected, rtol=0, atol=1e-5)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    fields = {"image_mean": mean, "image_std": std, "image_resize_mode": "squash"}
    squashed = clip_card("image", image_interpolation="bilinear", **fields).build()
    pixels = [np.asarray(p.resize((32, 32), Image.Resampling.BILINEAR)) for p in pictures()]
    scaled = (np.stack(pixels) / 255 - mean) / std
    with torch.no_grad():
        expected = bare.encode_image(torch.tensor(scaled).float().permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(squashed.encode(pictures()), expected, rtol=0, atol=1e-4)


def test_half_precision_is_close(clip_card: MakeCard, encoders: dict[str, Encoder]) -> None:
    half = clip_card("image", dtype="bfloat16").build().encode(pictures())
    full = encoders["open_clip image"].encode(pictures())
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


def test_no_pretrained_is_refused_unless_allowed(clip_card: MakeCard) -> None:
    with pytest.raises(EncoderError, match="untrained model: its vectors mean nothing"):
        clip_card("image", pretrained=None).build()


def test_missing_weights_are_refused_even_if_random_ones_are_allowed(
    clip_card: MakeCard, tmp_path: Path
) -> None:
    for pretrained in (str(tmp_path / "missing.safetensors"), "no-such-tag"):
        card = clip_card("image", pretrained=pretrained)
        with pytest.raises(EncoderError, match="random weights never stand in"):
            card.build(allow_random_weights=True)


def test_tag_that_cannot_be_downloaded_is_refused() -> None:
    content = {"name": "x", "modality": "image", "kind": "open_clip", "model": "ViT-B-32"}
    card = EncoderCard(**content, pretrained="laion2b_s34b_b79k")
    with pytest.raises(EncoderError, match=r"laion2b_s34b_b79k could not be loaded.*HF_HOME"):
        card.build(allow_random_weights=True)


def test_random_weights_are_always_the_same(clip_card: MakeCard) -> None:
    card = clip_card("image", pretrained=None)
    before = torch.random.get_rng_state()
    first = card.build(allow_random_weights=True).encode(pictures())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(10)
    second = card.build(allow_random_weights=True).encode(pictures())
    np.testing.assert_array_equal(first, second)


def test_pickled_objects_are_refused(clip_card: MakeCard, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    plain, zipped = tmp_path / "plain.pt", tmp_path / "zipped.pt"
    plain.write_bytes(pickle.dumps(Attack()))
    torch.save({"state_dict": Attack()}, zipped)
    for checkpoint in (plain, zipped):
        with pytest.raises(EncoderError, match="could not be loaded from its local files"):
            clip_card("image", pretrained=str(checkpoint)).build()
    assert not marker.exists()


def test_checkpoint_of_plain_tensors_gives_the_same_vectors(
    clip_card: MakeCard, tiny_clip: tuple[Path, Path], encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    torch.save(load_file(tiny_clip[1]), tmp_path / "weights.pt")
    found = clip_card("image", pretrained=str(tmp_path / "weights.pt")).build()
    expected = encoders["open_clip image"].encode(pictures())
    np.testing.assert_array_equal(found.encode(pictures()), expected)


def test_folder_brings_its_weights(
    clip_card: MakeCard, tiny_clip: tuple[Path, Path], encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    config, checkpoint = tiny_clip
    text = f'{{"model_cfg": {config.read_text()}, "preprocess_cfg": {{}}}}'
    (tmp_path / "open_clip_config.json").write_text(text)
    card = clip_card("image", model=str(tmp_path), pretrained=None)
    with pytest.raises(EncoderError):  # no weights in it yet
        card.build(allow_random_weights=True)
    (tmp_path / "open_clip_model.safetensors").symlink_to(checkpoint)
    expected = encoders["open_clip image"].encode(pictures())
    np.testing.assert_array_equal(card.build().encode(pictures()), expected)
    with pytest.raises(EncoderError, match="carries its own weights"):
        clip_card("image", model=str(tmp_path)).build()


def test_config_never_replaces_a_built_in_of_its_name(
    clip_card: MakeCard, tiny_clip: tuple[Path, Path], tmp_path: Path
) -> None:
    before = open_clip.get_model_config("ViT-B-32")
    config = tmp_path / "ViT-B-32.json"
    config.write_text(tiny_clip[0].read_text())
    assert clip_card("image", model=str(config)).build().dim == 24
    assert open_clip.get_model_config("ViT-B-32") == before


@pytest.mark.parametrize(
    ("model", "message"), [("ViT-B-33", "unknown to open_clip"), (None, "needs a model")]
)
def test_wrong_models_are_explained(clip_card: MakeCard, model: str | None, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        clip_card("image", model=model).build()


def test_broken_config_is_named(clip_card: MakeCard, tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    for text, message in [("{", "cannot be read as JSON"), ('{"embed_dim": 3}', "lacks vision")]:
        config.write_text(text)
        with pytest.raises(EncoderError, match=message):
            clip_card("image", model=str(config)).build()


def test_image_tower_takes_no_prompt(clip_card: MakeCard) -> None:
    with pytest.raises(EncoderError, match="takes no prompt"):
        clip_card("image", prompt="a photo").build()


def test_pictures_prepared_by_a_pickled_copy_give_the_same_bits(
    encoders: dict[str, Encoder],
) -> None:
    encoder = encoders["open_clip image"]
    assert isinstance(encoder, PreparingEncoder)
    assert not isinstance(encoders["open_clip text"], PreparingEncoder)
    prepare = pickle.loads(pickle.dumps(encoder.prepare))
    prepared = [prepare(picture) for picture in pictures()]
    assert all(isinstance(one, np.ndarray) for one in prepared)
    found = encoder.encode_prepared(prepared, batch_size=2)
    np.testing.assert_array_equal(found, encoder.encode(pictures(), batch_size=2))
