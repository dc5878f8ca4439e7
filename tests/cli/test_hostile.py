"""What a stranger or the world may do to the command line ends in one line, and runs nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Shop, invoke

import mmkd
from mmkd import MmkdError, load_recipe
from mmkd.files import read_json, write_json
from mmkd.runs.folder import RunFolder


def refused(*arguments: str | Path) -> str:
    with pytest.raises(MmkdError) as caught:
        invoke(*arguments)
    return str(caught.value)


@pytest.fixture
def foreign(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run beside which lies a module; `ran` appears once that is imported."""
    shutil.copytree(shop.runs / "id-only", tmp_path / "foreign")
    (tmp_path / "strangers.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "foreign"


def rewritten(run: Path, **changes: Any) -> None:
    """Alter a run as a stranger would, so that its digests fit."""
    result = RunFolder(run).result()
    (run / "result.json").unlink()
    spec = read_json(run / "student.json") | changes.pop("student", {})
    write_json(run / "student.json", spec)
    RunFolder(run).write(result=result, **changes)


def test_nothing_of_a_strangers_run_is_imported(foreign: Path) -> None:
    own = read_json(foreign / "student.json")["backbone"]
    rewritten(foreign, student={"backbone": {"kind": "strangers:Network"}})
    history = str(RunFolder(foreign).items().ids[1])
    assert "--trust-code strangers" in refused("evaluate", foreign)
    assert "--trust-code strangers" in refused("recommend", foreign, "--history", history)
    card = foreign.parent / "card.yaml"
    card.write_text("modality: text\nkind: strangers:Encoder\n", "utf-8")
    recipe = load_recipe(str(foreign / "recipe.yaml"), [f"encoders.text={card}"])
    rewritten(foreign, student={"backbone": own}, recipe=recipe.to_yaml())
    assert invoke("evaluate", foreign).exit_code == 0  # which needs no encoder
    by_encoder: list[str | Path] = ["similar", foreign, "--item", history, "--by", "text"]
    assert "--trust-code strangers" in refused(*by_encoder)
    assert not (foreign.parent / "ran").exists()
    told = refused(*by_encoder, "--trust-code", "strangers")  # which has no such class
    assert "cannot be imported" in told and (foreign.parent / "ran").exists()


@pytest.mark.parametrize(
    "student", [{"ensemble": {"members": 10**9}}, {"item_count": 10**15}, {"max_length": 10**15}]
)
def test_networks_that_the_weights_do_not_confirm_are_refused_at_once(
    foreign: Path, student: dict[str, Any]
) -> None:
    rewritten(foreign, student=student)
    began, history = time.monotonic(), str(RunFolder(foreign).items().ids[1])
    assert "student.json" in refused("recommend", foreign, "--history", history)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.max_length=99999999999999", "its weights would take"),
        ("student.embedding.width=100000000000", "its weights would take"),
        ("student.backbone.layers=1000000000", "its weights would take"),
        ("ensemble.members=1000000000000", "its weights would take"),
        ("seed=!!int abc", "its value is not YAML"),
        ("seed=" + "9" * 5000, "its value is not YAML"),
        ("seed=!!timestamp 2024-13-45", "its value is not YAML"),
        ("data.items=" + "[" * 5000, "its value is not YAML"),
        (r'data.root="a\0b"', "no such folder"),
    ],
)
def test_a_value_that_cannot_be_is_told(shop: Shop, override: str, told: str) -> None:
    assert told in refused("validate", "quickstart", *shop.overrides, override, "--no-data")


@pytest.mark.parametrize("line", ["seed: !!int abc", "seed: " + "9" * 5000, "x: " + "[" * 3000])
def test_yaml_that_no_value_can_be_made_of_is_told(tmp_path: Path, line: str) -> None:
    for name in ("recipe.yaml", "card.yaml"):
        (tmp_path / name).write_text(f"{line}\n", "utf-8")
    assert "not readable as YAML" in refused("validate", "recipe.yaml")
    assert "cannot be read as YAML" in refused("encode", "card.yaml", "x")


def test_a_title_is_printed_and_not_obeyed(foreign: Path) -> None:
    items = RunFolder(foreign).items()
    titles = ["", *("\x1b]0;owned\x07 :smile: [bold]\x9b31m" for _ in items.ids[1:])]
    hostile = mmkd.ItemTable(items.ids, titles, items.text, items.image_path, items.attributes)
    rewritten(foreign, items=hostile)
    shown = invoke("recommend", foreign, "--history", items.ids[1], "-k", "3").stdout
    assert "\\x1b]0;owned\\x07 :smile: [bold]\\x9b31m" in shown and "\x1b" not in shown
    as_json = invoke("recommend", foreign, "--history", items.ids[1], "-k", "1", "--json").stdout
    assert json.loads(as_json)[0]["title"] == titles[1] and "\x9b" not in as_json


def test_a_pipe_is_no_catalogue_and_nobody_waits_for_it(shop: Shop, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "items.csv")
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,i,1\n", "utf-8")
    files = ["data.items.path=items.csv", "data.interactions.path=events.csv"]
    told = refused("validate", "quickstart", f"data.root={tmp_path}", *files)
    assert "items.csv: cannot be read (not a plain file); give a file" in told


def test_a_home_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from mmkd.cli import main

    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr(sys, "argv", ["mmkd", "validate", "~nobody/x.yaml"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "Could not determine home directory" in capsys.readouterr().err


def test_an_early_sigterm_says_that_it_stopped() -> None:
    root = str(Path(mmkd.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITING],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2 and told == "mmkd: stopped; the same command starts again\n"


# stands still where a command would still be loading what it needs
_WAITING = """
import sys, time, mmkd.cli
class Slow:
    def find_spec(self, name, *_):
        if name == "mmkd.cli.app":
            print("here", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
sys.argv = ["mmkd", "ls"]
mmkd.cli.main()
"""
