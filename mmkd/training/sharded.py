"""Item tables over processes on disk: as parts that any number of processes reads, or whole.

Parts are a folder of safetensors files, some of each process, written and read by torch's
distributed checkpoints in their Hugging Face format: which rows a file holds stands in its header,
and no pickle is written. Whole ones are one ordinary safetensors file, written a few rows at a time
so that no process ever holds a table.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mmkd.errors import CheckpointError, outside
from mmkd.files import replacing
from mmkd.student.rows import TableShards

_ROWS_AT_ONCE = 65_536
_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.bool: "BOOL",
}


def write_parts(folder: Path, parts: Mapping[str, Tensor], shards: TableShards | None) -> None:
    """Write this process's rows of tensors [I+2, ...]; all processes call it.

    Args:
        folder: New.
        parts: By name, the same names on every process.
        shards: How they are cut; None where this process has them whole.

    Raises:
        CheckpointError: They can't be written, as on a full disk.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter  # seconds
    from torch.distributed.checkpoint.state_dict_saver import save

    files = {name: n for n, name in enumerate(parts, start=1)}  # its bytes are made in memory
    with _checkpointing(folder, "can't be written", "free some space or choose another folder"):
        folder.mkdir(exist_ok=True)
        writer = HuggingFaceStorageWriter(str(folder), files, save_distributed=True)
        save(_whole(parts, shards), storage_writer=writer, no_dist=shards is None)


def read_parts(folder: Path, shards: TableShards | None) -> dict[str, Tensor]:
    """This process's rows of what `write_parts` wrote, of whatever number of processes.

    Raises:
        CheckpointError: A file is damaged.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with _checkpointing(folder, "damaged", "put a copy of it back, or train from the start"):
        known: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        parts = {
            name: torch.empty(
                stored.size[0] if shards is None else shards.end - shards.first,
                *stored.size[1:],
                dtype=stored.properties.dtype,
            )
            for name, stored in known.items()
        }
        reader = HuggingFaceStorageReader(str(folder))
        load(_whole(parts, shards), storage_reader=reader, no_dist=shards is None)
    return parts


def write_whole(
    path: Path, state: Mapping[str, Tensor], *, by_row: set[str], shards: TableShards
) -> None:
    """Write a state whose tables are cut as the one file that it would be; all processes call it.

    Args:
        path: Written by the first process.
        state: By name, of tables this process's rows.
        by_row: The tables' names.
        shards: How they are cut.

    Raises:
        CheckpointError: It can't be written, as on a full disk.
    """
    # numbers of more bytes first, so that each is where its size divides the address
    names = sorted(state, key=lambda name: (-state[name].element_size(), name))
    whole = {
        name: (shards.table_rows, *tensor.shape[1:]) if name in by_row else tuple(tensor.shape)
        for name, tensor in state.items()
    }
    remedy = "free some space or choose another folder"
    with outside(CheckpointError, path, "can't be written", remedy=remedy):
        with replacing(path) if shards.rank == 0 else nullcontext() as temporary:
            file = None if temporary is None else open(temporary, "wb")
            with file or nullcontext():
                write: Callable[[Any], Any] = file.write if file else lambda content: None
                write(_header({name: (state[name].dtype, whole[name]) for name in names}))
                for name in names:
                    for rows in _rows(state[name], shards if name in by_row else None):
                        write(rows.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def read_whole(path: Path, *, by_row: set[str], shards: TableShards) -> dict[str, Tensor]:
    """A state of `write_whole`, or of an ordinary file: of tables this process's rows.

    Raises:
        CheckpointError: It can't be read.
    """
    own = slice(shards.first, shards.end)
    remedy = "put a copy of it back, or train from the start"
    with outside(CheckpointError, path, "damaged", remedy=remedy, also=(ValueError,)):
        with safe_open(path, framework="pt") as file:
            return {
                name: file.get_slice(name)[own] if name in by_row else file.get_tensor(name)
                for name in file.keys()
            }


def _rows(tensor: Tensor, shards: TableShards | None) -> Iterator[Tensor]:
    """A tensor's rows some at a time, of a cut one those of all processes."""
    if shards is None:
        yield tensor
        return
    for first in range(0, shards.table_rows, _ROWS_AT_ONCE):
        end = min(first + _ROWS_AT_ONCE, shards.table_rows)
        yield shards.lookup(tensor, torch.arange(first, end, device=tensor.device))


def _header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """The beginning of a safetensors file whose tensors follow one another."""
    described, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = at + prod(shape) * dtype.itemsize
        described[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [at, end]}
        at = end
    content = json.dumps(described).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _whole(parts: Mapping[str, Tensor], shards: TableShards | None) -> dict[str, Any]:
    return {name: part if shards is None else shards.whole(part) for name, part in parts.items()}


@contextmanager
def _checkpointing(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Torch's errors as ours, and without its remark that one process is alone."""
    from torch.distributed.checkpoint.api import CheckpointException

    also = (CheckpointException, AssertionError, KeyError, RuntimeError, ValueError)
    with outside(CheckpointError, path, what, remedy=remedy, also=also):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
