"""Recommendation losses against the formulas, one position at a time in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmkd import GBCE, Objective, SampledSoftmax, Softmax
from mmkd.data.tasks import Batch
from mmkd.losses.negatives import NegativeSampler
from mmkd.losses.recommendation import LOSSES
from mmkd.student import StudentOutput


def draw(
    positions: int = 6, items: int = 9, width: int = 5, *, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """States [M, D], item vectors [I, D] and targets [M]."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, width, generator=generator)
    matrix = torch.randn(items, width, generator=generator)
    target = torch.randint(1, items + 1, (positions,), generator=generator)
    return hidden, matrix, target


def naive_softmax(hidden: Tensor, matrix: Tensor, target: Tensor) -> float:
    total = 0.0
    for state, row in zip(hidden.double().numpy(), target.tolist(), strict=True):
        logits = [float(np.dot(state, item)) for item in matrix.double().numpy()]
        total += math.log(sum(math.exp(x) for x in logits)) - logits[row - 1]
    return total


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# softmax


@pytest.mark.parametrize("positions", [1, 6, 300])
def test_softmax_is_the_summed_cross_entropy(positions: int) -> None:
    hidden, matrix, target = draw(positions)
    loss = Softmax()(hidden, matrix, target)
    assert float(loss) == pytest.approx(naive_softmax(hidden, matrix, target), rel=1e-5)


def test_softmax_gradient_is_that_of_plain_cross_entropy() -> None:
    hidden, matrix, target = (t.double() if t.is_floating_point() else t for t in draw(40))
    inputs = [hidden.requires_grad_(), matrix.requires_grad_()]
    got = torch.autograd.grad(Softmax()(hidden, matrix, target), inputs)
    plain = nn.functional.cross_entropy(hidden @ matrix.mT, target - 1, reduction="sum")
    torch.testing.assert_close(got, torch.autograd.grad(plain, inputs), rtol=1e-6, atol=1e-8)


