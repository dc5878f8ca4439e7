"""Vision backbones: equal to the bare model, pooled as asked, never with a weight made up."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from mmkd import EncoderCard
from mmkd.encoders import Encoder
from mmkd.errors import EncoderError

LIBRARY: Any = transformers  # partly untyped
FAMILIES = {
    "dinov2": LIBRARY.Dinov2Model,
    "vit": LIBRARY.ViTModel,
    "resnet": LIBRARY.ResNetModel,
    "swin": LIBRARY.SwinModel,
    "clip": LIBRARY.CLIPVisionModel,
    "siglip": LIBRARY.SiglipVisionModel,
}


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


def card(model: Path | str, **fields: Any) -> EncoderCard:
    content: dict[str, Any] = {
        "name": "v",
        "modality": "image",
        "kind": "vision",
        "model": str(model),
        **fields,
    }
    return EncoderCard(**content)


def bare(family: str, folder: Path, **arguments: Any) -> Any:
    """The output of the family's own class on the processor's pixels."""
    processor = LIBRARY.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(images=pictures(), return_tensors="pt", **arguments)["pixel_values"]
    with torch.no_grad():
        return FAMILIES[family].from_pretrained(folder).eval()(pixel_values=pixels)


def assert_near(found: NDArray[np.float32], expected: Any) -> None:
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_the_bare_models_pooled_output(
    family: str, vision_models: dict[str, Path], encoders: dict[str, Encoder]
) -> None:
    expected = bare(family, vision_models[family]).pooler_output.flatten(1)
    assert_near(encoders[f"vision {family}"].encode(pictures(), batch_size=2), expected)


@pytest.mark.parametrize("family", ["dinov2", "vit", "clip"])
def test_poolings_of_models_with_a_class_token(family: str, vision_models: dict[str, Path]) -> None:
    states = bare(family, vision_models[family]).last_hidden_state
    wanted = {"cls": states[:, 0], "mean": states[:, 1:].mean(1), "max": states[:, 1:].amax(1)}
    for pooling, expected in wanted.items():
        encoder = card(vision_models[family], pooling=pooling).build()
        assert_near(encoder.encode(pictures()), expected)


@pytest.mark.parametrize("family", ["resnet", "swin", "siglip"])
def test_poolings_of_models_without_a_class_token(
    family: str, vision_models: dict[str, Path]
) -> None:
    states = bare(family, vision_models[family]).last_hidden_state
    states = states.flatten(2).mT if states.ndim == 4 else states
    for pooling, expected in {"mean": states.mean(1), "max": states.amax(1)}.items():
        encoder = card(vision_models[family], pooling=pooling).build()
        assert_near(encoder.encode(pictures()), expected)
    with pytest.raises(EncoderError, match="no class token"):
        card(vision_models[family], pooling="cls").build()


def test_registers_are_no_patches(tmp_path: Path, vision_models: dict[str, Path]) -> None:
    config = LIBRARY.Dinov2WithRegistersConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        num_register_tokens=3,
    )
    LIBRARY.Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    processor = LIBRARY.AutoImageProcessor.from_pretrained(vision_models["dinov2"])
    processor.save_pretrained(tmp_path)
    pixels = processor(images=pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        model = LIBRARY.Dinov2WithRegistersModel.from_pretrained(tmp_path).eval()
        states = model(pixel_values=pixels).last_hidden_state
    assert states.shape[1] == 1 + 3 + 16
    assert_near(card(tmp_path, pooling="mean").build().encode(pictures()), states[:, 4:].mean(1))


def test_preprocessing_of_the_card_takes_effect(vision_models: dict[str, Path]) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    fields = {"image_mean": mean, "image_std": std, "image_interpolation": "bilinear"}
    encoder: Any = card(
        vision_models["vit"], image_size=48, image_resize_mode="squash", **fields
    ).build()
    found = encoder.prepare(pictures()[0])
    assert found.shape == (3, 48, 48)
    resized = pictures()[0].resize((48, 48), Image.Resampling.BILINEAR)
    expected = (np.asarray(resized) / 255 - mean) / std
    # the processor resizes tensors and rounds once more than PIL does
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), rtol=0, atol=2.1 / 255 / 0.5)
    # learned positions were interpolated from 4 x 4 to 6 x 6 patches
    assert encoder.encode(pictures()).shape == (3, 32)
    cut: Any = card(vision_models["vit"], image_size=24, image_resize_mode="shortest").build()
    assert cut.prepare(Image.new("RGB", (90, 30))).shape == (3, 24, 24)


def test_normalisation_and_precision(
    vision_models: dict[str, Path], encoders: dict[str, Encoder]
) -> None:
    full = encoders["vision dinov2"].encode(pictures())
    unit = card(vision_models["dinov2"], normalize=True).build().encode(pictures())
    np.testing.assert_allclose(
        unit, full / np.linalg.norm(full, axis=1, keepdims=True), rtol=0, atol=1e-6
    )
    half = card(vision_models["dinov2"], dtype="bfloat16").build().encode(pictures())
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.1 * np.abs(full).max()


def test_random_weights_never_stand_in_for_missing_ones(
    tmp_path: Path, vision_models: dict[str, Path], encoders: dict[str, Encoder]
) -> None:
    folder = tmp_path / "vit"
    shutil.copytree(vision_models["vit"], folder)
    weights = load_file(folder / "model.safetensors")
    without = {name: w for name, w in weights.items() if not name.startswith("pooler.")}
    assert len(without) < len(weights)
    # as in ImageNet classifiers of ViT: there is a pooler in the code and none in the file
    save_file(without, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="lack the pooler"):
        card(folder).build()
    found = card(folder, pooling="cls").build().encode(pictures())
    expected = card(vision_models["vit"], pooling="cls").build().encode(pictures())
    np.testing.assert_array_equal(found, expected)
    without.popitem()
    save_file(without, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="random weights never stand in"):
        card(folder, pooling="cls").build()


def test_pickled_weights_are_refused(tmp_path: Path, vision_models: dict[str, Path]) -> None:
    folder = tmp_path / "vit"
    shutil.copytree(vision_models["vit"], folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="could not be loaded from its local files"):
        card(folder).build()


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("org/no-such-model", {}, r"org/no-such-model could not be loaded.*HF_HOME.*path"),
        ("/no/such/folder", {}, "does not exist"),
        ("vit", {"pooling": "last"}, "is not for images"),
        ("vit", {"image_resize_mode": "longest", "image_size": 32}, "use shortest or squash"),
        ("vit", {"image_resize_mode": "squash"}, "needs image_size"),
    ],
)
def test_mistakes_are_one_clear_line(
    model: str, fields: dict[str, Any], message: str, vision_models: dict[str, Path]
) -> None:
    with pytest.raises(EncoderError, match=message) as caught:
        card(vision_models.get(model, model), **fields).build()
    assert "\n" not in str(caught.value)
