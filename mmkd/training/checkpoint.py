"""Checkpoints of a training run: tensors as safetensors, progress as JSON, each write atomic.

A checkpoint is a folder ``step-00000123`` that appears under its final name only when complete.
It holds everything that makes a resumed run equal an uninterrupted one: weights, optimiser and
asynchronous-update state, each process's random state, and the progress record.
No pickle is written or read.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmkd.errors import CheckpointError
from mmkd.files import replacing, write_json

_PREFIX = "step-"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file atomically.

    Raises:
        CheckpointError: It can't be written, as on a full disk.
    """
    # clone: safetensors refuses tensors that share storage
    content = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(content, temporary)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: can't be written ({error}); free some space or choose another folder"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as a flat ``parameter index.name`` mapping."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in state.items()
        for name, value in entries.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what ``optimizer_tensors`` returned; groups keep their current options."""
    current = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


class CheckpointFolder:
    """The checkpoints of one run; only the newest is kept.

    Args:
        folder: Where the ``step-*`` folders live.
        rank: This process.
        processes: How many processes train together.
    """

    def __init__(self, folder: Path, *, rank: int = 0, processes: int = 1) -> None:
        self.folder = folder
        self.rank = rank
        self.processes = processes

    def newest(self) -> Path | None:
        """The complete checkpoint with the highest step, or None."""
        found = [p for p in self.folder.glob(f"{_PREFIX}*") if (p / "progress.json").is_file()]
        found = [p for p in found if p.name.removeprefix(_PREFIX).isdecimal()]
        return max(found, default=None, key=lambda p: int(p.name.removeprefix(_PREFIX)))

    def stage(self, step: int) -> Path:
        """The temporary folder in which every process lays its files for ``step``."""
        staged = self.folder / f".{_PREFIX}{step:08d}.tmp"
        staged.mkdir(parents=True, exist_ok=True)
        return staged

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
    ) -> None:
        """Write the shared part, rename the folder into place, drop older ones (main only)."""
        write_tensors(staged / "model.safetensors", module.state_dict())
        write_tensors(staged / "optimizer.safetensors", optimizer_tensors(optimizer))
        write_tensors(staged / "asynchronous.safetensors", asynchronous)
        write_json(staged / "progress.json", progress)
        final = self.folder / staged.name.removeprefix(".").removesuffix(".tmp")
        if final.exists():
            shutil.rmtree(final)
        os.replace(staged, final)
        for path in [*self.folder.glob(f"{_PREFIX}*"), *self.folder.glob(f".{_PREFIX}*.tmp")]:
            if path != final:
                shutil.rmtree(path, ignore_errors=True)

    def load(
        self, path: Path, *, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, object], dict[str, Tensor]]:
        """Restore a checkpoint into ``module``, ``optimizer`` and this process's random state.

        Returns:
            The progress record and the asynchronous update's tensors.

        Raises:
            CheckpointError: It was written by another number of processes or for another model,
                or a file of it is damaged.
        """
        written = len(list(path.glob("random-*.safetensors")))
        if written != self.processes:
            raise CheckpointError(
                f"{path}: written by {written} process(es), but now there are {self.processes}; "
                "resume with as many as the run was started with"
            )
        model = _load_tensors(path / "model.safetensors")
        state = _load_tensors(path / "optimizer.safetensors")
        asynchronous = _load_tensors(path / "asynchronous.safetensors")
        random_state = _load_tensors(path / f"random-{self.rank}.safetensors")
        progress = _load_progress(path / "progress.json")
        try:
            module.load_state_dict(model)
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: written for another model ({error}); resume with the recipe the run was "
                "started with or choose another run folder"
            ) from error
        try:
            load_optimizer_tensors(optimizer, state)
            torch.set_rng_state(random_state["cpu"])
            if "cuda" in random_state and torch.cuda.is_available():
                torch.cuda.set_rng_state(random_state["cuda"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise _damaged(path, error) from error
        return progress, asynchronous


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error
    return tensors


def _load_progress(path: Path) -> dict[str, object]:
    try:
        progress = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(progress, dict):
        raise _damaged(path, TypeError("no JSON object"))
    return progress


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: damaged ({error}); put a copy of it back, or train from the start (--overwrite)"
    )
