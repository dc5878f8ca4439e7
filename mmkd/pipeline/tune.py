"""Tuning an encoder on a log: a data set and a card to a new card with weights of its own.

Pairs come from training events, the best epoch from validation pairs; events that test are not
read. The folder ``encoders/NAME`` then holds ``card.yaml``, the weights, and ``tuning.json``, which
tells how it went.
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmkd.config.plan import Plan, plan
from mmkd.data.dataset import Dataset
from mmkd.embeddings import EmbeddingTable
from mmkd.embeddings.inputs import sources_of
from mmkd.encoders import EncoderCard, load_card
from mmkd.encoders.base import TunableEncoder
from mmkd.encoders.card import CARD_FILE, TunedOn, save_card
from mmkd.encoders.loading import local_path, resolve_model
from mmkd.encoders.offline import check_at_hand
from mmkd.encoders.registry import encoder_class
from mmkd.errors import EncoderError, RunError, refuse
from mmkd.files import read_json, write_json, writer_lock
from mmkd.memory import check_fits
from mmkd.pipeline.embed import EmbedProgress, embed
from mmkd.training.progress import peak_memory_bytes
from mmkd.tuning import TrainingPairs, Tuner, TuningArguments
from mmkd.tuning.adapters import keep_adapter, merge_adapter, prepare
from mmkd.tuning.contents import Contents
from mmkd.tuning.retrieval import Retrieval

RECORD = "tuning.json"
_WEIGHTS, _ADAPTER = "model", "adapter"
_LOCK = "writer.lock"
_OWN = (RECORD, CARD_FILE, _WEIGHTS, _ADAPTER, "checkpoints")
# arguments that a resumed tuning may be given anew
_MAY_CHANGE = ("checkpoint_every_s", "cpu", "epochs", "threads")
_COPIES = 4  # of the weights while they learn: themselves, gradients, two moments of AdamW


def tune(
    planned: Plan,
    *,
    encoder: str = "text",
    name: str | None = None,
    folder: Path = Path("encoders"),
    resume: bool = False,
    overwrite: bool = False,
    progress: EmbedProgress | None = None,
    announce: Callable[[str], None] | None = None,
) -> EncoderCard:
    """Tune one of a recipe's encoders on its training events.

    Args:
        planned: The recipe; its ``tune`` section says how.
        encoder: Name of the modality.
        name: Of the new card; None is the recipe's name and the modality's.
        folder: Where cards are; the new one is in ``folder/name``.
        resume: Continue an interrupted tuning; a finished one's card is just returned.
        overwrite: Start anew where there is a tuning already.
        progress: Told how far the parent's encoding of what the cache lacks is.
        announce: Told in one line what learns from what.

    Returns:
        The new card.

    Raises:
        RunError: The folder holds something else, the recipe has no such encoder, or the memory is
            too small.
        EncoderError: The encoder cannot be tuned, or its weights are not to be had.
        DataError: There is no pair to learn from.
        EvaluationError: There is no validation pair.
        TrainingInterrupted: After SIGINT or SIGTERM, once a checkpoint is written.
    """
    if encoder not in planned.cards:
        raise RunError(
            f"--encoder {encoder}: {planned.recipe.name} has no such encoder; it has "
            f"{', '.join(planned.cards) or 'none'}"
        )
    card, arguments = planned.cards[encoder], planned.tuning[encoder]
    path = folder / (name or f"{planned.recipe.name}-{encoder}")
    check_tunable(card, arguments)
    check_at_hand(card, key=f"encoders.{encoder}")
    tuner = Tuner(arguments)
    accelerator = tuner.accelerator(folder=path)
    main = accelerator.is_main_process
    with writer_lock(path) if main else nullcontext():
        data = planned.load_data()
        marker = _marker(card, arguments, data, seed=planned.recipe.seed)
        with accelerator.main_process_first():
            if main:
                _open(path, marker, resume=resume, overwrite=overwrite)
        record = read_json(path / RECORD)
        if record["finished"]:
            return load_card(str(path / CARD_FILE))
        only = replace(planned, cards={encoder: card})
        table = embed(only, data.items, progress=progress if main else None)[encoder]

        device = str(accelerator.device)
        model = _learning(card, arguments).build(device=device)
        if not isinstance(model, TunableEncoder):
            raise EncoderError(f"card {card.name}: kind {card.kind} cannot be tuned")
        adapted = prepare(model.model, arguments, seed=planned.recipe.seed)
        contents = Contents(model, sources_of(card, data.items), workers=planned.encoding.workers)
        pairs = TrainingPairs.of(
            data.split,
            table.present,
            window=arguments.window,
            popularity_power=arguments.popularity_power,
        )
        retrieval = Retrieval.of(
            data.split,
            table.present,
            contents.groups,
            count=arguments.validation_pairs,
            seed=planned.recipe.seed,
        )
        before = retrieval(lambda rows: torch.from_numpy(_vectors(table, rows)))
        if main and announce:
            announce(_announcement(path.name, card, pairs, arguments, model, before))
        report = tuner.fit(
            model,
            contents,
            pairs,
            validate=retrieval,
            folder=path,
            parent=_vectors(table, np.arange(len(table) + 1)) if arguments.keep else None,
            accelerator=accelerator,
            resume=resume,
            seed=planned.recipe.seed,
        )
        if main:
            tuned = _write(path, card, arguments, model, adapted, data, planned.recipe.seed)
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
                    f"{path.name}: no epoch ranks validation pairs better than {card.name} does "
                    f"({before['NDCG@10']:.4f}); use that one"
                )
        accelerator.wait_for_everyone()
        return tuned if main else load_card(str(path / CARD_FILE))


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
    for encoder in recipe.tune:
        cards[encoder] = tune(planned, encoder=encoder, resume=True, **options)
    names = {name: cards[name].name for name in recipe.tune}
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


def _marker(
    card: EncoderCard, arguments: TuningArguments, data: Dataset, *, seed: int
) -> dict[str, Any]:
    """What a resumed tuning must have in common with the one that began."""
    digests = data.digests()
    return {
        "parent": card.name,
        "parent_fingerprint": card.fingerprint(),
        "events": digests["events"],
        "split": digests["split"],
        "seed": seed,
        "arguments": asdict(arguments),
    }


def _open(path: Path, marker: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Begin or go on in a folder; RunError unless it may be used as asked."""
    others = [found.name for found in path.iterdir() if found.name not in _OWN]
    others = [found for found in others if found != _LOCK and not found.startswith(".")]
    if others:
        raise RunError(
            f"{path}: holds {others[0]}, which is no tuned encoder's; give another --name"
        )
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
                f"{path}: is tuned already; use it (encoders.text={path.name}), or give --name "
                "or --overwrite"
            )
        return
    for name in _OWN:
        found = path / name
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)
    write_json(path / RECORD, {**marker, "finished": False})


