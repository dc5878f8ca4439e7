"""One stage of `million_items.py` in a process of its own: prints seconds and peak memory as JSON.

Started by it, not by hand: `python -m benchmarks.cache_stages STAGE FOLDER ITEMS DIM`. The encoder
is instant and its vectors are clustered, so what is measured is the cache.
"""

import argparse
import functools
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.child import STATUS, peak_bytes, restart_peak
from mmkd.data import ItemTable
from mmkd.embeddings import EmbeddingCache, EmbeddingTable
from mmkd.embeddings.encode import RunReport
from mmkd.encoders import EncoderCard
from mmkd.encoders.base import unit_rows
from mmkd.trust import trust_code

CHANGED = 1000
BATCH = 1000
ROWS = 10_000
RECALL_QUERIES = 200
_LATENT = 48
_CHANGED_FROM = 1 << 40


class Clustered:
    """Vectors [n, dim] around 5,000 centres, from texts that are numbers."""

    version: ClassVar[int] = 1
    modality = "text"

    def __init__(self, *, dim: int = 384) -> None:
        self.dim = dim
        draw = np.random.default_rng(0)
        self._centres = draw.standard_normal((5000, _LATENT), dtype=np.float32)
        self._near = 0.5 * draw.standard_normal((4099, _LATENT), dtype=np.float32)
        self._nearer = 0.4 * draw.standard_normal((6007, _LATENT), dtype=np.float32)
        self._out = draw.standard_normal((_LATENT, dim), dtype=np.float32)

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        """One vector a text."""
        number = np.array(inputs, dtype=np.int64)
        latent = self._centres[number * 7919 % 5000] + self._near[number % 4099]
        vectors: NDArray[np.float32] = (latent + self._nearer[number % 6007]) @ self._out
        return vectors


def catalogue(items: int, *, changed: int = 0) -> ItemTable:
    """Items whose texts are numbers; the last ``changed`` have other texts."""
    number, kept = np.arange(items), items - changed
    texts = pl.Series(np.where(number < kept, number, number - kept + _CHANGED_FROM))
    ids = pl.concat([pl.Series([""]), "i" + pl.Series(number).cast(pl.String)])
    nothing = pl.Series([None], dtype=pl.String)
    no_labels = pl.Series([[]], dtype=pl.List(pl.String)).new_from_index(0, items + 1)
    return ItemTable.of(
        pl.DataFrame(
            {
                "id": ids,
                "title": ids,
                "text": pl.concat([nothing, texts.cast(pl.String)]),
                "image_path": nothing.new_from_index(0, items + 1),
                "attributes": no_labels,
            }
        )
    )


class AnonymousPeak:
    """Peak of this process's anonymous memory: sampled, as the kernel keeps no mark of it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "AnonymousPeak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.bytes = max(self.bytes, anonymous_bytes())


def anonymous_bytes() -> int:
    """Anonymous resident memory now."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("folder", type=Path)
    parser.add_argument("items", type=int)
    parser.add_argument("dim", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--k", type=int, default=10, help="neighbours asked for")
    options = parser.parse_args()

    cache = EmbeddingCache(options.folder, dtype=options.dtype)
    kind = "benchmarks.cache_stages:Clustered"
    trust_code("benchmarks.cache_stages")
    card = EncoderCard(name="clustered", modality="text", kind=kind, options={"dim": options.dim})
    changed = CHANGED if options.stage in ("change", "index again") else 0
    items = catalogue(options.items, changed=changed)
    rows = np.random.default_rng(1).choice(options.items, BATCH, replace=False) + 1

    notes: dict[str, Any] = {}

    def told(report: RunReport) -> None:
        notes["encoded"] = report.encoded

    def table() -> EmbeddingTable:
        encoder = functools.partial(Clustered, dim=options.dim)
        return cache.table(card, items, encoder_factory=encoder, report=told)

    opened = None if options.stage in ("write", "table", "change") else table()
    if opened is not None and options.stage == "neighbours":
        cache.neighbours(opened, rows[:1], options.k)  # reads the index

    def reduce() -> None:
        from mmkd.distiller.reduction import fit_pca, present_rows  # and with it torch

        assert opened is not None
        vectors = present_rows(opened.vectors, opened.present)
        fit_pca(vectors, 128)(vectors)

    def search(count: int) -> Callable[[], object]:
        return lambda: cache.neighbours(opened or table(), rows[:count], options.k)

    def read() -> None:
        assert opened is not None
        drawn = np.random.default_rng(2).integers(1, options.items + 1, ROWS)
        numbers = [items.text[int(row)] for row in drawn[:100]]
        wanted = Clustered(dim=options.dim).encode(numbers)
        # not to the bit: products of other batches are rounded otherwise
        np.testing.assert_allclose(opened.vectors[drawn][:100], wanted, rtol=1e-3, atol=1e-4)

    stages: dict[str, Callable[[], object]] = {
        "write": table,
        "table": table,
        "rows": read,
        "index": search(1),
        "change": table,
        "index again": search(1),
        "neighbours": search(BATCH),
        "pca": reduce,
    }
    restart_peak()
    total, anonymous = peak_bytes(), anonymous_bytes()
    with AnonymousPeak() as peak:
        started, cpu = time.perf_counter(), time.process_time()
        stages[options.stage]()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    whole = peak_bytes()
    total, anonymous = whole - total, max(peak.bytes - anonymous, 0)
    if opened is not None and options.stage == "neighbours":
        notes |= against_all(cache, opened, rows[:RECALL_QUERIES], options.k)
    reply: dict[str, Any] = {"seconds": seconds, "cpu_s": cpu_s, "anonymous_bytes": anonymous}
    reply |= {"total_bytes": total, "process_bytes": whole, "notes": notes}
    print(json.dumps(reply))


def against_all(
    cache: EmbeddingCache, table: EmbeddingTable, rows: NDArray[np.int64], k: int
) -> dict[str, float]:
    """The index beside comparing with everything: recall@k, milliseconds a query."""
    cache.neighbours(table, rows[:1], k)  # reads the index
    started = time.perf_counter()
    for row in rows[:50]:
        cache.neighbours(table, np.array([row]), k)
    alone = time.perf_counter()
    found, _ = cache.neighbours(table, rows, k)
    together = time.perf_counter()
    exact = all_compared(table, rows, k)
    compared = time.perf_counter()
    hits = [len(set(a) & set(b)) / k for a, b in zip(found, exact, strict=True)]
    return {
        f"recall@{k}": round(float(np.mean(hits)), 4),
        "ms_a_query_alone": round(1e3 * (alone - started) / 50, 2),
        "ms_a_query_in_a_batch": round(1e3 * (together - alone) / len(rows), 2),
        "ms_a_query_all_compared": round(1e3 * (compared - together) / len(rows), 2),
    }


def all_compared(table: EmbeddingTable, rows: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The k nearest of each row ``[n, k]`` without an index: every cosine, in chunks."""
    queries = unit_rows(table.vectors[rows])
    best, cosines = np.zeros((len(rows), 0), np.int64), np.zeros((len(rows), 0), np.float32)
    for others, vectors in table.chunks():
        cosine = queries @ unit_rows(vectors).T  # [n, chunk]
        cosine[rows[:, None] == others] = -2
        cosines = np.concatenate([cosines, cosine], axis=1)
        best = np.concatenate([best, np.broadcast_to(others, cosine.shape)], axis=1)
        top = np.argpartition(-cosines, k, axis=1)[:, :k]
        cosines = np.take_along_axis(cosines, top, axis=1)
        best = np.take_along_axis(best, top, axis=1)
    return best


if __name__ == "__main__":
    main()
