"""Item tables over processes: they train, rank, keep and read back what one process does."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from accelerate import PartialState
from safetensors.torch import load_file
from torch import nn
from training.processes import rank, together
from training.tiny import ITEMS, LENGTH, tiny_distiller, tiny_fit, tiny_split, tiny_step

from mmkd import Ensemble, Evaluator, NextItem, SampledSoftmax, Trainer, TrainingArguments
from mmkd.errors import CheckpointError, TrainingError
from mmkd.evaluation import choose_offset, choose_weights
from mmkd.student.ensemble import Inference
from mmkd.student.recommender import answering
from mmkd.student.rows import OwnRows, TableShards, places, rows_of
from mmkd.student.scores import BlockScores
from mmkd.training.loop import TrainReport
from mmkd.training.optimizer import Interval, Ramp
from mmkd.training.sharded import read_parts, write_parts
from mmkd.training.step import TrainStep

MANY: dict[str, Any] = {
    "gradient_clip": 0.5,
    "weight_decay": 0.1,
    "table_decay": 0.3,
    "decay_towards": "teacher",
    "accumulate": 2,
}


def fit(
    folder: Path | None, options: Mapping[str, Any], **others: Any
) -> tuple[TrainReport, TrainStep]:
    loss = SampledSoftmax(train_counts=torch.arange(ITEMS + 1), negatives=6)
    return tiny_fit(folder, {"tables": "sharded", **options}, loss, **others)


def lay_down(folder: Path, report: TrainReport, step: TrainStep) -> None:
    """What a process knows of its training, and how it ranks."""
    split = tiny_split()
    ranks = Evaluator().ranks(step.student, split, split.test, list_length=4)
    found = {
        "losses": [record["losses"] for record in report.history],
        "valid": [record["valid"] for record in report.history],
        "norms": [record["gradient_norms"] for record in report.history],
        "case": ranks.case.tolist(),
        "rank": ranks.rank.tolist(),
        "lists": ranks.top_items.tolist(),
        "rows": [len(table) for table in step.student.item_tables().values()],
    }
    (folder / f"found-{rank()}.json").write_text(json.dumps(found))


def read(folder: Path, process: int = 0) -> Any:
    return json.loads((folder / f"found-{process}.json").read_text())


def alike(one: Any, other: Any) -> None:
    """Nested figures that agree to four decimals."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            alike(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            alike(first, second)
    else:
        assert one == pytest.approx(other, abs=1e-4)


def _train(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    resume = (folder / "checkpoints").is_dir()
    options = MANY | {"epochs": 2 if resume or folder.name == "whole" else 1, "patience": None}
    lay_down(folder, *fit(folder, options, asynchronous=Ramp(), resume=resume))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one process that was never stopped."""
    folder = tmp_path_factory.mktemp("one") / "whole"
    _train(folder)
    assert read(folder)["rows"] == [ITEMS + 2] * 4
    return folder


def same(folder: Path, whole: Path, *, rows: list[int]) -> None:
    """Each process's training was that of the one, to four decimals; its tables are its rows."""
    one = read(whole)
    for process, held in enumerate(rows):
        found = read(folder, process)
        assert found["rows"] == [held] * 4
        for name in ("losses", "valid", "norms"):
            alike(found[name], one[name])
        for name in ("case", "rank", "lists"):
            assert found[name] == one[name]
    kept, wanted = (load_file(place / "student.safetensors") for place in (folder, whole))
    assert kept.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-3, atol=1e-4)


def test_two_processes_train_and_rank_as_one_does(whole: Path, tmp_path: Path) -> None:
    together(_train, tmp_path / "whole")
    same(tmp_path / "whole", whole, rows=[11, 11])


@pytest.mark.slow
def test_a_checkpoint_of_two_goes_on_in_one_and_in_three(whole: Path, tmp_path: Path) -> None:
    two, three = tmp_path / "two", tmp_path / "three"
    together(_train, two)
    (checkpoint,) = (two / "checkpoints").glob("step-*")
    names = {path.name for path in (checkpoint / "tables").iterdir()}
    assert names and all(name.endswith(".safetensors") for name in names)
    shutil.copytree(two, three)
    _train(two)
    same(two, whole, rows=[ITEMS + 2])
    together(_train, three, count=3)
    same(three, whole, rows=[8, 8, 6])


