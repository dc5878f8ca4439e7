"""A plain EMKD after the public code's scheme: a loop over views, networks and pairs of networks.

Every view of every network gets logits at all positions over the whole catalogue; states are
flattened with their padding; dropout falls on attention weights too. Written anew for timing and
for comparing values (arXiv:2304.14668).
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainNetwork(Protocol):
    """What the loss reads of a network."""

    def states(self, items: Tensor) -> Tensor:
        """[B, L] to [B, L, D]."""

    def item_logits(self, states: Tensor) -> Tensor:
        """[B, L, D] to [B, L, I+1]; column 0 is padding's."""

    def attribute_logits(self, states: Tensor) -> Tensor:
        """[M, D] to [M, C+1]; column 0 is padding's."""


class ReferenceNetwork(nn.Module):
    """A two-layer bidirectional transformer with an untied item classifier."""

    def __init__(
        self,
        *,
        items: int,
        attributes: int,
        width: int,
        length: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(items + 2, width, padding_idx=0)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.item_head = nn.Linear(width, items + 1)
        self.attribute_head = nn.Linear(width, attributes + 1)

    def states(self, items: Tensor) -> Tensor:
        """States of every position."""
        seen = (items > 0)[:, None, None].expand(-1, 1, items.shape[1], -1)
        x = self.tokens(items) + self.positions.weight.expand(len(items), -1, -1)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, seen)
        states: Tensor = x
        return states

    def item_logits(self, states: Tensor) -> Tensor:
        """Logits of every position over the catalogue."""
        logits: Tensor = self.item_head(states)
        return logits

    def attribute_logits(self, states: Tensor) -> Tensor:
        """Logits over the labels."""
        logits: Tensor = self.attribute_head(states)
        return logits


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        scaled: Tensor = self.scale * (x - mean) / (deviation + 1e-6) + self.shift
        return scaled


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first_norm, self.second_norm = _Norm(width), _Norm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.dropout(self._attend(self.first_norm(x), seen))
        hidden = self.wide(self.second_norm(x))
        cube = hidden + 0.044715 * torch.pow(hidden, 3)
        hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * cube))
        x = x + self.dropout(self.narrow(self.dropout(hidden)))
        out: Tensor = self.dropout(x)
        return out

    def _attend(self, x: Tensor, seen: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            layer(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = self.dropout(scores.masked_fill(~seen, -1e9).softmax(-1))
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, width)
        out: Tensor = self.out(mixed)
        return out


def reference_loss(
    networks: Sequence[PlainNetwork],
    items: Tensor,
    views: Sequence[Tensor],
    targets: Sequence[Tensor],
    multi_hot: Tensor,
    *,
    contrast_weight: float,
    mutual_weight: float,
    temperature: float,
) -> Tensor:
    """The whole loss of a batch.

    Args:
        networks: N.
        items: [B, L] the unmasked sequences.
        views: V masked variants of them.
        targets: What each asks for, 0 nothing.
        multi_hot: [I+1, C+1] labels of every item.
        contrast_weight: lambda.
        mutual_weight: mu.
        temperature: tau.
    """
    loss = torch.zeros((), device=items.device)
    states_of: list[list[Tensor]] = []
    asked: tuple[Tensor, ...] = ()
    for view, target in zip(views, targets, strict=True):
        states = [network.states(view) for network in networks]
        logits = [n.item_logits(h) for n, h in zip(networks, states, strict=True)]
        states_of.append(states)
        for each in logits:
            flat = each.view(-1, each.shape[-1])
            loss = loss + F.cross_entropy(flat, target.flatten(), ignore_index=0)
        asked = torch.where(target > 0)
        for a in range(len(networks)):
            for b in range(a):
                pair = _symmetric_kl(logits[a][asked], logits[b][asked], temperature)
                loss = loss + mutual_weight * pair
    anchors = [network.states(items) for network in networks]
    contrast = torch.zeros((), device=items.device)
    for n, network in enumerate(networks):
        found = network.attribute_logits(anchors[n][asked])
        loss = loss + F.binary_cross_entropy_with_logits(found, multi_hot[items[asked]])
        for other in range(len(networks)):
            positives = [states[other] for states in states_of]
            contrast = contrast + _contrast(anchors[n], anchors[other], positives, temperature)
    return loss + contrast_weight * contrast


def _symmetric_kl(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    one = F.kl_div(
        (a / temperature).log_softmax(-1),
        (b.detach() / temperature).softmax(-1),
        reduction="batchmean",
    )
    two = F.kl_div(
        (b / temperature).log_softmax(-1),
        (a.detach() / temperature).softmax(-1),
        reduction="batchmean",
    )
    return (one + two) / 2


def _contrast(
    anchor: Tensor, others: Tensor, positives: Sequence[Tensor], temperature: float
) -> Tensor:
    batch = len(anchor)
    anchor, others = anchor.reshape(batch, -1), others.reshape(batch, -1)
    norms = anchor.pow(2).sum(-1).sqrt()[:, None] @ others.pow(2).sum(-1).sqrt()[None]
    far = anchor @ others.T / norms / temperature
    far = far * (1 - torch.eye(batch, device=far.device))  # zeroed: exp(0) stays in the sum
    near = torch.stack(
        [F.cosine_similarity(anchor, p.reshape(batch, -1)) / temperature for p in positives], dim=1
    )
    return (far.logsumexp(-1) - near.logsumexp(-1)).sum() / batch


@torch.no_grad()
def reference_ranks(
    networks: Sequence[PlainNetwork], histories: Tensor, candidates: Tensor
) -> Tensor:
    """Rank of each user's first candidate: logits at all positions, gather, sort everything.

    Args:
        networks: N.
        histories: [B, L] with the mask token last.
        candidates: [B, I] int64, the target first.
    """
    scores = torch.zeros(())
    for network in networks:
        scores = scores + network.item_logits(network.states(histories))[:, -1]
    order = scores.gather(1, candidates).argsort(dim=1, descending=True)
    return (order == 0).int().argmax(1) + 1
