"""The embedding cache at 10k, 100k and a million items: time and peak memory of every stage.

    python -m benchmarks.million_items
    python -m benchmarks.million_items --dim 768 --sizes 10000 100000

Each stage is a process of its own (`cache_stages.py`). Memory is what a stage adds at its peak to
the process with its libraries and, where the stage takes one, the catalogue loaded; ``anonymous``
leaves out mapped files, which the kernel takes back when it needs the room.
"""

import argparse
import itertools
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import MIB, last_json_line, print_table, write_results

STAGES = (
    "write", "table", "index", "neighbours", "change", "index again", "pca",
)  # fmt: skip
TIMEOUT_S = 3600


def main() -> None:
    """Measure all sizes and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"])
    parser.add_argument("--folder", type=Path, help="where the caches go; deleted afterwards")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {stage: [] for stage in options.stages}
    for items in options.sizes:
        folder = Path(tempfile.mkdtemp(prefix="mmkd-million-", dir=options.folder))
        try:
            for stage in options.stages:
                command = [sys.executable, "-m", "benchmarks.cache_stages", stage, str(folder)]
                command += [str(items), str(options.dim), "--dtype", options.dtype]
                reply = last_json_line(
                    command, environment=os.environ, timeout_s=TIMEOUT_S, label=f"{stage} {items}"
                )
                found[stage].append({"stage": stage, "items": items, **reply})
                print(f"{items} {stage}: {reply['seconds']:.2f} s", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(folder)
    header = ["stage", *(f"{n:,}" for n in options.sizes), "growth"]
    print(f"\nseconds ({options.dim} wide, {options.dtype})")
    print_table(header, [_row(stage, found[stage], "seconds", 1) for stage in options.stages])
    for name in ("anonymous", "total"):
        print(f"\npeak {name} memory, MiB")
        rows = [_row(stage, found[stage], f"{name}_bytes", MIB) for stage in options.stages]
        print_table(header, rows)
    notes = [(r["items"], r["notes"]) for rows in found.values() for r in rows if r["notes"]]
    print("\n" + "\n".join(f"{items:,}: {note}" for items, note in notes))
    settings = {"dim": options.dim, "dtype": options.dtype, "sizes": options.sizes}
    write_results("million_items", settings, [row for rows in found.values() for row in rows])


def _row(stage: str, measured: list[dict[str, Any]], figure: str, unit: float) -> list[str]:
    """A stage's figure at each size, and how it grew in each step."""
    values = [reply[figure] / unit for reply in measured]
    steps = itertools.pairwise(values)
    growth = " ".join(f"x{after / before:.1f}" for before, after in steps if before > 0)
    return [stage, *(f"{value:.2f}" for value in values), growth]


if __name__ == "__main__":
    main()
