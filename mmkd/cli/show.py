"""What the commands print: results as tables for a person, or as JSON for a program."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mmkd.cli.arguments import RUNS
from mmkd.config.recipe import Recipe
from mmkd.data.dataset import Dataset
from mmkd.data.inspection import Inspection
from mmkd.embeddings import EmbeddingTable, RunReport
from mmkd.errors import MmkdError
from mmkd.runs.folder import RunFolder
from mmkd.terminal import PlainTable, console, printable, printable_json

if TYPE_CHECKING:
    from mmkd.pipeline.study import Sweep
    from mmkd.shipping.export import Exported

METRICS = ("HR@10", "NDCG@10", "MRR@10")
_FILE_WIDTH = 120  # of tables that go to a file or another program
SLICES = ("cold", "tail", "mid", "head")


def as_json(content: object) -> None:
    """Print JSON on standard output."""
    print(printable_json(json.dumps(content, indent=1, ensure_ascii=False)))


def started(data: Dataset, path: Path, *, as_json: bool) -> None:
    """What ``mmkd init`` guessed and wrote."""
    if as_json:
        _json({"recipe": str(path), "notes": [*data.notes], "options": data.options})
        return
    for line in data.notes:
        _print(f"* {line}")
    _print(
        f"{data.split.user_count:,} users, {len(data.items):,} items, {len(data.log):,} events\n"
        f"wrote {path}, whose encoders need no download; better ones are named in it\n"
        f"next: mmkd validate {path}, then mmkd train {path}"
    )


def gotten(data: Dataset, recipe: Path, notes: Sequence[str], *, as_json: bool) -> None:
    """A published data set that is ready."""
    counts = {
        "users": data.split.user_count,
        "items": len(data.items),
        "events": len(data.log),
        "pictures": len(data.items) - data.items.frame[1:]["image_path"].null_count(),
    }
    if as_json:
        _json({"recipe": str(recipe), **counts, "notes": [*notes]})
        return
    for line in notes:
        _print(f"* {line}")
    _print(
        ", ".join(f"{count:,} {name}" for name, count in counts.items())
        + f"\nwrote {recipe}, whose encoders need no download; better ones are named in it\n"
        f"next: mmkd validate {recipe}, then mmkd train {recipe}"
    )


def valid(recipe: Recipe, found: Inspection | None, *, as_json: bool) -> None:
    """A recipe without mistakes, and the data it would train on, where that was read."""
    if as_json:
        told: dict[str, Any] = {"recipe": recipe.name, "valid": True}
        _json(told if found is None else told | {"data": {**found.facts, "notes": [*found.notes]}})
        return
    _print(f"{recipe.name}: valid")
    if found is not None:
        _inspected(found, recipe.data.split.kind)


def _inspected(found: Inspection, split: str) -> None:
    facts = found.facts
    first = facts["first_event"]
    _print(
        f"{facts['users']:,} users, {facts['items']:,} items, {facts['events']:,} events from "
        f"{facts['from']} to {facts['until']}; the first: user {first['user']}, item "
        f"{first['item']} ({first['title']}), at {first['timestamp']}"
    )
    _print(
        f"{facts['train_events']:,} events train, {facts['valid_cases']:,} cases validate and "
        f"{facts['test_cases']:,} test ({split}); of these {facts['valid_cases_cold']:,} and "
        f"{facts['test_cases_cold']:,} ask for items that never train"
    )
    for line in found.notes:
        _print(f"* {line}")


def tables(
    tables: Mapping[str, EmbeddingTable],
    absent: Mapping[str, Mapping[str, int]],
    *,
    encoded: Mapping[str, int],
    reports: Mapping[str, RunReport],
    as_json: bool,
) -> None:
    """What ``mmkd embed`` did."""
    rows: list[dict[str, Any]] = [
        {
            **_pace(reports.get(name)),
            "modality": name,
            "card": table.card_name,
            "items": len(table),
            "present": int(table.present.sum()),
            "encoded_now": encoded.get(name, 0),
            "dim": table.dim,
            "absent": dict(absent[name]),
        }
        for name, table in tables.items()
    ]
    if as_json:
        _json(rows)
        return
    columns = ("modality", "card", "items", "present", "encoded_now", "dim")
    grid = _grid(
        *(column.replace("_", " ") for column in columns),
        "items/s",
        "waited",
        "absent because",
    )
    for row in rows:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in row["absent"].items())
        grid.add_row(
            *(str(row[key]) for key in columns),
            f"{row['items_per_s']:.0f}" if row["items_per_s"] is not None else "-",
            f"{row['waited']:.1%}" if row["waited"] is not None else "-",
            reasons,
        )
    _print(grid)
    for row in rows:
        if row["cut"]:
            _print(
                f"{row['modality']}: {row['cut']:,} of {row['encoded_now']:,} texts are longer "
                f"than {row['card']} takes and were cut: what stands last in data.items.text is in "
                "none of their vectors; put what matters first, or raise max_length_tokens"
            )


def _pace(report: RunReport | None) -> dict[str, float | None]:
    """Of this process: inputs a second, the share its encoder had to wait, texts that were cut."""
    if report is None:
        return {"items_per_s": None, "waited": None, "cut": None}
    return {
        "items_per_s": round(report.per_second, 2),
        "waited": round(report.waited, 4),
        "cut": report.cut,
    }


def result(result: Mapping[str, Any], folder: Path, *, as_json: bool) -> None:
    """A finished run: figures beside validation's and baselines', its cost, what is next."""
    if as_json:
        _json({**result, "folder": str(folder)})
        return
    _print(_beside(result))
    if kept := {k: v for k, v in result["valid"].items() if k.startswith("retention.")}:
        _print(f"kept of the encoders (Spearman, recall@10): {_kept(kept)}")
    seconds, processes = result["seconds"], result["processes"]
    parameters = f"{result['parameters']:,} parameters; " if "parameters" in result else ""
    what, of = ("test", result["test"]) if result["test"] else ("validation", result["validation"])
    total = f"{seconds['total']:.1f} s in all, " if "total" in seconds else ""
    _print(
        f"best epoch {result['best_epoch'] + 1} of {result['epochs']}; {parameters}"
        f"{of['n']:,} {what} cases of {of['users']:,} users"
    )
    _print(
        f"{total}{seconds['epoch']:.1f} s an epoch, {seconds['validation']:.1f} s a validation; "
        f"{processes} process{'es' if processes > 1 else ''}, "
        f"peak memory {result['peak_memory_bytes'] / 2**20:.0f} MiB"
    )
    name = _run_name(folder)
    then = "--against ANOTHER-RUN" if result["test"] else " # the test, which was not read"
    _print(
        f"run: {folder}; next:\n"
        f"  mmkd recommend {name} --history {_example(folder)} -k 5\n"
        f"  mmkd recommend {name} --all-users -k 20 --out {shlex.quote(folder.name)}.parquet\n"
        f"  mmkd evaluate {name} {then}"
    )


def seeds(summary: Mapping[str, Any], folder: Path, *, as_json: bool) -> None:
    """Several seeds' runs: each figure's mean, its interval over users and seeds, the seeds'."""
    if as_json:
        _json({**summary, "folder": str(folder)})
        return
    kind = "test" if summary["test"] else "valid"
    report = summary["test"] or {"metrics": summary["valid"], "slices": {}}
    k = _cutoff(report)
    names = [str(seed) for seed in summary["seeds"]]
    told = "test" if kind == "test" else "validation"
    grid = _grid(told, "mean", "95% interval", "deviation", *(f"seed {name}" for name in names))
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
    _print(grid)
    over = (
        f"{report['n']:,} test cases of {report['users']:,} users; intervals are over users and "
        "seeds, deviations between seeds"
        if kind == "test"
        else "no test was read; deviations are between seeds"
    )
    name, first = _run_name(folder), summary["runs"][0]
    _print(
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
    grid = _grid("", *(title for name in reports for title in (name, "95% interval")), *baselines)
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
        _json(report)
        return
    if unfinished := report.get("unfinished"):
        _print(unfinished)
    grid = _grid("metric", "value", "95% interval")
    for name, value in report["metrics"].items():
        low, high = report["intervals"][name]
        grid.add_row(name, f"{value:.4f}", f"[{low:.4f}, {high:.4f}]")
    _print(grid)
    breakdown = report.get("breakdown") or {}
    parts = {name: breakdown[name] for name in ("all", "warm") if name in breakdown}
    grid = _grid("targets", "cases", *METRICS)
    for name, part in (parts | report["slices"]).items():
        shown = [f"{part[m]:.4f}" if part["n"] and m in part else "-" for m in METRICS]
        grid.add_row(name, str(part["n"]), *shown)
    _print(grid)
    lists = {k: v for k, v in report.items() if k.startswith("coverage")}
    lists |= breakdown.get("lists", {})
    told = "  ".join(f"{k} {v:.3f}" for k, v in lists.items() if v is not None)
    _print(f"{report['n']} cases of {report['users']} users  {told}")


def comparison(found: Mapping[str, Any], first: str, second: str, *, as_json: bool) -> None:
    """A paired test of two runs."""
    if as_json:
        _json(found)
        return
    if unfinished := found.get("unfinished"):
        _print(unfinished)
    low, high = found["interval"]
    _print(
        f"{found['metric']}: {first} {found['first']:.4f}, {second} {found['second']:.4f}; "
        f"difference {found['difference']:+.4f} [{low:+.4f}, {high:+.4f}], "
        f"p = {found['p_value']:.4f} (paired permutation test over {found['users']} users)"
    )


def items(found: Sequence[Mapping[str, Any]], *, title: str, as_json: bool) -> None:
    """Ranked items."""
    if as_json:
        _json(list(found))
        return
    _print(_ranked(found, title))


def written(found: Mapping[str, int], path: Path, *, as_json: bool) -> None:
    """Lists that went to a file."""
    if as_json:
        _json({"path": str(path), **found})
    else:
        _print(f"{found['lists']} lists, {found['rows']} rows: {path}")


def exported(found: "Exported", *, as_json: bool) -> None:
    """What was exported, and how the graphs were held to the run."""
    if as_json:
        _json({**asdict(found), "folder": str(found.folder)})
        return
    _print(
        f"{found.folder}: {found.items:,} items, vectors of {found.dim}; {', '.join(found.files)}"
    )
    if found.index is not None:
        _print(f"{found.index} finds {found.recall:.1%} of the ten best items by inner product")
    if found.difference is not None:
        log, strange = found.checked
        of_log = f"{log} histories of the log" if log else "no history of the log (it is not here)"
        _print(
            f"checked on {of_log} and {strange} random ones: scores differ from torch's by "
            f"{found.difference:.1g} at most"
        )
        rows(
            ("ms a request", "torch", "onnxruntime"),
            [
                [f"batch of {size}", *(f"{one:.2f}" for one in taken)]
                for size, taken in found.milliseconds.items()
            ],
        )
    _print("how a service loads it: docs/export.md")


def reported(path: Path, runs: Sequence[str], *, as_json: bool) -> None:
    """A report that was written."""
    size = path.stat().st_size
    if as_json:
        _json({"path": str(path), "bytes": size, "runs": list(runs)})
    else:
        _print(f"{path}: {size / 1e6:.1f} MB; open it in a browser")


def serving(address: str, runs: Sequence[str], *, token: bool, as_json: bool) -> None:
    """Where a server answers; told at once, as it goes on until it is stopped."""
    if as_json:
        _json({"address": address, "runs": list(runs), "token": token})
    else:
        _print(f"{address} shows {' beside '.join(runs)}; Ctrl-C stops it")
    sys.stdout.flush()


def compared(found: Sequence[Mapping[str, Any]], first: str, metric: str, *, as_json: bool) -> None:
    """One run against others."""
    if as_json:
        _json({"run": first, "metric": metric, "others": list(found)})
        return
    grid = _grid(f"{metric} of {first}", "against", "", "difference [95%]", "p", "p (Holm)")
    for one in found:
        grid.add_row(
            f"{one['this']:.4f}",
            one["run"],
            f"{one['other']:.4f}",
            f"{one['difference']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]",
            f"{one['p_value']:.4f}",
            f"{one['p_holm']:.4f}",
        )
    _print(grid)


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
        _json(swept(found))
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
    rows((*names, "minutes", "with"), lines)


def _trials(found: "Sweep") -> None:
    best = sorted(found.trials, key=lambda trial: -(trial.value or 0.0))
    if not best:
        _print(f"{found.name}: no trial has ended yet")
        return
    keys = [text.partition("=")[0].rpartition(".")[2] for text in best[0].overrides]
    rows(
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


def neighbours(
    by_encoder: Sequence[Mapping[str, Any]],
    by_student: Sequence[Mapping[str, Any]] | None,
    folder: Path,
    *,
    as_json: bool,
) -> None:
    """Neighbours by the encoder and by the student, side by side."""
    if as_json:
        _json({"encoder": by_encoder, "student": by_student})
        return
    if by_student is None:
        _print(_ranked(by_encoder, "by the encoder"))
        _print(f"{folder} holds no trained student yet; mmkd train shows what it keeps of these")
        return
    grid = _grid("#", "by the encoder", "cosine", "by the student", "cosine")
    for place, (left, right) in enumerate(zip(by_encoder, by_student, strict=False), start=1):
        grid.add_row(
            str(place),
            f"{left['item']}  {left['title']}",
            f"{left['score']:.3f}",
            f"{right['item']}  {right['title']}",
            f"{right['score']:.3f}",
        )
    _print(grid)


def demo(results: Mapping[str, Mapping[str, Any]], folder: Path, *, as_json: bool) -> None:
    """The variants of the demo, beside each other."""
    if as_json:
        _json(results)
        return
    grid = _grid("variant", "HR@10", "NDCG@10 [95%]", *SLICES, "alike", "kept", "time")
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
    _print(grid)
    _print(
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
        _json(found)
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
    rows(names, lines)
    cases = " ".join(f"{part} {test['slices'][part]['n']}" for part in SLICES)
    _print(
        f"{test['n']} test cases ({cases}), ranked as the recipe's student is; the slices show "
        f"{gain} by how often the target trains."
    )


def rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table."""
    grid = _grid(*names)
    for row in rows:
        grid.add_row(*row)
    _print(grid)


def _ranked(found: Sequence[Mapping[str, Any]], title: str) -> Table:
    grid = _grid("#", "item", title, "score")
    for place, item in enumerate(found, start=1):
        grid.add_row(str(place), item["item"], item["title"], f"{item['score']:.3f}")
    return grid


def _grid(*names: str) -> Table:
    grid = PlainTable(box=None, header_style="bold", pad_edge=False)
    for name in names:
        grid.add_column(name, no_wrap=name in ("card", "recipe", "run", "variant", "NDCG@10 [95%]"))
    return grid


def _print(content: object) -> None:
    terminal = console(soft_wrap=isinstance(content, str))
    if not terminal.is_terminal:
        terminal.width = max(terminal.width, _FILE_WIDTH)
    terminal.print(printable(content, keep="\n") if isinstance(content, str) else content)


_json = as_json


def records(records: Sequence[Mapping[str, Any]], *, none: str, as_json: bool) -> None:
    """Records of the same keys as a table; ``none`` where there is no record."""
    if as_json:
        _json(list(records))
    elif not records:
        _print(none)
    else:
        names = list(records[0])
        rows(names, [[_told(record[name]) for name in names] for record in records])


def _told(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
