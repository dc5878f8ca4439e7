"""The JSON endpoints: a run's own lists, merged passes, and bounds that are told."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from serve.conftest import client
from starlette.testclient import TestClient

from mmkd import Run
from mmkd.errors import DataError, RunError
from mmkd.runs import recommend as asking
from mmkd.serve import application


def recommended(run: Run, history: list[str], **options: Any) -> list[dict[str, Any]]:
    return run.recommend([history], **options).drop("query").to_dicts()


def same(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    for name in ("rank", "item_id", "title"):
        assert [one[name] for one in found] == [one[name] for one in expected]
    scores = [one["score"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx(scores, abs=1e-4)


def problems(shop: TestClient, path: str, **body: Any) -> dict[str, tuple[str, str]]:
    answer = shop.post(path, json=body)
    assert answer.status_code == 422, answer.text
    return {one["where"]: (one["what"], one["remedy"]) for one in answer.json()["errors"]}


@pytest.fixture(scope="module")
def histories(hostile_run: Run) -> list[list[str]]:
    generator = np.random.default_rng(0)
    ids = list(hostile_run.items.ids[1:])
    return [generator.choice(ids, size=n % 15 + 1).tolist() for n in range(50)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3},
        {"k": 200, "exclude_seen": False},
        {"allow": range(1, 40)},
        {"deny": range(1, 40), "k": 20},
        {"allow": range(10, 30), "deny": range(20, 80), "exclude_seen": False},
    ],
)
def test_lists_are_the_runs_own(
    shop: TestClient,
    hostile_run: Run,
    hostile_ids_only: Run,
    histories: list[list[str]],
    options: dict[str, Any],
) -> None:
    ids = hostile_run.items.ids
    given = {
        name: [ids[row] for row in value] if isinstance(value, range) else value
        for name, value in options.items()
    }
    for run, name in ((hostile_run, None), (hostile_ids_only, "ids")):
        for history in histories[:8]:
            answer = shop.post("/recommend", json={"history": history, "run": name, **given})
            assert answer.status_code == 200, answer.text
            assert answer.json()["run"] == (name or "<b>kdsr<")
            same(answer.json()["items"], recommended(run, history, **given))


def test_requests_that_come_together_are_merged_and_each_gets_its_own_list(
    hostile_run: Run, histories: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def counted(student: Any, queries: Sequence[asking.Query]) -> Any:
        passes.append(len(queries))
        return asking.answer(student, queries)

    monkeypatch.setattr("mmkd.serve.served.answer", counted)
    app = application([hostile_run])

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            asked = [
                http.post("/recommend", json={"history": history, "k": n % 20 + 1})
                for n, history in enumerate(histories)
            ]
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask())
    assert sum(passes) == len(histories) and len(passes) <= 5 and max(passes) <= 32
    for n, (history, answer) in enumerate(zip(histories, answers, strict=True)):
        same(answer.json()["items"], recommended(hostile_run, history, k=n % 20 + 1))


@pytest.mark.parametrize("by", ["student", "text", "image"])
def test_neighbours_are_the_runs_own(shop: TestClient, hostile_run: Run, by: str) -> None:
    present = hostile_run.tables["image"].present
    for row in np.flatnonzero(present)[:5].tolist():
        item = hostile_run.items.ids[row]
        answer = shop.post("/similar", json={"item": item, "by": by, "k": 7})
        expected = hostile_run.similar([item], k=7, by=None if by == "student" else by)
        same(answer.json()["items"], expected.drop("query").to_dicts())


def test_an_item_without_a_picture_has_no_neighbours_by_it(
    shop: TestClient, hostile_run: Run
) -> None:
    row = int(np.flatnonzero(~hostile_run.tables["image"].present[1:])[0]) + 1
    found = problems(shop, "/similar", item=hostile_run.items.ids[row], by="image")
    assert found["item"][0].endswith("has no such vector, so nothing is near")


def test_what_is_not_known_is_told_with_its_place_and_a_remedy(
    shop: TestClient, hostile_run: Run
) -> None:
    known = str(hostile_run.items.ids[1])
    history = [known, known + "x", "nobody", known]
    found = problems(shop, "/recommend", history=history, allow=["?"], deny=[known], in_stock=True)
    assert found.keys() == {"history[1]", "allow[0]", "in_stock"}
    what, remedy = found["history[1]"]
    assert "among the 80 items of <b>kdsr<, nor is 1 more" in what
    assert remedy.startswith("did you mean")
    assert found["allow[0]"][1] == "give ids of the catalogue that the run was trained on"
    assert found["in_stock"][1].endswith("start the server with --allow")
    assert problems(shop, "/recommend", history=[known], run="idz")["run"][1].startswith("did you")
    wanted = "got 'smell', wanted one of student, text, image"
    assert problems(shop, "/similar", item=known, by="smell")["by"][0] == wanted
    assert problems(shop, "/similar", item="\x00\x1b[31m")["item"][0].startswith("item '")


def test_sizes_are_bounded(shop: TestClient, hostile_run: Run) -> None:
    known = str(hostile_run.items.ids[1])
    for field, value in (
        ("history", []),
        ("history", [known] * 1001),
        ("history", "A1"),
        ("history[0]", ["x" * 513]),
        ("history[0]", [""]),
        ("history[0]", [7]),
        ("k", 0),
        ("k", 201),
        ("k", 1.5),
        ("allow", ["x"] * 10_001),
        ("deny", ["x"] * 10_001),
        ("exclude_seen", "perhaps"),
        ("historie", [known]),
    ):
        body = {"history": [known], field.partition("[")[0]: value}
        assert [*problems(shop, "/recommend", **body)] == [field]
    assert "history" in problems(shop, "/recommend", k=3)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"a"', b"\xff\xfe", b'{"history": ["\\ud800"]}', b"[" * 100_000],
)
def test_what_is_no_request_is_refused_as_json(shop: TestClient, body: bytes) -> None:
    answer = shop.post("/recommend", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["errors"][0].keys() == {"where", "what", "remedy"}


def test_a_large_body_is_not_read(shop: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(2000):
            yield b" " * 1024

    for content in (b" " * 2_000_000, parts()):
        answer = shop.post("/recommend", content=content)
        assert answer.status_code == 413 and "1,048,576 bytes" in answer.text


def test_when_too_many_wait_the_next_is_told_to_come_again(
    hostile_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun = threading.Event(), threading.Event()

    def slow(student: Any, queries: Sequence[asking.Query]) -> Any:
        begun.set()
        assert go.wait(20)
        return asking.answer(student, queries)

    monkeypatch.setattr("mmkd.serve.served.answer", slow)
    app = application([hostile_run])
    body = {"history": [hostile_run.items.ids[1]]}

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            first = asyncio.create_task(http.post("/recommend", json=body))
            while not begun.is_set():
                await asyncio.sleep(0.01)
            rest = [asyncio.create_task(http.post("/recommend", json=body)) for _ in range(300)]
            while sum(one.done() for one in rest) < 300 - 256:
                await asyncio.sleep(0.01)
            health = await http.get("/health")
            assert health.json()["waiting"] == 256
            go.set()
            return [await first, *await asyncio.gather(*rest)]

    answers = asyncio.run(asyncio.wait_for(ask(), 60))
    busy = [answer for answer in answers if answer.status_code == 503]
    assert len(busy) == 300 - 256 and {answer.status_code for answer in answers} == {200, 503}
    assert busy[0].headers["retry-after"] == "1"
    assert busy[0].json()["errors"][0]["remedy"] == "try again in a moment"


def test_what_is_in_stock_is_all_that_is_listed_unless_asked_otherwise(
    hostile_run: Run, hostile_ids_only: Run
) -> None:
    ids = hostile_run.items.ids
    stock = [ids[row] for row in range(1, 21)]
    shop = client(hostile_run, hostile_ids_only, allow=stock)
    body = {"history": [ids[70]], "k": 50}
    for more, allow in (
        ({}, stock),
        ({"in_stock": True}, stock),
        ({"in_stock": False}, None),
        ({"deny": stock[:10]}, stock[10:]),
    ):
        answer = shop.post("/recommend", json=body | more)
        same(answer.json()["items"], recommended(hostile_run, [ids[70]], k=50, allow=allow))
    with pytest.raises(DataError, match="'nowhere'"):
        application([hostile_run], allow=[*stock, "nowhere"])


def test_a_student_that_diverged_is_the_servers_fault(
    hostile_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Run(hostile_run.folder.path)
    broken = torch.full((1, len(hostile_run.items) + 1), torch.nan)
    monkeypatch.setattr(student.student, "next_scores", lambda rows: broken.expand(len(rows), -1))
    answer = client(student).post("/recommend", json={"history": [hostile_run.items.ids[1]]})
    assert answer.status_code == 500
    assert "NaN" in answer.json()["errors"][0]["what"]


def test_the_schema_tells_the_bounds_and_the_page_of_it_asks_nobody(shop: TestClient) -> None:
    schema = shop.get("/openapi.json").json()
    assert schema["paths"].keys() == {"/recommend", "/similar", "/health"}
    history = schema["components"]["schemas"]["RecommendRequest"]["properties"]["history"]
    assert (history["minItems"], history["maxItems"]) == (1, 1000)
    page = shop.get("/docs").text
    assert "http" not in page and not re.findall(r"<script", page)
    assert all(f"<code>{name}</code>" in page for name in ("history", "exclude_seen", "by", "rank"))
    assert shop.get("/health").json()["status"] == "ok"


def test_one_or_two_runs_are_served(hostile_run: Run, tmp_path: Path) -> None:
    for runs in ([], [hostile_run] * 3):
        with pytest.raises(RunError, match=f"got {len(runs)} runs, wanted one or two"):
            application(runs)
    body = {"history": [hostile_run.items.ids[1]], "run": "<b>kdsr< (2)"}
    assert client(hostile_run, hostile_run).post("/recommend", json=body).status_code == 200


def test_an_error_repeats_nothing_that_a_terminal_obeys(shop: TestClient) -> None:
    answer = shop.post("/recommend", json={"history": ["\x1b[31m\u202e"], "\x1b[2J": 1})
    assert not re.search("[\x1b\u202e]", json.dumps(answer.json(), ensure_ascii=False))
