"""The page: opened runs to one HTML file that needs nothing else, and asks nobody for anything.

Every section is made by itself: what a run cannot tell, such as one whose data moved, is said in
its place. The templates escape whatever they are given; beside that a policy in the page itself
lets no script run but the page's own two, by their digests, and no request leave it.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from mmkd import __version__
from mmkd.data.splits import SequenceSplit
from mmkd.errors import Interrupted, MmkdError, RunError, outside
from mmkd.files import write_text
from mmkd.report import figures
from mmkd.report.cards import Cards
from mmkd.report.correlations import ModalityTypes, modality_types
from mmkd.report.lists import UserList, source_shares, user_lists
from mmkd.report.neighbours import Neighbourhood, neighbourhoods
from mmkd.report.rendering import TEMPLATES, not_installed, templates
from mmkd.runs.recommend import student_vectors
from mmkd.terminal import printable

if TYPE_CHECKING:
    from mmkd.pipeline.run import Run
    from mmkd.report.figures import Reported

T = TypeVar("T")
_EMBED = "window.vegaEmbed = vegaEmbed;"  # what a page calls, to be bundled with all it needs
_BESIDE = 2  # other runs that a chart has room for beside the baselines


def write_report(runs: "Reported | Sequence[Reported]", path: Path | str, *, seed: int = 0) -> Path:
    """Write a report of trained runs: one HTML file that works offline and can be mailed.

    >>> import mmkd
    >>> from mmkd.demo import make_synthetic
    >>> _ = make_synthetic("shop", items=60, users=120)
    >>> recipe = mmkd.load_recipe(
    ...     "quickstart", ["data.root=shop", "training.epochs=1", "training.cpu=true"]
    ... )
    >>> run = mmkd.train(recipe, folder="runs/shop")
    >>> mmkd.write_report([run], "shop.html").stat().st_size < 3_000_000
    True

    Args:
        runs: The one in question first; the others are compared with it. Of several seeds' runs
            (`mmkd.SeedRuns`) the figures are the means, and the lists those of the first seed.
        path: The file to write.
        seed: Of the draws of items and users that are shown.

    Returns:
        The file.

    Raises:
        MmkdError: ``mmkd[report]`` is not installed.
        RunError: There is no run, the file cannot be written, or the runs were trained on different
            data.
    """
    given = [*runs] if isinstance(runs, Sequence) else [runs]
    if not given:
        raise RunError("there is no run to report on; give one or more")
    return write_page(Path(path), lambda: _render(given, seed))


def write_page(file: Path, make: Callable[[], str]) -> Path:
    """Make a page and write it; RunError, before it is made, where the file is a folder."""
    if file.is_dir():
        raise RunError(f"{file}: is a folder; give the file to write, such as {file}/report.html")
    page = make()
    with outside(RunError, file, "cannot be written", remedy="give another file"):
        write_text(file, page)
    return file


@dataclass(frozen=True)
class Missing:
    """A section that cannot be shown.

    Attributes:
        reason: Why.
    """

    reason: str


class _Sections:
    """A run's sections, each made when a template asks for it."""

    def __init__(self, run: "Reported", others: Sequence["Reported"], seed: int) -> None:
        self._given, self._others, self._seed = run, others, seed
        self.seeds = [one.folder.path.name for one in figures.seeds_of(run)]
        self._run: Run = next(iter(figures.seeds_of(run)), cast("Run", run))  # whose lists they are
        self.name = figures.name_of(run)
        self.kind, self.report = figures.tested(run)
        self.k = figures.cutoff(self.report)
        self.metric = f"NDCG@{self.k}"
        self.result = self._run.result
        self.retention = {
            figure: figures.retention(run, figure) for figure in ("spearman", "recall@10")
        }
        self.recipe = printable(run.recipe.to_yaml(), keep="\n")

    @cached_property
    def headline(self) -> list[figures.Record]:
        return figures.headline(self._given, self._others)

    @cached_property
    def slices(self) -> list[figures.Record]:
        few = len(self._others) <= _BESIDE
        beside = self._others if few else [run for run in [self.ids_only] if run]
        return figures.by_slice(self._given, beside)

    @cached_property
    def ids_only(self) -> "Reported | None":
        """The first other run that reads ids only, where this one reads more."""
        if figures.reads_ids_only(self._run):
            return None
        return next((run for run in self._others if figures.reads_ids_only(run)), None)

    @cached_property
    def gains(self) -> "list[figures.Record] | Missing | None":
        ids = self.ids_only
        if ids is None or self.kind != "test":
            return None
        return _told(lambda: figures.gain_by_slice(self._given, ids, self._split))

    @property
    def ids_name(self) -> str | None:
        return None if self.ids_only is None else figures.name_of(self.ids_only)

    @cached_property
    def points(self) -> list[figures.Record]:
        return figures.points([self._given, *self._others])

    @cached_property
    def epochs(self) -> dict[str, list[figures.Record]]:
        return figures.epochs(self._run)

    @cached_property
    def neighbours(self) -> list[Neighbourhood] | Missing:
        def made() -> list[Neighbourhood]:
            return neighbourhoods(
                self._run.items,
                self._split,
                self._cards,
                student=student_vectors(self._run.student),
                encoders={
                    printable(name): np.asarray(table.vectors, dtype=np.float32)
                    for name, table in self._run.tables.items()
                },
                seed=self._seed,
            )

        return _told(made)

    @cached_property
    def users(self) -> list[UserList] | Missing:
        def made() -> list[UserList]:
            ranks = self._run.folder.ranks()
            return user_lists(
                ranks,
                self._split,
                self._run.folder.users(),
                self._cards,
                sources=self.sources,
                seed=self._seed,
            )

        return _told(made)

    @cached_property
    def sources(self) -> dict[str, NDArray[np.float32]] | None:
        """Source to its weight in each item's vector; None where there is one or no weights."""
        return source_shares(self._run.student)

    @cached_property
    def types(self) -> list[ModalityTypes] | Missing:
        def made() -> list[ModalityTypes]:
            distiller = self._run.distiller
            if distiller is None:
                return []
            return [
                modality_types(distiller, self._run.items, self._cards, name=name, seed=self._seed)
                for name in distiller.reduced
            ]

        return _told(made)

    @property
    def trained_on_types(self) -> bool:
        """Whether the correlations were part of the loss."""
        return self._run.recipe.objective.correlation is not None

    @cached_property
    def leanings(self) -> "tuple[dict[str, float | None], list[figures.Record]] | Missing":
        return _told(lambda: figures.leanings(self._run.folder.ranks(), self._split))

    @cached_property
    def absent(self) -> dict[str, dict[str, int]] | Missing:
        return _told(lambda: self._run.absent)

    @cached_property
    def item_count(self) -> int:
        return len(self._run.items)

    @property
    def _split(self) -> SequenceSplit:
        return self._run.data.split

    @cached_property
    def _cards(self) -> Cards:
        try:
            counts = self._split.train_counts()
        except MmkdError:
            counts = None
        return Cards(self._run.items, counts)


