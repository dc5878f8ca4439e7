"""Checkpoints and best weights: a training run's state to a folder and back, whole or absent.

A checkpoint is a folder ``step-00000123`` that appears under its final name only when complete:
tensors as safetensors, progress as JSON. It holds everything that makes a resumed run equal an
uninterrupted one: weights, optimiser and asynchronous-update state, each process's random state,
and the progress record, which lists the digest of every tensors' file. What has a row an item and
is cut over processes lies apart in ``tables/``, some files of each process. No pickle is written or
read.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmkd.errors import CheckpointError, outside
from mmkd.files import copy_file, file_digest, read_json, replacing, sync, write_sealed_json
from mmkd.student import Ensemble
from mmkd.student.rows import TableShards
from mmkd.training.sharded import read_parts, read_whole, write_parts, write_whole

_PREFIX = "step-"
_BEST = "student.safetensors"
_TABLES = "tables"
_KEPT = "checkpoints/best.safetensors"  # where a run goes on to change them
_FILES = ("model", "optimizer", "asynchronous")
_REMEDY = "put a copy of it back, or train from the start (--overwrite)"


class CheckpointFolder:
    """The checkpoints of one run; only the newest is kept.

    Args:
        folder: Where the ``step-*`` folders live.
        rank: This process.
        processes: How many processes train together.
        shards: How the item tables lie on them; None where each has them whole.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        processes: int = 1,
        shards: TableShards | None = None,
    ) -> None:
        self.folder = folder
        self.rank = rank
        self.processes = processes
        self.shards = shards

    def newest(self) -> Path | None:
        """The complete checkpoint with the highest step, or None."""
        found = [p for p in self.folder.glob(f"{_PREFIX}*") if (p / "progress.json").is_file()]
        found = [p for p in found if p.name.removeprefix(_PREFIX).isdecimal()]
        return max(found, default=None, key=lambda p: int(p.name.removeprefix(_PREFIX)))

    def drop_unfinished(self) -> None:
        """Delete what a killed run has staged: of more processes it would be taken for a part."""
        for path in self.folder.glob(f".{_PREFIX}*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def stage(self, step: int) -> Path:
        """The temporary folder in which every process lays its files for ``step``."""
        staged = self.folder / f".{_PREFIX}{step:08d}.tmp"
        with _writing(staged):
            staged.mkdir(parents=True, exist_ok=True)
        return staged

    def write_tables(
        self,
        staged: Path,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        asynchronous: Mapping[str, Tensor],
        apart: tuple[str, ...],
    ) -> None:
        """Lay down this process's rows of what has a row an item (every process calls this).

        Args:
            staged: Of ``stage``.
            module: As for ``commit``, and so the following.
            optimizer: Of the module.
            asynchronous: Of the update.
            apart: How the names begin of what is laid down here, and not by ``commit``.
        """
        found = {
            f"{file}.{name}": value
            for file, tensors in _tensors(module, optimizer, asynchronous).items()
            for name, value in tensors.items()
        }
        own = {name: value for name, value in found.items() if name.startswith(apart)}
        write_parts(staged / _TABLES, own, self.shards)

    def write_random_state(self, staged: Path) -> None:
        """Lay down this process's random state (every process calls this)."""
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        write_tensors(staged / f"random-{self.rank}.safetensors", state)

    def commit(
        self,
        staged: Path,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        asynchronous: Mapping[str, Tensor],
        progress: Mapping[str, object],
        apart: tuple[str, ...] = (),
    ) -> None:
        """Write the shared part, rename the folder into place, drop older ones (main only)."""
        for file, tensors in _tensors(module, optimizer, asynchronous).items():
            shared = {k: v for k, v in tensors.items() if not f"{file}.{k}".startswith(apart)}
            write_tensors(staged / f"{file}.safetensors", shared)
        final = self.folder / staged.name.removeprefix(".").removesuffix(".tmp")
        with _writing(final):
            files = {
                path.relative_to(staged).as_posix(): file_digest(path)
                for path in staged.rglob("*.safetensors")
            }
            write_sealed_json(staged / "progress.json", {**progress, "files": files})
            if final.exists():
                shutil.rmtree(final)
            os.replace(staged, final)
            sync(self.folder)
            sync(self.folder.parent)
        for path in self.folder.glob(f"{_PREFIX}*"):
            if path != final:
                shutil.rmtree(path, ignore_errors=True)
        self.drop_unfinished()

    def load(
        self, path: Path, *, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Restore a checkpoint into ``module``, ``optimizer`` and this process's random state.

        One with tables apart may be another number of processes'; what they draw is then another.

        Returns:
            The progress record and the asynchronous update's tensors.

        Raises:
            CheckpointError: It was written by another number of processes or for another model,
                or a file of it is damaged.
        """
        with _reading(path / "progress.json", AttributeError, ValueError):
            progress = read_json(path / "progress.json")
            files = dict(progress.pop("files", {}))  # release 0.1 listed none
        _check_files(path, files)
        written = len(list(path.glob("random-*.safetensors")))
        tables = path / _TABLES
        if written != self.processes and not tables.is_dir():
            raise CheckpointError(
                f"{path}: written by {written} process(es), but now there are {self.processes}; "
                "resume with as many as the run was started with"
            )
        found = {name: read_tensors(path / f"{name}.safetensors") for name in _FILES}
        for key, value in (read_parts(tables, self.shards) if tables.is_dir() else {}).items():
            file, _, name = key.partition(".")
            found[file][name] = value
        random_state = {}
        if written == self.processes:
            random_state = read_tensors(path / f"random-{self.rank}.safetensors")
        try:
            module.load_state_dict(found["model"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: written for another model ({error}); resume with the recipe the run was "
                "started with or choose another run folder"
            ) from error
        with _reading(path, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            _load_optimizer_tensors(optimizer, found["optimizer"])
            if random_state:
                torch.set_rng_state(random_state["cpu"])
            else:
                torch.manual_seed(int(path.name.removeprefix(_PREFIX)) * self.processes + self.rank)
            if "cuda" in random_state and torch.cuda.is_available():
                torch.cuda.set_rng_state(random_state["cuda"])
        return progress, found["asynchronous"]


class BestWeights:
    """Weights in a fit's folder, known by their digest, which is empty where there is none yet.

    A run that is killed between its best weights and its checkpoint leaves later ones than the
    checkpoint tells of, which it then writes again; so they are compared only in the end.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.digest = ""

    def write(self, student: Ensemble) -> None:
        """These are the best so far."""
        path, state = self.folder / _BEST, student.state_dict()
        if student.shards is not None:
            write_whole(path, state, by_row={*student.item_tables()}, shards=student.shards)
        elif self.accelerator.is_main_process:
            write_tensors(path, state)
        if self.accelerator.is_main_process:
            self.digest = file_digest(self.folder / _BEST)
        (self.digest,) = broadcast_object_list([self.digest])

    def load(self, student: Ensemble) -> None:
        """Put them into the student."""
        path = self.find(self.digest)
        with outside(CheckpointError, path, "damaged", remedy=_REMEDY, also=(RuntimeError,)):
            if student.shards is None:
                state = read_tensors(path)
            else:
                tables = {*student.item_tables()}
                state = read_whole(path, by_row=tables, shards=student.shards)
            student.load_state_dict(state)
        self.accelerator.wait_for_everyone()
        if path != self.folder / _BEST and self.accelerator.is_main_process:
            with _writing(self.folder / _BEST):
                copy_file(path, self.folder / _BEST)

    def find(self, digest: str = "") -> Path:
        """Where they are; CheckpointError where they are not, or are not those of the digest."""
        path, kept = self.folder / _BEST, self.folder / _KEPT
        if digest and kept.is_file():
            with outside(CheckpointError, kept, "cannot be read", remedy=_REMEDY):
                path = kept if file_digest(kept) == digest else path
        with outside(CheckpointError, path, "cannot be read", remedy=_REMEDY):
            if digest and file_digest(path) != digest:
                raise CheckpointError(
                    f"{path}: damaged (altered, or of another run: not the best epoch's weights); "
                    f"{_REMEDY}"
                )
            path.stat()
        return path


def keep_best(folder: Path) -> None:
    """Copy a fit's best weights to its checkpoints, before other ones take their place.

    A run whose weights change once more after training, and which is stopped then, resumes from the
    copy.

    Args:
        folder: The fit's.

    Raises:
        CheckpointError: The copy can't be written.
    """
    with _writing(folder / _KEPT):
        copy_file(folder / _BEST, folder / _KEPT)


def _check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise CheckpointError unless every file that a checkpoint lists is there, as it was written.

    Those of another number of processes are told by who counts them.
    """
    for name, digest in digests.items():
        with _reading(folder / name):
            if file_digest(folder / name) != digest:
                raise CheckpointError(
                    f"{folder / name}: damaged (altered, or of another checkpoint: its digest is "
                    f"not the one in progress.json); {_REMEDY}"
                )


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    Raises:
        CheckpointError: It can't be written, as on a full disk.
    """
    content: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in tensors.items():
        held = value.detach().cpu().contiguous()
        storage = held.untyped_storage()
        # safetensors refuses tensors that share storage; copies of all would double the memory
        if storage.data_ptr() in taken or storage.nbytes() > held.nbytes:
            held = held.clone()
        taken.add(storage.data_ptr())
        content[name] = held
    with _writing(path), replacing(path) as temporary:
        save_file(content, temporary)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        CheckpointError: It can't be read.
    """
    with _reading(path, ValueError):
        tensors: dict[str, Tensor] = load_file(path)
    return tensors


def _writing(path: Path) -> AbstractContextManager[None]:
    remedy = "free some space or choose another folder"
    return outside(CheckpointError, path, "can't be written", remedy=remedy)


def _reading(path: Path, *also: type[BaseException]) -> AbstractContextManager[None]:
    return outside(CheckpointError, path, "damaged", remedy=_REMEDY, also=also)


def _tensors(
    module: nn.Module, optimizer: torch.optim.Optimizer, asynchronous: Mapping[str, Tensor]
) -> dict[str, Mapping[str, Tensor]]:
    """What a checkpoint holds, by file."""
    return dict(
        zip(_FILES, (module.state_dict(), _optimizer_tensors(optimizer), asynchronous), strict=True)
    )


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as a flat ``parameter index.name`` mapping."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in state.items()
        for name, value in entries.items()
    }


def _load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Restore what ``_optimizer_tensors`` returned; groups keep their current options."""
    current = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
