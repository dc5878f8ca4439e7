"""A run whose encoder's weights can't be had says so before it reads data; vectors are enough."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import invoke
from huggingface_hub import constants
from synthetic_runs import recipe_of

from mmkd import EmbeddingCache, EncoderCard, MmkdError, load_items
from mmkd.config.plan import Plan, plan
from mmkd.errors import EncoderError, RecipeError
from mmkd.pipeline.embed import check_encoders, embed
from mmkd.pipeline.train import train


class Vectors:
    modality, dim = "text", 384

    def encode(self, inputs: Any, *, batch_size: int = 64) -> Any:
        return np.random.default_rng(0).normal(size=(len(inputs), 384)).astype(np.float32)


@pytest.fixture
def planned(synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    options = ("encoders={text: minilm}", f"cache.folder={tmp_path / 'cache'}")
    return plan(recipe_of(synthetic, *options))


def test_no_data_is_read_and_no_folder_made(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "load_data", lambda _: pytest.fail("read the data"))
    with pytest.raises(EncoderError, match=r"encoders\.text: minilm needs .*\n.*hashed-text"):
        train(planned, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["validate", "quickstart"],
        ["embed", "quickstart"],
        ["train", "quickstart"],
        ["encode", "minilm", "a red teapot"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_says_the_same_and_at_once(
    planned: Plan,
    synthetic: list[str],
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    # a library that is asked for the weights itself tries for minutes
    monkeypatch.setattr(EncoderCard, "build", lambda *_, **__: pytest.fail("built a model"))
    changes = ["encoders={text: minilm}", f"cache.folder={tmp_path / 'cache'}"]
    given = [*synthetic, *changes] if command[0] != "encode" else []
    with pytest.raises(MmkdError) as error:
        invoke(*command, *given)
    told = str(error.value)
    assert "minilm needs sentence-transformers/all-MiniLM-L6-v2" in told
    assert "Cards that work here without a network: " in told and "hf download" in told
    assert not (tmp_path / "runs").exists()


def test_validate_tells_the_weights_beside_what_is_wrong_with_the_data(
    planned: Plan, synthetic: list[str], tmp_path: Path
) -> None:
    given = [*synthetic, "encoders={text: minilm}", f"cache.folder={tmp_path / 'cache'}"]
    with pytest.raises(RecipeError) as error:
        invoke("validate", "quickstart", *given, "data.items.title=titel")
    assert len(error.value.problems) == 2
    assert "no column 'titel'" in str(error.value) and "minilm needs" in str(error.value)
    assert invoke("validate", "quickstart", *given, "--no-data").exit_code == 0


def test_vectors_in_the_cache_are_enough_until_an_item_is_new(planned: Plan) -> None:
    cache, card = EmbeddingCache(**planned.cache), planned.cards["text"]
    items = load_items(root=planned.recipe.data.folder, **planned.items)
    assert not cache.holds(card)
    table = cache.table(card, items, encoder_factory=Vectors)
    assert cache.holds(card)
    check_encoders(planned)
    assert embed(planned, items)["text"].key == table.key
    text = tuple(f"new {one}" if one else None for one in items.text)
    changed = type(items)(
        ids=items.ids,
        titles=items.titles,
        text=text,
        image_path=items.image_path,
        attributes=items.attributes,
    )
    with pytest.raises(EncoderError, match=r"encoders\.text: minilm needs"):
        embed(planned, changed)
