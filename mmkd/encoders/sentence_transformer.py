"""Text vectors from a sentence-transformers model.

From: texts. To: ``[n, dim]`` float32. Source: Reimers and Gurevych, *Sentence-BERT*, EMNLP 2019,
arXiv:1908.10084, through the library of that name.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmkd.encoders.base import EncoderError, checked_texts, unit_rows
from mmkd.encoders.model_source import loading_error, resolve_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class SentenceTransformerEncoder:
    """A pretrained sentence encoder with the pooling that its authors chose.

    Batches are formed by length (the library sorts) and results come back in the order of the
    inputs. Another batch size moves float32 vectors by about 1e-6, through padding.

    Args:
        model: Hub id, local path or ``package:NAME``.
        revision: Commit, tag or branch on the hub; version of a package.
        prompt: Put before every text, such as ``"passage: "``.
        max_length_tokens: Longer texts are cut; None keeps the model's own limit.
        dtype: Precision the model computes in.
        normalize: Whether vectors are scaled to length 1.
        trust_remote_code: Whether the model's repository may run its own code here.
        device: Where the model runs.

    Raises:
        EncoderError: The model is missing, is no sentence-transformers model, or takes fewer
            tokens than ``max_length_tokens``.
    """

    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        model: str | None = None,
        revision: str | None = None,
        prompt: str | None = None,
        max_length_tokens: int | None = None,
        dtype: str = "float32",
        normalize: bool = False,
        trust_remote_code: bool = False,
        device: str = "cpu",
    ) -> None:
        if model is None:
            raise EncoderError("kind sentence_transformer needs a model; name one in the card")
        self._model = _load(
            model,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            device=device,
        )
        if max_length_tokens is not None:
            _check_length(self._model, model, max_length_tokens)
            self._model.max_seq_length = max_length_tokens
        width = self._model.get_embedding_dimension()
        if width is None:
            raise EncoderError(f"model {model} does not say how wide its vectors are")
        self.modality = "text"
        self.dim = int(width)
        # an empty string, not None: None would bring in the prompt stored with the model, and the
        # card must say everything that changes the vectors
        self._prompt = prompt or ""
        self._normalize = normalize

    def encode(self, inputs: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Encodes n texts into ``[n, dim]`` float32; see `Encoder`."""
        texts = checked_texts(inputs, batch_size=batch_size)
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        vectors = self._model.encode(
            texts,
            prompt=self._prompt,
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        vectors = np.asarray(vectors, dtype=np.float32)  # [n, dim]
        return unit_rows(vectors) if self._normalize else vectors


def _load(
    model: str, *, revision: str | None, dtype: str, trust_remote_code: bool, device: str
) -> "SentenceTransformer":
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import is_sentence_transformer_model

    source, revision = resolve_model(model, revision=revision)
    try:
        loaded = SentenceTransformer(
            source,
            revision=revision,
            trust_remote_code=trust_remote_code,
            device=device,
            # pickled weights are refused: a checkpoint must be safetensors
            model_kwargs={"dtype": getattr(torch, dtype), "use_safetensors": True},
        )
        known = is_sentence_transformer_model(source, revision=revision)
    # the library, transformers, the hub client and its transport each raise their own kind
    except Exception as error:
        raise loading_error(model, error) from error
    if not known:
        # the library would invent mean pooling, which is not what such a model was trained for
        raise EncoderError(
            f"model {model} has no modules.json, so it is not a sentence-transformers model and "
            "its pooling is unknown; choose one that is"
        )
    return loaded.eval()


def _check_length(loaded: "SentenceTransformer", model: str, max_length_tokens: int) -> None:
    """Refuses more tokens than a model with learned positions has positions."""
    from torch import nn

    for name, module in loaded.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding id
            positions = module.num_embeddings
            if module.padding_idx is not None:
                positions -= module.padding_idx + 1
            if max_length_tokens > positions:
                raise EncoderError(
                    f"max_length_tokens {max_length_tokens} is more than the {positions} that "
                    f"{model} takes; lower it in the card"
                )
