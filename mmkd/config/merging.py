"""Layers of a recipe: base, file and overrides to one mapping, old spellings among them.

A layer may be spelled as in release 0.1, which had the task and the loss in one mapping; that is
read for one release more, with a line that names the new key. A layer that leaves no encoder makes
an ids-only recipe of what lies below it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmkd.config.options import show

_TASKS = ("next_item", "masked_item")
_TASK_OPTIONS = ("views", "crop", "mask", "reorder", "mask_ratio", "last_only", "window_step")
_NULL_WAS_DEFAULT = ("negatives", "sampling", "calibration")
_NEW_KEYS = {
    "kind": "task.kind",
    "loss": "objective.recommendation.kind",
    **{name: f"task.{name}" for name in _TASK_OPTIONS},
}
_WITHOUT_ENCODERS: dict[str, Any] = {
    "distiller": None,
    "objective.correlation": None,
    "objective.neighbours": None,
    "asynchronous": "none",
    "student.score_with": "id",
    "tune": {},
}


@dataclass(frozen=True)
class Merged:
    """What layers say together.

    Attributes:
        content: One mapping in today's spelling.
        notices: A line for each key in an old spelling, which names the new one.
        notes: A line for each layer that leaves no encoder, which names what follows.
        problems: A line for each old key that has no heir.
    """

    content: dict[str, object]
    notices: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def merge(lower: Mapping[str, object], upper: Mapping[str, object]) -> dict[str, object]:
    """Puts one mapping over another.

    Mappings merge key by key; anything else is replaced, and so is a mapping whose `kind` changes,
    since the options of one kind mean nothing to another.

    Args:
        lower: What holds where `upper` says nothing.
        upper: What wins.

    Returns:
        A new mapping.
    """
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(below, str) and isinstance(value, Mapping) and "kind" not in value:
            below = {"kind": below}  # options added to a kind that was written as a bare name
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            kinds = [mapping["kind"] for mapping in (below, value) if "kind" in mapping]
            other_kind = len(kinds) == 2 and kinds[0] != kinds[1]
            merged[key] = dict(value) if other_kind else merge(below, value)
        else:
            merged[key] = value
    return merged


def merge_layers(layers: Iterable[tuple[str, Mapping[str, object]]]) -> Merged:
    """Merges mappings, lowest first, that are spelled as today or as in release 0.1.

    Release 0.1 had the task and the loss in one mapping, `objective.recommendation: {kind:
    next_item, loss: gbce, views: 2}`. A layer that is spelled so is merged as it was then, with
    what lies below it put into that spelling, so that it means what it meant.

    A layer that leaves no encoder, such as `encoders: null`, takes from what lies below it all that
    is of use with encoders alone. What it sets itself beside that stays, and is judged as ever.

    Args:
        layers: Where each was read, and what it holds.
    """
    merged: dict[str, object] = {}
    notices: list[str] = []
    notes: list[str] = []
    for source, layer in layers:
        merged, followed = _without_encoders(merged, layer)
        if followed:
            told = ", ".join(followed)
            notes.append(f"{source}: no encoder is left, so only ids are learned: {told}")
        objective = layer.get("objective")
        if not isinstance(objective, Mapping):
            merged = merge(merged, layer)
            continue
        correlation, renamed = _normalized(objective.get("correlation"))
        recommendation = _task_and_loss(objective.get("recommendation"))
        objective = {**objective, "correlation": correlation} if renamed else dict(objective)
        if recommendation is not None:
            del objective["recommendation"]
        merged = merge(merged, {**layer, "objective": objective})
        if recommendation is not None:
            below = _as_mapping(merged["objective"])
            task, loss = _split(_merged_as_one(merged.get("task"), below, recommendation))
            merged |= {"task": task, "objective": {**below, "recommendation": loss}}
            renamed |= {f"recommendation.{key}": _NEW_KEYS.get(key) for key in recommendation}
        notices += [
            f"{source}: objective.{old}: is called {new} now; rename it, the next release reads "
            "that alone"
            for old, new in renamed.items()
            if new
        ]
    merged, problems = _without_exact_reference(merged)
    return Merged(merged, tuple(notices), tuple(notes), tuple(problems))


def _without_encoders(
    below: dict[str, object], layer: Mapping[str, object]
) -> tuple[dict[str, object], list[str]]:
    """What lies below a layer, for ids alone where the layer leaves no encoder; and what changed.

    Told is only what the layer doesn't set itself.
    """
    if "encoders" not in layer:
        return below, []
    cards = merge({"cards": below.get("encoders")}, {"cards": layer["encoders"]})["cards"]
    if any(card is not None for card in _as_mapping(cards).values()):
        return below, []
    followed = []
    for key, value in _WITHOUT_ENCODERS.items():
        section, _, name = key.rpartition(".")
        old: Any = below.get(section) if section else below
        own: Any = layer.get(section) if section else layer
        if not isinstance(old, Mapping) or _kind(old.get(name, value)) == value:
            continue
        changed = {**old, name: value}
        below = {**below, section: changed} if section else changed
        if not isinstance(own, Mapping) or name not in own:
            followed.append(f"{key} is {show(value).strip(chr(39))}")
    ensemble = _as_mapping(below.get("ensemble"))
    left = _of_ids(ensemble)
    if left != ensemble:
        below = {**below, "ensemble": left}
        own_ensemble = _as_mapping(layer.get("ensemble"))
        followed += [
            f"ensemble.{key} is {show(left[key]) if left else 1}"
            for key in (left or ("members",))
            if left.get(key) != ensemble[key] and key not in own_ensemble
        ]
    return below, followed


def _of_ids(ensemble: dict[str, object]) -> dict[str, object]:
    """An ensemble's options without those that need an encoder; none where one network is left."""
    left = dict(ensemble)
    networks, weights = ensemble.get("members"), ensemble.get("weights")
    if isinstance(networks, list):
        kept = [n for n, one in enumerate(networks) if _reads_ids(one)]
        if len(kept) < min(2, len(networks)):
            return {}  # one network needs nothing of what adds several up
        left["members"] = [_without_modalities(networks[n]) for n in kept]
        if isinstance(weights, list) and len(weights) == len(networks):
            left["weights"] = [weights[n] for n in kept]
    if ensemble.get("untrained_offset") is not None:
        left["untrained_offset"] = None  # ids say nothing of untrained items
    return left


