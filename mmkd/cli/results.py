"""What the commands print of runs and sweeps: their figures, alone and beside each other."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mmkd.cli import show
from mmkd.cli.arguments import RUNS
from mmkd.errors import MmkdError
from mmkd.runs.folder import RunFolder

if TYPE_CHECKING:
    from mmkd.pipeline.study import Sweep

METRICS = ("HR@10", "NDCG@10", "MRR@10")
SLICES = ("cold", "tail", "mid", "head")


def result(result: Mapping[str, Any], folder: Path, *, as_json: bool) -> None:
    """A finished run: figures beside validation's and baselines', its cost, what is next."""
    if as_json:
        show.dump({**result, "folder": str(folder)})
        return
    show.say(_beside(result))
    if kept := {k: v for k, v in result["valid"].items() if k.startswith("retention.")}:
        show.say(f"kept of the encoders (Spearman, recall@10): {_kept(kept)}")
    seconds, processes = result["seconds"], result["processes"]
    parameters = f"{result['parameters']:,} parameters; " if "parameters" in result else ""
    what, of = ("test", result["test"]) if result["test"] else ("validation", result["validation"])
    total = f"{seconds['total']:.1f} s in all, " if "total" in seconds else ""
    show.say(
        f"best epoch {result['best_epoch'] + 1} of {result['epochs']}; {parameters}"
        f"{of['n']:,} {what} cases of {of['users']:,} users"
    )
    show.say(
        f"{total}{seconds['epoch']:.1f} s an epoch, {seconds['validation']:.1f} s a validation; "
        f"{processes} process{'es' if processes > 1 else ''}, "
        f"peak memory {result['peak_memory_bytes'] / 2**20:.0f} MiB"
    )
    name = _run_name(folder)
    then = "--against ANOTHER-RUN" if result["test"] else " # the test, which was not read"
    show.say(
        f"run: {folder}; next:\n"
        f"  mmkd recommend {name} --history {_example(folder)} -k 5\n"
        f"  mmkd recommend {name} --all-users -k 20 --out {shlex.quote(folder.name)}.parquet\n"
        f"  mmkd evaluate {name} {then}"
    )


def seeds(summary: Mapping[str, Any], folder: Path, *, as_json: bool) -> None:
    """Several seeds' runs: each figure's mean, its interval over users and seeds, the seeds'."""
    if as_json:
        show.dump({**summary, "folder": str(folder)})
        return
    kind = "test" if summary["test"] else "valid"
    report = summary["test"] or {"metrics": summary["valid"], "slices": {}}
    k = _cutoff(report)
    names = [str(seed) for seed in summary["seeds"]]
    told = "test" if kind == "test" else "validation"
    grid = show.table(
        told, "mean", "95% interval", "deviation", *(f"seed {name}" for name in names)
    )
    for metric in (f"HR@{k}", f"NDCG@{k}", f"MRR@{k}"):
        values = summary["by_seed"][kind][metric]
        grid.add_row(
            metric,
            _four(report["metrics"][metric]),
            _interval(report, metric),
            _four(stdev(values)),
            *(_four(value) for value in values),
        )
    gain = f"NDCG@{k}"
    for name, part in report["slices"].items():
        if part["n"]:
            grid.add_row(f"{gain} {name} ({part['n']:,})", _four(part[gain]), _interval(part, gain))
    if kind == "test":
        values = summary["by_seed"]["valid"][gain]
        grid.add_row(
            f"validation {gain}",
            _four(summary["valid"][gain]),
            "",
            _four(stdev(values)),
            *(_four(value) for value in values),
        )
    show.say(grid)
    over = (
        f"{report['n']:,} test cases of {report['users']:,} users; intervals are over users and "
        "seeds, deviations between seeds"
        if kind == "test"
        else "no test was read; deviations are between seeds"
    )
    name, first = _run_name(folder), summary["runs"][0]
    show.say(
        f"{len(names)} seeds, {summary['seconds'].get('total', 0):.1f} s each; {over}\n"
        f"runs: {folder}/seed-*; next:\n"
        f"  mmkd compare {name} ANOTHER-RUN # one row, every case the mean of the seeds\n"
        f"  mmkd recommend {name}/{first} --history {_example(folder / first)} -k 5"
    )


