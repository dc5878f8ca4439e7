"""Tuning an encoder on a log: a data set and a card to a new card with weights of its own.

Pairs come from training events, the best epoch from validation pairs; events that test are not
read. The folder ``encoders/NAME`` then holds ``card.yaml``, the weights, and ``tuning.json``, which
tells how it went. Both towers of one model may learn together: then a card for each, one model.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from mmkd.config.plan import Plan, plan
from mmkd.data.dataset import Dataset
from mmkd.embeddings import EmbeddingTable
from mmkd.embeddings.inputs import sources_of
from mmkd.encoders import EncoderCard, load_card
from mmkd.encoders.base import TunableEncoder
from mmkd.encoders.card import (
    CARD_FILE,
    CARD_FILES,
    TOWER_CARDS,
    TunedOn,
    card_files,
    name_of_file,
    save_card,
)
from mmkd.encoders.loading import local_path, resolve_model
from mmkd.encoders.offline import check_at_hand
from mmkd.encoders.registry import encoder_class
from mmkd.errors import EncoderError, RunError, refuse
from mmkd.files import read_json, write_json, writer_lock
from mmkd.memory import check_fits
from mmkd.pipeline.embed import EmbedProgress, embed
from mmkd.training.progress import peak_memory_bytes, start_trackers
from mmkd.training.trainer import slow_precision
from mmkd.tuning import Tower, TrainingPairs, Tuner, TuningArguments
from mmkd.tuning.adapters import keep_adapter, merge_adapter, prepare
from mmkd.tuning.contents import Contents
from mmkd.tuning.retrieval import Retrieval, joined

RECORD = "tuning.json"
_WEIGHTS, _ADAPTER = "model", "adapter"
_LOCK = "writer.lock"
_TRACKERS = "trackers"  # whatever files they write
_OWN = (RECORD, *CARD_FILES, _WEIGHTS, _ADAPTER, "checkpoints", _TRACKERS)
# arguments that a resumed tuning may be given anew
_MAY_CHANGE = ("checkpoint_every_s", "cpu", "epochs", "threads", "trackers")
_COPIES = 4  # of the weights while they learn: themselves, gradients, two moments of AdamW


def tune(planned: Plan, *, encoder: str = "text", **options: Any) -> EncoderCard:
    """Tune one of a recipe's encoders on its training events: `tune_together` of that one alone.

    Args:
        planned: The recipe.
        encoder: Name of the modality.
        options: As for ``tune_together``.

    Returns:
        The new card.

    Raises:
        MmkdError: As ``tune_together``.
    """
    return tune_together(planned, encoders=(encoder,), **options)[encoder]


def tune_together(
    planned: Plan,
    *,
    encoders: Sequence[str],
    name: str | None = None,
    folder: Path = Path("encoders"),
    resume: bool = False,
    overwrite: bool = False,
    progress: EmbedProgress | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, EncoderCard]:
    """Tune one of a recipe's encoders on its training events, or both towers of one model.

    Args:
        planned: The recipe; its ``tune`` section says how.
        encoders: Names of the modalities.
        name: See ``tuned_folder``.
        folder: Where cards are.
        resume: Continue an interrupted tuning; a finished one's cards are just returned.
        overwrite: Start anew where there is a tuning already.
        progress: Told how far the parents' encoding of what the cache lacks is.
        announce: Told in one line what learns from what.

    Returns:
        The new cards by modality.

    Raises:
        RunError: The folder holds something else, the recipe has no such encoder, or the memory is
            too small.
        EncoderError: An encoder cannot be tuned, or not together with the other, or its weights
            are not to be had.
        DataError: There is no pair to learn from.
        EvaluationError: There is no validation pair.
        TrainingError: A tracker isn't installed.
        TrainingInterrupted: After SIGINT or SIGTERM, once a checkpoint is written.
    """
    path = tuned_folder(planned, encoders, name=name, folder=folder)
    # in the recipe's order, whichever they are named in
    cards = {name: card for name, card in planned.cards.items() if name in encoders}
    arguments, seed = planned.tuning_of(encoders), planned.recipe.seed
    for encoder, card in cards.items():
        check_tunable(card, arguments)
        check_at_hand(card, key=f"encoders.{encoder}")
    check_one_model([*cards.values()])
    files = _card_files(path, cards)
    tuner = Tuner(arguments)
    accelerator = tuner.accelerator(folder=path / _TRACKERS)
    main = accelerator.is_main_process
    with writer_lock(path) if main else nullcontext():
        data = planned.load_data()
        marker = _marker([*cards.values()], arguments, data, seed=seed)
        with accelerator.main_process_first():
            if main:
                _open(path, files, marker, resume=resume, overwrite=overwrite)
        record = read_json(path / RECORD)
        if record["finished"]:
            return _loaded(files)
        only = replace(planned, cards=cards)
        tables = embed(only, data.items, progress=progress if main else None)

        models = _models(cards, arguments, device=str(accelerator.device))
        adapted = prepare(models[0].model, arguments, seed=seed)
        towers = {
            encoder: _tower(planned, data, model, card, tables[encoder], arguments)
            for model, (encoder, card) in zip(models, cards.items(), strict=True)
        }
        pairs = TrainingPairs.of(
            data.split,
            np.any([table.present for table in tables.values()], axis=0),
            window=arguments.window,
            popularity_power=arguments.popularity_power,
        )
        before = joined(
            {
                encoder: tower.validate(partial(_tensor, tables[encoder]))
                for encoder, tower in towers.items()
            }
        )
        if main and announce:
            if slow := slow_precision(accelerator):
                announce(slow)
            announce(_announcement(path.name, marker, pairs, arguments, models[0], before))
        if arguments.trackers:
            _start_trackers(accelerator, path, marker)
        report = tuner.fit(
            towers, pairs, folder=path, accelerator=accelerator, resume=resume, seed=seed
        )
        for tracker in accelerator.trackers:
            tracker.finish()
        if main:
            _write(files, cards, models, adapted, data, seed)
            write_json(
                path / RECORD,
                {
                    **record,
                    "finished": True,
                    "before": before,
                    **asdict(report),
                    "pairs_known": len(pairs.rows),
                    "processes": accelerator.num_processes,
                    "peak_memory_bytes": peak_memory_bytes(),
                },
            )
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
            if announce and before["NDCG@10"] >= report.best_metric:
                announce(
                    f"{path.name}: no epoch ranks validation pairs better than {marker['parent']} "
                    f"does ({before['NDCG@10']:.4f}); use that"
                )
        accelerator.wait_for_everyone()
        return _loaded(files)


def tuned_folder(planned: Plan, encoders: Sequence[str], *, name: str | None, folder: Path) -> Path:
    """Where encoders go that are tuned together.

    Args:
        planned: The recipe.
        encoders: Names of the modalities.
        name: Of the new card, or what the cards' names begin with where there are several; None is
            the recipe's name, and of one encoder the modality's behind it.
        folder: Where cards are.

    Raises:
        RunError: The recipe has no such encoder, or one is named twice.
    """
    for encoder in encoders:
        if encoder not in planned.cards:
            raise RunError(
                f"--encoder {encoder}: {planned.recipe.name} has no such encoder; it has "
                f"{', '.join(planned.cards) or 'none'}"
            )
        if list(encoders).count(encoder) > 1:
            raise RunError(f"--encoder {encoder}: named twice; name each once")
    own = "" if len(encoders) > 1 else f"-{encoders[0]}"
    return folder / (name or f"{planned.recipe.name}{own}")


def tune_first(planned: Plan, **options: Any) -> Plan:
    """The plan with the encoders tuned that its recipe's ``tune`` section names.

    One that is tuned already, on the same data and in the same way, is taken as it is.

    Args:
        planned: The recipe.
        options: ``folder``, ``progress`` and ``announce`` as for ``tune``.

    Returns:
        A plan whose recipe names the tuned cards and tunes nothing, so that a run of it can be
        opened without tuning.
    """
    recipe = planned.recipe
    if not recipe.tune:
        return planned
    cards = dict(planned.cards)
    for key in recipe.tune:
        cards |= tune_together(planned, encoders=key.split("+"), resume=True, **options)
    names = {name: cards[name].name for name in recipe.tuned}
    changed = recipe.model_copy(update={"encoders": recipe.encoders | names, "tune": {}})
    return plan(changed, cards=cards, data=planned.data)


def check_tunable(card: EncoderCard, arguments: TuningArguments) -> None:
    """Refuse, before anything is loaded, what cannot be tuned or does not fit into memory.

    Raises:
        EncoderError: The card's kind has no weights to tune, or is quantised without adapters.
        RunError: Weights, gradients and the optimiser's state are larger than all memory.
    """
    tunable = all(hasattr(encoder_class(card.kind), n) for n in ("differentiable", "save"))
    if not tunable or card.holds_object:
        raise EncoderError(
            f"card {card.name}: kind {card.kind} cannot be tuned; sentence_transformer, "
            "language_model, clip and vision can"
        )
    quantised = card.options.get("quantize_bits") is not None
    if quantised and (arguments.lora_rank is None or card.options.get("adapter") is not None):
        raise EncoderError(
            f"card {card.name}: weights in {card.options['quantize_bits']} bits cannot learn and "
            "carry one adapter; give lora_rank, and a card without an adapter"
        )
    copies = 1 if arguments.lora_rank is not None else _COPIES
    refuse(
        check_fits(
            copies * _weight_bytes(card),
            f"{card.name}: weights, gradients and the optimiser's state",
            "give lora_rank, such as 16, or tune a smaller model",
        ),
        RunError,
    )


def check_one_model(cards: Sequence[EncoderCard]) -> None:
    """Refuse, before anything is loaded, encoders that cannot learn together.

    Raises:
        EncoderError: They are not the towers of one model.
    """
    if len(cards) == 1:
        return
    names = " and ".join(card.name for card in cards)
    for card in cards:
        if not hasattr(encoder_class(card.kind), "share_model"):
            raise EncoderError(
                f"{names}: kind {card.kind} has not two towers; tune them one by one (--encoder)"
            )
    what = ("kind", "model", "revision", "dtype")
    other = [name for name in what if len({getattr(card, name) for card in cards}) > 1]
    if other:
        raise EncoderError(
            f"{names}: are of another {' and '.join(other)}, so they have no space in common; name "
            "the towers of one model, or tune them one by one (--encoder)"
        )
    if len({card.modality for card in cards}) < len(cards):
        raise EncoderError(f"{names}: are the same tower; name a text and an image tower")


def _weight_bytes(card: EncoderCard) -> float:
    """What its weights take, by the card's label or its local files; 0 where neither tells."""
    if card.size_mb is not None:
        return card.size_mb * 1e6
    if card.model is None or local_path(card.model) is None:
        return 0.0
    source = Path(resolve_model(card.model, revision=card.revision)[0])
    return float(sum(file.stat().st_size for file in source.rglob("*.safetensors")))


