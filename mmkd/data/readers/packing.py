"""Packed files (gzip, zstd) to what they hold, some at a time; a plain one is read as it is.

What a file is packed with is told by its first bytes, whatever its name.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from mmkd.errors import DataError, outside
from mmkd.files import open_plain

SUFFIXES: Final = (".gz", ".gzip", ".zst", ".zstd")
_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BUFFER = 1 << 20


def packing(file: Path) -> str | None:
    """What a file is packed with; None where it is not.

    Raises:
        OSError: It cannot be read.
    """
    with open_plain(file) as opened_file:
        first = opened_file.read(4)
    return next((name for magic, name in _MAGIC.items() if first.startswith(magic)), None)


@contextmanager
def opened(content: Path | bytes) -> Iterator[BinaryIO]:
    """What a file holds, unpacked as it is read; or bytes as a file.

    Raises:
        OSError: It cannot be read.
        DataError: What it is packed in is damaged; as it is read.
    """
    if isinstance(content, bytes):
        yield io.BytesIO(content)
    elif (kind := packing(content)) is None:
        with open_plain(content) as file:
            yield file
    else:
        with _unpacking(content, kind) as stream:
            yield io.BufferedReader(_Unpacked(stream, content, kind), _BUFFER)


def _unpacking(file: Path, kind: str) -> Any:
    if kind == "gzip":
        return gzip.open(file)
    import pyarrow as pa

    return pa.CompressedInputStream(open_plain(file), kind)  # of a name that is no UTF-8 too


class _Unpacked(io.RawIOBase):
    """A stream that unpacks, whose errors are told as the file's."""

    def __init__(self, stream: Any, path: Path, kind: str) -> None:
        self._stream, self._path, self._kind = stream, path, kind

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with outside(
            DataError,
            self._path,
            f"damaged {self._kind} data",
            remedy="fetch the file again",
            also=(zlib.error, EOFError),
        ):
            return int(self._stream.readinto(buffer))
