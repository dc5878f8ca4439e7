"""Run: a trained recommender, opened once and asked many times; and the two ways to one.

``train`` makes a run of a recipe, ``load`` opens one that is there.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from mmkd.config.joining import Encoders, card_of, joined
from mmkd.config.plan import Plan, plan
from mmkd.config.recipe import Overrides, Recipe, read_recipe
from mmkd.data.dataset import Dataset
from mmkd.data.items import ItemTable
from mmkd.distiller import CorrelationDistiller
from mmkd.embeddings import EmbeddingTable
from mmkd.encoders import Encoder, EncoderCard, load_card
from mmkd.errors import DataError, RecipeError, RunError, did_you_mean
from mmkd.evaluation.significance import holm
from mmkd.pipeline.add_items import add_items
from mmkd.pipeline.embed import absent_reasons, embed, encoder_vectors
from mmkd.pipeline.evaluate import compare_runs, evaluate
from mmkd.pipeline.train import train as train_run
from mmkd.pipeline.tune import tune_together
from mmkd.runs.folder import RunFolder
from mmkd.runs.recommend import recommend, similar, student_vectors
from mmkd.shipping.sharing import found_run
from mmkd.student import Ensemble
from mmkd.student.recommender import settled
from mmkd.trust import trust_code as trust

if TYPE_CHECKING:
    from mmkd.pipeline.seeds import SeedRuns
    from mmkd.shipping.export import Exported

Histories = Sequence[str] | Sequence[Sequence[str]] | Mapping[str, Sequence[str]]


class Run:
    """A trained run; weights, catalogue and log are read when they are first needed, and kept.

        >>> import mmkd
        >>> from mmkd.demo import make_synthetic
        >>> _ = make_synthetic("shop", items=60, users=120)
        >>> recipe = mmkd.load_recipe(
        ...     "quickstart", ["data.root=shop", "training.epochs=1", "training.cpu=true"]
        ... )
        >>> run = mmkd.train(recipe, folder="runs/shop")
        >>> run.recommend(run.items.ids[1:3], k=2).columns
        ['query', 'rank', 'item_id', 'title', 'score']
        >>> len(run.recommend(users="all", k=5)) == 5 * 120
        True

    Args:
        folder: The run's folder.
        encoders: By modality those that are objects, and so in no file; `similar` and `add_items`
            use them.

    Raises:
        RunError: The folder holds no finished run, or a file of it is missing, damaged or of
            another run.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        encoders: Mapping[str, EncoderCard | Encoder] | None = None,
    ) -> None:
        self.folder = RunFolder(Path(folder))
        self._cards = {
            name: given if isinstance(given, EncoderCard) else card_of(given)
            for name, given in (encoders or {}).items()
        }
        if not self.folder.finished:
            raise RunError(
                f"{folder}: holds no finished run; train one (mmkd.train), or continue it "
                "(resume=True)"
            )
        self.folder.check_files()

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r})"

    @cached_property
    def recipe(self) -> Recipe:
        """What was run."""
        return read_recipe(str(self.folder.recipe))

    @cached_property
    def items(self) -> ItemTable:
        """The catalogue as it was trained on."""
        return self.folder.items()

    @cached_property
    def student(self) -> Ensemble:
        """The trained networks on the CPU, in evaluation mode; their weights must not change."""
        student = self.folder.student().requires_grad_(False)
        self._settled = ExitStack()  # item tables are fused once, for as long as the run is open
        self._settled.enter_context(settled(student))
        return student

    @cached_property
    def data(self) -> Dataset:
        """The data it was trained on, read again.

        Raises:
            RunError: The data changed since, or the run came from the hub and the data is not here.
        """
        try:
            data = plan(self.recipe, needs_teacher=False, needs_encoders=False).load_data()
        except (DataError, RecipeError) as error:
            if not self.folder.shared:
                raise
            raise RunError(
                f"{self.folder.path}: came from the hub without its data. It recommends for "
                "histories; for more put the data where its recipe looks for it, below the working "
                f"folder ({error})"
            ) from error
        self.folder.check_data(data.digests())
        return data

    @cached_property
    def result(self) -> dict[str, Any]:
        """Test and validation metrics, slices, cost: the content of ``result.json``."""
        return self.folder.result()

    @cached_property
    def history(self) -> pl.DataFrame:
        """An epoch a row: losses, validation metrics, retention, learning rates, seconds."""
        return pl.DataFrame([_flat(record) for record in self.folder.history()])

    @cached_property
    def tables(self) -> dict[str, EmbeddingTable]:
        """By modality the catalogue's vectors of its encoder, encoding what the cache lacks.

        Raises:
            EncoderError: Something must be encoded and the encoder is neither here nor to be had.
        """
        return embed(self._encoding, self._contents)

    @cached_property
    def distiller(self) -> CorrelationDistiller | None:
        """The teacher of correlations, fitted as at the start of training; None without encoders.

        Raises:
            EncoderError: As for ``tables``.
        """
        options = self._encoding.distiller
        return None if options is None else CorrelationDistiller(**options).fit(self.tables)

    @cached_property
    def absent(self) -> dict[str, dict[str, int]]:
        """Why items lack a vector: modality to reason to count."""
        return absent_reasons(self._encoding, self.tables)

    @property
    def _contents(self) -> ItemTable:
        """The catalogue with what its encoders read; a run of the hub has ids and titles."""
        return self.data.items if self.folder.shared else self.items

    @cached_property
    def _encoding(self) -> Plan:
        return plan(self.recipe, needs_data=False, needs_teacher=False, cards=self._cards)

    def recommend(
        self,
        histories: Histories | None = None,
        *,
        users: Sequence[str] | Literal["all"] | None = None,
        k: int = 10,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        exclude_seen: bool = True,
        batch_size: int = 512,
    ) -> pl.DataFrame:
        """The k items that are likeliest to be taken next.

        Args:
            histories: Item ids, oldest first: one history, several, or several by name.
            users: Instead of histories: users of the log, whose every event is read; or ``"all"``.
            k: How many a list.
            allow: Ids that may be recommended, such as what is in stock; None allows all.
            deny: Ids that may not.
            exclude_seen: Leave a history's own items out.
            batch_size: Histories scored at once; memory is bounded by it.

        Returns:
            ``query`` (the user, the name, or the place of the history, from 0), ``rank`` (from 1),
            ``item_id``, ``title`` and ``score``, best first.

        Raises:
            DataError: An id or a user is unknown, a history is empty, or there are neither
                histories nor users, or both.
            RunError: Users are asked for and the data changed since the run.
        """
        frames = self.lists(
            histories,
            users=users,
            k=k,
            allow=allow,
            deny=deny,
            exclude_seen=exclude_seen,
            batch_size=batch_size,
        )
        return pl.concat(frames)

    def lists(
        self,
        histories: Histories | None = None,
        *,
        users: Sequence[str] | Literal["all"] | None = None,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
        **options: Any,
    ) -> Iterator[pl.DataFrame]:
        """As ``recommend``, some thousand lists a frame, for what does not fit into memory."""
        queries, rows = self._queries(histories, users)
        return recommend(
            self.student,
            self.items,
            queries,
            rows,
            allow=None if allow is None else self.items.rows(allow),
            deny=None if deny is None else self.items.rows(deny),
            **options,
        )

    def similar(self, items: Sequence[str], *, k: int = 10, by: str | None = None) -> pl.DataFrame:
        """The k items nearest to each item, by cosine.

        Args:
            items: Ids.
            k: How many.
            by: Whose vectors: None for the student's own, or the name of a modality for those of
                its encoder, which the cache holds.

        Returns:
            As ``recommend``, the item's id as ``query``.

        Raises:
            DataError: An id is unknown, or an item has no such vector.
            RunError: The run has no such modality, or came from the hub without the texts or
                pictures that its encoder reads.
        """
        rows = self.items.rows([items] if isinstance(items, str) else items)
        if by is None:
            return similar(student_vectors(self.student), self.items, rows, k=k)
        vectors = encoder_vectors(self._encoding, self._contents, modality=by)
        return similar(torch.from_numpy(vectors), self.items, rows, k=k)

    def item_vectors(self) -> tuple[list[str], NDArray[np.float32]]:
        """Ids, and the student's item vectors [I, d]: what a nearest-neighbour index is made of."""
        vectors = student_vectors(self.student)[1:].float().numpy()
        return list(self.items.ids[1:]), vectors

    def add_items(self, new_items: Any, *, out: Path | str) -> "Run":
        """A new run that recommends new items too, without training; this one stays as it is.

        Args:
            new_items: An `ItemTable`, or a file or frame with the columns of the catalogue.
            out: The new run's folder.

        Raises:
            DataError: An id is in the catalogue already, or no item can be placed.
            RunError: The run keeps no reduction, or does not score by fused vectors.
        """
        add_items(self.folder.path, new_items, out=out, cards=self._cards)
        return Run(out, encoders=self._cards)

    def evaluate(self, *, cases: str = "test") -> dict[str, Any]:
        """The report of ``Evaluator.report``, computed again; ``cases`` is test or valid."""
        return evaluate(self.folder.path, cases=cases)

    def compare(
        self, *others: "Run | SeedRuns", cases: str = "test", metric: str = "NDCG@10"
    ) -> pl.DataFrame:
        """Is this run better than others, case by case?

        Args:
            *others: Runs on the same data; of several seeds every case is the mean.
            cases: ``test``, or ``valid`` to choose between settings.
            metric: Which metric to compare.

        Returns:
            A row for each other run: ``run``, both means, ``difference`` (this minus that) with
            its 95% interval, ``p_value`` of the paired permutation test, and ``p_holm``, corrected
            for the number of comparisons (Holm 1979).

        Raises:
            RunError: The runs were trained on different data or rank among different candidates.
        """
        return comparison(self, others, cases=cases, metric=metric)

    def report(self, path: Path | str, *others: "Run | SeedRuns") -> Path:
        """Write one HTML file about this run that works offline and can be mailed.

        Args:
            path: The file.
            *others: Runs on the same data, to stand beside it and be compared with it.

        Returns:
            The file.

        Raises:
            MmkdError: As for `mmkd.write_report`.
        """
        from mmkd.report import write_report  # what only a report needs is loaded for one

        return write_report([self, *others], path)

    def export(
        self,
        folder: Path | str,
        *,
        onnx: bool = False,
        index: str | None = None,
        force: bool = False,
    ) -> "Exported":
        """Write a folder that a service loads without mmkd: items, vectors, graphs, an index.

        Args:
            folder: Where to; it appears whole or not at all.
            onnx: Whether ``encoder.onnx`` (a history to a query vector) and ``topk.onnx`` (a
                history to a list) are made; both are held to what the run answers.
            index: ``faiss`` for the FAISS index that suits the number of items, or a factory string
                such as ``Flat``, ``HNSW32`` or ``IVF1024,SQ8``.
            force: Whether an earlier export there may be replaced.

        Returns:
            What was written, how far the graphs' scores are from the run's, and what both take.

        Raises:
            MmkdError: ``mmkd[onnx]`` is not installed.
            RunError: The folder holds something; the index does not fit; or a graph answers
                otherwise than the run.
        """
        from mmkd.shipping.export import export

        return export(self, folder, onnx=onnx, index=index, force=force)

    def push_to_hub(self, repository: str, *, private: bool | None = None) -> str:
        """Put the run into a repository of the Hugging Face hub, for `mmkd.load` anywhere.

        Weights, ids, titles and metrics go, with a model card made of them. The log, its users,
        the rank of every test case, texts, pictures and the paths of this machine do not.

        Args:
            repository: ``org/name``; made where there is none.
            private: Whether a new one is for its owner alone; None leaves it to the hub.

        Returns:
            Where it is to be looked at.

        Raises:
            RunError: There is no token or it may not write, the repository holds something else, or
                the hub can't be reached.
        """
        from mmkd.shipping.sharing import push_run

        return push_run(self, repository, private=private)

    def _queries(
        self, histories: Histories | None, users: Sequence[str] | Literal["all"] | None
    ) -> tuple[Sequence[str | int], list[NDArray[np.int64]]]:
        if (histories is None) == (users is None):
            raise DataError("give either histories or users (ids of the log, or 'all')")
        if users is not None:
            return self._histories_of(users)
        if isinstance(histories, Mapping):
            return list(histories), [self.items.rows(list(ids)) for ids in histories.values()]
        given: Sequence[Any] = list(histories or ())
        one = bool(given) and all(isinstance(item, str) for item in given)
        several = [given] if one or not given else given
        return range(len(several)), [self.items.rows(list(ids)) for ids in several]

    def _histories_of(
        self, users: Sequence[str] | Literal["all"]
    ) -> tuple[list[str], list[NDArray[np.int64]]]:
        split, known = self.data.split, self.data.log.user_ids
        if isinstance(users, str) and users == "all":
            return list(known), [split.sequence(user) for user in range(len(known))]
        asked = [users] if isinstance(users, str) else list(users)
        row_of = {user: row for row, user in enumerate(known)}
        for user in asked:
            if user not in row_of:
                raise DataError(
                    f"user {user!r} is not among the {len(known)} users of the log"
                    f"{did_you_mean(user, known)}; give a history instead"
                )
        return asked, [split.sequence(row_of[user]) for user in asked]


