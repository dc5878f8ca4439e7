"""Ways to damage one shard of an embedding store, given its vector file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np


def flip_bytes(vectors: Path, draw: np.random.Generator) -> None:
    """Inverts 16 bytes inside the vectors."""
    content = bytearray(vectors.read_bytes())
    start = int(draw.integers(128, len(content) - 16))
    content[start : start + 16] = bytes(255 - byte for byte in content[start : start + 16])
    vectors.write_bytes(content)


def remove_vectors(vectors: Path, draw: np.random.Generator) -> None:
    """Removes the vector file."""
    vectors.unlink()


def truncate_records(vectors: Path, draw: np.random.Generator) -> None:
    """Cuts the records to a part of their length."""
    records = vectors.with_suffix(".parquet")
    content = records.read_bytes()
    records.write_bytes(content[: int(draw.integers(1, len(content)))])


def leave_temporary(vectors: Path, draw: np.random.Generator) -> None:
    """Leaves half a file as a killed writer would."""
    content = vectors.read_bytes()
    left = vectors.with_name(f".{vectors.name}.1-0badcafe.tmp")
    left.write_bytes(content[: len(content) // 2])


DAMAGES: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "16 bytes of a shard flipped": flip_bytes,
    "a .npy removed": remove_vectors,
    "a records .parquet truncated": truncate_records,
    "a temporary file left behind": leave_temporary,
}
