"""Where a model's files come from, and what is made of them: complete models, never half random.

From: a card's ``model`` (hub id, local path or installed package), ``pretrained`` or adapter. To: a
loaded transformers model, what another model library is to load, and the identity of local files
for the card's fingerprint. Weights are read from safetensors; nothing pickled is.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmkd.errors import EncoderError, outside
from mmkd.hub import hub_reachable
from mmkd.trust import is_trusted, refusal

PACKAGE_PREFIX = "package:"
# that it lacks a faster kernel which no card here uses reads like a failure
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def load_model(
    model: str,
    *,
    revision: str | None,
    dtype: str,
    trust_remote_code: bool,
    device: str,
    quantize_bits: int | None = None,
) -> tuple[Any, list[str]]:
    """Loads a model of transformers, without a head.

    Args:
        model: Hub id, local path or ``package:NAME``.
        revision: Commit, tag or branch on the hub; version of a package.
        dtype: Precision of the weights.
        trust_remote_code: Whether the model's repository may run its own code here.
        device: Where the model runs, or ``"auto"`` for all devices there are.
        quantize_bits: 4 or 8 keeps the weights in so few bits; None in ``dtype``.

    Returns:
        The model, and the names of its weights that the files do not hold: transformers filled
        those at random, so the caller must not use them (see `check_weights`).

    Raises:
        EncoderError: The model or its weights are missing, or not in safetensors, or bitsandbytes
            is not installed.
    """
    import torch
    from transformers import AutoConfig

    source, revision = resolve_model(model, revision=revision)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    quantization = _quantization(quantize_bits, getattr(torch, dtype))
    # quantised weights are made on the device where they stay
    placed = device == "auto" or quantization is not None
    with loading(model), quietly():
        auto = _auto_class(AutoConfig.from_pretrained(source, **common))
        loaded, report = auto.from_pretrained(
            source,
            **common,
            use_safetensors=True,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            quantization_config=quantization,
            device_map=("auto" if device == "auto" else {"": device}) if placed else None,
        )
    for part in loaded.modules() if quantization is not None else ():
        # bitsandbytes packs weights for some processors when first asked; no gradient passes then
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    return (loaded if placed else loaded.to(device)).eval(), sorted(report["missing_keys"])


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
    with loading(model), quietly():
        return auto.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)


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
    with loading(adapter), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(
            loaded, str(folder), key_mapping=mapping, torch_device=str(loaded.device)
        )
    if any("missing adapter keys" in str(warning.message) for warning in caught):
        raise EncoderError(
            f"adapter {adapter} lacks weights for parts of this model that its config names; it "
            "was made for another architecture, or its file is incomplete"
        )
    return adapted.merge_and_unload() if merge else adapted


def check_weights(model: str, missing: list[str]) -> None:
    """Raises EncoderError if weights are missing: random ones never stand in for them."""
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise EncoderError(
            f"model {model}: its files lack {missing[0]}{more}, and random weights never stand in "
            "for missing ones; use complete files, or another kind if these are of another model"
        )


def check_length(model: str, max_length_tokens: int | None, positions: int | None) -> None:
    """Raises EncoderError if a card wants more tokens than the model has positions for."""
    if max_length_tokens is not None and positions is not None and max_length_tokens > positions:
        raise EncoderError(
            f"max_length_tokens {max_length_tokens} is more than the {positions} that {model} "
            "takes; lower it in the card"
        )


def position_limit(loaded: Any) -> int | None:
    """How many tokens a model has positions for; None where it says no limit (T5)."""
    from torch import nn

    for name, module in loaded.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding id
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - taken
    if (config := getattr(loaded, "config", None)) is None:
        return None
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' reports and bars: what matters in them becomes an error here."""
    import huggingface_hub.utils
    import transformers

    hub: Any = huggingface_hub.utils
    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    downloads = not hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if downloads:  # which may take minutes
        hub.enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars and downloads:  # it enables both
            logging.enable_progress_bar()


def _auto_class(config: Any) -> Any:
    from transformers import AutoModel, AutoModelForTextEncoding

    # for T5 and its kin there is a class that reads the encoder's weights alone
    alone = type(config) in AutoModelForTextEncoding._model_mapping
    return AutoModelForTextEncoding if config.is_encoder_decoder and alone else AutoModel


