"""SASRec: a causal transformer over the item sequence, [B, L, d] to [B, L, d].

Kang and McAuley, Self-Attentive Sequential Recommendation (arXiv:1808.09781), with pre-norm blocks.
"""

from mmkd.student.backbones.transformer import Activation, Transformer


class SASRec(Transformer):
    """Each state sees its own and the earlier items; it predicts the next one."""

    causal: bool = True

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
        """Build the network.

        Args:
            width: d.
            max_length: Longest sequence, in positions.
            layers: Number of blocks.
            heads: Attention heads; must divide d.
            dropout: Dropout of what each sublayer adds.
            feedforward: Hidden width of the feed-forward network; None means 4 d.
            activation: `gelu` or `relu`.
            input_norm: LayerNorm the inputs.

        Raises:
            ValueError: `heads` does not divide `width`, or an argument is out of range.
        """
        super().__init__(
            width=width,
            max_length=max_length,
            causal=True,
            layers=layers,
            heads=heads,
            dropout=dropout,
            feedforward=feedforward,
            activation=activation,
            input_norm=input_norm,
        )
