"""Towers of CLIP and SigLIP through transformers: equal to the bare model's features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmkd import EncoderCard
from mmkd.encoders import Encoder
from mmkd.errors import EncoderError

LIBRARY: Any = transformers  # partly untyped
CLASSES = {"clip": LIBRARY.CLIPModel, "siglip": LIBRARY.SiglipModel}


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


def card(modality: str, model: Path | str, **fields: Any) -> EncoderCard:
    content: dict[str, Any] = {
        "name": "c",
        "modality": modality,
        "kind": "clip",
        "model": str(model),
        **fields,
    }
    return EncoderCard(**content)


def bare_texts(family: str, folder: Path, texts: list[str]) -> Any:
    """Features of each text alone; SigLIP's padded to its 16 tokens as it was trained."""
    tokenizer = LIBRARY.AutoTokenizer.from_pretrained(folder)
    model = CLASSES[family].from_pretrained(folder).eval()
    padding = {"padding": "max_length"} if family == "siglip" else {}
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=16, return_tensors="pt", **padding)
        with torch.no_grad():
            rows.append(model.get_text_features(input_ids=ids["input_ids"]).pooler_output[0])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("family", CLASSES)
def test_image_tower_gives_the_bare_models_features(
    family: str, vision_models: dict[str, Path], encoders: dict[str, Encoder]
) -> None:
    folder = vision_models[family]
    processor = LIBRARY.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(images=pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        model = CLASSES[family].from_pretrained(folder).eval()
        expected = model.get_image_features(pixel_values=pixels).pooler_output.numpy()
    found = encoders[f"clip image {family}"].encode(pictures(), batch_size=2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", CLASSES)
def test_text_tower_gives_the_bare_models_features(
    family: str,
    vision_models: dict[str, Path],
    encoders: dict[str, Encoder],
    catalogue: list[str],
) -> None:
    expected = bare_texts(family, vision_models[family], catalogue)
    found = encoders[f"clip text {family}"].encode(catalogue, batch_size=3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", CLASSES)
def test_towers_are_compared_as_the_whole_model_does(
    family: str, vision_models: dict[str, Path], catalogue: list[str]
) -> None:
    folder = vision_models[family]
    image = card("image", folder, normalize=True).build().encode(pictures())
    text = card("text", folder, normalize=True).build().encode(catalogue[:2])
    tokens = LIBRARY.AutoTokenizer.from_pretrained(folder)(
        catalogue[:2], padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    pixels = LIBRARY.AutoImageProcessor.from_pretrained(folder)(
        images=pictures(), return_tensors="pt"
    )
    with torch.no_grad():
        model = CLASSES[family].from_pretrained(folder).eval()
        output = model(input_ids=tokens["input_ids"], pixel_values=pixels["pixel_values"])
    cosine = (output.image_embeds @ output.text_embeds.mT).numpy()
    np.testing.assert_allclose(image @ text.T, cosine, rtol=0, atol=1e-5)


def test_prompt_and_length_take_effect(
    vision_models: dict[str, Path], encoders: dict[str, Encoder]
) -> None:
    plain = encoders["clip text clip"]
    prompted = card("text", vision_models["clip"], prompt="a photo of ").build()
    np.testing.assert_array_equal(prompted.encode(["dolls"]), plain.encode(["a photo of dolls"]))
    short = card("text", vision_models["clip"], max_length_tokens=4).build()
    # four tokens with begin and end: two letters of an unknown word
    np.testing.assert_allclose(short.encode(["qz xx"]), plain.encode(["qz"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("modality", "model", "fields", "message"),
    [
        ("text", "clip", {"max_length_tokens": 17}, "more than the 16"),
        ("image", "clip", {"prompt": "a"}, "takes no prompt"),
        ("text", "clip", {"image_interpolation": "bicubic"}, "takes no image_ fields"),
        ("image", "vit", {}, "has not an image and a text tower"),
        ("image", "org/no-such-clip", {}, "org/no-such-clip could not be loaded.*HF_HOME"),
    ],
)
def test_mistakes_are_one_clear_line(
    modality: str,
    model: str,
    fields: dict[str, Any],
    message: str,
    vision_models: dict[str, Path],
) -> None:
    with pytest.raises(EncoderError, match=message) as caught:
        card(modality, vision_models.get(model, model), **fields).build()
    assert "\n" not in str(caught.value)
