"""Files: written whole or not at all, by one writer at a time; JSON and YAML read in one way.

What the operating system refuses is an OSError here; each caller words it for its own readers with
`mmkd.errors.outside`.
"""

import errno
import json
import logging
import mmap
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_logger = logging.getLogger(__name__)
_TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path``; on success the file takes the place of ``path``.

    The bytes reach the disk before the name does, and the name before this returns, so that a
    killed process or a power cut leaves the old file or the new one. The file may be read by whom
    the process's umask lets, whatever library writes it.

    Args:
        path: The file to write; its folder is made where it does not exist.

    Yields:
        The name of an empty file to write to.

    Raises:
        OSError: The folder cannot be written.
    """
    name = f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
    temporary = path.with_name(name)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.touch()
        mode = (
            temporary.stat().st_mode
        )  # asked of a new file: a process's umask is its threads' too
        yield temporary
        temporary.chmod(mode)  # safetensors and `tempfile` make files that only their owner reads
        _sync(temporary)
        os.replace(temporary, path)
        for folder in (path.parent, *(folder.parent for folder in made)):
            _sync(folder)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small UTF-8 file, whole or not at all; OSError where it cannot."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Writes JSON, whole or not at all; OSError where it cannot."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


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


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads a JSON list of objects.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds something else.
    """
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise ValueError("no JSON list of objects")
    return content


def read_yaml(path: Path, *, resolve: bool = False) -> dict[str, Any]:
    """Reads a YAML mapping; ``1e-3`` is a number, and no object but plain ones is made.

    Args:
        path: The file.
        resolve: Whether interpolations such as ``${seed}`` are replaced by what they name.

    Raises:
        OSError: It cannot be read.
        yaml.YAMLError, OmegaConfBaseException: It is no YAML.
        ValueError: It holds no mapping, or a value that is none of its tag.
    """
    from omegaconf import DictConfig, OmegaConf

    try:
        config = OmegaConf.load(path)
    except (AttributeError, TypeError, OverflowError) as error:  # PyYAML's own, of odd values
        raise ValueError(f"a value is none of its tag: {error}") from error
    if not isinstance(config, DictConfig):
        raise ValueError("holds a list, wanted a mapping")
    content = OmegaConf.to_container(config, resolve=resolve)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def yaml_folders(kind: str, first: Path | None = None) -> list[Path]:
    """Where ``recipes`` or ``encoders`` are looked up by name, first match wins; those there are.

    ``first``, by default that of the working folder; what came with the package; the checkout's.
    """
    package = Path(__file__).absolute().parent  # a wheel is installed as plain files
    places = [(first or Path(kind)).absolute(), package / "_bundled" / kind]
    if (package.parent / "pyproject.toml").is_file():
        places.append(package.parent / kind)
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def file_checksum(path: Path) -> int:
    """CRC-32 of a file's bytes.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is empty.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return zlib.crc32(content)


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Holds a folder's writer lock; waits while another process or thread holds it.

    The operating system frees the lock of a killed process.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "writer.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _logger.info("%s: another process is writing; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def remove_temporaries(folder: Path, *, older_than_s: float = 86_400.0) -> None:
    """Removes what killed writers left in a folder (not in its subfolders).

    Args:
        folder: The folder.
        older_than_s: Age of what no living writer is taken to hold.

    Raises:
        OSError: The folder cannot be written.
    """
    for path in folder.glob(f".*{_TEMPORARY_SUFFIX}"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some file systems know no sync of a folder; they keep the order of names by themselves
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)
