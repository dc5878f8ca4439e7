"""The page: a state to HTML, whole or the part of it that changed.

A person takes items one after the other and sees what each run recommends then. The page is made of
links, so that it works by keyboard and without JavaScript; htmx fetches what changes and leaves the
rest where it is.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from mmkd import __version__
from mmkd.report.cards import Card
from mmkd.report.neighbours import SHOWN, SOUGHT, Neighbour, column
from mmkd.report.rendering import templates
from mmkd.runs.recommend import Query
from mmkd.serve.refusal import Problem, Refusal
from mmkd.serve.served import STUDENT, Rows, ServedRun
from mmkd.serve.state import State

TEMPLATES = Path(__file__).parent / "templates"
FOUND = 8  # items a search shows
_STARTERS = 15
_DRAWN = 6  # latest items of a history that is drawn
HTMX = {  # no eval, no scripts and styles of its own; what is refused is told in its place
    "allowEval": False,
    "allowScriptTags": False,
    "includeIndicatorStyles": False,
    "selfRequestsOnly": True,
    "historyCacheSize": 0,
    "scrollIntoViewOnBoost": False,
    "responseHandling": [
        {"code": "204", "swap": False},
        {"code": "[23]..", "swap": True},
        {"code": "[45]..", "swap": True, "error": True, "target": "#trouble"},
    ],
}


@dataclass(frozen=True)
class Shown:
    """An item on the page, and where its links lead.

    Attributes:
        card: Of the item.
        add: The state with it taken last.
        near: The state with its neighbours.
        sources: Source to its weight in the item's vector.
        elsewhere: Its place in the other run's list, from 1; 0 where it is not there, None where
            there is no other list.
        taken: Whether it is in the history.
    """

    card: Card
    add: str
    near: str
    sources: dict[str, float]
    elsewhere: int | None = None
    taken: bool = False


@dataclass(frozen=True)
class RunList:
    """One run's list.

    Attributes:
        name: Of the run.
        order: Its sources; none where it has one, or none that are weighed.
        alone: What is said in their place.
        items: Best first; None where the history holds nothing that the run knows.
        unknown: How many of the history's items it does not know.
        took_ms: From the question to the answer.
    """

    name: str
    order: list[str]
    alone: str
    items: list[Shown] | None
    unknown: int
    took_ms: float


@dataclass(frozen=True)
class Column:
    """Neighbours by one source.

    Attributes:
        title: Whose they are.
        kind: ``student`` or ``encoder``.
        near: Nearest first.
        link: A card to the state with it taken last.
        lacking: Why there are none.
    """

    title: str
    kind: str
    near: list[Neighbour]
    link: Callable[[Card], str]
    lacking: str = "It has nothing to compare."


class Page:
    """Makes the page over some runs.

    Args:
        runs: One or two.

    Raises:
        MmkdError: jinja2 is not installed.
    """

    def __init__(self, runs: Sequence[ServedRun]) -> None:
        self._runs = runs
        self._environment = templates(TEMPLATES, extra="serve")
        self._random = np.random.default_rng()
        self._shape = runs[0].pictures.shape(runs[0].popular(_STARTERS))

    async def whole(self, state: State) -> str:
        """The page."""
        return self._render("page.html", await self._content(state), whole=True)

    async def work(self, state: State) -> str:
        """What changes with the state."""
        return self._render("work.html", await self._content(state), whole=False)

    def found(self, state: State) -> str:
        """What a search finds."""
        return self._render("found.html", {"state": state, "found": self._found(state)})

    def trouble(self, problems: Sequence[Problem], *, whole: bool) -> str:
        """What is told where a request is refused, as a page or to stand in one."""
        template = "refused.html" if whole else "trouble.html"
        return self._render(template, {"problems": problems})

    def docs(self, schema: dict[str, Any]) -> str:
        """The JSON endpoints, from their OpenAPI schema."""
        return self._render("docs.html", {"schema": schema})

    def drawn(self) -> State:
        """The latest items of somebody's history.

        Raises:
            Refusal: The data is not there any more.
        """
        run = self._runs[0]
        if run.split is None:
            problem = Problem("data", "what users took is not there any more", "pick items instead")
            raise Refusal(HTTPStatus.NOT_FOUND, problem)
        user = int(self._random.integers(run.split.user_count))
        rows = run.split.sequence(user)[-_DRAWN:]
        return State(history=tuple(run.items.ids[int(row)] for row in rows))

    def _render(self, template: str, content: dict[str, Any], **more: Any) -> str:
        return self._environment.get_template(template).render(
            **content,
            **more,
            runs=self._runs,
            htmx=HTMX,
            shape=self._shape,
            version=__version__,
        )

    async def _content(self, state: State) -> dict[str, Any]:
        given = [(item, self._home(item)) for item in state.history]
        homes = {item: home for item, home in given if home is not None}
        lost = len([item for item, home in given if home is None])
        state = replace(state, history=tuple(item for item in state.history if item in homes))
        lists, near = await asyncio.gather(self._lists(state), self._near(state))
        return {
            "state": state,
            "history": [run.cards(row) for run, row in map(homes.__getitem__, state.history)],
            "lost": lost,
            "lists": lists,
            "starters": [] if state.history else self._starters(state),
            "found": self._found(state),
            "near": near,
            "stocked": self._runs[0].in_stock is not None,
            "drawable": self._runs[0].split is not None,
        }

    def _starters(self, state: State) -> list[Shown]:
        run = self._runs[0]
        return [self._shown(run, row, state) for row in run.popular(_STARTERS)]

    def _found(self, state: State) -> list[Shown]:
        found: dict[str, Shown] = {}
        for run in self._runs:
            for row in run.find(state.query, limit=FOUND).tolist():
                found.setdefault(run.items.ids[row], self._shown(run, row, state))
        return list(found.values())[:FOUND]

    async def _lists(self, state: State) -> list[RunList]:
        started = time.perf_counter()
        histories = [_known(run, state.history) for run in self._runs]
        asked = [self._ranked(*pair, state) for pair in zip(self._runs, histories, strict=True)]
        ranked = await asyncio.gather(*asked)
        took_ms = 1000 * (time.perf_counter() - started)
        ids = [
            [run.items.ids[r] for r in rows] for run, rows in zip(self._runs, ranked, strict=True)
        ]
        found = []
        for place, (run, rows, history) in enumerate(
            zip(self._runs, ranked, histories, strict=True)
        ):
            others = [other for number, other in enumerate(ids) if number != place]
            items = [
                replace(
                    self._shown(run, row, state),
                    elsewhere=_place(name, others[0]) if others else None,
                    taken=name in state.history,
                )
                for row, name in zip(rows, ids[place], strict=True)
            ]
            found.append(
                RunList(
                    name=run.name,
                    order=list(run.sources or ()),
                    alone=f"carried by {run.only}" if run.only else "",
                    items=items if len(history) else None,
                    unknown=len(state.history) - len(history),
                    took_ms=took_ms,
                )
            )
        return found

    async def _ranked(self, run: ServedRun, history: Rows, state: State) -> list[int]:
        if not len(history):
            return []
        in_stock = run.in_stock is not None and not state.everything
        query = Query(history, state.k, run.barred(in_stock=in_stock), not state.seen)
        rows, _ = await run.recommend(query)
        return [int(row) for row in rows]

    async def _near(self, state: State) -> dict[str, Any] | None:
        """An item and its columns: every encoder's, and each run's student's."""
        home = None if state.near is None else self._home(state.near)
        if home is None or state.near is None:
            return None
        asked = [
            (run, int(row), by)
            for run in self._runs
            if (row := run.items.find([state.near])[0])
            for by in run.vectors
            if by == STUDENT or not self._repeated(run, by)
        ]
        ranked = await asyncio.gather(
            *(run.similar(row, by=by, k=min(SOUGHT, len(run.items))) for run, row, by in asked)
        )
        places = [
            _ids(run, rows.tolist()) for (run, _, _), (rows, _) in zip(asked, ranked, strict=True)
        ]
        columns = []
        for (run, _, by), (rows, _) in zip(asked, ranked, strict=True):
            others = [
                [int(r) for r in run.items.find(ids)]
                for (_, _, other), ids in zip(asked, places, strict=True)
                if (other == STUDENT) != (by == STUDENT)
            ]
            columns.append(
                Column(
                    title=self._title(run, by),
                    kind="student" if by == STUDENT else "encoder",
                    near=column(rows[:SHOWN].tolist(), *others, cards=run.cards),
                    link=partial(_adding, run, state),
                )
            )
        columns.sort(key=lambda one: one.kind)
        unread = next((run.unread for run in self._runs if run.unread), None)
        run, row = home
        return {"item": self._shown(run, row, state), "columns": columns, "unread": unread}

    def _repeated(self, run: ServedRun, by: str) -> bool:
        """Whether an earlier run shows the same encoder's neighbours."""
        first = self._runs[0]
        return run is not first and first.vectors.get(by) is run.vectors[by]

    def _title(self, run: ServedRun, by: str) -> str:
        whose = "the student" if by == STUDENT else f"{by} encoder"
        alone = len(self._runs) == 1 or (by != STUDENT and run is self._runs[0])
        return whose if alone else f"{run.name}, {whose}"

    def _home(self, item: str) -> tuple[ServedRun, int] | None:
        """The first run that knows an item, and the item's row there."""
        for run in self._runs:
            if row := int(run.items.find([item])[0]):
                return run, row
        return None

    def _shown(self, run: ServedRun, row: int, state: State) -> Shown:
        item = run.items.ids[row]
        return Shown(run.cards(row), state.adding(item), state.to(near=item), run.shares(row))


