"""Files: written whole or not at all, by one writer at a time; each format read in one way.

A sealed file carries the SHA-256 of its own bytes, so that a flipped one is told wherever it is: as
the last key of a JSON object, in the footer of a Parquet file. It is to find damage, not forgery.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray

_logger = logging.getLogger(__name__)
_TEMPORARY_SUFFIX = ".tmp"
_GROUP_ROWS = 1 << 20  # of Parquet in memory
_ABANDONED_S = 86_400.0  # no living writer takes so long
_SEALED, _SEAL = "sealed", "sha256"  # two keys: a flip in one leaves the other to miss it
_UNSEALED = "0" * 64  # stands in the seal's place while the digest is taken


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
    before, blank, after = _json({_SEALED: _SEAL, **content, _SEAL: _UNSEALED}).rpartition(
        _UNSEALED
    )
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
    if {_SEALED, _SEAL} & content.keys():
        _check_seal(text.encode(), str(content.get(_SEAL)))
    if missing := sorted(set(keys) - content.keys()):
        raise ValueError(f"lacks {', '.join(missing)}")
    return {key: value for key, value in content.items() if key not in (_SEALED, _SEAL)}


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


def write_parquet(
    path: Path, frame: "pl.DataFrame", metadata: Mapping[str, object] | None = None
) -> None:
    """Writes a frame as sealed Parquet, whole or not at all.

    Args:
        path: The file.
        frame: Its columns.
        metadata: What is kept with them as JSON, by name.

    Raises:
        OSError: It cannot be written.
    """
    write_parquet_parts(path, [frame], metadata)


def write_parquet_parts(
    path: Path, parts: "Iterable[pl.DataFrame]", metadata: Mapping[str, object] | None = None
) -> None:
    """As `write_parquet`, of frames one after the other, each a row group or more.

    Args:
        path: The file.
        parts: Their rows; at least one part, all with the same columns.
        metadata: What is kept with them as JSON, by name.

    Raises:
        OSError: It cannot be written.
    """
    import polars as pl
    import pyarrow.parquet as pq

    tables = (part.to_arrow(compat_level=pl.CompatLevel.oldest()) for part in parts)
    first = next(tables)
    about = {name: json.dumps(content) for name, content in (metadata or {}).items()}
    about |= {f"mmkd.{_SEALED}": _SEAL, f"mmkd.{_SEAL}": _UNSEALED}
    with replacing(path) as temporary:
        with pq.ParquetWriter(
            temporary, first.schema, compression="zstd", write_page_checksum=True
        ) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
            writer.add_key_value_metadata(about)
        with temporary.open("r+b") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            place, footer = _footer(file)
            file.seek(place + footer.rindex(_UNSEALED.encode()))
            file.write(digest.encode())


def write_arrow(
    path: Path, batch: "pa.RecordBatch", metadata: Mapping[str, object] | None = None
) -> None:
    """Writes columns as they lie in memory, sealed, whole or not at all; `ArrowMap` maps them.

    Args:
        path: The file, an Arrow stream of one batch.
        batch: The columns.
        metadata: What is kept with them as JSON, by name.

    Raises:
        OSError: It cannot be written.
    """
    import pyarrow as pa

    about = {name: json.dumps(content) for name, content in (metadata or {}).items()}
    batch = batch.replace_schema_metadata(about | {f"mmkd.{_SEAL}": _UNSEALED})
    with replacing(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as out:
            out.write_batch(batch)
        with temporary.open("r+b") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            place = _head(file).rindex(_UNSEALED.encode())
            file.seek(place)
            file.write(digest.encode())


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does; OSError where it cannot be read."""
    with open_plain(path) as file:
        return file.read(4) == b"PAR1"


def read_parquet(
    path: Path, columns: Sequence[str] | None = None
) -> tuple["pl.DataFrame", dict[str, Any]]:
    """Reads a frame that `write_parquet` wrote, this version's or an older one's.

    Args:
        path: The file.
        columns: Those wanted; by default all.

    Returns:
        The frame, and what was kept with it.

    Raises:
        OSError: It cannot be read for now, which says nothing about what is in it.
        ValueError: It is no Parquet, lacks a column, or is altered.
    """
    with open_plain(path) as file:
        return parse_parquet(file.read(), columns)