def test_softmax_in_bf16_stays_near_the_exact_one() -> None:
    hidden, matrix, target = draw(3000, items=50, width=16)
    exact = naive_softmax(hidden, matrix, target)
    hidden.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = Softmax()(hidden, matrix, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(exact, rel=0.01)
    half, hidden.grad = hidden.grad, None
    Softmax()(hidden, matrix, target).backward()
    assert half is not None and hidden.grad is not None
    cosine = torch.cosine_similarity(half.flatten(), hidden.grad.flatten(), dim=0)
    assert float(cosine) > 0.999


# sampled softmax


def fix(monkeypatch: pytest.MonkeyPatch, draws: list[int]) -> None:
    """Have samplers give the same draws each time, rows of the item matrix."""

    def draw(sampler: NegativeSampler, count: int, *, generator: object = None) -> Tensor:
        assert count == len(draws)
        return torch.tensor(draws) + 1

    monkeypatch.setattr(NegativeSampler, "draw", draw)


def test_sampled_softmax_with_given_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, matrix, target = draw(4, items=5)
    target[0] = 3  # row 3 is drawn below, and stays among this position's negatives
    counts = torch.tensor([100, 4, 0, 1, 2, 8])  # column 0 must not count
    q = [n / 20 for n in (5, 1, 2, 3, 9)]
    draws = [2, 4, 4]  # zero-based: items 3, 5 and 5
    fix(monkeypatch, draws)
    got = SampledSoftmax(train_counts=counts, negatives=3)(hidden, matrix, target)
    wanted = 0.0
    for state, row in zip(hidden.double().numpy(), target.tolist(), strict=True):
        logits = [
            float(np.dot(state, item)) - math.log(3 * share)
            for item, share in zip(matrix.double().numpy(), q, strict=True)
        ]
        own = row - 1
        total = math.exp(logits[own]) + sum(math.exp(logits[d]) for d in draws)
        wanted += math.log(total) - logits[own]
    assert float(got) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("negatives", [4, 64])
def test_the_optimum_is_the_true_distribution(negatives: int) -> None:
    """One context: a softmax trained on the sampled loss finds how often each item comes."""
    truth = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
    loss = SampledSoftmax(
        train_counts=torch.cat([torch.zeros(1), 1000 * truth]), negatives=negatives
    )
    matrix = torch.zeros(6, 1, requires_grad=True)
    optimizer = torch.optim.Adam([matrix], lr=0.05)
    tail = torch.zeros(6)
    for step in range(600):
        target = 1 + torch.multinomial(truth, 256, replacement=True)
        optimizer.zero_grad()
        (loss(torch.ones(256, 1), matrix, target) / 256).backward()
        optimizer.step()
        if step >= 300:
            tail += matrix.detach()[:, 0].softmax(0) / 300
    assert float((tail - truth).abs().max()) < 0.03


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_with_many_negatives_the_gradient_is_the_full_softmaxs(sampling: str) -> None:
    torch.manual_seed(0)
    hidden, matrix, target = draw(20, items=30)
    counts = torch.arange(31) ** 2
    loss = SampledSoftmax(
        train_counts=counts,
        negatives=20_000,
        sampling="uniform" if sampling == "uniform" else "popularity",
    )
    hidden.requires_grad_()
    (full,) = torch.autograd.grad(Softmax()(hidden, matrix, target), hidden)
    (sampled,) = torch.autograd.grad(loss(hidden, matrix, target), hidden)
    assert float((sampled - full).norm() / full.norm()) < 0.05


def test_the_correction_is_what_undoes_the_popularity_of_the_draws() -> None:
    torch.manual_seed(0)
    hidden, matrix, target = draw(20, items=30)
    loss = SampledSoftmax(train_counts=torch.arange(31) ** 2, negatives=20_000)
    hidden.requires_grad_()
    (full,) = torch.autograd.grad(Softmax()(hidden, matrix, target), hidden)
    (corrected,) = torch.autograd.grad(loss(hidden, matrix, target), hidden)
    drawn = loss.draw(target) - 1
    own = target - 1
    negative = (hidden @ matrix[drawn].mT).masked_fill(drawn == own[:, None], -torch.inf)
    logits = torch.cat([(hidden * matrix[own]).sum(-1, keepdim=True), negative], 1)
    plain = nn.functional.cross_entropy(logits, torch.zeros_like(own), reduction="sum")
    (uncorrected,) = torch.autograd.grad(plain, hidden)
    assert float((corrected - full).norm() * 3) < float((uncorrected - full).norm())


# gbce


def naive_gbce(
    hidden: Tensor, matrix: Tensor, target: Tensor, drawn: list[list[int]], t: float
) -> float:
    """-log(sigmoid(s+) ** beta) - sum log(1 - sigmoid(s-)); gSASRec, equations 10 and 11."""
    negatives, items = len(drawn[0]), len(matrix)
    a = negatives / (items - 1)
    beta = a * (t * (1 - 1 / a) + 1 / a)
    total = 0.0
    vectors = matrix.double().numpy()
    for state, row, own in zip(hidden.double().numpy(), target.tolist(), drawn, strict=True):
        total -= math.log(sigmoid(float(np.dot(state, vectors[row - 1]))) ** beta)
        for other in own:
            if other != row - 1:
                total -= math.log(1 - sigmoid(float(np.dot(state, vectors[other]))))
    return total


@pytest.mark.parametrize("calibration", [0.0, 0.5, 1.0])
def test_gbce_is_the_papers_formula(calibration: float, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, matrix, target = draw(3, items=9)
    target[1] = 5
    drawn = [[0, 3], [4, 8], [2, 2]]  # [1][0] is the target itself
    fix(monkeypatch, [d for own in drawn for d in own])
    loss = GBCE(train_counts=torch.ones(10), negatives=2, calibration=calibration)
    wanted = naive_gbce(hidden, matrix, target, drawn, calibration)
    assert float(loss(hidden, matrix, target)) == pytest.approx(wanted, rel=1e-5)


def test_gbce_without_calibration_is_plain_bce(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, matrix, target = draw(3, items=9)
    target[:] = torch.tensor([1, 2, 3])
    drawn = [[5, 6], [7, 8], [4, 5]]
    fix(monkeypatch, [d for own in drawn for d in own])
    logits = hidden @ matrix.mT
    scores = torch.stack([logits[m, [m, *drawn[m]]] for m in range(3)])
    labels = torch.tensor([[1.0, 0.0, 0.0]]).expand(3, 3)
    bce = nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
    loss = GBCE(train_counts=torch.ones(10), negatives=2, calibration=0.0)
    assert loss.beta == pytest.approx(1.0)
    torch.testing.assert_close(loss(hidden, matrix, target), bce)


def test_full_calibration_weighs_the_positive_by_the_sampling_rate() -> None:
    assert GBCE(train_counts=torch.ones(11), negatives=3, calibration=1.0).beta == (
        pytest.approx(3 / 9)
    )


# supervised positions


def test_unsupervised_positions_count_for_nothing() -> None:
    _, matrix, _ = draw()
    hidden = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    targets = torch.tensor([[0, 0, 2, 5], [0, 7, 0, 9]])
    batch = Batch(targets, targets[None], targets[None])
    loss = Objective(Softmax())([StudentOutput(hidden, {}, matrix)], batch, {}).total
    rows = hidden.detach()[targets > 0]
    assert float(loss.detach()) == pytest.approx(
        naive_softmax(rows, matrix, targets[targets > 0]) / 4, rel=1e-5
    )
    loss.backward()
    assert hidden.grad is not None
    assert not hidden.grad[targets == 0].any()
    assert hidden.grad[targets > 0].any(-1).all()


# candidates and options


@pytest.mark.parametrize("kind", LOSSES)
def test_items_that_never_train_can_be_left_out_of_the_candidates(kind: str) -> None:
    counts = np.array([7, 3, 0, 1, 0, 2])  # items 2 and 4 never occur; row 0 is ignored
    hidden, matrix = torch.randn(3, 3), torch.randn(5, 3, requires_grad=True)
    target = torch.tensor([5, 1, 3])
    found = []
    for loss, vectors, wanted in (
        (LOSSES[kind](candidates="trained", train_counts=counts), matrix, target),
        (LOSSES[kind](train_counts=counts[[0, 1, 3, 5]]), matrix[[0, 2, 4]], target // 2 + 1),
    ):
        torch.manual_seed(0)
        found.append(loss(hidden, vectors, wanted))
    torch.testing.assert_close(found[0], found[1])
    (gradient,) = torch.autograd.grad(found[0], matrix)
    assert (gradient[[1, 3]] == 0).all() and (gradient[[0, 2, 4]] != 0).any(1).all()


def test_sampled_losses_draw_from_the_candidates_alone() -> None:
    counts = torch.tensor([0, 3, 0, 1, 0, 2])
    loss = SampledSoftmax(candidates="trained", train_counts=counts)
    shares = loss.sampler.log_q(torch.arange(1, 6)).exp()
    assert shares.tolist() == pytest.approx([4 / 9, 0, 2 / 9, 0, 3 / 9])


def test_what_is_out_of_range_is_refused() -> None:
    counts = torch.ones(4)
    with pytest.raises(ValueError, match=r"candidates: got trained without train_counts"):
        Softmax(candidates="trained")
    with pytest.raises(
        ValueError, match=r"candidates: got 'train', wanted one of all, trained; di"
    ):
        Softmax(candidates="train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"negatives: got 0, wanted at least 1; raise it"):
        SampledSoftmax(train_counts=counts, negatives=0)
    with pytest.raises(ValueError, match=r"calibration: got 2, wanted 0 to 1"):
        GBCE(train_counts=counts, calibration=2)


def test_a_loss_of_ones_own_is_taken() -> None:
    class Squared(nn.Module):
        def forward(self, hidden: Tensor, item_matrix: Tensor, target: Tensor) -> Tensor:
            return (hidden - item_matrix[target - 1]).square().sum()

    hidden, matrix, target = draw()
    asked = target[None]
    found = Objective(Squared())(
        [StudentOutput(hidden[None], {}, matrix)], Batch(asked, asked[None], asked[None]), {}
    )
    torch.testing.assert_close(found.total, (hidden - matrix[target - 1]).square().sum() / 6)
