"""The recommender: states and scores of whole batches, over all backbones."""

from typing import Any, Literal, cast

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmkd import FusedItemEmbedding, Recommender
from mmkd.student import BACKBONES, build_backbone

ITEMS, WIDTH = 11, 8
KINDS = sorted(BACKBONES)
ScoreWith = Literal["id", "fused"]
SCORE_WITH: list[ScoreWith] = ["id", "fused"]


def recommender(kind: str = "sasrec", score_with: ScoreWith = "fused") -> Recommender:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    present = torch.ones(ITEMS + 1, dtype=torch.bool)
    present[4] = False
    embedding = FusedItemEmbedding(
        item_count=ITEMS,
        width=WIDTH,
        modalities={"text": torch.randn(ITEMS + 1, 6, generator=g)},
        present={"text": present},
        dropout=0.3,
        id_std=0.5,
    )
    backbone = build_backbone(kind, width=WIDTH, max_length=6)
    return Recommender(embedding=embedding, backbone=backbone, score_with=score_with).eval()


# an item that comes back, a mask token, nothing at all
ITEM_BATCH = torch.tensor([[0, 3, 7, 3], [1, 2, 4, ITEMS + 1], [0, 0, 0, 0]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score_with", SCORE_WITH)
def test_score_is_the_dot_product_with_each_items_row(kind: str, score_with: ScoreWith) -> None:
    model = recommender(kind, score_with)
    out = model(ITEM_BATCH)
    embedding = model.embedding
    rows = embedding.table() if score_with == "fused" else embedding.id_table
    scores = model.score(out.hidden)
    assert scores.shape == (3, 4, ITEMS + 1)
    assert torch.all(scores[..., 0] == -torch.inf)
    for item in range(1, ITEMS + 1):
        assert_close(scores[..., item], (out.hidden * rows[item]).sum(-1))
    assert_close(model.score(out.hidden, out.item_matrix), scores)
    assert_close(out.item_matrix, model.item_matrix())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score_with", SCORE_WITH)
def test_states_are_the_backbones_on_the_fused_inputs(kind: str, score_with: ScoreWith) -> None:
    model = recommender(kind, score_with)
    x = model.embedding.table()[ITEM_BATCH]
    ids = {"items": ITEM_BATCH} if kind == "rgat" else {}  # two 3s are one node of a graph
    assert_close(model(ITEM_BATCH).hidden, model.backbone(x, ITEM_BATCH == 0, **ids))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batch_order_change_nothing(kind: str) -> None:
    model = recommender(kind)
    hidden = model(ITEM_BATCH).hidden
    real = ITEM_BATCH != 0
    padded = model(nn.functional.pad(ITEM_BATCH, (2, 0))).hidden[:, 2:]
    assert_close(padded[real], hidden[real])
    order = torch.tensor([2, 0, 1])
    assert_close(model(ITEM_BATCH[order]).hidden, hidden[order])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score_with", SCORE_WITH)
def test_padding_row_stays_zero_and_every_parameter_learns(
    kind: str, score_with: ScoreWith
) -> None:
    model = recommender(kind, score_with).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        out = model(ITEM_BATCH[:2])
        logits = model.score(out.hidden, out.item_matrix)[:, -1]
        loss = nn.functional.cross_entropy(logits, torch.tensor([5, 6]))
        torch.autograd.backward(loss)
        optimizer.step()
    embedding = model.embedding
    for table in (embedding.id_table, *embedding.tables.values(), embedding.table()):
        assert torch.all(table[0] == 0)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("score_with", SCORE_WITH)
def test_an_item_never_trained_on_is_scored_by_its_text_only_when_fused(
    score_with: ScoreWith,
) -> None:
    model = recommender(score_with=score_with)
    hidden = torch.ones(WIDTH)
    before = model.score(hidden)
    with torch.no_grad():
        model.embedding.tables["text"][9] += 1.0
    changed = model.score(hidden) != before
    assert changed.nonzero().flatten().tolist() == ([9] if score_with == "fused" else [])


def test_fused_scoring_fuses_the_table_once_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = FusedItemEmbedding.table

    def counted(self: FusedItemEmbedding, *tables: Any) -> torch.Tensor:
        calls.append(1)
        return original(self, *tables)

    monkeypatch.setattr(FusedItemEmbedding, "table", counted)
    recommender()(ITEM_BATCH)
    assert len(calls) == 1
    calls.clear()
    recommender(score_with="id")(ITEM_BATCH[:2])
    assert calls == []


def test_output_holds_the_modality_parameters() -> None:
    model = recommender()
    (table,) = model(ITEM_BATCH).modality.values()
    assert table is model.modality_parameters()[0]
    assert table is model.embedding.tables["text"]


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec"])
def test_an_ensemble_runs_as_one_vmapped_program(kind: str) -> None:
    members = [recommender(kind) for _ in range(2)]
    nn.init.normal_(members[1].embedding.id_table)
    parameters, buffers = torch.func.stack_module_state(cast(list[nn.Module], members))

    def states(p: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> torch.Tensor:
        out = torch.func.functional_call(members[0], (p, b), (ITEM_BATCH,))
        return cast(torch.Tensor, out.hidden)

    stacked = torch.func.vmap(states)(parameters, buffers)
    for n, member in enumerate(members):
        assert_close(stacked[n], member(ITEM_BATCH).hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_stays_close(kind: str) -> None:
    model = recommender(kind)
    exact = model(ITEM_BATCH).hidden
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(ITEM_BATCH).hidden
    real = ITEM_BATCH != 0
    assert_close(rough.float()[real], exact[real], atol=0.15, rtol=0.1)


def test_errors_name_what_was_wanted() -> None:
    model = recommender()
    with pytest.raises(ValueError, match=r"got shape \(4,\), wanted \[B, L\]"):
        model(ITEM_BATCH[0])
    with pytest.raises(ValueError, match="score_with: got 'text', wanted one of id, fused"):
        Recommender(
            embedding=model.embedding,
            backbone=build_backbone("sasrec", width=WIDTH, max_length=6),
            score_with="text",  # type: ignore[arg-type]
        )
    with pytest.raises(ValueError, match=r"got function, wanted a torch.nn.Module"):
        Recommender(embedding=model.embedding, backbone=test_errors_name_what_was_wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_states_and_gradients(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # two chunks of one sequence and more; the backbone's own dropout would draw in another order
    monkeypatch.setattr("mmkd.student.recommender._CPU_POSITIONS", 5)
    found = []
    for checkpointing in (False, True):
        model = recommender(kind).train()
        model.backbone.apply(lambda module: setattr(module, "dropout", 0.0))
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(5)
        hidden = model(ITEM_BATCH).hidden
        real = ITEM_BATCH > 0
        torch.autograd.backward(hidden[real].pow(2).sum())
        found.append((hidden[real], [p.grad for p in model.parameters()]))
    assert_close(found[1], found[0])


def test_gradient_checkpointing_draws_dropout_again_as_it_was() -> None:
    """Otherwise the gradients would be those of other masks than the states."""
    model = recommender("sasrec").train()
    model.gradient_checkpointing = True
    table = model.embedding.id_table

    def loss() -> torch.Tensor:
        torch.manual_seed(6)
        return cast(torch.Tensor, model(ITEM_BATCH[:2]).hidden[:, -1].sum())

    torch.autograd.backward(loss())
    assert table.grad is not None
    step = 1e-2
    with torch.no_grad():
        table[7, 2] += step
        above = loss()
        table[7, 2] -= 2 * step
        below = loss()
    assert_close(table.grad[7, 2], (above - below) / (2 * step), rtol=2e-2, atol=1e-3)


def test_gradient_checkpointing_saves_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmkd.student.recommender._CPU_POSITIONS", 8)
    kept = []
    for checkpointing in (False, True):
        model = recommender("sasrec").train()
        model.gradient_checkpointing = checkpointing
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(ITEM_BATCH.repeat(20, 1))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2
