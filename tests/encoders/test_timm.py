"""timm models: equal to the bare model, with all of their weights or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from encoders.image_models import TIMM_MODEL
from PIL import Image
from safetensors.torch import load_file, save_file

from mmkd import EncoderCard
from mmkd.encoders import Encoder
from mmkd.errors import EncoderError


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (3, 200, 170, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


def card(**fields: Any) -> EncoderCard:
    content: dict[str, Any] = {
        "name": "t",
        "modality": "image",
        "kind": "timm",
        "model": TIMM_MODEL,
        **fields,
    }
    return EncoderCard(**content)


@pytest.fixture
def bare(timm_weights: Path) -> Any:
    model: Any = timm.create_model(TIMM_MODEL, pretrained=False)
    model.load_state_dict(load_file(timm_weights))
    return model.eval()


def pixels(model: Any) -> torch.Tensor:
    import timm.data

    data: Any = timm.data
    transform = data.create_transform(**data.resolve_model_data_config(model))
    return torch.stack([transform(picture) for picture in pictures()])


def test_vectors_are_the_bare_models_features(bare: Any, encoders: dict[str, Encoder]) -> None:
    with torch.no_grad():
        expected = bare.forward_head(bare.forward_features(pixels(bare)), pre_logits=True).numpy()
    found = encoders["timm"].encode(pictures(), batch_size=2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_pooling_takes_effect(bare: Any, timm_weights: Path) -> None:
    with torch.no_grad():
        states = bare.forward_features(pixels(bare))
    special = bare.num_prefix_tokens
    for pooling, expected in {"cls": states[:, 0], "mean": states[:, special:].mean(1)}.items():
        encoder = card(pretrained=str(timm_weights), pooling=pooling).build()
        expected = bare.fc_norm(expected).detach().numpy()
        np.testing.assert_allclose(encoder.encode(pictures()), expected, rtol=0, atol=1e-5)


def test_folder_as_timm_saves_it(tmp_path: Path, bare: Any, encoders: dict[str, Encoder]) -> None:
    from timm.models import save_for_hf

    save_for_hf(bare, str(tmp_path), safe_serialization=True)
    found = card(model=str(tmp_path)).build().encode(pictures())
    np.testing.assert_array_equal(found, encoders["timm"].encode(pictures()))


def test_random_weights_never_stand_in_for_missing_ones(tmp_path: Path, timm_weights: Path) -> None:
    weights = load_file(timm_weights)
    weights.pop("norm.weight")
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(EncoderError, match="could not be loaded from its local files"):
        card(pretrained=str(tmp_path / "w.safetensors")).build()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "no_such_net"}, "unknown to timm"),
        ({"model": "resnet18.a1_in1k"}, "resnet18.a1_in1k could not be loaded.*HF_HOME"),
        ({"pretrained": "/no/such.safetensors"}, "not the path of a .safetensors file"),
        ({"model": "/tmp", "pretrained": None}, "holds no model.safetensors"),
        ({"pooling": "last"}, "not for images"),
    ],
)
def test_mistakes_are_one_clear_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message) as caught:
        card(**fields).build()
    assert "\n" not in str(caught.value)
