"""SeedFolder: one folder that holds a run a seed of one recipe, and what they come to together.

``seeds.json`` marks it, with the recipe's name and the seeds; ``seed-N`` is the run of seed N; once
all are finished ``summary.json`` holds their means with intervals, shaped as a run's result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkd import __version__
from mmkd.errors import RunError, outside
from mmkd.files import read_json, write_json, write_sealed_json
from mmkd.runs.folder import SEEDS_MARKER, RunFolder

_SUMMARY = "summary.json"
_REMEDY = "train the same seeds again with --resume, which writes it anew"


@dataclass(frozen=True)
class SeedFolder:
    """The runs of several seeds.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from mmkd.runs.seeds import SeedFolder
    >>> with TemporaryDirectory() as folder:
    ...     seeds = SeedFolder(Path(folder))
    ...     seeds.write(recipe="shop", seeds=(0, 7))
    ...     seeds.started, seeds.finished, [run.path.name for run in seeds.runs()]
    (True, False, ['seed-0', 'seed-7'])

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def started(self) -> bool:
        """Whether mmkd began to train seeds here."""
        return (self.path / SEEDS_MARKER).is_file()

    @property
    def finished(self) -> bool:
        """Whether all seeds are trained and summed up."""
        return self.started and (self.path / _SUMMARY).is_file()

    def write(
        self,
        *,
        recipe: str | None = None,
        seeds: Sequence[int] = (),
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what marks the folder, and the summary, or take away one that is out of date.

        Args:
            recipe: What is trained; with it goes ``seeds``, and a summary there is goes.
            seeds: All that belong to it.
            summary: What the runs come to.

        Raises:
            RunError: A file can't be written.
        """
        remedy = "give another folder with --out"
        with outside(RunError, self.path, "can't be written", remedy=remedy):
            if recipe is not None:
                (self.path / _SUMMARY).unlink(missing_ok=True)
                content = {"mmkd": __version__, "recipe": recipe, "seeds": [*seeds]}
                write_sealed_json(self.path / SEEDS_MARKER, content)
            if summary is not None:
                write_json(self.path / _SUMMARY, summary)

    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order they are trained in."""
        path = self.path / SEEDS_MARKER
        with outside(RunError, path, "damaged", remedy=_REMEDY, also=(TypeError, ValueError)):
            found = read_json(path, "recipe", "seeds")["seeds"]
            if not isinstance(found, list) or not all(isinstance(seed, int) for seed in found):
                raise TypeError("its seeds are no list of whole numbers")
        return tuple(found)

    def run(self, seed: int) -> RunFolder:
        """The run of a seed, which need not be there yet."""
        return RunFolder(self.path / f"seed-{seed}")

    def runs(self) -> tuple[RunFolder, ...]:
        """The runs of all seeds, which need not be there yet."""
        return tuple(self.run(seed) for seed in self.seeds())

    def summary(self) -> dict[str, Any]:
        """Read ``summary.json``; RunError where the seeds are not all trained."""
        path = self.path / _SUMMARY
        if not path.is_file():
            done = sum(run.finished for run in self.runs())
            raise RunError(
                f"{self.path}: {done} of {len(self.seeds())} seeds are trained; go on with the "
                "same command and --resume"
            )
        keys = ("seeds", "valid", "by_seed", "test", "seconds")
        with outside(RunError, path, "damaged", remedy=_REMEDY, also=(TypeError, ValueError)):
            return read_json(path, *keys)

    def check_free(self) -> None:
        """Raise RunError where there is something else than seeds' runs."""
        if self.started or not self.path.is_dir():
            return
        if found := sorted(path.name for path in self.path.iterdir()):
            raise RunError(
                f"{self.path}: is not empty and holds no seeds' runs ({SEEDS_MARKER} is missing; "
                f"there is {', '.join(found[:3])}); give another folder with --out"
            )


def find_seeds(name: str | Path, runs: Path) -> SeedFolder | None:
    """The runs of several seeds, by path or by name below ``runs``; None where there are none."""
    folders = (SeedFolder(path) for path in (Path(name), runs / name))
    return next((found for found in folders if found.started), None)


def members(path: Path) -> tuple[RunFolder, ...]:
    """The run in a folder; or those of all its seeds, where it holds several.

    Raises:
        RunError: Some of the seeds are not trained.
    """
    seeds = SeedFolder(path)
    if not seeds.started:
        return (RunFolder(path),)
    seeds.summary()
    return seeds.runs()


def seed_folders(runs: Path) -> list[SeedFolder]:
    """The folders of several seeds directly below a folder, by name."""
    return [SeedFolder(marker.parent) for marker in sorted(runs.glob(f"*/{SEEDS_MARKER}"))]
