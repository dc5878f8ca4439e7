"""Refusals: what a request is told, by a program as JSON, by a person as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus

from starlette.responses import JSONResponse

from mmkd.errors import MmkdError
from mmkd.terminal import printable

RETRY_AFTER_S = 1  # of 503: the queue is short


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request.

    Attributes:
        where: The field, such as ``history[2]``, or the part of the request.
        what: What was got and what was wanted.
        remedy: What to do.
    """

    where: str
    what: str
    remedy: str


class Refusal(MmkdError):  # noqa: N818 - an answer too
    """A request that is not answered; its problems are told together.

    Args:
        status: Of HTTP.
        problems: At least one.
    """

    def __init__(self, status: int, *problems: Problem) -> None:
        self.status = status
        self.problems = problems
        super().__init__("\n".join(f"{p.where}: {p.what}; {p.remedy}" for p in problems))


def refused(
    status: int, problems: Sequence[Problem], headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer to a program: ``{"errors": [{"where", "what", "remedy"}, ...]}``."""
    told = [
        {name: printable(value) for name, value in asdict(problem).items()} for problem in problems
    ]
    own = {"Retry-After": str(RETRY_AFTER_S)} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return JSONResponse({"errors": told}, status, headers={**own, **(headers or {})})
