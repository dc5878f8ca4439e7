"""The application: opened runs to an ASGI application, behind its guard.

``mmkd serve`` runs it; another ASGI server may, too.
"""

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from mmkd import __version__
from mmkd.errors import MmkdError, refuse
from mmkd.pipeline.run import Run
from mmkd.report.rendering import TEMPLATES as REPORT
from mmkd.serve import api, page
from mmkd.serve.batching import Busy
from mmkd.serve.guard import Guard, check_token
from mmkd.serve.refusal import RETRY_AFTER_S, Problem, Refusal, refused
from mmkd.serve.served import ServedRun, open_runs

_STATIC = Path(__file__).parent / "static"
_DECODED_AT_ONCE = 2  # pictures, some of which are large
_DAY = "private, max-age=86400, immutable"
_REMEDIES = {  # of pydantic's complaints
    "extra_forbidden": "leave it out; /docs lists the fields",
    "greater_than_equal": "raise it",
    "json_invalid": "send JSON",
    "less_than_equal": "lower it",
    "missing": "add it",
    "string_too_long": "shorten it",
    "string_too_short": "give an id",
    "too_long": "give fewer; what is in stock can be given with --allow",
    "too_short": "give at least one id",
}


def application(
    runs: Sequence[Run],
    *,
    allow: Sequence[str] | None = None,
    image_root: Path | None = None,
    token: str | None = None,
    loopback_only: bool = True,
) -> Guard:
    """Opened runs as an ASGI application: the page, and the JSON endpoints.

    Args:
        runs: One or two.
        allow: Ids in stock; None where that is not known.
        image_root: Where the pictures' folder is now; None where it is as the recipe says.
        token: What a request has to carry; None asks for none.
        loopback_only: Whether only requests to this machine's own name are answered.

    Raises:
        RunError: There are more than two runs or none, or a file of one is damaged.
        DataError: An id in stock is in no run's catalogue.
        MmkdError: jinja2 is not installed.
        ValueError: The token is too short.
    """
    refuse(check_token(token))
    thread = ThreadPoolExecutor(1, "student")
    served = open_runs(runs, executor=thread, allow=allow, image_root=image_root)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        thread.shutdown(cancel_futures=True)

    app = FastAPI(
        title="mmkd",
        summary=f"Recommendations by {', '.join(run.name for run in served)}",
        version=__version__,
        docs_url=None,  # theirs loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    made = page.Page(served)
    app.include_router(api.routes(served))
    app.include_router(page.routes(made))
    _add_files(app, served)
    _add_docs(app, made)
    _add_refusals(app, made)
    return Guard(app, token=token, loopback_only=loopback_only)


def _add_files(app: FastAPI, served: Sequence[ServedRun]) -> None:
    style = "\n".join(
        (folder / name).read_text("utf-8")
        for folder, name in ((REPORT, "report.css"), (_STATIC, "page.css"))
    )
    files = {
        "page.css": (style.encode(), "text/css"),
        "page.js": ((_STATIC / "page.js").read_bytes(), "text/javascript"),
        "htmx.min.js": ((_STATIC / "htmx" / "htmx.min.js").read_bytes(), "text/javascript"),
        "htmx-licence.txt": ((_STATIC / "htmx" / "LICENSE").read_bytes(), "text/plain"),
        "icon.svg": ((_STATIC / "icon.svg").read_bytes(), "image/svg+xml"),
    }
    pictures = {run.folder: run.pictures for run in served}
    few = anyio.CapacityLimiter(_DECODED_AT_ONCE)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        content, kind = files[name]
        return Response(content, headers={"Cache-Control": "no-cache"}, media_type=kind)

    @app.get("/picture/{folder}/{row}.webp", include_in_schema=False)
    async def picture(folder: str, row: int) -> Response:
        found = None
        if folder in pictures and 1 <= row <= pictures[folder].rows:
            found = await anyio.to_thread.run_sync(pictures[folder].webp, row, limiter=few)
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return Response(found, headers={"Cache-Control": _DAY}, media_type="image/webp")


def _add_docs(app: FastAPI, made: page.Page) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(made.docs(app.openapi()))


def _add_refusals(app: FastAPI, made: page.Page) -> None:
    def told(request: Request, status: int, problems: Sequence[Problem]) -> Response:
        part = page.part_only(request)
        if not part and "text/html" not in request.headers.get("accept", ""):
            return refused(status, problems)
        answer = HTMLResponse(made.trouble(problems, whole=not part), status)
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            answer.headers["Retry-After"] = str(RETRY_AFTER_S)
        return answer

    @app.exception_handler(Refusal)
    async def refusal(request: Request, error: Refusal) -> Response:
        return told(request, error.status, error.problems)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        problem = Problem("server", str(error).partition(";")[0], "try again in a moment")
        return told(request, HTTPStatus.SERVICE_UNAVAILABLE, [problem])

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problems = [_problem(one) for one in error.errors()]
        return told(request, HTTPStatus.UNPROCESSABLE_ENTITY, problems)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        problem = Problem(request.url.path[:100], status.phrase.lower(), "see /docs")
        return told(request, status, [problem])

    @app.exception_handler(MmkdError)
    async def fault(request: Request, error: MmkdError) -> Response:
        what, _, remedy = str(error).rpartition("; ")
        problem = Problem("student", what or str(error), remedy if what else "train it again")
        return told(request, HTTPStatus.INTERNAL_SERVER_ERROR, [problem])


def _problem(error: dict[str, Any]) -> Problem:
    """One of pydantic's complaints; what was sent is not repeated."""
    path = [str(part) if isinstance(part, str) else f"[{part}]" for part in error["loc"]]
    where = ".".join(path[1:] or path).replace(".[", "[")
    what = error["msg"][:1].lower() + error["msg"][1:]
    return Problem(where, what, _REMEDIES.get(error["type"], "correct it; /docs says how"))
