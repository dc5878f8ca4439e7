"""Data sets of the published forms to tables and a recipe that trains; with and without a net."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from commands import invoke, printed
from published_files import (
    FILMS,
    USERS,
    Site,
    amazon_files,
    hundred_thousand_files,
    microlens_files,
    million_files,
    pairs,
    picture,
    zipped,
)

from mmkd import load_recipe
from mmkd.errors import DataError
from mmkd.pipeline.train import train
from mmkd.published import get, known
from mmkd.published.amazon import amazon
from mmkd.published.known import RemoteFile, find
from mmkd.published.movielens import hundred_thousand, million

TINY = ["training.epochs=1", "training.threads=1", "training.cpu=true"]


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "items.csv").open(newline="", encoding="utf-8") as file:
        return {row["item_id"]: row for row in csv.DictReader(file)}


def yes(*_: object) -> bool:
    return True


def test_million_is_latin_1_and_parted_by_colons(tmp_path: Path) -> None:
    zipped(tmp_path / "raw" / "ml-1m.zip", million_files())
    _, recipe, _ = get("ml-1m", tmp_path / "out", source=tmp_path / "raw", accept=yes)
    items = rows(tmp_path / "out")
    assert len(items) == FILMS
    assert items["3"] == {
        "item_id": "3",
        "title": "Mis\xe9rables, Les (1995)",
        "genres": "Drama|War",
    }
    assert items["4"]["title"] == "Face::Off (1997)"
    events = pl.read_parquet(tmp_path / "out" / "events.parquet")
    assert events.select("user_id", "item_id", "timestamp").rows() == [
        (str(user), str(item), second) for user, item, second in pairs()
    ]
    assert events["rating"][0] == 2.0
    text = recipe.read_text("utf-8")
    assert "no redistribution" in text and "Harper and Konstan" in text
    plain = tmp_path / "plain" / "ml-1m"
    plain.mkdir(parents=True)
    for name in ("movies.dat", "ratings.dat"):
        (plain / name).write_bytes(million_files()[f"ml-1m/{name}"])
    assert million(tmp_path / "plain").events.equals(events)


def test_hundred_thousand_has_a_column_a_genre(tmp_path: Path) -> None:
    zipped(tmp_path / "ml-100k.zip", hundred_thousand_files())
    found = hundred_thousand(tmp_path)
    assert found.items.row(0) == ("1", "L\xe9on 1 (1994)", "Comedy")
    assert found.items.row(1) == ("2", "L\xe9on 2 (1994)", "Drama")
    assert found.events.height == USERS * 6 and found.events["rating"].unique().to_list() == [3.0]


@pytest.mark.parametrize(
    ("member", "content", "told"),
    [
        ("ml-100k/u.item", b"1|Title|x\n", r"u\.item: line 1 is not 5 cells and 19 genres"),
        ("ml-100k/u.data", b"1\t2\t3\n", r"u\.data: line 1 has 3 cells, wanted 4"),
        ("ml-100k/u.data", b"1\t2\tx\t4\n", r"u\.data: rating, timestamp: "),
        ("ml-100k/u.data", b"1\t\xff\t3\t4\n", r"u\.data: is no text"),
    ],
)
def test_another_form_is_told_with_its_place(
    tmp_path: Path, member: str, content: bytes, told: str
) -> None:
    zipped(tmp_path / "ml-100k.zip", hundred_thousand_files() | {member: content})
    with pytest.raises(DataError, match=told):
        hundred_thousand(tmp_path)


def test_amazon_keeps_the_core_and_the_pictures_it_can_get(site: Site, tmp_path: Path) -> None:
    raw = amazon_files(tmp_path / "raw", site.url)
    site.files |= {f"/{n}.jpg": picture(n) for n in range(1, FILMS) if n != 6}
    pictures = tmp_path / "pictures"
    found = amazon(raw, "All_Beauty", pictures, hosts=[site.host], core=5)
    assert found.events.height == USERS * 6  # not the lonely one
    assert found.events.row(0) == ("AE1", "B00002", 978_300_001_000, 4.0)
    items = {row["item_id"]: row for row in found.items.iter_rows(named=True)}
    assert len(items) == FILMS and "B00999" not in items
    assert items["B00002"]["categories"] == "Beauty|Soap" and items["B00005"]["categories"] is None
    assert items["B00002"]["description"] == "Smells of lemon."
    assert items["B00001"]["description"] == "soft"  # the features, where nothing else is said
    without = [id_ for id_, row in items.items() if row["picture"] is None]
    assert without == ["B00003", "B00004", "B00006", "B00012"]
    assert found.notes[-1].startswith(f"8 of {FILMS} products have a picture; of the others: ")
    for told in ("1 another host's", "2 HTTP 404", "1 no address"):
        assert told in found.notes[-1]
    few = amazon(raw, "All_Beauty", tmp_path / "few", hosts=[site.host], most_pictures=2)
    assert "9 left out (--most-pictures)" in few.notes[-1]
    assert amazon(raw, "All_Beauty", None, core=1).events.height == USERS * 6 + 1
    with pytest.raises(DataError, match="none of 181 events is left"):
        amazon(raw, "All_Beauty", None, core=100)


def test_amazon_of_another_form_is_told_with_its_place(tmp_path: Path) -> None:
    raw = amazon_files(tmp_path)
    for text, told in (('{"user_id": "A"}', "line 1: 'parent_asin': wanted"), ("[", "is not JSON")):
        (raw / "All_Beauty.jsonl.gz").unlink(missing_ok=True)
        (raw / "All_Beauty.jsonl").write_text(text)
        with pytest.raises(DataError, match=told):
            amazon(raw, "All_Beauty", None)
    (raw / "All_Beauty.jsonl").unlink()
    with pytest.raises(DataError, match=r"holds no All_Beauty\.jsonl\.gz"):
        amazon(raw, "All_Beauty", None)


def test_microlens_has_titles_with_commas_topics_and_covers(tmp_path: Path) -> None:
    raw = microlens_files(tmp_path / "raw")
    data, recipe, notes = get("microlens-100k", tmp_path / "out", source=raw, accept=yes)
    items = rows(tmp_path / "out")
    assert items["2"]["title"] == 'Cat 2, "sleeping" again' and items["2"]["topic"] == "Food"
    assert items["2"]["picture"] == "2.jpg" and items[str(FILMS)]["title"] == ""
    assert (tmp_path / "out" / "pictures" / "2.jpg").read_bytes() == picture(2)
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == FILMS - 2
    assert notes == [f"2 of {FILMS} videos have no cover", f"1 of {FILMS} videos have no title"]
    assert len(data.log) == USERS * 6 and len(raw.joinpath("tags_to_summary.csv").read_text()) > 0
    result = train(load_recipe(str(recipe), TINY), folder=tmp_path / "run")
    assert result["test"]["n"] == USERS
    again = json.loads((tmp_path / "out" / "source.json").read_text())
    assert again["name"] == "microlens-100k" and "2309.15379" in again["cite"]
    # covers that are unpacked already
    shutil.unpack_archive(raw / "MicroLens-100k_covers.zip", tmp_path / "raw")
    (raw / "MicroLens-100k_covers.zip").unlink()
    get("microlens-100k", tmp_path / "other", source=raw, accept=yes)
    assert len(list((tmp_path / "other" / "pictures").iterdir())) == FILMS - 2


@pytest.fixture
def hosted(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """ml-1m on the loopback."""
    site.files["/ml-1m.zip"] = zipped(tmp_path / "made.zip", million_files()).read_bytes()
    file = RemoteFile("ml-1m.zip", (f"{site.url}/ml-1m.zip",), 10**6)
    monkeypatch.setitem(known._ALL, "ml-1m", replace(find("ml-1m"), files=(file,)))
    monkeypatch.chdir(tmp_path)
    return site


def test_terms_are_accepted_before_anything_is_downloaded(hosted: Site, tmp_path: Path) -> None:
    asked: list[dict[str, int | None]] = []

    def no(chosen: known.Published, sizes: dict[str, int | None]) -> bool:
        asked.append(sizes)
        return False

    with pytest.raises(DataError, match=r"ml-1m: its terms were not accepted .*--accept-licence"):
        get("ml-1m", accept=no)
    assert asked == [{"ml-1m.zip": len(hosted.files["/ml-1m.zip"])}]
    assert not hosted.asked and not (tmp_path / "data").exists()
    hosted.breaks_after = [300]
    told = printed("data", "get", "ml-1m", "--accept-licence")
    assert told["recipe"] == "data/ml-1m/ml-1m.yaml"
    assert (told["users"], told["items"], told["events"]) == (USERS, FILMS, USERS * 6)
    assert [where for _, where in hosted.asked] == [None, "bytes=300-"]
    recipe = load_recipe(told["recipe"])
    assert recipe.data.root == "data/ml-1m" and recipe.encoders == {"text": "hashed-text"}
    with pytest.raises(DataError, match="holds ml-1m already; train it"):
        get("ml-1m", accept=yes)
    hosted.asked.clear()
    get("ml-1m", accept=yes, force=True)
    assert not hosted.asked  # what was downloaded is there


def test_on_a_terminal_the_terms_are_asked_for(
    hosted: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="its terms were not accepted"):
        invoke("data", "get", "ml-1m")  # nobody is there to answer
    answers = iter([False, True])
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("mmkd.cli.data.sys", terminal)
    monkeypatch.setattr("mmkd.cli.data.typer.confirm", lambda *_, **__: next(answers))
    with pytest.raises(DataError, match="its terms were not accepted"):
        invoke("data", "get", "ml-1m")
    assert not hosted.asked
    told = invoke("data", "get", "ml-1m")
    size = len(hosted.files["/ml-1m.zip"]) / 1e6
    assert (
        f"to download: ml-1m.zip, {size:,.1f} MB" in told.stderr and "cite: Harper" in told.stderr
    )
    assert "next: mmkd validate data/ml-1m/ml-1m.yaml, then mmkd train" in told.stdout
    assert invoke("validate", "data/ml-1m/ml-1m.yaml").exit_code == 0


def test_without_a_network_it_says_at_once_what_to_get_by_hand(
    hosted: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = RemoteFile("ml-1m.zip", ("http://127.0.0.1:1/ml-1m.zip",), 10**6)
    monkeypatch.setitem(known._ALL, "ml-1m", replace(find("ml-1m"), files=(gone,)))
    by_hand = r"(?s)ml-1m\.zip from http://127\.0\.0\.1:1/ml-1m\.zip.*data get ml-1m --from FOLDER"
    with pytest.raises(DataError, match=by_hand):
        get("ml-1m", accept=yes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=by_hand):
        get("ml-1m", accept=yes, source=tmp_path / "empty")
    with pytest.raises(DataError, match="ml-2m: no such data set; did you mean"):
        get("ml-2m", accept=yes)


def test_the_list_names_every_set_with_its_terms() -> None:
    found = {one["name"]: one for one in printed("data", "list")}
    assert {"ml-1m", "ml-100k", "microlens-100k", "amazon-2023-all-beauty"} <= found.keys()
    assert len(found) == 36 and all(one["terms"] and one["cite"] for one in found.values())
    assert "ml-1m" in invoke("data", "list").stdout
    for name in found:
        for file in find(name).files:
            assert all(url.startswith("https://") for url in file.urls) and file.most_bytes > 0
