"""Finding damaged files: a CRC-32 over the whole file, some GB/s and no defence against forgery."""

import mmap
import zlib
from pathlib import Path


def file_checksum(path: Path) -> int:
    """CRC-32 of a file's bytes.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is empty.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return zlib.crc32(content)
