"""Low-rank adapters on an encoder's model, through peft: put on before tuning, kept or merged.

LoRA (Hu et al., arXiv:2106.09685); on a model whose weights are quantised, QLoRA
(arXiv:2305.14314).
"""

from pathlib import Path
from typing import Any

import torch

from mmkd.errors import EncoderError
from mmkd.tuning.arguments import TuningArguments


def prepare(model: Any, arguments: TuningArguments, *, seed: int) -> Any:
    """Put on a model what its tuning asks for, in place: adapters, gradient checkpointing.

    Args:
        model: A model of transformers, or one of sentence-transformers around it.
        arguments: Of the tuning.
        seed: Of the adapters' start, the same in all processes.

    Returns:
        peft's model around it, for ``keep_adapter`` and ``merge_adapter``; None without adapters.

    Raises:
        EncoderError: peft is not installed, or the model cannot checkpoint.
    """
    inner = getattr(model, "transformers_model", None) or model
    adapted = None
    if arguments.lora_rank is not None:
        adapted = _adapted(model, inner, arguments, seed)
    if arguments.gradient_checkpointing:
        if adapted is not None:
            inner.enable_input_require_grads()  # or nothing behind it would get a gradient
        try:
            inner.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise EncoderError(f"gradient_checkpointing: {error}; leave it out") from error
    return adapted


def _adapted(model: Any, inner: Any, arguments: TuningArguments, seed: int) -> Any:
    try:
        import peft
    except ImportError as error:
        raise EncoderError(
            "lora_rank needs peft; install it with `pip install 'mmkd[peft]'`, or leave lora_rank "
            "out to tune all weights"
        ) from error
    rank = arguments.lora_rank or 1
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=arguments.lora_alpha or 2 * rank,
        lora_dropout=arguments.lora_dropout,
        target_modules="all-linear",
    )
    model.requires_grad_(False)
    torch.manual_seed(seed)
    return peft.get_peft_model(inner, config)


def keep_adapter(adapted: Any, folder: Path) -> None:
    """Write the adapters alone, as ``options.adapter`` of a card reads them."""
    adapted.save_pretrained(str(folder), safe_serialization=True)


def merge_adapter(adapted: Any) -> None:
    """Add the adapters into the weights, in place."""
    adapted.merge_and_unload()
