"""What may happen to a cache and a run: kills, flipped bits, a full disk, two writers, a stranger.

    python -m benchmarks.faults                      # 30 kills each, 10 flips a file: half an hour
    python -m benchmarks.faults --kills 3 --flips 2 --inputs 50
    python -m benchmarks.faults --rows rows.jsonl    # goes on where it was interrupted

One row a fault: how often it was tried, and how often it ended as it must. A killed embedding or
training goes on to the very bits of one that nothing happened to; a flipped bit, a missing file and
a file of another run are told before they are used, and in the cache mended; a full disk is one
message, after which the same command ends as ever; a stranger's run imports nothing. Exit status 1
if anything did not.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import mmkd
from benchmarks import fault_train, malformed
from benchmarks.embed_faults import fault_run
from benchmarks.fault_run import Event
from benchmarks.measure import print_table, write_results
from mmkd.config.plan import plan
from mmkd.config.recipe import load_recipe
from mmkd.embeddings.upkeep import verify_cache
from mmkd.errors import MmkdError
from mmkd.files import read_json, write_json
from mmkd.pipeline.embed import embed
from mmkd.pipeline.evaluate import evaluate
from mmkd.runs.folder import RunFolder


@dataclass
class Row:
    """A fault.

    Attributes:
        fault: What was done.
        tried: How often.
        survived: How often it ended as it must.
        exceptions: What happened otherwise.
    """

    fault: str
    tried: int = 0
    survived: int = 0
    exceptions: list[str] = field(default_factory=list)

    def note(self, fault: str) -> None:
        """One trial, and what was wrong with it, if anything."""
        self.tried += 1
        self.survived += not fault
        if fault:
            self.exceptions.append(fault)


def embedding_rows(folder: Path, *, kills: int, items: int, seed: int) -> list[Row]:
    """Kills, damage and doubled writers of one store; see `embed_faults`."""
    events = fault_run(folder, items=items, kills=kills, shard_size=64, pause_s=4e-4, seed=seed)
    rows = {name: Row(name) for name in ("embed: SIGKILL", "embed: damaged", "embed: two writers")}
    for event in events:
        rows[_kind(event)].note(event.fault)
    return list(rows.values())


def _kind(event: Event) -> str:
    if event.moment.startswith(("kill ", "none")):
        return "embed: SIGKILL"
    return "embed: two writers" if "two writers" in event.moment else "embed: damaged"


class TrainingFaults:
    """One small training and all that happens to it.

    Args:
        root: Where the data, the cache and the runs go.
        epochs: Of the training.
        seed: Of the moments and the damage.
    """

    def __init__(self, root: Path, *, epochs: int, seed: int) -> None:
        self._root, self._epochs = root, epochs
        self._draw = np.random.default_rng(seed)
        self._whole = root / "whole"
        fault_train.small_recipe(root, epochs=epochs)
        self._whole_run(root / "first")  # encodes
        self._seconds = self._whole_run(self._whole)

    def kills(self, count: int) -> Row:
        """Killed at a random moment, from the first to the last, and continued."""
        row = Row("train: SIGKILL, then --resume")
        for _ in range(count):
            folder = fault_train.fresh(self._root / "killed")
            process = self._train(folder)
            time.sleep(float(self._draw.uniform(0, self._seconds)))
            process.kill()
            process.join()
            row.note(self._continued(folder))
        return row

    def full_disk(self) -> Row:
        """Each file that a training writes is the first that does not fit."""
        row = Row("train: disk full at each of its files")
        folder = self._root / "full"
        act = self._training(folder, overwrite=True)
        for wrong in self._starved(act, prepare=partial(fault_train.fresh, folder)):
            row.note(wrong or self._continued(folder))
        return row

    def commands_on_full_disk(self) -> Iterator[Row]:
        """Each file that another command writes is the first that does not fit; then it does."""
        for name, (arguments, out) in self._commands().items():
            row = Row(f"{name}: disk full at each of its files")
            act = partial(fault_train.commanded, *arguments)
            for wrong in self._starved(act, prepare=partial(fault_train.fresh, out)):
                row.note(wrong or self._repeated(act, out))
            if not row.tried:
                row.note("it wrote a file otherwise than by mmkd.files, or none")
            yield row

    def _commands(self) -> dict[str, tuple[list[str], Path]]:
        """Commands that write, by name: their arguments, and where they write to."""
        root, whole, data = self._root, str(self._whole), self._root / "data"
        recipe, new, made = root / "recipe.yaml", root / "new_items.csv", root / "made"
        fault_train.small_recipe(root, epochs=self._epochs).save(recipe)
        items = pl.read_csv(data / "items.csv")
        items.head(1).with_columns(item_id=pl.lit("brand-new")).write_csv(new)
        tables = ["--items", str(data / "items.csv"), "--events", str(data / "interactions.csv.gz")]
        kept = [str(recipe), f"cache.folder={made}"]
        item = str(items["item_id"][0])
        lists = {suffix: root / f"lists{suffix}" for suffix in (".parquet", ".csv", ".jsonl")}
        return {
            "embed": (["embed", *kept], made),
            "neighbours": (["neighbours", *kept, "--item", item, "--run", whole], made),
            "add-items": (["add-items", whole, str(new), "--out", str(made)], made),
            "compress": (["compress", whole, "--out", str(made), "--overwrite"], made),
            "init": (["init", *tables, "--out", str(root / "shop.yaml")], root / "shop.yaml"),
            "cp": (["cp", "quickstart", str(root / "copy.yaml")], root / "copy.yaml"),
            **{
                f"recommend to {suffix}": (
                    ["recommend", whole, "--all-users", "--out", str(file)],
                    file,
                )
                for suffix, file in lists.items()
            },
        }

    def _starved(self, act: Callable[[], None], *, prepare: Callable[[], object]) -> Iterator[str]:
        """What is wrong each time that one more file fits, until all do."""
        log = self._root / "starved.log"
        for file in range(10_000):
            prepare()
            status = fault_train.ended(fault_train.start(act, log=log, full_at=file))
            told = _said(log)
            if status == 0:
                return
            refused = status == fault_train.TOLD and fault_train.FULL in told
            right = refused or status == fault_train.SPARED
            yield "" if right else f"file {file}: status {status}: {told[-600:]}"

    def _repeated(self, act: Callable[[], None], out: Path) -> str:
        """What is wrong after the same command had room; empty if nothing."""
        log = self._root / "repeated.log"
        if (status := fault_train.ended(fault_train.start(act, log=log))) != 0:
            return f"again: status {status}: {_said(log)[-600:]}"
        left = [path.name for path in (out.parent, *out.rglob("*")) if path.name.endswith(".tmp")]
        return f"left behind: {', '.join(left)}" if left else ""

    def two_writers(self) -> Row:
        """A second training of a run while the first is at it."""
        row = Row("train: two writers of one run")
        folder = fault_train.fresh(self._root / "doubled")
        with RunFolder(folder).locked():
            second = self._train(folder)
            status, told = fault_train.ended(second), _said(_log(folder))
        kept_out = status == fault_train.TOLD and "another process is training here" in told
        row.note("" if kept_out else f"status {status}: {told}")
        both = [self._train(folder) for _ in range(2)]
        statuses = sorted(str(fault_train.ended(process)) for process in both)
        row.note("" if statuses == ["0", str(fault_train.TOLD)] else f"statuses {statuses}")
        row.note(fault_train.difference(folder, self._whole))
        return row

    def flips(self, count: int) -> Iterator[Row]:
        """One bit of each kind of file, told before it is used; in the cache mended."""
        run = RunFolder(self._whole)
        for path in sorted(self._whole.iterdir()):
            if path.name.startswith("."):
                continue
            row = Row(f"flip: {path.name}")
            for _ in range(count):
                back = fault_train.flipped(path, self._draw)
                row.note(_told(run.check_files, path.name))
                back()
            yield row
        yield from self._checkpoint_flips(count)
        yield from self._cache_flips(count)

    def _checkpoint_flips(self, count: int) -> Iterator[Row]:
        folder = fault_train.fresh(self._root / "paused")
        process = self._train(folder)
        while not list(folder.glob("checkpoints/step-*")) and process.is_alive():
            time.sleep(0.005)
        process.kill()
        process.join()
        (checkpoint,) = folder.glob("checkpoints/step-*")
        for path in sorted(checkpoint.iterdir()):
            row = Row(f"flip: checkpoint's {path.name}")
            for _ in range(count):
                back = fault_train.flipped(path, self._draw)
                resumed = self._train(folder, resume=True)
                status, told = fault_train.ended(resumed), _said(_log(folder))
                named = f"{path.name}: damaged" in told
                row.note("" if status == fault_train.TOLD and named else f"status {status}: {told}")
                back()
            yield row

    def _cache_flips(self, count: int) -> Iterator[Row]:
        cache = self._root / "cache"
        planned = plan(fault_train.small_recipe(self._root, epochs=self._epochs))
        items = planned.load_data().items
        wanted = {name: np.asarray(t.vectors[:]) for name, t in embed(planned, items).items()}
        kinds = {
            path.suffix if path.suffix == ".npy" else path.name.lstrip("0123456789"): path
            for path in sorted(cache.rglob("*"))
            if path.suffix in (".npy", ".parquet", ".json")
        }
        kinds.pop(
            "verified.json", None
        )  # says what need not be read again, and is no more than that
        for kind, path in kinds.items():
            row = Row(f"flip: cache's {kind}")
            for _ in range(count):
                fault_train.flipped(path, self._draw)
                noticed = bool(verify_cache(cache)[1])
                found = {n: np.asarray(t.vectors[:]) for n, t in embed(planned, items).items()}
                same = all(np.array_equal(found[name], wanted[name]) for name in wanted)
                mended = not verify_cache(cache)[1]
                row.note("" if noticed and same and mended else f"{noticed=} {same=} {mended=}")
            yield row

    def stranger(self) -> Row:
        """A run whose files name code, or networks that its weights do not confirm."""
        row = Row("a stranger's run: used, nothing of it run")
        code = self._root / "strangers_code.py"
        code.write_text(f"open({str(self._root / 'ran')!r}, 'w')\n", "utf-8")
        sys.path.insert(0, str(self._root))
        networks: list[tuple[dict[str, Any], str]] = [
            ({"backbone": {"kind": "strangers_code:Network"}}, "--trust-code strangers_code"),
            ({"backbone": {"kind": "os:system"}}, "--trust-code os"),
            ({"backbone": {"kind": "sasrec", "layers": 10**9}}, "layers"),
            ({"ensemble": {"members": 10**9}}, "members"),
            ({"ensemble": {"members": 2}}, "members"),
        ]
        for student, words in networks:
            run = self._foreign(student=student)
            row.note(_told(lambda run=run: run.student(), words))
        cards = [
            ("kind: strangers_code:Encoder", "--trust-code strangers_code"),
            (
                "kind: sentence_transformer\nmodel: package:strangers_code",
                "--trust-code strangers_code",
            ),
            (
                "kind: sentence_transformer\nmodel: a/stranger\ntrust_remote_code: true",
                "--trust-code model:a/stranger",
            ),
        ]
        for content, words in cards:
            card = self._root / "card.yaml"
            card.write_text(f"modality: text\n{content}\n", "utf-8")
            run = self._foreign(card=card)
            evaluate(run.path)  # needs no encoder
            opened = mmkd.load(run.path)
            item = opened.items.ids[1]
            row.note(_told(lambda item=item, run=opened: run.similar([item], by="text"), words))
        row.note("it ran" if (self._root / "ran").exists() else "")
        sys.path.remove(str(self._root))
        return row

    def _foreign(
        self, *, student: dict[str, Any] | None = None, card: Path | None = None
    ) -> RunFolder:
        """A run as a stranger would give it: altered, and with digests that fit."""
        folder = fault_train.fresh(self._root / "foreign")
        shutil.copytree(self._whole, folder)
        run = RunFolder(folder)
        result = run.result()
        if student is not None:
            write_json(folder / "student.json", read_json(folder / "student.json") | student)
        if card is not None:
            (folder / "result.json").unlink()
            recipe = load_recipe(str(run.recipe), [f"encoders.text={card}"])
            run.write(recipe=recipe.to_yaml())
        run.write(result=result)
        return run

    def _whole_run(self, folder: Path) -> float:
        """A training that nothing happens to; the seconds that it takes."""
        began = time.monotonic()
        status = fault_train.ended(self._train(folder))
        if status != 0:
            raise RuntimeError(f"{folder}: status {status}: {_said(_log(folder))}")
        return time.monotonic() - began

    def _training(self, folder: Path, **options: Any) -> Callable[[], None]:
        return partial(fault_train.trained, self._root, folder, self._epochs, options)

    def _train(self, folder: Path, **options: Any) -> BaseProcess:
        return fault_train.start(self._training(folder, **options), log=_log(folder))

    def _continued(self, folder: Path) -> str:
        """What is wrong after a run was resumed; empty if nothing."""
        if (status := fault_train.ended(self._train(folder, resume=True))) != 0:
            return f"--resume: status {status}: {_said(_log(folder))[-600:]}"
        return fault_train.difference(folder, self._whole)


def _log(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.log"


def _said(log: Path) -> str:
    """What was said since this was last asked."""
    text = log.read_text("utf-8") if log.exists() else ""
    log.unlink(missing_ok=True)
    return text


def _told(use: Any, words: str) -> str:
    """Empty where a use is refused with a message that has these words."""
    try:
        use()
    except MmkdError as error:
        return "" if words in str(error) else str(error)
    return f"nothing was told ({words})"


class Journal:
    """Rows as they end, a part a line, so that faults that were tried need not be tried again.

    Args:
        path: The file; None keeps none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path and path.exists() else []
        self._parts = {part["part"]: part["rows"] for part in map(json.loads, lines)}

    def rows(self, part: str, tried: Callable[[], Iterable[Row]]) -> list[Row]:
        """A part's rows, from the file or by trying."""
        if part in self._parts:
            return [Row(**row) for row in self._parts[part]]
        rows = []
        for row in tried():
            print(f"{row.fault}: {row.survived} of {row.tried}", *row.exceptions, file=sys.stderr)
            rows.append(row)
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"part": part, "rows": [*map(asdict, rows)]}) + "\n")
        return rows


