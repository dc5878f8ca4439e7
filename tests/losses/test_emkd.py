"""EMKD's losses against naive float64 re-derivations, values and gradients."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from references import emkd
from torch import Tensor

from mmkd import (
    AttributeLoss,
    CompressionLoss,
    ContrastiveLoss,
    ItemTable,
    MaskedItem,
    MutualLoss,
    Objective,
    Softmax,
)
from mmkd.data.batches import seeded_generator
from mmkd.data.items import AttributeVocabulary
from mmkd.data.tasks import Batch
from mmkd.errors import DataError
from mmkd.losses.attributes import attribute_loss
from mmkd.losses.compression import ensemble_log_softmax, soft_target_kl
from mmkd.losses.joint_softmax import joint_softmax
from mmkd.student import StudentOutput

N, B, L, D, ITEMS = 3, 4, 5, 6, 12
SEQUENCES = [[0, 0, 1, 2, 3], [4, 5, 6, 7, 8], [0, 0, 0, 9, 10], [0, 11, 12, 1, 2]]
LABELS: list[set[int]] = [set(), {1}, {1, 3}, {2}, set(), {4}, {2, 3}, {1}, {4}, {3}, {2}, {1}, {4}]


def leaves(*shape: int, count: int = N, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_() for _ in range(count)
    ]


def batch(views: int = 3) -> Batch:
    task = MaskedItem(views=views, mask_ratio=0.4)
    made = task.batch(torch.tensor(SEQUENCES), item_count=ITEMS, generator=seeded_generator(2))
    return made.with_clean_view()


def labels() -> Tensor:
    table = torch.zeros(ITEMS + 2, 2, dtype=torch.int64)
    for row, own in enumerate(LABELS):
        for column, label in enumerate(sorted(own)):
            table[row, column] = label
    return table


def same_gradients(ours: Tensor, naive: Tensor, inputs: Sequence[Tensor]) -> None:
    torch.testing.assert_close(ours, naive)
    found = torch.autograd.grad(ours, inputs, retain_graph=True)
    for a, b in zip(found, torch.autograd.grad(naive, inputs, retain_graph=True), strict=True):
        torch.testing.assert_close(a, b)


# contrast


@pytest.mark.parametrize("weights", [{}, {"intra_weight": 0}, {"cross_weight": 0}])
@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_contrast_is_the_formula(weights: dict[str, float], tau: float) -> None:
    hidden, views = leaves(4, B, L, D), batch().views
    found = ContrastiveLoss(temperature=tau, **weights)(hidden, views)
    each = [[emkd.contrast(hidden, views, x, y, tau) for y in range(N)] for x in range(N)]
    naive = {
        "intra": torch.stack([each[n][n] for n in range(N)]).sum(),
        "cross": torch.stack([each[x][y] for x in range(N) for y in range(N) if x != y]).sum(),
    }
    assert found.keys() == {name for name in naive if weights.get(f"{name}_weight") != 0}
    for name, value in found.items():
        same_gradients(value, naive[name], hidden)


def test_padding_and_the_order_of_the_batch_change_no_contrast() -> None:
    hidden, views = leaves(4, B, L, D), batch().views
    loss = ContrastiveLoss(temperature=0.5)
    wanted = loss(hidden, views)
    more = [torch.cat([torch.full((4, B, 2, D), 7.0), h], 2) for h in hidden]
    padded = loss(more, torch.nn.functional.pad(views, (2, 0)))
    order = torch.tensor([2, 0, 3, 1])
    shuffled = loss([h[:, order] for h in hidden], views[:, order])
    for other in (padded, shuffled):
        torch.testing.assert_close(other, wanted)


def test_a_sequence_alone_in_its_batch_has_no_contrast_and_no_nan() -> None:
    hidden = leaves(4, 1, L, D)
    found = ContrastiveLoss()(hidden, batch().views[:, :1])
    assert found["intra"] == found["cross"] == 0
    assert all(not g.any() for g in torch.autograd.grad(found["intra"] + found["cross"], hidden))


# mutual


@pytest.mark.parametrize("networks", [1, 3])
def test_one_network_and_equal_networks_have_nothing_to_tell(networks: int) -> None:
    (states,), (matrix,) = leaves(7, D, count=1), leaves(ITEMS, D, count=1)
    loss = MutualLoss(temperature=0.5)
    _, _, found = loss([states] * networks, [matrix] * networks, torch.arange(1, 8))
    torch.testing.assert_close(found, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("tau", [1.0, 0.3])
@pytest.mark.parametrize("networks", [1, 2, 3])
def test_joint_softmax_in_chunks_is_both_losses_and_their_gradients(
    tau: float, networks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.losses.joint_softmax._CPU_LOGITS", 1)  # 16 positions a chunk
    states, matrices = leaves(37, D, count=networks), leaves(ITEMS, D, count=networks, seed=1)
    column = torch.arange(37) % ITEMS
    total, ce, kd = joint_softmax(states, matrices, column, temperature=tau, weight=0.7)
    logits = [h @ m.mT for h, m in zip(states, matrices, strict=True)]
    naive_ce = (
        torch.stack(
            [emkd.cross_entropy(z[m], int(column[m])) for z in logits for m in range(37)]
        ).sum()
        / networks
    )
    naive_kd = emkd.mutual(logits, tau).sum()
    assert not ce.requires_grad and not kd.requires_grad
    torch.testing.assert_close(ce, naive_ce.detach())
    torch.testing.assert_close(kd, naive_kd.detach())
    same_gradients(total, naive_ce + 0.7 * naive_kd / networks, [*states, *matrices])


# attributes


def test_attribute_loss_is_the_cross_entropy_of_a_multi_hot() -> None:
    (logits,) = leaves(ITEMS, 4, count=1)
    rows = labels()[1 : ITEMS + 1]
    naive = emkd.attributes(logits, [{c - 1 for c in own} for own in LABELS[1:]])
    torch.testing.assert_close(attribute_loss(logits, rows), naive)
    same_gradients(attribute_loss(logits, rows).sum(), naive.sum(), [logits])


def test_attributes_count_where_an_item_has_some() -> None:
    loss = AttributeLoss(width=D, count=4, labels=labels(), members=N).double()
    hidden, items = leaves(B, L, D), torch.tensor(SEQUENCES)
    found = loss(hidden, items)
    places = [(b, i) for b, i in items.nonzero().tolist() if LABELS[items[b, i]]]
    naive = []
    for states, head in zip(hidden, loss.heads, strict=True):
        logits = torch.stack([head(states[b, i]) for b, i in places])
        own = [{c - 1 for c in LABELS[items[b, i]]} for b, i in places]
        naive.append(emkd.attributes(logits, own).mean())
    same_gradients(found, torch.stack(naive).sum(), hidden)
    more = [torch.cat([torch.full((B, 3, D), 5.0), h], 1) for h in hidden]
    padded = torch.nn.functional.pad(items, (3, 0))
    torch.testing.assert_close(loss(more, padded), found)


def test_a_vocabulary_numbers_the_labels_of_a_catalogue() -> None:
    def table(*own: tuple[str, ...]) -> ItemTable:
        n = len(own)
        ids = ("", *(f"i{k}" for k in range(n)))
        return ItemTable(ids, ids, (None,) * (n + 1), (None,) * (n + 1), ((), *own))

    found = AttributeVocabulary.of(table(("war", "drama"), (), ("drama", "drama"), ("comedy",)))
    assert found.names == ("comedy", "drama", "war")
    assert np.array_equal(found.labels, [[0, 0], [2, 3], [0, 0], [2, 0], [1, 0], [0, 0]])
    with pytest.raises(DataError, match=r"no item .* has an attribute .*data\.items\.attributes"):
        AttributeVocabulary.of(table((), ()))


# compression


@pytest.mark.parametrize("inference", ["logits", "probabilities"])
@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("positions", [9, 41])
def test_compression_is_the_kl_from_the_ensemble(
    inference: str, tau: float, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.losses.joint_softmax._CPU_LOGITS", 1)  # chunks of 16 positions
    monkeypatch.setattr("mmkd.losses.compression._STATES", 16)
    states, matrix = leaves(positions, D, count=1)[0], leaves(ITEMS, D, count=1, seed=3)[0]
    teachers, matrices = leaves(positions, 4, seed=4), leaves(ITEMS, 4, seed=5)
    logits = [h @ m.mT for h, m in zip(teachers, matrices, strict=True)]
    naive = emkd.compression(states @ matrix.mT, logits, tau, inference == "logits").sum()
    found = soft_target_kl(
        states,
        matrix,
        teachers,
        matrices,
        temperature=tau,
        inference=inference,  # type: ignore[arg-type]
    )
    same_gradients(found, naive, [states, matrix])
    loss = CompressionLoss(temperature=tau)
    whole = loss(states, matrix, teachers, matrices, inference)
    torch.testing.assert_close(whole["compression"], tau**2 * naive / positions)
    every = 1 if positions == 9 else 3  # 14 of 41 positions, both sides'
    apart = emkd.states_apart(states[::every], [h[::every] for h in teachers])
    torch.testing.assert_close(whole["compression.states"], apart)


def test_a_network_that_is_the_ensemble_loses_nothing() -> None:
    (states,), (matrix,) = leaves(9, D, count=1), leaves(ITEMS, D, count=1, seed=3)
    found = CompressionLoss()(states, matrix, [states] * 2, [matrix] * 2, "logits")
    for value in found.values():
        torch.testing.assert_close(value, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("name", ["weight", "states_weight"])
def test_a_half_of_weight_0_is_not_computed(name: str) -> None:
    (states,), (matrix,) = leaves(9, D, count=1), leaves(ITEMS, D, count=1, seed=3)
    found = CompressionLoss(**{name: 0})(states, matrix, [states], [matrix], "logits")
    assert len(found) == 1 and found.keys() == CompressionLoss(**{name: 0}).weights.keys()


@pytest.mark.parametrize("inference", ["logits", "probabilities", "standardized"])
@pytest.mark.parametrize("weighed", [False, True])
def test_an_unlike_ensemble_teaches_the_naive_distribution(inference: str, weighed: bool) -> None:
    """Position by position in float64; what a member does not know it says nothing of."""
    generator = torch.Generator().manual_seed(8)
    logits = [torch.randn(4, 6, generator=generator, dtype=torch.float64) * 3**n for n in range(3)]
    weights = torch.tensor([1.0, 3.0, 0.5]) if weighed else None
    known = [None, torch.tensor([True, True, False, True, True, True]), None]
    masks = known if inference == "standardized" else None
    found = ensemble_log_softmax(
        logits,
        temperature=2.0,
        inference=inference,  # type: ignore[arg-type]
        weights=weights,
        known=masks,
    )
    shares = [1 / 3] * 3 if weights is None else (weights / weights.sum()).tolist()
    for m in range(4):
        rows = [z[m].tolist() for z in logits]
        if inference == "probabilities":
            each = [torch.tensor(r).div(2).double().softmax(0) for r in rows]
            wanted = sum(s * p for s, p in zip(shares, each, strict=True))
        else:
            total, spread = [0.0] * 6, 0.0
            for row, mask, share in zip(rows, masks or [None] * 3, shares, strict=True):
                heard = [v for i, v in enumerate(row) if mask is None or bool(mask[i])]
                mean = sum(heard) / len(heard)
                deviation = (sum((v - mean) ** 2 for v in heard) / len(heard)) ** 0.5
                spread += share * deviation
                for i, v in enumerate(row):
                    if inference == "logits":
                        total[i] += share * v
                    elif mask is None or bool(mask[i]):
                        total[i] += share * (v - mean) / deviation
            factor = spread if inference == "standardized" else 1.0
            wanted = torch.tensor([t * factor / 2 for t in total], dtype=torch.float64).softmax(0)
        torch.testing.assert_close(found[m].exp(), wanted, rtol=1e-6, atol=1e-7)


def test_one_standardized_member_teaches_its_own_softmax() -> None:
    (z,) = leaves(9, ITEMS, count=1)
    found = ensemble_log_softmax([z * 4], temperature=0.5, inference="standardized")
    torch.testing.assert_close(found, (z * 8).log_softmax(-1))


def test_networks_with_targets_of_their_own_share_the_logits_still() -> None:
    states, matrices = leaves(7, D), leaves(ITEMS, D, seed=1)
    column = torch.randint(ITEMS, (N, 7), generator=seeded_generator(6))
    total, cross_entropy, mutual = joint_softmax(
        states, matrices, column, temperature=0.5, weight=0.4
    )
    logits = [h @ m.mT for h, m in zip(states, matrices, strict=True)]
    each = [
        emkd.cross_entropy(z[m], int(column[n, m])) for n, z in enumerate(logits) for m in range(7)
    ]
    naive, pairs = torch.stack(each).sum() / N, emkd.mutual(logits, 0.5).sum()
    torch.testing.assert_close(cross_entropy, naive.detach())
    torch.testing.assert_close(mutual, pairs.detach())
    same_gradients(total, naive + 0.4 * pairs / N, [*states, *matrices])


# the whole


def test_the_whole_is_emkds_total_by_networks_and_views() -> None:
    seen, shape = batch(), (4, B, L)
    hidden, matrices = leaves(4 * B, L, D), leaves(ITEMS, D, seed=1)
    loss = Objective(
        Softmax(),
        attributes=AttributeLoss(width=D, count=4, labels=labels(), members=N, weight=0.3),
        contrastive=ContrastiveLoss(intra_weight=0.2, cross_weight=0.1, temperature=0.3),
        mutual=MutualLoss(weight=0.4, temperature=0.5),
    ).double()
    assert loss.attributes is not None and loss.clean
    outputs = [
        StudentOutput(hidden=h, modality={}, item_matrix=m)
        for h, m in zip(hidden, matrices, strict=True)
    ]
    found = loss(outputs, seen, {})
    asked = seen.targets.flatten(0, 1)
    logits = [h[asked > 0] @ m.mT for h, m in zip(hidden, matrices, strict=True)]
    target = asked[asked > 0].tolist()
    ce = [emkd.cross_entropy(z[m], t - 1) for z in logits for m, t in enumerate(target)]
    views = [h.view(*shape, D) for h in hidden]
    each = [[emkd.contrast(views, seen.views, x, y, 0.3) for y in range(N)] for x in range(N)]
    intra = torch.stack([each[n][n] for n in range(N)]).sum()
    total = torch.stack(ce).mean() + 0.4 * emkd.mutual(logits, 0.5).mean() / N
    total = total + 0.3 * loss.attributes([v[0] for v in views], seen.items) / (N * 3)
    total = total + 0.2 * intra / (N * 3)
    total = total + 0.1 * (torch.stack([e for row in each for e in row]).sum() - intra) / (N * 3)
    same_gradients(found.total, total, [*hidden, *matrices])


def test_what_is_out_of_range_is_refused() -> None:
    for build in (
        lambda: ContrastiveLoss(intra_weight=-1),
        lambda: MutualLoss(weight=-1),
        lambda: CompressionLoss(states_weight=-1),
        lambda: AttributeLoss(width=1, count=1, labels=labels(), members=1, weight=-1),
    ):
        with pytest.raises(ValueError, match=r"weight: got -1, wanted 0 or more"):
            build()
    with pytest.raises(ValueError, match=r"temperature: got 0, wanted a number above 0; such as"):
        MutualLoss(temperature=0)
