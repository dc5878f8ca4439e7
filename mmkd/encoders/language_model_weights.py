"""A language model's weights: from a card's ``model`` and ``adapter`` to a loaded model.

Never half a model: only safetensors are read, weights that are missing from the checkpoint are an
error instead of random numbers, and so is an adapter that fits nothing.
"""

import importlib.util
import logging
import re
import warnings
from pathlib import Path
from typing import Any

from mmkd.encoders.base import EncoderError
from mmkd.encoders.model_source import loading_error, local_path, resolve_model

_ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_model(
    model: str,
    *,
    revision: str | None,
    dtype: str,
    trust_remote_code: bool,
    quantize_bits: int | None,
    device: str,
) -> tuple[Any, Any]:
    """Loads a tokenizer and the part of a model that gives token states.

    Args:
        model: Hub id, local path or ``package:NAME``.
        revision: The card's revision.
        dtype: Name of the torch type of the weights.
        trust_remote_code: Whether the repository may run its own code.
        quantize_bits: 4, 8 or None.
        device: A torch device, or ``"auto"`` for all there are.

    Returns:
        The tokenizer, and the model on its device; of an encoder-decoder model only the encoder.

    Raises:
        EncoderError: The model is missing or incomplete, or bitsandbytes is not installed.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging as reports

    source, revision = resolve_model(model, revision=revision)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    quantization = _quantization(quantize_bits, getattr(torch, dtype))
    placed = device == "auto" or quantization is not None
    verbosity = reports.get_verbosity()
    # it would report as a warning what is checked below
    reports.set_verbosity(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
        config = AutoConfig.from_pretrained(source, **common)
        loaded, info = _auto_class(config).from_pretrained(
            source,
            **common,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            quantization_config=quantization,
            # quantised weights are made on the device where they stay
            device_map=("auto" if device == "auto" else {"": device}) if placed else None,
        )
    # transformers, the hub client and its transport each raise their own kind
    except Exception as error:
        raise loading_error(model, error) from error
    finally:
        reports.set_verbosity(verbosity)
    # a pooler stands behind the token states and is often left out of a checkpoint
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise EncoderError(
            f"model {model} has no weights for {len(missing)} tensors, such as {missing[0]}, and "
            "random ones never stand in for them; name a complete checkpoint of this architecture"
        )
    if getattr(loaded.config, "is_encoder_decoder", False) and hasattr(loaded, "decoder"):
        loaded = loaded.get_encoder()
    # keys and values are kept for texts that go on, which these never do
    loaded.config.use_cache = False
    return tokenizer, loaded if placed else loaded.to(device)


def load_adapter(loaded: Any, adapter: str, *, revision: str | None, merge: bool) -> Any:
    """Puts a LoRA adapter on a model.

    Args:
        loaded: A transformers model.
        adapter: Hub id or local path of a folder as peft saves it.
        revision: Commit, tag or branch on the hub.
        merge: Whether the adapter is added into the weights, so it costs no time; a quantised
            model keeps it apart.

    Returns:
        The model with the adapter.

    Raises:
        EncoderError: peft is not installed, or the adapter is missing or fits another model.
    """
    try:
        import peft
    except ImportError as error:
        raise EncoderError(
            f"adapter {adapter} needs peft; install it with `pip install 'mmkd[peft]'`"
        ) from error
    folder = _adapter_folder(adapter, revision)
    # an adapter trained on a model with a head names its body by this prefix, which is not there
    prefix = loaded.base_model_prefix
    mapping = {rf"^{re.escape(prefix)}\.": ""} if prefix and not hasattr(loaded, prefix) else {}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = peft.PeftModel.from_pretrained(
                loaded, str(folder), key_mapping=mapping, torch_device=str(loaded.device)
            )
    except Exception as error:
        raise loading_error(adapter, error) from error
    if any("missing adapter keys" in str(warning.message) for warning in caught):
        raise EncoderError(
            f"adapter {adapter} lacks weights for parts of this model that its config names; it "
            "was made for another architecture, or its file is incomplete"
        )
    return adapted.merge_and_unload() if merge else adapted


def position_limit(loaded: Any) -> int | None:
    """How many tokens a model has positions for; None where it has no limit (T5)."""
    from torch import nn

    limit = getattr(loaded.config.get_text_config(), "max_position_embeddings", None)
    for name, module in loaded.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding id
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - taken
    return limit if isinstance(limit, int) and limit > 0 else None


def _auto_class(config: Any) -> Any:
    from transformers import AutoModel, AutoModelForTextEncoding

    # for T5 and its kin there is a class that reads the encoder's weights alone
    alone = type(config) in AutoModelForTextEncoding._model_mapping
    return AutoModelForTextEncoding if config.is_encoder_decoder and alone else AutoModel


def _quantization(bits: int | None, compute: Any) -> Any:
    if bits is None:
        return None
    if bits not in (4, 8):
        raise EncoderError(f"options.quantize_bits {bits}: use 4 or 8, or leave it out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EncoderError(
            f"options.quantize_bits {bits} needs bitsandbytes; install it with `pip install "
            "'mmkd[quantize]'`, or remove the option"
        )
    from transformers import BitsAndBytesConfig

    settings: dict[str, Any] = {"load_in_8bit": True}
    if bits == 4:
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": compute,
        }
    config: Any = BitsAndBytesConfig
    return config(**settings)


def _adapter_folder(adapter: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    if (path := local_path(adapter)) is not None:
        if revision is not None:
            raise EncoderError(f"adapter {adapter}: a local path has no revision; remove it")
        folder = path
    else:
        try:
            wanted = ["adapter_config.json", _ADAPTER_WEIGHTS]
            folder = Path(snapshot_download(adapter, revision=revision, allow_patterns=wanted))
        except Exception as error:
            raise loading_error(adapter, error) from error
    for name in ("adapter_config.json", _ADAPTER_WEIGHTS):
        # without this file peft would go on to a pickled one, or to the hub
        if not (folder / name).is_file():
            raise EncoderError(
                f"adapter {adapter}: {folder / name} does not exist; name a folder as peft saves "
                "it, with safetensors"
            )
    return folder
