"""A small training and commands that `faults.py` kills and starves of disk; what a run must be."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from mmkd.cli.app import app
from mmkd.config.recipe import Recipe, load_recipe
from mmkd.demo import make_synthetic
from mmkd.errors import MmkdError, world_told
from mmkd.pipeline.train import train
from mmkd.runs.folder import RunFolder

LIMIT_S = 300.0
# what a training imports when it first needs it, 14 of its 15 seconds: a forked one has it already
LAZY = (
    *("faiss", "mmkd.encoders", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.cluster"),
    *("sklearn.decomposition", "sklearn.feature_extraction.text", "torch._dynamo"),
    *("torch._inductor", "torch.distributed"),
)
PROCESSES = multiprocessing.get_context("forkserver")
TOLD, TRACEBACK, SPARED = 2, 1, 3


def small_recipe(root: Path, *, epochs: int) -> Recipe:
    """A training of seconds, that writes a checkpoint after every batch; its data is made."""
    if not (root / "data").exists():
        make_synthetic(root / "data", items=60, users=150)
    return load_recipe(
        "quickstart",
        [
            f"data.root={root / 'data'}",
            f"cache.folder={root / 'cache'}",
            f"training.epochs={epochs}",
            *("training.cpu=true", "training.threads=1", "training.checkpoint_every_s=0"),
            *("training.batch_size=64", "evaluation.baselines=false"),
        ],
    )


def trained(root: Path, folder: Path, epochs: int, options: dict[str, Any]) -> None:
    """The small training.

    Args:
        root: Of the data and the cache.
        folder: The run's.
        epochs: Of the training.
        options: Of `mmkd.pipeline.train.train`.
    """
    train(small_recipe(root, epochs=epochs), folder=folder, **options)


def commanded(*arguments: str) -> None:
    """A command of mmkd, its output thrown away."""
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing):
        app(arguments, standalone_mode=False)


def child(act: Callable[[], None], log: Path, full_at: int | None) -> None:
    """Act in this process; ends with 0, with `TOLD` and its message, or with `TRACEBACK`.

    With `SPARED` where it did what it should although a file was refused that it can do without.

    Args:
        act: What to do.
        log: Gets what is said.
        full_at: The file, counted from 0, from which on none may grow past 64 bytes.
    """
    sys.stderr = log.open("a")
    is_full = _fill_at(full_at) if full_at is not None else bool
    try:
        act()
    except BaseException as error:
        told = str(error) if isinstance(error, MmkdError) else world_told(error)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # the log's place is not the run's
        if told is None:
            traceback.print_exc()
        print(told, file=sys.stderr)
        sys.stderr.flush()
        os._exit(TRACEBACK if told is None else TOLD)
    os._exit(SPARED if is_full() else 0)


def start(act: Callable[[], None], *, log: Path, full_at: int | None = None) -> BaseProcess:
    """`child`, started; what it is to do must be a module's function or a partial of one."""
    process = PROCESSES.Process(target=child, args=(act, log, full_at))
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    """A child's exit status; None where it hangs, and is then killed."""
    process.join(LIMIT_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def difference(folder: Path, whole: Path) -> str:
    """How a run differs from one that nothing happened to; empty where in nothing."""
    run, wanted = RunFolder(folder), RunFolder(whole)
    if not run.finished:
        return "not finished"
    run.check_files()
    for name in ("student.safetensors", "reduction.safetensors", "items.parquet"):
        if (folder / name).read_bytes() != (whole / name).read_bytes():
            return f"another {name}"
    if not np.array_equal(run.ranks().rank, wanted.ranks().rank):
        return "other ranks"
    if _timeless(run.history()) != _timeless(wanted.history()):
        return "another history"
    left = [path.name for path in folder.iterdir() if path.name not in _names(whole)]
    return f"left behind: {', '.join(left)}" if left else ""


def flipped(path: Path, draw: np.random.Generator) -> Callable[[], None]:
    """Flips one bit of a file; what puts it back."""
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[int(draw.integers(len(sound)))] ^= 1 << int(draw.integers(8))
    path.write_bytes(damaged)

    def back() -> None:
        path.write_bytes(sound)

    return back


def fresh(folder: Path) -> Path:
    """A folder's or a file's name, nothing there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.unlink(missing_ok=True)
    return folder


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} | {".lock"}


def _timeless(history: list[dict[str, Any]]) -> str:
    return json.dumps([{k: v for k, v in one.items() if "seconds" not in k} for one in history])


def _fill_at(file: int) -> Callable[[], bool]:
    """From the file of this number on the disk is full, for whatever library writes to it.

    Returns:
        Whether it came to that.
    """
    touch, count = Path.touch, [0]

    def counted(path: Path, *arguments: Any, **options: Any) -> None:
        touch(path, *arguments, **options)
        if count[0] >= file:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
        count[0] += 1

    setattr(Path, "touch", counted)  # noqa: B010 - the first thing that a writer does
    return lambda: count[0] > file


FULL = os.strerror(errno.EFBIG)
