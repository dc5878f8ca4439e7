"""Reading a run's files: one that is missing or damaged is told with its name and a remedy."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmkd import __version__
from mmkd.data.items import ItemTable
from mmkd.errors import RunError
from mmkd.evaluation.ranking import CaseRanks
from mmkd.files import replacing, write_json
from mmkd.student import Ensemble, StudentSpec


def require(path: Path) -> None:
    """Raise RunError where a run lacks a file."""
    if not path.is_file():
        raise RunError(
            f"{path.parent}: holds no {path.name}; name the folder of a run that was trained to "
            "its end (mmkd train RECIPE writes runs/NAME)"
        )


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Give the path back; what goes wrong inside says that the file is damaged.

    Raises:
        RunError: The file is missing, or can't be read as what it should be.
    """
    require(path)
    try:
        yield path
    except (
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        SafetensorError,
        pl.exceptions.PolarsError,
    ) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise RunError(
            f"{path}: damaged ({lines[0]}); put a copy of it back, or train the run again into "
            "another folder (--out)"
        ) from error


def read_mapping(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: It is none, or lacks one of the keys.
    """
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    if missing := sorted(set(keys) - content.keys()):
        raise ValueError(f"lacks {', '.join(missing)}")
    return content


_MARKER = "run.json"
_LOCK = ".lock"
_FILES = (  # result.json first: a run whose deletion is cut short must not look finished
    "result.json",
    "attributes.json",
    "history.json",
    "items.parquet",
    "recipe.yaml",
    "student.json",
    "student.safetensors",
    "test_ranks.parquet",
    "users.parquet",
)
_RESULT_KEYS = (
    "best_epoch",
    "epochs",
    "peak_memory_bytes",
    "processes",
    "seconds",
    "test",
    "valid",
)


@dataclass(frozen=True)
class RunFolder:
    """One run's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def started(self) -> bool:
        """Whether mmkd began a run here."""
        return (self.path / _MARKER).is_file()

    @property
    def finished(self) -> bool:
        """Whether training and the test are done."""
        return self.started and (self.path / "result.json").is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out of the folder, which is made; a killed process frees it.

        Raises:
            RunError: Another process trains here, or the folder can't be written.
        """
        new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / _LOCK)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"{self.path}: another process is training here; wait for it, or give another "
                "folder with --out"
            ) from error
        except OSError as error:
            raise RunError(
                f"{self.path}: can't be a run's folder ({error.strerror or error}); give another "
                "one with --out"
            ) from error
        try:
            yield
        finally:
            lock.release()
            if new and not self._content():  # nothing was begun
                (self.path / _LOCK).unlink(missing_ok=True)
                with suppress(OSError):
                    self.path.rmdir()

    def check_free(self) -> None:
        """Raise RunError where there is no run but something else, which a run would bury."""
        if not self.started and (found := self._content()):
            raise RunError(
                f"{self.path}: is not empty and holds no run ({_MARKER} is missing; there is "
                f"{', '.join(found[:3])}); give another folder with --out"
            )

    def clear(self) -> None:
        """Delete a run's own files; whatever else lies in the folder stays.

        Raises:
            RunError: The folder holds something that is no run.
        """
        self.check_free()
        if not self.started:
            return
        self.marker()  # somebody else's run.json is refused
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        checkpoints = self.path / "checkpoints"
        if checkpoints.is_dir() and not checkpoints.is_symlink():
            shutil.rmtree(checkpoints)

    def mark(
        self,
        *,
        recipe: str,
        data: Mapping[str, str],
        teacher: str | None = None,
    ) -> None:
        """Write ``run.json``.

        Args:
            recipe: The recipe's name.
            data: Of ``data_digests``.
            teacher: Of ``weights_digest``, of the run it compresses.
        """
        content = {"mmkd": __version__, "recipe": recipe, "data": data, "tables": None}
        write_json(self.path / _MARKER, content | {"teacher": teacher})

    def mark_tables(self, tables: Mapping[str, str]) -> None:
        """Add the embedding tables, modality to key, to ``run.json`` once they are known."""
        write_json(self.path / _MARKER, self.marker() | {"tables": tables})

    def marker(self) -> dict[str, Any]:
        """Read ``run.json``."""
        with self._reading(_MARKER) as path:
            marker = read_mapping(path, "mmkd", "recipe", "data", "tables")
            if not isinstance(marker["data"], dict):
                raise TypeError("data is no mapping")
        return marker

    def check_data(self, data: Mapping[str, str]) -> None:
        """Raise RunError unless the data is what the run was begun with.

        Args:
            data: Of ``data_digests``, now.
        """
        self._check_same("the data", self.marker()["data"], data)

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

    def weights_digest(self) -> str:
        """SHA-256 of the trained weights, hexadecimal."""
        with self._reading("student.safetensors") as path, path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def items(self) -> ItemTable:
        """The catalogue as it was trained on; row r is item r."""
        with self._reading("items.parquet") as path:
            return ItemTable.load(path)

    def write_users(self, user_ids: Sequence[str]) -> None:
        """Keep which external id each user row stands for."""
        table = pl.DataFrame(
            {"row": range(len(user_ids)), "user": list(user_ids)},
            schema={"row": pl.Int64, "user": pl.String},
        )
        with replacing(self.path / "users.parquet") as temporary:
            table.write_parquet(temporary)

    def users(self) -> tuple[str, ...]:
        """External user ids; the ``user`` of a case is an index into them."""
        with self._reading("users.parquet") as path:
            return tuple(pl.read_parquet(path.read_bytes())["user"].to_list())

    def write_attributes(self, names: Sequence[str]) -> None:
        """Keep what the attribute heads predicted: label number c is ``names[c - 1]``."""
        write_json(self.path / "attributes.json", {"names": list(names)})

    def write_student_spec(self, spec: StudentSpec) -> None:
        """What ``student`` needs to rebuild the network."""
        write_json(self.path / "student.json", spec.to_json())

    def student_spec(self) -> StudentSpec:
        """Read ``student.json``."""
        with self._reading("student.json") as path:
            return StudentSpec.from_json(read_mapping(path))

    def student(self, *, device: torch.device | str = "cpu") -> Ensemble:
        """The trained networks in evaluation mode."""
        require(self.path / "student.safetensors")
        spec = self.student_spec()
        if spec.item_count != (count := len(self.items())):
            raise RunError(
                f"{self.path}: student.json is about {spec.item_count} items and items.parquet "
                f"about {count}, so they are of different runs; put the right ones back"
            )
        with self._reading("student.json"):
            student = spec.build()
        with self._reading("student.safetensors") as path:
            student.load_state_dict(load_file(path))
        return student.to(device).eval()

    def write_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``; its presence says that the run is finished."""
        write_json(self.path / "result.json", result)

    def result(self) -> dict[str, Any]:
        """Read ``result.json``."""
        with self._reading("result.json") as path:
            result = read_mapping(path, *_RESULT_KEYS)
            for key in ("test", "valid", "seconds"):
                if not isinstance(result[key], dict):
                    raise TypeError(f"{key} is no JSON object")
        return result

    def write_ranks(self, ranks: CaseRanks, name: str = "test") -> None:
        """Keep every case's rank."""
        table = pl.DataFrame(
            {
                "case": ranks.case,
                "user": ranks.user,
                "target": ranks.target,
                "rank": ranks.rank,
                "ties": ranks.ties,
                "top_items": ranks.top_items,
            }
        )
        with replacing(self.path / f"{name}_ranks.parquet") as temporary:
            table.write_parquet(temporary)

    def ranks(self, name: str = "test") -> CaseRanks:
        """Read the cases back."""
        with self._reading(f"{name}_ranks.parquet") as path:
            table = pl.read_parquet(path.read_bytes())
            columns = {column: table[column].to_numpy() for column in table.columns}
            top = np.asarray(table["top_items"].to_list(), dtype=np.int64).reshape(len(table), -1)
            return CaseRanks(**(columns | {"top_items": top}))

    def _reading(self, name: str) -> AbstractContextManager[Path]:
        return reading(self.path / name)

    def _check_same(self, what: str, then: Mapping[str, str], now: Mapping[str, str]) -> None:
        changed = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
        if changed:
            raise RunError(
                f"{self.path}: {what} changed since this run was begun: {', '.join(changed)}; put "
                "the old data back, or train again (--overwrite, or another folder with --out)"
            )

    def _content(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if path.name != _LOCK)


def run_folders(runs: Path) -> list[RunFolder]:
    """The runs directly below a folder, by name."""
    return [RunFolder(marker.parent) for marker in sorted(runs.glob(f"*/{_MARKER}"))]
