"""The benchmark's plain EMKD gives our loss and gradients, where formula and public code agree."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference.emkd import ReferenceNetwork, reference_loss, reference_ranks
from mmkd import (
    AttributeLoss,
    ContrastiveLoss,
    FusedItemEmbedding,
    MaskedItem,
    MutualLoss,
    Objective,
    Recommender,
    Softmax,
)
from mmkd.data.batches import seeded_generator
from mmkd.data.tasks import Batch
from mmkd.student import build_backbone, build_ensemble
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
        return F.pad(self.head(states), (1, 0), value=-1e9)


def batch() -> Batch:
    rows = torch.randint(1, ITEMS + 1, (7, LENGTH), generator=torch.Generator().manual_seed(1))
    task = MaskedItem(mask_ratio=1.0, views=VIEWS)
    made = task.batch(rows, item_count=ITEMS, generator=seeded_generator(0))
    return made.with_clean_view()


def test_equal_losses_and_gradients_where_formula_and_public_code_agree() -> None:
    """On other inputs they differ, for each of these reasons.

    The public code takes a mean over each view's positions, then over views: here every position of
    every view is asked. It predicts attributes where the last view is masked, whether or not an
    item has some, and with one column more, which is always 0: here all places are masked, all
    items have labels, and the mean over columns is mended by a weight. It lets states at padding
    count: here there is no padding. It leaves exp(0), for a sequence itself, among the negatives:
    here all states point much the same way, and at a low temperature the others drown it.
    """
    tau = 0.02

    def build() -> Recommender:
        network = Recommender(
            embedding=FusedItemEmbedding(item_count=ITEMS, width=WIDTH, dropout=0, id_std=0.3),
            backbone=build_backbone("bert4rec", width=WIDTH, max_length=LENGTH, dropout=0),
            score_with="id",
        )
        for module in network.backbone.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.constant_(module.bias, 3.0)
        return network

    labels = torch.randint(1, ATTRIBUTES + 1, (ITEMS + 2, 1))
    labels[[0, -1]] = 0
    share = ATTRIBUTES / (ATTRIBUTES + 1)
    objective = Objective(
        Softmax(),
        attributes=AttributeLoss(
            width=WIDTH, count=ATTRIBUTES, labels=labels, members=N, weight=share
        ),
        contrastive=ContrastiveLoss(temperature=tau),
        mutual=MutualLoss(weight=0.1, temperature=tau),
    )
    step = TrainStep(build_ensemble(build, seed=0, members=N), objective).double()
    assert objective.attributes is not None
    networks = [
        Adapted(member, head)
        for member, head in zip(step.student.networks, objective.attributes.heads, strict=True)
    ]
    multi_hot = torch.zeros(ITEMS + 1, ATTRIBUTES + 1, dtype=torch.float64)
    multi_hot.scatter_(1, labels[: ITEMS + 1], 1.0)
    multi_hot[:, 0] = 0
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
