"""RunFolder: a run's parts to the files that training leaves behind, and the files back to parts.

``run.json`` marks the folder as a run: the recipe's name and digests of the data, of the encoders'
tables and of the run that it compresses, and once it is finished of every file, so that a damaged
one, or one of another run, is told before it is used. ``recipe.yaml`` holds what was run;
``items.parquet`` the id map and titles; ``users.parquet`` row number to external user id;
``student.json`` and ``student.safetensors`` the trained networks; ``reduction.safetensors`` how an
encoder's vectors became their modality tables, for items that come later; ``attributes.json`` the
labels they predicted; ``history.json`` one record an epoch; ``result.json`` the test metrics;
``test_ranks.parquet`` the rank of every test case, for paired tests (its ``user`` is a row of
``users.parquet``); ``data_items.parquet`` and ``data_interactions.parquet`` the tables that were
given as frames, to this run or to the one whose tables it reads; ``checkpoints/`` is there while it
trains. Every file is written whole or not at all; none is a pickle.
"""

import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmkd import __version__
from mmkd.column_files import read_parquet, write_parquet
from mmkd.data.items import ItemTable
from mmkd.errors import RunError, out_of_memory, outside
from mmkd.evaluation import CaseRanks
from mmkd.files import (
    copy_file,
    file_digest,
    read_json,
    read_records,
    remove_temporaries,
    replacing,
    sync,
    temporaries,
    write_json,
    write_sealed_json,
    write_text,
)
from mmkd.runs.frames import TABLES, frame_file
from mmkd.runs.placement import Placement, read_placements, write_placements
from mmkd.student import Ensemble, StudentSpec, backbone_class

_MARKER = "run.json"
SEEDS_MARKER = "seeds.json"  # of a folder that holds a run a seed
_LOCK = ".lock"
_SETTLED_NS = 100_000_000  # many ticks of a file system's clock: another write has another time
_KEPT = (  # what a run with added items has from the run it was
    "attributes.json",
    "data_interactions.parquet",
    "data_items.parquet",
    "history.json",
    "recipe.yaml",
    "reduction.safetensors",
    "users.parquet",
)
_FILES = (
    "attributes.json",
    "data_interactions.parquet",
    "data_items.parquet",
    "history.json",
    "items.parquet",
    "recipe.yaml",
    "reduction.safetensors",
    "result.json",
    "student.json",
    "student.safetensors",
    "test_ranks.parquet",
    "users.parquet",
)


