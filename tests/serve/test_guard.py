"""Who may ask, from where, and how much; and what every answer forbids a page to do."""

import asyncio
from typing import Any

import pytest
from serve.conftest import client
from starlette.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from mmkd import Run
from mmkd.serve.guard import Guard, check_token, is_loopback
from mmkd.serve.server import check_address

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def closed(hostile_run: Run) -> TestClient:
    return client(hostile_run, token=TOKEN, loopback_only=False)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:80", "[::1]"]
)
def test_this_machines_own_names_are_answered(shop: TestClient, host: str) -> None:
    assert shop.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "10.0.0.7", ""],
)
def test_another_name_for_this_machine_is_refused(shop: TestClient, host: str) -> None:
    for path in ("/", "/health", "/static/page.css", "/openapi.json"):
        answer = shop.get(path, headers={"Host": host})
        assert answer.status_code == 421 and answer.json()["errors"][0]["where"] == "Host"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_may_not_post(
    shop: TestClient, hostile_run: Run, headers: dict[str, str]
) -> None:
    body = {"history": [hostile_run.items.ids[1]]}
    answer = shop.post("/recommend", json=body, headers={"Host": "localhost:8000", **headers})
    assert answer.status_code == 403 and answer.json()["errors"][0]["where"] == "Origin"
    assert "access-control-allow-origin" not in answer.headers
    own = {"Host": "localhost:8000", "Origin": "http://localhost:8000"}
    same = {"Sec-Fetch-Site": "same-origin"}
    assert shop.post("/recommend", json=body, headers=own | same).status_code == 200


def test_without_the_token_nothing_but_health_and_style_is_told(closed: TestClient) -> None:
    for path in ("/", "/docs", "/openapi.json", "/search?q=a", "/picture/x/1.webp", "/random"):
        answer = closed.get(path)
        assert answer.status_code == 401 and "kdsr" not in answer.text
    assert closed.post("/recommend", json={}).status_code == 401
    assert closed.get("/health").status_code == closed.get("/static/page.css").status_code == 200
    page = closed.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 401 and 'name="token"' in page.text and "kdsr" not in page.text


@pytest.mark.parametrize(
    "given",
    ["", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é" * 22, "Basic " + TOKEN],
)
def test_a_wrong_token_is_none(closed: TestClient, given: str) -> None:
    header = {b"Authorization": f"Bearer {given}".encode()}
    assert closed.get("/", headers=header).status_code == 401
    assert closed.get("/", params={"token": given}).status_code == 401
    assert closed.get("/", headers={"Cookie": f"mmkd={TOKEN}"}).status_code == 401


def test_a_program_sends_the_token_and_a_person_gets_a_cookie(hostile_run: Run) -> None:
    closed = client(hostile_run, token=TOKEN, loopback_only=False)
    header = {"Authorization": f"Bearer {TOKEN}", "Host": "shop.example"}
    body = {"history": [hostile_run.items.ids[1]]}
    assert closed.post("/recommend", json=body, headers=header).status_code == 200
    address = "/?item=A%26B&token=" + TOKEN
    entered = closed.get(address, follow_redirects=False)
    assert entered.status_code == 303 and entered.headers["location"] == "?item=A%26B"
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie and TOKEN not in cookie
    assert closed.get("/").status_code == 200  # the client keeps the cookie
    other = client(hostile_run, token=TOKEN, loopback_only=False)
    other.cookies = closed.cookies
    assert other.get("/").status_code == 401  # which is of one server's life


def test_every_answer_carries_the_policy(shop: TestClient, closed: TestClient) -> None:
    answers = [shop.get(path) for path in ("/", "/docs", "/nowhere", "/static/page.js")]
    answers += [shop.post("/recommend", content=b"{"), closed.get("/")]
    for answer in answers:
        policy = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == policy["base-uri"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        for kind in ("script-src", "style-src", "img-src", "connect-src", "form-action"):
            assert policy[kind] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_websockets_are_closed(shop: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), shop.websocket_connect("/"):
        pass


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def app(*_: object) -> None:
        raise AssertionError("asked without a body")

    async def never() -> Message:
        await asyncio.sleep(60)
        raise AssertionError("not reached")

    said: list[Message] = []

    async def send(message: Message) -> None:
        said.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/recommend",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    asyncio.run(Guard(app, patience_s=0.05)(scope, never, send))
    assert said[0]["status"] == 408


def test_another_host_needs_a_token_that_cannot_be_guessed() -> None:
    for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.8.8.8", "::1"):
        assert is_loopback(host) and not check_address(host, 8000, None)
    for host in ("0.0.0.0", "::", "10.0.0.7", "shop.example", "localhost.example", ""):
        assert not is_loopback(host)
        assert "give a --token too" in check_address(host, 8000, None)[0]
        assert not check_address(host, 8000, TOKEN)
    for token in ("", "short", "é" * 20, "a\n" * 10):
        assert "wanted 16 or more of ASCII" in check_token(token)[0]
    assert "port: got 65536" in check_address("localhost", 65_536, None)[0]
