"""The training loop: it learns, keeps the best, and goes on after an interruption as if none."""

import copy
import math
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from training.tiny import TinyRun, tiny_stream

from mmkd import TrainingArguments
from mmkd.data.batches import seeded_generator
from mmkd.errors import CheckpointError, TrainingError, TrainingInterrupted
from mmkd.files import read_json, write_sealed_json
from mmkd.losses.objective import LossBreakdown
from mmkd.training.loop import TrainReport
from mmkd.training.optimizer import (
    OPTIMIZERS,
    AsynchronousUpdate,
    Frozen,
    Interval,
    NoAsynchrony,
    Ramp,
)


def without_seconds(report: TrainReport) -> dict[str, Any]:
    content = asdict(report) | {"seconds": 0.0}
    for record in content["history"]:
        record["train_seconds"] = record["valid_seconds"] = 0.0
    return content


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# learning


def test_the_loss_falls_and_the_metric_rises(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, {"epochs": 12})
    report = run.fit()
    first, last = report.history[0], report.history[-1]
    assert first["losses"]["total"] == pytest.approx(math.log(20), rel=0.2)
    assert last["losses"]["recommendation"] < 0.6 * first["losses"]["recommendation"]
    assert last["valid"]["NDCG@10"] > 3 * first["valid"]["NDCG@10"]
    assert report.stopped == "epochs" and len(report.history) == 12


def test_an_epochs_losses_are_the_mean_over_its_batches(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, {"epochs": 1, "lr": 1e-12})
    [record] = run.fit().history
    found: dict[str, list[float]] = {}
    for step, batch in enumerate(tiny_stream(run.split, 8).epoch(0)):
        targets = run.distiller.targets(batch.items, generator=seeded_generator(3, 0, step, 1))
        loss = run.step(batch, targets)
        for name, value in {"total": loss.total, **loss.parts}.items():
            found.setdefault(name, []).append(float(value.detach()))
    assert record["losses"] == pytest.approx({k: sum(v) / len(v) for k, v in found.items()})


def test_frozen_tables_do_not_change_and_the_rest_does(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, {"weight_decay": 0.5, "epochs": 2}, asynchronous=Frozen())
    before = run.weights()
    report = run.fit()
    after = run.weights()
    assert report.history[-1]["lr_modality"] == 0.0
    still = {name for name, value in after.items() if torch.equal(value, before[name])}
    # what "is present" says is no parameter
    assert still == {f"student.members.0.embedding.{name}" for name in ("tables.text", "has")}


def test_the_modality_rate_is_the_ramps(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, {"epochs": 3}, asynchronous=Ramp(milestones=(1, 2)))
    history = run.fit().history
    assert [record["lr"] for record in history] == [0.01] * 3
    assert [record["lr_modality"] for record in history] == pytest.approx([0.0025, 0.005, 0.01])


# selection


def scripted(values: Sequence[float]) -> Callable[[], dict[str, float]]:
    left = iter(values)
    return lambda: {"NDCG@10": next(left), "HR@10": 1.0}


