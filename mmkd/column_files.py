"""Files of columns: Parquet, and Arrow streams that are mapped; sealed as `mmkd.files` says.

Frames in, frames or columns out. Of whoever's Parquet the cells are checked as they are read; what
mmkd wrote is checked as a whole first.
"""

import hashlib
import io
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mmkd.files import SEAL, SEALED, UNSEALED, check_seal, open_plain, replacing

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray

_GROUP_ROWS = 1 << 20  # of Parquet in memory


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
    about |= {f"mmkd.{SEALED}": SEAL, f"mmkd.{SEAL}": UNSEALED}
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
            file.seek(place + footer.rindex(UNSEALED.encode()))
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
    batch = batch.replace_schema_metadata(about | {f"mmkd.{SEAL}": UNSEALED})
    with replacing(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as out:
            out.write_batch(batch)
        with temporary.open("r+b") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            place = _head(file).rindex(UNSEALED.encode())
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
        seals = f"mmkd.{SEALED}".encode(), f"mmkd.{SEAL}".encode()
        # in the footer's bytes: of what they say a flip may hide a part
        footer = content[-8 - int.from_bytes(content[-8:-4], "little") :]
        if any(seal in footer for seal in seals):
            check_seal(content, about.get(seals[1], b"").decode())
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
                _check_head_seal(file, about.get(f"mmkd.{SEAL}".encode(), b"").decode())
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


def _head(file: io.BufferedReader | io.BufferedRandom) -> bytes:
    """The schema of an Arrow stream."""
    file.seek(0)
    start = file.read(8)
    if start[:4] != b"\xff" * 4:
        raise ValueError("is no Arrow stream")
    return start + file.read(int.from_bytes(start[4:], "little"))


def _check_head_seal(file: io.BufferedReader, digest: str) -> None:
    """As `check_seal`, of an Arrow stream, which has it in its schema."""
    if not digest:
        raise ValueError("has no checksum")
    before, found, after = _head(file).rpartition(digest.encode())
    sha = hashlib.sha256(before + UNSEALED.encode() + after)
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
    seals = f"mmkd.{SEALED}".encode(), f"mmkd.{SEAL}".encode()
    return {
        name.decode(): json.loads(value)
        for name, value in about.items()
        if name.startswith(b"mmkd.") and name not in seals
    }
