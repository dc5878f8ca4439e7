"""What a step, an evaluation and draws cost as the catalogue grows: 10k to 10M items and more.

    python -m benchmarks.scale                                  # one table, everything
    python -m benchmarks.scale step --items 1000000 --json      # one figure
    python -m benchmarks.scale eval --items 1000000 --cases 10000
    python -m benchmarks.scale step --items 1000000 --processes 2 --threads 1  # sharded tables
    python -m benchmarks.scale sampler --items 20000000
    python -m benchmarks.scale catalogue --items 1000000        # Parquet to an ItemTable
    python -m benchmarks.scale log --events 100000000           # Parquet to sequences
    python -m benchmarks.scale log --suffix csv.gz              # packed text to sequences
    python -m benchmarks.scale sequences --events 100000000 --processes 2
    python -m benchmarks.scale listing --shards 100000
    python -m benchmarks.scale store --vectors 1000000          # of 64 numbers
    python -m benchmarks.scale index --vectors 1000000

Every figure is measured in a process of its own, by default with two threads, or in several that
share a step, of which the largest is told. `peak_gib` is the largest resident size of a process,
the libraries, the set-up and the tables included. `cpu_s` are the processor's seconds of all its
threads, for a machine that others use too. 10M items take 16 GB.
"""

import argparse
import itertools
import json
import sys
from typing import Any

from benchmarks.measure import (
    BenchmarkError,
    Help,
    Measurement,
    measure_together,
    print_table,
    write_results,
)
from benchmarks.scale_files import stages

# what of files is measured, and what it grows by
FILES = {
    "catalogue": "items", "log": "events", "sequences": "events", "listing": "shards",
    "store": "vectors", "index": "vectors",
}  # fmt: skip
_SIZES = {
    "items": [10_000, 100_000, 1_000_000], "events": [1_000_000, 10_000_000],
    "shards": [1_000, 10_000, 100_000], "vectors": [1_000_000],
}  # fmt: skip
KINDS = ("step", "eval", "sampler")
_TARGETS = {"step": "step", "eval": "evaluation", "sampler": "sampler"}
GIB = 1024**3
_LOG_ITEMS = 1_000_000


def main() -> None:
    """Measure one figure, or all of them at all sizes."""
    options = _parser().parse_args()
    if options.what != "all":
        for size in getattr(options, FILES.get(options.what, "items")):
            row = (_file_row if options.what in FILES else _row)(options.what, size, options)
            if not options.json:
                print_table(list(row), [[_shown(value) for value in row.values()]])
            print(json.dumps(row), flush=True)
        return
    rows = []
    figures = [*itertools.product(("step", "eval"), options.items)]
    figures += [("sampler", items) for items in (*options.items, options.most)]
    figures += [(what, size) for what, unit in FILES.items() for size in _SIZES[unit]]
    for what, size in figures:
        print(f"{what} {size:,} ...", file=sys.stderr, flush=True)
        try:
            rows.append((_file_row if what in FILES else _row)(what, size, options))
        except BenchmarkError as error:
            print(f"  not measured: {error}", file=sys.stderr)
    for what in (*KINDS, *FILES):
        _print(what, [row for row in rows if row["what"] == what])
    print(f"\nwritten to {write_results('scale', vars(options), rows)}")


def _row(what: str, items: int, options: argparse.Namespace) -> dict[str, Any]:
    """One figure."""
    arguments: dict[str, Any] = {"items": items}
    if what == "sampler":
        arguments |= {"draws": options.draws}
    else:
        arguments |= {"length": options.length, "width": options.width}
        arguments |= {"modalities": options.modalities}
    if what == "step":
        arguments |= {"batch": options.batch, "negatives": options.negatives}
        tables = "sharded" if options.processes > 1 else "rows"
        arguments |= {"tables": options.tables or tables}
    if what == "eval":
        arguments |= {"cases": options.cases}
    each = measure_together(
        f"{what} {items}",
        f"benchmarks.scale_trials:{_TARGETS[what]}",
        arguments,
        processes=options.processes,
        steps=1 if what == "eval" else options.steps,
        warmup=0 if what == "eval" else options.warmup,
        threads=options.threads,
        allocator="system",
        timeout_s=options.timeout_s,
    )
    found = max(each, key=_peak)  # of several, the largest is told
    return {
        "what": what,
        **arguments,
        f"{what}_s": round(found.median_s, 5),
        "peak_gib": round(_peak(found) / GIB, 3),
        "stepping_peak_gib": round((found.peak_bytes + found.interpreter_bytes) / GIB, 3),
        "setup_s": round(found.setup_s, 2),
        "threads": options.threads,
        "processes": options.processes,
        **{k: _rounded(v) for k, v in found.notes.items() if not k.endswith("_loss")},
    }


