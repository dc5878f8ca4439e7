"""Figures: what a run's result says, in the order in which a page says it.

From ``result.json``, the ranks and the history of opened runs to rows of tables and of charts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmkd.data.splits import SequenceSplit
from mmkd.evaluation import CaseRanks
from mmkd.evaluation.metrics import (
    SLICES,
    coverage_at_k,
    per_case,
    popularity_bias,
    slice_of_items,
)
from mmkd.evaluation.significance import difference_interval
from mmkd.runs.folder import RunFolder
from mmkd.runs.seeds import members
from mmkd.terminal import printable

if TYPE_CHECKING:
    from mmkd.pipeline.run import Run
    from mmkd.pipeline.seeds import SeedRuns

    Reported: TypeAlias = Run | SeedRuns

Record = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A figure and its 95% interval."""

    value: float
    low: float | None = None
    high: float | None = None


def name_of(run: "Reported") -> str:
    """What a run is called: its folder's name; one of the hub lies in a commit's, so its own."""
    folder = run.folder
    if isinstance(folder, RunFolder) and folder.shared:
        return printable(folder.marker()["recipe"])
    return printable(folder.path.resolve().name)


def tested(run: "Reported") -> tuple[str, Mapping[str, Any]]:
    """Which cases a run's main figures are of, and their report: the test, or validation."""
    result = run.result
    if result["test"]:
        return "test", result["test"]
    # of a run of an earlier release there is only what the best epoch was chosen by
    return "validation", result.get("validation") or {"metrics": result["valid"], "slices": {}}


def cutoff(report: Mapping[str, Any]) -> int:
    """The k that figures are shown at: 10, or the largest there is."""
    ks = [int(name.partition("@")[2]) for name in report["metrics"] if name.startswith("HR@")]
    return 10 if 10 in ks else max(ks)


def metric(report: Mapping[str, Any], name: str) -> Metric:
    """One figure of a report."""
    low, high = report.get("intervals", {}).get(name) or (None, None)
    return Metric(report["metrics"][name], low, high)


def retention(run: "Reported", figure: str = "spearman") -> dict[str, float]:
    """Modality to how much of its encoder the run's student holds."""
    return {
        key.removeprefix("retention.").removesuffix(f".{figure}"): value
        for key, value in run.result["valid"].items()
        if key.startswith("retention.") and key.endswith(f".{figure}")
    }


def reports(run: "Reported", others: Sequence["Reported"] = ()) -> dict[str, Mapping[str, Any]]:
    """Name to report: the run's, the others' and the baselines' that stand beside it."""
    kind, own = tested(run)
    found = {name_of(run): own}
    for other in others:
        if tested(other)[0] == kind:
            found[name_of(other)] = tested(other)[1]
    if kind == "test":
        baselines = run.result.get("baselines") or {}
        found |= {name: baseline["test"] for name, baseline in baselines.items()}
    return found


def headline(run: "Reported", others: Sequence["Reported"] = ()) -> list[Record]:
    """A row a run and baseline: name, kind, value, low, high of NDCG, and HR."""
    k = cutoff(tested(run)[1])
    rows = []
    runs = {name_of(each) for each in (run, *others)}
    for name, report in reports(run, others).items():
        gain, hit = metric(report, f"NDCG@{k}"), metric(report, f"HR@{k}")
        kind = "this run" if name == name_of(run) else "run" if name in runs else "baseline"
        rows.append(
            {
                "name": name,
                "kind": kind,
                "value": gain.value,
                "low": gain.value if gain.low is None else gain.low,
                "high": gain.value if gain.high is None else gain.high,
                "hit": hit.value,
            }
        )
    return rows


def by_slice(run: "Reported", others: Sequence["Reported"] = ()) -> list[Record]:
    """A row a slice and method: slice, n, name, kind, value of NDCG; empty slices are left out."""
    k = cutoff(tested(run)[1])
    kinds = {row["name"]: row["kind"] for row in headline(run, others)}
    return [
        {
            "slice": part,
            "n": report["slices"][part]["n"],
            "name": name,
            "kind": kinds[name],
            "value": report["slices"][part][f"NDCG@{k}"],
        }
        for name, report in reports(run, others).items()
        for part in SLICES
        if report.get("slices", {}).get(part, {}).get("n")
    ]


def gain_by_slice(
    run: "Reported", ids_only: "Reported", split: SequenceSplit, *, resamples: int = 1000
) -> list[Record]:
    """By slice the gain in NDCG over a run that reads ids only: value and its 95% interval."""
    name = f"NDCG@{cutoff(tested(run)[1])}"
    mine, other = (_values(side, name) for side in (run, ids_only))  # [S, N], [T, N]
    ranks = members(run.folder.path)[0].ranks()
    slices = slice_of_items(split.train_counts())[ranks.target]
    rows = []
    for number, part in enumerate(SLICES):
        here = slices == number
        if here.any():
            ends = difference_interval(
                mine[:, here], other[:, here], ranks.user[here], resamples=resamples
            )
            change = mine[:, here].mean(0) - other[:, here].mean(0)
            rows.append(
                {
                    "slice": part,
                    "n": int(here.sum()),
                    "value": float(change.mean()),
                    "low": float(ends[0]),
                    "high": float(ends[1]),
                }
            )
    return rows


