"""A run's folder: its marker, its lock and its damaged files; without training."""

from pathlib import Path

import numpy as np
import pytest

from mmkd.data.items import ItemTable
from mmkd.errors import RunError
from mmkd.evaluation.ranking import CaseRanks
from mmkd.runs.folder import RunFolder, run_folders
from mmkd.student import StudentSpec

SPEC = StudentSpec(
    item_count=2,
    max_length=4,
    embedding={},
    backbone={},
    score_with="fused",
    ensemble={},
    modalities={},
)


def marked(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.mark(recipe="x", data={"events": "1"})
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
    run.mark_tables({"text": "a"})
    run.check_tables({"text": "a"})
    for now in ({"text": "b"}, {}):
        with pytest.raises(RunError, match=r"what the encoders read changed .*: text;"):
            run.check_tables(now)


def test_users_come_back_in_their_rows(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_users(["007", "ann", ""])
    assert RunFolder(tmp_path).users() == ("007", "ann", "")


def test_a_student_of_another_catalogue_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_student_spec(SPEC)
    items(3).save(tmp_path / "items.parquet")
    (tmp_path / "student.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"about 2 items and items\.parquet about 3"):
        run.student()


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
    run.write_users(["a"])
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
    RunFolder(tmp_path).write_ranks(ranks)
    again = RunFolder(tmp_path).ranks()
    assert np.array_equal(again.rank, ranks.rank)
    assert np.array_equal(again.top_items, ranks.top_items)