def _without_modalities(member: object) -> object:
    named = isinstance(member, Mapping) and member.get("modalities")
    return {**member, "modalities": []} if named else member  # type: ignore[dict-item]


def _reads_ids(member: object) -> bool:
    return not isinstance(member, Mapping) or member.get("ids", True) is not False


def _kind(value: object) -> object:
    return value.get("kind") if isinstance(value, Mapping) and "kind" in value else value


def _normalized(correlation: object) -> tuple[object, dict[str, str | None]]:
    """`normalise` as `normalize`, and what was renamed."""
    if not isinstance(correlation, Mapping) or "normalise" not in correlation:
        return correlation, {}
    rest = {key: value for key, value in correlation.items() if key != "normalise"}
    new = {"normalize": correlation["normalise"], **rest}
    return new, {"correlation.normalise": "objective.correlation.normalize"}


def _task_and_loss(recommendation: object) -> dict[str, object] | None:
    """What release 0.1 called a recommendation; None where it is spelled as today."""
    options = _as_mapping(recommendation)
    kind = options.get("kind")
    partial = kind is None and any(name in options for name in _TASK_OPTIONS)
    return options if kind in _TASKS or "loss" in options or partial else None


def _merged_as_one(
    task: object, objective: Mapping[str, object], upper: Mapping[str, object]
) -> dict[str, object]:
    loss = _as_mapping(objective.get("recommendation"))
    lower = _as_mapping(task) | {"loss" if k == "kind" else k: v for k, v in loss.items()}
    return _as_mapping(merge({"both": lower}, {"both": upper})["both"])


def _split(both: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    task = {key: value for key, value in both.items() if key in ("kind", *_TASK_OPTIONS)}
    loss = {"kind": both.get("loss", "softmax")} | {
        key: value
        for key, value in both.items()
        if key not in task and key != "loss" and not (value is None and key in _NULL_WAS_DEFAULT)
    }
    return task, loss


def _as_mapping(value: object) -> dict[str, object]:
    if isinstance(value, str):
        return {"kind": value}
    return dict(value) if isinstance(value, Mapping) else {}


def _without_exact_reference(content: dict[str, object]) -> tuple[dict[str, object], list[str]]:
    """Drops a key of release 0.1 that has no heir; a problem where it was set."""
    objective = content.get("objective")
    if not isinstance(objective, Mapping) or "exact_reference" not in objective:
        return content, []
    rest = {key: value for key, value in objective.items() if key != "exact_reference"}
    problem = (
        f"objective.exact_reference: got {show(objective['exact_reference'])}, but only the "
        "papers' formulas are computed now, not the public code's; remove it"
    )
    problems = [] if objective["exact_reference"] is False else [problem]
    return {**content, "objective": rest}, problems
