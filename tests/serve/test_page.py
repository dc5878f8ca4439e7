"""The page shows a run's own lists and neighbours, and what strangers wrote is text in it."""

import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
from hostile_runs import HOSTILE
from markup import Page
from serve.conftest import client
from starlette.testclient import TestClient

from mmkd import Run
from mmkd.errors import EncoderError
from mmkd.pipeline.add_items import add_items
from mmkd.serve.page import FOUND
from mmkd.serve.state import HISTORY, State
from mmkd.terminal import printable

PART = {"HX-Request": "true"}


def address(*items: str, **more: str) -> str:
    pairs = [f"item={quote(item, safe='')}" for item in items]
    return "/?" + "&".join([*pairs, *(f"{name}={value}" for name, value in more.items())])


def links(page: str, prefix: str) -> list[State]:
    """The states that links lead to, of those whose id begins so."""
    found = re.findall(rf'<a [^>]*id="{prefix}-\d+(?:-\d+)?" href="\./\??([^"]*)"', page)
    return [State.of(one.replace("&amp;", "&")) for one in found]


def added(page: str, prefix: str) -> list[str]:
    """The items that such links add."""
    return [state.history[-1] for state in links(page, prefix)]


@pytest.fixture(scope="module")
def ids(hostile_run: Run) -> list[str]:
    return list(hostile_run.items.ids)


def test_nothing_a_stranger_wrote_is_markup(shop: TestClient, ids: list[str]) -> None:
    seen = Page("")
    for path in (
        "/",
        address(*ids[1:40]),
        address(ids[1], near=quote(ids[2]), q="a"),
        "/search?q=alert",
        "/search?q=%3Cscript%3Ealert(1)%3C/script%3E",
        "/?item=%3Cscript%3E&near=%22%3E%3Cimg&q=%22%3E%3Cscript%3E&k=%3Cb%3E",
        "/docs",
    ):
        page = Page(shop.get(path).text)
        assert page.open == [], path
        seen.tags += page.tags
        seen.texts += page.texts
        seen.attributes += page.attributes
        assert all(text.strip() == "" for _, text in page.scripts)
    assert seen.tags["i"] == seen.tags["b"] == seen.tags["style"] == seen.tags["iframe"] == 0
    assert not [name for _, name, _ in seen.attributes if name.startswith("on")]
    assert not seen.values("style") and not seen.values("srcdoc")
    sources = r"static/(htmx\.min|page)\.js|picture/[0-9a-f]{8}-[01]/\d+\.webp"
    assert all(re.fullmatch(sources, value) for value in seen.values("src"))
    leads = r"\./(\?.*)?|docs|random|openapi\.json|static/[a-z-]+\.(css|svg|txt)"
    assert all(re.fullmatch(leads, value) for value in seen.values("href"))
    shown = {text.strip() for text in seen.texts}
    for words in HOSTILE:
        assert [text for text in shown if text.startswith(printable(words).strip())], words
    assert not re.search("[\x1b\u202e]", "".join(seen.texts))


@pytest.mark.parametrize("more", [{}, {"seen": "1"}, {"k": "20"}, {"k": "50", "seen": "1"}])
def test_lists_are_the_runs_own(
    shop: TestClient,
    hostile_run: Run,
    hostile_ids_only: Run,
    ids: list[str],
    more: dict[str, str],
) -> None:
    history = ids[3:9]
    options: dict[str, Any] = {"k": int(more.get("k", 10)), "exclude_seen": "seen" not in more}
    for page in (
        shop.get(address(*history, **more)),
        shop.get(address(*history, **more), headers=PART),
    ):
        for number, run in enumerate((hostile_run, hostile_ids_only)):
            expected = run.recommend([history], **options)["item_id"].to_list()
            assert added(page.text, f"take-{number}") == expected
            near = [state.near for state in links(page.text, f"near-{number}")]
            assert near == expected


def test_what_stands_in_one_list_only_and_where_else_is_told(
    shop: TestClient, hostile_run: Run, hostile_ids_only: Run, ids: list[str]
) -> None:
    lists = [
        run.recommend([ids[3:9]])["item_id"].to_list() for run in (hostile_run, hostile_ids_only)
    ]
    page = shop.get(address(*ids[3:9])).text
    expected = [
        f"there {other.index(item) + 1}" if item in other else "only here"
        for own, other in (lists, lists[::-1])
        for item in own
    ]
    assert re.findall(r">(only here|there \d+)</span>", page) == expected
    assert "only here" in expected and len({*expected}) > 1


