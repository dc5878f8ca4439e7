"""The loop: cached gradients, resuming, processes that share a batch, adapters, each family.

All models are tiny and random.
"""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders.image_models import save_vision_models
from encoders.language_models import save
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmkd import EncoderCard, TrainingPairs, TuningArguments
from mmkd.errors import TrainingError, TrainingInterrupted
from mmkd.tuning import Tower, Tuner
from mmkd.tuning.adapters import merge_adapter, prepare
from mmkd.tuning.contents import Contents
from mmkd.tuning.tuner import TuningReport, VectorsOf

WORDS = "red blue green pot cup tray jug pan small large old new".split()
ITEMS = 24
ALL = np.arange(1, ITEMS + 1)
TEXTS = [
    "",
    *(f"{WORDS[n % 3]} {WORDS[3 + n % 5]} {' '.join(WORDS[8:][: n % 5])}" for n in range(ITEMS)),
]
ROWS = np.array([(1 + n % ITEMS, 1 + (n * 5 + 3) % ITEMS) for n in range(48)])
PAIRS = TrainingPairs(ROWS, np.full(len(ROWS), 1 / len(ROWS)))
ARGUMENTS = TuningArguments(
    epochs=2, pairs=32, batch_size=8, lr=1e-3, threads=1, cpu=True, checkpoint_every_s=0
)


def _validate(vectors_of: VectorsOf, rows: NDArray[np.int64] = ALL) -> dict[str, float]:
    """A figure that depends on the weights, and grows."""
    vectors = vectors_of(rows)
    _validate.calls += 1  # type: ignore[attr-defined]
    return {"NDCG@10": _validate.calls + float(vectors.abs().mean()) * 1e-3}  # type: ignore[attr-defined]


_validate.calls = 0  # type: ignore[attr-defined]


def _text(folder: Path, family: str = "llama", **fields: Any) -> Any:
    if not folder.is_dir():
        save(family, folder)
    settings = {"pooling": "last", "max_length_tokens": 16, **fields}
    return EncoderCard(
        name="x", modality="text", kind="language_model", model=str(folder), **settings
    ).build()


def _fit(
    encoder: Any,
    folder: Path,
    arguments: TuningArguments,
    parent: NDArray[np.float32] | None = None,
    **options: Any,
) -> tuple[TuningReport, NDArray[np.float32]]:
    towers = {"text": Tower(Contents(encoder, TEXTS), _validate, parent)}
    report = Tuner(arguments).fit(towers, PAIRS, folder=folder, **options)
    return report, encoder.encode(TEXTS[1:])


def _pictures(folder: Path) -> list[Any]:
    """A file a row, row 0's None."""
    rng = np.random.default_rng(0)
    files = [folder / f"{n}.png" for n in range(ITEMS)]
    for file in files:
        if not file.exists():
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(file)
    return [None, *files]


def _towers(folder: Path, *, pictures: int = ITEMS - 3, keep: bool = False) -> dict[str, Tower]:
    """Both towers of a CLIP model; item 7 has no text, those behind ``pictures`` no picture."""
    if not (folder / "models").is_dir():
        save_vision_models(folder / "models")
    encoders: list[Any] = [
        EncoderCard(
            name="x", modality=tower, kind="clip", model=str(folder / "models" / "clip")
        ).build()
        for tower in ("text", "image")
    ]
    encoders[1].share_model(encoders[0])
    files = [*_pictures(folder)[: pictures + 1], *[None] * (ITEMS - pictures)]
    texts: list[Any] = [*TEXTS[:7], None, *TEXTS[8:]]
    found = {}
    for encoder, sources in zip(encoders, (texts, files), strict=True):
        contents = Contents(encoder, sources, workers=0)
        rows = np.flatnonzero(contents.groups)
        parent = np.zeros((ITEMS + 1, encoder.dim), np.float32)
        parent[rows] = _encoded(contents, sources)
        validate = partial(_validate, rows=rows)
        found[encoder.modality] = Tower(contents, validate, parent if keep else None)
    return found


def _encoded(contents: Contents, sources: list[Any]) -> NDArray[np.float32]:
    given = [one for one in sources if one]
    encoder: Any = contents.encoder
    inputs = given if encoder.modality == "text" else [*map(Image.open, given)]
    vectors: NDArray[np.float32] = encoder.encode(inputs)
    return vectors


def _fit_towers(
    towers: dict[str, Tower], folder: Path, arguments: TuningArguments, **options: Any
) -> tuple[list[float], NDArray[np.float32]]:
    """The losses, and the vectors of texts and then of pictures."""
    report = Tuner(arguments).fit(towers, PAIRS, folder=folder, **options)
    vectors = [_encoded(one.contents, [*one.contents._sources]) for one in towers.values()]
    return [one["losses"]["total"] for one in report.history], np.concatenate(vectors)