def load(
    folder: Path | str,
    *,
    revision: str | None = None,
    runs: Path | str | None = None,
    encoders: Mapping[str, EncoderCard | Encoder] | None = None,
    trust_code: str | Sequence[str] | None = None,
) -> Run:
    """Open a trained run.

        >>> import mmkd
        >>> from mmkd.demo import make_synthetic
        >>> _ = make_synthetic("shop", items=60, users=120)
        >>> recipe = mmkd.load_recipe(
        ...     "quickstart", ["data.root=shop", "training.epochs=1", "training.cpu=true"]
        ... )
        >>> made = mmkd.train(recipe, folder="runs/kiosk")
        >>> run = mmkd.load("kiosk")
        >>> len(run.recommend(run.items.ids[1:3], k=2))
        2

    Args:
        folder: Its folder, its name below ``runs``, or ``org/name``: a repository of the Hugging
            Face hub (`Run.push_to_hub`). What is here wins.
        revision: Of the repository: a branch, tag or commit.
        runs: Where runs are kept; None for MMKD_RUNS, or ``runs`` where that is not set.
        encoders: By modality the objects that it was trained with, where those were objects.
        trust_code: Packages or modules outside mmkd whose classes the run may name, such as a
            backbone of your own: they are imported. See `mmkd.trust`.

    Raises:
        RunError: There is no finished run; or the hub can't be reached, or has no such run.
    """
    trust(trust_code)
    return Run(found_run(folder, runs_folder(runs), revision=revision), encoders=encoders)