def test_the_bars_are_what_the_fusion_weighs(
    shop: TestClient, hostile_run: Run, ids: list[str]
) -> None:
    weights = hostile_run.student.source_weights()
    assert weights is not None and [*weights] == ["ids", "text", "image"]
    page = shop.get(address(*ids[3:9])).text
    rows = [hostile_run.items.row(item) for item in added(page, "take-0")]
    bars = re.findall(r"<svg class=\"sources\".*?</svg>", page, re.DOTALL)
    assert len(bars) == len(rows) == 10
    for row, bar in zip(rows, bars, strict=True):
        widths = [float(width) for width in re.findall(r' width="([\d.]+)"', bar)]
        assert widths == pytest.approx([100 * float(w[row]) for w in weights.values()], abs=0.051)


@pytest.mark.parametrize("by", ["text", "image", None])
def test_neighbours_are_the_runs_own(
    shop: TestClient, hostile_run: Run, ids: list[str], by: str | None
) -> None:
    row = int(hostile_run.tables["image"].present.nonzero()[0][3])
    page = shop.get(address(ids[1], near=quote(ids[row], safe=""))).text
    columns = page.partition('class="columns"')[2].split("<section>")[1:]
    titles = [re.findall(r"<h3>(.*?)</h3>", column)[0] for column in columns]
    names = ["text encoder", "image encoder", "&lt;b&gt;kdsr&lt;, the student", "ids, the student"]
    assert titles == names
    column = columns[2 if by is None else titles.index(f"{by} encoder")]
    found = re.findall(r'<a class="row" href="\./\?([^"]*)"', column)
    expected = hostile_run.similar([ids[row]], k=6, by=by)["item_id"].to_list()
    assert [parse_qs(one.replace("&amp;", "&"))["item"][-1] for one in found] == expected


def test_an_item_without_a_vector_says_so(shop: TestClient, hostile_run: Run) -> None:
    row = int((~hostile_run.tables["image"].present[1:]).nonzero()[0][0]) + 1
    page = shop.get(address(near=quote(hostile_run.items.ids[row], safe=""))).text
    assert page.count("It has nothing to compare.") == 1


def test_a_search_leads_to_the_history_with_the_item(
    shop: TestClient, hostile_run: Run, ids: list[str]
) -> None:
    titles = hostile_run.items.titles
    expected = [ids[row] for row in range(1, len(ids)) if "alert" in titles[row].lower()][:FOUND]
    state = State(history=(ids[5], ids[6]), k=20).form
    answer = shop.get("/search", params={"q": "ALERT", "state": state}, headers=PART)
    found = links(answer.text, "found")
    assert [one.history for one in found] == [(ids[5], ids[6], item) for item in expected]
    assert {one.k for one in found} == {20}
    assert State.of(answer.headers["hx-replace-url"].partition("?")[2]).query == "ALERT"
    assert "no item has this id" in shop.get("/search?q=zzzz").text
    assert shop.get("/search?q=").text.strip() == ""


def test_the_history_is_changed_by_links(shop: TestClient, ids: list[str]) -> None:
    page = shop.get(address(*ids[1:4], k="20")).text
    one, two, three = ids[1:4]
    assert [s.history for s in links(page, "earlier")] == [(two, one, three), (one, three, two)]
    assert [s.history for s in links(page, "later")] == [(two, one, three), (one, three, two)]
    assert [s.history for s in links(page, "remove")] == [(two, three), (one, three), (one, two)]
    assert [s.near for s in links(page, "past")] == [one, two, three]
    assert {s.k for s in links(page, "remove")} == {20}


def test_a_part_comes_with_the_address_and_what_is_told(shop: TestClient, ids: list[str]) -> None:
    part = shop.get(address(ids[1], q="alert"), headers=PART)
    assert "<html" not in part.text and 'id="work"' not in part.text
    assert part.text.count("hx-swap-oob") == 2 and "1 in the history." in part.text
    assert part.headers["hx-push-url"] == State(history=(ids[1],), query="alert").shown
    assert part.headers["cache-control"] == "no-store"
    whole = shop.get("/", headers=PART | {"HX-History-Restore-Request": "true"})
    assert "<html" in whole.text and "hx-swap-oob" not in whole.text


