"""Batching: requests that come one by one to passes of the model that answer many at once.

A pass over one history costs hardly less than one over thirty, so those that arrive within a few
milliseconds, or while the model is busy, share one. What waits is bounded: who comes when the queue
is full is told so at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from mmkd.errors import MmkdError, at_least, checked

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Busy(MmkdError):  # noqa: N818 - a state that passes, not a fault
    """More requests wait than are allowed to."""


class Batcher(Generic[Asked, Answer]):
    """Merges the requests of one event loop; answers come in the order of the requests.

    >>> import asyncio
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from mmkd.serve.batching import Batcher
    >>> passes = []
    >>> def squares(numbers):
    ...     passes.append(len(numbers))
    ...     return [number**2 for number in numbers]
    >>> async def three(batcher):
    ...     return await asyncio.gather(*map(batcher.ask, (1, 2, 3)))
    >>> with ThreadPoolExecutor(1) as thread:
    ...     asyncio.run(three(Batcher(squares, thread))), passes
    ([1, 4, 9], [3])

    Args:
        answer: Several requests to an answer each. Where it fails, each is tried by itself, so that
            nobody gets another's error.
        executor: Where it runs, away from the event loop.
        most: Requests in a pass.
        wait_s: How long the first of a pass waits for others, where the model is idle.
        queue: Requests that may wait.

    Raises:
        ValueError: An argument is out of range.
    """

    @checked
    def __init__(
        self,
        answer: Callable[[Sequence[Asked]], Sequence[Answer]],
        executor: Executor,
        *,
        most: int = 32,
        wait_s: float = 0.002,
        queue: int = 256,
    ) -> None:
        self._answer = answer
        self._executor = executor
        self._most = most
        self._wait_s = wait_s
        self._queue = queue
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._draining: asyncio.Task[None] | None = None

    @staticmethod
    def check(**options: object) -> list[str]:
        """A line for each of these options that is out of range; those not given pass."""
        counts = {name: options[name] for name in ("most", "queue") if name in options}
        return at_least(1, **counts) + at_least(0, wait_s=options.get("wait_s"))

    @property
    def waiting(self) -> int:
        """Requests that no pass has taken up yet."""
        return len(self._waiting)

    async def ask(self, request: Asked) -> Answer:
        """The answer to one request.

        Raises:
            Busy: Too many wait already.
        """
        if len(self._waiting) >= self._queue:
            raise Busy(f"{self._queue} requests wait already; try again in a moment")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        try:
            await asyncio.sleep(self._wait_s)
            while self._waiting:  # after the first pass there is no need to wait for company
                count = min(self._most, len(self._waiting))
                await self._pass([self._waiting.popleft() for _ in range(count)])
        finally:
            self._draining = None

    async def _pass(self, batch: Sequence[tuple[Asked, "asyncio.Future[Answer]"]]) -> None:
        batch = [(request, future) for request, future in batch if not future.done()]
        if not batch:  # they went away
            return
        loop = asyncio.get_running_loop()
        asked = [request for request, _ in batch]
        try:
            answers = await loop.run_in_executor(self._executor, self._answer, asked)
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    await self._pass([one])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
