"""The correlation losses and their gradients against float64 loops."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from references import correlation as reference
from references.teacher import random_table
from torch import Tensor
from torch.testing import assert_close

from mmkd import CorrelationDistiller, CorrelationLoss
from mmkd.distiller import CorrelationTargets, Similarity
from mmkd.losses import correlation as pair_chunks

ITEMS = torch.tensor(
    [[0, 0, 3, 7, 3, 1], [2, 9, 4, 5, 6, 21], [0, 0, 0, 0, 0, 8], [0, 1, 2, 3, 5, 6]]
)
TABLE = random_table(20, 24, missing=(4, 20))
WIDTH = 8


def teacher(**options: Any) -> CorrelationDistiller:
    distiller = CorrelationDistiller(**{"dim": 16, "facets": 4, "codes": 6, **options})
    return distiller.fit({"text": TABLE})


def student(*, seed: int = 0) -> Tensor:
    return torch.randn(21, WIDTH, generator=torch.Generator().manual_seed(seed))


def loss_of(**options: Any) -> CorrelationLoss:
    loss = CorrelationLoss(**{"width": WIDTH, "codes": 6, "hidden": 5, **options})
    generator = torch.Generator().manual_seed(1)
    for parameter in loss.parameters():  # away from the identity: every term must count
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return loss


def in_float64(layers: torch.nn.Sequential) -> Callable[[NDArray[np.float64]], Any]:
    def run(x: NDArray[np.float64]) -> Any:
        for layer in layers:
            if isinstance(layer, torch.nn.Linear):
                weight = layer.weight.detach().double().numpy()
                x = weight @ x + layer.bias.detach().double().numpy()
            else:
                x = np.maximum(x, 0)
        return x

    return run


def naive(
    loss: CorrelationLoss, table: Tensor, distiller: CorrelationDistiller, items: Tensor
) -> tuple[float, float]:
    x = distiller.reduced["text"].double().numpy()
    book = distiller.codebooks["text"]
    c, temperature = book.centroids.double().numpy(), book.temperature or 0.0
    kind = distiller.similarity

    def code(a: int, b: int) -> list[float]:
        r = reference.dissected(x[a], x[b], distiller.facets, kind)
        if distiller.assignment == "soft":
            return reference.soft_code(r, c, temperature)
        return [float(k == reference.hard_code(r, c)) for k in range(len(c))]

    exact, present = table.detach().double().numpy(), TABLE.present.tolist()
    rows = items.tolist()
    return (
        reference.holistic_loss(
            exact,
            rows,
            present,
            lambda a, b: reference.similarity(x[a], x[b], kind),
            g=in_float64(loss.holistic.head),
            kind=loss.holistic.similarity,
            temperature=loss.holistic.temperature,
            rms=loss.holistic.pair_scale == "rms",
        ),
        reference.dissected_loss(
            exact,
            rows,
            present,
            code,
            mlp=in_float64(loss.dissected.head),
            normalize=loss.dissected.normalize,
        ),
    )


@pytest.mark.parametrize("chunk", [4096, 8])
@pytest.mark.parametrize(
    ("taught", "options"),
    [
        *(({"similarity": kind}, {"similarity": kind}) for kind in get_args(Similarity)),
        ({"assignment": "hard"}, {}),
        ({}, {"temperature": 0.7, "pair_scale": "rms"}),
        ({}, {"normalize": True}),
    ],
)
def test_losses_match_the_naive_loop(
    taught: dict[str, Any], options: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_chunks, "_CHUNK_PAIRS", chunk)
    distiller, loss, table = teacher(**taught), loss_of(**options), student()
    parts = loss(table, ITEMS, distiller.targets(ITEMS)["text"])
    holistic, dissected = naive(loss, table, distiller, ITEMS)
    assert float(parts["holistic"].detach()) == pytest.approx(holistic, rel=1e-4)
    assert float(parts["dissected"].detach()) == pytest.approx(dissected, rel=1e-3)
    with torch.no_grad():
        again = loss(table, ITEMS, distiller.targets(ITEMS)["text"])
    assert_close(again["holistic"], parts["holistic"].detach())
    assert_close(again["dissected"], parts["dissected"].detach())


@pytest.mark.parametrize("part", ["holistic", "dissected"])
@pytest.mark.parametrize("chunk", [4096, 8])
def test_gradients_match_finite_differences_of_the_naive_loop(
    part: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_chunks, "_CHUNK_PAIRS", chunk)
    distiller, loss = teacher(), loss_of().double()
    table = student().double().requires_grad_()
    targets = distiller.targets(ITEMS)["text"]
    value = 3 * loss(table, ITEMS, targets)[part]
    parameters = [table, *getattr(loss, part).parameters()]
    gradients = torch.autograd.grad(value, parameters)
    index = ["holistic", "dissected"].index(part)
    generator = torch.Generator().manual_seed(2)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        sides = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(step * direction)
                sides.append(3 * naive(loss, table, distiller, ITEMS)[index])
                parameter.sub_(step * direction)
        slope = (sides[0] - sides[1]) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_chunks_of_long_and_short_sequences_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(1, 21, (40, 12), generator=generator)
    items[torch.arange(12)[None] < torch.randint(0, 12, (40, 1), generator=generator)] = 0
    distiller, loss = teacher(), loss_of()
    targets = distiller.targets(items)["text"]
    found = []
    for chunk in (10**6, 100, 1):
        monkeypatch.setattr(pair_chunks, "_CHUNK_PAIRS", chunk)
        table = student().requires_grad_()
        parts = loss(table, items, targets)
        total = 2 * parts["holistic"] + parts["dissected"]
        found.append((total, *torch.autograd.grad(total, [table, *loss.parameters()])))
    for other in found[1:]:
        for got, wanted in zip(other, found[0], strict=True):
            assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_frozen_tables_and_heads_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_chunks, "_CHUNK_PAIRS", 4)
    loss, table = loss_of(), student()
    loss.dissected.head[0].requires_grad_(False)
    parts = loss(table, ITEMS, teacher().targets(ITEMS)["text"])
    torch.autograd.backward(parts["holistic"] + parts["dissected"])
    assert table.grad is None
    assert [p.grad is not None for p in loss.dissected.parameters()] == [False, False, True, True]


def test_width_of_padding_and_order_of_sequences_change_nothing() -> None:
    distiller, loss, table = teacher(), loss_of(), student()
    wide = torch.cat([torch.zeros(4, 7, dtype=torch.int64), ITEMS], dim=1)[[3, 1, 0, 2]]
    before = loss(table, ITEMS, distiller.targets(ITEMS)["text"])
    after = loss(table, wide, distiller.targets(wide)["text"])
    assert_close(after["holistic"], before["holistic"])
    assert_close(after["dissected"], before["dissected"])


def test_only_items_of_pairs_get_a_gradient() -> None:
    table = student().requires_grad_()
    parts = loss_of()(table, ITEMS, teacher().targets(ITEMS)["text"])
    (gradient,) = torch.autograd.grad(parts["holistic"] + parts["dissected"], table)
    touched = gradient.abs().sum(1).nonzero().flatten().tolist()
    assert touched == [1, 2, 3, 5, 6, 7, 9]  # not 0, not the missing 4, not the lone 8


def test_no_pair_is_zero_with_zero_gradients() -> None:
    items = torch.tensor([[0, 0, 4], [0, 5, 5]])
    loss, table = loss_of(), student().requires_grad_()
    parts = loss(table, items, teacher().targets(items)["text"])
    assert float(parts["holistic"].detach()) == 0 and float(parts["dissected"].detach()) == 0
    total = parts["holistic"] + parts["dissected"]
    for gradient in torch.autograd.grad(total, [table, *loss.parameters()]):
        assert not gradient.any()


def test_a_student_equal_to_its_teacher_starts_at_rest() -> None:
    distiller = teacher()
    table = distiller.reduced["text"].clone().requires_grad_()
    loss = CorrelationLoss(width=16, codes=6)
    parts = loss(table, ITEMS, distiller.targets(ITEMS)["text"])
    assert float(parts["holistic"].detach()) == pytest.approx(0, abs=1e-5)
    (gradient,) = torch.autograd.grad(parts["holistic"], table)
    assert gradient.isfinite().all()
    exact = CorrelationTargets(
        sequence=torch.tensor([0]),
        first=torch.tensor([0]),
        second=torch.tensor([1]),
        holistic=torch.tensor([1.0]),
        dissected=torch.zeros(1, 1),
        assign=lambda r: r[:, 0].long(),
    )
    same = torch.ones(3, 16, requires_grad=True)  # sim is exactly rho: the root's slope is infinite
    loss.holistic.similarity = "euclidean"
    (gradient,) = torch.autograd.grad(loss(same, torch.tensor([[1, 2]]), exact)["holistic"], same)
    assert not gradient.any()


def test_normalised_comparison_ignores_the_scale_of_the_table() -> None:
    distiller, loss, table = teacher(), loss_of(normalize=True), student()
    targets = distiller.targets(ITEMS)["text"]
    assert_close(
        loss(table * 50, ITEMS, targets)["dissected"], loss(table, ITEMS, targets)["dissected"]
    )
    raw, grown = (loss_of()(scale * table, ITEMS, targets)["dissected"] for scale in (1, 50))
    assert float(grown.detach()) > 2 * float(raw.detach())


def test_sampled_pairs_keep_the_scale_of_the_loss() -> None:
    items = torch.arange(1, 20)[None, :]
    loss, table = loss_of(), student()
    whole = float(loss(table, items, teacher().targets(items)["text"])["holistic"].detach())
    sampler = teacher(max_pairs=60)
    generator = torch.Generator().manual_seed(0)
    sampled = [
        loss(table, items, sampler.targets(items, generator=generator)["text"])["holistic"].item()
        for _ in range(100)
    ]
    assert np.mean(sampled) == pytest.approx(whole, rel=0.02)


def test_training_on_the_losses_recovers_the_teacher() -> None:
    distiller = teacher()
    items = torch.arange(1, 21)[None, :]
    targets = distiller.targets(items)["text"]
    loss = CorrelationLoss(width=WIDTH, codes=6, hidden=64)
    table = (0.1 * student()).requires_grad_()
    optimizer = torch.optim.Adam([table, *loss.parameters()], lr=0.02)
    values = []
    for _ in range(300):
        parts = loss(table, items, targets)
        optimizer.zero_grad()
        torch.autograd.backward(parts["holistic"] + parts["dissected"])
        optimizer.step()
        values.append((float(parts["holistic"]), float(parts["dissected"])))
    assert values[-1][0] < 0.5 * values[0][0]
    assert values[-1][1] < 0.5 * values[0][1]


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"temperature: got 0, wanted a number above 0; such"):
        CorrelationLoss(width=4, codes=3, temperature=0)
    with pytest.raises(ValueError, match="pair_scale: got 'max', wanted one of frobenius, rms"):
        CorrelationLoss(width=4, codes=3, pair_scale="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="codes: got 1, wanted at least 2"):
        CorrelationLoss(width=4, codes=1)
    with pytest.raises(ValueError, match="the distiller has no teacher; call fit first"):
        CorrelationLoss.of(CorrelationDistiller(), width=4)


def test_a_fitted_distiller_gives_a_loss_a_modality() -> None:
    losses = CorrelationLoss.of(teacher(similarity="dot"), width=WIDTH, dissected_weight=0.1)
    assert losses.keys() == {"text"} and losses["text"].holistic.similarity == "dot"
    assert losses["text"].weights == {"holistic": 4.0, "dissected": 0.1}
    assert losses["text"].dissected.head[-1].out_features == 6
