"""Tuner: encoders and pairs of items to weights that have learned what goes together.

``Tuner.fit`` builds what a tuning needs; ``_Fit`` is its loop: epochs, steps, validation,
checkpoints. Processes share each batch: every one encodes its own pairs, and all items are
everybody's negatives. Gradients are summed here and not by DDP, which knows no cached ones.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmkd.errors import CheckpointError, TrainingError, TrainingInterrupted, outside
from mmkd.interruption import Interruption
from mmkd.losses.distributed import gather_rows
from mmkd.training.arguments import TrainingArguments
from mmkd.training.checkpoint import CheckpointFolder, read_tensors, write_tensors
from mmkd.training.optimizer import LearningRate, NoAsynchrony
from mmkd.training.progress import TrainingProgress, flat_record, start_trackers
from mmkd.training.trainer import Trainer
from mmkd.tuning.arguments import TuningArguments
from mmkd.tuning.contents import Contents, Features
from mmkd.tuning.loss import towers_loss
from mmkd.tuning.pairs import TrainingPairs
from mmkd.tuning.retrieval import joined

METRIC = "NDCG@10"
VectorsOf = Callable[[NDArray[np.int64]], Tensor]
Validate = Callable[[VectorsOf], Mapping[str, float]]
_BEST = "checkpoints/best.safetensors"
_BUCKET = 32  # items of about one length that go through the model together
_RETUNE = "put a copy of it back, or tune from the start (--overwrite)"


@dataclass(frozen=True)
class Tower:
    """One of the encoders that learn together.

    Attributes:
        contents: What its encoder reads of each item; of several towers, all encoders hold one
            model.
        validate: From a function that gives rows' vectors to metrics, NDCG@10 among them.
        parent: [I+1, D] the vectors that ``keep`` holds items to.
    """

    contents: Contents
    validate: Validate
    parent: NDArray[np.float32] | None = None


@dataclass
class TuningReport:
    """How a tuning went.

    Attributes:
        best_epoch: Epoch (from 0) of the kept weights; -1 before the first.
        best_metric: NDCG@10 of the validation pairs there.
        seconds: Wall time over all resumed parts.
        history: A record an epoch.
        pairs: Pairs that were learned from.
    """

    best_epoch: int = -1
    best_metric: float = float("-inf")
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    pairs: int = 0


class Tuner:
    """Tunes encoders.

    Args:
        arguments: Epochs, learning rate and the like; None takes the defaults.
    """

    def __init__(self, arguments: TuningArguments | None = None) -> None:
        self.arguments = arguments or TuningArguments()

    def accelerator(self, *, folder: Path) -> Accelerator:
        """Set this process's threads and build the accelerator; see ``Trainer.accelerator``."""
        own = self.arguments
        return Trainer(
            TrainingArguments(
                threads=own.threads,
                cpu=own.cpu,
                precision=own.precision,
                trackers=own.trackers,
            )
        ).accelerator(folder=folder)

    def fit(
        self,
        towers: Mapping[str, Tower],
        pairs: TrainingPairs,
        *,
        folder: Path,
        accelerator: Accelerator | None = None,
        resume: bool = False,
        seed: int = 0,
    ) -> TuningReport:
        """Tune until the epochs are over, and leave the best epoch's weights in the model.

        Args:
            towers: By name, such as ``text``. Their model learns in place, as far as its
                parameters require gradients.
            pairs: What goes together.
            folder: Gets ``checkpoints/``, and the files of trackers that are started here.
            accelerator: Of ``accelerator()``; None builds one. Trackers that are not started yet
                are.
            resume: Continue from the newest checkpoint, if there is one.
            seed: Of pairs and dropout; torch's generator is set by it.

        Returns:
            The report.

        Raises:
            TrainingInterrupted: After SIGINT or SIGTERM, once a checkpoint is written.
            TrainingError: A loss is NaN or infinite, or a tracker isn't installed.
            CheckpointError: The checkpoint doesn't fit.
        """
        arguments = self.arguments
        processes = accelerator or self.accelerator(folder=folder)
        if arguments.trackers and not processes.trackers:
            start_trackers(processes, name=folder.name, config=asdict(arguments), folder=folder)
        fit = _Fit(self.arguments, towers, pairs, processes, folder, seed)
        # every process drops out different units
        torch.manual_seed(seed + processes.process_index)
        if resume:
            fit.restore()
        with Interruption() as interruption:
            while fit.epoch < self.arguments.epochs:
                fit.train_epoch(interruption)
                fit.close_epoch()
                if fit.epoch < self.arguments.epochs:
                    fit.pause(interruption)
        fit.load_best()
        for tracker in processes.trackers if accelerator is None else ():
            tracker.finish()
        return fit.report


