"""Checkpoints: exact, whole or absent, and never a pickle."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmkd.errors import CheckpointError
from mmkd.training.checkpoint import CheckpointFolder, read_tensors, write_tensors

STEP_NAME = "step-00000007"


def trained(width: int = 4, steps: int = 3) -> tuple[nn.Module, torch.optim.AdamW]:
    """A network whose optimiser has a state, one parameter of which never had a gradient."""
    torch.manual_seed(width)
    module = nn.ModuleDict({"used": nn.Linear(width, 3), "idle": nn.Linear(2, 2)})
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(steps):
        module["used"](torch.randn(5, width)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return module, optimizer


def save(folder: CheckpointFolder, step: int = 7, **progress: Any) -> None:
    module, optimizer = trained()
    staged = folder.stage(step)
    folder.write_random_state(staged)
    folder.commit(
        staged,
        module=module,
        optimizer=optimizer,
        asynchronous={"sum.0": torch.arange(3.0)},
        progress=progress,
    )


def states(optimizer: torch.optim.Optimizer) -> dict[tuple[int, str], Tensor]:
    state = optimizer.state_dict()["state"]
    return {(i, name): value for i, entry in state.items() for name, value in entry.items()}


def test_weights_optimiser_and_random_state_come_back_bit_by_bit(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, epoch=2, best=-float("inf"), metric=0.1 + 0.2)
    drawn = torch.rand(4)

    module, optimizer = trained(steps=1)
    newest = folder.newest()
    assert newest == tmp_path / STEP_NAME
    progress, asynchronous = folder.load(newest, module=module, optimizer=optimizer)
    assert torch.equal(torch.rand(4), drawn)
    assert progress == {"epoch": 2, "best": -float("inf"), "metric": 0.1 + 0.2}
    assert torch.equal(asynchronous["sum.0"], torch.arange(3.0))
    wanted_module, wanted_optimizer = trained()
    for name, value in wanted_module.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    got, wanted = states(optimizer), states(wanted_optimizer)
    assert got.keys() == wanted.keys() and len(wanted) == 6
    for key, value in wanted.items():
        assert torch.equal(got[key], value) and got[key].dtype == value.dtype, key


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder)
    (one, one_optimizer), (other, other_optimizer) = trained(), trained(steps=1)
    folder.load(tmp_path / STEP_NAME, module=other, optimizer=other_optimizer)
    x = torch.randn(5, 4)
    for module, optimizer in ((one, one_optimizer), (other, other_optimizer)):
        assert isinstance(module, nn.ModuleDict)
        module["used"](x).square().sum().backward()
        optimizer.step()
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_loading_keeps_the_groups_current_options(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder)
    module, optimizer = trained()
    optimizer.param_groups[0]["lr"] = 0.025
    folder.load(tmp_path / STEP_NAME, module=module, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.025


def test_no_pickle_is_written_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a pickle")

    for owner in (torch, pickle):
        for name in ("save", "load", "dump", "dumps", "loads"):
            if hasattr(owner, name):
                monkeypatch.setattr(owner, name, refuse)
    folder = CheckpointFolder(tmp_path)
    save(folder, epoch=1)
    module, optimizer = trained()
    folder.load(tmp_path / STEP_NAME, module=module, optimizer=optimizer)
    for path in (tmp_path / STEP_NAME).iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
        else:
            assert path.suffix == ".safetensors"
            load_file(path)


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (9, 10, 100):
        save(folder, step)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000100"]


def test_a_checkpoint_left_unfinished_is_ignored_and_cleared_away(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.newest() is None
    save(folder, epoch=1)
    leftover = folder.stage(8)  # killed before the rename
    (leftover / "progress.json").write_text("{}", "utf-8")
    half = tmp_path / "step-00000009"  # copied by hand, and not all of it
    half.mkdir()
    assert folder.newest() == tmp_path / STEP_NAME
    save(folder, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, epoch=1)
    save(folder, epoch=2)
    module, optimizer = trained()
    progress, _ = folder.load(tmp_path / STEP_NAME, module=module, optimizer=optimizer)
    assert progress == {"epoch": 2}


def test_another_model_is_refused(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder)
    module, optimizer = trained(width=5)
    with pytest.raises(CheckpointError, match=r"(?s)written for another model.*resume with the"):
        folder.load(tmp_path / STEP_NAME, module=module, optimizer=optimizer)


def test_what_a_killed_run_staged_is_no_part_of_a_later_checkpoint(tmp_path: Path) -> None:
    killed = CheckpointFolder(tmp_path, rank=1, processes=2)
    killed.write_random_state(killed.stage(7))
    folder = CheckpointFolder(tmp_path)
    folder.drop_unfinished()
    folder.write_random_state(folder.stage(7))
    save(folder)
    (checkpoint,) = tmp_path.iterdir()
    assert not (checkpoint / "random-1.safetensors").exists()


@pytest.mark.parametrize(("written", "now"), [(1, 2), (2, 1)])
def test_another_number_of_processes_is_refused(tmp_path: Path, written: int, now: int) -> None:
    for rank in reversed(range(written)):
        folder = CheckpointFolder(tmp_path, rank=rank, processes=written)
        folder.write_random_state(folder.stage(7))
    save(folder)
    module, optimizer = trained()
    for rank in range(now):
        resumed = CheckpointFolder(tmp_path, rank=rank, processes=now)
        with pytest.raises(CheckpointError, match=f"written by {written} .*; resume with as many"):
            resumed.load(tmp_path / STEP_NAME, module=module, optimizer=optimizer)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.safetensors",
        "asynchronous.safetensors",
        "random-0.safetensors",
        "progress.json",
    ],
)
@pytest.mark.parametrize("content", [b"", b'{"half', b"\xff" * 40])
def test_a_damaged_file_is_named_and_nothing_is_restored(
    tmp_path: Path, name: str, content: bytes
) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder)
    (tmp_path / STEP_NAME / name).write_bytes(content)
    module, optimizer = trained(steps=1)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"{name}: damaged .*--overwrite"):
        folder.load(tmp_path / STEP_NAME, module=module, optimizer=optimizer)
    for key, value in before.items():
        assert torch.equal(module.state_dict()[key], value), key


def test_a_folder_that_is_no_step_is_passed_over(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder)
    (tmp_path / "step-backup").mkdir()
    (tmp_path / "step-backup" / "progress.json").write_text("{}", "utf-8")
    assert folder.newest() == tmp_path / STEP_NAME


def test_tensors_that_share_memory_are_written_each_for_itself(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"whole": whole, "again": whole, "part": whole[1:2], "turned": whole.mT}
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = read_tensors(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(found[name], value), name