def test_early_stopping_keeps_the_weights_of_the_best_epoch(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    values = scripted([0.1, 0.3, 0.2, 0.3, 0.9])

    def validate() -> dict[str, float]:
        assert not run.step.training and not torch.is_grad_enabled()
        seen.append(run.weights())
        return values()

    run = TinyRun(tmp_path, {"epochs": 9, "patience": 2}, dropout=0.2, validate=validate)
    report = run.fit()
    # an equal metric is not a better one
    assert (report.best_epoch, report.best_metric, report.stopped) == (1, 0.3, "early")
    assert len(report.history) == 4
    best = {k.removeprefix("student."): v for k, v in seen[1].items() if k.startswith("student.")}
    assert_same(load_file(tmp_path / "student.safetensors"), best)
    assert_same(dict(run.step.student.state_dict()), best)
    assert not run.step.training


def test_validate_every_skips_epochs_but_never_the_last(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, {"epochs": 5, "validate_every": 2}, validate=scripted([0.3, 0.2, 0.1]))
    history = run.fit().history
    assert [record["epoch"] for record in history if "valid" in record] == [1, 3, 4]


def test_an_unknown_selection_metric_names_the_known_ones(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, {"select_metric": "NDCG@7"}, validate=scripted([0.1]))
    with pytest.raises(ValueError, match=r"got NDCG@7, wanted one of NDCG@10, HR@10"):
        run.fit()


@pytest.mark.parametrize("option", ["epochs", "batch_size", "max_length", "accumulate"])
def test_numbers_that_cannot_train_are_refused_at_once(option: str) -> None:
    build: Callable[..., TrainingArguments] = TrainingArguments
    with pytest.raises(ValueError, match=f"{option}: got 0, wanted at least 1"):
        build(**{option: 0})


# accumulation


class Recorder(Interval):
    """Synchronous, and remembers the gradients that each optimiser step sees."""

    def __init__(self) -> None:
        super().__init__(every=1)
        self.seen: list[list[Tensor]] = []

    def before_step(self, parameters: Sequence[nn.Parameter]) -> None:
        self.seen.append([p.grad.clone() for p in parameters if p.grad is not None])
        super().before_step(parameters)


def test_a_step_sees_the_mean_of_its_batches_gradients(tmp_path: Path) -> None:
    recorder = Recorder()
    run = TinyRun(
        tmp_path,
        {"epochs": 1, "lr": 1e-12, "batch_size": 6, "accumulate": 3},
        asynchronous=recorder,
    )
    run.fit()
    gradients = []
    for step, batch in enumerate(tiny_stream(run.split, 6).epoch(0)):
        targets = run.distiller.targets(batch.items, generator=seeded_generator(3, 0, step, 1))
        total = run.step(batch, targets).total
        gradients.append(torch.autograd.grad(total, run.step.student.modality_parameters()))
    assert len(gradients) % 3 != 0  # the last group is a smaller one, and its mean is of fewer
    groups = [gradients[at : at + 3] for at in range(0, len(gradients), 3)]
    assert len(groups) == len(recorder.seen)
    for group, seen in zip(groups, recorder.seen, strict=True):
        wanted = [torch.stack(parts).mean(0) for parts in zip(*group, strict=True)]
        torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-7)


