"""TrainingArguments: every option of training with its default and its range, in one place.

From a recipe's ``training:`` section, or a notebook, to ``Trainer``.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from mmkd.errors import at_least, one_of, positive, refuse, whole
from mmkd.training.optimizer import Chosen, check_optimizer, check_schedule

Precision = Literal["no", "bf16", "fp16"]
DecayTowards = Literal["zero", "teacher"]
Tables = Literal["auto", "dense", "rows", "sharded"]

ROWS_FROM = 100_000  # items, from which on ``auto`` steps rows with a sampled loss

TRACKERS = tuple(sorted(str(name) for name in LOGGER_TYPE_TO_CLASS))  # all that Accelerate knows


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """How a student is trained.

    >>> from mmkd import TrainingArguments
    >>> arguments = TrainingArguments(
    ...     epochs=20,
    ...     lr=3e-3,
    ...     optimizer={"kind": "sgd", "momentum": 0.9},
    ...     schedule="cosine",
    ... )
    >>> arguments.batch_size
    256
    >>> TrainingArguments(epochs=0)
    Traceback (most recent call last):
        ...
    ValueError: epochs: got 0, wanted at least 1; raise it

    Args:
        epochs: At most this many passes.
        batch_size: Sequences a batch, over all processes.
        max_length: Longest sequence that is trained on, L, in items; no longer than the student
            reads.
        lr: Peak learning rate.
        optimizer: One of torch.optim's, in lower case, such as ``adamw``, ``adam``, ``sgd``,
            ``adagrad``, ``radam``, ``nadam`` or ``adafactor``; or a mapping of ``kind`` and the
            options of that class, without those that stand here: ``lr``, ``weight_decay`` and
            ``betas``.
        schedule: ``constant``, or ``linear`` or ``cosine`` decay after the warm-up; or another of
            transformers' schedules, by name or as a mapping of ``kind`` and its options.
        warmup_steps: Optimiser steps of linear growth.
        weight_decay: Of matrices, as the optimiser means it: decoupled for AdamW.
        table_decay: Of the modality tables instead of ``weight_decay``; None = the same.
        decay_towards: Where the modality tables decay to: ``zero``, as everything else, or
            ``teacher``, the table that they start from, so that it is their change that decays:
            ``S -= lr * decay * (S - S_start)``, decoupled with every optimiser.
        tables: How the item tables, ids and modalities, step: ``dense``, all rows at every step
            by ``optimizer``; or ``rows``, those of a batch and its negatives by ``RowAdam``, which
            wants a sampled loss. ``sharded`` is ``rows`` with the tables cut over the processes,
            of which each holds and steps some rows. ``auto`` is ``rows`` with a sampled loss and
            more than 100,000 items, else ``dense``.
        betas: Of the optimisers that have them.
        gradient_clip: Largest global gradient norm; None = no clipping.
        accumulate: Batches an optimiser step.
        gradient_checkpointing: Keep a backbone's inputs and states only and compute the rest again
            for the gradients, a few sequences at a time: less memory, about a third more time. The
            same mathematics, though dropout draws in another order.
        patience: Validations without a better metric before stopping; None = never.
        validate_every: Epochs between validations.
        select_metric: Which validation metric chooses the kept weights (higher is better).
        checkpoint_every_s: Seconds between checkpoints inside an epoch (each epoch's end has one).
        precision: ``bf16`` and ``fp16`` compute in half precision where that is safe.
        threads: Of each process; None takes ``OMP_NUM_THREADS``, or shares the cores that the
            process may use evenly among the processes.
        cpu: Stay on the CPU where there is a GPU.
        trackers: Where each epoch's record goes besides the run folder, such as ``tensorboard``,
            ``wandb``, ``mlflow`` or ``trackio``: any that Accelerate knows.

    Raises:
        ValueError: An option is out of range; a line for each.
    """

    epochs: int = 100
    batch_size: int = 256
    max_length: int = 50
    lr: float = 1e-3
    optimizer: Chosen = "adamw"
    schedule: Chosen = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    table_decay: float | None = None
    decay_towards: DecayTowards = "zero"
    tables: Tables = "auto"
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float | None = None
    accumulate: int = 1
    gradient_checkpointing: bool = False
    patience: int | None = 10
    validate_every: int = 1
    select_metric: str = "NDCG@10"
    checkpoint_every_s: float = 300.0
    precision: Precision = "no"
    threads: int | None = None
    cpu: bool = False
    trackers: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse options that are out of range; one tracker may be bare text."""
        if isinstance(self.trackers, str):
            object.__setattr__(self, "trackers", (self.trackers,))
        refuse(self.check(**asdict(self)))

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is out of range among some of the options, a line each."""

        def given(*names: str) -> dict[str, Any]:
            return {name: options[name] for name in names if name in options}

        counts = ("epochs", "batch_size", "max_length", "accumulate", "patience", "validate_every")
        problems = whole(1, **given(*counts, "threads"))
        problems += positive(**given("lr"))
        problems += positive("null does not clip", **given("gradient_clip"))
        for name, amount in given("warmup_steps", "weight_decay", "checkpoint_every_s").items():
            if at_least(0, amount=amount) or amount is None or amount == math.inf:
                problems.append(f"{name}: got {amount}, wanted 0 or more; raise it")
        if options.get("table_decay") is not None:
            problems += at_least(0, "null takes weight_decay", **given("table_decay"))
        problems += one_of(get_args(DecayTowards), **given("decay_towards"))
        problems += one_of(get_args(Tables), **given("tables"))
        if options.get("tables") == "sharded" and options.get("precision") == "fp16":
            problems.append(
                "tables: got sharded, with precision fp16, whose loss scale each process would "
                "choose by its own rows; use bf16 or no"
            )
        if options.get("decay_towards") == "teacher" and "weight_decay" in options:
            decay = options.get("table_decay")
            if not (options["weight_decay"] if decay is None else decay):
                problems.append(
                    "decay_towards: got teacher, but nothing decays; give table_decay, such as 0.1"
                )
        betas = tuple(options.get("betas", (0.9, 0.999)) or ())
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            wanted = "two from 0 to below 1; such as [0.9, 0.999]"
            problems.append(f"betas: got {betas}, wanted {wanted}")
        if "optimizer" in options:
            changed = given("weight_decay", "betas")
            defaults = {field.name: field.default for field in fields(TrainingArguments)}
            changed = {k: v for k, v in changed.items() if v != defaults[k]}
            problems += check_optimizer(options["optimizer"], **changed)
        if "schedule" in options:
            problems += check_schedule(options["schedule"])
        problems += one_of(get_args(Precision), **given("precision"))
        return problems + check_trackers(options.get("trackers", ()))


def check_trackers(trackers: str | Sequence[str]) -> list[str]:
    """What is wrong with some trackers' names, a line each."""
    named = [trackers] if isinstance(trackers, str) else trackers
    return [line for tracker in named for line in one_of(TRACKERS, trackers=tracker)]
