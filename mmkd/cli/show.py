"""What the commands print: tables for a person, or JSON for a program."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mmkd.config.recipe import Recipe
from mmkd.data.dataset import Dataset
from mmkd.data.inspection import Inspection
from mmkd.embeddings import EmbeddingTable, RunReport
from mmkd.terminal import PlainTable, console, printable, printable_json

if TYPE_CHECKING:
    from mmkd.shipping.export import Exported

_FILE_WIDTH = 120  # of tables that go to a file or another program


def dump(content: object) -> None:
    """Print JSON on standard output."""
    print(printable_json(json.dumps(content, indent=1, ensure_ascii=False)))


def started(data: Dataset, path: Path, *, as_json: bool) -> None:
    """What ``mmkd init`` guessed and wrote."""
    if as_json:
        dump({"recipe": str(path), "notes": [*data.notes], "options": data.options})
        return
    for line in data.notes:
        say(f"* {line}")
    say(
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
        dump({"recipe": str(recipe), **counts, "notes": [*notes]})
        return
    for line in notes:
        say(f"* {line}")
    say(
        ", ".join(f"{count:,} {name}" for name, count in counts.items())
        + f"\nwrote {recipe}, whose encoders need no download; better ones are named in it\n"
        f"next: mmkd validate {recipe}, then mmkd train {recipe}"
    )


def valid(recipe: Recipe, found: Inspection | None, *, as_json: bool) -> None:
    """A recipe without mistakes, and the data it would train on, where that was read."""
    if as_json:
        told: dict[str, Any] = {"recipe": recipe.name, "valid": True}
        dump(told if found is None else told | {"data": {**found.facts, "notes": [*found.notes]}})
        return
    say(f"{recipe.name}: valid")
    if found is not None:
        _inspected(found, recipe.data.split.kind)


def _inspected(found: Inspection, split: str) -> None:
    facts = found.facts
    first = facts["first_event"]
    say(
        f"{facts['users']:,} users, {facts['items']:,} items, {facts['events']:,} events from "
        f"{facts['from']} to {facts['until']}; the first: user {first['user']}, item "
        f"{first['item']} ({first['title']}), at {first['timestamp']}"
    )
    say(
        f"{facts['train_events']:,} events train, {facts['valid_cases']:,} cases validate and "
        f"{facts['test_cases']:,} test ({split}); of these {facts['valid_cases_cold']:,} and "
        f"{facts['test_cases_cold']:,} ask for items that never train"
    )
    for line in found.notes:
        say(f"* {line}")


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
        dump(rows)
        return
    columns = ("modality", "card", "items", "present", "encoded_now", "dim")
    grid = table(
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
    say(grid)
    for row in rows:
        if row["cut"]:
            say(
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


def items(found: Sequence[Mapping[str, Any]], *, title: str, as_json: bool) -> None:
    """Ranked items."""
    if as_json:
        dump(list(found))
        return
    say(ranked(found, title))


def written(found: Mapping[str, int], path: Path, *, as_json: bool) -> None:
    """Lists that went to a file."""
    if as_json:
        dump({"path": str(path), **found})
    else:
        say(f"{found['lists']} lists, {found['rows']} rows: {path}")


def exported(found: "Exported", *, as_json: bool) -> None:
    """What was exported, and how the graphs were held to the run."""
    if as_json:
        dump({**asdict(found), "folder": str(found.folder)})
        return
    say(f"{found.folder}: {found.items:,} items, vectors of {found.dim}; {', '.join(found.files)}")
    if found.index is not None:
        say(f"{found.index} finds {found.recall:.1%} of the ten best items by inner product")
    if found.difference is not None:
        log, strange = found.checked
        of_log = f"{log} histories of the log" if log else "no history of the log (it is not here)"
        say(
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
    say("how a service loads it: docs/export.md")


def reported(path: Path, runs: Sequence[str], *, as_json: bool) -> None:
    """A report that was written."""
    size = path.stat().st_size
    if as_json:
        dump({"path": str(path), "bytes": size, "runs": list(runs)})
    else:
        say(f"{path}: {size / 1e6:.1f} MB; open it in a browser")


def serving(address: str, runs: Sequence[str], *, token: bool, as_json: bool) -> None:
    """Where a server answers; told at once, as it goes on until it is stopped."""
    if as_json:
        dump({"address": address, "runs": list(runs), "token": token})
    else:
        say(f"{address} shows {' beside '.join(runs)}; Ctrl-C stops it")
    sys.stdout.flush()


def neighbours(
    by_encoder: Sequence[Mapping[str, Any]],
    by_student: Sequence[Mapping[str, Any]] | None,
    folder: Path,
    *,
    as_json: bool,
) -> None:
    """Neighbours by the encoder and by the student, side by side."""
    if as_json:
        dump({"encoder": by_encoder, "student": by_student})
        return
    if by_student is None:
        say(ranked(by_encoder, "by the encoder"))
        say(f"{folder} holds no trained student yet; mmkd train shows what it keeps of these")
        return
    grid = table("#", "by the encoder", "cosine", "by the student", "cosine")
    for place, (left, right) in enumerate(zip(by_encoder, by_student, strict=False), start=1):
        grid.add_row(
            str(place),
            f"{left['item']}  {left['title']}",
            f"{left['score']:.3f}",
            f"{right['item']}  {right['title']}",
            f"{right['score']:.3f}",
        )
    say(grid)


def rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table."""
    grid = table(*names)
    for row in rows:
        grid.add_row(*row)
    say(grid)


def ranked(found: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Items with their scores, the best first."""
    grid = table("#", "item", title, "score")
    for place, item in enumerate(found, start=1):
        grid.add_row(str(place), item["item"], item["title"], f"{item['score']:.3f}")
    return grid


def table(*names: str) -> Table:
    """An empty table with these columns."""
    grid = PlainTable(box=None, header_style="bold", pad_edge=False)
    for name in names:
        grid.add_column(name, no_wrap=name in ("card", "recipe", "run", "variant", "NDCG@10 [95%]"))
    return grid


def say(content: object) -> None:
    """Print a line or a table."""
    terminal = console(soft_wrap=isinstance(content, str))
    if not terminal.is_terminal:
        terminal.width = max(terminal.width, _FILE_WIDTH)
    terminal.print(printable(content, keep="\n") if isinstance(content, str) else content)


def records(records: Sequence[Mapping[str, Any]], *, none: str, as_json: bool) -> None:
    """Records of the same keys as a table; ``none`` where there is no record."""
    if as_json:
        dump(list(records))
    elif not records:
        say(none)
    else:
        names = list(records[0])
        rows(names, [[_told(record[name]) for name in names] for record in records])


def _told(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