def _file_row(what: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """One figure of files; what makes them is no part of it."""
    arguments: dict[str, Any] = {FILES[what]: size}
    if what in ("store", "index"):
        found = stages(
            what,
            **arguments,
            folder=options.folder,
            threads=options.threads,
            timeout_s=options.timeout_s,
        )
        seconds = found["write_s" if what == "store" else "index_s"]
        cpu_s = found["write_cpu_s" if what == "store" else "index_cpu_s"]
        return {"what": what, **arguments, f"{what}_s": seconds, "cpu_s": cpu_s, **found}
    if what in ("log", "sequences"):
        arguments |= {"items": min(_LOG_ITEMS, size)}
    if what == "log":
        arguments |= {"suffix": options.suffix}
    each = measure_together(
        f"{what} {size}",
        f"benchmarks.scale_files:{what}",
        arguments | {"folder": options.folder},
        processes=options.processes if what == "sequences" else 1,
        steps=1,
        warmup=0,
        threads=options.threads,
        allocator="system",
        timeout_s=options.timeout_s,
    )
    measured = max(each, key=lambda one: one.notes.get("own_gib", 0.0))
    notes = {k: _rounded(v) for k, v in measured.notes.items() if not k.endswith("_loss")}
    return {
        "what": what,
        **arguments,
        f"{what}_s": round(measured.median_s, 3),
        "peak_gib": round((measured.peak_bytes + measured.interpreter_bytes) / GIB, 3),
        **notes,
    }


def _peak(found: Measurement) -> int:
    return max(found.peak_bytes, found.setup_peak_bytes) + found.interpreter_bytes


def _print(what: str, rows: list[dict[str, Any]]) -> None:
    """A figure at every size, and how it grew from the size before."""
    header = [what, "seconds", "grew", "CPU s", "grew", "peak GiB", "grew"]
    table, before = [], None
    for row in rows:
        line = [f"{row[FILES.get(what, 'items')]:,}"]
        for figure in (f"{what}_s", "cpu_s", "peak_gib"):
            line.append(_shown(row[figure]))
            line.append(f"x{row[figure] / before[figure]:.2f}" if before else "")
        table.append(line)
        before = row
    print()
    print_table(header, table)


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("what", nargs="?", choices=["all", *KINDS, *FILES], default="all")
    sizes = [10_000, 100_000, 1_000_000, 10_000_000]
    parser.add_argument("--items", type=int, nargs="+", default=sizes)
    parser.add_argument("--most", type=int, default=20_000_000, help="the sampler's last size")
    parser.add_argument("--events", type=int, nargs="+", default=[10_000_000], help="of a log")
    parser.add_argument("--suffix", default="parquet", help="of a log, such as csv.gz or jsonl")
    parser.add_argument("--shards", type=int, nargs="+", default=[100_000], help="of a listing")
    parser.add_argument("--vectors", type=int, nargs="+", default=[1_000_000], help="of a store")
    parser.add_argument("--folder", help="where made-up files are kept; by default they are not")
    parser.add_argument("--json", action="store_true", help="nothing but a line of JSON")
    parser.add_argument("--batch", type=int, default=256, help="sequences a batch")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--modalities", nargs="*", default=["text", "image"], help="beside ids")
    parser.add_argument("--negatives", type=int, default=1024)
    parser.add_argument("--tables", choices=["rows", "sharded", "dense"])
    parser.add_argument("--processes", type=int, default=1, help="of a step, or of sequences")
    parser.add_argument("--cases", type=int, default=10_000, help="of an evaluation")
    parser.add_argument("--draws", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout-s", type=float, default=3600.0, help="a figure")
    return parser


if __name__ == "__main__":
    main()
