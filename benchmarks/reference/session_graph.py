"""Padded session graphs, one a sample: sequences to tensors of [B, L] and [B, L, L].

The input of KDSR's base model (arXiv:2401.07257, section 3; relational graph attention over the
items of one session). Every sample is padded to the full length.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SELF, OUTGOING, INCOMING, BOTH = 1, 2, 3, 4
EDGE_TYPES = 4


@dataclass(frozen=True)
class GraphBatch:
    """One batch of samples; a sample is a prefix and the item that came after it."""

    nodes: Tensor  # [B, L] int64, distinct items of the session, 0 = padding
    node_mask: Tensor  # [B, L] bool
    edges: Tensor  # [B, L, L] int64, 0 = no edge
    position: Tensor  # [B, L] int64, where in `nodes` each event's item stands
    events: Tensor  # [B] int64, events in the prefix
    target: Tensor  # [B] int64, the next item's row


def prefixes(sequence: Sequence[int]) -> list[tuple[list[int], int]]:
    """Each proper prefix with the item that follows: n - 1 samples from n events."""
    return [(list(sequence[:n]), sequence[n]) for n in range(1, len(sequence))]


def graph_batch(samples: Sequence[tuple[Sequence[int], int]], *, length: int) -> GraphBatch:
    """Build the graphs of (prefix, target) samples, each padded to `length` nodes."""
    size = len(samples)
    nodes = torch.zeros(size, length, dtype=torch.int64)
    edges = torch.zeros(size, length, length, dtype=torch.int64)
    position = torch.zeros(size, length, dtype=torch.int64)
    events = torch.zeros(size, dtype=torch.int64)
    for row, (prefix, _) in enumerate(samples):
        kept = list(prefix[-length:])
        distinct = sorted(set(kept))
        column = {item: c for c, item in enumerate(distinct)}
        path = [column[item] for item in kept]
        nodes[row, : len(distinct)] = torch.tensor(distinct)
        position[row, : len(path)] = torch.tensor(path)
        events[row] = len(path)
        for c in range(len(distinct)):
            edges[row, c, c] = SELF
        for here, there in itertools.pairwise(path):
            if here == there:
                continue
            seen = int(edges[row, here, there])
            if seen in (INCOMING, BOTH):
                edges[row, here, there] = edges[row, there, here] = BOTH
            else:
                edges[row, here, there], edges[row, there, here] = OUTGOING, INCOMING
    target = torch.tensor([target for _, target in samples])
    return GraphBatch(nodes, nodes.ne(0), edges, position, events, target)