def train(
    data: Dataset | Plan | Recipe | Path | str | None = None,
    recipe: Recipe | Path | str | None = None,
    *,
    encoders: Encoders | None = None,
    folder: Path | str | None = None,
    overrides: Overrides = (),
    trust_code: str | Sequence[str] | None = None,
    **options: Any,
) -> Run:
    """Train a recipe, on data of its own or on a dataset.

    >>> import polars as pl
    >>> import mmkd
    >>> colours, things = ("red", "blue", "green", "white"), ("pot", "cup", "tray", "jug", "pan")
    >>> names = [f"{colour} {thing}" for thing in things for colour in colours]
    >>> items = pl.DataFrame({"sku": range(20), "name": names})
    >>> log = pl.DataFrame([(u, (u + n) % 20) for u in range(40) for n in range(5)],
    ...     schema=["user_id", "sku"], orient="row")
    >>> run = mmkd.train(
    ...     mmkd.Dataset.load(items=items, events=log), recipe="kdsr",
    ...     encoders={"text": "hashed-text"}, folder="runs/kitchen",
    ...     overrides={"training.epochs": 1, "training.cpu": True})
    >>> run.recipe.name, run.recommend(users=["3"], k=2).shape
    ('kitchen', (2, 5))

    Args:
        data: What to train on; or, in its place, a recipe with data of its own.
        recipe: A preset by its name (``id``, ``fused``, ``kdsr``, ``soft``, ``emkd``, ``best``;
            None is ``best``), or another recipe by its name, path or as an object, of which the
            dataset takes the data section's place.
        encoders: Modality to the name or path of a card, an `EncoderCard`, or an encoder object.
            They take the place of the recipe's own; ``{}`` learns item ids only. None keeps the
            recipe's own; a preset has none, so it learns ids only.
        folder: The run's folder; None is ``runs/NAME``. It names a run of a preset.
        overrides: Changes to the recipe, by dotted key, or written as on the command line.
        trust_code: As for ``load``: whose classes the recipe and its cards may name.
        **options: ``resume``, ``overwrite``, ``progress``, ``announce`` of `mmkd.pipeline.train`.

    Returns:
        The trained run.

    Raises:
        MmkdError: As for `mmkd.pipeline.train.train`.
    """
    trust(trust_code)
    planned = given_plan(data, recipe, encoders, overrides, folder)
    for line in planned.recipe.notices:
        warnings.warn(line, FutureWarning, stacklevel=2)
    if announce := options.get("announce"):
        for line in planned.recipe.notes:
            announce(line)
    path = runs_folder(None) / planned.recipe.name if folder is None else Path(folder)
    train_run(planned, folder=path, **options)
    own = {name: card for name, card in planned.cards.items() if card.holds_object}
    return Run(path, encoders=own)


