"""A run sent to a stand-in of the hub and loaded from it: what goes, what stays, what is told."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from commands import ID_ONLY
from huggingface_hub import constants
from shipping.hub_server import Hub, Repository
from synthetic_runs import recipe_of

import mmkd
from mmkd import MmkdError
from mmkd.errors import DataError, RunError
from mmkd.files import file_digest, write_sealed_json
from mmkd.hub import hub_reachable
from mmkd.shipping import sharing
from mmkd.shipping.sharing import found_run, portable

NAME = "ann/shop"
GOES = {
    *("run.json", "recipe.yaml", "result.json", "history.json", "student.json"),
    *("items.parquet", "student.safetensors", "reduction.safetensors", "README.md"),
}


@pytest.fixture
def pushed(hub: Hub, kdsr: mmkd.Run) -> dict[str, bytes]:
    page = kdsr.push_to_hub(NAME)
    assert page == f"{hub.url}/{NAME}"
    return hub.repositories[NAME].files()


def test_a_run_that_was_pushed_recommends_what_it_did(
    pushed: dict[str, bytes], kdsr: mmkd.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = mmkd.load(NAME)
    assert str(run.folder.path).startswith(str(tmp_path / "hub"))
    ids = run.items.ids
    histories = [ids[1:4], [ids[9]], ids[20:60]]
    given = [list(one) for one in histories]
    assert run.recommend(given, k=7).equals(kdsr.recommend(given, k=7))
    assert run.similar([ids[5]]).equals(kdsr.similar([ids[5]]))
    np.testing.assert_array_equal(run.item_vectors()[1], kdsr.item_vectors()[1])
    assert run.result == kdsr.result and run.history.equals(kdsr.history)
    assert list(run.items.titles) == list(kdsr.items.titles)


def test_nothing_private_goes(pushed: dict[str, bytes], hub: Hub, kdsr: mmkd.Run) -> None:
    """No path of the machine, no user, no event, no text, no picture; in any file."""
    assert {*pushed} - {".gitattributes"} == GOES
    private = [str(kdsr.recipe.data.root), os.path.expanduser("~"), str(kdsr.folder.path.parent)]
    private += [*kdsr.data.log.user_ids[:50]]
    texts = [text for text in kdsr.items.text if text]
    private += [text for text in texts if text not in set(kdsr.items.titles)][:50]
    frame = pl.read_parquet(pushed["items.parquet"])
    assert frame["text"].null_count() == frame["image_path"].null_count() == len(frame)
    content = {name: body for name, body in pushed.items() if name != "items.parquet"}
    content["items"] = frame.write_json().encode()
    for name, body in content.items():
        for one in private:
            assert not re.search(rb"(?<![\w-])" + re.escape(one.encode()) + rb"(?![\w-])", body), (
                name,
                one,
            )
    recipe = yaml.safe_load(pushed["recipe.yaml"])
    assert recipe["data"]["root"] == "data" and "folder" not in recipe["cache"]
    marker = json.loads(pushed["run.json"])
    assert {*marker["files"]} == GOES - {"run.json", "README.md"}


def test_the_card_says_what_result_json_says(pushed: dict[str, bytes], kdsr: mmkd.Run) -> None:
    card = pushed["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "mmkd" and "mmkd" in front["tags"]
    test = kdsr.result["test"]
    for name in ("HR@10", "NDCG@10"):
        low, high = test["intervals"][name]
        value = test["metrics"][name]
        baseline = kdsr.result["baselines"]["popularity"]["test"]["metrics"][name]
        row = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {value:.4f} | [{low:.4f}, {high:.4f}] | {baseline:.4f} |" in row
    assert "| split | leave_one_out |" in card and f"| items | {len(kdsr.items):,} |" in card
    assert f'mmkd.load("{NAME}")' in card
    assert "| text | hashed-text | not named | hashed_text |" in card
    shown = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert shown == yaml.safe_load(pushed["recipe.yaml"])


def test_what_needs_the_data_says_so_and_works_where_it_is(
    pushed: dict[str, bytes],
    kdsr: mmkd.Run,
    synthetic: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = mmkd.load(NAME)
    for ask in (
        lambda: run.recommend(users="all"),
        lambda: run.data,
        lambda: run.similar([run.items.ids[1]], by="text"),
    ):
        with pytest.raises(RunError, match="came from the hub without its data"):
            ask()
    with pytest.raises(RunError, match=r"without test_ranks\.parquet.*stays with"):
        run.compare(kdsr)
    with pytest.raises(MmkdError, match="no such folder: data"):
        run.evaluate()

    (tmp_path / "elsewhere" / "data").symlink_to(kdsr.recipe.data.folder)
    again = mmkd.load(NAME)
    users = list(kdsr.data.log.user_ids[:3])
    assert again.recommend(users=users).equals(kdsr.recommend(users=users))
    near = again.similar([run.items.ids[1]], by="text")
    assert near.equals(kdsr.similar([run.items.ids[1]], by="text"))
    assert again.evaluate()["metrics"] == pytest.approx(kdsr.result["test"]["metrics"])


def test_items_are_added_to_a_run_of_the_hub(
    pushed: dict[str, bytes],
    kdsr: mmkd.Run,
    synthetic: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    own = recipe_of(synthetic, "encoders.text=null", "training.epochs=1")
    looks = mmkd.train(own, folder=tmp_path / "looks")
    looks.push_to_hub("ann/looks")
    picture = next(path for path in kdsr.items.image_path if path is not None and path.is_file())
    new = mmkd.ItemTable(
        ids=["", "N1"], titles=["", "Red teapot"], text=[None, "A red teapot of clay"],
        image_path=[None, picture], attributes=[[], []],
    )  # fmt: skip
    here = looks.add_items(new, out=tmp_path / "here")
    there = mmkd.load("ann/looks").add_items(new, out=tmp_path / "there")
    given = [["N1", here.items.ids[3]]]
    assert there.recommend(given).equals(here.recommend(given))
    with pytest.raises(RunError, match="is fitted on all of them; add items where"):
        mmkd.load(NAME).add_items(new, out=tmp_path / "never")
    # and sent on: the run it was made from is no path in it
    there.push_to_hub("ann/tomorrow")
    assert len(mmkd.load("ann/tomorrow").items) == len(kdsr.items) + 1


def test_pushing_again_is_one_commit_that_leaves_nothing_old(
    pushed: dict[str, bytes], hub: Hub, kdsr: mmkd.Run, synthetic: list[str], tmp_path: Path
) -> None:
    commits = len(hub.repositories[NAME].commits)
    own = recipe_of(synthetic, *ID_ONLY, "training.epochs=1")
    ids_only = mmkd.train(own, folder=tmp_path / "ids")
    first = hub.repositories[NAME].branches["main"]
    ids_only.push_to_hub(NAME)
    assert len(hub.repositories[NAME].commits) == commits + 1
    assert "reduction.safetensors" not in hub.repositories[NAME].files()
    assert mmkd.load(NAME).recipe.name == "id-only"
    assert mmkd.load(NAME, revision=first).recipe.name == kdsr.recipe.name
    hub.repositories[NAME].branches["v1"] = first
    assert mmkd.load(NAME, revision="v1").recipe.name == kdsr.recipe.name


def test_private_is_asked_for_and_needs_a_token_to_read(
    hub: Hub, kdsr: mmkd.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kdsr.push_to_hub(NAME, private=True)
    assert hub.repositories[NAME].private
    monkeypatch.setenv("HF_TOKEN", "reader")
    assert mmkd.load(NAME).items == mmkd.load(NAME).items
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RunError, match="is private and your token may not see it"):
        mmkd.load(NAME)


def test_what_is_here_wins(
    pushed: dict[str, bytes],
    hub: Hub,
    kdsr: mmkd.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "shop").symlink_to(kdsr.folder.path)
    hub.requests.clear()
    assert mmkd.load(NAME).folder.path == Path(NAME)
    with pytest.raises(RunError, match="revision is of a repository"):
        mmkd.load(NAME, revision="v1")
    with pytest.raises(RunError, match="no run ann/shp"):  # ann is a folder: a path was meant
        mmkd.load("ann/shp")
    with pytest.raises(RunError, match="no run shop"):
        mmkd.load("shop")
    assert hub.requests == []


def test_mistakes_with_a_repository_are_told(
    hub: Hub, kdsr: mmkd.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="there is no such repository"):
        mmkd.load(NAME)
    hub.repositories["ann/bert"] = Repository()
    hub.repositories["ann/bert"].commit({"config.json": b"{}", "pytorch_model.bin": b"\x80"})
    with pytest.raises(RunError, match=r"holds no run\.json, so it is not a run of mmkd"):
        mmkd.load("ann/bert")
    with pytest.raises(RunError, match="something else of yours"):
        kdsr.push_to_hub("ann/bert")
    assert {*hub.repositories["ann/bert"].files()} == {"config.json", "pytorch_model.bin"}
    for name in ("shop", "a/b/c", "./a/b", "ann/sh op"):
        with pytest.raises(RunError, match="no name of a repository"):
            kdsr.push_to_hub(name)
    kdsr.push_to_hub(NAME)
    with pytest.raises(RunError, match="has no revision v9"):
        mmkd.load(NAME, revision="v9")
    hub.repositories[NAME].gated = True
    monkeypatch.setenv("HF_TOKEN", "reader")
    with pytest.raises(RunError, match="terms to be accepted"):
        mmkd.load(NAME)
    with pytest.raises(RunError, match=r"your token may not do that \(403\)"):
        kdsr.push_to_hub("ann/other")


def test_without_a_token_nothing_is_sent(
    hub: Hub, kdsr: mmkd.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(RunError, match="no token to write with; log in with `hf auth login`"):
        kdsr.push_to_hub(NAME)
    assert not hub.repositories


def test_without_a_network_the_cache_is_read_and_nobody_waits(
    pushed: dict[str, bytes],
    hub: Hub,
    kdsr: mmkd.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    known = mmkd.load(NAME)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    hub_reachable.cache_clear()
    began = time.monotonic()
    assert mmkd.load(NAME).items == known.items
    for ask, told in (
        (lambda: mmkd.load("ann/other"), "nor in the hub's cache .* can't be reached"),
        (lambda: kdsr.push_to_hub(NAME), "can't be reached, so nothing was sent"),
    ):
        with pytest.raises(RunError, match=told):
            ask()
    assert time.monotonic() - began < 10
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        mmkd.load("ann/other")
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        kdsr.push_to_hub(NAME)


def test_a_hub_that_fails_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.broken = 418
    with pytest.raises(RunError, match="answered with 418; try again later"):
        mmkd.load(NAME)


# ---- a repository is anybody's


def test_only_known_files_are_brought(
    pushed: dict[str, bytes], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extra = {"evil.py": b"boom", "student.pkl": b"\x80", "data_interactions.parquet": b"x"}
    hub.repositories[NAME].commit(pushed | extra | {"sub/run.json": b"{}", "checkpoints/x": b""})
    folder = found_run(NAME, Path("runs"))
    brought = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert brought == GOES - {"README.md"}
    asked = [path for _, path in hub.requests if "/resolve/" in path]
    assert not any(name in path for path in asked for name in extra)


def test_a_file_that_is_too_large_is_refused_before_it_is_brought(
    pushed: dict[str, bytes], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.sizes["run.json"] = 10**12
    with pytest.raises(RunError, match=r"run\.json has 1,000,000 MB, wanted at most 67"):
        mmkd.load(NAME)
    assert not [path for _, path in hub.requests if "/resolve/" in path]


@pytest.mark.parametrize("name", ["student.safetensors", "items.parquet", "recipe.yaml"])
def test_an_altered_file_is_told(
    pushed: dict[str, bytes],
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    body = bytearray(pushed[name])
    body[len(body) // 2] ^= 1
    hub.repositories[NAME].commit(pushed | {name: bytes(body)})
    with pytest.raises(RunError, match=rf"{re.escape(name)}: damaged"):
        mmkd.load(NAME)


def test_a_class_of_the_files_choice_is_not_imported(
    pushed: dict[str, bytes], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forger who lists the digests anew is still refused."""
    monkeypatch.chdir(tmp_path)
    spec = json.loads(pushed["student.json"])
    spec["backbone"] = {"kind": "antigravity:Backbone"}
    forged = pushed | {"student.json": json.dumps(spec).encode()}
    marker = json.loads(pushed["run.json"])
    (tmp_path / "student.json").write_bytes(forged["student.json"])
    marker["files"]["student.json"] = file_digest(tmp_path / "student.json")
    plain = {k: v for k, v in marker.items() if k not in ("sealed", "sha256")}
    write_sealed_json(tmp_path / "run.json", plain)
    hub.repositories[NAME].commit(forged | {"run.json": (tmp_path / "run.json").read_bytes()})
    run = mmkd.load(NAME)
    with pytest.raises(RunError, match=r"antigravity:Backbone.*trust-code"):
        run.recommend([run.items.ids[1]])
    assert "antigravity" not in sys.modules


