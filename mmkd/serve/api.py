"""The JSON endpoints, for a shop to call: a history to a list, an item to its neighbours.

Sizes are bounded by the models here; that ids are of the catalogue is checked before anything is
asked of a student.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from mmkd import __version__
from mmkd.errors import did_you_mean
from mmkd.runs.recommend import Query
from mmkd.serve.refusal import Problem, Refusal
from mmkd.serve.served import STUDENT, Ranked, Rows, ServedRun

HISTORY = 1_000  # ids
LISTED = 200  # items a list
FILTERED = 10_000  # ids of allow and of deny

ItemId = Annotated[str, Field(min_length=1, max_length=512)]
RunChoice = Annotated[
    str | None, Field(description="Which of the runs that are served; by default the first.")
]
Count = Annotated[int, Field(ge=1, le=LISTED, description="How many items.")]


class RecommendRequest(BaseModel):
    """What a list is asked for."""

    model_config = ConfigDict(extra="forbid")

    history: Annotated[
        list[ItemId],
        Field(min_length=1, max_length=HISTORY, description="Item ids, oldest first."),
    ]
    k: Count = 10
    run: RunChoice = None
    allow: Annotated[
        list[ItemId] | None,
        Field(max_length=FILTERED, description="The only ids that may be recommended."),
    ] = None
    deny: Annotated[
        list[ItemId] | None, Field(max_length=FILTERED, description="Ids that may not be.")
    ] = None
    exclude_seen: Annotated[bool, Field(description="Leave the history's own items out.")] = True
    in_stock: Annotated[
        bool | None,
        Field(description="Only what is in stock (--allow); the default where that is known."),
    ] = None


class SimilarRequest(BaseModel):
    """What neighbours are asked for."""

    model_config = ConfigDict(extra="forbid")

    item: Annotated[ItemId, Field(description="The item's id.")]
    k: Count = 10
    run: RunChoice = None
    by: Annotated[
        str, Field(description="Whose vectors: student, or a modality for those of its encoder.")
    ] = STUDENT


class Item(BaseModel):
    """An item of a list."""

    rank: Annotated[int, Field(description="From 1.")]
    item_id: Annotated[str, Field(description="As the catalogue has it.")]
    title: Annotated[str, Field(description="The id, where it has none.")]
    score: Annotated[float, Field(description="A logit, or of neighbours the cosine.")]


class ItemList(BaseModel):
    """A list, best first."""

    run: Annotated[str, Field(description="Whose it is.")]
    items: Annotated[list[Item], Field(description="Best first; fewer where fewer are left.")]


class Health(BaseModel):
    """That the server answers."""

    status: Annotated[str, Field(description="ok.")]
    version: Annotated[str, Field(description="Of mmkd.")]
    waiting: Annotated[int, Field(description="Requests that wait for a model.")]


class Error(BaseModel):
    """One thing that is wrong with a request."""

    where: Annotated[str, Field(description="The field, such as history[2].")]
    what: Annotated[str, Field(description="What was got, and what was wanted.")]
    remedy: Annotated[str, Field(description="What to do.")]


class Errors(BaseModel):
    """All that is wrong with a request."""

    errors: list[Error]


def routes(runs: Sequence[ServedRun]) -> APIRouter:
    """The endpoints over some runs, the first of which is asked where none is named."""
    named = {run.name: run for run in runs}
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Errors, "description": what}
        for status, what in (
            (HTTPStatus.UNPROCESSABLE_ENTITY, "Something in the request is wrong."),
            (HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests wait; try again."),
        )
    }
    router = APIRouter()

    @router.post("/recommend", responses=refusals, summary="The likeliest next items")
    async def recommend(request: RecommendRequest) -> ItemList:
        run = _run(request.run, named)
        return _listed(run, await run.recommend(_query(request, run)))

    @router.post("/similar", responses=refusals, summary="The items nearest to one")
    async def similar(request: SimilarRequest) -> ItemList:
        run = _run(request.run, named)
        row = int(_rows(run, [request.item], "item")[0])
        ranked = await run.similar(row, by=_source(run, request.by, row), k=request.k)
        return _listed(run, ranked)

    @router.get("/health", summary="Whether the server answers")
    async def health() -> Health:
        waiting = sum(run.waiting for run in runs)
        return Health(status="ok", version=__version__, waiting=waiting)

    return router


def _query(request: RecommendRequest, run: ServedRun) -> Query:
    """The request in rows; all ids that are not known are told together."""
    problems: list[Problem] = []
    found: dict[str, Rows | None] = {}
    for where in ("history", "allow", "deny"):
        ids = getattr(request, where)
        try:
            found[where] = None if ids is None else _rows(run, ids, where)
        except Refusal as refusal:
            problems += refusal.problems
    if request.in_stock and run.in_stock is None:
        remedy = "leave it out, or start the server with --allow"
        problems.append(Problem("in_stock", "this server has no list of what is in stock", remedy))
    if problems:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, *problems)
    history = found["history"]
    assert history is not None
    stocked = run.in_stock is not None if request.in_stock is None else request.in_stock
    kept_out = run.barred(allow=found["allow"], deny=found["deny"], in_stock=stocked)
    return Query(history, request.k, kept_out, request.exclude_seen)


def _rows(run: ServedRun, ids: Sequence[str], where: str) -> Rows:
    rows = run.items.find(ids)
    unknown = np.flatnonzero(rows == 0)
    if not len(unknown):
        return rows
    place = int(unknown[0])
    what = f"item {ids[place]!r} is not among the {len(run.items):,} items of {run.name}"
    if more := len(unknown) - 1:
        what += f", nor {'is' if more == 1 else 'are'} {more:,} more"
    suggestion = run.items.suggestion(ids[place]).removeprefix("; ")
    raise Refusal(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        Problem(
            where if where == "item" else f"{where}[{place}]",
            what,
            suggestion or "give ids of the catalogue that the run was trained on",
        ),
    )


def _run(name: str | None, named: Mapping[str, ServedRun]) -> ServedRun:
    if name is None:
        return next(iter(named.values()))
    if name not in named:
        raise Refusal(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            Problem(
                "run",
                f"got {name[:100]!r}, wanted one of {', '.join(named)}",
                did_you_mean(name[:100], named).removeprefix("; ") or "name one of these",
            ),
        )
    return named[name]


def _source(run: ServedRun, by: str, row: int) -> str:
    """Whose vectors; a Refusal where they are not there, or the item has none."""
    problem = None
    if by not in run.vectors:
        what = f"got {by[:100]!r}, wanted one of {', '.join(run.vectors)}"
        problem = Problem("by", what, run.unread or "name one of these")
    elif not run.vectors[by][row].any():
        what = f"item {run.items.ids[row]!r} has no such vector, so nothing is near"
        problem = Problem("item", what, "name another item, or another source with by")
    if problem:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, problem)
    return by


def _listed(run: ServedRun, ranked: Ranked) -> ItemList:
    rows, scores = ranked
    ids, titles = run.items.ids, run.items.titles
    items = [
        Item(rank=place, item_id=ids[row], title=titles[row], score=score)
        for place, (row, score) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True), 1)
    ]
    return ItemList(run=run.name, items=items)
