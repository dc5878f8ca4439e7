"""Text vectors from the token states of any transformers language model.

From: texts. To: ``[n, dim]`` float32, pooled from one layer, or a mean of layers, of a decoder-only
model (LLaMA, Qwen, Mistral, OPT), an encoder (BERT, RoBERTa) or the encoder half of an
encoder-decoder model (T5), through transformers.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mmkd.encoders.base import checked_texts, unit_rows
from mmkd.encoders.loading import (
    check_length,
    check_weights,
    load_adapter,
    load_model,
    load_part,
    position_limit,
    quietly,
)
from mmkd.encoders.tokens import (
    POOLINGS,
    TokenBatch,
    encode_batches,
    padded,
    pool,
    token_batches,
    tokenise,
)
from mmkd.errors import EncoderError, refuse

TEMPLATE_FIELD = "{text}"
# attention to 100,000 tokens is possible for some models, but nobody means it by saying nothing
_LENGTH_UNLESS_SAID = 4096  # tokens


class LanguageModelEncoder:
    """A pretrained language model whose token states are pooled into a vector.

    Batches are formed by length in tokens and pooling reads the attention mask, so a text's vector
    does not depend on its batch: another batch moves float32 vectors by about 1e-6 of their length,
    bfloat16 ones by about 1e-2.

    Args:
        model: Hub id, local path or ``package:NAME``; weights in safetensors.
        pooling: ``mean``, ``weighted_mean`` (by position), ``last`` token, ``eos`` (the
            end-of-sequence token is put behind every text and its state taken), ``cls`` (the first
            token) or ``max``. A language model has no pooling of its own, so it must be named.
        revision: Commit, tag or branch on the hub; version of a package.
        prompt: Put before every text; or a template with ``{text}`` where the text goes. A text
            that is too long is cut, at the side that the tokenizer cuts; a template is not.
        max_length_tokens: Longer texts are cut to it, special tokens included; None is the limit of
            the tokenizer or model, and 4096 at most.
        dtype: Precision the model computes in; pooling is always in float32.
        normalize: Whether vectors are scaled to length 1.
        trust_remote_code: Whether the model's repository may run its own code here.
        layer: Whose states are pooled: 0 is the token embeddings, 1 the first layer, -1 the last
            one behind its final norm, -2 the one before.
        layers_mean: Instead of one layer, the mean of the last so many.
        quantize_bits: 4 or 8 keeps the weights in so few bits, through bitsandbytes.
        adapter: Hub id or local path of a LoRA adapter for the model, through peft.
        adapter_revision: Commit, tag or branch of a hub adapter.
        padding_side: Where padding goes. ``right`` is exact for every model whose code is in
            transformers; ``left`` is for code of a repository that insists on it.
        device: Where the model runs; ``"auto"`` spreads it over all devices there are.
        batch_tokens: Most tokens of a batch, padding included; None caps only the count of texts.

    Raises:
        EncoderError: The model, adapter or a library is missing, or a setting does not fit it.
        ValueError: A setting is out of range, or two exclude each other.
    """

    version: ClassVar[int] = 2
    spreads: ClassVar[bool] = True  # device "auto" is transformers' device_map
    local_options: ClassVar[tuple[str, ...]] = ("adapter",)

    @staticmethod
    def version_of(settings: Mapping[str, Any]) -> int:
        """Version 2 keeps a template's end; the vectors of other prompts are those of version 1."""
        return 2 if str(settings.get("prompt")).partition(TEMPLATE_FIELD)[2] else 1

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with these options, a line each."""
        problems = []
        if (pooling := options.get("pooling", "mean")) not in POOLINGS:
            problems.append(
                f"pooling: got {pooling!r}; a language model has none of its own, so name one of "
                f"{', '.join(POOLINGS)}"
            )
        layer, layers_mean = options.get("layer", -1), options.get("layers_mean")
        if layers_mean is not None and layer != -1:
            problems.append(
                f"layer {layer} and layers_mean {layers_mean}: the vectors come from one layer or "
                "from a mean of the last ones; remove one of the two"
            )
        if (side := options.get("padding_side", "right")) not in ("left", "right"):
            problems.append(f"padding_side: got {side!r}, which is not left or right; correct it")
        if (bits := options.get("quantize_bits")) not in (None, 4, 8):
            problems.append(f"quantize_bits: got {bits}; use 4 or 8, or leave it out")
        revision = options.get("adapter_revision")
        if revision is not None and options.get("adapter", "") is None:
            problems.append(f"adapter_revision: got {revision!r} without an adapter; remove it")
        return problems

    def __init__(
        self,
        *,
        model: str,
        pooling: str | None = None,
        revision: str | None = None,
        prompt: str | None = None,
        max_length_tokens: int | None = None,
        dtype: str = "float32",
        normalize: bool = False,
        trust_remote_code: bool = False,
        layer: int = -1,
        layers_mean: int | None = None,
        quantize_bits: int | None = None,
        adapter: str | None = None,
        adapter_revision: str | None = None,
        padding_side: Literal["left", "right"] = "right",
        device: str = "cpu",
        batch_tokens: int | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        refuse(self.check(pooling=pooling, layer=layer, layers_mean=layers_mean))
        refuse(self.check(padding_side=padding_side, quantize_bits=quantize_bits))
        refuse(self.check(adapter=adapter, adapter_revision=adapter_revision))
        source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        self._tokenizer: Any = load_part(AutoTokenizer, model, **source)
        loaded, missing = load_model(
            model, dtype=dtype, device=device, quantize_bits=quantize_bits, **source
        )
        # a pooler stands behind the token states and is often left out of a checkpoint
        check_weights(model, [name for name in missing if "pooler" not in name])
        if getattr(loaded.config, "is_encoder_decoder", False) and hasattr(loaded, "decoder"):
            loaded = loaded.get_encoder()
        # keys and values are kept for texts that go on, which these never do
        loaded.config.use_cache = False
        _check_layers(model, loaded, layer, layers_mean)
        # of the bare model: an adapter that is not merged hides its arguments
        takes_positions = _takes_positions(loaded)
        if adapter is not None:
            loaded = load_adapter(
                loaded, adapter, revision=adapter_revision, merge=quantize_bits is None
            )
        self._model: Any = loaded.eval()
        self._append = _end_of_sequence(model, self._tokenizer) if pooling == "eos" else None
        self._max_length_tokens = _length(model, loaded, self._tokenizer, max_length_tokens)
        self._pooling = pooling or ""
        self._layer, self._layers_mean = layer, layers_mean
        # a prompt without the field is put before every text
        self._before, _, self._after = (prompt or "").partition(TEMPLATE_FIELD)
        self.texts_cut = 0
        self._normalize = normalize
        self._batch_tokens = batch_tokens
        self._padding_side: Literal["left", "right"] = padding_side
        self._gives_positions = padding_side == "left" and takes_positions
        self._device = loaded.get_input_embeddings().weight.device
        self.modality = "text"
        self.dim = self._width(model)

    def encode(self, inputs: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Encodes n texts into ``[n, dim]`` float32; see `Encoder`."""
        texts = checked_texts(inputs, batch_size=batch_size)
        tokens = self._tokens(texts)
        batches = token_batches(
            tokens,
            batch_size=batch_size,
            batch_tokens=self._batch_tokens,
            pad=self._pad,
            padding_side=self._padding_side,
        )
        vectors = encode_batches(batches, self._vectors, count=len(texts), dim=self.dim)
        return unit_rows(vectors) if self._normalize else vectors

    @property
    def model(self) -> Any:
        """See `TunableEncoder`."""
        return self._model

    def features(self, inputs: Sequence[str]) -> list[NDArray[np.int32]]:
        """Token ids of n texts, prompt among them; see `TunableEncoder`."""
        return self._tokens(checked_texts(inputs, batch_size=1))

    def differentiable(self, features: Sequence[NDArray[np.int32]]) -> Any:
        """``[n, dim]`` with gradients; see `TunableEncoder`."""
        rows = range(len(features))
        return self._vectors(padded(features, rows, pad=self._pad, padding_side=self._padding_side))

    def save(self, folder: Path) -> None:
        """Write model and tokenizer as transformers does; see `TunableEncoder`."""
        with quietly():
            self._model.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

    def _tokens(self, texts: list[str]) -> list[NDArray[np.int32]]:
        tokens, cut = tokenise(
            texts,
            self._tokenizer,
            max_length_tokens=self._max_length_tokens,
            append=self._append,
            before=self._before,
            after=self._after,
        )
        self.texts_cut += cut
        return tokens

    @property
    def _pad(self) -> int:
        # any id will do where there is none (LLaMA, GPT): the mask hides it
        pad = self._tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    def _vectors(self, batch: TokenBatch) -> Any:
        """``[n, dim]`` vectors of a batch, on the model's device."""
        ids = batch.ids.to(self._device, non_blocking=True)
        mask = batch.mask.to(self._device, non_blocking=True)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._gives_positions:
            # count from each text's own first token, not from the padding before it
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        states = self._states(inputs)  # [n, l, dim]
        if states.shape[:2] != ids.shape:
            raise EncoderError(f"states {tuple(states.shape)} for ids {tuple(ids.shape)}")
        return pool(states, mask.to(states.device), self._pooling)

    def _states(self, inputs: dict[str, Any]) -> Any:
        if self._layer == -1 and self._layers_mean is None:
            return self._model(**inputs).last_hidden_state
        layers = self._model(**inputs, output_hidden_states=True).hidden_states
        if self._layers_mean is None:
            return layers[self._layer]
        total = layers[-1].float()
        for states in layers[-self._layers_mean : -1]:
            total = total + states.float().to(total.device)
        return total / self._layers_mean

    def _width(self, model: str) -> int:
        """How wide the vectors are, from a text that goes through the model."""
        import torch

        tokens, _ = tokenise(["a"], self._tokenizer, max_length_tokens=None, append=self._append)
        batch = next(token_batches(tokens, batch_size=1, pad=self._pad))
        try:
            with torch.inference_mode():
                return int(self._vectors(batch).shape[-1])
        # a model of another sort (images, speech, a decoder's inputs) fails in its own way
        except Exception as error:
            raise EncoderError(
                f"model {model} gives no token states for a text ({error}); kind language_model "
                "takes a text model of transformers whose output is last_hidden_state [n, l, dim]"
            ) from error