def test_cached_gradients_are_the_plain_ones(tmp_path: Path) -> None:
    found = []
    for micro in (None, 3):
        arguments = replace(ARGUMENTS, micro_batch=micro, keep=0.5)
        encoder = _text(tmp_path / "llama")
        parent = np.concatenate([np.zeros((1, encoder.dim)), encoder.encode(TEXTS[1:])])
        before = parent[1:].copy()
        report, vectors = _fit(
            encoder, tmp_path / str(micro), arguments, parent=parent.astype(np.float32)
        )
        assert np.abs(vectors - before).max() > 1e-2
        found.append((vectors, [one["losses"]["total"] for one in report.history]))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=2e-4)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4)


def test_cached_gradients_draw_dropout_once(tmp_path: Path) -> None:
    """Both passes drop out the same units, or the loss would not fall along its gradient."""
    save("bert", tmp_path / "bert", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0)
    encoder = _text(tmp_path / "bert", "bert", pooling="mean")
    encoder.model.train()
    contents = Contents(encoder, TEXTS)
    seen: list[torch.Tensor] = []
    plain = encoder.differentiable

    def watched(features: Any) -> torch.Tensor:
        seen.append(plain(features))
        return seen[-1]

    encoder.differentiable = watched
    arguments = replace(ARGUMENTS, epochs=1, pairs=8, micro_batch=4)
    Tuner(arguments).fit({"text": Tower(contents, _validate)}, PAIRS, folder=tmp_path / "fit")
    # without gradients first, then with them, part by part
    first = [one for one in seen if not one.requires_grad]
    second = [one for one in seen if one.requires_grad]
    assert len(second) > 1
    for one, other in zip(first, second, strict=False):
        torch.testing.assert_close(one, other.detach())


def test_cached_gradients_of_two_towers_are_the_plain_ones(tmp_path: Path) -> None:
    found = []
    for micro in (None, 3):
        arguments = replace(ARGUMENTS, micro_batch=micro, keep=0.5)
        towers = _towers(tmp_path, keep=True)
        found.append(_fit_towers(towers, tmp_path / str(micro), arguments))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=2e-4)
    before = [one.parent for one in towers.values() if one.parent is not None]
    moved = np.abs(np.concatenate([one[one.any(1)] for one in before]) - found[0][1]).max(1)
    assert moved.min() > 1e-3  # texts and pictures


def test_two_towers_are_judged_by_the_mean_of_both(tmp_path: Path) -> None:
    report = Tuner(replace(ARGUMENTS, epochs=1, pairs=8)).fit(
        _towers(tmp_path), PAIRS, folder=tmp_path
    )
    found = report.history[0]["valid"]
    assert found["NDCG@10"] == pytest.approx((found["text.NDCG@10"] + found["image.NDCG@10"]) / 2)
    assert found["text.NDCG@10"] != found["image.NDCG@10"]
    assert report.best_metric == found["NDCG@10"]


def test_two_towers_resume_to_the_same_bits(tmp_path: Path) -> None:
    _towers(tmp_path)
    config = tmp_path / "models" / "clip" / "config.json"
    content = json.loads(config.read_text("utf-8"))
    content["text_config"]["attention_dropout"] = content["vision_config"]["attention_dropout"] = (
        0.3
    )
    config.write_text(json.dumps(content))
    _, whole = _fit_towers(_towers(tmp_path), tmp_path / "whole", ARGUMENTS)

    towers, calls = _towers(tmp_path), 0
    encoder: Any = towers["image"].contents.encoder
    plain = encoder.differentiable

    def interrupting(features: Any) -> Any:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 6:
            calls += 1
            os.kill(os.getpid(), signal.SIGINT)
        return plain(features)

    encoder.differentiable = interrupting
    with pytest.raises(TrainingInterrupted, match="epoch 2"):
        _fit_towers(towers, tmp_path / "stopped", ARGUMENTS)
    _, resumed = _fit_towers(_towers(tmp_path), tmp_path / "stopped", ARGUMENTS, resume=True)
    assert resumed.tobytes() == whole.tobytes()


@pytest.mark.parametrize("stop_at", [3, 6])
def test_a_stopped_tuning_resumes_to_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    save("bert", tmp_path / "bert")  # with dropout
    options = {"pooling": "mean"}
    _, whole = _fit(_text(tmp_path / "bert", "bert", **options), tmp_path / "whole", ARGUMENTS)

    encoder = _text(tmp_path / "bert", "bert", **options)
    plain, calls = encoder.differentiable, 0

    def interrupting(features: Any) -> Any:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == stop_at:
            calls += 1
            os.kill(os.getpid(), signal.SIGINT)
        return plain(features)

    encoder.differentiable = interrupting
    with pytest.raises(TrainingInterrupted, match=f"epoch {1 if stop_at < 5 else 2}"):
        _fit(encoder, tmp_path / "stopped", ARGUMENTS)
    again = _text(tmp_path / "bert", "bert", **options)
    report, resumed = _fit(again, tmp_path / "stopped", ARGUMENTS, resume=True)
    assert len(report.history) == 2
    assert resumed.tobytes() == whole.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(("towers", "batch_size", "micro"), [(1, 8, 3), (2, 2, 1), (2, 2, None)])
