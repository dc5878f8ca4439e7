"""A run's folder: its marker, its lock, its files and damaged ones; without training."""

import hashlib
import json
import os
import stat
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmkd import ItemTable
from mmkd.errors import RunError
from mmkd.evaluation import CaseRanks
from mmkd.files import file_digest
from mmkd.runs.folder import RunFolder, run_folders
from mmkd.student import StudentSpec

SPEC = StudentSpec(
    item_count=2,
    max_length=4,
    embedding={"width": 4},
    backbone={"kind": "gru4rec"},
    score_with="id",
    ensemble={},
    modalities={},
)


def marked(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.write(marker={"recipe": "x", "data": {"events": "1"}})
    return run


def items(count: int) -> ItemTable:
    ids = ("", *(f"i{n}" for n in range(count)))
    blank = (None,) * len(ids)
    return ItemTable(ids=ids, titles=ids, text=blank, image_path=blank, attributes=((),) * len(ids))


def test_only_a_marked_folder_is_a_run(tmp_path: Path) -> None:
    for name in ("other", "result"):
        (tmp_path / name).mkdir()
    (tmp_path / "result" / "result.json").write_text("{}", "utf-8")
    marked(tmp_path / "run")
    assert [run.path.name for run in run_folders(tmp_path)] == ["run"]
    assert not RunFolder(tmp_path / "result").finished


def test_clearing_follows_no_link(tmp_path: Path) -> None:
    run = marked(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("x", "utf-8")
    (run.path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    run.clear()
    assert (tmp_path / "elsewhere" / "precious").is_file()


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(KeyError), run.locked():
        raise KeyError
    assert not run.path.exists()  # nothing was begun in it
    with run.locked():
        marked(run.path)
        with pytest.raises(RunError, match="another process"), RunFolder(run.path).locked():
            pass
    with run.locked():
        run.check_free()


def test_tables_are_compared_once_they_are_known(tmp_path: Path) -> None:
    run = marked(tmp_path)
    run.check_tables({"text": "a"})
    run.write(tables={"text": "a"})
    run.check_tables({"text": "a"})
    for now in ({"text": "b"}, {}):
        with pytest.raises(RunError, match=r"what the encoders read changed .*: text;"):
            run.check_tables(now)
    run.write(marker={"recipe": "x", "data": {}})  # begun anew: they are not known yet
    run.check_tables({"text": "b"})


def test_users_come_back_in_their_rows(tmp_path: Path) -> None:
    RunFolder(tmp_path).write(users=["007", "ann", ""])
    assert RunFolder(tmp_path).users() == ("007", "ann", "")


def test_a_student_of_another_catalogue_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write(spec=SPEC, items=items(3))
    (tmp_path / "student.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"about 2 items and items\.parquet about 3"):
        run.student()


def test_a_student_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    run, student = RunFolder(tmp_path), SPEC.build(seed=1)
    run.write(spec=SPEC, items=items(2))
    save_file(student.state_dict(), tmp_path / "student.safetensors")
    again = run.student()
    assert not again.training and again.max_length == 4
    assert all(a.equal(b) for a, b in zip(again.parameters(), student.parameters(), strict=True))


def test_weights_of_another_student_are_damaged_and_told_in_one_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write(spec=SPEC, items=items(2))
    save_file({"x": SPEC.build().networks[0].item_matrix().detach()}, tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "student.safetensors")
    with pytest.raises(RunError, match=r"student\.json: damaged \(members: got 1, but") as caught:
        run.student()
    assert "\n" not in str(caught.value)


def test_a_result_finishes_the_run_and_ends_its_checkpoints(tmp_path: Path) -> None:
    run = marked(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    run.write(history=[{"epoch": 0}], attributes=["red"])
    assert not run.finished and (tmp_path / "checkpoints").is_dir()
    run.write(result={"test": {}})
    assert run.finished and not (tmp_path / "checkpoints").exists()
    assert json.loads((tmp_path / "history.json").read_text("utf-8")) == [{"epoch": 0}]
    assert json.loads((tmp_path / "attributes.json").read_text("utf-8")) == {"names": ["red"]}


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        marked(tmp_path).write(users=["a"], items=items(1), spec=SPEC)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 4 and set(modes.values()) == {0o640}, modes


def test_a_place_that_takes_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    with pytest.raises(RunError, match=r"run: can't be written \(.*\); give"):
        RunFolder(tmp_path / "file" / "run").write(attributes=["red"])


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"mmkd"', b"\xff\xfe\x00", b"PAR1"])
@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("run.json", RunFolder.marker),
        ("result.json", RunFolder.result),
        ("student.json", RunFolder.student_spec),
        ("users.parquet", RunFolder.users),
        ("items.parquet", RunFolder.items),
        ("test_ranks.parquet", RunFolder.ranks),
    ],
)
def test_a_damaged_file_is_named_with_a_remedy(
    tmp_path: Path, file: str, read: object, content: bytes
) -> None:
    (tmp_path / file).write_bytes(content)
    assert callable(read)
    with pytest.raises(RunError, match=rf"{file}: damaged \(.*put a copy of it back"):
        read(RunFolder(tmp_path))


def test_ranks_of_another_table_are_damaged(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write(users=["a"])
    (tmp_path / "users.parquet").rename(tmp_path / "test_ranks.parquet")
    with pytest.raises(RunError, match=r"test_ranks\.parquet: damaged"):
        run.ranks()


def test_whole_ranks_come_back(tmp_path: Path) -> None:
    whole = np.arange(2)
    ranks = CaseRanks(
        case=whole,
        user=whole,
        target=whole + 1,
        rank=np.array([1.0, 2.5]),
        ties=whole,
        top_items=np.array([[1, 2, 0], [2, 1, 0]]),
    )
    RunFolder(tmp_path).write(ranks=ranks)
    again = RunFolder(tmp_path).ranks()
    assert np.array_equal(again.rank, ranks.rank)
    assert np.array_equal(again.top_items, ranks.top_items)


PARTS = (
    *("recipe.yaml", "items.parquet", "users.parquet", "student.json", "student.safetensors"),
    *("attributes.json", "history.json", "test_ranks.parquet", "result.json", "run.json"),
)


def finished(folder: Path, *, seed: int = 0) -> RunFolder:
    run, whole = marked(folder), np.arange(2)
    ranks = CaseRanks(
        case=whole, user=whole, target=whole + 1, ties=whole,
        rank=np.array([1.0, 2.0]) + float(seed), top_items=np.array([[1, 2], [2, 1]]),
    )  # fmt: skip
    result = {"best_epoch": 0, "epochs": 1, "peak_memory_bytes": 1, "processes": 1}
    run.write(
        recipe=f"name: x{seed}\n", items=items(2), users=["a", f"b{seed}"], spec=SPEC,
        student=SPEC.build(seed=seed), attributes=["red"], ranks=ranks,
        history=[{"epoch": seed}], result=result | {"test": {}, "valid": {}, "seconds": {}},
    )  # fmt: skip
    return run


def use_all(run: RunFolder) -> None:
    for read in (run.items, run.users, run.student, run.ranks, run.history, run.result):
        read()
    _ = run.recipe
    run.weights_digest()
    run.check_files()


def test_a_finished_run_lists_all_its_files(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    use_all(run)
    listed = run.marker()["files"]
    assert {*listed, "run.json"} == {*PARTS} == {path.name for path in run.path.iterdir()}
    for name, digest in listed.items():
        assert hashlib.sha256((run.path / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("name", PARTS)
def test_a_flip_a_foreign_file_and_a_missing_one_are_told(tmp_path: Path, name: str) -> None:
    run, other = finished(tmp_path / "a"), finished(tmp_path / "b", seed=1)
    sound, draw = (run.path / name).read_bytes(), np.random.default_rng(0)
    for _ in range(10):
        flipped = bytearray(sound)
        flipped[int(draw.integers(len(flipped)))] ^= 1 << int(draw.integers(8))
        (run.path / name).write_bytes(flipped)
        with pytest.raises(RunError, match=rf"{name}: damaged"):
            use_all(run)
    foreign = (other.path / name).read_bytes()
    if foreign != sound and name != "run.json":
        (run.path / name).write_bytes(foreign)
        with pytest.raises(RunError, match=rf"{name}: damaged \(altered, or of another run"):
            use_all(run)
    (run.path / name).unlink()
    if name in ("run.json", "result.json"):
        assert not run.finished
    else:
        with pytest.raises(RunError, match=rf"{name}: missing, though the run was finished"):
            use_all(run)


def test_an_opened_run_reads_its_files_digests_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path)
    time.sleep(0.15)  # files that were written just now are not taken for settled
    hashed: Counter[str] = Counter()

    def counted(path: Path) -> str:
        hashed[path.name] += 1
        return file_digest(path)

    monkeypatch.setattr("mmkd.runs.folder.file_digest", counted)
    run = RunFolder(tmp_path)
    run.check_files()
    for _ in range(2):
        use_all(run)
        run.weights_digest()
    assert hashed["student.safetensors"] == 1 and set(hashed.values()) == {1}
    weights = tmp_path / "student.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    with weights.open("r+b") as file:  # in place: the same file, of the same size
        file.write(flipped)
    with pytest.raises(RunError, match=r"student\.safetensors: damaged"):
        run.student()


def test_a_run_of_release_0_1_lists_no_file_and_is_read(tmp_path: Path) -> None:
    run = finished(tmp_path)
    marker = {k: v for k, v in run.marker().items() if k != "files"}
    (tmp_path / "run.json").write_text(json.dumps(marker), "utf-8")
    use_all(run)


def test_a_student_that_its_weights_do_not_confirm_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    run.write(spec=SPEC, items=items(2), student=SPEC.build())
    build = StudentSpec.build

    def unbuilt(spec: StudentSpec) -> Any:
        assert torch.get_default_device().type == "meta", "it was built"
        return build(spec)

    monkeypatch.setattr(StudentSpec, "build", unbuilt)
    for changes in (
        {"ensemble": {"members": 10**9}},
        {"backbone": {"kind": "gru4rec", "layers": 10**9}},
        {"backbone": {"kind": "sasrec", "layers": 2}},
        {"embedding": {"width": 10**12}},
        {"modalities": {"text": 4}},
    ):
        run.write(spec=replace(SPEC, **changes))
        with pytest.raises(RunError, match=r"student\.json: damaged"):
            run.student()


@pytest.mark.parametrize("left", [(), ("run.json",), (".run.json.1-0badcafe.tmp", ".lock")])
def test_what_a_kill_leaves_of_a_beginning_is_no_run(tmp_path: Path, left: tuple[str, ...]) -> None:
    run = RunFolder(tmp_path)
    for name in left:
        marked(tmp_path) if name == "run.json" else (tmp_path / name).write_bytes(b"x")
    run.check_free()
    assert run.bare == ("run.json" in left)
    with run.locked():
        assert not list(tmp_path.glob(".*.tmp"))


def test_a_finished_run_is_tidied_of_what_a_kill_left(tmp_path: Path) -> None:
    run = finished(tmp_path)
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / ".student.safetensors.7-0badcafe.tmp").write_bytes(b"x")
    run.tidy()
    assert {path.name for path in tmp_path.iterdir()} == {*PARTS, ".lock"}
    use_all(run)