def _check_layers(model: str, loaded: Any, layer: int, layers_mean: int | None) -> None:
    layers = getattr(loaded.config.get_text_config(), "num_hidden_layers", None)
    if layers is None:
        return
    # hidden_states holds the embeddings and then each layer's output
    if not -layers - 1 <= layer <= layers:
        raise EncoderError(
            f"options.layer {layer}: {model} has {layers} layers; use 0 to {layers}, or -1 to "
            f"{-layers - 1} from the last one"
        )
    if layers_mean is not None and not 1 <= layers_mean <= layers:
        raise EncoderError(f"options.layers_mean {layers_mean}: {model} has 1 to {layers} layers")


def _takes_positions(loaded: Any) -> bool:
    """Whether positions under left padding must be given, because the model would count padding."""
    if "position_ids" not in inspect.signature(loaded.forward).parameters:
        return False
    # RoBERTa and its kin find padding by its id and count from behind it
    return all(
        getattr(module, "padding_idx", None) is None
        for name, module in loaded.named_modules()
        if name.endswith("position_embeddings")
    )


def _end_of_sequence(model: str, tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise EncoderError(
            f"pooling eos: the tokenizer of {model} has no end-of-sequence token; use last or mean"
        )
    return int(tokenizer.eos_token_id)


def _length(model: str, loaded: Any, tokenizer: Any, wanted: int | None) -> int:
    """Tokens that a text is cut to."""
    positions = position_limit(loaded)
    if wanted is None:
        # a tokenizer without a limit says so by an absurdly large one
        limits = (tokenizer.model_max_length, positions, _LENGTH_UNLESS_SAID)
        return min(limit for limit in limits if limit is not None)
    check_length(model, wanted, positions)
    return wanted
