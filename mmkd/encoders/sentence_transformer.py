"""Text or image vectors from a sentence-transformers model.

From: texts, or images where the model takes them. To: ``[n, dim]`` float32. Source: Reimers and
Gurevych, *Sentence-BERT*, EMNLP 2019, arXiv:1908.10084, through the library of that name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.encoders.base import checked_images, checked_texts, unit_rows
from mmkd.encoders.images import check_resized, processor_side
from mmkd.encoders.loading import check_length, loading, position_limit, quietly, resolve_model
from mmkd.encoders.tokens import TokenBatch, encode_batches, padded, token_batches, tokenise
from mmkd.errors import EncoderError, refuse

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_NO_LIMIT = 1_000_000_000  # tokens; a tokenizer without a limit names a larger number
_PROBE = ("", "a", "A few more words.", "word " * 1000)


class SentenceTransformerEncoder:
    """A pretrained sentence encoder with the pooling that its authors chose.

    Texts are batched by `mmkd.encoders.tokens` where those tokens are the library's own,
    which is checked when the model is loaded, and by the library otherwise. Results come back in
    the order of the inputs. Another batch size moves float32 vectors by about 1e-6, by its padding.

    Args:
        model: Hub id, local path or ``package:NAME``.
        modality: ``"text"``, or ``"image"`` for a model that takes pictures too.
        revision: Commit, tag or branch on the hub; version of a package.
        prompt: Put before every text, such as ``"passage: "``.
        max_length_tokens: Longer texts are cut; None keeps the model's own limit.
        dtype: Precision the model computes in.
        normalize: Whether vectors are scaled to length 1, after ``truncate_dim``.
        trust_remote_code: Whether the model's repository may run its own code here.
        truncate_dim: Only the first so many features are kept, for models trained to allow that
            (Kusupati et al., *Matryoshka Representation Learning*, arXiv:2205.13147).
        device: Where the model runs.
        batch_tokens: Most tokens of a batch, padding included; None caps only the count of texts.

    Raises:
        EncoderError: The model is missing, is no sentence-transformers model, does not take the
            modality, or takes fewer tokens or has fewer features than the card wants.
        ValueError: Images are given a prompt or a number of tokens.
    """

    version: ClassVar[int] = 1

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with these options, a line each."""
        of_texts = (options.get("prompt"), options.get("max_length_tokens"))
        if options.get("modality") == "image" and any(value is not None for value in of_texts):
            return ["images take no prompt and no max_length_tokens; remove them"]
        return []

    def __init__(
        self,
        *,
        model: str,
        modality: str = "text",
        revision: str | None = None,
        prompt: str | None = None,
        max_length_tokens: int | None = None,
        dtype: str = "float32",
        normalize: bool = False,
        trust_remote_code: bool = False,
        truncate_dim: int | None = None,
        device: str = "cpu",
        batch_tokens: int | None = None,
    ) -> None:
        refuse(self.check(modality=modality, prompt=prompt, max_length_tokens=max_length_tokens))
        self._model = _load(
            model,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            device=device,
        )
        if modality not in self._model.modalities:
            takes = ", ".join(str(one) for one in self._model.modalities)
            raise EncoderError(f"model {model} takes {takes}, not {modality}; correct the card")
        if max_length_tokens is not None:
            check_length(model, max_length_tokens, position_limit(self._model))
            self._model.max_seq_length = max_length_tokens
        width = self._model.get_embedding_dimension()
        if width is None:
            raise EncoderError(f"model {model} does not say how wide its vectors are")
        if truncate_dim is not None and not 1 <= truncate_dim <= width:
            raise EncoderError(f"options.truncate_dim {truncate_dim}: {model} has 1 to {width}")
        self.modality = modality
        self.dim = int(truncate_dim or width)
        # an empty string, not None: None would bring in the prompt stored with the model, and the
        # card must say everything that changes the vectors
        self._prompt = prompt or ""
        self._normalize = normalize
        self._batch_tokens = batch_tokens
        self.texts_cut = 0
        self._features = self._batch_features() if modality == "text" else None

    def encode(
        self, inputs: Sequence[str] | Sequence[Image.Image], *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Encodes n texts or images into ``[n, dim]`` float32; see `Encoder`."""
        check = checked_images if self.modality == "image" else checked_texts
        items: Sequence[Any] = check(inputs, batch_size=batch_size)
        if self._features is not None:
            batches = token_batches(
                self._tokens(items),
                batch_size=batch_size,
                batch_tokens=self._batch_tokens,
                **self._padding(),
            )
            vectors = encode_batches(batches, self._vectors, count=len(items), dim=self.dim)
        else:
            vectors = self._by_the_library(items, batch_size)
        return unit_rows(vectors) if self._normalize else vectors

    @property
    def model(self) -> Any:
        """See `TunableEncoder`."""
        return self._model

    def features(self, inputs: Sequence[str]) -> list[NDArray[np.int32]]:
        """Token ids of n texts; see `TunableEncoder`.

        Raises:
            EncoderError: The model takes texts in another form than token ids, or pictures.
        """
        if self._features is None:
            raise EncoderError(
                "this sentence-transformers model makes its inputs in a way of its own, so it "
                "cannot be tuned here; use kind language_model, clip or vision for its model"
            )
        return self._tokens(checked_texts(inputs, batch_size=1))

    def differentiable(self, features: Sequence[NDArray[np.int32]]) -> Any:
        """``[n, dim]`` with gradients; see `TunableEncoder`."""
        return self._vectors(padded(features, range(len(features)), **self._padding()))

    def save(self, folder: Path) -> None:
        """Write the model as sentence-transformers does; see `TunableEncoder`."""
        with quietly():
            self._model.save_pretrained(
                str(folder), create_model_card=False, safe_serialization=True
            )

    def _vectors(self, batch: TokenBatch) -> Any:
        """``[n, dim]`` vectors of a batch, on the model's device."""
        device = self._model.device
        features = {
            "input_ids": batch.ids.to(device, non_blocking=True),
            "attention_mask": batch.mask.to(device, non_blocking=True),
            **(self._features or {}),
        }
        if "token_type_ids" in features:
            features["token_type_ids"] = features["input_ids"] * 0
        return self._model(features)["sentence_embedding"][:, : self.dim]

    def _by_the_library(self, items: Sequence[Any], batch_size: int) -> NDArray[np.float32]:
        if not items:
            return np.zeros((0, self.dim), np.float32)
        longest = self._model.max_seq_length
        if self._batch_tokens is not None and self.modality == "text" and longest is not None:
            # lengths are unknown here, so each text is taken to be as long as it may be
            batch_size = min(batch_size, max(1, self._batch_tokens // longest))
        if self.modality == "image":
            processor = getattr(self._model[0], "processor", None)
            side = processor_side(getattr(processor, "image_processor", processor))
            for image in items:
                check_resized(image, side)
        vectors = self._model.encode(
            list(items),
            prompt=self._prompt,
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.ascontiguousarray(vectors[:, : self.dim], dtype=np.float32)  # [n, dim]

    def _tokens(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        length = self._model.max_seq_length
        if length is not None and length > _NO_LIMIT:
            length = None
        tokens, cut = tokenise(
            texts, self._model.tokenizer, max_length_tokens=length, before=self._prompt
        )
        self.texts_cut += cut
        return tokens

    def _padding(self) -> dict[str, Any]:
        tokenizer: Any = self._model.tokenizer
        return {"pad": tokenizer.pad_token_id, "padding_side": tokenizer.padding_side}

    def _batch_features(self) -> dict[str, Any] | None:
        """What the library adds to the tokens of a batch; None if its tokens are not ours."""
        import torch

        theirs = self._model.preprocess(list(_PROBE), prompt=self._prompt)
        known = {"input_ids", "attention_mask", "token_type_ids", "modality", "prompt_length"}
        if not {"input_ids", "attention_mask"} <= set(theirs) <= known:
            return None
        tokenizer = self._model.tokenizer
        if tokenizer is None or tokenizer.pad_token_id is None:
            return None
        (batch,) = token_batches(self._tokens(_PROBE), batch_size=len(_PROBE), **self._padding())
        self.texts_cut = 0  # the probe's
        same = torch.equal(theirs["input_ids"][batch.rows], batch.ids) and torch.equal(
            theirs["attention_mask"][batch.rows], batch.mask
        )
        segments: Any = theirs.get("token_type_ids")
        if not same or (segments is not None and segments.any()):
            return None
        return {k: v for k, v in theirs.items() if k not in ("input_ids", "attention_mask")}


def _load(
    model: str, *, revision: str | None, dtype: str, trust_remote_code: bool, device: str
) -> "SentenceTransformer":
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import is_sentence_transformer_model

    source, revision = resolve_model(model, revision=revision)
    with loading(model), quietly():
        loaded = SentenceTransformer(
            source,
            revision=revision,
            trust_remote_code=trust_remote_code,
            device=device,
            # pickled weights are refused: a checkpoint must be safetensors
            model_kwargs={"dtype": getattr(torch, dtype), "use_safetensors": True},
        )
        known = is_sentence_transformer_model(source, revision=revision)
    if not known:
        # the library would invent mean pooling, which is not what such a model was trained for
        raise EncoderError(
            f"model {model} has no modules.json, so it is not a sentence-transformers model and "
            "its pooling is unknown; choose one that is"
        )
    return loaded.eval()
