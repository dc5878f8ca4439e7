"""Export: an open run to a folder that a service loads without mmkd, and without torch.

``items.parquet`` and ``items.jsonl`` say which row is which item, ``vectors.safetensors`` and the
Parquet file hold the item vectors, ``encoder.onnx`` makes a query of a history, ``topk.onnx`` a
list, ``index.faiss`` finds the items of a query; ``export.json`` says how it all goes together. The
graphs are run before anything is written, on histories of the log and on random ones, and held to
what the run itself answers. The folder appears whole or not at all.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import polars as pl
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from mmkd import __version__
from mmkd.column_files import write_parquet
from mmkd.embeddings.index_kinds import default_kind, empty_index, train_index, widen
from mmkd.errors import CacheError, MmkdError, RunError, outside
from mmkd.evaluation.ranking import top_k
from mmkd.files import file_digest, replacing, replacing_folder, write_sealed_json
from mmkd.shipping import graphs
from mmkd.student import Ensemble, Retrieval

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

    from mmkd.pipeline.run import Run

ABOUT = "export.json"
FORMAT = 1
TOLERANCE = 1e-4
_K = 20
_OF_LOG = 256
_BATCHES = (1, 32)
_TIMED = 30
_LENGTHS = 128  # of which at most random histories are made
_CANDIDATES = 100
Histories = Sequence[NDArray[np.int64]]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        items: How many items.
        dim: Width of their vectors.
        files: By name, ``export.json`` among them.
        index: The FAISS factory string; None without an index.
        recall: Share of the ten best items of a query that the index finds; None without one.
        difference: The largest between the graphs' scores and the run's, relative above 1; None
            without graphs.
        checked: How many histories of the log and how many random ones that was measured on.
        milliseconds: By batch size what a request took through torch and through onnxruntime.
    """

    folder: Path
    items: int
    dim: int
    files: tuple[str, ...]
    index: str | None
    recall: float | None
    difference: float | None
    checked: tuple[int, int]
    milliseconds: Mapping[int, tuple[float, float]]


def export(
    run: "Run",
    folder: Path | str,
    *,
    onnx: bool = False,
    index: str | None = None,
    force: bool = False,
    seed: int = 0,
) -> Exported:
    """Write a run into a folder of its own; `mmkd.Run.export` in full.

    Args:
        run: The run.
        folder: Where to; not there yet, empty, or, with ``force``, an earlier export.
        onnx: Whether ``encoder.onnx`` and ``topk.onnx`` are made.
        index: ``faiss`` for the kind that suits the number of items, or a FAISS factory string;
            None makes no index.
        force: Whether an earlier export may be replaced.
        seed: Of the random histories that the graphs are checked on.

    Returns:
        What was written.

    Raises:
        MmkdError: ``mmkd[onnx]`` is not installed.
        RunError: The folder holds something, the index does not fit, an ensemble that adds
            probabilities is to be indexed, or a graph answers otherwise than the run.
    """
    target = Path(folder)
    _check_free(target, force=force)
    towers = Retrieval(run.student)
    if index is not None and not towers.dot:
        raise RunError(
            f"{run.folder.path}: adds its networks' probabilities (ensemble.inference: "
            "probabilities), which no inner product gives, so an index cannot find its items; "
            f"leave out --index, or make one network of them: mmkd compress {run.folder.path}"
        )
    rng = np.random.default_rng(seed)
    real, strange = _of_log(run, rng), _random(towers, rng)
    made: dict[str, ModelProto] = {}
    sessions: dict[str, InferenceSession] = {}
    difference: float | None = None
    milliseconds: dict[int, tuple[float, float]] = {}
    if onnx:
        encoder = graphs.encoder_graph(towers)
        made = {"encoder.onnx": encoder, "topk.onnx": graphs.topk_graph(towers, encoder)}
    remedy = "give another folder with --out"
    with (
        outside(RunError, target, "can't be written", remedy=remedy),
        replacing_folder(target) as new,
    ):
        _write_items(run, towers, new)
        for name, model in made.items():
            graphs.save_graph(model, new / name)
            sessions[name] = graphs.session(new / name, threads=torch.get_num_threads())
        if sessions:
            difference = _difference(run, towers, sessions, [*real, *strange], rng)
            milliseconds = _timed(run.student, sessions["topk.onnx"], [*real, *strange])
        kind, recall = None, None
        if index is not None:
            kind = default_kind(len(run.items)) if index == "faiss" else index
            built = _index(towers, kind)
            recall = _recall(towers, built, [*real, *strange])
            faiss.write_index(built, str(new / "index.faiss"))
        about = _about(run, towers, sessions, kind, recall)
        if sessions:
            histories = {"log": len(real), "random": len(strange), "longest": towers.length}
            about["checked"] = {"histories": histories, "largest_difference": difference}
        about["files"] = {
            file.name: {"sha256": file_digest(file), "bytes": file.stat().st_size}
            for file in sorted(new.iterdir())
        }
        write_sealed_json(new / ABOUT, about)
    return Exported(
        folder=target,
        items=len(run.items),
        dim=towers.vectors.shape[1],
        files=(*about["files"], ABOUT),
        index=kind,
        recall=recall,
        difference=difference,
        checked=(len(real), len(strange)) if sessions else (0, 0),
        milliseconds=milliseconds,
    )


