"""The page in a headless Chromium, by keyboard and on a phone's width, over hostile titles."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve.browser import Browser, program

from mmkd import Run
from mmkd.serve import application
from mmkd.serve.server import run as serve
from mmkd.serve.state import State

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="there is no Chromium here"),
]


@pytest.fixture(scope="module")
def address(hostile_run: Run, hostile_ids_only: Run) -> str:
    """Of a server in a thread, which ends with the process."""
    told: list[str] = []
    app = application([hostile_run, hostile_ids_only])
    options = {"host": "127.0.0.1", "port": 0, "ready": told.append}
    threading.Thread(target=serve, args=(app,), kwargs=options, daemon=True).start()
    end = time.monotonic() + 30
    while not told:
        assert time.monotonic() < end
        time.sleep(0.02)
    return told[0]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as opened:
        yield opened


def state(browser: Browser) -> State:
    return State.of(str(browser.ask("location.search")).removeprefix("?"))


def focused(browser: Browser) -> str:
    return str(browser.ask("document.activeElement.id"))


def tab_to(browser: Browser, start: str) -> None:
    for _ in range(200):
        browser.press("Tab")
        if focused(browser).startswith(start):
            return
    raise AssertionError(f"no {start} in the order of tabs")


def history(browser: Browser, count: int) -> tuple[str, ...]:
    """The history, once it has so many items and the page shows them."""
    browser.until(f"document.querySelectorAll('#history li').length === {count}")
    return state(browser).history


def test_everything_works_by_keyboard(browser: Browser, address: str, hostile_run: Run) -> None:
    ids = list(hostile_run.items.ids)
    browser.screen(1280, 900)
    browser.open(address)
    tab_to(browser, "q")
    ring = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.ask(ring) == "solid"
    browser.press(*ids[2])  # a hostile id, letter by letter
    browser.until("document.querySelectorAll('#found a').length === 1")
    assert focused(browser) == "q"
    tab_to(browser, "found-0")
    assert browser.ask(ring) == "solid"
    browser.press("Enter")
    assert history(browser, 1) == (ids[2],)
    expected = hostile_run.recommend([[ids[2]]])["item_id"].to_list()
    tab_to(browser, "take-0")
    browser.press("Enter")
    assert history(browser, 2) == (ids[2], expected[0])
    assert focused(browser).startswith("take-0"), "the keyboard lost its place"
    assert browser.ask("document.querySelectorAll('.fresh').length") > 0
    browser.ask("document.getElementById('later-0').focus()")
    browser.press("Enter")
    browser.until("document.activeElement.id === 'earlier-1'")  # the focus follows the item
    assert history(browser, 2) == (expected[0], ids[2])
    browser.ask("document.getElementById('past-1').focus()")
    browser.press("Enter")
    browser.until("document.activeElement.id === 'near-title'")
    assert state(browser).near == ids[2]
    tab_to(browser, "near-close")
    browser.press("Enter")
    browser.until("document.activeElement.id === 'past-1'")
    browser.ask("document.getElementById('seen').focus()")
    browser.press("Space")
    browser.until("location.search.includes('seen=1')")
    browser.ask("document.getElementById('remove-0').focus()")
    browser.press("Enter")
    assert history(browser, 1) == (ids[2],)
    told = str(browser.ask("document.getElementById('status').textContent"))
    assert told.startswith("1 in the history.")
    browser.ask("history.back()")
    assert len(history(browser, 2)) == 2
    assert browser.ask("document.getElementById('q') !== null")
    assert browser.complaints == []


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_nothing_runs_and_nothing_is_wider_than_the_screen(
    browser: Browser, address: str, hostile_run: Run, width: int
) -> None:
    some = State(history=tuple(hostile_run.items.ids[1:12]), near=hostile_run.items.ids[2])
    browser.screen(width, 844)
    for path in ("", some.shown.removeprefix("./"), "docs", "?q=alert"):
        browser.open(address + path)
        assert browser.ask("document.documentElement.scrollWidth") <= width, path
        assert browser.ask("[...document.scripts].every(one => one.src && !one.textContent)")
        assert browser.ask("document.querySelectorAll('[onerror], [onload]').length") == 0
    sizes = "[...document.querySelectorAll('.moves a')].map(a => a.getBoundingClientRect())"
    browser.open(address + some.shown.removeprefix("./"))
    assert browser.ask(f"Math.min(...{sizes}.map(r => Math.min(r.width, r.height)))") >= 24
    assert browser.complaints == []
