"""A tuned encoder sent to the hub and used from there by its repository's name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import invoke
from encoders.image_models import save_vision_models
from encoders.language_models import save
from PIL import Image
from shipping.hub_server import Hub, Repository
from synthetic_runs import recipe_of

import mmkd
from mmkd import load_card
from mmkd.config.plan import plan
from mmkd.errors import EncoderError
from mmkd.shipping.sharing import push_encoder

NAME = "ann/words"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``mmkd tune`` leaves: card, weights, record; and what it locks with."""
    folder = tmp_path_factory.mktemp("encoders") / "words"
    save("llama", folder / "model")
    card = {
        "name": "words",
        "modality": "text",
        "kind": "language_model",
        "model": "./model",
        "pooling": "mean",
        "max_length_tokens": 12,
        "license": "MIT",
        "tuned": {
            "parent": "tiny",
            "parent_fingerprint": "0" * 64,
            "events": "1" * 64,
            "split": "2" * 64,
            "seed": 0,
        },
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    record = {
        "parent": "tiny",
        "finished": True,
        "best_epoch": 1,
        "before": {"HR@10": 0.25, "NDCG@10": 0.125},
        "history": [{"valid": {"HR@10": 0.3, "NDCG@10": 0.2}}] * 2,
    }
    (folder / "tuning.json").write_text(json.dumps(record))
    (folder / "writer.lock").touch()
    return folder


def test_a_tuned_encoder_goes_and_comes_with_the_same_vectors(
    hub: Hub, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthetic: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert push_encoder(tuned, NAME) == f"{hub.url}/{NAME}"
    sent = hub.repositories[NAME].files()
    assert "writer.lock" not in sent and {"card.yaml", "tuning.json", "README.md"} <= {*sent}
    assert str(tuned.parent).encode() not in b"".join(sent.values())
    page = sent["README.md"].decode()
    assert "tuned from `tiny`" in page and "| licence | MIT |" in page
    assert "| NDCG@10 | 0.1250 | 0.2000 |" in page
    assert f"encoders.text={NAME}" in page

    here, there = load_card(str(tuned / "card.yaml")), load_card(NAME)
    assert there.name == "words" and there.tuned == here.tuned
    assert there.fingerprint() == here.fingerprint()
    texts = ["a teapot", "of clay and iron"]
    found = there.build().encode(texts)
    np.testing.assert_array_equal(found, here.build().encode(texts))
    recipe = recipe_of(synthetic, "encoders.image=null", f"encoders.text={NAME}")
    with pytest.raises(Exception, match="tuned on"):  # of another log: as strict as here
        plan(recipe).load_data()


def test_the_command_line_takes_a_tuned_encoder_by_its_name(
    hub: Hub, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoders").symlink_to(tuned.parent)
    result = invoke("push", "words", NAME)
    assert result.exit_code == 0 and f"encoders.text={NAME}" in result.stdout
    assert "card.yaml" in hub.repositories[NAME].files()


def test_what_cannot_be_read_elsewhere_is_not_sent(hub: Hub, tuned: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    card = yaml.safe_load((tuned / "card.yaml").read_text())
    card["model"] = str(tuned / "model")
    (own / "card.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(EncoderError, match="on this machine alone"):
        push_encoder(own, NAME)
    save("llama", own / "model")
    (own / "card.yaml").write_text((tuned / "card.yaml").read_text())
    (own / "model" / "modeling.py").write_text("boom()")
    with pytest.raises(EncoderError, match=r"holds model/modeling\.py, which is not sent"):
        push_encoder(own, NAME)
    assert not hub.repositories


def test_of_a_repository_only_weights_and_words_are_brought(
    hub: Hub, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    push_encoder(tuned, NAME)
    files = hub.repositories[NAME].files()
    more = {"model/modeling_own.py": b"boom()", "model/pytorch_model.bin": b"\x80", "setup.py": b""}
    hub.repositories[NAME].commit(files | more)
    card = load_card(NAME)
    folder = Path(str(card.model)).parent
    brought = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not brought & {"modeling_own.py", "pytorch_model.bin", "setup.py", "README.md"}
    hub.repositories["ann/other"] = Repository()
    hub.repositories["ann/other"].commit({"run.json": b"{}"})
    with pytest.raises(EncoderError, match=r"holds no card\.yaml, so it is not an encoder's card"):
        load_card("ann/other")
    with pytest.raises(EncoderError, match="there is no such repository"):
        load_card("ann/nothing")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``mmkd tune`` leaves of two towers: two cards, one model, a record."""
    folder = tmp_path_factory.mktemp("towers") / "shop"
    folder.mkdir()
    save_vision_models(tmp_path_factory.mktemp("models"))["clip"].rename(folder / "model")
    tuned = {"parent_fingerprint": "0" * 64, "events": "1" * 64, "split": "2" * 64, "seed": 0}
    for tower in ("text", "image"):
        card = {
            "name": f"shop-{tower}",
            "modality": tower,
            "kind": "clip",
            "model": "./model",
            "tuned": {"parent": f"clip-{tower}", **tuned},
        }
        (folder / f"card.{tower}.yaml").write_text(yaml.safe_dump(card))
    record = {
        "finished": True,
        "parent": "clip-text+clip-image",
        "best_epoch": 0,
        "before": {"text.NDCG@10": 0.125, "NDCG@10": 0.25},
        "history": [{"valid": {"text.NDCG@10": 0.5, "NDCG@10": 0.375}}],
    }
    (folder / "tuning.json").write_text(json.dumps(record))
    return folder


def test_two_towers_go_into_one_repository_and_come_as_two_encoders(
    hub: Hub, both: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    push_encoder(tuned, NAME)  # one encoder, which the two then replace
    (tmp_path / "encoders").symlink_to(both.parent)
    result = invoke("push", "shop", NAME)
    use = f"encoders.text={NAME} encoders.image={NAME}"
    assert result.exit_code == 0 and use in result.stdout
    sent = hub.repositories[NAME].files()
    assert {"card.text.yaml", "card.image.yaml", "model/model.safetensors"} <= {*sent}
    assert "card.yaml" not in sent
    page = sent["README.md"].decode()
    assert use in page and 'tower="text"' in page and "texts and pictures" in page
    assert "| text.NDCG@10 | 0.1250 | 0.5000 |" in page

    recipe = mmkd.load_recipe("quickstart", ["data.root=.", *use.split()])
    cards = plan(recipe).cards
    picture = Image.effect_noise((40, 32), 80).convert("RGB")
    for tower, inputs in (("text", ["a red pot", "a cup"]), ("image", [picture])):
        here, there = load_card(str(both / f"card.{tower}.yaml")), load_card(NAME, tower=tower)
        assert cards[tower] == there and there.modality == tower
        assert there.fingerprint() == here.fingerprint()
        given: Any = inputs
        np.testing.assert_array_equal(there.build().encode(given), here.build().encode(given))
    with pytest.raises(
        EncoderError, match=r"holds a card of each tower \(text, image\); say which"
    ):
        load_card(NAME)