@dataclass(frozen=True)
class RunFolder:
    """One run's folder.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from mmkd.runs.folder import RunFolder
    >>> with TemporaryDirectory() as folder:
    ...     run = RunFolder(Path(folder))
    ...     run.write(marker={"recipe": "shop", "data": {}}, users=["ann", "bob"])
    ...     run.started, run.finished, run.users()
    (True, False, ('ann', 'bob'))

    Attributes:
        path: The folder.
    """

    path: Path
    # of files that were read: name to what told then that they are as they were, and digest
    _digests: dict[str, tuple[tuple[int, ...], str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def recipe(self) -> Path:
        """The file of the resolved recipe; RunError unless it is the one that was written."""
        return self._file("recipe.yaml") if self.finished else self.path / "recipe.yaml"

    def frame(self, name: str) -> Path:
        """The file of a table that was given as a frame, ``items`` or ``interactions``."""
        return frame_file(self.path, name)

    @property
    def started(self) -> bool:
        """Whether mmkd began a run here."""
        return (self.path / _MARKER).is_file()

    @property
    def finished(self) -> bool:
        """Whether training is done, with the test if its recipe has one."""
        return self.started and (self.path / "result.json").is_file()

    @property
    def shared(self) -> bool:
        """Whether it came from the hub, without what only its owner has: log, users, ranks."""
        return self.started and bool(self.marker().get("shared"))

    @property
    def bare(self) -> bool:
        """Whether a run was begun and killed before its recipe followed its marker."""
        kept = {self.frame(name).name for name in TABLES}
        return self.started and set(self._content()) - kept == {_MARKER}

    def write(
        self,
        *,
        marker: Mapping[str, Any] | None = None,
        recipe: str | None = None,
        frames: Mapping[str, pl.DataFrame | Path] | None = None,
        tables: Mapping[str, str] | None = None,
        items: ItemTable | None = None,
        users: Sequence[str] | None = None,
        spec: StudentSpec | None = None,
        placements: Mapping[str, Placement] | None = None,
        student: Ensemble | None = None,
        kept_of: "RunFolder | None" = None,
        attributes: Sequence[str] | None = None,
        ranks: CaseRanks | None = None,
        history: Sequence[Mapping[str, Any]] | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what is given, each into its own file; the only way in.

        Args:
            marker: What the run is begun with: ``recipe``, its name; ``data``, of
                ``data_digests``; ``teacher``, of ``weights_digest`` of the run it compresses;
                ``added``, where items were added without training: how many ``items``, to which
                ``run``, as a path from this one; ``shared``, where it is for the hub.
            recipe: What is run, as YAML.
            frames: The tables that are no files elsewhere, or another run's: ``items``,
                ``interactions``; or the files that are copied.
            tables: The embedding tables, modality to key, added to the marker once they are known.
            items: The catalogue it trains on.
            users: Which external id each user row stands for.
            spec: What the networks are built from again.
            placements: Modality to how its encoder's vectors became the networks' table.
            student: The networks' weights; training writes its own when they are the best so far.
            kept_of: A run whose recipe, users, history, placements and attributes are copied.
            attributes: What the attribute heads predicted: label number c is ``names[c - 1]``.
            ranks: Every test case's rank.
            history: A record an epoch.
            result: Its presence says that the run is finished, so that no checkpoint is kept.

        Raises:
            RunError: A file can't be written.
        """
        with outside(
            RunError, self.path, "can't be written", remedy="give another folder with --out"
        ):
            if marker is not None:
                content = dict.fromkeys(("mmkd", "recipe", "data", "tables", "teacher"))
                self._mark(content | {"mmkd": __version__} | dict(marker))
            if recipe is not None:
                write_text(self.path / "recipe.yaml", recipe)
            for name, frame in (frames or {}).items():
                if isinstance(frame, Path):
                    copy_file(frame, self.frame(name))
                else:
                    write_parquet(self.frame(name), frame)
            if tables is not None:
                self._mark(self.marker() | {"tables": dict(tables)})
            if items is not None:
                items.save(self.path / "items.parquet")
            if users is not None:
                schema = {"row": pl.Int64, "user": pl.String}
                columns = {"row": range(len(users)), "user": list(users)}
                write_parquet(self.path / "users.parquet", pl.DataFrame(columns, schema=schema))
            if spec is not None:
                write_json(self.path / "student.json", spec.to_json())
            if placements is not None:
                with replacing(self.path / "reduction.safetensors") as temporary:
                    write_placements(temporary, placements)
            if student is not None:
                with replacing(self.path / "student.safetensors") as temporary:
                    state = student.state_dict()
                    save_file({k: v.contiguous() for k, v in state.items()}, temporary)
            for name in _KEPT if kept_of is not None else ():
                if (cast(RunFolder, kept_of).path / name).is_file():
                    copy_file(cast(RunFolder, kept_of)._file(name), self.path / name)
            if attributes is not None:
                write_json(self.path / "attributes.json", {"names": list(attributes)})
            if ranks is not None:
                columns = {field.name: getattr(ranks, field.name) for field in fields(ranks)}
                write_parquet(self.path / "test_ranks.parquet", pl.DataFrame(columns))
            if history is not None:
                write_json(self.path / "history.json", history)
            if result is not None:
                self._finish(result)

    def marker(self) -> dict[str, Any]:
        """Read ``run.json``."""
        with self._reading(_MARKER) as path:
            marker = read_json(path, "mmkd", "recipe", "data", "tables")
            for key in ("data", "files"):
                if not isinstance(marker.get(key, {}), dict):
                    raise TypeError(f"{key} is no mapping")
        return marker

    def check_files(self) -> None:
        """Raise RunError unless all files of a finished run are there, as it wrote them."""
        for name in self.marker().get("files") or () if self.finished else ():
            self._file(name)

    def items(self) -> ItemTable:
        """The catalogue as it was trained on; row r is item r."""
        with self._reading("items.parquet") as path:
            return ItemTable.load(path)

    def users(self) -> tuple[str, ...]:
        """External user ids; the ``user`` of a case is an index into them."""
        with self._reading("users.parquet") as path:
            return tuple(read_parquet(path)[0]["user"].to_list())

    def student_spec(self) -> StudentSpec:
        """Read ``student.json``."""
        with self._reading("student.json") as path:
            return StudentSpec.from_json(read_json(path))

    def student(self, *, device: torch.device | str = "cpu") -> Ensemble:
        """The trained networks in evaluation mode."""
        self._file("student.safetensors")
        spec = self.student_spec()
        with self._reading("items.parquet") as path:  # its rows alone are read: padding and items
            count = len(read_parquet(path, ["id"])[0]) - 1
        if spec.item_count != count:
            raise RunError(
                f"{self.path}: student.json is about {spec.item_count} items and items.parquet "
                f"about {count}, so they are of different runs; put the right ones back"
            )
        try:
            backbone_class(spec.backbone["kind"])
        except ValueError as error:  # the file is sound: it is the class that is not here
            raise RunError(f"{self.path}: {error}") from error
        with self._reading("student.safetensors") as path, safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
        with self._reading("student.json"):
            spec.check_weights(shapes)
            student = spec.build()
        with self._reading("student.safetensors") as path:
            student.load_state_dict(load_file(path))
        return student.to(device).eval()

    def placements(self) -> dict[str, Placement]:
        """By modality how its encoder's vectors became the networks' table.

        Raises:
            RunError: An earlier version trained the run and did not keep it; or it is damaged.
        """
        if not (self.path / "reduction.safetensors").is_file():
            raise RunError(
                f"{self.path}: holds no reduction.safetensors, without which an encoder's vector "
                "has no place in the trained space (runs of an earlier version lack it, and those "
                "without an encoder); train again (mmkd train) with an encoder"
            )
        with self._reading("reduction.safetensors") as path:
            return read_placements(path)

    def weights_digest(self) -> str:
        """SHA-256 of the trained weights, hexadecimal."""
        with self._reading("student.safetensors"):
            return self._digest("student.safetensors")

    def ranks(self) -> CaseRanks:
        """Every test case's rank; RunError where the training ended without a test."""
        with self._reading("test_ranks.parquet") as path:
            table = read_parquet(path)[0]
            columns = {column: table[column].to_numpy() for column in table.columns}
            top = np.asarray(table["top_items"].to_list(), dtype=np.int64).reshape(len(table), -1)
            return CaseRanks(**(columns | {"top_items": top}))

    def history(self) -> list[dict[str, Any]]:
        """A record an epoch."""
        with self._reading("history.json") as path:
            return read_records(path)

    def result(self) -> dict[str, Any]:
        """Read ``result.json``."""
        mappings = ("valid", "seconds")
        with self._reading("result.json") as path:
            numbers = ("best_epoch", "epochs", "peak_memory_bytes", "processes")
            result = read_json(path, *numbers, *mappings, "test")
            # test: None where the training ended without; baselines: where they were evaluated
            also = [key for key in ("test", "baselines") if result.get(key) is not None]
            for key in (*mappings, *also):
                if not isinstance(result[key], dict):
                    raise TypeError(f"{key} is no JSON object")
        return result

    def check_data(self, data: Mapping[str, str]) -> None:
        """Raise RunError unless the data is what the run was begun with.

        Args:
            data: Of ``data_digests``, now.
        """
        if added := self.marker().get("added"):
            raise RunError(
                f"{self.path}: holds {added['items']} items that were added without training, of "
                f"which its recipe's data knows nothing; evaluate {self._origin(added['run'])}"
            )
        self._check_same("the data", self.marker()["data"], data)

    def _origin(self, run: str) -> str:
        """In words, the run to which items were added, named from here; by 0.1 absolutely."""
        path = Path(os.path.normpath(self.path / run))
        if (path / _MARKER).is_file():
            return f"{path}, to which they were added"
        return f"the run {path.name} to which they were added (it is not at {path} any more)"

    def check_tables(self, tables: Mapping[str, str]) -> None:
        """Raise RunError unless the encoders' tables are what the run was begun with.

        Args:
            tables: Modality to the key of its embedding table, now.
        """
        known = self.marker()["tables"]
        if known is not None:  # else the run ended before they were encoded
            self._check_same("what the encoders read", known, tables)

    def check_teacher(self, digest: str | None) -> None:
        """Raise RunError unless the run to compress is what this one was begun with."""
        if self.marker().get("teacher") != digest:
            raise RunError(
                f"{self.path}: the run to compress changed since this run was begun; put the old "
                "one back, or train again (--overwrite, or another folder with --out)"
            )

    def check_free(self) -> None:
        """Raise RunError where there is no run but something else, which a run would bury."""
        if not self.started and (found := self._content()):
            raise RunError(
                f"{self.path}: is not empty and holds no run ({_MARKER} is missing; there is "
                f"{', '.join(found[:3])}); give another folder with --out"
            )

    def clear(self, *, keeping: Collection[Path] = ()) -> None:
        """Delete a run's own files; whatever else lies in the folder stays.

        Its recipe stays until the next one takes its place: both may be all that is left of what
        is to be trained.

        Args:
            keeping: Files that stay too, such as tables that are to be trained on again.

        Raises:
            RunError: The folder holds something that is no run.
        """
        self.check_free()
        if not self.started:
            return
        self.marker()  # somebody else's run.json is refused
        remedy = "give another folder with --out"
        with outside(RunError, self.path, "can't be cleared", remedy=remedy):
            kept = {path.resolve() for path in keeping} | {(self.path / "recipe.yaml").resolve()}
            # first: a run whose deletion is cut short must not look finished
            (self.path / "result.json").unlink(missing_ok=True)
            checkpoints = self.path / "checkpoints"
            if checkpoints.is_dir() and not checkpoints.is_symlink():
                shutil.rmtree(checkpoints)
            for name in _FILES:
                if (self.path / name).resolve() not in kept:
                    (self.path / name).unlink(missing_ok=True)
            sync(self.path)

    def remove(self) -> None:
        """Delete a run's own files and what says that there is one; whatever else there is stays.

        Raises:
            RunError: The folder holds something that is no run, or can't be written.
        """
        self.clear()
        with outside(RunError, self.path, "can't be cleared", remedy="give another folder"):
            for name in ("recipe.yaml", _MARKER):
                (self.path / name).unlink(missing_ok=True)

    @property
    def busy(self) -> bool:
        """Whether a process trains here."""
        if not (self.path / _LOCK).is_file():
            return False
        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out of the folder, which is made; a killed process frees it.

        Raises:
            RunError: Another process trains here, or the folder can't be written.
        """
        new = not self.path.exists()
        what = "can't be a run's folder, which --out sets"  # whatever the remedy
        with outside(RunError, self.path, what, remedy="give another one"):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / _LOCK)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise RunError(
                    f"{self.path}: another process is training here; wait for it, or give another "
                    "folder with --out"
                ) from error
        try:
            with outside(RunError, self.path, what, remedy="give another one"):
                remove_temporaries(self.path, older_than_s=0)  # of writers that were killed
            yield
        finally:
            lock.release()
            if new and not self._content():  # nothing was begun
                (self.path / _LOCK).unlink(missing_ok=True)
                with suppress(OSError):
                    self.path.rmdir()

    def tidy(self) -> None:
        """Remove what a killed training left in a finished run; a folder of another is left be."""
        if self.finished and ((self.path / "checkpoints").is_dir() or temporaries(self.path)):
            with suppress(RunError, OSError), self.locked():  # which removes temporaries
                self._remove_checkpoints()

    def _mark(self, content: Mapping[str, Any]) -> None:
        write_sealed_json(self.path / _MARKER, content)

    def _finish(self, result: Mapping[str, Any]) -> None:
        """List every file in the marker; ``result.json`` last, for what it promises is there."""
        path = self.path / "result.json"
        with replacing(path) as temporary:
            write_json(temporary, result)
            if self.started:
                files = {n: self.path / n for n in _FILES if (self.path / n).is_file()}
                files["result.json"] = temporary
                digests = {name: file_digest(file) for name, file in sorted(files.items())}
                self._mark(self.marker() | {"files": digests})
        self._remove_checkpoints()

    def _remove_checkpoints(self) -> None:
        checkpoints = self.path / "checkpoints"
        if not checkpoints.is_symlink():
            shutil.rmtree(checkpoints, ignore_errors=True)

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        """A file's path; what goes wrong inside says that the file is damaged.

        Raises:
            RunError: The file is missing, or can't be read as what it should be.
        """
        path = self._file(name)
        remedy = "put a copy of it back, or train the run again into another folder (--out)"
        with outside(RunError, path, "damaged", remedy=remedy, also=(TypeError,)):
            try:
                yield path
            # what a wrong content makes fail, another part's own refusal of it too: in one line
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                if out_of_memory(error):
                    raise
                lines = str(error).splitlines() or [type(error).__name__]
                raise TypeError(lines[0]) from error

    def _file(self, name: str) -> Path:
        """Where a file of a run is; RunError where it lacks it, or it is not what the run wrote."""
        path = self.path / name
        known = {} if name == _MARKER or not self.finished else self.marker().get("files", {})
        put_back = "put a copy of it back, or train the run again into another folder (--out)"
        if not path.is_file():
            if name in known:
                raise RunError(f"{path}: missing, though the run was finished with it; {put_back}")
            if known and self.shared:
                raise RunError(
                    f"{self.path}: came from the hub without {name}, which says who took what; "
                    "that stays with the one who trained it"
                )
            raise RunError(
                f"{self.path}: holds no {name}; name the folder of a run that was trained to its "
                "end (mmkd train RECIPE writes runs/NAME)"
            )
        if known:
            with outside(RunError, path, "can't be read", remedy=put_back):
                digest = self._digest(name)
            if known.get(name) != digest:  # one that is not listed is none of this run either
                raise RunError(
                    f"{path}: damaged (altered, or of another run: its digest is not the one in "
                    f"run.json); {put_back}"
                )
        return path

    def _digest(self, name: str) -> str:
        """A file's digest, taken once while nothing writes it; OSError where it can't be read."""
        path = self.path / name
        status = path.stat()
        told = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if (known := self._digests.get(name)) is not None and known[0] == told:
            return known[1]
        settled = time.time_ns() - status.st_ctime_ns > _SETTLED_NS
        digest = file_digest(path)
        if settled:
            self._digests[name] = told, digest
        return digest

    def _check_same(self, what: str, then: Mapping[str, str], now: Mapping[str, str]) -> None:
        changed = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
        if changed:
            raise RunError(
                f"{self.path}: {what} changed since this run was begun: {', '.join(changed)}; put "
                "the old data back, or train again (--overwrite, or another folder with --out)"
            )

    def _content(self) -> list[str]:
        unfinished = {path.name for path in temporaries(self.path)}
        return sorted({path.name for path in self.path.iterdir()} - unfinished - {_LOCK})


def find_run(name: str | Path, runs: Path) -> RunFolder:
    """A run by its path, or by its name below ``runs``.

    Raises:
        RunError: There is none; those that there are are named. Or it holds the runs of several
            seeds, which are named too.
    """
    for path in (Path(name), runs / name):
        if (run := RunFolder(path)).started:
            return run
        if (path / SEEDS_MARKER).is_file():
            inside = [run.path.name for run in run_folders(path)]
            raise RunError(
                f"{path}: holds the runs of several seeds ({', '.join(inside) or 'none yet'}); "
                f"name one of them, such as {path / (inside or ['seed-0'])[0]}; mmkd show, compare "
                "and report take all at once, and so does mmkd.SeedRuns"
            )
    known = ", ".join(run.path.name for run in run_folders(runs)) or "none"
    raise RunError(f"no run {name} (looked at {name} and {runs / name}); runs there are: {known}")


def run_folders(runs: Path) -> list[RunFolder]:
    """The runs directly below a folder, by name."""
    return [RunFolder(marker.parent) for marker in sorted(runs.glob(f"*/{_MARKER}"))]
