"""The commands called in this process, and a folder of runs made by them, for tests."""

import json
from pathlib import Path
from typing import Any

from synthetic_runs import write_data
from typer.testing import CliRunner, Result

from mmkd.cli.app import app

ID_ONLY = [
    "name=id-only",
    "encoders=null",
    "distiller=null",
    "objective.correlation=null",
    "student.score_with=id",
]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def printed(*arguments: str | Path) -> Any:
    """What a command with --json prints."""
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


class Shop:
    """A folder with data, and two runs trained by the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.overrides = write_data(folder)
        self.runs = folder / "runs"
        self.kdsr = self.train()
        self.id_only = self.train(*ID_ONLY)

    def train(self, *more: str) -> Any:
        return printed("train", "quickstart", *self.overrides, *more, "--runs", self.runs)