def test_two_accumulated_batches_equal_one_of_twice_the_size(tmp_path: Path) -> None:
    # where both halves have as many targets, for a batch's loss is the mean over its own; two
    # batches make up the epoch, so that both runs see the same windows in a step
    options = {"epochs": 4, "lr": 0.003}
    runs = [
        TinyRun(
            tmp_path / str(n),
            {**options, "batch_size": n, "accumulate": 30 // n},
            distil=False,
            equal=True,
        )
        for n in (15, 30)
    ]
    for run in runs:
        run.fit()
    assert [run.batches for run in runs] == [8, 4]
    one, other = (_without_key_biases(run.weights()) for run in runs)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def _without_key_biases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but what adds one number to all scores of a query, which the softmax does not see.

    Its gradient is nothing but rounding, of which Adam makes steps of full size.
    """
    return {
        name: torch.cat([value.chunk(3)[0], value.chunk(3)[2]])
        if name.endswith("qkv.bias")
        else value
        for name, value in weights.items()
    }


def test_gradient_checkpointing_trains_the_same_weights(tmp_path: Path) -> None:
    runs = [
        TinyRun(tmp_path / str(on), {"epochs": 2, "lr": 0.003, "gradient_checkpointing": on})
        for on in (False, True)
    ]
    for run in runs:
        run.fit()
    assert runs[1].step.student.networks[0].gradient_checkpointing
    torch.testing.assert_close(runs[1].weights(), runs[0].weights(), rtol=1e-4, atol=1e-6)


# interruption


OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 4,
    "accumulate": 2,
    "weight_decay": 0.1,
    "schedule": "cosine",
    "warmup_steps": 3,
    "gradient_clip": 1.0,
}


def interval_run(folder: Path, **options: Any) -> TinyRun:
    return TinyRun(folder, OPTIONS, asynchronous=Interval(every=3), dropout=0.3, **options)


def interrupt_at(batch: int) -> Callable[[int], None]:
    def ask(done: int) -> None:
        if done == batch:
            signal.raise_signal(signal.SIGINT)

    return ask


# an epoch has ten batches: inside a group, at its end, an epoch's last batch, a later epoch
@pytest.mark.parametrize("at", [2, 3, 9, 14])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path, at: int) -> None:
    whole = interval_run(tmp_path / "whole")
    wanted = whole.fit()

    stopped = interval_run(tmp_path / "stopped", before_batch=interrupt_at(at))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match=r"continue with --resume"):
        stopped.fit()
    assert signal.getsignal(signal.SIGINT) is handler
    assert stopped.batches < whole.batches

    resumed = interval_run(tmp_path / "stopped")
    torch.manual_seed(12345)  # what the process did before resuming must not matter
    report = resumed.fit(resume=True)
    assert stopped.batches + resumed.batches == whole.batches
    assert without_seconds(report) == without_seconds(wanted)
    assert_same(resumed.weights(), whole.weights())


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimiser_trains_and_resumes_bit_by_bit(tmp_path: Path, optimizer: str) -> None:
    options = {"lr": 0.001, "epochs": 2, "optimizer": optimizer, "schedule": "linear"}
    whole = TinyRun(tmp_path / "whole", options, dropout=0.3)
    before = whole.weights()
    wanted = whole.fit()
    assert any(not torch.equal(value, before[name]) for name, value in whole.weights().items())

    stopped = TinyRun(tmp_path / "part", options, dropout=0.3, before_batch=interrupt_at(3))
    with pytest.raises(TrainingInterrupted):
        stopped.fit()
    resumed = TinyRun(tmp_path / "part", options, dropout=0.3)
    assert without_seconds(resumed.fit(resume=True)) == without_seconds(wanted)
    assert_same(resumed.weights(), whole.weights())


@pytest.mark.parametrize("asynchronous", [NoAsynchrony(), Interval(every=3)])
def test_tables_decay_towards_their_first_values_after_a_resume_too(
    tmp_path: Path, asynchronous: AsynchronousUpdate
) -> None:
    options = {**OPTIONS, "table_decay": 4.0, "decay_towards": "teacher"}

    def run(name: str, at: int = -1) -> TinyRun:
        kind = copy.deepcopy(asynchronous)
        return TinyRun(tmp_path / name, options, kind, 0.3, before_batch=interrupt_at(at))

    whole = run("whole")
    wanted = whole.fit()
    with pytest.raises(TrainingInterrupted):
        run("parts", at=14).fit()
    resumed = run("parts")
    with torch.no_grad():
        for parameter in resumed.step.parameters():  # as of a student that has trained already
            parameter.add_(1.0)
    assert without_seconds(resumed.fit(resume=True)) == without_seconds(wanted)
    assert_same(resumed.weights(), whole.weights())


def test_a_run_may_be_interrupted_again_and_again(tmp_path: Path) -> None:
    whole = interval_run(tmp_path / "whole")
    wanted = whole.fit()
    report = None
    for _ in range(20):
        part = interval_run(tmp_path / "stopped", before_batch=interrupt_at(4))
        try:
            report = part.fit(resume=True)
            break
        except TrainingInterrupted:
            continue
    assert report is not None and without_seconds(report) == without_seconds(wanted)
    assert_same(part.weights(), whole.weights())


def test_an_epoch_of_one_batch_can_be_interrupted(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, {"epochs": 5, "batch_size": 99}, before_batch=interrupt_at(1))
    with pytest.raises(TrainingInterrupted):
        run.fit()
    assert run.batches == 2


def test_checkpoints_inside_an_epoch_change_nothing(tmp_path: Path) -> None:
    plain = interval_run(tmp_path / "plain")
    wanted = plain.fit()
    often = TinyRun(
        tmp_path / "often",
        {**OPTIONS, "checkpoint_every_s": 0.0},
        asynchronous=Interval(every=3),
        dropout=0.3,
    )
    assert without_seconds(often.fit()) == without_seconds(wanted)
    assert_same(plain.weights(), often.weights())


def test_an_epochs_seconds_include_those_before_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def a_second_later(done: int) -> None:
        now[0] += 1.0

    monkeypatch.setattr("mmkd.training.loop.time.monotonic", lambda: now[0])
    run = TinyRun(tmp_path, {"epochs": 2, "checkpoint_every_s": 1.5}, before_batch=a_second_later)
    report = run.fit()
    each = run.batches / 2
    assert [record["train_seconds"] for record in report.history] == [each, each]
    assert report.seconds == 2 * each


def test_resuming_a_finished_fit_trains_no_more(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, {"epochs": 2})
    report = run.fit()
    again = TinyRun(tmp_path, {"epochs": 2})
    assert without_seconds(again.fit(resume=True)) == without_seconds(report)
    assert again.batches == 0
    assert_same(dict(again.step.student.state_dict()), dict(run.step.student.state_dict()))


# a loss that is no number


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_at_its_step(
    tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TinyRun(tmp_path, {"epochs": 4})
    steps, forward = len(tiny_stream(run.split, 8)), run.step.forward
    calls = 0

    def broken(*inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        found = forward(*inputs)
        if calls <= steps + 2:
            return found
        parts = found.parts | {"recommendation": torch.tensor(value)}
        return LossBreakdown(found.total * value, parts)

    monkeypatch.setattr(run.step, "forward", broken)
    with pytest.raises(TrainingError) as error:
        run.fit()
    told = str(error.value)
    assert told.startswith(f"epoch 2, step 3: the loss is {value}"), told
    assert f"recommendation {value}" in told and "epoch 1, are kept" in told
    assert "training.lr" in told
    kept = load_file(tmp_path / "student.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())
    assert all(bool(torch.isfinite(p).all()) for p in run.step.parameters())


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("asynchronous", [NoAsynchrony(), Interval(every=2)])
def test_a_step_with_a_bad_batch_changes_nothing_and_names_it(
    tmp_path: Path,
    kind: str,
    asynchronous: AsynchronousUpdate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten batches an epoch, three a step: the fifth is the middle one of the second step."""
    options = {"epochs": 1, "batch_size": 4, "accumulate": 3, "checkpoint_every_s": 0.0}
    run = TinyRun(tmp_path, options, asynchronous=asynchronous)
    forward, table = run.step.forward, run.step.student.networks[0].embedding.id_table
    calls, seen = 0, {}

    def broken(*inputs: Any) -> Any:
        nonlocal calls, seen
        calls += 1
        found = forward(*inputs)
        if calls == 4:
            seen = run.weights()
        if calls != 5:
            return found
        if kind == "loss":
            return LossBreakdown(found.total * math.nan, found.parts)
        # the value of this is 0, its slope infinite times 0
        return LossBreakdown(found.total + (table[1, 0] * 0).abs().sqrt(), found.parts)

    monkeypatch.setattr(run.step, "forward", broken)
    with pytest.raises(TrainingError) as error:
        run.fit()
    assert calls == 6
    where, what = ("5", "nan") if kind == "loss" else ("6", r"\d\.\d+")
    told = rf"epoch 1, step {where}: the loss is {what} \(recommendation \d\.\d+, holistic\.text "
    assert re.match(told, str(error.value)), error.value
    assert ("its gradient no number" in str(error.value)) == (kind == "gradient")
    assert_same(run.weights(), seen)


def test_best_weights_that_are_damaged_or_gone_are_told_on_resume(tmp_path: Path) -> None:
    TinyRun(tmp_path, {"epochs": 2}).fit()
    path = tmp_path / "student.safetensors"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"student\.safetensors: damaged .*--overwrite"):
        TinyRun(tmp_path, {"epochs": 2}).fit(resume=True)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"student\.safetensors: cannot be read .*No such"):
        TinyRun(tmp_path, {"epochs": 2}).fit(resume=True)
    path.write_bytes(sound)
    TinyRun(tmp_path, {"epochs": 2}).fit(resume=True)


def test_a_progress_record_that_lacks_something_is_told(tmp_path: Path) -> None:
    TinyRun(tmp_path, {"epochs": 1}).fit()
    (record,) = tmp_path.glob("checkpoints/*/progress.json")
    whole = read_json(record)
    for key in ("report", "position", "sums", "gradient_norms"):
        write_sealed_json(record, {k: v for k, v in whole.items() if k != key})
        with pytest.raises(CheckpointError, match=f"does not fit .*{key}"):
            TinyRun(tmp_path, {"epochs": 1}).fit(resume=True)
