"""What `scale.py` measures of files: a log, a catalogue, a listing; and a store by stages.

Made-up files go to a folder, where a second run finds them, or to a temporary one.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.catalogue import OPTIONS, write
from benchmarks.child import Trial, peak_bytes
from benchmarks.measure import last_json_line
from mmkd.data import load_interactions, load_items
from mmkd.data.interactions import LeftOut
from mmkd.data.items import ItemTable
from mmkd.data.readers import read_sequences, write_sequences
from mmkd.data.splits import leave_one_out
from mmkd.embeddings.shards import ShardStore
from mmkd.files import write_parquet_parts

DIM = 64
_PART = 1_000_000  # events drawn at once
_EVENTS_A_USER = 50
_CHUNKS = 1000  # that ask what was committed meanwhile


def log(*, events: int, items: int, folder: str | None) -> Trial:
    """Parquet to sequences: ids of 9 and 10 letters, whole seconds, in the order of time.

    Then the same from a sequence file (``sequences_s``), which is written before (``written_s``).
    """
    root = _root(folder)
    if not (root / f"log_{events}.parquet").exists():
        write_parquet_parts(root / f"log_{events}.parquet", _events(events, items))
    ids = pl.Series([f"B{number:08d}" for number in range(items)])
    catalogue = _catalogue(ids)
    few = ids.head(100).to_frame("item_id").with_columns(user_id=pl.lit("U"), timestamp=0)
    few.write_parquet(root / "few.parquet")
    load_interactions(catalogue, path="few.parquet", root=root)  # loads the libraries
    notes: dict[str, Any] = {}

    def run() -> float:
        cpu = time.process_time()
        whole, read = _lap(notes, "log_s"), _lap(notes, "read_s")
        found = load_interactions(catalogue, path=f"log_{events}.parquet", root=root)
        read()
        split = leave_one_out(found, items)
        whole()
        notes["cpu_s"] = round(time.process_time() - cpu, 2)
        notes["peak_gib"] = round(peak_bytes() / 1024**3, 3)
        file = root / f"log_{events}.sequences"
        written = _lap(notes, "written_s")
        write_sequences(file, found, catalogue, options={}, left_out=LeftOut())
        written()
        notes["file_gib"] = round(file.stat().st_size / 1024**3, 3)
        del found
        again = _lap(notes, "sequences_s")
        other = leave_one_out(read_sequences(file, catalogue)[0], items)
        again()
        assert np.array_equal(other.items, split.items)
        file.unlink()
        return float(notes["read_s"])

    return Trial(run, notes)


def catalogue(*, items: int, folder: str | None) -> Trial:
    """Parquet to an `ItemTable`: ids, titles, texts of 80 letters, pictures, two labels."""
    root = _root(folder) / f"catalogue_{items}"
    if not (root / "items.parquet").exists():
        root.mkdir(exist_ok=True)
        write(root, items)
    load_items(path="few.csv", root=root, **OPTIONS)  # loads the libraries
    notes: dict[str, Any] = {}
    kept = []

    def run() -> float:
        began = time.process_time()
        kept.append(load_items(path="items.parquet", root=root, **OPTIONS))
        notes["cpu_s"] = round(time.process_time() - began, 2)
        return len(kept[-1])

    return Trial(run, notes)


def listing(*, shards: int, folder: str | None) -> Trial:
    """A store's shards listed, and 1,000 chunks that each ask what was committed since."""
    store = ShardStore(_root(folder) / f"listing_{shards}")
    (store.folder / "shards").mkdir(parents=True, exist_ok=True)
    for number in range(1, shards + 1):
        store.path(number).touch()
        store.path(number).with_suffix(".parquet").touch()
    notes: dict[str, Any] = {}

    def run() -> float:
        cpu = time.process_time()
        once = _lap(notes, "once_s")
        seen = set(store.numbers())
        once()
        for _ in range(_CHUNKS):
            store.unseen(seen)
        notes["cpu_s"] = round(time.process_time() - cpu, 2)
        return len(seen)

    return Trial(run, notes)


def stages(what: str, *, vectors: int, folder: str | None, timeout_s: float) -> dict[str, Any]:
    """An embedding store of so many vectors of 64, each stage a process of its own.

    Args:
        what: ``store`` writes, opens and changes it; ``index`` builds, asks and carries over the
            index of one.
        vectors: How many.
        folder: Where it goes; it is deleted.
        timeout_s: Of a stage.
    """
    names = ["write", *(["table", "change"] if what == "store" else ["index", "neighbours"])]
    names += [] if what == "store" else ["change", "index again"]
    found: dict[str, Any] = {}
    peaks = []
    with tempfile.TemporaryDirectory(prefix="mmkd-scale-", dir=folder) as place:
        for name in names:
            command = [sys.executable, "-m", "benchmarks.cache_stages", name, place]
            command += [str(vectors), str(DIM)]
            before = _children_s()
            reply = last_json_line(
                command, environment=os.environ, timeout_s=timeout_s, label=f"{what} {name}"
            )
            key = name.replace(" ", "_")
            found |= {f"{key}_s": round(reply["seconds"], 2)}
            found |= {f"{key}_cpu_s": round(_children_s() - before, 2)}  # with its start
            found |= reply["notes"]
            if what == "store" or name not in ("write", "change"):
                peaks.append(reply["total_bytes"])
    return found | {"peak_gib": round(max(peaks) / 1024**3, 3)}


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _lap(notes: dict[str, Any], name: str) -> Any:
    """Notes the seconds until it is called."""
    began = time.perf_counter()

    def over() -> None:
        notes[name] = round(time.perf_counter() - began, 2)

    return over


_temporary: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends


def _root(folder: str | None) -> Path:
    if folder is None:
        _temporary.append(tempfile.TemporaryDirectory(prefix="mmkd-scale-"))
        return Path(_temporary[-1].name)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def _events(events: int, items: int) -> Iterator[pl.DataFrame]:
    draw = np.random.default_rng(0)
    users = max(events // _EVENTS_A_USER, 1)
    for start in range(0, events, _PART):
        count = min(_PART, events - start)
        user = pl.Series(draw.integers(0, users, count)).cast(pl.String).str.zfill(9)
        item: NDArray[np.int64] = (items * draw.random(count) ** 2).astype(np.int64)
        seconds = 1_600_000_000 + np.sort(draw.integers(start * 2, (start + count) * 2, count))
        yield pl.DataFrame(
            {
                "user_id": "U" + user,
                "item_id": "B" + pl.Series(item).cast(pl.String).str.zfill(8),
                "timestamp": seconds,
            }
        )


def _catalogue(ids: pl.Series) -> ItemTable:
    padded = pl.concat([pl.Series([""]), ids])
    nothing = pl.Series([None], dtype=pl.String).new_from_index(0, len(padded))
    labels = pl.Series([[]], dtype=pl.List(pl.String)).new_from_index(0, len(padded))
    return ItemTable.of(
        pl.DataFrame(
            {
                "id": padded,
                "title": padded,
                "text": nothing,
                "image_path": nothing,
                "attributes": labels,
            }
        )
    )
