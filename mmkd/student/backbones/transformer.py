"""Transformers over left-padded sequences: inputs [B, L, d] to states [B, L, d].

SASRec (arXiv:1808.09781) and BERT4Rec (arXiv:1904.06690) share everything but who may look at
whom. Pre-norm blocks (arXiv:2002.04745), which train without warm-up.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import at_least, checked, one_of
from mmkd.student.layers import check_dropout, dropout

Activation = Literal["gelu", "relu"]


class Transformer(nn.Module):
    """Learned positions, blocks, final LayerNorm; a subclass says whether it is `causal`.

    Positions count from the right: the last column always has index `max_length - 1`, so trimming
    or adding left padding changes nothing. With `input_norm` the inputs are LayerNorm'd, hence
    the item table's scale (0.02 at the start) acts on the scores only and the residual stream
    starts at unit scale instead of being drowned by the first block's output.

    Dropout of the inputs is the item embedding's; here it falls on what each sublayer adds. There
    is none on attention weights: it would force the slow attention kernel.
    """

    causal: bool

    @checked
    def __init__(
        self,
        *,
        width: int,
        max_length: int,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.2,
        feedforward: int | None = None,
        activation: Activation = "gelu",
        input_norm: bool = True,
    ) -> None:
        """Build the blocks.

        Args:
            width: d.
            max_length: Longest sequence, in positions, mask tokens included.
            layers: Number of blocks.
            heads: Attention heads; must divide d.
            dropout: Dropout of what each sublayer adds.
            feedforward: Hidden width of the feed-forward network; None means 4 d.
            activation: `gelu` or `relu`.
            input_norm: LayerNorm the inputs.

        Raises:
            ValueError: `heads` does not divide `width`, or an argument is out of range.
        """
        super().__init__()
        self.width = width
        self.max_length = max_length
        self.positions = nn.Parameter(torch.randn(max_length, width) * 0.02)
        self.input_norm = nn.LayerNorm(width) if input_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width=width,
                heads=heads,
                dropout=dropout,
                feedforward=4 * width if feedforward is None else feedforward,
                activation=activation,
            )
            for _ in range(layers)
        )
        self.output_norm = nn.LayerNorm(width)

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with any of the constructor's options, a line each."""
        counts = ("width", "max_length", "layers", "heads", "feedforward")
        problems = [
            *at_least(1, **{name: options.get(name) for name in counts}),
            *check_dropout(options),
            *one_of(get_args(Activation), activation=options.get("activation")),
        ]
        width, heads = options.get("width", 0), options.get("heads", 0)
        if width > 0 and heads > 0 and width % heads:
            problems.append(
                f"heads: width {width} does not split into {heads} heads; use a divisor of {width}"
            )
        return problems

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Run the blocks.

        Args:
            x: [B, L, d] input vectors.
            padding: [B, L] bool, True at padding.

        Returns:
            [B, L, d]; finite at padding too, but without meaning there.

        Raises:
            ValueError: L is larger than `max_length`.
        """
        length = x.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"got a sequence of {length} positions, wanted at most max_length "
                f"{self.max_length}; cut the sequence or raise max_length."
            )
        x = self.input_norm(x + self.positions[self.max_length - length :])
        mask = attention_mask(padding, causal=self.causal, dtype=x.dtype)  # once for all blocks
        for block in self.blocks:
            x = block(x, mask)
        states: Tensor = self.output_norm(x)
        return states


class SASRec(Transformer):
    """Each state sees its own and the earlier items; it predicts the next one.

    >>> import torch
    >>> from mmkd import SASRec
    >>> backbone = SASRec(width=8, max_length=5, layers=1)
    >>> padding = torch.tensor([[True, True, False, False, False]])  # on the left
    >>> backbone(torch.randn(1, 5, 8), padding).shape
    torch.Size([1, 5, 8])
    >>> backbone.causal
    True
    """

    causal = True


class BERT4Rec(Transformer):
    """Each state sees the whole sequence; the one at a mask token predicts the item it hides.

    The caller puts the mask tokens: random ones in training, one at the end to ask for the next
    item (leave room for it: a history of `max_length - 1` items).

    >>> import torch
    >>> from mmkd import BERT4Rec
    >>> backbone = BERT4Rec(width=8, max_length=5, layers=1)
    >>> backbone(torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)).shape
    torch.Size([2, 5, 8])
    >>> backbone.causal
    False
    """

    causal = False


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward network, each added to its input."""

    def __init__(
        self, *, width: int, heads: int, dropout: float, feedforward: int, activation: Activation
    ) -> None:
        """Build one block.

        Args:
            width: d.
            heads: Attention heads; must divide d.
            dropout: Dropout of what each sublayer adds.
            feedforward: Hidden width of the feed-forward network.
            activation: `gelu` or `relu`.
        """
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward_in = nn.Linear(width, feedforward)
        self.feedforward_out = nn.Linear(feedforward, width)
        self.activation = F.gelu if activation == "gelu" else F.relu

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend, then transform.

        Args:
            x: [B, L, d].
            mask: [B, 1, L, L] additive, as `attention_mask` makes it.

        Returns:
            [B, L, d].
        """
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, L, d/heads]
        mixed = attend(query, key, value, mask)
        mixed = self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        x = x + dropout(mixed, self.dropout, self.training)
        hidden = self.activation(self.feedforward_in(self.feedforward_norm(x)))
        return x + dropout(self.feedforward_out(hidden), self.dropout, self.training)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention; on a CPU in float32 whatever the inputs' precision.

    There torch's bfloat16 kernel took 2 to 5 times as long as casting, at 15 to 100 positions.

    Args:
        query: [B, heads, L, d/heads], as `key` and `value`.
        key: Of the positions to look at.
        value: What they tell.
        mask: [B, 1, L, L] additive.

    Returns:
        The shape and dtype of `query`.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=mask.float()
        )
    return mixed.to(query.dtype)


def attention_mask(padding: Tensor, *, causal: bool, dtype: torch.dtype) -> Tensor:
    """Who may look at whom, as a term to add to the attention scores.

    A real position sees the real positions (up to itself if `causal`). Every position sees itself:
    a padding query would otherwise see nothing, and its softmax be NaN.

    Args:
        padding: [B, L] bool, True at padding.
        causal: Hide later positions.
        dtype: Of the inputs.

    Returns:
        [B, 1, L, L], 0 where query (row) may see key (column), -inf elsewhere.
    """
    length = padding.shape[1]
    hidden = padding[:, None, :]  # [B, 1, L]
    if causal:
        later = torch.ones(length, length, dtype=torch.bool, device=padding.device).triu(1)
        hidden = hidden | later
    itself = torch.eye(length, dtype=torch.bool, device=padding.device)
    hidden = hidden & ~itself  # [B, L, L]
    return torch.zeros(hidden.shape, dtype=dtype, device=padding.device).masked_fill_(
        hidden, -torch.inf
    )[:, None]