def test_what_an_address_asks_too_much_of_is_cut(shop: TestClient, ids: list[str]) -> None:
    long = [ids[n % 80 + 1] for n in range(3 * HISTORY)]
    page = shop.get(address(*long)).text
    assert [s.near for s in links(page, "past")] == long[-HISTORY:]
    assert len(links(page, "take-0")[0].history) == HISTORY
    page = shop.get(address("nobody", ids[1], "x" * 5000, k="1000", near="nobody")).text
    assert "2 of the address's items are not in the catalogue" in page
    assert len(links(page, "take-0")) == 10 and "neighbourhood" not in page


def test_what_is_in_stock_is_a_filter(hostile_run: Run, ids: list[str]) -> None:
    shop = client(hostile_run, allow=ids[1:31])
    history = [ids[60]]
    for more, allow in (({}, ids[1:31]), ({"everything": "1"}, None)):
        page = shop.get(address(*history, k="50", **more)).text
        expected = hostile_run.recommend([history], k=50, allow=allow)["item_id"].to_list()
        assert added(page, "take-0") == expected
        assert ('id="everything" checked' in page) is (allow is not None)
    assert 'id="everything"' not in client(hostile_run).get(address(*history)).text


def test_a_run_with_new_items_stands_beside_the_one_without(
    hostile_run: Run, ids: list[str], tmp_path: Path
) -> None:
    header = "item_id,title,description,image,attributes\n"
    (tmp_path / "new.csv").write_text(header + "N1,<b>New</b>,A red cotton lamp,,\n")
    add_items(hostile_run.folder.path, tmp_path / "new.csv", out=tmp_path / "tomorrow")
    shop = client(hostile_run, Run(tmp_path / "tomorrow"))
    assert added(shop.get("/search?q=n1").text, "found") == ["N1"]
    page = shop.get(address(ids[1], "N1")).text
    assert "This run does not know 1 of the history's items." in page
    expected = hostile_run.recommend([[ids[1]]])["item_id"].to_list()
    assert added(page, "take-0") == expected
    expected = Run(tmp_path / "tomorrow").recommend([[ids[1], "N1"]])["item_id"].to_list()
    assert added(page, "take-1") == expected
    near = shop.get(address(near="N1")).text
    assert len(near.partition('class="columns"')[2].split("<section>")[1:]) == 3
    only = shop.get(address("N1")).text
    assert not links(only, "take-0") and len(links(only, "take-1")) == 10


def test_a_run_whose_data_and_vectors_are_gone_still_recommends(
    hostile_run: Run, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(hostile_run.folder.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    recipe = run.recipe.to_yaml().replace(str(run.recipe.data.root), str(tmp_path / "nowhere"))
    (tmp_path / "run" / "result.json").unlink()
    run.folder.write(recipe=recipe, result=hostile_run.result)

    def gone(*_: object) -> None:
        raise EncoderError("encoders.text: <i>gone</i>; put it back")

    monkeypatch.setattr("mmkd.pipeline.run.embed", gone)
    shop = client(Run(tmp_path / "run"))
    page = shop.get("/").text
    assert added(page, "shop")[:3] == ids[1:4] and "draw one" not in page and "<img" not in page
    page = shop.get(address(ids[1], near=quote(ids[2], safe=""))).text
    assert added(page, "take-0") == hostile_run.recommend([[ids[1]]])["item_id"].to_list()
    assert "not shown: encoders.text: &lt;i&gt;gone&lt;/i&gt;; put it back" in page
    assert shop.get("/random").status_code == 404
    answer = shop.post("/similar", json={"item": ids[1], "by": "text"})
    assert answer.json()["errors"][0]["remedy"] == "encoders.text: <i>gone</i>; put it back"


def test_a_history_is_drawn_from_the_log(shop: TestClient, hostile_run: Run) -> None:
    answer = shop.get("/random", follow_redirects=False)
    assert answer.status_code == 303
    drawn = State.of(answer.headers["location"].partition("?")[2]).history
    split = hostile_run.data.split
    histories = [
        tuple(hostile_run.items.ids[row] for row in split.sequence(user)[-6:])
        for user in range(split.user_count)
    ]
    assert drawn in histories
    assert shop.get("/random", headers=PART).status_code == 200


def test_what_is_refused_is_told_where_it_is_seen(shop: TestClient) -> None:
    page = shop.get("/nowhere", headers={"Accept": "text/html"})
    assert page.status_code == 404 and "<h1>Not answered</h1>" in page.text
    part = shop.get("/nowhere", headers=PART)
    assert part.status_code == 404 and "<html" not in part.text and "not found" in part.text
    assert shop.get("/nowhere").json()["errors"][0]["where"] == "/nowhere"