def _parts(root: Path, options: argparse.Namespace) -> dict[str, Callable[[], Iterable[Row]]]:
    """All that is tried, by name; a training is there from the first of its faults on."""

    @cache
    def training() -> TrainingFaults:
        return TrainingFaults(root, epochs=options.epochs, seed=options.seed)

    def embedding() -> list[Row]:
        folder = fault_train.fresh(root / "embed")
        folder.mkdir()
        return embedding_rows(folder, kills=options.kills, items=options.items, seed=options.seed)

    return {
        "embed": embedding,
        "train killed": lambda: [training().kills(options.kills)],
        "train on a full disk": lambda: [training().full_disk()],
        "commands on a full disk": lambda: training().commands_on_full_disk(),
        "two writers": lambda: [training().two_writers()],
        "flips": lambda: training().flips(options.flips),
        "stranger": lambda: [training().stranger()],
        "malformed": lambda: (
            Row(row.fault, row.tried, row.survived, row.exceptions)
            for row in malformed.rows(inputs=options.inputs, seed=options.seed)
        ),
    }


def main() -> None:
    """Run, print, and exit with status 1 if anything did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--flips", type=int, default=10)
    parser.add_argument("--items", type=int, default=6000, help="of the embedding that is killed")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--inputs", type=int, default=400, help="malformed ones of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="parts, such as flips")
    parser.add_argument("--rows", type=Path, help="a file: what is in it is not tried again")
    options = parser.parse_args()
    # a new process is forked from one that has imported everything: kills then meet the run itself
    preload = ["benchmarks.embed_run", "benchmarks.fault_train", *fault_train.LAZY]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    journal = Journal(options.rows)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mmkd-faults-") as name:
        parts = _parts(Path(name), options)
        if unknown := set(options.only) - parts.keys():
            parser.error(f"--only: got {', '.join(unknown)}, wanted some of {', '.join(parts)}")
        for part in options.only or parts:
            rows += journal.rows(part, parts[part])
    cells = [[row.fault, str(row.tried), str(row.survived)] for row in rows]
    print_table(["fault", "tried", "survived"], cells)
    for row in rows:
        for exception in row.exceptions:
            print(f"{row.fault}: {exception}")
    settings = {key: str(value) for key, value in vars(options).items()}
    write_results("faults", settings, [asdict(row) for row in rows])
    sys.exit(any(row.exceptions for row in rows))


if __name__ == "__main__":
    main()