def test_a_recipe_keeps_nothing_of_the_machine(synthetic: list[str]) -> None:
    recipe = recipe_of(
        synthetic,
        "data.root=~/shops/mine",
        "data.items.path=/mnt/x/items.csv",
        "encoders.text=/home/ann/cards/own.yaml",
        "encoders.image=../enc/looks/card.yaml",
        "data.items.attribute_separator=/",
        "objective.compression={teacher: /home/ann/runs/big}",
    )
    clean = portable(recipe)
    assert clean.data.root == "mine" and clean.data.items["path"] == "items.csv"
    assert clean.encoders == {"text": "own", "image": "looks"}
    assert clean.data.items["attribute_separator"] == "/"
    assert (clean.objective.compression or {})["teacher"] == "big"
    assert portable(clean) == clean
    nested = {"text": {"model": "/home/ann/x", "title": "/as it stands"}}
    assert sharing._without_paths(nested) == {"text": {"model": "x", "title": "/as it stands"}}


@pytest.mark.slow
def test_the_command_line_pushes_and_reads(hub: Hub, kdsr: mmkd.Run, tmp_path: Path) -> None:
    """In a process of its own, which knows the hub by its environment alone."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "writer",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment.pop("HF_HUB_CACHE", None)

    def mmkd_of(*arguments: str) -> Any:
        command = [sys.executable, "-m", "mmkd", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    sent = mmkd_of("push", str(kdsr.folder.path), NAME, "--private")
    assert sent.returncode == 0, sent.stderr
    assert f"{hub.url}/{NAME}: sent" in sent.stdout and hub.repositories[NAME].private
    ids = kdsr.items.ids[1:4]
    got = mmkd_of("recommend", NAME, "--history", ",".join(ids), "-k", "5", "--json")
    assert got.returncode == 0, got.stderr
    listed = [one["item"] for one in json.loads(got.stdout)]
    assert listed == kdsr.recommend([list(ids)], k=5)["item_id"].to_list()


def test_an_unknown_item_is_told_as_ever(
    pushed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="not among the"):
        mmkd.load(NAME).recommend(["no such"])
