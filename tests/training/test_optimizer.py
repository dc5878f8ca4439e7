"""Parameter groups, schedules and the asynchronous updates, worked by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training.tiny import TinyRun, tiny_distiller, tiny_step

from mmkd import TrainingArguments
from mmkd.training.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    AsynchronousUpdate,
    DecayTowardsStart,
    Frozen,
    Interval,
    LearningRate,
    MemberUpdates,
    NoAsynchrony,
    Ramp,
    build_optimizer,
    check_schedule,
    parameter_groups,
)


def gradients(steps: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, generator=generator) for _ in range(steps)]


def sgd_path(update: AsynchronousUpdate, given: list[Tensor], table: nn.Parameter) -> list[Tensor]:
    """The table after each step of SGD with rate 1 on the given gradients."""
    optimizer = torch.optim.SGD([table], lr=1.0)
    path = []
    for gradient in given:
        table.grad = gradient.clone()
        update.before_step([table])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        path.append(table.detach().clone())
    return path


# ramp


def test_the_ramp_doubles_at_5_and_at_10_until_it_is_the_common_rate() -> None:
    ramp = Ramp(gamma=2.0, milestones=(5, 10))
    factors = [ramp.lr_factor(epoch) for epoch in range(14)]
    assert factors == [0.25] * 5 + [0.5] * 5 + [1.0] * 4


def test_the_ramp_leaves_gradients_alone() -> None:
    table = nn.Parameter(torch.zeros(4, 3))
    given = gradients(3)
    path = sgd_path(Ramp(), given, table)
    torch.testing.assert_close(path[-1], -torch.stack(given).sum(0))


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_a_ramp_that_does_not_grow_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"wanted more than 1; use kind: none"):
        Ramp(gamma=gamma)


# interval


@pytest.mark.parametrize("every", [1, 3])
def test_interval_steps_on_the_mean_gradient_since_its_last(every: int) -> None:
    given = gradients(8)
    path = sgd_path(Interval(every=every), given, nn.Parameter(torch.zeros(4, 3)))
    naive, waiting = torch.zeros(4, 3), []
    for step, gradient in enumerate(given, start=1):
        waiting.append(gradient)
        if step % every == 0:
            naive = naive - torch.stack(waiting).mean(0)
            waiting = []
        torch.testing.assert_close(path[step - 1], naive)


def test_interval_continues_from_its_state() -> None:
    given = gradients(11)
    whole = sgd_path(Interval(every=4), given, nn.Parameter(torch.zeros(4, 3)))
    table, first = nn.Parameter(torch.zeros(4, 3)), Interval(every=4)
    sgd_path(first, given[:6], table)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = Interval(every=4)
    second.load_state_dict(state)
    rest = sgd_path(second, given[6:], table)
    assert torch.equal(rest[-1], whole[-1])
    assert torch.equal(rest[1], whole[7])


def test_interval_counts_a_missing_gradient_as_zero() -> None:
    table, update = nn.Parameter(torch.zeros(2)), Interval(every=2)
    table.grad = torch.tensor([2.0, 4.0])
    update.before_step([table])
    assert table.grad is None
    update.before_step([table])
    assert table.grad is not None
    assert table.grad.tolist() == [1.0, 2.0]


def test_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every: got 0, wanted at least 1"):
        Interval(every=0)


# frozen


def test_frozen_never_moves_even_with_weight_decay() -> None:
    table = nn.Parameter(torch.ones(4, 3))
    optimizer = torch.optim.AdamW(
        parameter_groups([("t", table)], [table], lr=0.1, weight_decay=0.5), lr=0.1
    )
    frozen = Frozen()
    rate = LearningRate(
        lr=0.1, schedule="constant", warmup_steps=0, total_steps=3, asynchronous=frozen
    )
    for step, gradient in enumerate(gradients(3)):
        table.grad = gradient
        rate.apply(optimizer, step=step, epoch=step)
        frozen.before_step([table])
        optimizer.step()
    assert torch.equal(table, torch.ones(4, 3))
    assert not optimizer.state[table]  # no momentum that could move it later


# groups


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_groups_cover_each_parameter_once(weight_decay: float) -> None:
    step = tiny_step(tiny_distiller())
    tables = step.student.modality_parameters()
    groups = parameter_groups(step.named_parameters(), tables, lr=0.1, weight_decay=weight_decay)
    members: list[nn.Parameter] = []
    for group in groups:
        assert isinstance(group["params"], list)
        members += group["params"]
        for parameter in group["params"]:
            is_table = any(parameter is table for table in tables)
            assert group["role"] == ("modality" if is_table else "other")
            assert group["weight_decay"] == (weight_decay if parameter.ndim > 1 else 0.0)
    assert len(members) == len({id(p) for p in members})
    assert {id(p) for p in members} == {id(p) for p in step.parameters()}
    assert len(tables) == 1


def test_parameters_that_do_not_train_are_left_out() -> None:
    fixed, free = nn.Parameter(torch.ones(2, 2), requires_grad=False), nn.Parameter(torch.ones(2))
    [group] = parameter_groups([("a", fixed), ("b", free)], [], lr=0.1, weight_decay=0.1)
    assert group["params"] == [free]


# schedules


def rates(schedule: str | dict[str, Any], *, warmup: int, total: int) -> list[tuple[float, float]]:
    """The common and the modality rate at each step, the latter a quarter throughout."""
    table, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD(
        parameter_groups([("t", table), ("o", other)], [table], lr=0.8, weight_decay=0.0), lr=0.8
    )
    rate = LearningRate(
        lr=0.8, schedule=schedule, warmup_steps=warmup, total_steps=total, asynchronous=Ramp()
    )
    found = []
    for step in range(total):
        common = rate.apply(optimizer, step=step, epoch=0)
        by_role = {group["role"]: group["lr"] for group in optimizer.param_groups}
        assert by_role["other"] == common
        found.append((common, by_role["modality"]))
    return found


def test_constant_after_a_linear_warm_up() -> None:
    found = rates("constant", warmup=4, total=6)
    assert [common for common, _ in found] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert [late for _, late in found] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2, 0.2])


def test_linear_goes_down_evenly() -> None:
    found = [common for common, _ in rates("linear", warmup=2, total=6)]
    assert found == pytest.approx([0.4, 0.8, 0.8, 0.6, 0.4, 0.2])


def test_cosine_goes_down_along_half_a_wave() -> None:
    found = [common for common, _ in rates("cosine", warmup=0, total=4)]
    assert found == pytest.approx([0.4 * (1 + math.cos(math.pi * n / 4)) for n in range(4)])
    assert found[2] == pytest.approx(0.4)


def test_a_schedule_of_transformers_is_taken_by_name() -> None:
    found = rates({"kind": "polynomial", "power": 2.0, "lr_end": 0.2}, warmup=2, total=6)
    # its own function of the step, but the first step has a rate already
    assert [common for common, _ in found] == pytest.approx([0.4, 0.8, 0.8, 0.5375, 0.35, 0.2375])
    assert [late for _, late in found] == pytest.approx([common / 4 for common, _ in found])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_warms_up_and_stays_within_the_peak(schedule: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "cosine_with_min_lr": {"min_lr": 0.1},
        "warmup_stable_decay": {"num_decay_steps": 2},
    }
    chosen = {"kind": schedule, **options.get(schedule, {})}
    assert check_schedule(chosen) == []
    found = [common for common, _ in rates(chosen, warmup=4, total=10)]
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert all(0 < rate <= 0.8 for rate in found)


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ("cosin", "schedule: got 'cosin', wanted one of constant, .*did you mean 'cosine'"),
        ({"kind": "cosine", "num_cycles": 1}, "schedule.num_cycles: cosine has no options"),
        ({"kind": "polynomial", "powr": 2}, "schedule.powr: .* did you mean 'power'"),
        ("warmup_stable_decay", "schedule: warmup_stable_decay: .*num_decay_steps"),
        ({"kind": "cosine_with_min_lr"}, "schedule: cosine_with_min_lr: .*min_lr"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(schedule: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TrainingArguments(schedule=schedule)


# optimisers


def test_torchs_optimisers_go_by_their_names() -> None:
    wanted = {"adamw", "adam", "sgd", "adagrad", "radam", "nadam", "adafactor"}
    assert wanted <= set(OPTIMIZERS) and "sparseadam" not in OPTIMIZERS


def test_an_optimiser_gets_its_options_and_the_common_ones() -> None:
    table = nn.Parameter(torch.ones(2, 2))
    groups = parameter_groups([("t", table)], [], lr=0.1, weight_decay=0.2)
    chosen = {"kind": "adam", "amsgrad": True}
    optimizer = build_optimizer(chosen, groups, lr=0.1, betas=(0.5, 0.6))
    assert type(optimizer) is torch.optim.Adam
    [group] = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.2, (0.5, 0.6))
    assert group["amsgrad"] and group["role"] == "other"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"optimizer": "adamv"}, "optimizer: got 'adamv', wanted one of .*did you mean 'adam'"),
        ({"optimizer": {"momentum": 0.9}}, "optimizer: got 'None', wanted one of adadelta"),
        ({"optimizer": {"kind": "sgd", "momentun": 1}}, "momentun: sgd .*did you mean 'momentum'"),
        ({"optimizer": {"kind": "sgd", "momentum": -1}}, "optimizer: sgd: Invalid momentum"),
        ({"optimizer": {"kind": "sgd", "momentum": "x"}}, "optimizer: sgd: "),
        ({"optimizer": {"kind": "adam", "lr": 0.1}}, "optimizer.lr: stands beside optimizer"),
        ({"optimizer": "sgd", "betas": (0.8, 0.9)}, "betas: sgd has none; leave it out"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, "weight_decay: rprop has none"),
    ],
)
def test_an_optimiser_that_cannot_be_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TrainingArguments(**options)


def test_without_asynchrony_both_rates_are_one() -> None:
    assert [NoAsynchrony().lr_factor(epoch) for epoch in (0, 7)] == [1.0, 1.0]


def test_tables_decay_towards_where_they_started(tmp_path: Path) -> None:
    """AdamW without decay on ``S - lr * decay * (S - S_start)``, by hand."""
    options = {"lr": 0.05, "weight_decay": 0.3, "table_decay": 2.0, "decay_towards": "teacher"}
    step = tiny_step(tiny_distiller())
    (table,) = step.student.modality_parameters()
    other = step.student.networks[0].embedding.id_table
    updates = MemberUpdates(step.student, NoAsynchrony())
    towards = DecayTowardsStart([table], decay=2.0)
    groups = updates.groups(step.named_parameters(), lr=0.05, weight_decay=0.3, table_decay=0.0)
    optimizer = build_optimizer("adamw", groups, lr=0.05, betas=(0.9, 0.999))
    start, expected = table.detach().double().clone(), table.detach().double().clone()
    first, second = torch.zeros_like(expected), torch.zeros_like(expected)
    generator = torch.Generator().manual_seed(4)
    for k in range(1, 6):
        gradient = torch.randn(table.shape, generator=generator)
        table.grad, other.grad = gradient.clone(), torch.zeros_like(other)
        towards.before_step(optimizer)
        optimizer.step()
        expected -= 0.05 * 2.0 * (expected - start)
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.999 * second + 0.001 * gradient.double() ** 2
        bias = (1 - 0.9**k), (1 - 0.999**k)
        expected -= 0.05 * (first / bias[0]) / ((second / bias[1]).sqrt() + 1e-8)
        torch.testing.assert_close(table.detach().double(), expected, rtol=1e-4, atol=1e-5)
    table.grad = None  # frozen: it stays
    before = table.detach().clone()
    towards.before_step(optimizer)
    assert torch.equal(table, before)

    near = TinyRun(tmp_path / "near", options)
    far = TinyRun(tmp_path / "far", {**options, "decay_towards": "zero", "table_decay": 0.0})
    moved = []
    for run in (near, far):
        (own,) = run.step.student.modality_parameters()
        begun = own.detach().clone()
        run.fit()
        moved.append(float((own - begun).norm().detach()))
    assert 0 < moved[0] < 0.7 * moved[1]


def test_a_decay_towards_the_teacher_needs_a_decay() -> None:
    with pytest.raises(ValueError, match=r"decay_towards: got teacher, but nothing decays"):
        TrainingArguments(decay_towards="teacher")
    with pytest.raises(ValueError, match=r"decay_towards: got 'one', wanted one of zero, teacher"):
        TrainingArguments(decay_towards="one")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"table_decay: got -1"):
        TrainingArguments(table_decay=-1)
