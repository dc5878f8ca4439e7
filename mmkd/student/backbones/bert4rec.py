"""BERT4Rec: a bidirectional transformer over the item sequence, [B, L, d] to [B, L, d].

Sun et al., BERT4Rec (arXiv:1904.06690), with pre-norm blocks.
"""

from mmkd.student.backbones.transformer import Activation, Transformer


class BERT4Rec(Transformer):
    """Each state sees the whole sequence; the one at a mask token predicts the item it hides.

    The caller puts the mask tokens: random ones in training, one at the end to ask for the next
    item (leave room for it: a history of `max_length - 1` items).
    """

    causal: bool = False

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
        super().__init__(
            width=width,
            max_length=max_length,
            causal=False,
            layers=layers,
            heads=heads,
            dropout=dropout,
            feedforward=feedforward,
            activation=activation,
            input_norm=input_norm,
        )