def test_two_processes_equal_one(
    tmp_path: Path, towers: int, batch_size: int, micro: int | None
) -> None:
    """Of two towers a process's share is one pair, mostly without a picture."""
    save("llama", tmp_path / "llama")  # no dropout, which would differ by process
    arguments = replace(
        ARGUMENTS, epochs=1, pairs=16, keep=0.3, micro_batch=micro, batch_size=batch_size
    )
    alone = _shared_fit(tmp_path, "alone", arguments, towers)
    context = multiprocessing.get_context("spawn")
    given = [(rank, tmp_path, arguments, towers) for rank in (0, 1)]
    workers = [context.Process(target=_worker, args=one) for one in given]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    for rank in (0, 1):
        found = np.load(tmp_path / f"{rank}.npz")
        np.testing.assert_allclose(found["vectors"], alone[1], atol=2e-4)
        np.testing.assert_allclose(found["losses"], alone[0], rtol=1e-4)


def _shared_fit(
    folder: Path, name: str, arguments: TuningArguments, towers: int
) -> tuple[list[float], NDArray[np.float32]]:
    if towers == 2:
        return _fit_towers(_towers(folder, pictures=6, keep=True), folder / name, arguments)
    encoder = _text(folder / "llama")
    parent = np.concatenate([np.zeros((1, encoder.dim)), encoder.encode(TEXTS[1:])])
    report, vectors = _fit(encoder, folder / name, arguments, parent=parent.astype(np.float32))
    return [one["losses"]["total"] for one in report.history], vectors


def _worker(rank: int, folder: Path, arguments: TuningArguments, towers: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29500 + os.getppid() % 1000),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    losses, vectors = _shared_fit(folder, "shared", arguments, towers)
    np.savez(folder / f"{rank}.npz", losses=losses, vectors=vectors)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_learn_alone_and_merge(tmp_path: Path, checkpointing: bool) -> None:
    encoder = _text(tmp_path / "llama")
    before = encoder.encode(TEXTS[1:])
    arguments = replace(
        ARGUMENTS, lora_rank=2, lr=1e-2, gradient_checkpointing=checkpointing, epochs=1
    )
    adapted = prepare(encoder.model, arguments, seed=0)
    learned = {n for n, p in encoder.model.named_parameters() if p.requires_grad}
    assert learned and all("lora_" in name for name in learned)
    _, vectors = _fit(encoder, tmp_path / "fit", arguments)
    assert np.abs(vectors - before).max() > 1e-3
    merge_adapter(adapted)
    assert not any("lora_" in name for name, _ in encoder.model.named_parameters())
    np.testing.assert_allclose(encoder.encode(TEXTS[1:]), vectors, atol=1e-4)


def test_pictures_learn_and_come_back_from_disk(tmp_path: Path) -> None:
    folders = save_vision_models(tmp_path / "models")
    files = _pictures(tmp_path)
    texts: list[Any] = TEXTS
    for name, fields, sources in (
        ("vit", {"modality": "image", "kind": "vision", "pooling": "mean"}, files),
        ("resnet", {"modality": "image", "kind": "vision"}, files),
        ("clip", {"modality": "image", "kind": "clip"}, files),
        ("clip", {"modality": "text", "kind": "clip"}, texts),
    ):
        card = EncoderCard(name="x", model=str(folders[name]), **fields)
        encoder: Any = card.build()
        inputs = sources[1:] if fields["modality"] == "text" else [*map(Image.open, files[1:])]
        before = encoder.encode(inputs)
        Tuner(replace(ARGUMENTS, epochs=1, pairs=16)).fit(
            {"x": Tower(Contents(encoder, sources, workers=0), _validate)},
            PAIRS,
            folder=tmp_path / f"{name}-{fields['modality']}",
        )
        after = encoder.encode(inputs)
        assert np.abs(after - before).max() > 1e-3
        encoder.save(tmp_path / "saved" / name)
        again = card.model_copy(update={"model": str(tmp_path / "saved" / name)}).build()
        np.testing.assert_allclose(again.encode(inputs), after, atol=1e-5)


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    encoder = _text(tmp_path / "llama")
    with torch.no_grad():
        next(encoder.model.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="epoch 1, step 1: the loss is nan"):
        _fit(encoder, tmp_path / "fit", ARGUMENTS)


@pytest.mark.parametrize("given", ["tensorboard", ["tensorboard"]])
def test_trackers_are_told_by_a_fit_of_its_own_too(given: Any, tmp_path: Path) -> None:
    arguments = replace(ARGUMENTS, epochs=1, pairs=8, trackers=given)
    assert list(arguments.trackers) == ["tensorboard"]
    report, _ = _fit(_text(tmp_path / "llama"), tmp_path / "fit", arguments)
    (events,) = (tmp_path / "fit" / "fit").glob("events.out.tfevents.*")
    seen = EventAccumulator(str(events))
    seen.Reload()
    (loss,) = seen.Scalars("losses/total")
    wanted = report.history[0]["losses"]["total"]
    assert (loss.step, loss.value) == (1, pytest.approx(wanted, rel=1e-5))
