"""The commands as a person or a program meets them."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic_runs import write_data
from typer.testing import CliRunner, Result

import mmkd
from mmkd.cli.app import app
from mmkd.serving.run_folder import RunFolder

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


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# recipes


def test_version_and_help() -> None:
    assert invoke("--version").stdout == f"mmkd {mmkd.__version__}\n"
    told = invoke("--help").stdout
    for verb in ("validate", "embed", "train", "evaluate", "recommend", "neighbours", "ls", "cp"):
        assert verb in told


def test_validate(shop: Shop) -> None:
    assert invoke("validate", "quickstart", *shop.overrides).stdout == "quickstart: valid\n"
    assert printed("validate", "quickstart", *shop.overrides) == {
        "recipe": "quickstart",
        "valid": True,
    }


def test_cp_then_edit_then_validate(shop: Shop, tmp_path: Path) -> None:
    told = invoke("cp", "quickstart", "recipes/mine.yaml").stdout
    assert told.strip() == "quickstart.yaml -> recipes/mine.yaml"
    path = tmp_path / "recipes" / "mine.yaml"
    path.write_text(path.read_text("utf-8").replace("name: quickstart", "name: mine"), "utf-8")
    assert invoke("validate", "mine", *shop.overrides).stdout == "mine: valid\n"


def test_cp_copies_a_card_into_a_folder(tmp_path: Path) -> None:
    invoke("cp", "hashed-text", "encoders")
    card = yaml.safe_load((tmp_path / "encoders" / "hashed-text.yaml").read_text("utf-8"))
    assert card["kind"] == "hashed_text"


def test_cp_replaces_only_with_force(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("precious", "utf-8")
    with pytest.raises(ValueError, match=r"mine\.yaml: exists; give --force"):
        invoke("cp", "quickstart", target)
    assert target.read_text("utf-8") == "precious"
    invoke("cp", "quickstart", target, "--force")
    assert yaml.safe_load(target.read_text("utf-8"))["name"] == "quickstart"


# embed and train


def test_the_second_embed_encodes_nothing(shop: Shop, tmp_path: Path) -> None:
    overrides = [*shop.overrides, f"cache.folder={tmp_path / 'cache'}"]
    first, second = (printed("embed", "quickstart", *overrides) for _ in range(2))
    assert [row["modality"] for row in first] == ["text", "image"]
    # one item in twenty lacks its text and one its picture
    assert [(row["items"], row["present"]) for row in first] == [(120, 114)] * 2
    assert [row["encoded_now"] for row in first] == [114, 114]
    assert [row["encoded_now"] for row in second] == [0, 0]
    assert all(sum(row["absent"].values()) == 6 for row in first)
    table = invoke("embed", "quickstart", *overrides).stdout
    assert "hashed-text" in table and "color-image" in table


def test_train_prints_what_it_keeps(shop: Shop) -> None:
    folder = shop.runs / "quickstart"
    assert shop.kdsr == {**RunFolder(folder).result(), "folder": str(folder)}
    again = printed("train", "quickstart", *shop.overrides, "--runs", shop.runs, "--resume")
    assert again == shop.kdsr
    told = invoke("train", "quickstart", *shop.overrides, "--runs", shop.runs, "--resume").stdout
    assert f"{shop.kdsr['test']['metrics']['NDCG@10']:.4f}" in told
    assert "best epoch" in told and "1 process," in told


# runs


def test_evaluate_gives_the_result_again(shop: Shop) -> None:
    report = printed("evaluate", "quickstart", "--runs", shop.runs)
    assert report["metrics"] == pytest.approx(shop.kdsr["test"]["metrics"])
    by_path = printed("evaluate", shop.runs / "quickstart", "--cases", "valid")
    assert by_path["metrics"]["NDCG@10"] == pytest.approx(shop.kdsr["valid"]["NDCG@10"])
    told = invoke("evaluate", "quickstart", "--runs", shop.runs).stdout
    assert f"{report['metrics']['HR@5']:.4f}" in told and "200 cases of 200 users" in told


def test_evaluate_against_another_run(shop: Shop) -> None:
    found = printed(
        "evaluate", "quickstart", "--against", "id-only", "--metric", "MRR@20", "--runs", shop.runs
    )
    first, second = (run["test"]["metrics"]["MRR@20"] for run in (shop.kdsr, shop.id_only))
    assert (found["first"], found["second"]) == pytest.approx((first, second))
    assert found["difference"] == pytest.approx(first - second)
    assert 0 < found["p_value"] <= 1 and found["users"] == 200
    same = printed("evaluate", "quickstart", "--against", "quickstart", "--runs", shop.runs)
    assert same["difference"] == 0.0 and same["p_value"] == 1.0


def test_recommend_leaves_out_the_history_unless_told(shop: Shop) -> None:
    ids = RunFolder(shop.runs / "quickstart").items().ids
    history = f"{ids[3]}, {ids[7]}"
    command = ("recommend", "quickstart", "--history", history, "--runs", shop.runs, "-k", "118")
    found = printed(*command)
    assert len(found) == 118
    scores = [item["score"] for item in found]
    assert scores == sorted(scores, reverse=True)
    assert {item["item"] for item in found} == set(ids[1:]) - {ids[3], ids[7]}
    kept = printed(*command[:-1], "120", "--keep-seen")
    assert {item["item"] for item in kept} == set(ids[1:])
    assert found[0]["title"] in invoke(*command[:-1], "3").stdout


def test_neighbours_by_encoder_and_student(shop: Shop) -> None:
    ids = RunFolder(shop.runs / "quickstart").items().ids
    command = ("neighbours", "quickstart", *shop.overrides, "--modality", "image", "-k", "4")
    pictures = RunFolder(shop.runs / "quickstart").items().image_path
    row = next(r for r in range(1, 121) if pictures[r] is not None)
    found = printed(*command, "--item", ids[row], "--runs", shop.runs)
    for side in ("encoder", "student"):
        near = found[side]
        assert len({item["item"] for item in near}) == 4
        assert ids[row] not in {item["item"] for item in near}
        cosines = [item["score"] for item in near]
        assert cosines == sorted(cosines, reverse=True)
        assert all(-1 <= cosine <= 1 + 1e-5 for cosine in cosines)
    untrained = printed(*command, "--item", ids[row], "--runs", shop.folder / "none")
    assert untrained["student"] is None and untrained["encoder"] == found["encoder"]


# lists


def test_ls_recipes_and_encoders() -> None:
    recipes = {row["recipe"]: row["what"] for row in printed("ls")}
    assert "made-up catalogue" in recipes["quickstart"]
    cards = {row["card"]: row for row in printed("ls", "encoders")}
    assert cards["hashed-text"]["modality"] == "text"
    assert cards["color-image"]["modality"] == "image"
    for what in ("recipes", "encoders"):
        assert len(invoke("ls", what).stdout.splitlines()) > 2


def test_ls_runs_tells_finished_from_unfinished(shop: Shop, tmp_path: Path) -> None:
    rows = {row["run"]: row for row in printed("ls", "runs", "--runs", shop.runs)}
    assert set(rows) == {"quickstart", "id-only"}
    assert rows["quickstart"] == {
        "run": "quickstart",
        "state": "finished",
        "epochs": 2,
        "valid NDCG@10": shop.kdsr["valid"]["NDCG@10"],
        "test NDCG@10": shop.kdsr["test"]["metrics"]["NDCG@10"],
    }
    (tmp_path / "runs" / "notes").mkdir(parents=True)  # a recipe alone makes no run
    (tmp_path / "runs" / "notes" / "recipe.yaml").write_text("name: notes", "utf-8")
    RunFolder(tmp_path / "runs" / "begun").mark(recipe="begun", data={})
    [row] = printed("ls", "runs")
    assert row["state"] == "unfinished" and row["test NDCG@10"] is None
    assert "unfinished" in invoke("ls", "runs").stdout


def test_ls_cache(shop: Shop) -> None:
    rows = {row["card"]: row for row in printed("ls", "cache", "--cache", shop.folder / "cache")}
    assert set(rows) == {"hashed-text", "color-image"}
    assert rows["hashed-text"]["items"] == 120 and rows["hashed-text"]["present"] == 114
    assert printed("ls", "cache") == []
    assert invoke("ls", "cache").stdout == "no cache\n"


def test_ls_runs_goes_on_past_a_damaged_run(shop: Shop, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(shop.runs / "id-only", runs / "whole")
    for name, file in (("no-result", "result.json"), ("no-mark", "run.json")):
        shutil.copytree(shop.runs / "id-only", runs / name)
        (runs / name / file).write_text('{"epochs"', "utf-8")
    states = {row["run"]: row["state"] for row in printed("ls", "runs")}
    assert states == {"no-mark": "damaged", "no-result": "damaged", "whole": "finished"}


def test_ls_recipes_goes_on_past_an_unreadable_one(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "empty.yaml").write_text("", "utf-8")
    (tmp_path / "recipes" / "latin.yaml").write_bytes("# caf\u00e9\n".encode("latin-1"))
    told = {row["recipe"]: row["what"] for row in printed("ls")}
    assert told["empty"] == "" and told["latin"] == "not readable as UTF-8"
    assert "quickstart" in told


# a user's mistake


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


def test_a_place_that_cannot_be_written_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "mine.yaml")

    monkeypatch.setattr(shutil, "copyfile", full)
    told = mistake(monkeypatch, capsys, "cp", "quickstart", "mine.yaml")
    assert (
        told == "mmkd: mine.yaml: No space left on device; free some space or give another place\n"
    )


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


def test_training_tells_first_what_it_trains_on(shop: Shop, tmp_path: Path) -> None:
    options = ("training.epochs=1", *ID_ONLY)
    result = invoke("train", "quickstart", *shop.overrides, *options, "--out", tmp_path / "run")
    first = result.stderr.splitlines()[0]
    assert first.startswith("id-only: 1 process on cpu, 1 thread each; 120 items, 200 users, ")


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
