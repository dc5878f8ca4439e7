"""A training step beside RecTools' and RePlay's SASRec, as the catalogue grows.

    python -m benchmarks.scale_peers                     # 100,000 and 1,000,000 items
    python -m benchmarks.scale_peers --items 100000 --only mmkd replay

Each library's own SASRec of two layers on item ids, sampled softmax, full sequences of a made-up
log in which every item occurs; each in a process, the peers in environments of their own (see
`sasrec.py`). mmkd's second row has a text and an image table besides. RecTools draws negatives a
position, the others a batch, so its batch is smaller and its seconds are scaled to theirs. Writes
benchmarks/results/scale_peers.json.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.measure import (
    BenchmarkError,
    Help,
    environment,
    last_json_line,
    measure,
    print_table,
    write_results,
)
from benchmarks.sasrec import peer_python

GIB = 1024**3
PEERS = Path(__file__).parent / "peers"


def main() -> None:
    """Measure each library at each size, print and write."""
    options = _parser().parse_args()
    rows: list[dict[str, Any]] = []
    for items in options.items:
        for name, run in {"mmkd": _mmkd, "rectools": _rectools, "replay": _replay}.items():
            if name not in options.only:
                continue
            print(f"{name}, {items:,} items ...", flush=True)
            try:
                rows += [{"library": name, "items": items} | row for row in run(items, options)]
            except BenchmarkError as error:
                print(f"  not measured: {error}")
    _print(rows)
    print(f"\nwritten to {write_results('scale_peers', vars(options), rows)}")


def _mmkd(items: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """On ids, and with two modalities."""
    sizes = {name: getattr(options, name) for name in ("batch", "length", "width", "negatives")}
    rows = []
    for modalities in ((), ("text", "image")):
        found = measure(
            f"mmkd {items}",
            "benchmarks.scale_trials:step",
            {"items": items, "tables": "rows", "modalities": modalities, **sizes},
            steps=options.steps,
            warmup=options.warmup,
            threads=options.threads,
            allocator="system",
            timeout_s=options.timeout_s,
        )
        peak = max(found.peak_bytes, found.setup_peak_bytes) + found.interpreter_bytes
        rows.append(
            {
                "tables": 1 + len(modalities),
                "batch": options.batch,
                "step_s": found.median_s,
                "peak_gib": peak / GIB,
            }
        )
    return rows


def _rectools(items: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """By its own fit, from a log; a step's seconds are scaled to the others' batch."""
    batch = options.rectools_batch
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.csv"
        _write_log(log, items=items, batch=batch, length=options.length, steps=options.steps)
        reply = _peer(
            "rectools",
            "rectools_sasrec.py",
            [str(log), "--layers", "2", "--heads", "2", "--epochs", "2"],
            {"batch": batch, "steps": options.steps},
            options,
        )
    step = min(reply["seconds"]) / reply["steps"]  # the first epoch warms up
    row = {key: reply[key] for key in ("version", "peak_gib")}
    return [row | {"tables": 1, "batch": batch, "step_s": step * options.batch / batch}]


def _replay(items: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Its network, loss, sampler and optimiser, on batches made by hand."""
    sizes = {"items": items, "batch": options.batch, "steps": options.steps}
    reply = _peer("replay", "replay_step.py", [], sizes | {"warmup": options.warmup}, options)
    return [{"tables": 1, "batch": options.batch} | reply]


def _peer(
    library: str,
    script: str,
    command: Sequence[str],
    sizes: Mapping[str, int],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The reply of a peer's script."""
    sizes = {name: getattr(options, name) for name in ("length", "width", "negatives")} | dict(
        sizes
    )
    sizes["threads"] = options.threads
    flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    return last_json_line(
        [str(peer_python(library)), str(PEERS / script), *command, *flags],
        environment=environment(threads=options.threads, allocator="system"),
        timeout_s=options.timeout_s,
        label=library,
    )


def _write_log(path: Path, *, items: int, batch: int, length: int, steps: int) -> None:
    """Users of length + 1 events each; every item once, then any as likely as another."""
    users = max(batch * steps, -(-items // (length + 1)))
    generator = np.random.default_rng(0)
    count = users * (length + 1)
    rest = generator.integers(1, items + 1, count - items)
    log = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(1, users + 1), length + 1),
            "item_id": np.concatenate([generator.permutation(np.arange(1, items + 1)), rest]),
            "timestamp": np.tile(np.arange(length + 1), users),
        }
    )
    log.write_csv(path)


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    header = ["library", "items", "tables", "batch", "s a step", "mmkd is x faster", "peak GiB"]
    table = []
    for row in rows:
        ours = next(
            (r for r in rows if r["library"] == "mmkd" and r["items"] == row["items"]), None
        )
        table.append(
            [
                row["library"],
                f"{row['items']:,}",
                str(row["tables"]),
                str(row["batch"]),
                f"{row['step_s']:.3f}",
                f"{row['step_s'] / ours['step_s']:.1f}" if ours else "",
                f"{row['peak_gib']:.2f}",
            ]
        )
    print_table(header, table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--only", nargs="+", default=["mmkd", "rectools", "replay"])
    parser.add_argument("--batch", type=int, default=256, help="sequences a batch")
    parser.add_argument(
        "--rectools-batch", type=int, default=64, help="sequences a batch of RecTools"
    )
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--negatives", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="a figure")
    return parser


if __name__ == "__main__":
    main()
