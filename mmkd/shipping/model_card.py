"""Model cards: what a run's ``result.json``, or a tuned encoder's record, says, to a README.md.

What every repository of the hub opens with: what it was trained on, how well it ranks and how sure
that is, whose encoders are in it and under which licence, and how it is used.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmkd import __version__
from mmkd.config.recipe import Recipe
from mmkd.encoders import EncoderCard, load_card
from mmkd.errors import MmkdError
from mmkd.files import read_json
from mmkd.terminal import printable

if TYPE_CHECKING:
    from mmkd.pipeline.run import Run

_LIBRARY = "mmkd"
_TAGS = (_LIBRARY, "recommender", "sequential-recommendation")
_SLICES = ("cold", "tail", "mid", "head")
_NONE = "\N{EN DASH}"


def run_card(run: "Run", recipe: Recipe, repository: str) -> str:
    """The README.md of a run's repository; ``recipe`` is the run's as it is sent."""
    kind, report = _headline(run.result)
    how = "Ranked among all items"
    if "intervals" in report:
        how += f", 95% intervals by bootstrap over {report['users']:,} users"
    sections = [
        _front(tags=[*_TAGS, *sorted({_kind(one) for one in _networks(run)})]),
        f"# {_text(recipe.name)}",
        f"A sequential recommender of {len(run.items):,} items, trained with mmkd {__version__}. "
        "It needs no encoder to recommend.",
        "## How to use it",
        _code(
            "python",
            "import mmkd\n\n"
            f'run = mmkd.load("{repository}")\n'
            "run.recommend([run.items.ids[1:3]], k=10)  # histories of item ids, oldest first\n"
            "run.similar([run.items.ids[1]], k=10)",
        ),
        "Weights, ids and titles are here: enough to recommend for histories, to find similar "
        "items by what the network learned, to export (`mmkd export`), and to add items (`mmkd "
        "add-items`, with the encoders below). The log, its users and the catalogue's texts and "
        "pictures are not: what reads them (`evaluate`, `recommend` for users of the log, "
        f"`similar` by an encoder) needs the data, in `{_text(recipe.data.root)}` below the "
        "working folder, and tells whether it is the same.",
        "## Data",
        _table(("what", ""), _data(run, report)),
        f"## Figures of the {kind}",
        f"{how}.",
        *_figures(run.result, kind, report),
        "## Encoders",
        *_encoders(run, recipe.encoders),
        "## Recipe",
        _code("yaml", printable(recipe.to_yaml().strip(), keep="\n")),
    ]
    return "\n\n".join(sections) + "\n"


def encoder_card(cards: Sequence[EncoderCard], folder: Path, repository: str) -> str:
    """The README.md of a tuned encoder's repository, or of one of both towers of a model."""
    card, alone = cards[0], len(cards) == 1
    parents = dict.fromkeys(f"`{_text(one.tuned.parent)}`" for one in cards if one.tuned)
    parent = f", tuned from {' and '.join(parents)} on a log," if parents else ""
    what = ["texts" if one.modality == "text" else "pictures" for one in cards]
    tower = "" if alone else f', tower="{card.modality}"'
    sections = [
        _front(tags=[_LIBRARY, *(one.modality for one in cards), "feature-extraction"]),
        f"# {_text(card.name if alone else folder.resolve().name)}",
        f"An encoder of {' and '.join(what)}{parent} with mmkd "
        f"{__version__}: items that are taken one after the other lie near each other.",
        "## How to use it",
        _code("sh", f"mmkd train shop.yaml {used_as(cards, repository)}"),
        _code(
            "python",
            "import mmkd\n\n"
            f'encoder = mmkd.load_card("{repository}"{tower}).build()\n'
            "encoder.encode([...])  # [n, dim]",
        ),
    ]
    if parents:
        sections.append(
            "It has seen the training events of one log and split. A recipe of the same log with "
            "another split is refused, as it would be tested on what the encoder was tuned on."
        )
    licence = card.license or "not named; that of the model it was tuned from"
    rows = [("kind", card.kind), ("width", str(card.dim or _NONE)), ("licence", licence)]
    sections += ["## Card", _table(("what", ""), rows)]
    if (record := folder / "tuning.json").is_file():
        sections += _tuning(read_json(record))
    return "\n\n".join(sections) + "\n"


