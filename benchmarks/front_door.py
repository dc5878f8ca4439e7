"""From two files to everybody's list: mmkd beside RecTools, in lines and in seconds.

    python -m benchmarks.front_door --data FOLDER

FOLDER holds items.csv and interactions.csv.gz (user_id, item_id, timestamp). Both read the log,
train a SASRec of the same size on item ids and write the k best items of every user as parquet.
What a user writes is in benchmarks/peers/*_shop.py. Prints a table and writes
benchmarks/results/front_door.json.
"""

import argparse
import ast
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.measure import (
    ALLOCATORS,
    BenchmarkError,
    Help,
    environment,
    last_json_line,
    print_table,
    write_results,
)
from benchmarks.sasrec import peer_python

PEERS = Path(__file__).parent / "peers"
PHASES = ("import", "read", "fit", "recommend")
SIZES = ("epochs", "batch", "length", "k")


def main() -> None:
    """Parse the command line, measure, print and write."""
    options = _parser().parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for library in options.only:
            print(f"{library} ...", flush=True)
            try:
                rows.append(_run(library, Path(folder), options))
            except BenchmarkError as error:
                print(f"  not measured: {error}")
    settings = {name: getattr(options, name) for name in (*SIZES, "threads", "allocator")}
    settings["data"] = options.data.name
    print(f"\nfrom a log to lists, {', '.join(f'{k} {v}' for k, v in settings.items())}")
    _print(rows, epochs=options.epochs)
    print(f"\nwritten to {write_results('front_door', settings, rows)}")


def lines_of(script: Path) -> int:
    """Lines that a user writes: imports of libraries and the functions' bodies, as formatted.

    Docstrings, empty lines, comments and the ``def`` around a body are not counted.
    """
    source = script.read_text("utf-8")
    kept: set[int] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [node.names[0].name]
            if str(names[0]).partition(".")[0] not in sys.stdlib_module_names:
                kept.update(range(node.lineno, (node.end_lineno or 0) + 1))
        elif isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            kept.update(range(body[0].lineno, (body[-1].end_lineno or 0) + 1))
    lines = [line.strip() for line in source.splitlines()]
    return sum(bool(lines[n - 1]) and not lines[n - 1].startswith("#") for n in kept)


def _run(library: str, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    script = PEERS / f"{library}_shop.py"
    python = Path(sys.executable) if library == "mmkd" else peer_python(library)
    command = [str(python), str(PEERS / "phases.py"), library, str(script)]
    command += [str(options.data.absolute()), str(out)]
    for size in SIZES:
        command += [f"--{size}", str(getattr(options, size))]
    reply = last_json_line(
        command,
        environment=environment(threads=options.threads, allocator=options.allocator),
        timeout_s=options.timeout_s,
        label=library,
    )
    lists = pl.read_parquet(reply.pop("path"))
    return {"name": library, "lines": lines_of(script), "rows": len(lists), **reply}


def _print(rows: Sequence[Mapping[str, Any]], *, epochs: int) -> None:
    header = ["library", "version", "lines", *(f"{phase} s" for phase in PHASES), "s/epoch"]
    header += ["all s", "all, CPU s", "rows"]
    table = []
    for row in rows:
        seconds, cpu_seconds = row["seconds"], row["cpu_seconds"]
        table.append(
            [
                row["name"],
                row["version"],
                str(row["lines"]),
                *(f"{seconds[phase]:.1f}" for phase in PHASES),
                f"{seconds['fit'] / epochs:.1f}",
                f"{sum(seconds.values()):.1f}",
                f"{sum(cpu_seconds.values()):.1f}",
                f"{row['rows']:,}",
            ]
        )
    print_table(header, table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--only", nargs="+", choices=("mmkd", "rectools"), default=["mmkd", "rectools"]
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="sequences")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allocator", choices=sorted(ALLOCATORS), default="reuse")
    parser.add_argument("--timeout-s", type=float, default=3600, help="a library")
    return parser


if __name__ == "__main__":
    main()
