"""Soft targets: what is drawn, in which share, and that the closed form is its expectation."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmkd import (
    CorrelationDistiller,
    MaskedItem,
    NeighbourLoss,
    NextItem,
    Objective,
    SequenceSplit,
    Softmax,
    SoftTargets,
    TeacherNeighbours,
)
from mmkd.data.batches import BatchStream
from mmkd.data.soft_targets import _followers, soft_targets
from mmkd.data.splits import Cases
from mmkd.data.tasks import Batch
from mmkd.student import StudentOutput

# 1 is like 2 and 3, 2 is like 4 (which never trains), 3 and 4 have no neighbour
ROWS = torch.tensor([[0, 0], [2, 3], [4, 0], [0, 0], [0, 0]])
SHARES = torch.tensor([[0, 0], [0.75, 0.25], [1, 0], [0, 0], [0, 0]])
NEAR = TeacherNeighbours(ROWS, SHARES, {})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_targets_are_replaced_in_their_share_and_nothing_else_is() -> None:
    sequences = torch.tensor([[3, 1, 2]]).repeat(40_000, 1)
    batch = NextItem().batch(sequences, item_count=4)
    soft = SoftTargets(neighbours=NEAR, share=0.4)(batch, epoch=0, generator=generator())
    assert torch.equal(soft.views, batch.views)
    assert torch.equal(soft.items, batch.items)
    first, second = (soft.targets[0, :, at] for at in (0, 1))
    got = torch.bincount(first, minlength=5) / 40_000
    assert torch.allclose(got, torch.tensor([0, 0.6, 0.3, 0.1, 0]), atol=0.01)
    got = torch.bincount(second, minlength=5) / 40_000
    assert torch.allclose(got, torch.tensor([0, 0, 0.6, 0, 0.4]), atol=0.01)
    assert not soft.targets[batch.targets == 0].any()


def test_masked_positions_keep_their_mask_and_padding_stays() -> None:
    sequences = torch.tensor([[0, 1, 2, 3]]).repeat(64, 1)
    batch = MaskedItem(mask_ratio=0.5, views=2).batch(
        sequences, item_count=4, generator=generator()
    )
    soft = SoftTargets(neighbours=NEAR, share=1.0, input_share=1.0)(
        batch, epoch=0, generator=generator()
    )
    assert torch.equal(soft.targets > 0, batch.targets > 0)
    assert torch.equal(soft.views == 5, batch.views == 5)
    assert torch.equal(soft.views == 0, batch.views == 0)
    kept = (batch.views > 0) & (batch.views < 5)
    assert set(soft.views[kept & (batch.views == 2)].tolist()) == {4}
    assert not soft.clean


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [0.4] * 5),
        ("rising", [0, 0.1, 0.2, 0.3, 0.4]),
        ("falling", [0.4, 0.3, 0.2, 0.1, 0]),
    ],
)
def test_schedules(schedule: str, wanted: list[float]) -> None:
    soft = SoftTargets(neighbours=NEAR, share=0.4, schedule=schedule, epochs=5)  # type: ignore[arg-type]
    assert [soft.share_at(epoch) for epoch in range(5)] == pytest.approx(wanted)


def test_the_drawn_loss_is_on_average_the_closed_form() -> None:
    """And both are the cross-entropy against q, written out."""
    torch.manual_seed(1)
    hidden, matrix = torch.randn(1, 2, 6), torch.randn(4, 6)
    output = StudentOutput(hidden=hidden, item_matrix=matrix, modality={})
    batch = NextItem().batch(torch.tensor([[3, 1, 2]]), item_count=4)
    share = 0.4

    expected = SoftTargets(neighbours=NEAR, share=share, form="expected")
    softened = expected(batch, epoch=0, generator=generator())
    objective = Objective(Softmax(), neighbours=NeighbourLoss(NEAR))
    closed = objective([output, output], softened, {})
    assert set(closed.parts) == {"recommendation", "neighbours"}

    log_p = F.log_softmax(hidden[0].double() @ matrix.double().mT, dim=-1)  # [2, 4]
    q = torch.tensor([[0.6, 0.3, 0.1, 0], [0, 0.6, 0, 0.4]], dtype=torch.float64)
    wanted = -(q * log_p).sum() / 2
    assert closed.total.double() == pytest.approx(float(wanted), abs=1e-5)

    drawn = SoftTargets(neighbours=NEAR, share=share)
    values = [
        float(
            Objective(Softmax())(
                [output], drawn(batch, epoch=0, generator=generator(seed)), {}
            ).total
        )
        for seed in range(3000)
    ]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - float(wanted)) < 4 * error


def test_an_item_that_neighbours_give_positives_is_a_candidate() -> None:
    counts = SoftTargets(neighbours=NEAR, share=0.5).counts(torch.tensor([0, 4, 2, 1, 0]))
    assert counts.tolist() == pytest.approx([0, 2, 1 + 1.5, 0.5 + 0.5 + 0.5, 1])
    loss = Softmax(candidates="trained", train_counts=counts)
    rows, _ = loss.among(torch.eye(4), torch.tensor([4]))
    assert len(rows) == 4


@pytest.mark.parametrize("untrained", [True, False])
def test_items_that_never_train_share_in_targets_or_keep_out_of_them(untrained: bool) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    table = SimpleNamespace(vectors=vectors, present=np.arange(5) > 0)
    distiller = CorrelationDistiller(dim=4, facets=2, codes=2).fit({"text": table})
    soft = soft_targets(distiller, _split(), k=3, untrained=untrained)
    # 4 is only tested on; it has neighbours itself, of whose targets it may get a share
    assert soft.neighbours.shares[4].sum() == pytest.approx(1.0)
    assert (soft.neighbours.rows[1:4] == 4).any() == untrained
    loss = Softmax(
        candidates="trained", train_counts=soft.counts(torch.as_tensor(_split().train_counts()))
    )
    assert len(loss.among(torch.eye(4), torch.tensor([1]))[0]) == 3 + untrained


@pytest.mark.parametrize("form", ["drawn", "expected"])
@pytest.mark.parametrize("members", [None, [0.0, 1.0], [0.5, 1.0]])
@pytest.mark.parametrize("schedule", ["constant", "rising", "falling"])
def test_every_target_of_any_epoch_and_network_is_a_candidate(
    form: str, members: list[float] | None, schedule: str
) -> None:
    options: dict[str, Any] = {"form": form, "members": members, "schedule": schedule}
    soft = SoftTargets(neighbours=NEAR, share=1.0, epochs=3, **options)
    hard = torch.tensor([0, 300, 200, 100, 0])
    counts = soft.counts(hard)
    loss = Softmax(candidates="trained", train_counts=counts)
    targets = torch.arange(5).repeat_interleave(hard)[None, None]
    batch = Batch(items=targets[0], views=targets, targets=targets)
    seen = torch.zeros(5)
    for epoch in range(3):
        for seed in range(20):
            found = soft(batch, epoch=epoch, generator=generator(seed))
            own = found.targets if found.member_targets is None else found.member_targets
            vectors, wanted = loss.among(torch.eye(4), own.flatten())
            assert torch.equal(vectors[wanted - 1], torch.eye(4)[own.flatten() - 1])
            seen += torch.bincount(own.flatten(), minlength=5) * (600 / own.numel() / 60)
    if form == "drawn":
        assert counts[1:].tolist() == pytest.approx(seen[1:].tolist(), abs=8)
    else:  # what gets a share of others' targets has positives, too
        assert counts[4] > 0


def test_batches_are_a_function_of_seed_epoch_and_step_on_any_process() -> None:
    split = _split()
    options: dict[str, Any] = {"max_length": 3, "batch_size": 4, "seed": 5}
    soften = SoftTargets(neighbours=NEAR, share=0.5)
    one = BatchStream(split, NextItem(), soften=soften, **options)
    (whole,) = one.epoch(2)
    (again,) = one.epoch(2)
    assert torch.equal(whole.targets, again.targets)
    for rank in (0, 1):
        part = BatchStream(split, NextItem(), soften=soften, rank=rank, world_size=2, **options)
        assert torch.equal(next(part.epoch(2)).targets, whole.targets[:, rank::2])
    plain = BatchStream(split, NextItem(), **options)
    assert torch.equal(next(plain.epoch(2)).items, whole.items)
    assert not torch.equal(next(plain.epoch(2)).targets, whole.targets)


def test_what_is_taken_together_is_of_one_user_and_of_training_alone() -> None:
    first, second = _followers(_split())
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(1, 2), (2, 3), (3, 1)]


def _split() -> SequenceSplit:
    none = Cases(np.zeros(0, np.int64), np.zeros(0, np.int64))
    return SequenceSplit(
        items=np.array([1, 2, 3, 4, 3, 1, 2]),
        offsets=np.array([0, 4, 7]),
        train_end=np.array([3, 2]),
        valid=none,
        test=none,
        item_count=4,
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"share": 1.2}, "share: got 1.2"),
        ({"input_share": -1}, "input_share: got -1"),
        ({"form": "guessed"}, "form: got .guessed"),
        ({"schedule": "sine"}, "schedule: got .sine"),
        ({"epochs": 0}, "epochs: got 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SoftTargets(neighbours=NEAR, **options)  # type: ignore[arg-type]


def test_members_of_a_smaller_share_keep_more_of_their_targets_by_the_same_draw() -> None:
    sequences = torch.tensor([[3, 1, 2]]).repeat(20_000, 1)
    batch = NextItem().batch(sequences, item_count=4)
    full = SoftTargets(neighbours=NEAR, share=0.4)(batch, epoch=0, generator=generator())
    soft = SoftTargets(neighbours=NEAR, share=0.4, members=(1.0, 0.5, 0.0))
    found = soft(batch, epoch=0, generator=generator())
    assert found.member_targets is not None and torch.equal(found.targets, batch.targets)
    first, half, none = found.member_targets
    assert torch.equal(first, full.targets) and torch.equal(none, batch.targets)
    changed = half != batch.targets
    assert torch.equal(half[changed], first[changed])  # nested
    assert float(changed[batch.targets > 0].float().mean()) == pytest.approx(0.2, abs=0.01)
    rows = found.rows(1, 3).member_targets
    assert rows is not None and torch.equal(rows[1], half[:, 1::3])
    expected = SoftTargets(neighbours=NEAR, share=0.4, members=(1.0, 0.0), form="expected")
    assert expected(batch, epoch=0, generator=generator()).member_shares == (1.0, 0.0)
    with pytest.raises(ValueError, match=r"members: got 2, wanted"):
        SoftTargets(neighbours=NEAR, members=(2,))
