"""Tuning on a catalogue: a card with weights of its own, which another split refuses."""

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from encoders.image_models import save_vision_models
from encoders.language_models import save
from PIL import Image
from synthetic_runs import recipe_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mmkd
from mmkd import load_card, load_recipe
from mmkd.config.plan import Plan, plan
from mmkd.errors import EncoderError, RecipeError, RunError, TrainingError, TrainingInterrupted
from mmkd.files import read_json
from mmkd.pipeline.embed import embed
from mmkd.pipeline.train import train
from mmkd.pipeline.tune import check_one_model, tune, tune_first, tune_together
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


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name cards of a tiny random CLIP model's towers."""
    folder = tmp_path_factory.mktemp("clip")
    save_vision_models(folder)
    for tower in ("text", "image"):
        card = {"modality": tower, "kind": "clip", "model": "./clip"}
        (folder / f"clip-{tower}.yaml").write_text(yaml.safe_dump(card))
    return [f"encoders.{tower}={folder}/clip-{tower}.yaml" for tower in ("text", "image")]


def _both(synthetic: list[str], towers: list[str], *more: str) -> Plan:
    return plan(recipe_of(synthetic, *towers, f"tune.text+image={{{OPTIONS}}}", *more))


def test_both_towers_become_two_cards_of_one_model(
    synthetic: list[str], towers: list[str], tmp_path: Path
) -> None:
    tracked = "tune.text+image.trackers=[tensorboard]"
    planned, told = _both(synthetic, towers, tracked, "tune.text+image.epochs=1"), list[str]()
    cards = tune_together(
        planned, encoders=("image", "text"), folder=tmp_path, announce=told.append
    )
    path = tmp_path / "quickstart"
    assert told[0].startswith("quickstart: clip-text+clip-image learns ")
    assert sorted(found.name for found in path.iterdir()) == [
        *("card.image.yaml", "card.text.yaml", "model", "trackers", "tuning.json", "writer.lock")
    ]
    data = planned.load_data()
    assert sum(one is None for one in data.items.image_path[1:])  # an item has no picture
    pictures = [Image.open(one) for one in data.items.image_path if one is not None][:2]
    for tower, inputs in (("text", ["a red pot", "a cup"]), ("image", pictures)):
        parent = planned.cards[tower]
        card = load_card(f"quickstart-{tower}", folder=tmp_path)
        assert card == cards[tower] and card.model == str(path / "model")
        assert card.fingerprint() != parent.fingerprint()
        assert card.tuned is not None
        assert card.tuned.parent_fingerprint == parent.fingerprint()
        given: Any = inputs
        assert np.abs(card.build().encode(given) - parent.build().encode(given)).max() > 1e-3

    record = read_json(path / "tuning.json")
    valid = record["history"][0]["valid"]
    assert record["before"].keys() == valid.keys()
    assert valid["NDCG@10"] == pytest.approx((valid["text.NDCG@10"] + valid["image.NDCG@10"]) / 2)
    (events,) = (path / "trackers" / "quickstart").glob("events.out.tfevents.*")
    seen = EventAccumulator(str(events))
    seen.Reload()
    (told_of,) = seen.Scalars("valid/image.NDCG@10")
    assert (told_of.step, told_of.value) == (1, pytest.approx(valid["image.NDCG@10"], rel=1e-5))

    # a recipe that tunes first takes them up, and needs no tracker for that
    then = tune_first(_both(synthetic, towers, "tune.text+image.epochs=1"), folder=tmp_path)
    assert then.cards == cards and not then.recipe.tune
    assert then.recipe.encoders == {"text": "quickstart-text", "image": "quickstart-image"}
    with pytest.raises(RunError, match=r"use it \(encoders.text=quickstart-text encoders.image="):
        tune_together(planned, encoders=("text", "image"), folder=tmp_path)
    with pytest.raises(RunError, match=r"card.text.yaml: is a card named quickstart-text already"):
        tune(planned, encoder="text", folder=tmp_path)
    before = {tower: card.fingerprint() for tower, card in cards.items()}
    weights = path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    for tower, fingerprint in before.items():
        assert load_card(f"quickstart-{tower}", folder=tmp_path).fingerprint() != fingerprint


