"""Steps of a batch's rows: the gradients of whole tables, and one row after another by hand."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training.tiny import ITEMS, LENGTH, WIDTH, tiny_distiller, tiny_fit, tiny_split, tiny_step

from mmkd import (
    GBCE,
    CorrelationLoss,
    Ensemble,
    FusedItemEmbedding,
    MaskedItem,
    NextItem,
    Objective,
    Recommender,
    SampledSoftmax,
    Softmax,
    Trainer,
    TrainingArguments,
)
from mmkd.data.batches import BatchStream
from mmkd.data.tasks import Batch
from mmkd.errors import TrainingError
from mmkd.student import build_backbone
from mmkd.training import trainer
from mmkd.training.loop import TrainReport
from mmkd.training.optimizer import (
    AsynchronousUpdate,
    DecayTowardsStart,
    Interval,
    NoAsynchrony,
    Ramp,
)
from mmkd.training.rows import RowAdam, SplitOptimizer, clip, settle
from mmkd.training.step import TrainStep

COUNTS = torch.arange(ITEMS + 1)

# ---- gradients


def sampled(kind: str) -> SampledSoftmax | GBCE:
    if kind == "gbce":
        return GBCE(train_counts=COUNTS, negatives=2, sampling="popularity")
    return SampledSoftmax(train_counts=COUNTS, negatives=5)


def student(backbone: str, score_with: str, members: int, **embedding: Any) -> Ensemble:
    torch.manual_seed(2)
    distiller = tiny_distiller()
    trained = torch.arange(ITEMS + 1) != 7
    modalities = {} if embedding.pop("ids_only", False) else distiller.reduced
    networks = [
        Recommender(
            embedding=FusedItemEmbedding(
                item_count=ITEMS,
                width=WIDTH,
                modalities=modalities,
                present=distiller.present if modalities else None,
                trained=trained,
                dropout=0.0,
                **embedding,
            ),
            backbone=build_backbone(backbone, width=WIDTH, max_length=LENGTH, dropout=0.0),
            score_with="id" if score_with == "id" else "fused",
        )
        for _ in range(members)
    ]
    for other in networks[1:]:  # as the networks of an ensemble share them
        other.embedding.tables = networks[0].embedding.tables
    return Ensemble(networks)


def batch_of(task: NextItem | MaskedItem, loss: SampledSoftmax | GBCE) -> Batch:
    stream = BatchStream(
        tiny_split(users=4),
        task,
        max_length=LENGTH,
        batch_size=2,
        seed=1,
        negatives=loss.draw,
    )
    return max(stream.epoch(0), key=lambda batch: len(batch.items))


CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "fused": ("sasrec", "fused", 1, {}),
    "scored by ids": ("sasrec", "id", 1, {}),
    "three that share": ("sasrec", "fused", 3, {}),
    "masked": ("bert4rec", "fused", 1, {"fusion": "concat"}),
    "reads items": ("rgat", "fused", 1, {"fusion": "sum"}),
    "adapter": ("gru4rec", "fused", 1, {"adapter": "mlp"}),
    "without ids": ("gru4rec", "fused", 1, {"ids": False}),
    "ids alone": ("gru4rec", "fused", 1, {"ids_only": True}),
}


@pytest.mark.parametrize("kind", ["sampled_softmax", "gbce"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_whole_tables(case: str, kind: str) -> None:
    backbone, score_with, members, embedding = CASES[case]
    loss, distiller = sampled(kind), tiny_distiller()
    correlation = None if embedding.get("ids_only") else CorrelationLoss.of(distiller, width=WIDTH)
    ensemble = student(backbone, score_with, members, **embedding)
    objective = Objective(loss, correlation=correlation)
    batch = batch_of(MaskedItem() if backbone == "bert4rec" else NextItem(), loss)
    targets = distiller.targets(batch.items) if correlation else {}
    assert len(batch.touched(ITEMS)) < ITEMS + 2  # else nothing is shown

    def gradients(found: Tensor) -> dict[str, Tensor]:
        ensemble.zero_grad(set_to_none=True)
        objective.zero_grad(set_to_none=True)
        found.backward()  # type: ignore[no-untyped-call]
        named = [*ensemble.named_parameters(), *objective.named_parameters()]
        return {name: p.grad for name, p in named if p.grad is not None}

    whole = objective(ensemble(batch.views.flatten(0, 1)), batch, targets)
    wanted = gradients(whole.total)
    rows = TrainStep(ensemble, objective)(batch, targets)
    assert rows.total.item() == pytest.approx(whole.total.item(), rel=1e-5)
    assert rows.parts.keys() == whole.parts.keys()
    got = gradients(rows.total)
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        assert gradient.is_sparse == any(
            gradient.shape == p.shape for p in ensemble.trained_tables()
        )
        assert not wanted[name].is_sparse
        torch.testing.assert_close(gradient.to_dense(), wanted[name], rtol=2e-4, atol=2e-6)


def test_a_batch_names_its_rows() -> None:
    items = torch.tensor([[0, 3, 5]])
    batch = Batch(items, torch.tensor([[[0, 3, 21]]]), torch.tensor([[[0, 0, 5]]]))
    assert batch.touched(20).tolist() == [0, 3, 5, 21]
    more = replace(batch, negatives=torch.tensor([9, 3]))
    assert more.touched(20).tolist() == more.touched(8 + 12).tolist() == [0, 3, 5, 9, 21]
    many = replace(batch, negatives=torch.tensor([[9, 3], [1, 9]]).repeat(9, 1))
    assert many.touched(20).tolist() == [0, 1, 3, 5, 9, 21]


@pytest.mark.parametrize("kind", ["sampled_softmax", "gbce"])
def test_processes_share_a_batchs_negatives(kind: str) -> None:
    loss = sampled(kind)
    whole = batch_of(NextItem(), loss)
    asked = (whole.targets > 0).nonzero()  # [M, 3] view, sequence, position
    for start in (0, 1):
        part = whole.rows(start, 2)
        assert part.negatives is not None and whole.negatives is not None
        own = whole.negatives
        if kind == "gbce":
            own = torch.stack(
                [
                    own[m]
                    for m, (_, sequence, _) in enumerate(asked.tolist())
                    if sequence % 2 == start
                ]
            )
        assert torch.equal(part.negatives, own)


# ---- the optimiser


def sparse(rows: list[int], values: Tensor, size: int) -> Tensor:
    shape, index = (size, values.shape[1]), torch.tensor([rows])
    return torch.sparse_coo_tensor(index, values, shape, check_invariants=True).coalesce()


def test_row_adam_steps_each_row_as_its_formula_says() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 3, generator=generator)
    table = nn.Parameter(start.clone())
    lr, beta, decay = 0.1, 0.9, 0.2
    optimizer = RowAdam([table], lr=lr, beta=beta, weight_decay=decay)
    naive = [row.double().tolist() for row in start]
    square, steps = [0.0] * 6, [0] * 6
    for touched in ([1, 4], [1], [0, 1, 5], [4, 5], [1, 5]):
        values = torch.randn(len(touched), 3, generator=generator)
        table.grad = sparse(touched, values, 6)
        optimizer.step()
        for row, gradient in zip(touched, values.double().tolist(), strict=True):
            steps[row] += 1
            mean = sum(g * g for g in gradient) / 3
            square[row] = beta * square[row] + (1 - beta) * mean
            divisor = math.sqrt(square[row] / (1 - beta ** steps[row])) + 1e-8
            naive[row] = [
                x * (1 - lr * decay) - lr * g / divisor
                for x, g in zip(naive[row], gradient, strict=True)
            ]
    torch.testing.assert_close(
        table.detach().double(), torch.tensor(naive).double(), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(table.detach()[[2, 3]], start[[2, 3]])  # never touched, never moved


def test_a_rows_first_step_is_as_long_however_late_it_comes() -> None:
    table = nn.Parameter(torch.zeros(3, 2))
    optimizer = RowAdam([table], lr=0.5)
    for _ in range(200):
        table.grad = sparse([1], torch.tensor([[3.0, -3.0]]), 3)
        optimizer.step()
    table.grad = sparse([2], torch.tensor([[-7.0, 7.0]]), 3)
    optimizer.step()
    torch.testing.assert_close(table.detach()[2], torch.tensor([0.5, -0.5]))


def test_a_split_optimizer_steps_and_restores_both_parts() -> None:
    def parts() -> tuple[nn.Parameter, nn.Parameter, SplitOptimizer]:
        weight, table = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(4, 2))
        groups = [{"params": [weight], "role": "other"}]
        optimizer = SplitOptimizer(
            torch.optim.AdamW(groups, lr=0.1), RowAdam([{"params": [table], "role": "x"}], lr=0.1)
        )
        return weight, table, optimizer

    def steps(weight: nn.Parameter, table: nn.Parameter, optimizer: SplitOptimizer, n: int) -> None:
        for step in range(n):
            weight.grad = torch.tensor([1.0, float(step)])
            table.grad = sparse([step % 4], torch.tensor([[2.0, -1.0]]), 4)
            optimizer.step()

    weight, table, optimizer = parts()
    steps(weight, table, optimizer, 3)
    for group in optimizer.param_groups:
        group["lr"] = 0.02  # a schedule sets the groups of the whole
    weight2, table2, again = parts()
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    weight2.data.copy_(weight.data)
    table2.data.copy_(table.data)
    steps(weight, table, optimizer, 2)
    steps(weight2, table2, again, 2)
    assert torch.equal(weight, weight2) and torch.equal(table, table2)
    plain = nn.Parameter(torch.ones(2))
    adamw = torch.optim.AdamW([plain], lr=0.1)
    for n, step in enumerate((0, 1, 2, 0, 1)):
        adamw.param_groups[0]["lr"] = 0.1 if n < 3 else 0.02
        plain.grad = torch.tensor([1.0, float(step)])
        adamw.step()
    assert torch.equal(plain, weight)


def test_clipping_takes_the_norm_of_dense_and_sparse_gradients_together() -> None:
    weight, table = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(4, 2))
    weight.grad = torch.tensor([3.0, 0.0])
    table.grad = sparse([0, 2], torch.tensor([[0.0, 4.0], [12.0, 0.0]]), 4)
    clip([weight, table], 6.5)  # the norm is 13
    assert weight.grad.tolist() == pytest.approx([1.5, 0.0])
    assert table.grad.to_dense().flatten().tolist() == pytest.approx([0, 2, 0, 0, 6, 0, 0, 0])


def test_a_row_that_is_named_twice_has_one_gradient() -> None:
    table = nn.Parameter(torch.ones(4, 1))
    values = torch.tensor([[1.0], [5.0], [2.0]])
    table.grad = torch.sparse_coo_tensor(
        torch.tensor([[2, 0, 2]]), values, (4, 1), check_invariants=True
    )
    settle([table])
    assert table.grad.indices().tolist() == [[0, 2]]
    assert table.grad.values().tolist() == [[5.0], [3.0]]
    table.grad = torch.ones(4, 1)
    with pytest.raises(TrainingError, match=r"training.tables: got rows, but .* set training.tabl"):
        settle([table])


# ---- what changes the tables' gradients


def test_interval_collects_sparse_gradients_as_it_does_dense_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    given = [(torch.randperm(5, generator=generator)[:2], torch.randn(2, 2)) for _ in range(9)]
    dense, rows = nn.Parameter(torch.zeros(5, 2)), nn.Parameter(torch.zeros(5, 2))
    one, other = Interval(every=3), Interval(every=3)
    for step, (index, values) in enumerate(given, start=1):
        rows.grad = sparse(index.tolist(), values, 5)
        dense.grad = rows.grad.to_dense()
        one.before_step([dense])
        other.before_step([rows])
        assert (rows.grad is None) == (dense.grad is None) == (step % 3 > 0)
        if rows.grad is not None and dense.grad is not None:
            assert rows.grad.is_sparse
            torch.testing.assert_close(rows.grad.to_dense(), dense.grad)
        state = {name: value.clone() for name, value in other.state_dict().items()}
        other = Interval(every=3)
        other.load_state_dict(state)


def test_what_decays_towards_the_teacher_is_what_steps() -> None:
    table = nn.Parameter(torch.zeros(3, 1))
    towards = DecayTowardsStart([table], decay=0.5)
    with torch.no_grad():
        table.add_(8)
    table.grad = sparse([1], torch.ones(1, 1), 3)
    towards.before_step(torch.optim.SGD([table], lr=0.5))
    assert table.detach().flatten().tolist() == [8.0, 6.0, 8.0]


# ---- whole trainings


def fit(
    folder: Path | None, options: Mapping[str, Any], *, kind: str = "sampled_softmax", **others: Any
) -> tuple[TrainReport, TrainStep]:
    return tiny_fit(folder, {"tables": "rows", **options}, sampled(kind), **others)


def test_training_by_rows_learns() -> None:
    report, _ = fit(None, {"epochs": 15, "patience": None})
    losses = [record["losses"]["recommendation"] for record in report.history]
    assert losses[-1] < 0.7 * losses[0]
    assert (
        report.best_metric > 2 * report.history[0]["valid"]["NDCG@10"] or report.best_metric > 0.9
    )
    assert report.history[0]["gradient_norms"]["student.members.0.embedding.id_table"] > 0


MANY: dict[str, Any] = {
    "gradient_clip": 0.5,
    "schedule": "cosine",
    "weight_decay": 0.1,
    "table_decay": 0.3,
    "decay_towards": "teacher",
    "accumulate": 2,
}


@pytest.mark.parametrize("make", [NoAsynchrony, lambda: Interval(every=3), lambda: Ramp()])
def test_a_resumed_training_by_rows_is_the_one_that_was_not_stopped(
    make: Callable[[], AsynchronousUpdate], tmp_path: Path
) -> None:
    options = MANY | {"patience": None, "schedule": "constant"}  # whose rate knows no end
    whole, step = fit(tmp_path / "whole", options | {"epochs": 4}, asynchronous=make())
    fit(tmp_path / "parts", options | {"epochs": 2}, asynchronous=make())
    report, again = fit(
        tmp_path / "parts", options | {"epochs": 4}, asynchronous=make(), resume=True
    )
    assert [r["losses"] for r in report.history] == [r["losses"] for r in whole.history]
    for name, value in step.student.state_dict().items():
        assert torch.equal(value, again.student.state_dict()[name]), name


def test_rows_step_by_themselves_in_a_large_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = fit(None, {"epochs": 1})
    _, small = fit(None, {"epochs": 1, "tables": "auto"})
    monkeypatch.setattr(trainer, "ROWS_FROM", ITEMS - 1)
    _, large = fit(None, {"epochs": 1, "tables": "auto"})
    one, whole, other = (
        step.student.networks[0].embedding.id_table for step in (rows, small, large)
    )
    assert torch.equal(one, other) and not torch.equal(one, whole)


def test_a_full_softmax_reads_every_item() -> None:
    step = tiny_step(tiny_distiller(), distil=False)
    assert isinstance(step.objective.recommendation, Softmax)
    arguments = TrainingArguments(epochs=1, max_length=LENGTH, tables="rows", cpu=True)
    with pytest.raises(TrainingError, match=r"tables: got rows, but .*Softmax, reads every item"):
        Trainer(arguments).fit(step.student, step.objective, tiny_split(), task=NextItem())
