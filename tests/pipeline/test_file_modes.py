"""The files of a run may be read by whom the process's umask lets, whatever library wrote them."""

import os
from pathlib import Path

import pytest
from synthetic_runs import recipe_of

from mmkd.pipeline.train import train
from mmkd.training.checkpoint import CheckpointFolder


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_every_file_of_a_run_has_the_umasks_mode(
    synthetic: list[str], tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        train(recipe_of(synthetic, "training.epochs=1"), folder=tmp_path / "run")
        checkpoints = CheckpointFolder(tmp_path / "run" / "checkpoints")
        checkpoints.write_random_state(checkpoints.stage(1))
    finally:
        os.umask(before)
    found = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    names = {path.name for path in found}
    assert {"student.safetensors", "test_ranks.parquet", "random-0.safetensors"} <= names
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in found}
    assert modes == dict.fromkeys(names, oct(0o666 & ~mask))