def routes(page: Page) -> APIRouter:
    """The page's addresses."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index(request: Request) -> Response:
        state = State.of(request.url.query)
        if not part_only(request):
            return HTMLResponse(await page.whole(state))
        return HTMLResponse(await page.work(state), headers={"HX-Push-Url": state.shown})

    @router.get("/search")
    async def search(request: Request) -> Response:
        state = State.of(request.url.query)
        found = await run_in_threadpool(page.found, state)
        return HTMLResponse(found, headers={"HX-Replace-Url": state.shown})

    @router.get("/random")
    async def drawn() -> Response:
        return RedirectResponse(page.drawn().address, HTTPStatus.SEE_OTHER)

    return router


def part_only(request: Request) -> bool:
    """Whether htmx asks for what changed; not where it goes back to a page it no longer has."""
    headers = request.headers
    return "hx-request" in headers and "hx-history-restore-request" not in headers


def _known(run: ServedRun, history: Sequence[str]) -> Rows:
    rows = run.items.find(history)
    return rows[rows > 0]


def _ids(run: ServedRun, rows: Sequence[int]) -> list[str]:
    return [run.items.ids[row] for row in rows]


def _place(item: str, others: Sequence[str]) -> int:
    return others.index(item) + 1 if item in others else 0


def _adding(run: ServedRun, state: State, card: Card) -> str:
    return state.adding(run.items.ids[card.row])
