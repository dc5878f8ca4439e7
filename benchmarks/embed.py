"""Throughput of the embedding run beside its limit: the model's bare forward.

    python -m benchmarks.embed                     # made-up texts and pictures, 1 and 2 processes
    python -m benchmarks.embed --data FOLDER --limit 1000 --precision float32

Ways of encoding the same inputs take turns in one run, so that a load from outside meets all of
them; the ratios are medians over the turns. Models are loaded before.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.embed_contestants import (
    PICTURE_MODEL,
    PictureForward,
    TextForward,
    precision_cost,
    quiet,
    sentence_model,
)
from benchmarks.embed_inputs import (
    catalogue,
    draw_pictures,
    drawn_texts,
    recorded_items,
    recorded_pictures,
    recorded_texts,
    whole_words,
)
from benchmarks.measure import print_table, write_results
from benchmarks.table_runs import ProcessesRun, TableRun
from mmkd.data import ItemTable
from mmkd.encoders import EncoderCard, load_card

LIMIT, LIBRARY, TABLE = "bare forward", "SentenceTransformer.encode", "table()"
_RECALL_ITEMS = 4000


def take_turns(
    ways: Mapping[str, Callable[[], object]], repetitions: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds, and seconds of CPU of this process, of each way in each turn.

    A turn that is not counted comes first. On a machine that others use, the time of the CPU is
    the steadier of the two.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions + 1):
        for name, run in ways.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - cpu_started)
    first = slice(1, None)
    return {n: s[first] for n, s in seconds.items()}, {n: s[first] for n, s in cpu.items()}


def ratio(seconds: Mapping[str, Sequence[float]], way: str, to: str) -> float | None:
    """Throughput of one way over another's, the median over the turns; None where it has none."""
    if way not in seconds or to not in seconds:
        return None
    return statistics.median(b / a for a, b in zip(seconds[way], seconds[to], strict=True))


def compare(
    title: str,
    ways: dict[str, Callable[[], object]],
    table: TableRun,
    *,
    items: int,
    repetitions: int,
) -> list[dict[str, Any]]:
    """Rows of the results: each way's throughput and its ratios."""
    seconds, cpu = take_turns(ways, repetitions)
    rows: list[dict[str, Any]] = []
    for way, taken in seconds.items():
        row = {"run": title, "way": way, "items": items}
        row["items_per_s"] = items / statistics.median(taken)
        row["of_limit"], row["of_library"] = (ratio(seconds, way, to) for to in (LIMIT, LIBRARY))
        # the time of other processes is not this one's
        row["of_limit_cpu"] = ratio(cpu, way, LIMIT) if "processes" not in way else None
        row |= {"seconds": taken, "cpu_seconds": cpu[way]}
        if way == TABLE:
            row["in_encoder_s"] = table.in_encoder_s[-repetitions:]
            row["loading_s"] = table.loading_s
        rows.append(row)
    return rows


def compare_kind(
    card: EncoderCard,
    items: ItemTable,
    limit: Callable[[], object],
    library: Callable[[], object] | None,
    folder: Path,
    options: argparse.Namespace,
) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
    """All ways of encoding a catalogue with a card; the rows and the vectors of `table`."""
    title = f"{card.modality} {card.dtype}"
    sizes = (options.batch_size, options.shard_size)
    table = TableRun(card, items, folder / title, *sizes)
    ways: dict[str, Callable[[], object]] = {LIMIT: limit}
    if library is not None:
        ways[LIBRARY] = library
    ways[TABLE] = table.run
    several = []
    for processes in options.processes:
        if processes > 1:
            name = f"{TABLE}, {processes} processes"
            place = folder / f"{title} {processes}"
            several.append(
                ProcessesRun(
                    card, items, place, *sizes, processes=processes, threads=options.threads
                )
            )
            ways[name] = several[-1].run
    try:
        rows = compare(title, ways, table, items=len(items), repetitions=options.repetitions)
    finally:
        for run in several:
            run.close()
    return rows, table.vectors


def compare_texts(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Texts in each precision, and what a lower one costs."""
    rows: list[dict[str, Any]] = []
    exact: NDArray[np.float32] | None = None
    for precision in options.precision:
        card = load_card(options.card).model_copy(update={"dtype": precision})
        model = sentence_model(card)
        if options.data:
            texts = recorded_texts(recorded_items(options.data), options.limit)
        else:
            words = whole_words(model.tokenizer.get_vocab())
            texts = drawn_texts(words, options.limit)
        limit = TextForward(model, texts, options.batch_size)
        found, vectors = compare_kind(
            card,
            catalogue(texts=texts),
            limit.run,
            lambda model=model, texts=texts: model.encode(  # type: ignore[misc]
                texts, batch_size=options.batch_size, show_progress_bar=False
            ),
            folder,
            options,
        )
        if precision == "float32":
            exact = vectors
        elif exact is not None:
            cost = precision_cost(exact[:_RECALL_ITEMS], vectors[:_RECALL_ITEMS])
            found = [row | {"cost": cost} if row["way"] == TABLE else row for row in found]
        rows += found
    return rows


def compare_pictures(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Pictures in each precision, with a model of random weights."""
    if options.data:
        pictures = recorded_pictures(recorded_items(options.data), options.pictures)
    else:
        drawn = folder / "pictures"
        drawn.mkdir()
        pictures = draw_pictures(drawn, options.pictures)
    rows: list[dict[str, Any]] = []
    for precision in options.precision:
        card = EncoderCard(
            name="random-picture-tower",
            modality="image",
            kind="open_clip",
            model=PICTURE_MODEL,
            dtype=precision,
        )
        limit = PictureForward(pictures, options.batch_size, precision)
        rows += compare_kind(card, catalogue(pictures=pictures), limit.run, None, folder, options)[
            0
        ]
    return rows


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table, then where `table` spends its time and what precision costs."""
    header = ["", "items/s", "of the limit", "of the library", "of the limit, CPU time"]
    shown = []
    for row in rows:
        ratios = [row[key] for key in ("of_limit", "of_library", "of_limit_cpu")]
        cells = ["" if value is None else f"{value:.3f}" for value in ratios]
        shown.append([f"{row['run']}: {row['way']}", f"{row['items_per_s']:.1f}", *cells])
    print_table(header, shown)
    print()
    for row in (row for row in rows if row["way"] == TABLE):
        total, inside = (statistics.mean(row[key]) for key in ("seconds", "in_encoder_s"))
        print(
            f"{row['run']}: {total:.2f} s a run, {inside:.2f} s of it in the encoder; "
            f"the model loads in {row['loading_s']:.1f} s"
        )
        if cost := row.get("cost"):
            print(
                f"  beside float32: cosine {cost['cosine_mean']:.6f} on average, "
                f"{cost['cosine_min']:.6f} at least; neighbour recall@10 {cost['recall']:.4f}"
            )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with items.csv and its posters")
    parser.add_argument("--card", default="minilm-packaged", help="a sentence_transformer card")
    parser.add_argument("--limit", type=int, default=512, help="texts")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", choices=["text", "image"])
    options = parser.parse_args()

    import torch

    quiet()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mmkd-embed-") as name:
        if options.only != "image":
            rows += compare_texts(options, Path(name))
        if options.only != "text":
            rows += compare_pictures(options, Path(name))
    report(rows)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    write_results("embed", settings, rows)


if __name__ == "__main__":
    main()