@overload
def tune(
    data: Dataset, card: EncoderCard | Path | str, *, name: str, **options: Any
) -> EncoderCard: ...


@overload
def tune(
    data: Dataset, card: Mapping[str, EncoderCard | Path | str], *, name: str, **options: Any
) -> dict[str, EncoderCard]: ...


def tune(
    data: Dataset,
    card: EncoderCard | Path | str | Mapping[str, EncoderCard | Path | str],
    *,
    name: str,
    folder: Path | str = "encoders",
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> EncoderCard | dict[str, EncoderCard]:
    """Tune an encoder on a log, or both towers of one model: new cards, weights of their own.

    >>> import mmkd
    >>> mmkd.tune(mmkd.Dataset.load(items="items.csv", events="events.csv"), "minilm",
    ...     name="shop-minilm", arguments={"epochs": 2})  # doctest: +SKIP

    Args:
        data: Its training events are learned from, its validation cases choose the best epoch.
        card: What to tune, a card or its name or path; or by modality, such as ``text`` and
            ``image``, cards of the towers of one model, which learn together.
        name: Of the new card; of towers the cards are ``NAME-text`` and ``NAME-image``.
        folder: Where cards are kept; the new one is in ``folder/name``.
        arguments: Those of `TuningArguments` that differ from the defaults.
        seed: Of pairs and dropout.
        **options: ``resume``, ``overwrite``, ``progress``, ``announce`` of `mmkd.pipeline.tune`.

    Returns:
        The new card; the new cards by modality, where cards were given so.

    Raises:
        MmkdError: As for `mmkd.pipeline.tune.tune_together`.
    """
    given = card if isinstance(card, Mapping) else {None: card}
    loaded = [
        one if isinstance(one, EncoderCard) else load_card(str(one), tower=tower)
        for tower, one in given.items()
    ]
    names = list(card) if isinstance(card, Mapping) else [loaded[0].modality]
    planned = joined(
        data,
        "fused",
        encoders=dict(zip(names, loaded, strict=True)),
        overrides={"seed": seed, f"tune.{'+'.join(names)}": dict(arguments or {})},
        folder=None,
    )
    tuned = tune_together(planned, encoders=names, name=name, folder=Path(folder), **options)
    return tuned if isinstance(card, Mapping) else tuned[names[0]]


def comparison(
    this: "Run | SeedRuns", others: Sequence["Run | SeedRuns"], *, cases: str, metric: str
) -> pl.DataFrame:
    """As ``Run.compare``, of runs or of several seeds' runs."""
    found = [
        compare_runs(this.folder.path, other.folder.path, cases=cases, metric=metric)
        for other in others
    ]
    return pl.DataFrame(
        {
            "run": [other.folder.path.name for other in others],
            "this": [one["first"] for one in found],
            "other": [one["second"] for one in found],
            "difference": [one["difference"] for one in found],
            "low": [one["interval"][0] for one in found],
            "high": [one["interval"][1] for one in found],
            "p_value": [one["p_value"] for one in found],
            "p_holm": holm([one["p_value"] for one in found]),
        }
    )


def given_plan(
    data: Dataset | Plan | Recipe | Path | str | None,
    recipe: Recipe | Path | str | None,
    encoders: Encoders | None,
    overrides: Overrides,
    folder: Path | str | None,
) -> Plan:
    """What ``train`` is to run, of its arguments; RecipeError where they do not go together."""
    if isinstance(data, Plan):
        if recipe is not None or encoders is not None or overrides:
            raise RecipeError(
                "a plan is made of its recipe already; give recipe, encoders and overrides "
                "with a Dataset or a recipe"
            )
        return data
    if isinstance(data, Dataset):
        chosen: Recipe | Path | str = "best" if recipe is None else recipe
        where = None if folder is None else Path(folder)
        planned = joined(data, chosen, encoders=encoders, overrides=overrides, folder=where)
        if where is None and data.frames:  # they will lie in the run's folder, which is named now
            where = runs_folder(None) / planned.recipe.name
            planned = joined(data, chosen, encoders=encoders, overrides=overrides, folder=where)
        return planned
    if (data is None) == (recipe is None):
        raise RecipeError(
            "give a Dataset with a recipe, or a recipe that has data of its own; got "
            f"{type(data).__name__} and {type(recipe).__name__}"
        )
    given = recipe if data is None else data
    return joined(None, cast(Recipe | Path | str, given), encoders=encoders, overrides=overrides)


def runs_folder(given: Path | str | None) -> Path:
    """Where runs are kept: as given, or MMKD_RUNS, or ``runs``."""
    return Path(given or os.environ.get("MMKD_RUNS") or "runs")


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested record with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