def _differing(known: Mapping[str, Any], marker: Mapping[str, Any]) -> list[str]:
    """What keeps a tuning from being taken up, by name."""
    then, now = known.get("arguments", {}), marker["arguments"]
    found = [key for key in marker if key != "arguments" and known.get(key) != marker[key]]
    return found + [key for key in now if key not in _MAY_CHANGE and then.get(key) != now[key]]


def _write(
    path: Path,
    card: EncoderCard,
    arguments: TuningArguments,
    model: TunableEncoder,
    adapted: Any,
    data: Dataset,
    seed: int,
) -> EncoderCard:
    """Write weights and card; the card comes last."""
    digests = data.digests()
    changes: dict[str, Any] = {
        "name": path.name,
        "notes": f"{card.name}, tuned on a log by mmkd tune.",
        "tuned": TunedOn(
            parent=card.name,
            parent_fingerprint=card.fingerprint(),
            events=digests["events"],
            split=digests["split"],
            seed=seed,
        ),
    }
    # a card can name one adapter, so that of a parent with its own is merged
    if adapted is not None and card.kind == "language_model" and "adapter" not in card.options:
        keep_adapter(adapted, path / _ADAPTER)
        changes["options"] = {**card.options, "adapter": f"./{_ADAPTER}"}
        if card.model is not None and (local := local_path(card.model)) is not None:
            changes["model"] = str(local)
    else:
        if adapted is not None:
            merge_adapter(adapted)
        model.save(path / _WEIGHTS)
        options = {k: v for k, v in card.options.items() if not k.startswith("adapter")}
        weights = sum(f.stat().st_size for f in (path / _WEIGHTS).rglob("*.safetensors"))
        changes |= {
            "model": f"./{_WEIGHTS}",
            "revision": None,
            "options": options,
            "size_mb": round(weights / 1e6, 1),
        }
    save_card(card.model_copy(update=changes), path / CARD_FILE)
    return load_card(str(path / CARD_FILE))


def _announcement(
    name: str,
    card: EncoderCard,
    pairs: TrainingPairs,
    arguments: TuningArguments,
    model: TunableEncoder,
    before: Mapping[str, float],
) -> str:
    learned = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    each = min(len(pairs.rows), arguments.pairs or len(pairs.rows))
    return (
        f"{name}: {card.name} learns {learned:,} weights from {len(pairs.rows):,} pairs, {each:,} "
        f"an epoch; before, validation pairs have NDCG@10 {before['NDCG@10']:.4f}"
    )


def _vectors(table: EmbeddingTable, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.asarray(table.vectors[rows], np.float32)
