"""`mmkd recommend` to a file, `mmkd similar`, `mmkd compare`: what a shop takes from a run."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from commands import Shop, invoke, printed

import mmkd
from mmkd.errors import Interrupted


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def run(shop: Shop) -> mmkd.Run:
    return mmkd.load(shop.runs / "quickstart")


READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".parquet": pl.read_parquet,
    ".csv": pl.read_csv,
    ".jsonl": pl.read_ndjson,
}


@pytest.mark.parametrize("suffix", READERS)
def test_lists_for_all_users_in_each_format(
    shop: Shop, run: mmkd.Run, suffix: str, tmp_path: Path
) -> None:
    out = tmp_path / f"lists{suffix}"
    told = printed("recommend", run.folder.path, "--all-users", "-k", "3", "--out", out)
    expected = run.recommend(users="all", k=3)
    assert told == {"path": str(out), "lists": run.data.split.user_count, "rows": len(expected)}
    found = READERS[suffix](out)
    assert found.columns == expected.columns
    assert found["item_id"].to_list() == expected["item_id"].to_list()
    assert found["query"].cast(pl.String).to_list() == expected["query"].to_list()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_users_what_is_in_stock_and_what_is_sold_out_come_from_files(
    run: mmkd.Run, tmp_path: Path
) -> None:
    users, ids = list(run.data.log.user_ids[:3]), list(run.items.ids[1:40])
    pl.DataFrame({"user_id": users}).write_csv(tmp_path / "users.csv")
    pl.DataFrame({"item_id": ids, "stock": range(len(ids))}).write_csv(tmp_path / "stock.csv")
    (tmp_path / "sold.txt").write_text("\n".join(ids[:20]) + "\n")
    places = ("--users", tmp_path / "users.csv", "--allow", tmp_path / "stock.csv")
    out = tmp_path / "lists.parquet"
    printed("recommend", run.folder.path, *places, "--deny", tmp_path / "sold.txt", "--out", out)
    found = pl.read_parquet(out)
    assert found.equals(run.recommend(users=users, allow=ids, deny=ids[:20]))
    assert set(found["item_id"]) <= set(ids[20:]) and set(found["query"]) <= set(users)


def test_histories_of_strangers_come_as_events(run: mmkd.Run, tmp_path: Path) -> None:
    a, b, c = run.items.ids[1:4]
    (tmp_path / "events.csv").write_text(
        f"user_id,item_id,timestamp\nzoe,{b},20\nzoe,{a},10\nyan,{c},5\n"
    )
    out = tmp_path / "lists.parquet"
    printed("recommend", run.folder.path, "--histories", tmp_path / "events.csv", "--out", out)
    assert pl.read_parquet(out).equals(run.recommend({"zoe": [a, b], "yan": [c]}))


def test_an_item_may_be_named_by_its_title(run: mmkd.Run) -> None:
    row = next(
        r for r, t in enumerate(run.items.titles) if r and list(run.items.titles).count(t) == 1
    )
    named = f"title:{run.items.titles[row].upper()}"
    by_id = printed("similar", run.folder.path, "--item", run.items.ids[row], "-k", "3")
    assert printed("similar", run.folder.path, "--item", named, "-k", "3") == by_id
    assert [one["item"] for one in by_id] == (
        run.similar([run.items.ids[row]], k=3)["item_id"].to_list()
    )
    assert len(printed("similar", run.folder.path, "--item", named, "--by", "image")) == 10
    assert printed("recommend", run.folder.path, "--history", named) == printed(
        "recommend", run.folder.path, "--history", run.items.ids[row]
    )


def test_runs_are_compared(shop: Shop) -> None:
    found = printed("compare", "quickstart", "id-only", "--runs", shop.runs)
    assert found["run"] == "quickstart" and [o["run"] for o in found["others"]] == ["id-only"]
    shown = invoke("compare", "quickstart", "id-only", "--runs", shop.runs).output
    assert "p (Holm)" in shown and "id-only" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give one of --history, --histories, --users and --all-users"),
        (["--all-users", "--history", "x"], "give one of --history"),
        (["--all-users"], "--out: give the file that the lists go to"),
        (["--all-users", "--out", "x.xlsx"], "wanted a name ending in .parquet, .csv, .jsonl"),
        (["--history", "title:nothing like this"], "no item has the title"),
        (["--history", "title:a"], "is that of"),
    ],
)
def test_mistakes_are_told(run: mmkd.Run, arguments: list[str], told: str) -> None:
    with pytest.raises(mmkd.MmkdError, match=told):
        invoke("recommend", run.folder.path, *arguments)


def test_an_interrupted_list_leaves_nothing(
    run: mmkd.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "lists.csv"
    out.write_text("yesterday's")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmkd.cli.lists.Bar.advance", stop)
    with pytest.raises(Interrupted, match="stopped; the same command starts again"):
        invoke("recommend", run.folder.path, "--all-users", "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["lists.csv"]
    assert out.read_text() == "yesterday's"
