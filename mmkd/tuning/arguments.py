"""TuningArguments: every option of tuning an encoder, with its default and its range.

From a recipe's ``tune:`` section, or a notebook, to ``Tuner``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from mmkd.errors import at_least, one_of, positive, refuse, whole, within
from mmkd.training.arguments import check_trackers

Precision = Literal["no", "bf16"]
Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class TuningArguments:
    """How an encoder is tuned.

    >>> from mmkd import TuningArguments
    >>> TuningArguments(epochs=2, lora_rank=16).temperature
    0.05
    >>> TuningArguments(temperature=0)
    Traceback (most recent call last):
        ...
    ValueError: temperature: got 0, wanted a number above 0; such as 0.05

    Args:
        epochs: Passes over ``pairs`` pairs each; each ends in a validation.
        pairs: Pairs an epoch, drawn anew; None takes as many as there are.
        window: How many events apart two items of a history may be to be a pair.
        popularity_power: A pair is drawn with weight (count of one item x count of the other) to
            minus this power: 0 draws all pairs alike, 0.5 favours pairs of rare items.
        batch_size: Pairs a step, over all processes; each pair's items are the others' negatives.
        micro_batch: Most items that keep their activations at once; with fewer than a batch has,
            gradients are cached (Gao et al. 2021, arXiv:2101.06983): a second forward pass, and
            memory that does not grow with ``batch_size``. None keeps all.
        temperature: Cosines are divided by it.
        lr: Peak learning rate of AdamW.
        schedule: ``linear`` or ``cosine`` to 0 at the end, or ``constant``.
        warmup: Share of the steps in which the rate grows.
        weight_decay: Of matrices, decoupled.
        gradient_clip: Largest global gradient norm; None does not clip.
        keep: Weight of ``1 - cos`` between an item's vector and its parent encoder's.
        lora_rank: Train low-rank adapters of this rank instead of all weights, through peft; None
            trains all.
        lora_alpha: Scale of the adapters, divided by the rank; None is twice the rank.
        lora_dropout: Of the adapters' inputs.
        gradient_checkpointing: Compute activations again for the gradients instead of keeping them.
        precision: ``bf16`` computes in half precision where that is safe; faster on a GPU or a CPU
            that has it (AMX, AVX512-BF16), far slower on another.
        validation_pairs: Validation pairs that judge an epoch; None takes all.
        checkpoint_every_s: Seconds between checkpoints within an epoch.
        threads: Of each process; None shares the cores.
        cpu: Stay on the CPU where there is a GPU.
        trackers: Where each epoch's record goes besides ``tuning.json``, as those of training.

    Raises:
        ValueError: An option is out of range; a line for each.
    """

    epochs: int = 3
    pairs: int | None = 8192
    window: int = 1
    popularity_power: float = 0.0
    batch_size: int = 96
    micro_batch: int | None = None
    temperature: float = 0.05
    lr: float = 5e-5
    schedule: Schedule = "linear"
    warmup: float = 0.0
    weight_decay: float = 0.01
    gradient_clip: float | None = 1.0
    keep: float = 0.0
    lora_rank: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float = 0.0
    gradient_checkpointing: bool = False
    precision: Precision = "no"
    validation_pairs: int | None = 2000
    checkpoint_every_s: float = 300.0
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
            return {name: options[name] for name in names if options.get(name) is not None}

        counts = ("epochs", "pairs", "window", "micro_batch", "validation_pairs")
        problems = whole(1, **given(*counts, "lora_rank", "lora_alpha", "threads"))
        problems += whole(2, "a pair needs another one's items as negatives", **given("batch_size"))
        problems += positive("such as 0.05", **given("temperature"))
        problems += positive(**given("lr", "gradient_clip"))
        problems += at_least(
            0, **given("popularity_power", "weight_decay", "keep", "checkpoint_every_s")
        )
        problems += within(0, 1, "it is a share", **given("warmup", "lora_dropout"))
        problems += one_of(get_args(Precision), **given("precision"))
        problems += one_of(get_args(Schedule), **given("schedule"))
        problems += check_trackers(options.get("trackers", ()))
        if options.get("lora_alpha") is not None and options.get("lora_rank", 1) is None:
            problems.append("lora_alpha: set, but nothing is low-rank; give lora_rank, such as 16")
        return problems