def _learning(card: EncoderCard, arguments: TuningArguments) -> EncoderCard:
    """The card as its weights learn: in float32, unless only adapters do."""
    if arguments.lora_rank is not None:
        return card
    return card.model_copy(update={"dtype": "float32"})


def _models(
    cards: Mapping[str, EncoderCard], arguments: TuningArguments, *, device: str
) -> list[TunableEncoder]:
    """The cards' encoders; all hold one model."""
    found: list[Any] = []
    for card in cards.values():
        built = _learning(card, arguments).build(device=device)
        if not isinstance(built, TunableEncoder):
            raise EncoderError(f"card {card.name}: kind {card.kind} cannot be tuned")
        model: Any = built
        if found:
            model.share_model(found[0])
        found.append(model)
    return found


def _tower(
    planned: Plan,
    data: Dataset,
    model: TunableEncoder,
    card: EncoderCard,
    table: EmbeddingTable,
    arguments: TuningArguments,
) -> Tower:
    """What an encoder reads, how it is judged, and what it is held to."""
    # what its parent could not read, such as a broken picture, is as good as missing
    read = zip(sources_of(card, data.items), table.present, strict=True)
    contents = Contents(
        model,
        [source if there else None for source, there in read],
        workers=planned.encoding.workers,
    )
    validate = Retrieval.of(
        data.split,
        table.present,
        contents.groups,
        count=arguments.validation_pairs,
        seed=planned.recipe.seed,
    )
    parent = _vectors(table, np.arange(len(table) + 1)) if arguments.keep else None
    return Tower(contents, validate, parent)


