"""Workers in several processes that know of each other over gloo, for tests."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch


def together(worker: Callable[[Path], None], folder: Path, *, count: int = 2) -> None:
    """Call a worker in processes that know of each other; all must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    imported = ["mmkd.training.trainer", "torch.distributed.tensor", "torch.distributed.checkpoint"]
    context.set_forkserver_preload(imported)  # once for all tests
    processes = [
        context.Process(target=_in_group, args=(worker, r, count, port, folder))
        for r in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()  # one that waits for the other would wait forever
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _in_group(
    worker: Callable[[Path], None], rank: int, count: int, port: int, folder: Path
) -> None:
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in group.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    worker(folder)
    torch.distributed.destroy_process_group()
