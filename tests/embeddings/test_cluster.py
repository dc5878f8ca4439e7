"""Ray's actors: the vectors of an ordinary run, whoever dies, and what is told when they cannot."""

import functools
import os
import signal
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from embeddings.fakes import FakeFitted, FakeText, card, catalogue, never
from numpy.typing import NDArray

from mmkd import EmbeddingCache
from mmkd.embeddings import EncodingSettings, RayActors, RunReport
from mmkd.embeddings.cluster import Crew, Encoded
from mmkd.embeddings.inputs import Work
from mmkd.errors import CacheError, EmbeddingInterrupted

TEXTS: list[str | None] = [f"text number {n}" for n in range(60)]


class BatchBound(FakeText):
    """Adds the sum over all inputs given at once: a vector tells what it was encoded with."""

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        vectors = super().encode(inputs)
        together: NDArray[np.float32] = vectors + vectors.sum(axis=0)
        return together


class Dying(BatchBound):
    """Kills its process at one of the texts, as often as there are names to take in a folder."""

    def __init__(self, folder: Path, times: int) -> None:
        super().__init__()
        self.folder, self.times = folder, times

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        died = len(list(self.folder.iterdir()))
        if "text number 17" in inputs and died < self.times:
            (self.folder / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(inputs)


class Failing(FakeText):
    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        raise RuntimeError("no such device")


@pytest.fixture(scope="module")
def actors() -> Iterator[RayActors]:
    if find_spec("ray") is None:  # not imported: it would read its environment too early
        pytest.skip("Ray is not installed")
    paths = f"{Path(__file__).parents[2]}{os.pathsep}{Path(__file__).parents[1]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", paths)
        with RayActors(2) as made:
            yield made


def vectors(cache: EmbeddingCache, **options: Any) -> NDArray[np.float32]:
    return np.asarray(cache.table(card(), catalogue(TEXTS), **options).vectors)


@pytest.fixture
def alone(tmp_path: Path) -> NDArray[np.float32]:
    return vectors(
        EmbeddingCache(tmp_path / "alone", shard_size=8), encoder_factory=BatchBound, batch_size=1
    )


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "ray", shard_size=8)


@pytest.mark.slow
def test_actors_give_the_vectors_of_an_ordinary_run(
    actors: RayActors, cache: EmbeddingCache, alone: NDArray[np.float32]
) -> None:
    told: list[tuple[int, int]] = []
    reports: list[RunReport] = []
    found = vectors(
        cache,
        encoder_factory=BatchBound,
        batch_size=1,
        actors=actors,
        progress=lambda done, total: told.append((done, total)),
        report=reports.append,
    )
    assert found.tobytes() == alone.tobytes()
    assert len(told) == 8 and told == sorted(told) and told[-1] == (60, 60)  # told of each chunk
    assert [(one.encoded, one.by_others) for one in reports] == [(60, 0)]
    assert vectors(cache, encoder_factory=never).tobytes() == alone.tobytes()


@pytest.mark.slow
def test_a_killed_actor_costs_its_chunk_and_is_replaced(
    actors: RayActors, cache: EmbeddingCache, alone: NDArray[np.float32], tmp_path: Path
) -> None:
    (tmp_path / "died").mkdir()
    dying = functools.partial(Dying, tmp_path / "died", 2)
    found = vectors(cache, encoder_factory=dying, batch_size=1, actors=actors)
    assert len(list((tmp_path / "died").iterdir())) == 2
    assert found.tobytes() == alone.tobytes()


@pytest.mark.slow
def test_an_actor_that_dies_at_every_try_is_told_and_the_rest_kept(
    actors: RayActors, cache: EmbeddingCache, alone: NDArray[np.float32], tmp_path: Path
) -> None:
    (tmp_path / "died").mkdir()
    dying = functools.partial(Dying, tmp_path / "died", 100)
    with pytest.raises(CacheError, match=r"an actor died 4 times.*what is committed is kept"):
        vectors(cache, encoder_factory=dying, batch_size=1, actors=actors)
    assert len(list((tmp_path / "died").iterdir())) == 4
    # nothing stays claimed
    assert vectors(cache, encoder_factory=BatchBound, batch_size=1).tobytes() == alone.tobytes()


@pytest.mark.slow
def test_an_encoder_at_fault_is_told_as_ever(actors: RayActors, cache: EmbeddingCache) -> None:
    with pytest.raises(CacheError, match="the encoder fails on any input: RuntimeError: no such"):
        vectors(cache, encoder_factory=Failing, actors=actors)


class FailingOn(FakeText):
    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__()
        self.texts = {*texts}

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        if self.texts & {*inputs}:
            raise RuntimeError("cannot encode it")
        return super().encode(inputs)


@pytest.mark.slow
def test_chunks_that_fail_whole_do_not_stop_the_others(
    actors: RayActors, cache: EmbeddingCache, tmp_path: Path
) -> None:
    seen: list[str] = []
    vectors(
        EmbeddingCache(tmp_path / "seen", shard_size=8), encoder_factory=lambda: FakeText(seen=seen)
    )
    failing = functools.partial(FailingOn, seen[:16])  # what both actors are given first
    table = cache.table(card(), catalogue(TEXTS), encoder_factory=failing, actors=actors)
    assert {TEXTS[row - 1] for row in np.flatnonzero(~table.present)[1:]} == {*seen[:16]}