def _check_free(folder: Path, *, force: bool) -> None:
    """Raise RunError where something stands that an export must not take the place of."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise RunError(f"{folder}: is no folder; give another one with --out")
    found = sorted(file.name for file in folder.iterdir())
    if not found:
        return
    if ABOUT not in found:
        raise RunError(
            f"{folder}: holds {found[0]} and no export ({ABOUT} is missing); give another folder "
            "with --out"
        )
    if not force:
        raise RunError(f"{folder}: holds an export; give --force to replace it, or another --out")
    known = {ABOUT, "items.parquet", "items.jsonl", "vectors.safetensors", "index.faiss"}
    known |= {f"{name}.onnx{end}" for name in ("encoder", "topk") for end in ("", ".data")}
    if others := [name for name in found if name not in known]:
        raise RunError(
            f"{folder}: holds {others[0]} beside an export, and would lose it; move it away, or "
            "give another folder with --out"
        )


def _write_items(run: "Run", towers: Retrieval, folder: Path) -> None:
    """Ids, titles and vectors; row 0 of the vectors is padding, so that a row is an index."""
    count, vectors = len(run.items), towers.vectors
    padded = torch.nn.functional.pad(vectors, (0, 0, 1, 0))  # [I+1, D]
    with replacing(folder / "vectors.safetensors") as temporary:
        save_file({"vectors": padded.contiguous()}, temporary)
    named = run.items.frame[1:].select(
        pl.int_range(1, count + 1, dtype=pl.Int64).alias("row"), "id", "title"
    )
    width = vectors.shape[1]
    column = pl.Series("vector", vectors.numpy(), dtype=pl.Array(pl.Float32, width))
    write_parquet(folder / "items.parquet", named.with_columns(column.cast(pl.List(pl.Float32))))
    named.write_ndjson(folder / "items.jsonl")


def _about(
    run: "Run",
    towers: Retrieval,
    sessions: Mapping[str, "InferenceSession"],
    kind: str | None,
    recall: float | None,
) -> dict[str, Any]:
    """What a service must know, for people and for programs."""
    spec, marker = run.folder.student_spec(), run.folder.marker()
    width = towers.vectors.shape[1]
    about: dict[str, Any] = {
        "format": FORMAT,
        "run": {
            "recipe": marker["recipe"],
            "weights_sha256": run.folder.weights_digest(),
            "data": marker["data"],
        },
        "items": len(run.items),
        "rows": "1 to items, as in items.parquet and items.jsonl; 0 is padding",
        "vectors": {
            "file": "vectors.safetensors",
            "tensor": "vectors",
            "shape": [len(run.items) + 1, width],
            "dtype": "float32",
            "normalized": False,
        },
        "history": {
            "dtype": "int64",
            "shape": ["batch", "length"],
            "order": "oldest first",
            "padding": "0, on the left; at least one item in each history",
            "length_read": towers.length,
        },
        "scores": _scoring(run.student, towers),
        "networks": [
            {"backbone": network["kind"], "columns": list(columns), "weight": share}
            for network, columns, share in zip(
                _backbones(spec.backbone, spec.ensemble, len(towers.columns)),
                towers.columns,
                towers.shares,
                strict=True,
            )
        ],
        "versions": {
            "mmkd": __version__,
            "torch": torch.__version__,
            "faiss": faiss.__version__,
            "safetensors": safetensors.__version__,
        },
    }
    if sessions:
        about["graphs"] = {name: graphs.shapes(graph) for name, graph in sessions.items()}
        about["graphs"]["opset"] = graphs.OPSET
        about["versions"] |= graphs.versions()
    if kind is not None:
        about["index"] = {
            "file": "index.faiss",
            "kind": kind,
            "metric": "inner product",
            "ids": "rows",
            "recall@10": recall,
        }
    return about


def _scoring(student: Ensemble, towers: Retrieval) -> dict[str, Any]:
    """How a query and a vector make a score."""
    told: dict[str, Any] = {
        "rule": "inner product" if towers.dot else "log of the sum of softmax probabilities",
        "temperature": 1.0,
        "item_bias": None,
        "networks_combined": student.inference,
        "untrained_offset": None,
    }
    if towers.dot:
        told["formula"] = "score = query . vector"
    else:
        told["formula"] = (
            "score = log(sum over networks of weight * softmax over all items of "
            "query[columns] . vector[columns])"
        )
    if towers.untrained is not None:
        told["untrained_offset"] = {
            "deviations": towers.offset,
            "items": int(towers.untrained.sum()),
        }
        if towers.dot:
            told["untrained_offset"]["column"] = towers.columns[-1][1]
        else:
            rows = towers.untrained.nonzero()[:, 0] + 1
            told["untrained_offset"]["rows"] = rows.tolist()
    return told


def _backbones(
    common: Mapping[str, Any], ensemble: Mapping[str, Any], count: int
) -> list[Mapping[str, Any]]:
    members = ensemble.get("members", 1)
    if isinstance(members, int):
        return [common] * count
    return [member.get("backbone") or common for member in members]


# ---- checks


def _of_log(run: "Run", rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Histories of the log, where it is there and as it was."""
    try:
        split = run.data.split
    except MmkdError:
        return []
    users = rng.permutation(split.user_count)[:_OF_LOG]
    return [rows for rows in (split.sequence(int(user)) for user in users) if len(rows)]