def test_one_process_has_the_very_numbers_of_rows(tmp_path: Path) -> None:
    options = MANY | {"epochs": 2}
    report, step = fit(tmp_path / "sharded", options)
    other, rows = fit(tmp_path / "rows", options | {"tables": "rows"})
    assert [r["losses"] for r in report.history] == [r["losses"] for r in other.history]
    for name, value in rows.student.state_dict().items():
        assert torch.equal(value, step.student.state_dict()[name]), name


# ---- rows, looked up and their gradients


def _look_up(folder: Path) -> None:
    state = PartialState(cpu=True)
    shards = TableShards(ITEMS, state.device)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(ITEMS + 2, 3, generator=generator)
    asked = [torch.tensor([0, 2, 20, 21]), torch.tensor([2, 3, 11, 19, 20])]
    weights = [torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)]
    part = nn.Parameter(shards.cut(table))
    mine = state.process_index
    rows = shards.rows(asked[mine])
    assert rows.numbers.tolist() == [0, 2, 3, 11, 19, 20, 21]
    found = rows.of(part)
    assert rows.of(part) is found and torch.equal(found, table[rows.numbers])
    seen = found[places(asked[mine], rows.numbers)]
    (weights[mine] * seen.square()).sum().backward()

    exact = table.double().requires_grad_()
    losses = [
        (weight.double() * F.embedding(numbers, exact).square()).sum()
        for numbers, weight in zip(asked, weights, strict=True)
    ]
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
    assert exact.grad is not None and part.grad is not None and part.grad.is_sparse
    own = slice(shards.first, shards.end)
    torch.testing.assert_close(part.grad.to_dense().double(), exact.grad[own], rtol=1e-6, atol=1e-7)
    touched = [n - shards.first for n in rows.numbers.tolist() if shards.first <= n < shards.end]
    assert part.grad.coalesce().indices()[0].tolist() == touched
    items = range(shards.items.start, shards.items.start + 3)
    beside = OwnRows(items, shards, state.device)
    assert beside.numbers.tolist() == [0, *items, ITEMS + 1]
    assert torch.equal(beside.of(part)[1:-1], table[items.start : items.stop])
    assert not beside.of(part)[[0, -1]].any()


def test_rows_and_gradients_are_those_of_a_whole_table(tmp_path: Path) -> None:
    together(_look_up, tmp_path)
    cuts = [rows_of(rank, 3, 7) for rank in range(3)]
    assert cuts == [(0, 3), (3, 6), (6, 7)]


# ---- scores of several members


def _score(folder: Path) -> None:
    torch.manual_seed(3)
    PartialState(cpu=True)
    histories = torch.randint(1, ITEMS + 1, (5, LENGTH))
    cases: list[tuple[Inference, int]] = [
        ("logits", 0),
        ("probabilities", 0),
        ("standardized", 0),
        ("standardized", 10),  # all that one process holds, as items that are new may be
    ]
    for inference, unknown in cases:
        step = tiny_step(tiny_distiller(), correlation=(1.0, 1.0), distil=False)
        for member in step.student.networks:
            member.embedding.has[-1 - unknown : -1] = False
        ensemble = Ensemble(
            step.student.networks,
            inference=inference,
            weights=[0.3, 0.7],
            untrained_offset=-0.5,
        ).eval()
        assert ensemble.untrained is not None
        ensemble.untrained[::3] = True
        with answering(ensemble):
            wanted = ensemble.next_scores(histories)[:, 1:]
        ensemble.shard(TableShards(ITEMS))
        with answering(ensemble):
            scores = BlockScores.after(ensemble, histories, block=4)
            own = torch.cat([block for _, block in scores.blocks()], dim=1)
            firsts = [first for first, _ in scores.blocks()]
            some = scores.of(torch.tensor([20, 1, 11]))
        assert ensemble.shards is not None
        items = ensemble.shards.items
        assert firsts == [*range(items.start, items.stop, 4)]
        torch.testing.assert_close(own, wanted[:, items.start - 1 : items.stop - 1])
        torch.testing.assert_close(some, wanted[:, [19, 0, 10]])
        with pytest.raises(ValueError, match="tables are over processes"):
            ensemble(histories)


