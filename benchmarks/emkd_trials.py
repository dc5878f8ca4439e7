"""The two sides of `benchmarks/emkd.py`: a step and an evaluation batch, ours and a plain EMKD's.

Made-up data at the paper's sizes: sequences as long as Amazon Beauty's windows of 15, or full
windows of 40 as on MovieLens-1M.
"""

import contextlib
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.child import Trial
from benchmarks.reference.emkd import ReferenceNetwork, reference_loss, reference_ranks
from benchmarks.workload import sequences
from mmkd.data.batches import seeded_generator
from mmkd.data.tasks import Batch, MaskedItem
from mmkd.evaluation.ranking import rank_and_ties
from mmkd.losses.attributes import AttributeLoss
from mmkd.losses.contrastive import ContrastiveLoss
from mmkd.losses.mutual import MutualLoss
from mmkd.losses.objective import Objective
from mmkd.losses.recommendation import Softmax
from mmkd.student import FusedItemEmbedding, Recommender, build_backbone, build_ensemble
from mmkd.student.ensemble import Ensemble
from mmkd.training.step import TrainStep

SIZES: dict[str, dict[str, Any]] = {
    "beauty": {"items": 12_101, "length": 15, "attributes": 637, "heads": 2, "dropout": 0.3},
    "ml-1m": {"items": 3_706, "length": 40, "attributes": 18, "heads": 4, "dropout": 0.2},
}
TEMPERATURE = {"beauty": 0.3, "ml-1m": 1.0}
LABELS_AN_ITEM = 4


def reference_step(*, data: str, batch_size: int, width: int, members: int, views: int) -> Trial:
    """A training step of the plain EMKD: forward, backward, Adam."""
    size = SIZES[data]
    networks = _reference(data, width, members)
    optimizer = torch.optim.Adam([p for n in networks for p in n.parameters()], lr=1e-3)
    batches = _batches(data, batch_size, views, pad=True)
    multi_hot = torch.zeros(size["items"] + 1, size["attributes"] + 1)
    labels = _labels(data)[: size["items"] + 1]
    multi_hot.scatter_(1, labels, 1.0)

    def step() -> float:
        batch = next(batches)
        optimizer.zero_grad()
        loss = reference_loss(
            networks,
            batch.items,
            list(batch.views[1:]),
            list(batch.targets[1:]),
            multi_hot,
            contrast_weight=0.01,
            mutual_weight=0.001,
            temperature=TEMPERATURE[data],
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return Trial(step, {"parameters": sum(p.numel() for n in networks for p in n.parameters())})


def our_step(
    *,
    data: str,
    batch_size: int,
    width: int,
    members: int,
    views: int,
    bucketed: bool,
    bf16: bool,
    recomputed: bool = False,
) -> Trial:
    """A training step of ours: cut and mask the batch, forward, backward, AdamW."""
    size = SIZES[data]
    temperature = TEMPERATURE[data]
    objective = Objective(
        Softmax(),
        attributes=AttributeLoss(
            width=width, count=size["attributes"], labels=_labels(data), members=members
        ),
        contrastive=ContrastiveLoss(temperature=temperature),
        mutual=MutualLoss(temperature=temperature),
    )
    step = TrainStep(_ensemble(data, width, members), objective)
    if recomputed:
        step.student.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-3, weight_decay=0.0)
    batches = _batches(data, batch_size, views, pad=False, bucketed=bucketed)

    def run() -> float:
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss: Tensor = step(batch, {}).total
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return Trial(run, {"parameters": sum(p.numel() for p in step.parameters())})


def reference_evaluation(*, data: str, batch_size: int, width: int, members: int) -> Trial:
    """One batch of users, against a matrix of each one's candidates that is made beforehand."""
    size = SIZES[data]
    networks = [network.eval() for network in _reference(data, width, members)]
    histories = _histories(data, batch_size)
    generator = np.random.default_rng(0)
    candidates = torch.from_numpy(
        np.stack([generator.permutation(size["items"]) + 1 for _ in range(batch_size)])
    )
    return Trial(lambda: float(reference_ranks(networks, histories, candidates).float().mean()))


def our_evaluation(*, data: str, batch_size: int, width: int, members: int) -> Trial:
    """The same batch: states of the last position alone are scored, ranks are counts."""
    size = SIZES[data]
    score = _ensemble(data, width, members).next_scores
    histories = _histories(data, batch_size)[:, :-1]
    target = torch.arange(batch_size) % size["items"] + 1
    row = torch.arange(batch_size)[:, None].expand_as(histories).flatten()

    def run() -> float:
        ranks, _ = rank_and_ties(
            score(histories), target, exclude_row=row, exclude_item=histories.flatten()
        )
        return float(ranks.mean())

    return Trial(run)


def _reference(data: str, width: int, members: int) -> list[ReferenceNetwork]:
    return [ReferenceNetwork(width=width, layers=2, **SIZES[data]) for _ in range(members)]


def _ensemble(data: str, width: int, members: int) -> Ensemble:
    size = SIZES[data]

    def build() -> Recommender:
        return Recommender(
            embedding=FusedItemEmbedding(
                item_count=size["items"], width=width, dropout=size["dropout"]
            ),
            backbone=build_backbone(
                "bert4rec",
                width=width,
                max_length=size["length"],
                heads=size["heads"],
                dropout=size["dropout"],
            ),
            score_with="id",
        )

    return build_ensemble(build, seed=0, members=members)


def _labels(data: str) -> Tensor:
    size = SIZES[data]
    generator = torch.Generator().manual_seed(0)
    shape = (size["items"] + 2, LABELS_AN_ITEM)
    labels = torch.randint(1, size["attributes"] + 1, shape, generator=generator)
    labels[[0, -1]] = 0
    return labels


def _windows(data: str, count: int, seed: int) -> list[list[int]]:
    size = SIZES[data]
    if data == "beauty":
        return [events[-size["length"] :] for events in sequences(count=count, seed=seed)]
    generator = np.random.default_rng(seed)
    return [
        (generator.choice(size["items"], size["length"], replace=False) + 1).tolist()
        for _ in range(count)
    ]


def _batches(
    data: str, batch_size: int, views: int, *, pad: bool, bucketed: bool = False, batches: int = 16
) -> "itertools.cycle[Batch] | Any":
    """Batches of windows, over and over; `bucketed` sorts those of 16 batches by length."""
    windows = _windows(data, batch_size * batches, seed=0)
    if bucketed:
        windows.sort(key=len)
    longest = SIZES[data]["length"]
    for n in itertools.count():
        chosen = windows[(n % batches) * batch_size : (n % batches + 1) * batch_size]
        width = longest if pad else max(map(len, chosen))
        rows = torch.zeros(batch_size, width, dtype=torch.int64)
        for row, events in enumerate(chosen):
            rows[row, width - len(events) :] = torch.tensor(events)
        generator = seeded_generator(0, n)
        task = MaskedItem(views=views)
        batch = task.batch(rows, item_count=SIZES[data]["items"], generator=generator)
        yield batch.with_clean_view()


def _histories(data: str, batch_size: int) -> Tensor:
    batch: Batch = next(_batches(data, batch_size, 1, pad=True))
    mask = torch.full((batch_size, 1), SIZES[data]["items"] + 1)
    return torch.cat([batch.items[:, 1:], mask], dim=1)
