"""Requests share passes, each gets its own answer, and what waits is bounded."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mmkd.serve.batching import Batcher, Busy


class Model:
    """Squares numbers, slowly where it is told to, and fails at negative ones."""

    def __init__(self) -> None:
        self.passes: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.passes.append([*numbers])
        assert self.go.wait(20)
        if any(number < 0 for number in numbers):
            raise ValueError(f"negative: {min(numbers)}")
        return [number**2 for number in numbers]


def asked(
    test: Callable[[Batcher[int, int], Model], Coroutine[Any, Any, None]], **options: Any
) -> Model:
    model = Model()

    async def run() -> None:
        with ThreadPoolExecutor(1) as thread:
            await asyncio.wait_for(test(Batcher(model, thread, **options), model), 20)

    asyncio.run(run())
    return model


def test_those_who_come_together_share_passes_of_bounded_size() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        found = await asyncio.gather(*map(batcher.ask, range(40)))
        assert found == [number**2 for number in range(40)]

    model = asked(test, most=32)
    assert model.passes == [[*range(32)], [*range(32, 40)]]


def test_those_who_come_within_the_wait_share_a_pass() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        first = asyncio.create_task(batcher.ask(3))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(batcher.ask(4))
        assert await first == 9 and await second == 16

    assert asked(test, wait_s=0.5).passes == [[3, 4]]


def test_those_who_come_while_the_model_is_busy_share_the_next_pass() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        model.go.clear()
        first = asyncio.create_task(batcher.ask(1))
        while not model.passes:
            await asyncio.sleep(0.01)
        later = [asyncio.create_task(batcher.ask(number)) for number in (2, 3, 4)]
        await asyncio.sleep(0.05)
        assert batcher.waiting == 3
        model.go.set()
        assert await first == 1 and await asyncio.gather(*later) == [4, 9, 16]

    assert asked(test, wait_s=0).passes == [[1], [2, 3, 4]]


def test_nobody_gets_anothers_error() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        found = await asyncio.gather(*map(batcher.ask, (1, -2, 3)), return_exceptions=True)
        assert found[0] == 1 and found[2] == 9
        assert isinstance(found[1], ValueError) and str(found[1]) == "negative: -2"

    assert asked(test).passes == [[1, -2, 3], [1], [-2], [3]]


def test_who_comes_when_the_queue_is_full_is_told_so_and_may_come_again() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        model.go.clear()
        waiting = [asyncio.create_task(batcher.ask(number)) for number in (1, 2)]
        while not model.passes:
            await asyncio.sleep(0.01)
        waiting += [asyncio.create_task(batcher.ask(number)) for number in (3, 4)]
        await asyncio.sleep(0.05)
        with pytest.raises(Busy, match="2 requests wait"):
            await batcher.ask(5)
        model.go.set()
        assert await asyncio.gather(*waiting) == [1, 4, 9, 16]
        assert await batcher.ask(5) == 25

    asked(test, queue=2, most=2)


def test_who_went_away_is_not_asked_for() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        gone = asyncio.create_task(batcher.ask(1))
        stays = asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == 4

    assert asked(test).passes == [[2]]


def test_what_is_out_of_range_is_refused() -> None:
    with ThreadPoolExecutor(1) as thread:
        with pytest.raises(ValueError, match="most: got 0, wanted at least 1"):
            Batcher(Model(), thread, most=0)
        with pytest.raises(ValueError, match="wait_s: got -1, wanted at least 0"):
            Batcher(Model(), thread, wait_s=-1)