def _run_name(folder: Path) -> str:
    """What to type for a run's folder."""
    return shlex.quote(folder.name if folder.parent == RUNS else str(folder))


def _cutoff(report: Mapping[str, Any]) -> int:
    """The k that is shown: 10, or the largest there is."""
    cutoffs = [int(name.partition("@")[2]) for name in report["metrics"] if name.startswith("HR@")]
    return 10 if 10 in cutoffs else max(cutoffs)


def _beside(result: Mapping[str, Any]) -> Table:
    """A row a figure; test and validation with intervals, and whatever baselines there are."""
    # of a run of an earlier release there is only what the best epoch was chosen by
    validation = result.get("validation") or {"metrics": result["valid"], "slices": {}}
    reports = {"test": result["test"], "validation": validation}
    reports = {name: report for name, report in reports.items() if report}  # some have no test
    first, main = next(iter(reports.items()))
    k = _cutoff(main)
    parted = result.get("breakdown") or {}
    parted = {"test": parted.get("test"), "validation": parted.get("valid")}
    figures = {name: _figures(report, parted[name], k) for name, report in reports.items()}
    baselines = result.get("baselines") or {}
    columns = [
        _figures(found["test"], (found.get("breakdown") or {}).get("test"), k)
        for found in baselines.values()
    ]
    cases = (parted[first] or {}) | main["slices"]
    grid = show.table(
        "", *(title for name in reports for title in (name, "95% interval")), *baselines
    )
    for name in figures[first]:
        part = cases.get(name.rpartition(" ")[2])
        grid.add_row(
            f"{name} ({part['n']:,})" if part else name,
            *(
                cell
                for each, report in reports.items()
                for cell in (
                    _four(figures[each][name]) if name in figures[each] else "",
                    _interval(report, name),
                )
            ),
            *(_four(column.get(name)) for column in columns),
        )
    return grid


def _figures(
    report: Mapping[str, Any], breakdown: Mapping[str, Any] | None, k: int
) -> dict[str, float | None]:
    """HR and NDCG at k, NDCG by how often the target trains, the lists' coverage and leaning."""
    found: dict[str, float | None] = {}
    for metric in (f"HR@{k}", f"NDCG@{k}"):
        found[metric] = report["metrics"].get(metric)
    parted = _parted(breakdown, k)
    found |= {name: parted[name] for name in parted if name.endswith(" warm")}
    for name in SLICES:
        if part := report["slices"].get(name):
            found[f"NDCG@{k} {name}"] = part.get(f"NDCG@{k}") if part["n"] else None
    return found | {name: report[name] for name in report if name.startswith("coverage@")} | parted


def _parted(breakdown: Mapping[str, Any] | None, k: int) -> dict[str, float | None]:
    """NDCG at k of warm and cold targets, where there are both; figures of the lists."""
    if not breakdown:
        return {}
    both = breakdown["cold"]["n"] and breakdown["warm"]["n"]
    found = {f"NDCG@{k} {name}": breakdown[name][f"NDCG@{k}"] for name in ("warm", "cold") if both}
    return found | dict(breakdown["lists"])


def _interval(report: Mapping[str, Any], name: str) -> str:
    interval = report.get("intervals", {}).get(name)
    return "[{:.4f}, {:.4f}]".format(*interval) if interval else ""