def used_as(cards: Sequence[EncoderCard], repository: str) -> str:
    """How a recipe's overrides name what a repository holds."""
    return " ".join(f"encoders.{card.modality}={repository}" for card in cards)


def _front(*, tags: Sequence[str]) -> str:
    """What the hub reads."""
    content = {"library_name": _LIBRARY, "tags": list(dict.fromkeys(tags))}
    return f"---\n{yaml.safe_dump(content, sort_keys=False).strip()}\n---"


def _headline(result: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if result["test"]:
        return "test", result["test"]
    return "validation", result.get("validation") or {"metrics": result["valid"]}


def _networks(run: "Run") -> list[Mapping[str, Any]]:
    spec = run.folder.student_spec()
    members = spec.ensemble.get("members", 1)
    if isinstance(members, int):
        return [spec.backbone] * members
    return [member.get("backbone") or spec.backbone for member in members]


def _kind(backbone: Mapping[str, Any]) -> str:
    return str(backbone["kind"]).rpartition(":")[2].lower()


def _data(run: "Run", report: Mapping[str, Any]) -> list[tuple[str, str]]:
    recipe, marker = run.recipe, run.folder.marker()
    networks = ", ".join(_kind(one) for one in _networks(run))
    split = recipe.data.split
    options = ", ".join(f"{name} {value}" for name, value in split.options.items())
    return [
        ("data", Path(recipe.data.root).name or _NONE),
        ("items", f"{len(run.items):,}"),
        ("cases", f"{report['n']:,} of {report['users']:,} users" if "n" in report else _NONE),
        ("split", split.kind + (f" ({options})" if options else "")),
        ("networks", networks),
        ("parameters", f"{run.result.get('parameters', 0):,}"),
        ("seed", str(recipe.seed)),
        *((f"SHA-256 of the {name}", f"`{digest}`") for name, digest in marker["data"].items()),
    ]


def _figures(result: Mapping[str, Any], kind: str, report: Mapping[str, Any]) -> list[str]:
    metrics, intervals = report["metrics"], report.get("intervals", {})
    names = [name for name in metrics if not name.startswith("retention.")]
    baselines = (result.get("baselines") or {}) if kind == "test" else {}
    rows = [
        (
            name,
            f"{metrics[name]:.4f}",
            "[{:.4f}, {:.4f}]".format(*intervals[name]) if intervals.get(name) else _NONE,
            *(_four(one["test"]["metrics"].get(name)) for one in baselines.values()),
        )
        for name in names
    ]
    found = [_table(("metric", "value", "95% interval", *baselines), rows)]
    slices = {part: report.get("slices", {}).get(part) or {} for part in _SLICES}
    if any(one.get("n") for one in slices.values()):
        found.append("By how often the item asked for trains:")
        heads = [name for name in names if name.startswith(("HR@", "NDCG@"))]
        rows_of = [
            (part, f"{one.get('n', 0):,}", *(_four(one.get(name)) for name in heads))
            for part, one in slices.items()
        ]
        found.append(_table(("items", "cases", *heads), rows_of))
    return found


def _encoders(run: "Run", names: Mapping[str, str]) -> list[str]:
    if not names:
        return ["None: it learned from ids alone."]
    rows = []
    for modality, name in names.items():
        try:
            card = load_card(run.recipe.encoders[modality], tower=modality)
            told = card.license or "not named", str(card.model or card.kind), card.notes or _NONE
        except MmkdError:
            told = "not known here", _NONE, _NONE
        rows.append((modality, name, *told))
    return [
        "The networks' tables started as their vectors, reduced; the encoders themselves are not "
        "in this repository.",
        _table(("modality", "card", "licence", "model", "notes"), rows),
    ]


def _tuning(record: Mapping[str, Any]) -> list[str]:
    if not record.get("finished"):
        return []
    best = record["history"][record["best_epoch"]]["valid"]
    rows = [
        (name, _four(record["before"].get(name)), _four(value))
        for name, value in best.items()
        if name in record["before"]
    ]
    return [
        "## Figures of validation pairs",
        _table(("metric", f"before ({record['parent']})", "tuned"), rows),
    ]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return _text(" ".join(text.split())).replace("|", "\\|")


def _text(text: str) -> str:
    """A name in Markdown: what would be a tag is none."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;")


def _code(language: str, text: str) -> str:
    fence = "````" if "```" in text else "```"
    return f"{fence}{language}\n{text}\n{fence}"


def _four(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4f}"
