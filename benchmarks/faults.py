"""What may happen to a cache and a run: kills, flipped bits, a full disk, two writers, a stranger.

    python -m benchmarks.faults                      # 30 kills each, 10 flips a file: half an hour
    python -m benchmarks.faults --kills 3 --flips 2

One row a fault: how often it was tried, and how often it ended as it must. A killed embedding or
training goes on to the very bits of one that nothing happened to; a flipped bit, a missing file and
a file of another run are told before they are used, and in the cache mended; a full disk is one
message, after which the same command ends as ever; a stranger's run imports nothing. Exit status 1
if anything did not.
"""

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import mmkd
from benchmarks import fault_train
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
        self._run(root / "first")  # encodes
        began = time.monotonic()
        self._run(self._whole)
        self._seconds = time.monotonic() - began

    def kills(self, count: int) -> Row:
        """Killed at a random moment, from the first to the last, and continued."""
        row = Row("train: SIGKILL, then --resume")
        for _ in range(count):
            folder = fault_train.fresh(self._root / "killed")
            process = fault_train.start(self._root, folder, self._epochs, {})
            time.sleep(float(self._draw.uniform(0, self._seconds)))
            process.kill()
            process.join()
            row.note(self._continued(folder))
        return row

    def full_disk(self) -> Row:
        """Each file that a training writes is the first that does not fit."""
        row = Row("train: disk full at each of its files")
        options = {"overwrite": True}
        for file in range(10_000):
            folder = fault_train.fresh(self._root / "full")
            status = fault_train.ended(
                fault_train.start(self._root, folder, self._epochs, options, full_at=file)
            )
            if status == 0:  # it writes no more files than that
                return row
            told = self._log(folder)
            wrong = "" if status == fault_train.TOLD and fault_train.FULL in told else told[-300:]
            row.note(wrong or self._continued(folder))
        return row

    def two_writers(self) -> Row:
        """A second training of a run while the first is at it."""
        row = Row("train: two writers of one run")
        folder = fault_train.fresh(self._root / "doubled")
        with RunFolder(folder).locked():
            second = fault_train.start(self._root, folder, self._epochs, {})
            status, told = fault_train.ended(second), self._log(folder)
        kept_out = status == fault_train.TOLD and "another process is training here" in told
        row.note("" if kept_out else f"status {status}: {told}")
        both = [fault_train.start(self._root, folder, self._epochs, {}) for _ in range(2)]
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
        process = fault_train.start(self._root, folder, self._epochs, {})
        while not list(folder.glob("checkpoints/step-*")) and process.is_alive():
            time.sleep(0.005)
        process.kill()
        process.join()
        (checkpoint,) = folder.glob("checkpoints/step-*")
        for path in sorted(checkpoint.iterdir()):
            row = Row(f"flip: checkpoint's {path.name}")
            for _ in range(count):
                back = fault_train.flipped(path, self._draw)
                resumed = fault_train.start(self._root, folder, self._epochs, {"resume": True})
                status, told = fault_train.ended(resumed), self._log(folder)
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

    def _run(self, folder: Path, **options: Any) -> None:
        status = fault_train.ended(fault_train.start(self._root, folder, self._epochs, options))
        if status != 0:
            raise RuntimeError(f"{folder}: status {status}: {self._log(folder)}")

    def _continued(self, folder: Path) -> str:
        """What is wrong after a run was resumed; empty if nothing."""
        process = fault_train.start(self._root, folder, self._epochs, {"resume": True})
        if (status := fault_train.ended(process)) != 0:
            return f"--resume: status {status}: {self._log(folder)[-300:]}"
        return fault_train.difference(folder, self._whole)

    def _log(self, folder: Path) -> str:
        """What was said since this was last asked."""
        log = folder.parent / f"{folder.name}.log"
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


def main() -> None:
    """Run, print, and exit with status 1 if anything did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--flips", type=int, default=10)
    parser.add_argument("--items", type=int, default=6000, help="of the embedding that is killed")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # a new process is forked from one that has imported everything: kills then meet the run itself
    preload = ["benchmarks.embed_run", "benchmarks.fault_train"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    with tempfile.TemporaryDirectory(prefix="mmkd-faults-") as name:
        root = Path(name)
        (root / "embed").mkdir()
        rows = embedding_rows(
            root / "embed", kills=options.kills, items=options.items, seed=options.seed
        )
        training = TrainingFaults(root, epochs=options.epochs, seed=options.seed)
        rows += [training.kills(options.kills), training.full_disk(), training.two_writers()]
        rows += [*training.flips(options.flips), training.stranger()]
    cells = [[row.fault, str(row.tried), str(row.survived)] for row in rows]
    print_table(["fault", "tried", "survived"], cells)
    for row in rows:
        for exception in row.exceptions:
            print(f"{row.fault}: {exception}")
    write_results("faults", vars(options), [asdict(row) for row in rows])
    sys.exit(any(row.exceptions for row in rows))


if __name__ == "__main__":
    main()
