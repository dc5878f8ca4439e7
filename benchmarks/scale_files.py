"""What `scale.py` measures of files: a log, a catalogue, a listing; and a store by stages.

Made-up files go to a folder, where a second run finds them, or to a temporary one.
"""

import gzip
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.catalogue import OPTIONS, write
from benchmarks.child import STATUS, Trial, peak_bytes
from benchmarks.measure import environment, last_json_line
from mmkd.column_files import write_parquet_parts
from mmkd.data import load_interactions, load_items
from mmkd.data.batches import BatchStream
from mmkd.data.interactions import InteractionLog, LeftOut
from mmkd.data.items import ItemTable
from mmkd.data.readers import read_sequences, write_sequences
from mmkd.data.splits import leave_one_out
from mmkd.data.tasks import NextItem
from mmkd.embeddings.shards import ShardStore
from mmkd.files import replacing

DIM = 64
_PART = 1_000_000  # events drawn at once
_EVENTS_A_USER = 50
_BATCHES = 100
_NEIGHBOURS = 20
_CHUNKS = 1000  # that ask what was committed meanwhile


def log(*, events: int, items: int, suffix: str, folder: str | None) -> Trial:
    """A log to sequences: ids of 9 and 10 letters, whole seconds, in the order of time.

    Then the same from a sequence file (``sequences_s``), which is written before (``written_s``).
    """
    root = _root(folder)
    path = root / f"log_{events}.{suffix}"
    if not path.exists():
        _write(path, _events(events, items))
    ids, catalogue = _items(items)
    few = ids.head(100).to_frame("item_id").with_columns(user_id=pl.lit("U"), timestamp=0)
    few.write_parquet(root / "few.parquet")
    load_interactions(catalogue, path="few.parquet", root=root)  # loads the libraries
    notes: dict[str, Any] = {}

    def run() -> float:
        cpu = time.process_time()
        whole, read = _lap(notes, "log_s"), _lap(notes, "read_s")
        found = load_interactions(catalogue, path=path.name, root=root)
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


def sequences(*, events: int, items: int, folder: str | None) -> Trial:
    """A sequence file, mapped and split, and the first batches of 256 of an epoch.

    What a process has to itself is ``own_gib``, all but the file's pages; ``own_before_gib`` of it
    are the libraries and the catalogue.
    """
    root = _root(folder)
    _, catalogue = _items(items)
    path = root / f"log_{events}.sequences"
    if not path.exists():
        draw = np.random.default_rng(0)
        users = events // _EVENTS_A_USER
        made = InteractionLog(
            user=np.repeat(np.arange(users, dtype=np.int32), _EVENTS_A_USER),
            item=draw.integers(1, items + 1, users * _EVENTS_A_USER, dtype=np.int32),
            timestamp=np.arange(users * _EVENTS_A_USER, dtype=np.float64),
            user_ids=tuple(f"U{number:09d}" for number in range(users)),
        )
        write_sequences(path, made, catalogue, options={}, left_out=LeftOut())
    notes: dict[str, Any] = {"own_before_gib": _own_gib(), "file_gib": _gib(path.stat().st_size)}
    kept: list[Any] = []

    def run() -> float:
        cpu = time.process_time()
        mapped = _lap(notes, "mapped_s")
        split = leave_one_out(read_sequences(path, catalogue)[0], items)
        mapped()
        stream = BatchStream(split, NextItem(), max_length=50, batch_size=256, seed=0)
        kept[:] = [split, stream, *islice(stream.epoch(0), _BATCHES)]
        notes["cpu_s"] = round(time.process_time() - cpu, 2)
        notes["own_gib"] = _own_gib()
        return float(kept[2].items.sum())

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


def stages(
    what: str, *, vectors: int, folder: str | None, threads: int, timeout_s: float
) -> dict[str, Any]:
    """An embedding store of so many vectors of 64, each stage a process of its own.

    Args:
        what: ``store`` writes it, opens it, reads 10,000 rows and carries it over after a change of
            1,000 items; ``index`` builds, asks and carries over the index of one.
        vectors: How many.
        folder: Where it goes, and a written store stays for the next; by default none does.
        threads: Of FAISS and NumPy.
        timeout_s: Of a stage.

    Returns:
        Of each stage its seconds, its processor's seconds and its process's peak, libraries and
        catalogue included; and what it noted.
    """
    told = ["write", "table", "rows", "change"]
    if what == "index":
        told = ["index", "neighbours", "index again"]
    found: dict[str, Any] = {}
    peaks = []
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mmkd-scale-", dir=folder) as empty:
        kept, place = Path(folder or empty) / f"store_{vectors}", str(Path(empty) / "cache")
        names = list(told) if what == "store" else ["write", *told[:-1], "change", told[-1]]
        if what == "index" and kept.exists():
            shutil.copytree(kept, place, copy_function=os.link)
            names.remove("write")
        for name in names:
            command = [sys.executable, "-m", "benchmarks.cache_stages", name, place]
            command += [str(vectors), str(DIM), "--k", str(_NEIGHBOURS)]
            reply = last_json_line(
                command,
                environment=environment(threads=threads, allocator="system"),
                timeout_s=timeout_s,
                label=f"{what} {name}",
            )
            if name == "write" and not kept.exists():
                shutil.copytree(place, kept, copy_function=os.link)
            if name not in told:
                continue
            key = name.replace(" ", "_")
            peaks.append(reply["process_bytes"])
            found |= {
                f"{key}_s": round(reply["seconds"], 2),
                f"{key}_cpu_s": round(reply["cpu_s"], 2),
                f"{key}_gib": round(peaks[-1] / 1024**3, 3),
            }
            encoded = reply["notes"].pop("encoded", None)
            found |= reply["notes"] if encoded is None else {f"{key}_encoded": encoded}
    return found | {"peak_gib": round(max(peaks) / 1024**3, 3)}


def _lap(notes: dict[str, Any], name: str) -> Any:
    """Notes the seconds until it is called."""
    began = time.perf_counter()

    def over() -> None:
        notes[name] = round(time.perf_counter() - began, 2)

    return over


def _own_gib() -> float:
    """What of this process's memory is no file's; 0 where the kernel does not tell."""
    if not STATUS.exists():
        return 0.0
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return _gib(int(lines["RssAnon"].split()[0]) * 1024)


def _gib(count: int) -> float:
    return round(count / 1024**3, 3)


_temporary: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends


def _root(folder: str | None) -> Path:
    if folder is None:
        _temporary.append(tempfile.TemporaryDirectory(prefix="mmkd-scale-"))
        return Path(_temporary[-1].name)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def _write(path: Path, parts: Iterator[pl.DataFrame]) -> None:
    """A log by its parts, in the format of its suffix; ``.gz`` after it packs it."""
    if path.suffix == ".parquet":
        write_parquet_parts(path, parts)
        return
    with replacing(path) as temporary:
        packed = path.suffix == ".gz"
        with gzip.open(temporary, "wb", 1) if packed else temporary.open("wb") as file:
            for number, part in enumerate(parts):
                if ".csv" in path.suffixes:
                    part.write_csv(cast(IO[bytes], file), include_header=number == 0)
                else:
                    part.write_ndjson(cast(IO[bytes], file))


def _items(items: int) -> tuple[pl.Series, ItemTable]:
    ids = pl.Series([f"B{number:08d}" for number in range(items)])
    return ids, _catalogue(ids)


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
