"""Files: written whole or not at all, by one writer at a time; each format read in one way.

A sealed file carries the SHA-256 of its own bytes, so that a flipped one is told wherever it is: as
the last key of a JSON object, in the footer of a Parquet file (`mmkd.column_files`). It is to find
damage, not forgery.
What the operating system refuses is an OSError here; each caller words it for its own readers with
`mmkd.errors.outside`.
"""

import errno
import hashlib
import io
import json
import logging
import mmap
import os
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_logger = logging.getLogger(__name__)
_TEMPORARY_SUFFIX = ".tmp"
_ABANDONED_S = 86_400.0  # no living writer takes so long
SEALED, SEAL = "sealed", "sha256"  # two keys: a flip in one leaves the other to miss it
UNSEALED = "0" * 64  # stands in the seal's place while the digest is taken


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
        sync(temporary)
        os.replace(temporary, path)
        for folder in (path.parent, *(folder.parent for folder in made)):
            sync(folder)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, of a folder: gives a new one beside ``path`` that takes its place, whole.

    Whether what stands there may go is the caller's to ask. It is moved aside for the moment in
    which the new one takes its name, and then deleted.

    Args:
        path: The folder to write; its own folder is made where it does not exist.

    Yields:
        An empty folder to write to.

    Raises:
        OSError: The folder cannot be written.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*{_TEMPORARY_SUFFIX}"):  # by a killed writer
        if left.is_dir() and time.time() - left.stat().st_mtime >= _ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)
    stem = f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"
    temporary, aside = (path.with_name(f"{stem}{n}{_TEMPORARY_SUFFIX}") for n in ("", "-old"))
    temporary.mkdir()
    try:
        yield temporary
        for file in [*temporary.rglob("*"), temporary]:
            sync(file)
        if path.exists():
            os.replace(path, aside)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        if aside.exists() and not path.exists():  # the new one could not take its place
            os.replace(aside, path)
        for folder in (temporary, aside):
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small UTF-8 file, whole or not at all; OSError where it cannot."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copies a file's content, whole or not at all; OSError where it cannot."""
    with replacing(target) as temporary, source.open("rb") as old, temporary.open("wb") as new:
        shutil.copyfileobj(old, new)


def write_json(path: Path, content: object) -> None:
    """Writes JSON, whole or not at all; OSError where it cannot."""
    write_text(path, _json(content))


def write_sealed_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON object that carries its own digest, which `read_json` checks.

    Raises:
        OSError: It cannot be written.
    """
    before, blank, after = _json({SEALED: SEAL, **content, SEAL: UNSEALED}).rpartition(UNSEALED)
    digest = hashlib.sha256(f"{before}{blank}{after}".encode()).hexdigest()
    write_text(path, f"{before}{digest}{after}")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Reads a JSON object; the digest of a sealed one is checked and left out.

    Args:
        path: The file.
        keys: That it must have.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no JSON object, lacks one of the keys, or is altered.
    """
    text = _text(path)
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    if {SEALED, SEAL} & content.keys():
        check_seal(text.encode(), str(content.get(SEAL)))
    if missing := sorted(set(keys) - content.keys()):
        raise ValueError(f"lacks {', '.join(missing)}")
    return {key: value for key, value in content.items() if key not in (SEALED, SEAL)}


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads a JSON list of objects.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds something else.
    """
    content = json.loads(_text(path))
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
        config = OmegaConf.load(io.StringIO(_text(path)))
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


def yaml_names(kind: str, within: str = ".") -> list[str]:
    """What can be named of a kind, or of a folder within it, such as ``presets``; sorted.

    >>> from mmkd.files import yaml_names
    >>> {"id", "kdsr", "soft"} <= set(yaml_names("recipes", "presets"))
    True
    """
    places = [folder / within for folder in yaml_folders(kind)]
    return sorted({path.stem for place in places for path in place.glob("*.yaml")})


def open_plain(path: Path | str) -> io.BufferedReader:
    """Opens a file to be read; a pipe, a device or a socket is refused at once, not waited for.

    Raises:
        OSError: It is not there, cannot be read, or is none.
    """
    _refuse_special(os.stat(path).st_mode, path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse_special(os.fstat(descriptor).st_mode, path)  # another may have come in its place
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; OSError where it cannot be read."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def remove_temporaries(folder: Path, *, older_than_s: float = _ABANDONED_S) -> None:
    """Removes what killed writers left in a folder (not in its subfolders).

    Args:
        folder: The folder.
        older_than_s: Age of what no living writer is taken to hold.

    Raises:
        OSError: The folder cannot be written.
    """
    for path in temporaries(folder):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()


def temporaries(folder: Path) -> list[Path]:
    """Files in a folder that a writer has begun, living or killed."""
    return [path for path in folder.glob(f".*{_TEMPORARY_SUFFIX}") if path.is_file()]


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk; OSError where that fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some file systems know no sync of a folder; they keep the order of names by themselves
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def _json(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _text(path: Path) -> str:
    with open_plain(path) as file:
        return file.read().decode("utf-8")


def check_seal(content: bytes, digest: str) -> None:
    """ValueError unless ``content``, which holds ``digest``, had it when it was sealed."""
    before, found, after = content.rpartition(digest.encode())
    if not found or hashlib.sha256(before + UNSEALED.encode() + after).hexdigest() != digest:
        raise ValueError("its checksum differs")


def _refuse_special(mode: int, path: Path | str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))