def test_adapters_learn_in_both_towers_and_are_added_into_one_model(
    synthetic: list[str], towers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = _both(synthetic, towers, "tune.text+image.epochs=1", "tune.text+image.lora_rank=2")
    parents = {tower: card.fingerprint() for tower, card in planned.cards.items()}
    data = planned.load_data()
    pictures = [Image.open(one) for one in data.items.image_path if one is not None][:2]
    inputs: dict[str, Any] = {"text": ["a red pot", "a cup"], "image": pictures}
    learned: dict[str, Any] = {}
    kept = sys.modules["mmkd.pipeline.tune"].__dict__["_write"]

    def write(files: Any, cards: Any, models: Any, *others: Any) -> None:
        names = [name for name, p in models[0].model.named_parameters() if p.requires_grad]
        assert names and all("lora_" in name for name in names)
        for tower in ("text_model", "vision_model"):
            assert any(tower in name for name in names)
        for tower, model in zip(cards, models, strict=True):  # adapters beside the weights
            learned[tower] = model.encode(inputs[tower])
        kept(files, cards, models, *others)

    monkeypatch.setattr("mmkd.pipeline.tune._write", write)
    cards = tune_together(planned, encoders=("text", "image"), folder=tmp_path)
    assert not (tmp_path / "quickstart" / "adapter").exists()
    for tower, card in cards.items():
        found = card.build().encode(inputs[tower])
        np.testing.assert_allclose(found, learned[tower], rtol=1e-4, atol=1e-5)
        parent = planned.cards[tower]
        assert parent.fingerprint() == parents[tower]  # its weights, on the disk, are as they were
        assert np.abs(found - parent.build().encode(inputs[tower])).max() > 1e-4


def test_what_cannot_learn_together_is_said_at_once(
    synthetic: list[str], towers: list[str], parent: Path, tmp_path: Path
) -> None:
    both = ("text", "image")

    def refused(kind: type[Exception], match: str, *more: str, encoders: Any = both) -> None:
        with pytest.raises(kind, match=match):
            planned = _both(synthetic, towers, *more)
            tune_together(planned, encoders=encoders, folder=tmp_path)

    text = towers[0]
    refused(
        EncoderError,
        "tiny and clip-image: kind language_model has not two towers",
        f"encoders.text={parent}",
    )
    other = tmp_path / "other.yaml"
    card = {"modality": "image", "kind": "clip", "model": "org/another"}
    other.write_text(yaml.safe_dump(card))
    with pytest.raises(EncoderError, match="are of another model, so they have no space in common"):
        check_one_model([load_card(text.split("=")[1]), load_card(str(other))])
    again = f"encoders.more={text.split('=')[1]}"
    refused(
        EncoderError,
        "clip-text and clip-text: are the same tower",
        again,
        encoders=("text", "more"),
    )
    refused(RunError, "--encoder text: named twice", encoders=("text", "text"))
    refused(RecipeError, r"tune.text\+words: no such encoder", "tune.text+words={}")
    refused(RecipeError, r"tune.text: text is tuned twice; leave one out", "tune.text={}")
    assert not list(tmp_path.glob("*/tuning.json"))


def test_a_tracker_that_is_not_installed_is_refused(
    synthetic: list[str], parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.training.progress.get_available_trackers", lambda: [])
    with pytest.raises(TrainingError, match=r"trackers: wandb is not installed; .*pip install"):
        tune(_planned(synthetic, parent, "tune.text.trackers=[wandb]"), folder=tmp_path)
    with pytest.raises(RecipeError, match=r"tune.text.trackers: got .*wnb.*wanted"):
        _planned(synthetic, parent, "tune.text.trackers=[wnb]")


def test_nothing_to_tune_is_written_as_null(synthetic: list[str], parent: Path) -> None:
    assert _planned(synthetic, parent, "tune=null").recipe.tune == {}
    assert _planned(synthetic, parent, "tune.text=null").recipe.tune == {}
