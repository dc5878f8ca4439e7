"""Tuning on a catalogue: a card with weights of its own, which another split refuses."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from encoders.language_models import save
from synthetic_runs import recipe_of

import mmkd
from mmkd import load_card, load_recipe
from mmkd.config.plan import Plan, plan
from mmkd.errors import EncoderError, RecipeError, RunError, TrainingInterrupted
from mmkd.files import read_json
from mmkd.pipeline.embed import embed
from mmkd.pipeline.train import train
from mmkd.pipeline.tune import tune
from mmkd.runs.folder import RunFolder

OPTIONS = "epochs: 2, pairs: 64, batch_size: 16, lr: 0.001, validation_pairs: 60"


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card of a tiny random language model."""
    folder = tmp_path_factory.mktemp("parent")
    save("llama", folder / "llama")
    card = {"modality": "text", "kind": "language_model", "model": "./llama", "pooling": "mean"}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**card, "max_length_tokens": 12}))
    return folder / "tiny.yaml"


def _planned(synthetic: list[str], parent: Path | str, *more: str) -> Plan:
    encoders = ("encoders.image=null", f"encoders.text={parent}")
    return plan(recipe_of(synthetic, *encoders, f"tune.text={{{OPTIONS}}}", *more))


def _check_that_the_loss_falls(record: dict[str, Any]) -> None:
    first, second = (one["losses"]["total"] for one in record["history"])
    assert second < first


def test_a_tuned_encoder_is_a_card_that_only_its_split_takes(
    synthetic: list[str], parent: Path, tmp_path: Path
) -> None:
    planned, told = _planned(synthetic, parent), list[str]()
    card = tune(planned, name="mine", folder=tmp_path, announce=told.append)
    assert "tiny learns" in told[0]
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        *("card.yaml", "model", "tuning.json", "writer.lock")
    ]
    assert (tmp_path / "mine" / "model" / "model.safetensors").is_file()
    _check_that_the_loss_falls(read_json(tmp_path / "mine" / "tuning.json"))

    # by its name, as any card, with vectors of its own in the cache
    assert load_card("mine", folder=tmp_path) == card
    before = load_card(str(parent))
    assert card.fingerprint() != before.fingerprint()
    data = planned.load_data()
    digests = data.digests()
    assert card.tuned is not None
    assert (card.tuned.events, card.tuned.split) == (digests["events"], digests["split"])
    assert card.tuned.parent_fingerprint == before.fingerprint()
    own = _planned(synthetic, tmp_path / "mine" / "card.yaml")
    table = embed(own, data.items)["text"]
    rows = np.flatnonzero(table.present)[:3]
    vectors, texts = table.vectors[rows], [str(data.items.text[row]) for row in rows]
    np.testing.assert_allclose(vectors, card.build().encode(texts), atol=1e-5)
    assert np.abs(vectors - before.build().encode(texts)).max() > 1e-3
    assert card.build().encode(["a thing that nobody has seen"]).shape == (1, card.build().dim)

    own.load_data()
    for other in ("data.split={kind: ratio, valid: 0.2, test: 0.2}", "data.split=temporal"):
        changed = _planned(synthetic, tmp_path / "mine" / "card.yaml", other)
        with pytest.raises(EncoderError, match=r"mine was tuned on another split.*tune tiny on"):
            changed.load_data()


