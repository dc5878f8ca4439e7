"""Where a model's files come from: the hub, a local path, or an installed package.

From: a card's ``model`` or ``pretrained``. To: what a model library loads, and the identity of
local files for the card's fingerprint.
"""

import hashlib
import importlib
import importlib.metadata
import os
from functools import lru_cache
from pathlib import Path

from mmkd.encoders.base import EncoderError

PACKAGE_PREFIX = "package:"
_BLOCK_BYTES = 1 << 20


def local_path(source: str) -> Path | None:
    """The path that ``source`` spells, or None for a hub id, tag or package.

    Only ``/``, ``./``, ``../``, ``~`` (or a drive) at the start make a path, so a folder that
    happens to be called like a hub id never stands in for it.
    """
    dotted = source.startswith(("./", "../", "~")) or source in (".", "..")
    if dotted or Path(source).is_absolute():
        return Path(source).expanduser().resolve()
    return None


def resolve_model(model: str, *, revision: str | None) -> tuple[str, str | None]:
    """What to load for a card's ``model``.

    Args:
        model: Hub id, local path or ``package:NAME``; such a package has ``get_model_path()``.
        revision: The card's revision.

    Returns:
        A hub id or an existing local path, and the revision to ask the hub for.

    Raises:
        EncoderError: The path or package does not exist, the package has another version than
            ``revision``, or a local path has a revision.
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


def loading_error(what: str, error: Exception) -> EncoderError:
    """One message for a model that did not load.

    Args:
        what: The model as the card names it.
        error: What the library raised.

    Returns:
        The error to raise from ``error``.
    """
    from huggingface_hub import constants

    # the first line is enough; the whole chain follows as the cause
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if local_path(what) is not None or what.startswith(PACKAGE_PREFIX):
        return EncoderError(f"model {what} could not be loaded from its local files: {reason}")
    state = "on: nothing is downloaded" if constants.HF_HUB_OFFLINE else "off"
    return EncoderError(
        f"model {what} could not be loaded: {reason} Looked in the hub cache "
        f"{constants.HF_HUB_CACHE} (set by HF_HOME or HF_HUB_CACHE; HF_HUB_OFFLINE is {state}). "
        "Without a network, copy the model's folder here and put its path, such as "
        "/models/NAME or ./NAME, in the card"
    )


def content_identity(source: str) -> str:
    """What identifies the files behind ``source`` in a fingerprint.

    Returns:
        A digest of names and contents for an existing local file or folder; ``source`` itself for
        everything else. Hidden files and ``*.md`` do not count.
    """
    path = local_path(source)
    if path is None or not path.exists():
        return source
    files = [path] if path.is_file() else sorted(_model_files(path))
    digest = hashlib.sha256()
    for file in files:
        # a single file counts by its contents only, so a renamed checkpoint is the same one
        name = "" if file == path else file.relative_to(path).as_posix()
        status = file.stat()
        digest.update(f"{name}\0".encode())
        digest.update(_file_digest(file, status.st_size, status.st_mtime_ns))
    return f"sha256:{digest.hexdigest()}"


def _model_files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and not name.endswith(".md")
        ]
    return found


@lru_cache(maxsize=1024)
def _file_digest(file: Path, size_bytes: int, modified_ns: int) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


def _package_folder(package: str, revision: str | None) -> Path:
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
