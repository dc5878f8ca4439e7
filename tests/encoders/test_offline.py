"""Weights that are neither here nor to be had are told at once, with what works instead."""

import socket
import time
import urllib.error
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from mmkd import EncoderCard, hub, load_card
from mmkd.encoders import loading
from mmkd.encoders.offline import check_at_hand, hub_models, offline_cards
from mmkd.errors import EncoderError
from mmkd.hub import hub_reachable


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub may be asked, and its cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_reachable.cache_clear()
    yield
    hub_reachable.cache_clear()


def answers(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def asked(*arguments: Any, **options: Any) -> Any:
        return answer()

    monkeypatch.setattr("urllib.request.urlopen", asked)


def fails(error: BaseException) -> Any:
    def answer() -> None:
        raise error

    return answer


def unresolved() -> BaseException:
    return urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))


def put(tmp_path: Path, model: str, revision: str) -> None:
    """A repository as the hub's client keeps it."""
    folder = tmp_path / "hub" / f"models--{model.replace('/', '--')}"
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "snapshots" / revision / "model.safetensors").write_bytes(b"0")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)


def test_a_hub_out_of_reach_names_the_cards_that_work_and_how_to_bring_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers(monkeypatch, fails(unresolved()))
    card = load_card("minilm")
    with pytest.raises(EncoderError) as error:
        check_at_hand(card, key="encoders.text")
    told = str(error.value)
    assert told.startswith("encoders.text: minilm needs sentence-transformers/all-MiniLM-L6-v2")
    assert "(91 MB)" in told and f"{constants.ENDPOINT} can't be reached" in told
    assert "encoders.text=hashed-text, encoders.text=minilm-packaged." in told
    assert f"hf download {card.model} --revision {card.revision}" in told
    assert "HF_HOME" in told and "HF_HUB_OFFLINE=1" in told and "mmkd cp minilm encoders" in told


def test_without_a_recipe_cards_are_named_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, fails(unresolved()))
    with pytest.raises(EncoderError, match=r"^card: minilm needs .*\n.*: hashed-text, minilm-pack"):
        check_at_hand(load_card("minilm"))


def test_a_hub_that_must_not_be_asked_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    answers(monkeypatch, fails(AssertionError("asked")))
    with pytest.raises(EncoderError, match="HF_HUB_OFFLINE is set, so nothing is downloaded"):
        check_at_hand(load_card("clip-vit-b32"), key="encoders.image")


def test_what_is_here_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers(monkeypatch, fails(unresolved()))
    for name in ("hashed-text", "color-image", "minilm-packaged"):
        check_at_hand(load_card(name), key="encoders.x")
    card = load_card("minilm")
    assert card.model is not None and card.revision is not None
    put(tmp_path, card.model, card.revision)
    check_at_hand(card, key="encoders.text")
    assert offline_cards("text") == ["hashed-text", "minilm", "minilm-packaged"]
    local = EncoderCard(name="mine", modality="text", kind="sentence_transformer", model="/nowhere")
    check_at_hand(local, key="encoders.text")  # that the path is wrong is for the kind to say


def test_a_revision_that_is_not_here_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers(monkeypatch, fails(unresolved()))
    card = load_card("minilm")
    assert card.model is not None
    put(tmp_path, card.model, "0" * 40)
    with pytest.raises(EncoderError, match="minilm needs"):
        check_at_hand(card, key="encoders.text")


def test_a_packages_card_is_offered_where_the_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert offline_cards("text") == ["hashed-text", "minilm-packaged"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert offline_cards("text") == ["hashed-text"]


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("clip-vit-b32", ["timm/vit_base_patch32_clip_224.openai"]),
        ("efficientnet-b0", ["timm/efficientnet_b0.ra_in1k"]),
        ("qwen3-embedding-0.6b", ["Qwen/Qwen3-Embedding-0.6B"]),
        ("minilm-packaged", []),
    ],
)
def test_a_cards_repositories(name: str, models: list[str]) -> None:
    assert [model for model, _ in hub_models(load_card(name))] == models


def test_an_adapter_is_on_the_hub_too() -> None:
    card = EncoderCard(
        name="tuned",
        modality="text",
        kind="language_model",
        model="/models/base",
        pooling="mean",
        options={"adapter": "me/lora", "adapter_revision": "v2"},
    )
    assert hub_models(card) == [("me/lora", "v2")]


def refused() -> Any:
    raise urllib.error.HTTPError("https://hub", 403, "no", Message(), None)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (fails(unresolved()), False),
        (fails(TimeoutError()), False),
        (refused, True),
        (lambda: open(__file__, "rb"), True),
    ],
)
def test_reachable_is_whatever_answers(
    answer: Any, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, answer)
    assert hub_reachable() is wanted


def slow() -> Any:
    time.sleep(2)
    return open(__file__, "rb")


def test_a_name_that_never_resolves_takes_no_longer_than_the_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "_PROBE_S", 0.05)
    answers(monkeypatch, slow)
    began = time.monotonic()
    assert not hub_reachable()
    assert time.monotonic() - began < 1


def test_libraries_try_once_where_the_hub_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers(monkeypatch, fails(unresolved()))
    seen = []
    with loading.loading("org/model"):
        seen.append(constants.HF_HUB_OFFLINE)
    with loading.loading("/a/path"):
        seen.append(constants.HF_HUB_OFFLINE)
    assert seen == [True, False] and constants.HF_HUB_OFFLINE is False
