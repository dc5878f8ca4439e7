"""GRU4Rec: a recurrent network over the item sequence, [B, L, d] to [B, L, d].

Hidasi et al., Session-based Recommendations with Recurrent Neural Networks (arXiv:1511.06939).
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmkd.errors import at_least, checked
from mmkd.student.layers import check_dropout, dropout


class GRU4Rec(nn.Module):
    """A GRU, then a linear layer back to the width, then LayerNorm.

    The GRU has no biases, as in RecBole: a zero input then leaves a zero state at zero, so left
    padding cannot change anything and no packing of sequences is needed.

    >>> import torch
    >>> from mmkd import GRU4Rec
    >>> backbone = GRU4Rec(width=8)  # reads sequences of any length
    >>> backbone(torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)).shape
    torch.Size([2, 5, 8])
    """

    causal = True

    @checked
    def __init__(
        self,
        *,
        width: int,
        layers: int = 1,
        hidden: int | None = None,
        dropout: float = 0.2,
        input_norm: bool = True,
    ) -> None:
        """Build the network.

        Args:
            width: d.
            layers: Number of GRU layers.
            hidden: The GRU's own width; None means 2 d.
            dropout: Dropout between GRU layers and of the last one's states.
            input_norm: LayerNorm the inputs, so that the item table's small scale does not leave
                the gates at one half.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        self.width = width
        hidden = 2 * width if hidden is None else hidden
        self.input_norm = nn.LayerNorm(width) if input_norm else nn.Identity()
        self.gru = nn.GRU(
            width,
            hidden,
            layers,
            bias=False,
            batch_first=True,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.dropout = dropout
        self.output = nn.Linear(hidden, width)
        self.output_norm = nn.LayerNorm(width)

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with any of the constructor's options, a line each."""
        counts = {name: options.get(name) for name in ("width", "layers", "hidden")}
        return at_least(1, **counts) + check_dropout(options)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Run the recurrence.

        Args:
            x: [B, L, d] input vectors, of any length.
            padding: [B, L] bool, True at padding, which must be on the left.

        Returns:
            [B, L, d]; finite at padding too, but without meaning there.
        """
        x = torch.where(padding[:, :, None], 0.0, self.input_norm(x))
        states, _ = self.gru(x)  # [B, L, hidden]
        states = dropout(states, self.dropout, self.training)
        out: Tensor = self.output_norm(self.output(states))
        return out