@pytest.mark.slow
def test_members_over_processes_score_together(tmp_path: Path) -> None:
    together(_score, tmp_path)


def _choose(folder: Path) -> None:
    PartialState(cpu=True)
    split = tiny_split()
    split.items[split.items > 15] = 1  # items 16 to 20 never train
    split.items[split.valid.position[:9] + split.offsets[:9]] = 17  # some are asked for
    for inference in get_args(Inference):
        step = tiny_step(tiny_distiller(), correlation=(1.0, 1.0), distil=False)
        step.student.networks[1].backbone.requires_grad_(False).apply(_louder)
        student = Ensemble(
            step.student.networks, inference=inference, weights=[1, 1], untrained_offset=-4.0
        )
        assert student.untrained is not None
        student.untrained[15:] = True
        chosen, evaluator = [], Evaluator(batch_size=7)
        for shards in (None, TableShards(ITEMS)):
            if shards is not None:
                student.shard(shards)
            student.set_weights([1, 1])
            weights = choose_weights(student, split, split.valid, evaluator=evaluator)
            student.set_weights(weights)
            chosen.append(
                (weights, *choose_offset(student, split, split.valid, evaluator=evaluator))
            )
        alone, over = chosen
        assert over[:2] == alone[:2]
        alike(over[2], alone[2])
        assert len({point["all"] for point in alone[2]}) > 3  # or the case shows nothing


def _louder(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.weight.data.mul_(3)


@pytest.mark.slow
def test_weights_and_offsets_are_chosen_together_as_alone(tmp_path: Path) -> None:
    together(_choose, tmp_path)


# ---- what is refused


def test_what_needs_whole_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="got sharded, with an asynchronous update that coll"):
        fit(tmp_path, {"epochs": 1}, asynchronous=Interval(every=2))
    with pytest.raises(ValueError, match="tables: got sharded, with precision fp16"):
        TrainingArguments(tables="sharded", precision="fp16")
    step = tiny_step(tiny_distiller(), distil=False)
    arguments = TrainingArguments(epochs=1, max_length=LENGTH, tables="sharded", cpu=True)
    with pytest.raises(TrainingError, match=r"got sharded, but .*Softmax, reads every item"):
        Trainer(arguments).fit(step.student, step.objective, tiny_split(), task=NextItem())


def _without_folder(folder: Path) -> None:
    with pytest.raises(TrainingError, match="folder: got none, wanted a place for the whole"):
        fit(None, {"epochs": 1})


@pytest.mark.slow
def test_a_student_that_nobody_would_have_whole_is_refused(tmp_path: Path) -> None:
    together(_without_folder, tmp_path)


def test_a_distiller_that_an_earlier_fit_has_cut_is_refused() -> None:
    distiller = tiny_distiller()
    step = tiny_step(distiller, correlation=(1.0, 1.0))
    distiller.cut(lambda teacher: teacher[:5])
    trainer = Trainer(TrainingArguments(epochs=1, max_length=LENGTH, cpu=True))
    with pytest.raises(TrainingError, match=r"5 rows of .*, wanted 21, .*fit the distiller again"):
        trainer.fit(
            step.student, step.objective, tiny_split(), task=NextItem(), distiller=distiller
        )


def test_damaged_parts_are_told(tmp_path: Path) -> None:
    write_parts(tmp_path / "tables", {"model.x": torch.ones(4, 2)}, None)
    assert torch.equal(read_parts(tmp_path / "tables", None)["model.x"], torch.ones(4, 2))
    (file,) = (tmp_path / "tables").iterdir()
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="damaged"):
        read_parts(tmp_path / "tables", None)