def _marker(
    cards: Sequence[EncoderCard], arguments: TuningArguments, data: Dataset, *, seed: int
) -> dict[str, Any]:
    """What a resumed tuning must have in common with the one that began."""
    digests = data.digests()
    return {
        "parent": "+".join(card.name for card in cards),
        "parent_fingerprint": "+".join(card.fingerprint() for card in cards),
        "events": digests["events"],
        "split": digests["split"],
        "seed": seed,
        "arguments": asdict(arguments),
    }


def _card_files(path: Path, cards: Mapping[str, EncoderCard]) -> dict[str, Path]:
    """Where the new cards are, by modality."""
    if len(cards) == 1:
        return dict.fromkeys(cards, path / CARD_FILE)
    return {encoder: path / TOWER_CARDS[card.modality] for encoder, card in cards.items()}


def _loaded(files: Mapping[str, Path]) -> dict[str, EncoderCard]:
    return {encoder: load_card(str(file)) for encoder, file in files.items()}


def _start_trackers(accelerator: Accelerator, path: Path, marker: Mapping[str, Any]) -> None:
    if accelerator.is_main_process:
        (path / _TRACKERS).mkdir(exist_ok=True)
    accelerator.wait_for_everyone()
    start_trackers(accelerator, name=path.name, config=marker, folder=path / _TRACKERS)


