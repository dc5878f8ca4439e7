"""The benchmark's plain EMKD gives the loss and the gradients of ours in its exact mode."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference.emkd import ReferenceNetwork, reference_loss, reference_ranks
from mmkd.data.batches import seeded_generator
from mmkd.data.tasks import Batch, cloze_batch
from mmkd.losses.attributes import AttributeLoss
from mmkd.losses.contrastive import ContrastiveLoss
from mmkd.losses.mutual import MutualLoss
from mmkd.losses.objective import Objective
from mmkd.losses.recommendation import RecommendationLoss, SoftmaxLoss
from mmkd.student import FusedItemEmbedding, Recommender, build_backbone, build_ensemble
from mmkd.training.step import TrainStep

ITEMS, ATTRIBUTES, WIDTH, LENGTH, N, VIEWS = 20, 5, 8, 6, 3, 4


class Adapted:
    """One of our networks as the plain loss reads it."""

    def __init__(self, network: Recommender, head: nn.Module) -> None:
        self.network, self.head = network, head

    def states(self, items: Tensor) -> Tensor:
        hidden: Tensor = self.network(items).hidden
        return hidden

    def item_logits(self, states: Tensor) -> Tensor:
        return F.pad(states @ self.network.item_matrix().mT, (1, 0), value=-1e9)

    def attribute_logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.head(states)
        return logits


def batch() -> Batch:
    rows = torch.randint(1, ITEMS + 1, (7, LENGTH), generator=torch.Generator().manual_seed(1))
    for row in range(7):
        rows[row, : row % LENGTH] = 0
    return cloze_batch(
        rows, item_count=ITEMS, generator=seeded_generator(0), views=VIEWS, clean=True
    )


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_equal_losses_and_gradients_on_an_equal_batch(tau: float) -> None:
    def build() -> Recommender:
        return Recommender(
            embedding=FusedItemEmbedding(item_count=ITEMS, width=WIDTH, dropout=0, id_std=0.3),
            backbone=build_backbone("bert4rec", width=WIDTH, max_length=LENGTH, dropout=0),
            score_with="id",
        )

    labels = torch.randint(0, ATTRIBUTES + 1, (ITEMS + 2, 1))
    labels[[0, -1]] = 0
    objective = Objective(
        RecommendationLoss(SoftmaxLoss()),
        attributes=AttributeLoss(
            width=WIDTH, count=ATTRIBUTES, labels=labels, members=N, exact_reference=True
        ),
        contrastive=ContrastiveLoss(temperature=tau, exact_reference=True),
        mutual=MutualLoss(weight=0.1, temperature=tau),
        views=VIEWS,
        exact_reference=True,
    )
    step = TrainStep(build_ensemble(build, seed=0, members=N), objective).double()
    assert objective.attributes is not None
    networks = [
        Adapted(member, head)
        for member, head in zip(step.student.networks, objective.attributes.heads, strict=True)
    ]
    multi_hot = torch.zeros(ITEMS + 1, ATTRIBUTES + 1, dtype=torch.float64)
    multi_hot.scatter_(1, labels[: ITEMS + 1], 1.0)
    multi_hot[1:, 0] = 0
    seen = batch()
    plain = reference_loss(
        networks,
        seen.items,
        list(seen.views[1:]),
        list(seen.targets[1:]),
        multi_hot,
        contrast_weight=0.01,
        mutual_weight=0.1,
        temperature=tau,
    )
    ours = step(seen, {}).total * N * VIEWS
    torch.testing.assert_close(ours, plain)
    parameters = list(step.parameters())
    wanted = torch.autograd.grad(plain, parameters)
    for a, b in zip(torch.autograd.grad(ours, parameters), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_the_plain_ranks_are_those_of_the_added_logits() -> None:
    networks = [
        ReferenceNetwork(
            items=ITEMS,
            attributes=1,
            width=WIDTH,
            length=LENGTH,
            layers=1,
            heads=2,
            dropout=0.1,
        ).eval()
        for _ in range(2)
    ]
    items = batch().items
    candidates = torch.stack([torch.randperm(ITEMS) + 1 for _ in items])
    ranks = reference_ranks(networks, items, candidates)
    for row, rank in enumerate(ranks.tolist()):
        one = items[row : row + 1]
        scores = sum(n.item_logits(n.states(one))[0, -1] for n in networks)
        assert isinstance(scores, Tensor)
        assert rank == 1 + int((scores[1:] > scores[candidates[row, 0]]).sum())