def _four(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _kept(retention: Mapping[str, float]) -> str:
    """``text 0.98 0.91, image 0.97 0.88``: each modality's two figures."""
    names = dict.fromkeys(name.removeprefix("retention.").rpartition(".")[0] for name in retention)
    return ", ".join(
        " ".join([name, *(f"{v:.2f}" for k, v in retention.items() if f".{name}." in k)])
        for name in names
    )


def _example(folder: Path) -> str:
    """Two item ids to type; ``ID,ID`` where ids of this catalogue can't be typed so."""
    try:
        ids = [str(i) for i in RunFolder(folder).items().ids[1:3]]
    except MmkdError:
        return "ID,ID"
    return shlex.quote(",".join(ids)) if ids and not any("," in i for i in ids) else "ID,ID"


def report(report: Mapping[str, Any], *, as_json: bool) -> None:
    """Metrics with intervals and the slices of one evaluation."""
    if as_json:
        show.dump(report)
        return
    if unfinished := report.get("unfinished"):
        show.say(unfinished)
    grid = show.table("metric", "value", "95% interval")
    for name, value in report["metrics"].items():
        low, high = report["intervals"][name]
        grid.add_row(name, f"{value:.4f}", f"[{low:.4f}, {high:.4f}]")
    show.say(grid)
    breakdown = report.get("breakdown") or {}
    parts = {name: breakdown[name] for name in ("all", "warm") if name in breakdown}
    grid = show.table("targets", "cases", *METRICS)
    for name, part in (parts | report["slices"]).items():
        shown = [f"{part[m]:.4f}" if part["n"] and m in part else "-" for m in METRICS]
        grid.add_row(name, str(part["n"]), *shown)
    show.say(grid)
    lists = {k: v for k, v in report.items() if k.startswith("coverage")}
    lists |= breakdown.get("lists", {})
    told = "  ".join(f"{k} {v:.3f}" for k, v in lists.items() if v is not None)
    show.say(f"{report['n']} cases of {report['users']} users  {told}")


def comparison(found: Mapping[str, Any], first: str, second: str, *, as_json: bool) -> None:
    """A paired test of two runs."""
    if as_json:
        show.dump(found)
        return
    if unfinished := found.get("unfinished"):
        show.say(unfinished)
    low, high = found["interval"]
    show.say(
        f"{found['metric']}: {first} {found['first']:.4f}, {second} {found['second']:.4f}; "
        f"difference {found['difference']:+.4f} [{low:+.4f}, {high:+.4f}], "
        f"p = {found['p_value']:.4f} (paired permutation test over {found['users']} users)"
    )


def compared(found: Sequence[Mapping[str, Any]], first: str, metric: str, *, as_json: bool) -> None:
    """One run against others."""
    if as_json:
        show.dump({"run": first, "metric": metric, "others": list(found)})
        return
    grid = show.table(f"{metric} of {first}", "against", "", "difference [95%]", "p", "p (Holm)")
    for one in found:
        grid.add_row(
            f"{one['this']:.4f}",
            one["run"],
            f"{one['other']:.4f}",
            f"{one['difference']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]",
            f"{one['p_value']:.4f}",
            f"{one['p_holm']:.4f}",
        )
    show.say(grid)


def swept(found: "Sequence[Sweep]") -> dict[str, Any]:
    """What sweeps found, for JSON: one's trials and importances, or those of each by its recipe."""
    told: dict[str, dict[str, Any]] = {
        one.name: {"trials": [vars(trial) for trial in one.trials], "importance": one.importance}
        for one in found
    }
    return told[found[0].name] if len(found) == 1 else {"recipes": told}


def sweeps(found: "Sequence[Sweep]", *, as_json: bool) -> None:
    """The best trials of a sweep; of several, each one's best."""
    if as_json:
        show.dump(swept(found))
        return
    if len(found) == 1:
        _trials(found[0])
        return
    lines = []
    for one in found:
        states = [trial.state for trial in one.trials]
        best = one.best
        lines.append(
            [
                one.name,
                "-" if best is None else _four(best.value),
                str(len(states)),
                str(states.count("pruned")),
                str(states.count("failed")),
                f"{sum(trial.seconds for trial in one.trials) / 60:.1f}",
                "" if best is None else " ".join(best.overrides),
            ]
        )
    names = ("recipe", f"best validation {found[0].metric}", "trials", "stopped", "failed")
    show.rows((*names, "minutes", "with"), lines)


def _trials(found: "Sweep") -> None:
    best = sorted(found.trials, key=lambda trial: -(trial.value or 0.0))
    if not best:
        show.say(f"{found.name}: no trial has ended yet")
        return
    keys = [text.partition("=")[0].rpartition(".")[2] for text in best[0].overrides]
    show.rows(
        ("trial", "validation", *keys, "seconds"),
        [
            [
                str(trial.number + 1),
                _four(trial.value) if trial.state == "complete" else trial.state,
                *(text.partition("=")[2] for text in trial.overrides),
                f"{trial.seconds:.0f}",
            ]
            for trial in best[:10]
        ],
    )


def demo(results: Mapping[str, Mapping[str, Any]], folder: Path, *, as_json: bool) -> None:
    """The variants of the demo, beside each other."""
    if as_json:
        show.dump(results)
        return
    grid = show.table("variant", "HR@10", "NDCG@10 [95%]", *SLICES, "alike", "kept", "time")
    for name, found in results.items():
        test = found["test"]
        low, high = test["intervals"]["NDCG@10"]
        slices = [test["slices"].get(part, {}) for part in SLICES]
        kept = [v for k, v in found["valid"].items() if k.endswith("spearman")]
        grid.add_row(
            name,
            f"{test['metrics']['HR@10']:.4f}",
            f"{test['metrics']['NDCG@10']:.4f} [{low:.4f}, {high:.4f}]",
            *(f"{part['NDCG@10']:.4f}" if part.get("n") else "-" for part in slices),
            f"{found['alike']:.2f}",
            " ".join(f"{value:.2f}" for value in kept) or "-",
            f"{found['seconds']['prepare'] + found['seconds']['train_and_validate']:.0f} s",
        )
    show.say(grid)
    show.say(
        "Test metrics over the whole catalogue, one seed. cold, tail, mid, head: NDCG@10 by how "
        "often the target trains (0, 1-5, more, most).\n"
        "alike: the share of listed items that share what these users go by with the last one "
        "taken.\n"
        "kept: modality retention, the Spearman correlation of the student's and the encoder's "
        "pair similarities, per modality.\n"
        f"Try: mmkd recommend {folder}/runs/demo-unlike --history ID,ID  (ids in "
        f"{folder}/data/items.csv)"
    )


def baselines(
    found: Mapping[str, Mapping[str, Any]], *, ks: tuple[int, ...], as_json: bool
) -> None:
    """A row a baseline; the cut-off is 10, or the last of the recipe's."""
    if as_json:
        show.dump(found)
        return
    k = 10 if 10 in ks else ks[-1]
    hit, gain = f"HR@{k}", f"NDCG@{k}"
    lines = []
    for name, baseline in found.items():
        test = baseline["test"]
        low, high = test["intervals"][gain]
        slices = [test["slices"][part] for part in SLICES]
        lines.append(
            [
                name,
                f"{test['metrics'][hit]:.4f}",
                f"{test['metrics'][gain]:.4f} [{low:.4f}, {high:.4f}]",
                *(f"{part[gain]:.4f}" if part["n"] else "-" for part in slices),
                f"{test['coverage@10']:.3f}",
                f"{baseline['seconds']:.1f}",
            ]
        )
    names = ("baseline", hit, f"{gain} [95%]", *SLICES, "coverage@10", "seconds")
    show.rows(names, lines)
    cases = " ".join(f"{part} {test['slices'][part]['n']}" for part in SLICES)
    show.say(
        f"{test['n']} test cases ({cases}), ranked as the recipe's student is; the slices show "
        f"{gain} by how often the target trains."
    )
