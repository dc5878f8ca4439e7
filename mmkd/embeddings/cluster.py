"""Chunks encoded by Ray's actors, on this machine or on those of a cluster.

From chunks that the driver claimed to their outcomes, which it commits: each actor holds one
encoder and is given a chunk's work, texts included, so that only pictures need a disk that all
machines see. An actor that dies is started again by Ray, and given the chunk it was at once more.
"""

import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkd.embeddings.guard import Guarded, GuardedEncoder
from mmkd.embeddings.inputs import Work
from mmkd.embeddings.shards import Outcome
from mmkd.errors import CacheError, at_least, checked
from mmkd.threads import thread_count, usable_cores, use_threads
from mmkd.trust import trust_code, trusted

_logger = logging.getLogger(__name__)

_RESTARTS = 3  # of an actor
_STARTS = 3  # tries: on a busy machine Ray's parts do not wait long enough for each other
_SILENT_S = 15.0  # that actors may take to start before it is said
_KEPT = "what is committed is kept, and the same command goes on"


class RayActors(AbstractContextManager["RayActors"]):
    """Actors that encode, of the cluster at ``RAY_ADDRESS`` or of one started here; needs Ray.

    Nothing is started before there is something to encode. A context manager: what was started is
    ended with it.

        >>> from mmkd import RayActors
        >>> RayActors(2).count
        2

    Args:
        count: How many; None has one for each GPU, or where there is none, one a machine.
        device: ``cpu`` leaves GPUs alone; with any other each actor has one, where there are some.

    Raises:
        ValueError: ``count`` is below 1.
    """

    @checked
    def __init__(self, count: int | None = None, *, device: str = "auto") -> None:
        self.count = count
        self._device = device
        self._started = False

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each option that is out of range."""
        return at_least(1, count=options.get("count"))

    def __exit__(self, *error: object) -> None:
        """Ends what was started."""
        if self._started:
            _ray().shutdown()
            self._started = False

    @contextmanager
    def encoders(self, make: Guarded) -> Iterator["Crew"]:
        """Actors with an encoder each, which they make with their first chunk.

        Args:
            make: Makes the encoder; it is sent to the actors.

        Raises:
            CacheError: Ray is not installed, no cluster answers, or it has no room for so many.
        """
        ray = self._connected()
        count, resources = self._room(ray)
        actor = ray.remote(_EncodingActor).options(
            max_restarts=_RESTARTS, max_task_retries=_RESTARTS, **resources
        )
        made = ray.put(make)  # kept here, so that an actor that is started again finds it
        actors = [actor.remote(trusted(), resources["num_cpus"]) for _ in range(count)]
        try:
            yield Crew(ray, actors, made, needs=resources)
        finally:
            for one in actors:
                ray.kill(one)

    def _connected(self) -> Any:
        address = os.environ.get("RAY_ADDRESS")
        if not address and "ray" not in sys.modules:  # it reads these once
            for name, value in _private().items():
                os.environ.setdefault(name, value)
        ray = _ray()
        if ray.is_initialized():
            return ray
        cores = max(usable_cores(), self.count or 1)
        own = {"address": "local", "num_cpus": cores, "include_dashboard": False}
        options = {} if address else own
        for left in reversed(range(1 if address else _STARTS)):
            try:
                with _own_signals():
                    ray.init(log_to_driver=False, logging_level="ERROR", **options)
                break
            except Exception as error:  # Ray raises bare ones
                ray.shutdown()
                if left:
                    continue
                told = " ".join(str(error).split())[:300]
                raise CacheError(
                    f"RAY_ADDRESS={address}: no cluster to use ({told}); correct it, or unset it "
                    "to have one on this machine"
                    if address
                    else f"Ray cannot be started here ({told}); use embed.engine: processes"
                ) from error
        self._started = True
        return ray

    def _room(self, ray: Any) -> tuple[int, dict[str, int]]:
        """How many actors, and what each takes: the most CPUs that let all of them run at once."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = int(sum(node.get("GPU", 0) for node in nodes)) if self._device != "cpu" else 0
        count = self.count or gpus or len(nodes)

        def fit(cpus: int) -> int:
            rooms = ((int(node.get("CPU", 0)) // cpus, int(node.get("GPU", 0))) for node in nodes)
            return sum(min(room) if gpus else room[0] for room in rooms)

        most = int(max(node.get("CPU", 0) for node in nodes))
        for cpus in range(most, 0, -1):
            if fit(cpus) >= count:
                return count, {"num_cpus": cpus, "num_gpus": int(gpus > 0)}
        raise CacheError(
            f"embed.actors: got {count}, the cluster has room for {fit(1)}: each takes a CPU"
            f"{' and a GPU' if gpus else ''}; lower it"
        )


@dataclass(frozen=True)
class Encoded:
    """What an actor made of a chunk.

    Attributes:
        outcomes: Of its inputs.
        wait_s: Seconds in which the encoder waited for inputs.
        encode_s: Seconds in which it did not.
        cut: Texts that were longer than the encoder takes.
        doubt: As `GuardedEncoder.doubt`.
    """

    outcomes: list[Outcome]
    wait_s: float
    encode_s: float
    cut: int
    doubt: Sequence[str] = ()


class Crew:
    """Actors, and what each of them is at.

    Args:
        ray: The module, connected.
        actors: Handles of `_EncodingActor`.
        make: A reference to what makes their encoder.
        needs: What each takes of the cluster, said where they wait for it; None says nothing.
    """

    def __init__(
        self, ray: Any, actors: Sequence[Any], make: Any, *, needs: Mapping[str, int] | None = None
    ) -> None:
        self._ray = ray
        self._make = [make]  # in a list Ray leaves it a reference, which an actor asks for once
        self._idle = list(actors)
        self._under_way: dict[Any, tuple[Any, str, Sequence[Work]]] = {}
        self._needs, self._count = needs, len(self._idle)
        self._starting = [one.started.remote() for one in actors] if needs else []
        self._told_at = time.monotonic() + _SILENT_S

    @property
    def free(self) -> bool:
        """Whether an actor has nothing to do."""
        return bool(self._idle)

    def give(self, name: str, work: Sequence[Work]) -> None:
        """Gives a chunk's work to a free actor."""
        actor = self._idle.pop()
        answer = actor.encode.remote(self._make, list(work))
        self._under_way[answer] = actor, name, work

    def taken(self, *, timeout_s: float) -> Iterator[tuple[str, Encoded]]:
        """Chunks that are done, by name; waits for one, but no longer than ``timeout_s``.

        Raises:
            CacheError: The encoder is at fault, an actor died too often, or it cannot see a
                picture that is there.
        """
        self._tell_who_waits()
        if not self._under_way:
            time.sleep(timeout_s)
            return
        done, _ = self._ray.wait(list(self._under_way), timeout=timeout_s)
        for answer in done:
            actor, name, work = self._under_way.pop(answer)
            self._idle.append(actor)
            found = self._answered(answer)
            paths = [one.source for one in work if isinstance(one.source, Path)]
            if not found.outcomes and (seen := [path for path in paths if path.exists()]):
                raise CacheError(
                    f"{seen[0]}: an actor cannot read it; put pictures on a disk that all "
                    f"machines of the cluster see by the same path; {_KEPT}"
                )
            yield name, found

    def _tell_who_waits(self) -> None:
        """Say once which actors have not started: the cluster may have no room for them now."""
        if not self._starting or time.monotonic() < self._told_at:
            return
        _, waiting = self._ray.wait(
            self._starting, num_returns=len(self._starting), timeout=0, fetch_local=False
        )
        if waiting:
            free, needs = self._ray.available_resources(), self._needs or {}
            names = {"CPU": "num_cpus", "GPU": "num_gpus"}
            room = ", ".join(
                f"{needs[name]} {kind} (free in all: {free.get(kind, 0):g})"
                for kind, name in names.items()
                if needs.get(name)
            )
            _logger.warning(
                "%d of %d actors have not started after %.0f s: each takes %s; the machines are "
                "slow, or others use them; waiting (Ctrl-C keeps what is committed)",
                *(len(waiting), self._count, _SILENT_S, room),
            )
        self._starting = []

    def _answered(self, answer: Any) -> Encoded:
        try:
            found: Encoded = self._ray.get(answer)
            return found
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None  # as the encoder raised it
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().split("\n")
            if type(error).__name__ == "UnserializableException":  # of a class like no other
                raise CacheError(
                    f"an actor's encoder failed ({lines[-1].strip()}); correct the encoder or its "
                    f"card; {_KEPT}"
                ) from error
            if "creation task" in lines[0]:  # such as a package that is not there
                raise CacheError(
                    f"an actor cannot be started ({lines[-1].strip()}); the machines of a cluster "
                    f"need mmkd and what an encoder is made of; {_KEPT}"
                ) from error
            raise CacheError(
                f"an actor died {_RESTARTS + 1} times, or its machine is gone ({lines[0]}); its "
                "encoder may need more memory than there is: lower embed.batch_size or "
                f"embed.actors; {_KEPT}"
            ) from error


class _EncodingActor:
    """Runs in a process of the cluster. Its encoder is made late, so that what fails is told."""

    def __init__(self, names: Sequence[str], cpus: int) -> None:
        trust_code(names)  # what the driver's user trusts
        beside = max(1, usable_cores() // cpus)  # actors that a machine has room for
        os.environ["LOCAL_WORLD_SIZE"] = str(beside)  # read by the loader of pictures
        use_threads(thread_count(beside))
        self._encoder: GuardedEncoder | None = None
        self._open = ExitStack()

    def started(self) -> None:
        """Answers once the actor has its place."""

    def encode(self, make: Sequence[Any], work: Sequence[Work]) -> Encoded:
        """Encodes a chunk, in the batches that a run without actors has."""
        if self._encoder is None:
            made: Guarded = _ray().get(make[0])
            self._encoder = self._open.enter_context(made())
        encoder = self._encoder
        before = encoder.wait_s, encoder.encode_s, encoder.cut
        outcomes = [one for batch in encoder.outcomes(work) for one in batch]
        doubt = encoder.doubt()
        after = encoder.wait_s, encoder.encode_s, encoder.cut
        wait_s, encode_s, cut = (b - a for a, b in zip(before, after, strict=True))
        return Encoded(outcomes, wait_s, encode_s, int(cut), doubt)


def _private() -> dict[str, str]:
    """The environment of a cluster of this machine, whose ports take code to run, but only ours."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers
        "RAY_agent_register_timeout_ms": "120000",  # on a busy machine
    }


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps who is told of SIGTERM: Ray's start puts a handler of its own in its place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise CacheError("ray is not installed; run: pip install 'mmkd[ray]'") from None
    return ray