def test_actors_that_wait_for_room_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mmkd.embeddings.cluster._SILENT_S", 0.0)
    ray = SimpleNamespace(
        wait=lambda answers, **options: (answers[:1], answers[1:]),
        available_resources=lambda: {"CPU": 1.0},
    )
    actor = SimpleNamespace(started=SimpleNamespace(remote=object))
    crew = Crew(ray, [actor] * 3, None, needs={"num_cpus": 2, "num_gpus": 0})
    for _ in range(2):
        assert not list(crew.taken(timeout_s=0))
    (told,) = caplog.messages
    assert told.startswith("2 of 3 actors have not started after 0 s: each takes 2 CPU (free in a")


@pytest.mark.slow
def test_a_stop_keeps_what_is_committed(
    actors: RayActors, cache: EmbeddingCache, alone: NDArray[np.float32]
) -> None:
    done = 0

    def progress(now: int, total: int) -> None:
        nonlocal done
        done = now

    with pytest.raises(EmbeddingInterrupted, match="of 60 inputs are encoded and kept"):
        vectors(
            cache,
            encoder_factory=BatchBound,
            batch_size=1,
            actors=actors,
            progress=progress,
            stop=lambda: done >= 16,
        )
    kept = len(list(cache.folder.glob("*/shards/*.npy")))
    assert 2 <= kept < 8
    assert vectors(cache, encoder_factory=BatchBound, batch_size=1).tobytes() == alone.tobytes()


@pytest.mark.slow
def test_an_encoder_that_is_fitted_is_so_in_each_actor(
    actors: RayActors, cache: EmbeddingCache, tmp_path: Path
) -> None:
    fitted = card("FakeFitted")
    plain = EmbeddingCache(tmp_path / "plain", shard_size=8).table(fitted, catalogue(TEXTS))
    found = cache.table(fitted, catalogue(TEXTS), encoder_factory=FakeFitted, actors=actors)
    assert np.asarray(found.vectors).tobytes() == np.asarray(plain.vectors).tobytes()


def test_a_picture_that_only_the_driver_sees_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    ray = SimpleNamespace(
        wait=lambda answers, timeout: (answers, []),
        get=lambda answer: Encoded([], 0.0, 0.0, 0),
        exceptions=SimpleNamespace(RayTaskError=KeyError, RayError=LookupError),
    )
    remote = SimpleNamespace(remote=lambda make, work: "answer")

    def taken(*names: str) -> list[str]:
        crew = Crew(ray, [SimpleNamespace(encode=remote)], None)
        crew.give("chunk", [Work(n, n, tmp_path / n) for n in names])
        assert not crew.free
        return [name for name, _ in crew.taken(timeout_s=0)]

    assert taken("gone.png") == ["chunk"]  # as in any run: it is gone since it was hashed
    with pytest.raises(
        CacheError, match=r"a\.png: an actor cannot read it; put pictures on a disk"
    ):
        taken("gone.png", "a.png")


def test_a_failure_that_cannot_be_sent_is_not_taken_for_a_death() -> None:
    class UnserializableException(LookupError):  # noqa: N818 - as Ray names its own
        pass

    def get(answer: str) -> Encoded:
        raise UnserializableException("cannot be read\nTraceback\nmy.Error: no such device\n")

    ray = SimpleNamespace(
        wait=lambda answers, timeout: (answers, []),
        get=get,
        exceptions=SimpleNamespace(RayTaskError=KeyError, RayError=LookupError),
    )
    remote = SimpleNamespace(remote=lambda make, work: "answer")
    crew = Crew(ray, [SimpleNamespace(encode=remote)], None)
    crew.give("chunk", [Work("a", "a", "a text")])
    with pytest.raises(CacheError, match=r"encoder failed \(my\.Error: no such device\); correct"):
        list(crew.taken(timeout_s=0))


def cluster(*nodes: dict[str, float]) -> Any:
    return SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": node} for node in nodes])


@pytest.mark.parametrize(
    ("count", "device", "nodes", "room"),
    [
        (None, "auto", [{"CPU": 8}, {"CPU": 4}], (2, 4, 0)),  # one a machine, as large as fits both
        (3, "auto", [{"CPU": 8}, {"CPU": 4}], (3, 4, 0)),
        (2, "auto", [{"CPU": 3}, {"CPU": 5}], (2, 3, 0)),
        (None, "auto", [{"CPU": 16, "GPU": 4}, {"CPU": 2}], (4, 4, 1)),
        (1, "cpu", [{"CPU": 16, "GPU": 4}], (1, 16, 0)),
    ],
)
def test_actors_take_what_lets_all_of_them_run(
    count: int | None, device: str, nodes: list[dict[str, float]], room: tuple[int, int, int]
) -> None:
    number, taken = RayActors(count, device=device)._room(cluster(*nodes))
    assert (number, taken["num_cpus"], taken["num_gpus"]) == room


def test_more_actors_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(CacheError, match=r"got 5, the cluster has room for 4: each takes a CPU; "):
        RayActors(5)._room(cluster({"CPU": 4}))
    with pytest.raises(CacheError, match="got 3, the cluster has room for 2: each takes a CPU and"):
        RayActors(3)._room(cluster({"CPU": 4, "GPU": 2}))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engine": "rya"}, "engine: got 'rya', wanted one of processes, ray; did you mean 'ray'"),
        ({"actors": 2}, "actors: got 2 without Ray; use engine: ray"),
        ({"engine": "ray", "actors": 0}, "actors: got 0, wanted at least 1"),
        ({"engine": "ray", "device": "cuda:1"}, "device: got cuda:1, but each of Ray's actors"),
        ({"engine": "ray", "device": "spread"}, "use auto or cpu, or engine: processes"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        EncodingSettings(**options)