def _values(run: "Reported", name: str) -> NDArray[np.float64]:
    """A metric [S, N] of every test case, by seed."""
    found = [one.ranks() for one in members(run.folder.path)]
    return np.stack([per_case(ranks.rank, name, ties=ranks.ties) for ranks in found])


def epochs(run: "Run") -> dict[str, list[Record]]:
    """Losses, metric and retention by epoch, counted from 1: rows of epoch, name and value."""
    history = run.history
    k = cutoff(tested(run)[1])
    wanted = {
        "losses": [c for c in history.columns if c.startswith("losses.")],
        "metric": [c for c in (f"valid.NDCG@{k}", f"valid.HR@{k}") if c in history.columns],
        "retention": [c for c in history.columns if c.startswith("valid.retention.")],
    }
    if len(wanted["losses"]) == 2:  # a total and its only part
        wanted["losses"].remove("losses.total")
    return {
        kind: [
            {"epoch": row["epoch"] + 1, "name": _told(column), "value": row[column]}
            for column in columns
            for row in history.iter_rows(named=True)
            if row[column] is not None
        ]
        for kind, columns in wanted.items()
    }


def leanings(
    ranks: CaseRanks, split: SequenceSplit
) -> tuple[dict[str, float | None], list[Record]]:
    """What the lists lean towards: measures, and each slice's share of what there is.

    Returns:
        The measures of ``popularity_bias`` with coverage; and rows of ``what`` (catalogue, training
        events, what was taken, what was recommended), ``slice`` and ``share``.
    """
    counts, lists = split.train_counts(), ranks.top_items
    slices = slice_of_items(counts)
    listed = lists[lists > 0]
    held = {
        "the catalogue": slices[1:],
        "training events": slices[split.items[split.is_train()]],
        "what was taken": slices[ranks.target],
        "recommended": slices[listed],
    }
    rows = [
        {"what": what, "slice": part, "share": float((found == number).mean())}
        for what, found in held.items()
        for number, part in enumerate(SLICES)
        if len(found)
    ]
    measures = {
        f"coverage@{lists.shape[1]}": coverage_at_k(lists, split.item_count),
        **popularity_bias(lists, counts),
    }
    return measures, rows


def compared(runs: Sequence["Reported"]) -> list[Record]:
    """A row a run: its figures, and the difference of the first run and it where there is one."""
    first, others = runs[0], runs[1:]
    kind, report = tested(first)
    k = cutoff(report)
    cases = "test" if kind == "test" else "valid"
    differences = first.compare(*others, cases=cases, metric=f"NDCG@{k}").to_dicts()
    rows = []
    for run, difference in zip(runs, [None, *differences], strict=True):
        own, kept = tested(run)[1], retention(run)
        rows.append(
            {
                "name": name_of(run),
                "seeds": len(seeds_of(run)),
                "hit": metric(own, f"HR@{k}"),
                "gain": metric(own, f"NDCG@{k}"),
                "slices": {
                    part: own["slices"][part][f"NDCG@{k}"]
                    for part in SLICES
                    if own.get("slices", {}).get(part, {}).get("n")
                },
                "coverage": own.get(f"coverage@{k}"),
                "retention": float(np.mean(list(kept.values()))) if kept else None,
                "parameters": run.result.get("parameters"),
                "seconds": run.result["seconds"].get("total"),
                "difference": difference,
            }
        )
    return rows


def points(runs: Sequence["Reported"]) -> list[Record]:
    """A row a run that has encoders: name, kind, mean retention over modalities, NDCG.

    Of several seeds there is a row for their mean, and one for each, of kind ``seed``.
    """
    name = f"NDCG@{cutoff(tested(runs[0])[1])}"
    rows = []
    for place, run in enumerate(runs):
        seeds = seeds_of(run)
        told = [(run, "run" if place else "this run"), *((seed, "seed") for seed in seeds)]
        for one, kind in told:
            if kept := retention(one):
                rows.append(
                    {
                        "name": name_of(run),
                        "kind": kind,
                        "retention": float(np.mean(list(kept.values()))),
                        "value": tested(one)[1]["metrics"][name],
                    }
                )
    return rows


def seeds_of(run: "Reported") -> Sequence["Run"]:
    """The runs of several seeds; none of a single run."""
    return getattr(run, "runs", ())


def reads_ids_only(run: "Reported") -> bool:
    """Whether a run's recipe has no encoder."""
    return not run.recipe.encoders


def _told(column: str) -> str:
    """A column of the history as a person reads it."""
    name = column.removeprefix("losses.").removeprefix("valid.").removeprefix("retention.")
    return printable(name.replace(".", " ").replace("_", " "))