class _Fit:
    """One tuning: its state and its steps."""

    def __init__(
        self,
        arguments: TuningArguments,
        towers: Mapping[str, Tower],
        pairs: TrainingPairs,
        accelerator: Accelerator,
        folder: Path,
        seed: int,
    ) -> None:
        self.arguments, self.named, self.towers = arguments, towers, [*towers.values()]
        self.pairs, self.accelerator, self.folder, self.seed = pairs, accelerator, folder, seed
        self.model = self.towers[0].contents.encoder.model
        self.learned = nn.ParameterList(p for p in self.model.parameters() if p.requires_grad)
        matrices = [p for p in self.learned if p.ndim > 1]
        others = [p for p in self.learned if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": arguments.weight_decay, "role": "matrix"},
                {"params": others, "weight_decay": 0.0, "role": "other"},
            ],
            lr=arguments.lr,
        )
        count = len(pairs.epoch(0, count=arguments.pairs, seed=seed))
        self.steps = max(1, count // arguments.batch_size)
        total = self.steps * arguments.epochs
        self.learning_rate = LearningRate(
            lr=arguments.lr,
            schedule=arguments.schedule,
            warmup_steps=round(arguments.warmup * total),
            total_steps=total,
            asynchronous=NoAsynchrony(),
        )
        self.checkpoints = CheckpointFolder(
            folder / "checkpoints",
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        self.report = TuningReport()
        self.epoch = self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.train_seconds = 0.0
        self.clock = self.saved = time.monotonic()
        self.progress = TrainingProgress(
            self.steps,
            epochs=arguments.epochs,
            metric=METRIC,
            shown=accelerator.is_main_process,
        )

    # ---- an epoch

    def train_epoch(self, interruption: Interruption) -> None:
        """The batches of this epoch that are still to do."""
        self._train_mode()
        first = self.step
        batches = self._batches()[first:]
        with self.progress.epoch(self.epoch, first=first):
            for batch, features in zip(batches, self._features(batches), strict=True):
                loss = self._backward(batch, features)
                self._share_gradients()
                self._optimizer_step()
                self.loss_sum += loss
                self.report.pairs += self.arguments.batch_size
                self.step += 1
                self.progress.advance({"total": self.loss_sum}, self.step)
                if self.step < self.steps:
                    self.pause(interruption)

    def _batches(self) -> list[NDArray[np.int64]]:
        """This process's pairs [b, 2] of each of the epoch's batches."""
        drawn = self.pairs.epoch(self.epoch, count=self.arguments.pairs, seed=self.seed)
        size, processes = self.arguments.batch_size, self.accelerator.num_processes
        whole = [drawn[n * size : (n + 1) * size] for n in range(self.steps)]
        return [np.array_split(b, processes)[self.accelerator.process_index] for b in whole]

    def _features(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Features, ...]]:
        """What each tower's encoder takes of the items of each batch, see ``_items``."""
        found = [
            tower.contents.batches([_items(tower, batch) for batch in batches])
            for tower in self.towers
        ]
        return zip(*found, strict=True)

    def _backward(self, batch: NDArray[np.int64], features: Sequence[Features]) -> Tensor:
        """Gradients of one batch; its loss, summed over the processes.

        Args:
            batch: [b, 2] rows.
            features: What each tower's encoder takes of ``_items``.
        """
        micro = self.arguments.micro_batch
        parts = [_by_length(one, micro) for one in features]
        if micro is None or sum(map(len, features)) <= micro:
            vectors = [
                self._vectors(*one) for one in zip(self.towers, features, parts, strict=True)
            ]
            loss = self._loss(vectors, batch)
            self._check_finite(loss)
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            loss = self._cached_backward(features, parts, batch)
        shared = loss.detach().to(torch.float64).cpu()
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(shared)
        return shared

    def _cached_backward(
        self,
        features: Sequence[Features],
        parts: Sequence[list[NDArray[np.int64]]],
        batch: NDArray[np.int64],
    ) -> Tensor:
        """Gradients in two passes: of the vectors, then of the weights, a part at a time."""
        vectors, states = [], []
        for tower, own, places in zip(self.towers, features, parts, strict=True):
            one = self._vectors(tower, own, []).detach()
            for part in places:
                states.append(_RandomState(self.accelerator.device))
                with torch.no_grad():
                    one += self._vectors(tower, own, [part])  # zeros beside the part
            vectors.append(one.requires_grad_())
        loss = self._loss(vectors, batch)
        self._check_finite(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        then = iter(states)
        for tower, own, places, one in zip(self.towers, features, parts, vectors, strict=True):
            for part in places:
                with next(then).again():
                    again = self._vectors(tower, own, [part])
                    again.backward(one.grad)  # type: ignore[no-untyped-call]
        return loss

    def _vectors(
        self, tower: Tower, features: Features, parts: Sequence[NDArray[np.int64]]
    ) -> Tensor:
        """[n, D] float32 vectors of features, in their order; zeros where no part holds them."""
        encoder = tower.contents.encoder
        # with gradients even where this process has nothing to encode: others wait for them
        vectors = torch.zeros(
            len(features), encoder.dim, device=self.accelerator.device, requires_grad=True
        )
        if not parts:
            return vectors
        with self.accelerator.autocast():
            found = [encoder.differentiable([features[i] for i in part]) for part in parts]
        at = torch.from_numpy(np.concatenate(parts)).to(vectors.device)
        return vectors.index_copy(0, at, torch.cat([one.float() for one in found]))

    def _loss(self, vectors: Sequence[Tensor], batch: NDArray[np.int64]) -> Tensor:
        device = self.accelerator.device
        places = [
            torch.from_numpy(np.searchsorted(_items(tower, batch), batch)).to(device)
            for tower in self.towers
        ]  # [b, 2] each
        contents = [
            torch.from_numpy(tower.contents.groups[batch]).to(device) for tower in self.towers
        ]
        loss = towers_loss(vectors, places, contents, temperature=self.arguments.temperature)
        if not self.arguments.keep:
            return loss
        moved = [
            self._moved(tower, own[at[there > 0]], batch[(there > 0).cpu().numpy()])
            for tower, own, at, there in zip(self.towers, vectors, places, contents, strict=True)
        ]
        return loss + self.arguments.keep * torch.stack(moved).mean()

    def _moved(self, tower: Tower, vectors: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """This process's share of the mean of ``1 - cos`` to what vectors of rows [m] were."""
        assert tower.parent is not None
        stay = torch.from_numpy(tower.parent[rows]).to(vectors.device)
        moved = 1 - F.cosine_similarity(vectors, stay, dim=-1)  # [m]
        count = len(gather_rows(torch.from_numpy(rows).to(vectors.device), 0)[0])
        return moved.sum() / max(1, count)

    def _share_gradients(self) -> None:
        """Each process has its share of every gradient: add them up."""
        if self.accelerator.num_processes == 1:
            return
        # a share without pictures gives those weights no gradient, where another's does
        held = torch.tensor([float(p.grad is not None) for p in self.learned])
        held = held.to(self.accelerator.device)
        torch.distributed.all_reduce(held, torch.distributed.ReduceOp.MAX)
        learned = [p for p, anyone in zip(self.learned, held.tolist(), strict=True) if anyone]
        for parameter in learned:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        found = [p.grad for p in learned if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in found])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [g.numel() for g in found])
        for gradient, part in zip(found, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _optimizer_step(self) -> None:
        if self.arguments.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.learned, self.arguments.gradient_clip)
        step = self.epoch * self.steps + self.step
        self.learning_rate.apply(self.optimizer, step=step, epoch=self.epoch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _check_finite(self, loss: Tensor) -> None:
        """End the tuning at a loss that is no number, before it reaches the weights."""
        finite = torch.isfinite(loss.detach()).float()
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
        if not bool(finite):
            raise TrainingError(
                f"epoch {self.epoch + 1}, step {self.step + 1}: the loss is "
                f"{float(loss.detach()):.4g}, so the weights were not changed; lower lr, raise "
                "temperature, or set precision to no"
            )

    def _train_mode(self) -> None:
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):  # its statistics stay the parent's
                module.eval()

    # ---- the end of an epoch

    def close_epoch(self) -> None:
        """Validate, record, keep better weights, and write a checkpoint."""
        record: dict[str, Any] = {
            "epoch": self.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "losses": {"total": float(self.loss_sum) / self.steps},
            "train_seconds": round(self.train_seconds + self._lap(), 3),
        }
        self.model.eval()
        found = {n: one.validate(partial(self.encoded, one)) for n, one in self.named.items()}
        record["valid"] = {name: float(value) for name, value in joined(found).items()}
        record["valid_seconds"] = round(self._lap(), 3)
        report = self.report
        report.history.append(record)
        if record["valid"][METRIC] > report.best_metric:
            report.best_metric, report.best_epoch = record["valid"][METRIC], self.epoch
            if self.accelerator.is_main_process:
                (self.folder / _BEST).parent.mkdir(parents=True, exist_ok=True)
                write_tensors(self.folder / _BEST, self.learned.state_dict())
        if self.accelerator.log_with:
            self.accelerator.log(flat_record(record), step=self.epoch + 1)
        self.progress.closed(record, best=report.best_epoch == self.epoch)
        self.epoch, self.step, self.train_seconds = self.epoch + 1, 0, 0.0
        self.loss_sum.zero_()
        self.save()

    def encoded(self, tower: Tower, rows: NDArray[np.int64]) -> Tensor:
        """[n, D] vectors of rows as the model is now; the processes share the work."""
        mine = np.array_split(rows, self.accelerator.num_processes)[self.accelerator.process_index]
        batches = [part for part in np.split(mine, range(_BUCKET * 8, len(mine), _BUCKET * 8))]
        with torch.no_grad():
            found = [
                self._vectors(tower, features, _by_length(features, None))
                for features in tower.contents.batches(batches)
            ]
            everyone, _ = gather_rows(torch.cat(found), 0)
        return everyone

    # ---- checkpoints

    def pause(self, interruption: Interruption) -> None:
        """Write a checkpoint when one is due; stop when asked to. All processes agree."""
        due = time.monotonic() - self.saved > self.arguments.checkpoint_every_s
        main = self.accelerator.is_main_process
        flags = torch.tensor([float(interruption.requested), float(due and main)])
        flags = flags.to(self.accelerator.device)
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(flags)
        stop, save = (bool(flag) for flag in flags)
        if (stop or save) and self.step:  # at step 0 close_epoch has just saved
            self.save()
        if stop:
            raise TrainingInterrupted(self.epoch, self.folder)

    def save(self) -> None:
        """Write a checkpoint; every process lays down its random state."""
        self.train_seconds += self._lap()
        staged = self.checkpoints.stage(self.epoch * self.steps + self.step)
        self.accelerator.wait_for_everyone()
        self.checkpoints.write_random_state(staged)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.checkpoints.commit(
                staged,
                module=self.learned,
                optimizer=self.optimizer,
                asynchronous={},
                progress={
                    "report": asdict(self.report),
                    "epoch": self.epoch,
                    "step": self.step,
                    "loss_sum": float(self.loss_sum),
                    "train_seconds": self.train_seconds,
                },
            )
        self.accelerator.wait_for_everyone()
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        if (newest := self.checkpoints.newest()) is None:
            return
        progress, _ = self.checkpoints.load(newest, module=self.learned, optimizer=self.optimizer)
        damaged: Any = (KeyError, TypeError, ValueError)
        with outside(CheckpointError, newest, "does not fit", remedy=_RETUNE, also=damaged):
            self.report = TuningReport(**progress["report"])
            self.epoch, self.step = int(progress["epoch"]), int(progress["step"])
            self.loss_sum = torch.tensor(progress["loss_sum"], dtype=torch.float64)
            self.train_seconds = float(progress["train_seconds"])
        if self.epoch < self.arguments.epochs:
            history, best = self.report.history, self.report.best_epoch
            self.progress.resumed(history, best, step=self.step)

    def load_best(self) -> None:
        """Put the best epoch's weights into the model."""
        self.accelerator.wait_for_everyone()
        path = self.folder / _BEST
        with outside(CheckpointError, path, "damaged", remedy=_RETUNE, also=(RuntimeError,)):
            self.learned.load_state_dict(read_tensors(path))
        self.model.eval()

    def _lap(self) -> float:
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        self.report.seconds += seconds
        return seconds


def _items(tower: Tower, batch: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] rows of a batch that a tower reads, each once and ascending."""
    rows = np.unique(batch)
    return rows[tower.contents.groups[rows] > 0]


def _by_length(features: Features, most: int | None) -> list[NDArray[np.int64]]:
    """Places of features, longest first, in parts that go through the model together."""
    lengths = [len(one) if one.ndim == 1 else 0 for one in features]
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    size = min(_BUCKET, most or _BUCKET)
    return [order[start : start + size] for start in range(0, len(order), size)]


class _RandomState:
    """What dropout draws from, kept to draw the same again."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(one) for one in self._devices]

    @contextmanager
    def again(self) -> Iterator[None]:
        """With the state that was; behind it, the one before."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._cpu)
            for device, state in zip(self._devices, self._cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