def _quantization(bits: int | None, compute: Any) -> Any:
    """What transformers is told about weights in 4 or 8 bits."""
    if bits is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EncoderError(
            f"options.quantize_bits {bits} needs bitsandbytes; install it with `pip install "
            "'mmkd[quantize]'`, or remove the option"
        )
    import transformers

    config: Any = transformers.BitsAndBytesConfig
    if bits == 8:
        return config(load_in_8bit=True)
    return config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _adapter_folder(adapter: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    files = ["adapter_config.json", "adapter_model.safetensors"]
    if (path := local_path(adapter)) is not None:
        if revision is not None:
            raise EncoderError(f"adapter {adapter}: a local path has no revision; remove it")
        folder = path
    else:
        with loading(adapter):
            folder = Path(snapshot_download(adapter, revision=revision, allow_patterns=files))
    for name in files:
        # without this file peft would go on to a pickled one, or to the hub
        if not (folder / name).is_file():
            raise EncoderError(
                f"adapter {adapter}: {folder / name} does not exist; name a folder as peft saves "
                "it, with safetensors"
            )
    return folder


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Turns whatever a library raises inside into one message.

    Args:
        what: The model as the card names it.

    Raises:
        EncoderError: With the cause's first line, where the files were looked for, and the remedy.
    """
    from huggingface_hub import constants

    local = local_path(what) is not None or what.startswith(PACKAGE_PREFIX)
    try:
        with contextlib.nullcontext() if local else _asking_once():
            yield
    except EncoderError:
        raise
    # the libraries, torch, the hub client and its transport each raise their own kind
    except Exception as error:
        # the first line is enough; the whole chain follows as the cause
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if local:
            message = f"model {what} could not be loaded from its local files: {reason}"
        else:
            state = "on: nothing is downloaded" if constants.HF_HUB_OFFLINE else "off"
            if state == "off" and not hub_reachable():
                state = f"off, but {constants.ENDPOINT} can't be reached"
            message = (
                f"model {what} could not be loaded: {reason} Looked in the hub cache "
                f"{constants.HF_HUB_CACHE} (set by HF_HOME or HF_HUB_CACHE; HF_HUB_OFFLINE is "
                f"{state}). Without a network, copy the model's folder here and put its path, such "
                "as /models/NAME or ./NAME, in the card"
            )
        raise EncoderError(message) from error


@contextlib.contextmanager
def _asking_once() -> Iterator[None]:
    """Where the hub can't be reached, as with HF_HUB_OFFLINE: its clients would try for minutes."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def resolve_model(model: str, *, revision: str | None) -> tuple[str, str | None]:
    """What to load for a card's ``model``.

    Args:
        model: Hub id, local path or ``package:NAME``; such a package has ``get_model_path()``.
        revision: The card's revision.

    Returns:
        A hub id or an existing local path, and the revision to ask the hub for.

    Raises:
        EncoderError: The path or package does not exist, the package has another version than
            ``revision`` or is not trusted (`mmkd.trust`), or a local path has a revision.
    """
    if model.startswith(PACKAGE_PREFIX):
        return str(_package_folder(model.removeprefix(PACKAGE_PREFIX), revision)), None
    path = local_path(model)
    if path is not None:
        if revision is not None:
            raise EncoderError(f"model {model}: a local path has no revision; remove it")
        if not path.exists():
            raise EncoderError(f"model {model}: {path} does not exist; correct the card's path")
        return str(path), None
    if Path(model).exists():
        # model libraries would silently take the folder for the hub's model of that name
        raise EncoderError(
            f"model {model!r} reads as a hub id but is also a path here; write ./{model} for the "
            "path, or run from another folder"
        )
    return model, revision


def is_installed(package: str) -> bool:
    """Whether ``package:NAME`` is here and may be imported, which it is not to say so."""
    try:
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            return False
        # the module that it lies in is imported to look for it
        return is_trusted(package) and importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _package_folder(package: str, revision: str | None) -> Path:
    if not is_trusted(package):
        raise EncoderError(f"model {refusal(PACKAGE_PREFIX + package, package)}")
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise EncoderError(
            f"model {PACKAGE_PREFIX}{package}: that package is not installed; install it with "
            f"`pip install {package.replace('_', '-')}`"
        ) from error
    version = getattr(module, "__version__", None)
    if revision is not None and version != revision:
        raise EncoderError(
            f"model {PACKAGE_PREFIX}{package}: version {version} is installed, the card wants "
            f"{revision}; install that version or change the card's revision"
        )
    try:
        folder = Path(module.get_model_path())
    except AttributeError as error:
        raise EncoderError(
            f"model {PACKAGE_PREFIX}{package}: the package has no get_model_path(); name one that "
            "carries a model"
        ) from error
    if not folder.is_dir():
        raise EncoderError(f"model {PACKAGE_PREFIX}{package}: {folder} is missing; reinstall it")
    return folder


def local_path(source: str) -> Path | None:
    """The path that ``source`` spells, or None for a hub id, tag or package.

    Only ``/``, ``./``, ``../``, ``~`` (or a drive) at the start make a path, so a folder that
    happens to be called like a hub id never stands in for it.
    """
    dotted = source.startswith(("./", "../", "~")) or source in (".", "..")
    if dotted or Path(source).is_absolute():
        return Path(source).expanduser().resolve()
    return None


def content_identity(source: str) -> str:
    """What identifies the files behind ``source`` in a fingerprint.

    Returns:
        A digest of names and contents for an existing local file or folder; ``source`` itself for
        everything else. Hidden files and ``*.md`` do not count.

    Raises:
        EncoderError: A file cannot be read.
    """
    path = local_path(source)
    if path is None or not path.exists():
        return source
    digest = hashlib.sha256()
    with outside(EncoderError, path, "cannot be read", remedy="correct the card's path"):
        for file in [path, *sorted(path.rglob("*"))]:
            # a single file counts by its contents only, so a renamed checkpoint is the same one
            name = "" if file == path else file.relative_to(path).as_posix()
            if name.endswith(".md") or "/." in f"/{name}" or not file.is_file():
                continue
            status = file.stat()
            digest.update(f"{name}\0".encode())
            digest.update(_file_digest(file, status.st_size, status.st_mtime_ns))
    return f"sha256:{digest.hexdigest()}"


@lru_cache(maxsize=1024)
def _file_digest(file: Path, size_bytes: int, modified_ns: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
