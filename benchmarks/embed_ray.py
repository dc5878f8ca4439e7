"""Two of Ray's actors beside two ordinary processes on the same texts, once with an actor killed.

    python -m benchmarks.embed_ray                                  # 20,000 short texts by MiniLM
    python -m benchmarks.embed_ray --card hashed-text --texts 5000 --json

Every way starts with nothing stored and uses one thread a process. Seconds are from the first input
to the last commit: for processes those of the slower one, for actors with the loading of their
models; what Ray itself takes to start is measured apart. Vectors must be the same bytes. The last
line is JSON.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Help, print_table
from mmkd.data import ItemTable
from mmkd.embeddings import EmbeddingCache, RayActors, RunReport
from mmkd.encoders import Encoder, EncoderCard, load_card

COLOURS = ("red", "green", "blue", "grey", "black", "white", "yellow")
THINGS = ("cotton shirt", "kettle", "wooden chair", "garden spade", "running shoe", "wall clock")


def main() -> None:
    """Encode in all ways, compare, print."""
    options = _parser().parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of every process and actor
    card, items = load_card(options.card), texts(options.texts)
    if options.join is not None:
        _, seconds = _encoded(options.join, card, items, options.shard_size)
        print(json.dumps(seconds))
        return
    with tempfile.TemporaryDirectory() as name:
        row = _row(Path(name), card, items, options)
    if not options.json:
        print_table(list(row), [[str(value) for value in row.values()]])
    print(json.dumps(row))


def texts(count: int) -> ItemTable:
    """A catalogue of short texts, no two the same."""
    made = [
        f"{COLOURS[n % 7]} {THINGS[n % 6]}, size {n % 43}, number {n}" + " with a belt" * (n % 5)
        for n in range(count)
    ]
    ids = ("", *(f"item-{n}" for n in range(count)))
    return ItemTable(
        ids=ids,
        titles=ids,
        text=(None, *made),
        image_path=(None,) * (count + 1),
        attributes=((),) * (count + 1),
    )


def _row(
    folder: Path, card: EncoderCard, items: ItemTable, options: argparse.Namespace
) -> dict[str, Any]:
    size, workers = options.shard_size, options.workers
    processes_s = _processes(folder / "processes", options)
    kept, _ = _encoded(folder / "processes", card, items, size)
    with RayActors(workers) as actors:
        began = time.perf_counter()
        _encoded(folder / "start", card, texts(workers), 1, actors=actors)
        start_s = time.perf_counter() - began
        found, ray_s = _encoded(folder / "ray", card, items, size, actors=actors)
        factory = partial(dying, card, folder / "died", after=options.texts // (3 * workers))
        after, killed_s = _encoded(
            folder / "killed", card, items, size, actors=actors, factory=factory
        )
    return {
        "what": "embed_ray",
        "card": card.name,
        "texts": options.texts,
        "workers": workers,
        "processes_s": round(processes_s, 1),
        "ray_start_s": round(start_s, 1),
        "ray_s": round(ray_s, 1),
        "ray_killed_s": round(killed_s, 1),
        "killed": (folder / "died").exists(),
        "identical": kept.tobytes() == found.tobytes() == after.tobytes(),
    }


def _processes(folder: Path, options: argparse.Namespace) -> float:
    """Seconds of the slower of several processes that share a folder."""
    command = [sys.executable, "-m", "benchmarks.embed_ray", "--join", str(folder)]
    for name in ("card", "texts", "shard_size"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(options.workers)]
    return max(float(one.communicate()[0].splitlines()[-1]) for one in started)


def _encoded(
    folder: Path,
    card: EncoderCard,
    items: ItemTable,
    shard_size: int,
    *,
    actors: RayActors | None = None,
    factory: Any = None,
) -> tuple[NDArray[np.float32], float]:
    """Vectors [I+1, D] and seconds, 0 where nothing was left to encode."""
    reports: list[RunReport] = []
    table = EmbeddingCache(folder, shard_size=shard_size).table(
        card, items, actors=actors, encoder_factory=factory, report=reports.append
    )
    return np.asarray(table.vectors), sum(report.seconds for report in reports)


def dying(card: EncoderCard, marker: Path, *, after: int) -> Encoder:
    """The card's encoder, whose process is killed once it has encoded so many inputs; but once."""
    encoder = card.build()
    encode, done = encoder.encode, 0

    def encode_or_die(inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        nonlocal done
        done += len(inputs)
        if done > after and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        vectors: NDArray[np.float32] = encode(inputs, batch_size=batch_size)
        return vectors

    encoder.encode = encode_or_die  # type: ignore[method-assign]
    return encoder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--card", default="minilm-packaged")
    parser.add_argument("--workers", type=int, default=2, help="actors, and processes")
    parser.add_argument("--shard-size", type=int, default=1024)
    parser.add_argument("--json", action="store_true", help="nothing but a line of JSON")
    parser.add_argument("--join", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
