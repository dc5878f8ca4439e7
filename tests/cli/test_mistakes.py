"""A user's mistake is one message that names the remedy, and status 2; nothing is lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Shop, invoke

import mmkd
from mmkd.runs.folder import RunFolder


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(mmkd.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "mmkd", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )


def test_a_mistake_is_one_message_and_status_2() -> None:
    done = command("validate", "quickstart", "training.epoch=3", "distiller.code=5")
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("mmkd: ")
    assert sum("did you mean epochs?" in line for line in lines) == 1
    assert sum("did you mean codes?" in line for line in lines) == 1


def mistake(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> str:
    """Run main() in this process; returns its one message."""
    from mmkd.cli import main

    monkeypatch.setattr(sys, "argv", ["mmkd", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mmkd: ") and "Traceback" not in err
    return str(err)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["validate", "quickstrat"], "quickstart"),
        (["evaluate", "nothing"], "no run nothing"),
        (["recommend", "nothing", "--history", "a"], "no run nothing"),
        (["ls", "run"], "did you mean runs?"),
        (["cp", "quickstrat", "x.yaml"], "did you mean quickstart?"),
        (["neighbours", "quickstart"], "--item: give the id"),
        (["train", "quickstart", "data.root=nowhere"], "no such folder: nowhere"),
        (["recommend", "x", "--history", "a", "--separator", ""], "--separator: got an empty"),
        (["cp", "quickstart", "file"], "file: is a file; give a folder"),
        (["cp", "quickstart", "file/x.yaml"], "file: "),
        (["cp", "quickstart", "folder.yaml", "--force"], "folder.yaml: Is a directory; give"),
        (
            ["train", "quickstart", "--epochs", "5"],
            "no option --epochs; write training.epochs=5",
        ),
        (["train", "quickstart", "--lr=1e-3"], "write training.lr=1e-3\n"),
        (["train", "quickstart", "--batch-size", "64", "a=b"], "write training.batch_size=64\n"),
        (["validate", "quickstart", "--training.epochs", "3"], "write training.epochs=3\n"),
        (["embed", "quickstart", "--workers", "name=x"], "write embed.workers=VALUE\n"),
        (["compress", "shop", "--epoch", "3"], "write training.epochs=3\n"),
        (["train", "quickstart", "--encoders.text", "minilm"], "write encoders.text=minilm\n"),
        (["cp", "mine", "recipes/mine.yaml", "--force"], "is what would be copied"),
    ],
)
def test_mistakes_name_the_remedy(
    arguments: list[str],
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    (tmp_path / "file").write_text("precious", "utf-8")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("name: mine\n", "utf-8")
    assert wanted in mistake(monkeypatch, capsys, *arguments)
    assert (tmp_path / "file").read_text("utf-8") == "precious"


@pytest.mark.parametrize("option", ["--overwite", "--colour"])
def test_another_unknown_option_is_typers_to_tell(option: str) -> None:
    result = invoke("train", "quickstart", option)
    assert result.exit_code == 2 and f"No such option: {option}" in result.stderr


def test_a_place_that_cannot_be_written_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    monkeypatch.chdir(tmp_path)
    told = mistake(monkeypatch, capsys, "cp", "quickstart", "mine.yaml")
    assert told == (
        "mmkd: mine.yaml: cannot be written (No space left on device); free some space or give "
        "another place\n"
    )
    assert not list(tmp_path.iterdir())  # no half of it, and nothing beside it


def test_an_invalid_recipe_as_json_lists_its_problems(tmp_path: Path) -> None:
    result = invoke("validate", "quickstart", f"data.root={tmp_path}", "distiller.code=5", "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert told["valid"] is False and len(told["problems"]) == 1
    assert "did you mean codes?" in told["problems"][0]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["recommend", "quickstart", "--history", "item-01"], "item-0"),
        (["recommend", "quickstart", "--history", " , "], "the history is empty"),
        (["evaluate", "quickstart", "--cases", "train"], "wanted test or valid"),
        (["evaluate", "quickstart", "--against", "id-only", "--metric", "F1"], "unknown metric"),
    ],
)
def test_mistakes_about_a_run(
    shop: Shop,
    arguments: list[str],
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    assert wanted in mistake(monkeypatch, capsys, *arguments, "--runs", str(shop.runs))


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("student.safetensors", ["recommend", "RUN", "--history", "x"]),
        ("student.json", ["evaluate", "RUN"]),
        ("items.parquet", ["recommend", "RUN", "--history", "x"]),
        ("test_ranks.parquet", ["evaluate", "RUN", "--against", "RUN"]),
        ("run.json", ["evaluate", "RUN"]),
        ("result.json", ["train", "RUN/recipe.yaml", "--out", "RUN", "--resume"]),
    ],
)
@pytest.mark.parametrize("keep", [0, 0.6])
def test_a_damaged_file_of_a_run_is_named(
    shop: Shop,
    file: str,
    arguments: list[str],
    keep: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(shop.runs / "id-only", run)
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: int(keep * len(content))])
    history = RunFolder(shop.runs / "id-only").items().ids[1]
    given = [{"x": history}.get(a, a.replace("RUN", str(run))) for a in arguments]
    told = mistake(monkeypatch, capsys, *given)
    assert f"{file}: damaged" in told and "put a copy of it back" in told


def test_training_where_a_run_is_needs_a_word(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    told = mistake(
        monkeypatch, capsys, "train", "quickstart", *shop.overrides, "--runs", str(shop.runs)
    )
    assert "holds a finished run already; give --overwrite" in told
