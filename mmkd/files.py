"""Files: written whole or not at all, by one writer at a time; JSON and YAML read in one way."""

import json
import logging
import mmap
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmkd.errors import CacheError

_logger = logging.getLogger(__name__)
_TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path``; on success the file takes the place of ``path``.

    The bytes reach the disk before the name does, and the name before this returns, so that a
    killed process or a power cut leaves the old file or the new one.

    Args:
        path: The file to write; its folder is made where it does not exist.

    Yields:
        The name to write to.

    Raises:
        CacheError: The folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    temporary = temporary.with_name(temporary.name + _TEMPORARY_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        # the folder may not even exist; there is then nothing to remove
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass


def write_text(path: Path, text: str) -> None:
    """Writes a small UTF-8 file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.
        keys: That it must have.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no JSON object, or lacks one of the keys.
    """
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    if missing := sorted(set(keys) - content.keys()):
        raise ValueError(f"lacks {', '.join(missing)}")
    return content


def read_yaml(path: Path, *, resolve: bool = False) -> dict[str, Any]:
    """Reads a YAML mapping; ``1e-3`` is a number, and no object but plain ones is made.

    Args:
        path: The file.
        resolve: Whether interpolations such as ``${seed}`` are replaced by what they name.

    Raises:
        OSError: It cannot be read.
        yaml.YAMLError, OmegaConfBaseException: It is no YAML.
        ValueError: It holds no mapping.
    """
    from omegaconf import DictConfig, OmegaConf

    config = OmegaConf.load(path)
    if not isinstance(config, DictConfig):
        raise ValueError("holds a list, wanted a mapping")
    content = OmegaConf.to_container(config, resolve=resolve)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def remove_temporaries(folder: Path, *, older_than_s: float = 86_400.0) -> None:
    """Removes what killed writers left in a folder (not in its subfolders).

    Args:
        folder: The folder.
        older_than_s: Age of what no living writer is taken to hold.

    Raises:
        CacheError: The folder cannot be written.
    """
    for path in folder.glob(f".*{_TEMPORARY_SUFFIX}"):
        try:
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unwritable(path, error) from error


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Holds a folder's writer lock; waits while another process or thread holds it.

    The operating system frees the lock of a killed process.

    Raises:
        CacheError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "writer.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _logger.info("%s: another process is writing; waiting for it", folder)
            lock.acquire()
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def unwritable(path: Path, error: OSError) -> CacheError:
    """The error for a file that cannot be written."""
    return CacheError(
        f"{path}: cannot be written ({error.strerror or error}); free the disk or the folder's "
        "permissions, or choose another folder with MMKD_CACHE"
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_checksum(path: Path) -> int:
    """CRC-32 of a file's bytes.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is empty.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return zlib.crc32(content)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON to ``path`` atomically."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, lambda file: file.write_text(text, "utf-8"))
