"""Loading a model with transformers: safetensors only, and never with a weight made up.

From: a card's ``model``. To: the model in inference mode and the names of weights that its files
lack.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from mmkd.encoders.base import EncoderError
from mmkd.encoders.model_source import loading_error, resolve_model


def load_model(
    model: str, *, revision: str | None, dtype: str, trust_remote_code: bool, device: str
) -> tuple[Any, list[str]]:
    """Loads a model with transformers' ``AutoModel``.

    Args:
        model: Hub id, local path or ``package:NAME``.
        revision: Commit, tag or branch on the hub; version of a package.
        dtype: Precision of the weights.
        trust_remote_code: Whether the model's repository may run its own code here.
        device: Where the model runs.

    Returns:
        The model, and the names of its weights that the files do not hold: transformers filled
        those at random, so the caller must not use them (see `check_weights`).

    Raises:
        EncoderError: The model or its weights are missing, or not in safetensors.
    """
    import torch
    from transformers import AutoModel

    source, revision = resolve_model(model, revision=revision)
    try:
        with _quietly():
            loaded, report = AutoModel.from_pretrained(
                source,
                revision=revision,
                trust_remote_code=trust_remote_code,
                # pickled weights are refused: a checkpoint must be safetensors
                use_safetensors=True,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
            )
    # the library, torch, the hub client and its transport each raise their own kind
    except Exception as error:
        raise loading_error(model, error) from error
    return loaded.to(device).eval(), sorted(report["missing_keys"])


def load_part(auto: Any, model: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """Loads a model's tokenizer or image processor.

    Args:
        auto: ``AutoTokenizer`` or ``AutoImageProcessor``.
        model: As in `load_model`, as are the other arguments.
        revision: Commit, tag or branch on the hub; version of a package.
        trust_remote_code: Whether the model's repository may run its own code here.

    Returns:
        What ``auto.from_pretrained`` gives.

    Raises:
        EncoderError: The model has none.
    """
    source, revision = resolve_model(model, revision=revision)
    try:
        with _quietly():
            return auto.from_pretrained(
                source, revision=revision, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise loading_error(model, error) from error


def check_weights(model: str, missing: list[str]) -> None:
    """Raises EncoderError if weights are missing: random ones never stand in for them."""
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise EncoderError(
            f"model {model}: its files lack {missing[0]}{more}, and random weights never stand in "
            "for missing ones; use complete files, or another kind if these are of another model"
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' own reports and bars: what matters in them becomes an error here."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
