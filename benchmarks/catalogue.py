"""Reading a catalogue of 10k, 100k and a million items: seconds, and what the process grows by.

    python -m benchmarks.catalogue
    python -m benchmarks.catalogue --checkout ../before     # another version's mmkd, the same files

An item has an id, a title, a description, a picture and two attributes; its text is title and
description, about 80 characters. Each reading is a process of its own, its libraries loaded and
warm: ``csv`` and ``parquet`` are `load_items`, ``saved`` is `ItemTable.load` of a run's file.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KINDS = ("csv", "parquet", "saved")
WORDS = "a small red teapot of glazed clay with wooden handle made by hand for two cups".split()
OPTIONS: dict[str, Any] = {
    "title": "title",
    "text": "{title}. {description}",
    "image": "image",
    "attributes": "attributes",
}
MIB = 1024 * 1024
SETTLED_S = 2.0  # polars' allocator gives pages back half a second after they were freed


def main() -> None:
    """Measure all sizes and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--checkout", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], Path(options.child[1]))))
        return
    print(
        f"{'items':>9} {'from':8} {'seconds':>8} {'CPU':>6} {'grown by':>9} {'at peak':>9} row(id)"
    )
    for count in options.sizes:
        with tempfile.TemporaryDirectory(prefix="mmkd-catalogue-") as folder:
            write(Path(folder), count)
            for kind in KINDS:
                command = [sys.executable, __file__, "--child", kind, folder]
                environment = os.environ | {"PYTHONPATH": str(options.checkout.resolve())}
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{count} {kind}: {done.stderr}")
                found = json.loads(done.stdout)
                print(
                    f"{count:9,} {kind:8} {found['seconds']:8.2f} {found['cpu_s']:6.2f}"
                    f" {found['grown_bytes'] / MIB:5.0f} MiB {found['peak_bytes'] / MIB:5.0f} MiB"
                    f" {found['row_s'] * 1e6:4.0f} us"
                )


def write(folder: Path, count: int) -> None:
    """Draws a catalogue and writes it as CSV, as Parquet, and as a run keeps it."""
    import numpy as np
    import polars as pl

    draw = np.random.default_rng(0)

    def words(number: int) -> list[str]:
        chosen = draw.integers(0, len(WORDS), (count, number))
        return [" ".join(WORDS[word] for word in row) for row in chosen.tolist()]

    ids = [f"B{number:09d}" for number in draw.permutation(count)]
    brand, kind = draw.integers(0, 2000, count), draw.integers(0, 60, count)
    frame = pl.DataFrame(
        {
            "item_id": ids,
            "title": words(5),
            "description": words(12),
            "image": [f"pictures/{item_id[-2:]}/{item_id}.jpg" for item_id in ids],
            "attributes": [f"brand {b}|kind {k}" for b, k in zip(brand, kind, strict=True)],
        }
    )
    frame.write_csv(folder / "items.csv")
    frame.write_parquet(folder / "items.parquet")
    saved = pl.DataFrame(
        {
            "id": ["", *ids],
            "title": ["", *frame["title"]],
            "text": [None, *(frame["title"] + ". " + frame["description"])],
            "image_path": [None, *(f"{folder}/" + frame["image"])],
            "attributes": [[], *frame["attributes"].str.split("|")],
        }
    )
    saved.write_parquet(folder / "saved.parquet")
    frame.head(100).write_csv(folder / "few.csv")
    saved.head(100).write_parquet(folder / "few.parquet")


def measure(kind: str, folder: Path) -> dict[str, float]:
    """Reads one file once and looks an item up, in this process."""
    from mmkd.data import ItemTable, load_items

    load_items(path="few.csv", root=folder, **OPTIONS)  # what a first call loads is no catalogue's
    ItemTable.load(folder / "few.parquet")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident_bytes("VmRSS")
    started, cpu = time.perf_counter(), time.process_time()
    if kind == "saved":
        items = ItemTable.load(folder / "saved.parquet")
    else:
        items = load_items(path=f"items.{kind}", root=folder, **OPTIONS)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    gc.collect()
    time.sleep(SETTLED_S)
    grown, peak = resident_bytes("VmRSS") - before, resident_bytes("VmHWM") - before
    asked = [items.ids[row] for row in range(1, len(items), max(len(items) // 1000, 1))]
    items.row(asked[0])  # makes the index
    started = time.perf_counter()
    for item_id in asked:
        items.row(item_id)
    row_s = (time.perf_counter() - started) / len(asked)
    found = {"seconds": seconds, "cpu_s": cpu_s, "grown_bytes": grown, "peak_bytes": peak}
    return found | {"row_s": row_s}


def resident_bytes(mark: str) -> int:
    """Resident memory of this process now (VmRSS), or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{mark}:"))


if __name__ == "__main__":
    main()