def test_weights_are_part_of_the_fingerprint(
    synthetic: list[str], parent: Path, tmp_path: Path
) -> None:
    found = [
        tune(
            _planned(synthetic, parent, f"tune.text.lr={lr}", "tune.text.epochs=1"),
            name=f"by-{lr}",
            folder=tmp_path,
        ).fingerprint()
        for lr in (0.001, 0.002)
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("bits", [None, 4])
def test_adapters_alone_are_kept_for_a_language_model(
    synthetic: list[str], parent: Path, tmp_path: Path, bits: int | None
) -> None:
    if bits:
        content = yaml.safe_load(parent.read_text("utf-8"))
        content |= {"model": str(parent.parent / "llama"), "options": {"quantize_bits": bits}}
        parent = tmp_path / "bits.yaml"
        parent.write_text(yaml.safe_dump(content))
    planned = _planned(synthetic, parent, "tune.text.lora_rank=2", "tune.text.epochs=1")
    card = tune(planned, name="low", folder=tmp_path)
    assert not (tmp_path / "low" / "model").exists()
    assert (tmp_path / "low" / "adapter" / "adapter_model.safetensors").is_file()
    assert card.model == load_card(str(parent)).model
    texts = ["a red pot", "a blue cup"]
    assert np.abs(card.build().encode(texts) - load_card(str(parent)).build().encode(texts)).max()


def test_a_stopped_tuning_is_resumed_and_others_are_refused(
    synthetic: list[str], parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmkd.tuning.tuner import _Fit

    planned = _planned(synthetic, parent)
    plain = _Fit._optimizer_step

    def stopping(self: _Fit) -> None:
        plain(self)
        if (self.epoch, self.step) == (1, 1):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_Fit, "_optimizer_step", stopping)
    with pytest.raises(TrainingInterrupted, match="stopped in epoch 2; continue with --resume"):
        tune(planned, name="mine", folder=tmp_path)
    monkeypatch.setattr(_Fit, "_optimizer_step", plain)
    with pytest.raises(RunError, match="holds an unfinished tuning; give --resume"):
        tune(planned, name="mine", folder=tmp_path)
    with pytest.raises(RunError, match="was tuned with another lr"):
        tune(_planned(synthetic, parent, "tune.text.lr=1"), name="mine", folder=tmp_path)
    ended = tmp_path / "ended"
    shutil.copytree(tmp_path, ended)
    tune(_planned(synthetic, parent, "tune.text.epochs=1"), name="mine", folder=ended, resume=True)
    record = read_json(ended / "mine" / "tuning.json")  # of what was asked at first, and done
    assert record["arguments"]["epochs"] == 2 and len(record["history"]) == 1
    resumed = tune(planned, name="mine", folder=tmp_path, resume=True)
    whole = tune(planned, name="whole", folder=tmp_path)
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("mine", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert resumed.fingerprint() == whole.fingerprint()
    assert tune(planned, name="mine", folder=tmp_path, resume=True) == resumed
    with pytest.raises(RunError, match=r"is tuned already; use it \(encoders.text=mine\)"):
        tune(planned, name="mine", folder=tmp_path)


def test_what_cannot_be_tuned_is_said_at_once(
    synthetic: list[str], parent: Path, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match="kind hashed_text cannot be tuned"):
        tune(_planned(synthetic, "hashed-text"), folder=tmp_path)
    with pytest.raises(RunError, match="has no such encoder; it has text"):
        tune(_planned(synthetic, parent), encoder="words", folder=tmp_path)
    card = yaml.safe_load(parent.read_text("utf-8")) | {"model": str(parent.parent / "llama")}
    (tmp_path / "huge.yaml").write_text(yaml.safe_dump({**card, "size_mb": 1e9}))
    with pytest.raises(RunError, match=r"weights, gradients and the optimiser's state: 4e"):
        tune(_planned(synthetic, tmp_path / "huge.yaml"), folder=tmp_path)
    bits = {**card, "options": {"quantize_bits": 4}}
    (tmp_path / "bits.yaml").write_text(yaml.safe_dump(bits))
    with pytest.raises(EncoderError, match=r"weights in 4 bits cannot learn.*give lora_rank"):
        tune(_planned(synthetic, tmp_path / "bits.yaml"), folder=tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds notes.txt, which is no tuned encoder's"):
        tune(_planned(synthetic, parent), name="other", folder=tmp_path)
    with pytest.raises(RecipeError) as caught:
        _planned(synthetic, parent, "tune.text.epoch=2", "tune.words={}", "tune.text.lr=-1")
    told = str(caught.value)
    assert "tune.text.epoch: unknown; did you mean epochs?" in told
    assert "tune.words: no such encoder; encoders has text" in told
    assert "tune.text.lr: got -1" in told


def test_train_tunes_first_and_distils_from_parent_and_tuned(
    synthetic: list[str], parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holistic correlations and neighbours of the parent, types of the tuned."""
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(
        synthetic,
        "name=both",
        "training.epochs=1",
        f"encoders={{text: {parent}, plain: {parent}, image: null}}",
        f"tune.text={{{OPTIONS}}}",
        "objective.correlation={holistic_weight: 0.4, dissected_weight: 0.05, by_modality: "
        "{text: {holistic_weight: 0}, plain: {dissected_weight: 0}}}",
        "objective.neighbours={share: 0.2, k: 5, modalities: [plain]}",
    )
    result = train(recipe, folder=tmp_path / "run")
    assert (tmp_path / "encoders" / "both-text" / "card.yaml").is_file()
    run = RunFolder(tmp_path / "run")
    kept = load_recipe(str(run.recipe))
    assert kept.encoders == {"text": "both-text", "plain": str(parent)} and not kept.tune
    losses = run.history()[0]["losses"]
    assert {"dissected.text", "holistic.plain"} <= losses.keys()
    assert not {"holistic.text", "dissected.plain"} & losses.keys()
    # neither tuned nor trained again
    record = (tmp_path / "encoders" / "both-text" / "tuning.json").stat().st_mtime_ns
    assert train(recipe, folder=tmp_path / "run", resume=True) == result
    assert (tmp_path / "encoders" / "both-text" / "tuning.json").stat().st_mtime_ns == record


def test_a_modality_s_own_weights_must_be_of_one_that_is_there(
    synthetic: list[str], parent: Path
) -> None:
    own = "objective.correlation={by_modality: {words: {}, text: {holistic: 1}}}"
    with pytest.raises(RecipeError) as caught:
        _planned(synthetic, parent, own)
    told = str(caught.value)
    assert "by_modality.words: got {}, wanted a mapping, for one of text" in told
    assert "by_modality.text.holistic: unknown; did you mean holistic_weight?" in told


def test_from_python_with_a_data_set(synthetic: list[str], parent: Path, tmp_path: Path) -> None:
    data = _planned(synthetic, parent).load_data()
    arguments = {"epochs": 1, "pairs": 32, "batch_size": 16, "cpu": True, "threads": 1}
    card = mmkd.tune(data, parent, name="mine", folder=tmp_path, arguments=arguments)
    assert card.tuned is not None and card.tuned.split == data.digests()["split"]


def test_the_record_tells_how_it_went(synthetic: list[str], parent: Path, tmp_path: Path) -> None:
    planned = _planned(synthetic, parent, "tune.text.epochs=1")
    tune(planned, name="mine", folder=tmp_path)
    record = json.loads((tmp_path / "mine" / "tuning.json").read_text("utf-8"))
    assert record["finished"] and record["parent"] == "tiny" and record["seed"] == 0
    assert record["before"].keys() == record["history"][0]["valid"].keys()
    assert record["pairs"] == 64 and record["pairs_known"] > 64


def test_nothing_to_tune_is_written_as_null(synthetic: list[str], parent: Path) -> None:
    assert _planned(synthetic, parent, "tune=null").recipe.tune == {}
    assert _planned(synthetic, parent, "tune.text=null").recipe.tune == {}