def parse_parquet(
    content: bytes, columns: Sequence[str] | None = None
) -> tuple["pl.DataFrame", dict[str, Any]]:
    """As `read_parquet`, of a file's bytes; ValueError where they are none or altered."""
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        about = opened.metadata.metadata or {}
        seals = f"mmkd.{_SEALED}".encode(), f"mmkd.{_SEAL}".encode()
        # in the footer's bytes: of what they say a flip may hide a part
        footer = content[-8 - int.from_bytes(content[-8:-4], "little") :]
        if any(seal in footer for seal in seals):
            _check_seal(content, about.get(seals[1], b"").decode())
        arrow = opened.read(columns=None if columns is None else list(columns), use_threads=False)
        arrow.validate(full=True)  # of a file that is not sealed
        frame = pl.DataFrame(pl.from_arrow(arrow))
        kept = _kept(about)
    except (OSError, KeyError, pa.ArrowException) as error:  # of bytes that are in memory
        raise ValueError(next(iter(str(error).splitlines()), "no Parquet")) from error
    if columns is not None and (missing := sorted(set(columns) - set(frame.columns))):
        raise ValueError(f"lacks {', '.join(missing)}")
    return frame, kept


class ArrowMap:
    """A file that `write_arrow` wrote, mapped into memory, its seal checked before.

    Its pages are read when they are touched, and are those of all processes that map the file.
    What is written to an array stays with this process.

    Args:
        path: The file.

    Attributes:
        kept: What was kept with it, by name.

    Raises:
        OSError: It cannot be read for now.
        ValueError: It is no such file, not sealed, or is altered.
    """

    kept: dict[str, Any]

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        with open_plain(path) as file:
            try:
                about = pa.ipc.read_schema(pa.BufferReader(_head(file))).metadata or {}
                _check_head_seal(file, about.get(f"mmkd.{_SEAL}".encode(), b"").decode())
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                self._buffer = pa.py_buffer(self._mapped)
                self._batch = pa.ipc.open_stream(pa.BufferReader(self._buffer)).read_next_batch()
            except pa.ArrowException as error:
                raise ValueError(next(iter(str(error).splitlines()), "no Arrow stream")) from error
        self.kept = _kept(about)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._batch.num_rows)

    def texts(self, name: str) -> "pl.Series":
        """A column of text."""
        import polars as pl

        return pl.Series(pl.from_arrow(self._batch.column(name)))

    def numbers(self, name: str) -> "NDArray[Any]":
        """Of a column of lists of numbers the lists' numbers, one list after the other."""
        import numpy as np

        values = self._batch.column(name).values
        dtype = np.dtype(values.type.to_pandas_dtype())
        start = values.buffers()[1].address - self._buffer.address
        return np.frombuffer(self._mapped, dtype, count=len(values), offset=start)


def read_any_parquet(source: Path | bytes) -> "pl.DataFrame":
    """Reads whoever's Parquet, its cells checked to be what their column is.

    Not by polars: of a damaged file it takes lengths at their word, and takes the process down.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: It cannot be read, or is none.
    """
    return ParquetColumns(source).frame()