def _told(make: Callable[[], T]) -> T | Missing:
    try:
        return make()
    except Interrupted:
        raise
    except MmkdError as error:
        return Missing(printable(str(error)))


def _render(runs: Sequence["Reported"], seed: int) -> str:
    return render(
        "report.html",
        lambda: {
            "runs": [figures.name_of(run) for run in runs],
            "compared": figures.compared(runs) if len(runs) > 1 else [],
            "main": _Sections(runs[0], runs[1:], seed),
            "missing": lambda section: isinstance(section, Missing),
        },
    )


def render(template: str, content: Callable[[], Mapping[str, object]]) -> str:
    """A page of a template, with the style, the scripts and the policy that all pages have.

    Args:
        template: Its name.
        content: What it shows; asked for once it is known that a page can be made.

    Raises:
        MmkdError: ``mmkd[report]`` is not installed.
    """
    environment, bundle = templates(extra="report"), _bundle()
    from mmkd.report import charts

    script = (TEMPLATES / "report.js").read_text("utf-8")
    return environment.get_template(template).render(
        charts=charts,
        style=(TEMPLATES / "report.css").read_text("utf-8"),
        scripts=(bundle, script),
        policy=_policy(bundle, script),
        version=__version__,
        **content(),
    )


def _policy(*scripts: str) -> str:
    """What the page may do: its own scripts, by digest, pictures in it, and no request at all."""
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        f"form-action 'none'; script-src {allowed} 'unsafe-eval'"  # Vega compiles its expressions
    )


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; bundling takes seconds."""
    try:
        import altair
        import vl_convert
    except ImportError:
        raise not_installed("altair or vl-convert-python", extra="report") from None
    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    bundle: str = vl_convert.javascript_bundle(_EMBED, vl_version=version)
    return bundle
