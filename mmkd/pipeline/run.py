"""Run: a trained recommender, opened once and asked many times; and the two ways to one.

``train`` makes a run of a recipe, ``load`` opens one that is there.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mmkd.config.plan import Plan
from mmkd.config.recipe import Recipe, load_recipe
from mmkd.data.items import ItemTable
from mmkd.errors import RunError
from mmkd.pipeline.evaluate import compare_runs, evaluate
from mmkd.pipeline.train import train as train_run
from mmkd.runs.folder import RunFolder
from mmkd.student import Ensemble


class Run:
    """A trained run; weights and catalogue are read when they are first needed, and kept.

        >>> import mmkd
        >>> from mmkd.demo import make_synthetic
        >>> _ = make_synthetic("shop", items=60, users=120)
        >>> recipe = mmkd.load_recipe(
        ...     "quickstart", ["data.root=shop", "training.epochs=1", "training.cpu=true"]
        ... )
        >>> run = mmkd.train(recipe, folder="runs/shop")
        >>> best = run.recommend(run.items.ids[1:3], k=2)
        >>> [sorted(one) for one in best]
        [['item', 'score', 'title'], ['item', 'score', 'title']]

    Args:
        folder: The run's folder.

    Raises:
        RunError: The folder holds no finished run.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = RunFolder(Path(folder))
        if not self.folder.finished:
            raise RunError(
                f"{folder}: holds no finished run; train one (mmkd.train), or continue it "
                "(resume=True)"
            )

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r})"

    @cached_property
    def recipe(self) -> Recipe:
        """What was run."""
        return load_recipe(str(self.folder.recipe))

    @cached_property
    def items(self) -> ItemTable:
        """The catalogue as it was trained on."""
        return self.folder.items()

    @cached_property
    def student(self) -> Ensemble:
        """The trained networks, in evaluation mode, on the CPU."""
        return self.folder.student()

    @cached_property
    def result(self) -> dict[str, Any]:
        """Test and validation metrics, slices, cost: the content of ``result.json``."""
        return self.folder.result()

    def recommend(
        self, history: Sequence[str], *, k: int = 10, exclude_seen: bool = True
    ) -> list[dict[str, Any]]:
        """The k items that a user with this history is likeliest to take next.

        Args:
            history: Item ids, oldest first.
            k: How many.
            exclude_seen: Leave the history's own items out.

        Returns:
            ``{"item", "title", "score"}`` each, best first.

        Raises:
            DataError: An id is not in the catalogue, or the history is empty.
        """
        return self.student.recommend(self.items, history, k=k, exclude_seen=exclude_seen)

    def evaluate(self, *, cases: str = "test") -> dict[str, Any]:
        """The report of ``Evaluator.report``, computed again; ``cases`` is test or valid."""
        return evaluate(self.folder.path, cases=cases)

    def compare(
        self, other: "Run", *, cases: str = "test", metric: str = "NDCG@10"
    ) -> dict[str, Any]:
        """Is this run better than another, case by case? As ``compare_runs``."""
        return compare_runs(self.folder.path, other.folder.path, cases=cases, metric=metric)


def load(folder: Path | str) -> Run:
    """Open a trained run.

    Args:
        folder: Its folder, or its name below ``runs/``.

    Raises:
        RunError: There is no finished run.
    """
    path = Path(folder)
    named = Path("runs") / path
    return Run(named if not path.exists() and named.exists() else path)


def train(recipe: Plan | Recipe, *, folder: Path | str | None = None, **options: Any) -> Run:
    """Train a recipe.

    Args:
        recipe: Of ``load_recipe``, or already planned.
        folder: The run's folder; None is ``runs/NAME``.
        **options: ``resume``, ``overwrite``, ``progress``, ``announce`` of `mmkd.pipeline.train`.

    Returns:
        The trained run.

    Raises:
        MmkdError: As for `mmkd.pipeline.train.train`.
    """
    name = (recipe.recipe if isinstance(recipe, Plan) else recipe).name
    path = Path("runs") / name if folder is None else Path(folder)
    train_run(recipe, folder=path, **options)
    return Run(path)