def _open(
    path: Path,
    files: Mapping[str, Path],
    marker: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Begin or go on in a folder; RunError unless it may be used as asked."""
    others = [found.name for found in path.iterdir() if found.name not in _OWN]
    others = [found for found in others if found != _LOCK and not found.startswith(".")]
    if others:
        raise RunError(
            f"{path}: holds {others[0]}, which is no tuned encoder's; give another --name"
        )
    _check_free(files)
    if (path / RECORD).is_file() and not overwrite:
        known = read_json(path / RECORD)
        changed = _differing(known, marker)
        if changed:
            raise RunError(
                f"{path}: was tuned with another {', '.join(changed)}; tune with the same, give "
                "another --name, or --overwrite"
            )
        if not resume and not known["finished"]:
            raise RunError(
                f"{path}: holds an unfinished tuning; give --resume to continue it, --overwrite to "
                "start anew, or another --name"
            )
        if not resume:
            raise RunError(
                f"{path}: is tuned already; use it ({_use(files)}), or give --name or --overwrite"
            )
        return
    for name in _OWN:
        found = path / name
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)
    write_json(path / RECORD, {**marker, "finished": False})


def _check_free(files: Mapping[str, Path]) -> None:
    """Raise RunError where another card beside the new ones has a name of theirs."""
    for file in files.values():
        name, beside = name_of_file(file), file.parent.parent.resolve()
        known = card_files(beside).get(name, file).resolve()
        if known != file.resolve() and known.is_relative_to(beside):
            raise RunError(f"{known}: is a card named {name} already; give another --name")


def _use(files: Mapping[str, Path]) -> str:
    return " ".join(f"encoders.{encoder}={name_of_file(file)}" for encoder, file in files.items())


def _differing(known: Mapping[str, Any], marker: Mapping[str, Any]) -> list[str]:
    """What keeps a tuning from being taken up, by name."""
    then, now = known.get("arguments", {}), marker["arguments"]
    found = [key for key in marker if key != "arguments" and known.get(key) != marker[key]]
    return found + [key for key in now if key not in _MAY_CHANGE and then.get(key) != now[key]]


def _write(
    files: Mapping[str, Path],
    cards: Mapping[str, EncoderCard],
    models: Sequence[TunableEncoder],
    adapted: Any,
    data: Dataset,
    seed: int,
) -> None:
    """Write weights and cards; the cards come last."""
    digests = data.digests()
    alone = adapted is not None and all(_keeps_adapter(card) for card in cards.values())
    path = next(iter(files.values())).parent
    if alone:
        keep_adapter(adapted, path / _ADAPTER)
    elif adapted is not None:
        merge_adapter(adapted)
    for model in () if alone else models:  # of two towers the second adds what makes its inputs
        model.save(path / _WEIGHTS)
    for encoder, card in cards.items():
        changes: dict[str, Any] = {
            **(_adapter_fields(card) if alone else _weight_fields(card, path / _WEIGHTS)),
            "name": name_of_file(files[encoder]),
            "notes": f"{card.name}, tuned on a log by mmkd tune.",
            "tuned": TunedOn(
                parent=card.name,
                parent_fingerprint=card.fingerprint(),
                events=digests["events"],
                split=digests["split"],
                seed=seed,
            ),
        }
        save_card(card.model_copy(update=changes), files[encoder])


def _keeps_adapter(card: EncoderCard) -> bool:
    # a card can name one adapter, so that of a parent with its own is merged
    return card.kind == "language_model" and "adapter" not in card.options


def _adapter_fields(card: EncoderCard) -> dict[str, Any]:
    """Of the card of an encoder whose adapters are kept apart."""
    fields: dict[str, Any] = {"options": {**card.options, "adapter": f"./{_ADAPTER}"}}
    if card.model is not None and (local := local_path(card.model)) is not None:
        fields["model"] = str(local)
    return fields


def _weight_fields(card: EncoderCard, weights: Path) -> dict[str, Any]:
    """Of the card of an encoder whose weights were written."""
    size = sum(file.stat().st_size for file in weights.rglob("*.safetensors"))
    return {
        "model": f"./{_WEIGHTS}",
        "revision": None,
        "options": {k: v for k, v in card.options.items() if not k.startswith("adapter")},
        "size_mb": round(size / 1e6, 1),
    }


def _announcement(
    name: str,
    marker: Mapping[str, Any],
    pairs: TrainingPairs,
    arguments: TuningArguments,
    model: TunableEncoder,
    before: Mapping[str, float],
) -> str:
    learned = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    each = min(len(pairs.rows), arguments.pairs or len(pairs.rows))
    return (
        f"{name}: {marker['parent']} learns {learned:,} weights from {len(pairs.rows):,} pairs, "
        f"{each:,} an epoch; before, validation pairs have NDCG@10 {before['NDCG@10']:.4f}"
    )


def _tensor(table: EmbeddingTable, rows: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(_vectors(table, rows))


def _vectors(table: EmbeddingTable, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.asarray(table.vectors[rows], np.float32)