def _random(towers: Retrieval, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Two of each length that is read, or of many of them, and one that is longer."""
    longest = towers.length or 64
    lengths = np.unique(np.linspace(1, longest, min(longest, _LENGTHS)).round().astype(int))
    wanted = [*lengths, *lengths, longest + 3]
    return [rng.integers(1, towers.item_count + 1, int(length)) for length in wanted]


def _difference(
    run: "Run",
    towers: Retrieval,
    sessions: Mapping[str, "InferenceSession"],
    histories: Histories,
    rng: np.random.Generator,
) -> float:
    """The largest difference of the graphs' scores from the run's; RunError where it is too large.

    Each length by itself, one history at a time where there is one, and lengths together.
    """
    by_length: dict[int, list[NDArray[np.int64]]] = {}
    for rows in histories:
        by_length.setdefault(len(rows), []).append(rows)
    order = rng.permutation(len(histories))
    mixed = [[histories[i] for i in order[at : at + 32]] for at in range(0, len(order), 32)]
    largest = 0.0
    for batch in [*by_length.values(), *([rows] for rows in histories[:8]), *mixed]:
        allowed = rng.random(towers.item_count + 1) < 0.9
        found = _batch_difference(run, towers, sessions, _padded(batch), allowed)
        largest = max(largest, found)
        if not largest <= TOLERANCE:
            raise RunError(
                f"{run.folder.path}: onnxruntime's scores differ from torch's by {largest:.2g} on "
                f"histories of {len(batch[0])} items, wanted at most {TOLERANCE:g}, so nothing was "
                "written; leave out --onnx, and tell the developers of mmkd"
            )
    return largest


def _batch_difference(
    run: "Run",
    towers: Retrieval,
    sessions: Mapping[str, "InferenceSession"],
    history: NDArray[np.int64],
    allowed: NDArray[np.bool_],
) -> float:
    wanted = run.student.next_scores(torch.from_numpy(history))  # [B, I+1]
    query = torch.from_numpy(graphs.run(sessions["encoder.onnx"], history=history)[0])
    found = [_apart(towers.scores(query), wanted[:, 1:])]
    open_ = wanted.masked_fill(~torch.from_numpy(allowed), -torch.inf)
    row = torch.arange(len(history)).repeat_interleave(history.shape[1])
    seen = torch.from_numpy(history).flatten()
    k = min(_K, towers.item_count)
    _, best = top_k(open_, k, exclude_row=row, exclude_item=seen)
    given = _answer(sessions["topk.onnx"], history, allowed, k)
    items, scores = (torch.from_numpy(one) for one in given)
    found.append(_apart(scores, best))
    # ties may come in another order: each item must have the score that it is listed with
    own = torch.where(items > 0, wanted.gather(1, items), -torch.inf)
    found.append(_apart(scores, own))
    barred = (items[:, :, None] == torch.from_numpy(history)[:, None]) & (items > 0)[:, :, None]
    if bool(barred.any()) or not bool((torch.from_numpy(allowed)[items] | (items == 0)).all()):
        return float("inf")
    return max(found)


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to scores above 1; infinite where one side has no score."""
    none = torch.isinf(wanted)
    if not bool((torch.isinf(found) == none).all()) or bool(found.isnan().any()):
        return float("inf")
    apart = (found - wanted).abs() / wanted.abs().clamp(min=1.0)
    return float(apart.masked_fill(none, 0.0).max())


def _answer(
    graph: "InferenceSession", history: NDArray[np.int64], allowed: NDArray[np.bool_], k: int
) -> list[NDArray[Any]]:
    return graphs.run(graph, history=history, seen=history, allowed=allowed, k=np.array([k]))


def _timed(
    student: Ensemble, graph: "InferenceSession", histories: Histories
) -> dict[int, tuple[float, float]]:
    """Milliseconds a request of so many histories, ten items each: torch's and onnxruntime's."""
    allowed = np.ones(student.item_count + 1, dtype=bool)
    found = {}
    for size in _BATCHES:
        history = _padded([histories[n % len(histories)] for n in range(size)])
        if student.max_length is not None:
            history = history[:, -student.max_length :]
        rows = torch.from_numpy(history)
        row = torch.arange(size).repeat_interleave(rows.shape[1])

        def by_torch(rows: torch.Tensor = rows, row: torch.Tensor = row) -> None:
            top_k(student.next_scores(rows), 10, exclude_row=row, exclude_item=rows.flatten())

        def by_onnx(history: NDArray[np.int64] = history) -> None:
            _answer(graph, history, allowed, 10)

        found[size] = (_median_ms(by_torch), _median_ms(by_onnx))
    return found


def _median_ms(ask: Callable[[], None]) -> float:
    taken = []
    for _ in range(_TIMED):
        start = time.perf_counter()
        ask()
        taken.append(1000 * (time.perf_counter() - start))
    return median(taken)


def _padded(histories: Histories) -> NDArray[np.int64]:
    """[B, L] with zeros on the left."""
    length = max(map(len, histories))
    padded = np.zeros((len(histories), length), dtype=np.int64)
    for row, items in enumerate(histories):
        padded[row, length - len(items) :] = items
    return padded


# ---- the index


def _index(towers: Retrieval, kind: str) -> Any:
    """A FAISS index of the vectors by inner product, whose ids are rows."""
    vectors = towers.vectors.numpy()
    try:
        index = empty_index(kind, vectors.shape[1])
        train_index(index, kind, np.arange(len(vectors)), lambda rows: vectors[rows])
    except CacheError as error:
        raise RunError(str(error).replace("cache.index", "--index", 1)) from error
    widen(index, _CANDIDATES)
    mapped = faiss.IndexIDMap2(index)
    mapped.add_with_ids(vectors, np.arange(1, len(vectors) + 1))
    return mapped


def _recall(towers: Retrieval, index: Any, histories: Histories) -> float:
    """Share of the ten best items of each query that the index finds."""
    with torch.no_grad():
        query = torch.cat([towers(torch.from_numpy(rows)[None]) for rows in histories])
        k = min(10, towers.item_count)
        best = towers.scores(query).topk(k).indices.numpy() + 1
    _, found = index.search(query.numpy(), k)
    hits = [len({*mine} & {*theirs}) for mine, theirs in zip(best, found, strict=True)]
    return sum(hits) / (k * len(hits))
