"""What a request costs: torch, onnxruntime, and a FAISS index, on one thread.

    python -m benchmarks.export --run FOLDER

FOLDER is a trained run. It is exported into temporary folders, and asked for the
ten best items of histories of its log (random ones of 1 to the longest length where the log is not
there), seen items left out: one history at a time, and batches. Prints a table of milliseconds a
request: the processor's (median; for a machine that others use too), the clock's median and 95th
percentile; and writes benchmarks/results/export.json.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

import mmkd
from benchmarks.measure import Help, print_table, write_results
from mmkd.errors import MmkdError
from mmkd.evaluation.ranking import top_k

K = 10
WARMUP = 5
Rows = NDArray[np.int64]


def main() -> None:
    """Parse the command line, measure, print and write."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    run = mmkd.load(options.run)
    histories = _histories(run, options.seed)
    ways: dict[str, Callable[[Rows], object]] = {"torch": _by_torch(run)}
    recalls: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as place:
        graphs = Path(place) / "graphs"
        run.export(graphs, onnx=True)
        encoder = _session(graphs / "encoder.onnx", options.threads)
        topk = _session(graphs / "topk.onnx", options.threads)
        ways["onnxruntime, encoder.onnx alone"] = _by_encoder(encoder)
        ways["onnxruntime, topk.onnx"] = _by_topk(topk, len(run.items))
        for spec in options.index:
            name, out = f"encoder.onnx + FAISS {spec}", Path(place) / spec
            recalls[name] = run.export(out, index=spec).recall
            ways[name] = _by_index(encoder, faiss.read_index(str(out / "index.faiss")))
        rows = [
            {
                "way": name,
                "batch": size,
                "recall@10": recalls.get(name),
                **_taken(ask, histories, size, options.requests),
            }
            for name, ask in ways.items()
            for size in options.batch
        ]
    lengths = [len(one) for one in histories]
    settings = {
        "run": run.recipe.name,
        "items": len(run.items),
        "networks": len(run.student.networks),
        "dim": int(run.item_vectors()[1].shape[1]),
        "mean_length": float(np.mean(lengths)),
        "threads": options.threads,
        "requests": options.requests,
    }
    print(f"\n{settings}\n")
    header = ("way", "batch", "computing ms", "median ms", "p95 ms", "recall@10")
    print_table(header, [_cells(row) for row in rows])
    print(f"\nwritten to {write_results('export', settings, rows)}")


def _histories(run: mmkd.Run, seed: int) -> list[Rows]:
    rng, longest = np.random.default_rng(seed), run.student.max_length or 50
    try:
        split = run.data.split
    except MmkdError:
        lengths = rng.integers(1, longest + 1, 1000)
        return [rng.integers(1, len(run.items) + 1, int(n)) for n in lengths]
    users = rng.permutation(split.user_count)[:1000]
    return [split.sequence(int(user))[-longest:] for user in users]


def _by_torch(run: mmkd.Run) -> Callable[[Rows], object]:
    def ask(history: Rows) -> object:
        rows = torch.from_numpy(history)
        who = torch.arange(len(rows)).repeat_interleave(rows.shape[1])
        scores = run.student.next_scores(rows)
        return top_k(scores, K, exclude_row=who, exclude_item=rows.flatten())

    return ask


def _by_topk(session: onnxruntime.InferenceSession, items: int) -> Callable[[Rows], object]:
    allowed, k = np.ones(items + 1, dtype=bool), np.array([K])

    def ask(history: Rows) -> object:
        given = {"history": history, "seen": history, "allowed": allowed, "k": k}
        return session.run(None, given)

    return ask


def _by_encoder(session: onnxruntime.InferenceSession) -> Callable[[Rows], object]:
    return lambda history: session.run(None, {"history": history})


def _by_index(session: onnxruntime.InferenceSession, index: Any) -> Callable[[Rows], object]:
    def ask(history: Rows) -> object:
        query = session.run(None, {"history": history})[0]
        _, found = index.search(query, K + history.shape[1])
        unseen = ~(found[:, :, None] == history[:, None]).any(2) & (found > 0)
        return [mine[kept][:K] for mine, kept in zip(found, unseen, strict=True)]

    return ask


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _taken(
    ask: Callable[[Rows], object], histories: Sequence[Rows], size: int, requests: int
) -> dict[str, float]:
    """Milliseconds of requests, each of other histories, padded to the longest of them."""
    taken, computed = [], []
    for number in range(WARMUP + requests):
        some = [histories[(number * size + n) % len(histories)] for n in range(size)]
        batch = np.zeros((size, max(map(len, some))), dtype=np.int64)
        for row, one in enumerate(some):
            batch[row, batch.shape[1] - len(one) :] = one
        start, start_computing = time.perf_counter(), time.process_time()
        ask(batch)
        computed.append(1000 * (time.process_time() - start_computing))
        taken.append(1000 * (time.perf_counter() - start))
    return {
        "computing_ms": round(float(np.median(computed[WARMUP:])), 3),
        "median_ms": round(float(np.median(taken[WARMUP:])), 3),
        "p95_ms": round(float(np.percentile(taken[WARMUP:], 95)), 3),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    recall = "-" if row["recall@10"] is None else f"{row['recall@10']:.3f}"
    times = [f"{row[name]:.2f}" for name in ("computing_ms", "median_ms", "p95_ms")]
    return [row["way"], str(row["batch"]), *times, recall]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--index", nargs="+", default=["Flat", "HNSW32", "IVF256,SQ8"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
