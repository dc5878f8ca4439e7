"""RGAT: relational graph attention over each prefix's session graph, [B, L, d] to [B, L, d].

The base model of KDSR (arXiv:2401.07257). A session's nodes are its distinct items; an edge joins
two items that follow each other and says how: as an item to itself, out, in, or both ways. Edges as
in GCE-GNN (arXiv:2106.05081). A session is what its last n items make of their neighbours, summed.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import at_least, checked
from mmkd.student.layers import check_dropout, dropout

_RELATIONS = 4  # to itself, out, in, both ways
_SLOPE = 0.1  # of the scores below 0, as published


class RGAT(nn.Module):
    """Hops over the session graph, the last n items' nodes summed, a linear layer, LayerNorm.

    The state of position i is that of the session which ends there: its graph has the items and
    steps up to i, so all positions train at once and none sees what follows. With one layer, as
    published, that is exact. With more, the last hop is over the graph of position i and reads each
    neighbour as it stood at its latest visit; exact inner hops would need a graph a position.

    >>> import torch
    >>> from mmkd import RGAT
    >>> backbone = RGAT(width=8)  # reads sequences of any length
    >>> items = torch.tensor([[0, 3, 5, 3, 4]])  # 3 is visited twice: one node, joined to 5 and 4
    >>> backbone(torch.randn(1, 5, 8), items == 0, items).shape
    torch.Size([1, 5, 8])
    """

    causal = True

    @checked
    def __init__(
        self,
        *,
        width: int,
        layers: int = 1,
        last_n: int = 2,
        dropout: float = 0.2,
        input_norm: bool = True,
    ) -> None:
        """Build the network.

        Args:
            width: d.
            layers: Number of hops.
            last_n: How many of the latest items make the session's state; time grows with it.
            dropout: Dropout of what a hop adds to a node.
            input_norm: LayerNorm the inputs, so that the item table's small scale does not leave
                all neighbours alike.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        self.width = width
        self.last_n = last_n
        self.input_norm = nn.LayerNorm(width) if input_norm else nn.Identity()
        self.hops = nn.ModuleList(GraphAttention(width, dropout) for _ in range(layers))
        self.output = nn.Linear(width, width)
        self.output_norm = nn.LayerNorm(width)

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with any of the constructor's options, a line each."""
        counts = {name: options.get(name) for name in ("width", "layers", "last_n")}
        return at_least(1, **counts) + check_dropout(options)

    def forward(self, x: Tensor, padding: Tensor, items: Tensor | None = None) -> Tensor:
        """Run the hops.

        Args:
            x: [B, L, d] input vectors, of any length.
            padding: [B, L] bool, True at padding, which must be on the left.
            items: [B, L] what stands where; equal ones are one node. None: all differ.

        Returns:
            [B, L, d]; finite at padding too, but without meaning there.
        """
        length = padding.shape[1]
        if items is None:
            items = torch.arange(length, device=padding.device).expand(padding.shape)
        last_n = min(self.last_n, length)
        relation, node = session_graphs(items, padding, last_n)  # [n, B, L, L], [n, B, L]
        h = torch.where(padding[:, :, None], 0.0, self.input_norm(x))
        for hop in self.hops[:-1]:
            [h] = hop(h, relation[:1], node[:1])
        nodes = self.hops[-1](h, relation, node)  # [n, B, L, d]
        absent = torch.stack([F.pad(padding, (n, -n), value=True) for n in range(last_n)])
        session = nodes.masked_fill(absent[..., None], 0.0).sum(0)  # [B, L, d]
        states: Tensor = self.output_norm(self.output(session))
        return states


class GraphAttention(nn.Module):
    """One hop: a node plus what its neighbours tell, weighted by likeness under their relation."""

    def __init__(self, width: int, dropout: float) -> None:
        """Build one hop.

        Args:
            width: d.
            dropout: Dropout of what is added.
        """
        super().__init__()
        self.dropout = dropout
        self.project = nn.Linear(width, width, bias=False)
        self.relations = nn.Parameter(torch.empty(_RELATIONS, width))
        nn.init.uniform_(self.relations, -(width**-0.5), width**-0.5)

    def forward(self, h: Tensor, relation: Tensor, node: Tensor) -> Tensor:
        """Attend from n nodes at each position.

        Args:
            h: [B, L, d] each node as it stood at each of its visits.
            relation: [n, B, L, L] as `session_graphs` makes it.
            node: [n, B, L] likewise.

        Returns:
            [n, B, L, d].
        """
        z = self.project(h)  # [B, L, d]
        nodes = []
        for edges, column in zip(relation, node, strict=True):
            own = column[:, :, None].expand_as(h)
            asked = z.gather(1, own)[:, None] * self.relations[:, None]  # [B, 4, L, d]
            scores = asked @ z[:, None].mT  # [B, 4, L, L]
            chosen = scores.gather(1, (edges.long() - 1).clamp(min=0)[:, None])[:, 0]
            chosen = F.leaky_relu(chosen, _SLOPE).masked_fill(edges == 0, -torch.inf)
            message = chosen.softmax(-1) @ z
            nodes.append(h.gather(1, own) + dropout(message, self.dropout, self.training))
        return torch.stack(nodes)


def session_graphs(items: Tensor, padding: Tensor, last_n: int) -> tuple[Tensor, Tensor]:
    """The neighbourhoods of the last n items in the graph of every prefix.

    A node is where its item was visited last, so each prefix has a node at one column only.

    Args:
        items: [B, L] equal where the item is the same.
        padding: [B, L] bool, True at padding.
        last_n: n.

    Returns:
        How the item n positions before i is joined, in the prefix that ends at i, to the node at j,
        [n, B, L (i), L (j)]: 0 not at all, 1 itself, 2 out (j came after it), 3 in, 4 both; and the
        column of its own node, [n, B, L (i)]. A padded position is joined to itself alone.
    """
    length = items.shape[1]
    real = ~padding
    column = torch.arange(length, device=items.device)
    past = column <= column[:, None]  # [L (i), L (j)]
    equal = (items[:, :, None] == items[:, None]) & real[:, :, None] & real[:, None]
    equal = equal | (column == column[:, None])  # [B, L, L]
    shared = equal.to(torch.float32)
    latest = past & (shared.triu(1).cumsum(-1) == 0).mT  # and not visited again up to i
    relations, nodes = [], []
    for n in range(last_n):
        visits = equal[:, (column - n).clamp(min=0)] & past  # of the item, up to i
        after = F.pad(visits, (1, 0))[..., :-1] & past & real[:, None]
        before = F.pad(visits, (0, 1))[..., 1:] & real[:, None]
        steps = torch.stack([after, before]).to(torch.float32)  # to columns, [2, B, L, L]
        out, into = (steps @ shared > 0).to(torch.uint8)  # to items
        joined = (out + 2 * into + (out | into)).masked_fill(visits, 1)
        relations.append(joined * latest)
        nodes.append((visits * column).amax(-1))
    return torch.stack(relations), torch.stack(nodes)