class ParquetColumns:
    """Whoever's Parquet by columns, each read when it is asked for.

    Args:
        source: The file, mapped into memory, or its bytes.

    Attributes:
        header: The columns without rows.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: It cannot be read, or is none; by the methods
            too.
    """

    header: "pl.DataFrame"

    def __init__(self, source: "Path | bytes | pa.Buffer") -> None:
        import polars as pl
        import pyarrow as pa

        self._source = source if isinstance(source, Path) else pa.BufferReader(source)
        self._file = self._opened()
        self.header = pl.DataFrame(pl.from_arrow(self._file.schema_arrow.empty_table()))

    @classmethod
    def of_parts(cls, header: "pl.DataFrame", parts: "Iterable[pl.DataFrame]") -> Self:
        """Frames one after the other, packed in memory.

        Args:
            header: Their columns.
            parts: Their rows.
        """
        import polars as pl
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = header.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            held, rows = [header], 0
            for part in parts:
                held.append(part)
                rows += part.height
                if rows >= _GROUP_ROWS:
                    writer.write_table(
                        pl.concat(held).to_arrow(compat_level=pl.CompatLevel.oldest())
                    )
                    held, rows = [header], 0
            writer.write_table(pl.concat(held).to_arrow(compat_level=pl.CompatLevel.oldest()))
        return cls(sink.getvalue())

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._file.metadata.num_rows)

    def frame(self, *names: str) -> "pl.DataFrame":
        """All columns, or those that are named."""
        import polars as pl

        table = self._file.read(columns=[*names] or None)
        table.validate(full=True)
        found = pl.DataFrame(pl.from_arrow(table))
        found.columns = table.column_names  # polars names one that has none
        return found.select(names) if names else found

    def parts(self, name: str) -> "Iterator[pl.Series]":
        """A column, a row group at a time."""
        import polars as pl

        for group in range(self._file.num_row_groups):
            table = self._file.read_row_group(group, columns=[name])
            table.validate(full=True)
            yield pl.DataFrame(pl.from_arrow(table))[name]

    def is_text(self, name: str) -> bool:
        """Whether a column is one of text, or of categories of text."""
        import pyarrow as pa

        kind = self._file.schema_arrow.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def coded(self, name: str) -> "tuple[NDArray[np.int32], pl.Series]":
        """A column of text as numbers: [n] of texts, -1 for null, and the texts, [K], each once."""
        import numpy as np
        import polars as pl
        import pyarrow as pa

        table = self._opened(read_dictionary=[name]).read(columns=[name])
        table.validate(full=True)
        parts = [  # together their texts may take more than offsets of 32 bits reach
            pa.DictionaryArray.from_arrays(
                part.indices.cast(pa.int32()), part.dictionary.cast(pa.large_string())
            )
            for part in table[name].chunks
        ]
        kind = pa.dictionary(pa.int32(), pa.large_string())
        column = pa.chunked_array(parts, kind).unify_dictionaries()
        del table, parts  # each part with texts of its own
        codes = np.empty(len(column), np.int32)
        texts, at = pl.Series(dtype=pl.String), 0
        for chunk in column.chunks:
            codes[at : at + len(chunk)] = chunk.indices.fill_null(-1)
            texts, at = pl.Series(pl.from_arrow(chunk.dictionary), dtype=pl.String), at + len(chunk)
        return codes, texts

    def _opened(self, **options: Any) -> Any:
        import pyarrow.parquet as pq

        mapped = isinstance(self._source, Path)
        return pq.ParquetFile(
            self._source, memory_map=mapped, page_checksum_verification=True, **options
        )


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


def _check_seal(content: bytes, digest: str) -> None:
    """ValueError unless ``content``, which holds ``digest``, had it when it was sealed."""
    before, found, after = content.rpartition(digest.encode())
    if not found or hashlib.sha256(before + _UNSEALED.encode() + after).hexdigest() != digest:
        raise ValueError("its checksum differs")


def _head(file: io.BufferedReader | io.BufferedRandom) -> bytes:
    """The schema of an Arrow stream."""
    file.seek(0)
    start = file.read(8)
    if start[:4] != b"\xff" * 4:
        raise ValueError("is no Arrow stream")
    return start + file.read(int.from_bytes(start[4:], "little"))


def _check_head_seal(file: io.BufferedReader, digest: str) -> None:
    """As `_check_seal`, of an Arrow stream, which has it in its schema."""
    if not digest:
        raise ValueError("has no checksum")
    before, found, after = _head(file).rpartition(digest.encode())
    sha = hashlib.sha256(before + _UNSEALED.encode() + after)
    for part in iter(lambda: file.read(1 << 20), b""):
        sha.update(part)
    if not found or sha.hexdigest() != digest:
        raise ValueError("its checksum differs")


def _footer(file: io.BufferedReader | io.BufferedRandom) -> tuple[int, bytes]:
    """Where a Parquet file's footer begins, and its bytes up to the end."""
    end = file.seek(-8, os.SEEK_END)
    place = max(end - int.from_bytes(file.read(4), "little"), 0)
    file.seek(place)
    return place, file.read()


def _kept(about: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What was kept with a Parquet file, of its metadata."""
    seals = f"mmkd.{_SEALED}".encode(), f"mmkd.{_SEAL}".encode()
    return {
        name.decode(): json.loads(value)
        for name, value in about.items()
        if name.startswith(b"mmkd.") and name not in seals
    }


def _refuse_special(mode: int, path: Path | str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))
