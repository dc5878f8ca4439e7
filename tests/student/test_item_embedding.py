"""The fused item embedding: start, fusion, missing modalities, padding."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from references.student import gate, gelu, layer_norm
from torch.testing import assert_close

from mmkd import FusedItemEmbedding
from mmkd.student import GateFusion, item_embedding
from mmkd.student.fusion import Fusion
from mmkd.student.item_embedding import AdapterKind
from mmkd.student.rows import rows_of

ITEMS, WIDTH = 9, 8
FUSION_NAMES: list[Fusion] = ["gate", "concat", "sum"]


def teachers(dim: int = WIDTH, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    tables = {name: torch.randn(ITEMS + 1, dim, generator=g) for name in ("text", "image")}
    for table in tables.values():
        table[0] = 0.0
    return tables


def masks() -> dict[str, torch.Tensor]:
    text = torch.ones(ITEMS + 1, dtype=torch.bool)
    image = text.clone()
    text[0] = image[0] = False
    image[[2, 5]] = False
    text[5] = False
    return {"text": text, "image": image}


def embedding(fusion: Fusion = "gate", **options: float) -> FusedItemEmbedding:
    torch.manual_seed(1)
    return FusedItemEmbedding(
        item_count=ITEMS,
        width=WIDTH,
        modalities=teachers(),
        present=masks(),
        fusion=fusion,
        dropout=options.get("dropout", 0.0),
        id_std=options.get("id_std", 0.02),
        modality_std=options.get("modality_std"),
    )


def cosines(table: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(table.double(), dim=1)
    return unit @ unit.mT


@pytest.mark.parametrize("width", [WIDTH, 12])
def test_student_tables_start_with_the_teachers_similarities(width: int) -> None:
    teacher = teachers()
    e = FusedItemEmbedding(item_count=ITEMS, width=width, modalities=teacher)
    for name, table in e.modality_tables().items():
        assert table.shape == (ITEMS + 2, width)
        assert_close(cosines(table[1:-1].detach()), cosines(teacher[name][1:]))
        ratio = table[1:-1].norm(dim=1) / teacher[name][1:].norm(dim=1)
        assert_close(ratio, ratio[:1].expand_as(ratio))


def test_same_width_keeps_the_teachers_own_coordinates() -> None:
    table = embedding().modality_tables()["text"].detach()
    teacher = teachers()["text"]
    has = masks()["text"]
    factor = table[1, 0] / teacher[1, 0]
    assert factor > 0
    assert_close(table[:-1][has], teacher[has] * factor)


def test_narrower_table_keeps_more_of_the_gram_matrix_than_any_other_projection_tried() -> None:
    g = torch.Generator().manual_seed(3)
    teacher = torch.randn(ITEMS + 1, WIDTH, generator=g) * torch.linspace(3, 0.2, WIDTH)
    teacher = (teacher @ torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=g))[0]).double()
    teacher[0] = 0.0
    e = FusedItemEmbedding(item_count=ITEMS, width=3, modalities={"text": teacher})
    rows = e.modality_tables()["text"].detach()[1:-1].double()
    # undo the common scale: an orthogonal projection keeps the top 3 singular values
    singular = torch.linalg.svdvals(teacher[1:])
    rows = rows * (singular[0] / torch.linalg.svdvals(rows)[0])
    gram = teacher[1:] @ teacher[1:].mT
    error = (rows @ rows.mT - gram).norm()
    assert_close(error, (singular[3:] ** 4).sum().sqrt(), rtol=1e-4, atol=1e-4)
    for _ in range(50):
        basis = torch.linalg.qr(torch.randn(WIDTH, 3, generator=g).double())[0]
        other = teacher[1:] @ basis
        assert error < (other @ other.mT - gram).norm()


def test_narrower_table_of_a_pca_teacher_is_its_leading_columns() -> None:
    g = torch.Generator().manual_seed(4)
    left = torch.linalg.qr(torch.randn(ITEMS, WIDTH, generator=g))[0]
    teacher = torch.zeros(ITEMS + 1, WIDTH)
    teacher[1:] = left * torch.linspace(5, 1, WIDTH)  # uncorrelated columns, falling variance
    e = FusedItemEmbedding(item_count=ITEMS, width=4, modalities={"text": teacher})
    table = e.modality_tables()["text"].detach()[1:-1]
    signed = table * (table * teacher[1:, :4]).sum(0).sign()
    assert_close(signed / signed.norm(), teacher[1:, :4] / teacher[1:, :4].norm())


@pytest.mark.parametrize("dim", [5, 8, 13])
def test_start_does_not_depend_on_the_seed_and_has_the_chosen_scale(dim: int) -> None:
    tables = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        e = FusedItemEmbedding(
            item_count=ITEMS,
            width=WIDTH,
            modalities=teachers(dim),
            present=masks(),
            modality_std=0.3,
        )
        tables.append(e.modality_tables()["image"].detach())
    assert torch.equal(tables[0], tables[1])
    norms = tables[0][:-1][masks()["image"]].norm(dim=1)
    assert_close(norms.mean(), torch.tensor(0.3 * math.sqrt(WIDTH)))


def test_modality_scale_defaults_to_the_id_tables() -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    e = FusedItemEmbedding(
        item_count=4000,
        width=32,
        modalities={"text": 50 * torch.randn(4001, 32, generator=g)},
        id_std=0.07,
    )
    id_norm = e.id_table[1:].norm(dim=1).mean()
    text_norm = e.modality_tables()["text"][1:-1].norm(dim=1).mean()
    assert_close(text_norm, id_norm, rtol=0.02, atol=0)


def test_missing_rows_padding_and_mask_token_start_at_zero() -> None:
    tables = embedding().modality_tables()
    assert torch.all(tables["image"][[0, 2, 5, ITEMS + 1]] == 0)
    assert torch.all(tables["text"][[0, 5, ITEMS + 1]] == 0)
    assert torch.all(tables["text"][[1, 2, 3]] != 0)


def test_gate_matches_a_naive_loop() -> None:
    e = embedding(id_std=0.5)
    assert isinstance(e.fuse, GateFusion)
    torch.nn.init.normal_(e.fuse.bias)
    with torch.no_grad():  # missing rows must not matter, whatever they hold
        e.tables["image"][[2, 5]] = 7.0
        e.tables["text"][5] = -3.0
    weights = e.fuse.state_dict()
    fused = e.double().table().detach()
    for row in range(1, ITEMS + 2):
        has_text = row not in (5, ITEMS + 1)
        has_image = row not in (2, 5, ITEMS + 1)
        expected = gate(
            weights,
            [
                e.id_table[row].detach(),
                e.tables["text"][row].detach() if has_text else None,
                e.tables["image"][row].detach() if has_image else None,
            ],
        )
        assert_close(fused[row], expected)


def test_gate_gives_a_missing_source_exactly_no_weight() -> None:
    e = embedding()
    assert isinstance(e.fuse, GateFusion)
    sources = [e.id_table, *e.tables.values()]
    weights = e.fuse.weights(sources, e.has)
    assert torch.all(weights[5, 1:] == 0) and weights[5, 0] == 1
    assert weights[2, 2] == 0
    assert torch.all(weights[1] > 0)
    assert_close(weights.sum(1), torch.ones(ITEMS + 2))


def test_sum_is_the_mean_of_what_is_there() -> None:
    e = embedding("sum")
    text, image = e.tables["text"], e.tables["image"]
    fused = e.table()
    assert_close(fused[1], (e.id_table[1] + text[1] + image[1]) / 3)
    assert_close(fused[2], (e.id_table[2] + text[2]) / 2)
    assert_close(fused[5], e.id_table[5])


def test_concat_is_linear_in_the_sources_and_ignores_missing_ones() -> None:
    e = embedding("concat")
    assert e.fuse is not None
    assert_close(e.table()[1], (e.id_table[1] + e.tables["text"][1] + e.tables["image"][1]) / 3)
    (matrix,) = e.fuse.parameters()
    torch.nn.init.normal_(matrix)
    with torch.no_grad():
        e.tables["image"][2] = 7.0
    joined = torch.cat([e.id_table[2], e.tables["text"][2], torch.zeros(WIDTH)])
    assert_close(e.table()[2], matrix @ joined)


@pytest.mark.parametrize("fusion", FUSION_NAMES)
def test_mask_token_is_its_id_row_alone(fusion: Fusion) -> None:
    e = embedding(fusion)
    before = e.table()[ITEMS + 1].clone()
    with torch.no_grad():
        for table in e.tables.values():
            table[ITEMS + 1] = 5.0
    assert torch.equal(e.table()[ITEMS + 1], before)


@pytest.mark.parametrize("fusion", FUSION_NAMES)
def test_forward_equals_lookup_of_the_fused_table_value_and_gradient(fusion: Fusion) -> None:
    """Fewer positions than items take the short way; it must agree with the long one."""
    items = torch.tensor([[0, 0, 5], [2, ITEMS + 1, 2]])
    e = embedding(fusion)
    assert items.numel() < ITEMS
    short = e(items)
    long = e.lookup(items, e.table())
    assert_close(short, long)
    assert torch.all(short[0, :2] == 0)
    weight = torch.randn(short.shape)
    grads = [
        torch.autograd.grad((out * weight).sum(), list(e.parameters())) for out in (short, long)
    ]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b)
    assert_close(e(items.repeat(3, 2)), e.lookup(items, e.table()).repeat(3, 2, 1))


@pytest.mark.parametrize("fusion", FUSION_NAMES)
def test_padding_and_missing_rows_stay_zero_under_adam(fusion: Fusion) -> None:
    e = embedding(fusion)
    optimizer = torch.optim.Adam(e.parameters(), lr=0.1, weight_decay=0.1)
    items = torch.tensor([[0, 0, 5], [2, ITEMS + 1, 1]])
    target = torch.randn(ITEMS + 2, WIDTH)
    for _ in range(3):
        optimizer.zero_grad()
        table = e.table()  # the loss reaches every row, padding included, in both ways
        loss = (table * target).sum() + e.lookup(items, table).sum() + e(items).square().sum()
        (loss + e(items).sum()).backward()
        optimizer.step()
    assert torch.all(e.table()[0] == 0)
    assert torch.all(e(items)[0, :2] == 0)
    assert torch.all(e.id_table[0] == 0)
    assert torch.all(e.id_table[1:] != 0)
    assert torch.all(e.tables["image"][[0, 2, 5, ITEMS + 1]] == 0)
    assert torch.all(e.tables["text"][[0, 5, ITEMS + 1]] == 0)
    assert not torch.equal(e.tables["text"], embedding(fusion).tables["text"])


def test_without_modalities_it_is_the_id_table() -> None:
    e = FusedItemEmbedding(item_count=ITEMS, width=WIDTH, dropout=0.0)
    items = torch.tensor([[0, 3, 9]])
    assert_close(e(items)[0], e.id_table[[0, 3, 9]])
    assert e.table() is e.id_table
    assert e.modality_tables() == {} and e.modality_parameters() == []
    assert sum(p.numel() for p in e.parameters()) == (ITEMS + 2) * WIDTH


def test_dropout_falls_on_inputs_in_training_only() -> None:
    e = embedding(dropout=0.5)
    items = torch.arange(1, ITEMS + 1).repeat(20, 1)
    table = e.table()
    x = e.lookup(items, table)
    share = (x == 0).double().mean().item()
    assert 0.42 < share < 0.58
    kept = x != 0
    assert_close(x[kept], (2 * table[items])[kept])
    assert torch.equal(e.table(), table)
    e.eval()
    assert_close(e(items), table[items])


def test_modality_parameters_are_the_tables_and_nothing_else() -> None:
    e = embedding()
    wanted = {id(e.tables["text"]), id(e.tables["image"])}
    assert {id(p) for p in e.modality_parameters()} == wanted
    assert {id(t) for t in e.modality_tables().values()} == wanted


def test_weights_load_into_an_embedding_built_from_zeros() -> None:
    trained = embedding()
    zeros = {name: torch.zeros(ITEMS + 1, WIDTH) for name in ("text", "image")}
    fresh = FusedItemEmbedding(item_count=ITEMS, width=WIDTH, modalities=zeros, dropout=0.0)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.table(), trained.table())


def test_errors_name_what_was_wanted() -> None:
    with pytest.raises(ValueError, match=r"'text'.*\(4, 8\).*\[10, d_t\]"):
        FusedItemEmbedding(item_count=9, width=8, modalities={"text": torch.zeros(4, 8)})
    with pytest.raises(ValueError, match=r"present mask.*\(3,\).*\[10\]"):
        FusedItemEmbedding(
            item_count=9,
            width=8,
            modalities={"text": torch.zeros(10, 8)},
            present={"text": torch.ones(3, dtype=torch.bool)},
        )
    with pytest.raises(ValueError, match="'image' but modalities has not"):
        FusedItemEmbedding(item_count=9, width=8, present={"image": torch.ones(10).bool()})
    with pytest.raises(ValueError, match="fusion: got 'mean', wanted one of gate, concat, sum"):
        FusedItemEmbedding(item_count=9, width=8, fusion="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a.b", "a b", "_a", "type", "keys", "items", "train", "to"])
def test_a_modality_name_that_torch_cannot_store_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"modality .*: (wanted letters|torch keeps this name)"):
        FusedItemEmbedding(item_count=9, width=8, modalities={name: torch.zeros(10, 8)})


def trained_mask() -> torch.Tensor:
    trained = torch.ones(ITEMS + 1, dtype=torch.bool)
    trained[[3, 5]] = False  # 5 has no modality either, so its ids are all there is
    return trained


@pytest.mark.parametrize("fusion", FUSION_NAMES)
def test_ids_of_an_untrained_item_are_never_read(fusion: Fusion) -> None:
    torch.manual_seed(1)
    e = FusedItemEmbedding(
        item_count=ITEMS,
        width=WIDTH,
        modalities=teachers(),
        present=masks(),
        fusion=fusion,
        trained=trained_mask(),
        dropout=0.0,
    )
    assert e.has[:, 0].tolist() == [True, True, True, False, *[True] * 7]
    for training in (True, False):
        e.train(training)
        before = e.table().detach().clone()
        e.table().square().sum().backward()  # type: ignore[no-untyped-call]
        grad = e.id_table.grad
        assert grad is not None
        assert not grad[3].any()
        assert grad[4].any()
        with torch.no_grad():
            e.id_table[[3, 5]] += 7.0
        after = e.table().detach()
        assert_close(after[3], before[3])
        assert_close(e(torch.tensor([[3]])).detach()[0, 0], before[3])
        assert (after[5] != before[5]).any()


def test_dropped_ids_leave_the_content_in_their_share() -> None:
    torch.manual_seed(1)
    items = 4000
    teacher = torch.randn(items + 1, WIDTH)
    present = torch.ones(items + 1, dtype=torch.bool)
    present[[0, 9]] = False
    e = FusedItemEmbedding(
        item_count=items,
        width=WIDTH,
        modalities={"text": teacher},
        present={"text": present},
        fusion="sum",
        dropout=0.0,
        id_dropout=0.3,
    )
    text, ids = e.tables["text"].detach(), e.id_table.detach()
    table = e.table().detach()
    alone = (table[1:-1] - text[1:-1]).abs().amax(1) < 1e-6
    both = (table[1:-1] - (text + ids)[1:-1] / 2).abs().amax(1) < 1e-6
    assert bool((alone ^ both)[torch.arange(items) != 8].all())
    assert float(alone.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert_close(table[9], ids[9])
    assert_close(table[-1], ids[-1])
    drawn = torch.randint(1, items, (2, 500))
    x = e(drawn).detach().flatten(0, 1)
    alone = (x - text[drawn.flatten()]).abs().amax(1) < 1e-6
    assert float(alone.float().mean()) == pytest.approx(0.3, abs=0.06)
    e.eval()
    assert_close(e.table().detach()[1], (text + ids)[1] / 2)


def test_without_ids_an_item_is_its_modalities_and_the_rest_share_one_vector() -> None:
    text, image = (torch.randn(6, WIDTH) for _ in range(2))
    present = {
        "text": torch.tensor([False, True, False, True, False, True]),
        "image": torch.tensor([False, True, True, False, False, True]),
    }
    modalities = {"text": text, "image": image}
    e = FusedItemEmbedding(
        item_count=5, width=WIDTH, modalities=modalities, present=present, ids=False, fusion="sum"
    )
    assert not hasattr(e, "id_table")
    table, own = e.table(), dict(e.tables)
    assert_close(table[1], (own["text"][1] + own["image"][1]) / 2)
    assert_close(table[2], own["image"][2])
    assert_close(table[3], own["text"][3])
    assert_close(table[4], e.stand_in[0])
    assert_close(table[6], e.stand_in[1])  # the mask token
    assert not table[0].any()
    assert e.known.tolist() == [True, True, True, False, True]
    assert_close(e.eval()(torch.tensor([[0, 4, 2]]))[0], table[[0, 4, 2]])
    table[[1, 4]].sum().backward()  # type: ignore[no-untyped-call]
    assert e.stand_in.grad is not None and e.stand_in.grad[0].all()
    assert own["text"].grad is not None and not own["text"].grad[[0, 2, 3, 4, 5, 6]].any()


@pytest.mark.parametrize("fusion", ["gate", "concat", "sum"])
def test_one_modality_without_ids_needs_no_fusion(fusion: Fusion) -> None:
    e = FusedItemEmbedding(
        item_count=3, width=WIDTH, modalities={"text": torch.randn(4, 5)}, ids=False, fusion=fusion
    )
    assert e.fuse is None
    assert_close(e.table()[:-1], e.tables["text"][:-1])


def test_without_ids_there_must_be_a_modality_and_nothing_to_drop() -> None:
    with pytest.raises(ValueError, match=r"ids: got false, but there is no modality either"):
        FusedItemEmbedding(item_count=3, width=4, ids=False)
    with pytest.raises(ValueError, match=r"id_dropout: got 0.5, but there are no ids"):
        FusedItemEmbedding(
            item_count=3,
            width=4,
            modalities={"text": torch.randn(4, 5)},
            ids=False,
            id_dropout=0.5,
        )


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("dim", [5, WIDTH, 3 * WIDTH])
def test_an_adapter_starts_as_the_table_would_have_and_freezes_the_teacher(
    kind: AdapterKind, dim: int
) -> None:
    teacher, present = torch.randn(6, dim), torch.arange(6) % 5 > 0
    options = {"item_count": 5, "width": WIDTH, "modalities": {"text": teacher}, "ids": False}
    options |= {"present": {"text": present}, "dropout": 0.0}
    torch.manual_seed(1)
    plain = FusedItemEmbedding(**options)  # type: ignore[arg-type]
    torch.manual_seed(1)
    e = FusedItemEmbedding(**options, adapter=kind)  # type: ignore[arg-type]
    assert_close(e.table(), plain.table(), atol=1e-5, rtol=1e-4)
    frozen = e.tables["text"]
    assert_close(frozen[:-1].detach(), torch.where(present[:, None], teacher, 0.0))
    assert e.modality_parameters() == [] and not frozen.requires_grad
    optimizer = torch.optim.SGD([p for p in e.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        e.table().sin().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    weights = dict(e.adapters["text"].named_parameters())
    for row in range(7):
        x = frozen[row].double()
        wanted = weights["linear.weight"].double() @ x
        if kind == "mlp":
            unit = layer_norm(x)
            hidden = gelu(weights["hidden.weight"].double() @ unit)
            wanted = wanted + weights["out.weight"].double() @ hidden
        if row in (5, 6):  # without text, and the mask token
            wanted = e.stand_in[row - 5].double()
        assert_close(e.table()[row].double(), wanted, atol=1e-5, rtol=1e-4)
    assert not torch.equal(e.table(), plain.table())
    with e.table_kept():
        assert_close(e.modality_tables()["text"][0], torch.zeros(WIDTH))


@pytest.mark.parametrize("fusion", ["gate", "sum"])
def test_source_weights_are_what_the_fused_vectors_are_made_with(fusion: Fusion) -> None:
    e = embedding(fusion)
    weights = e.source_weights()
    assert weights is not None and list(weights) == ["ids", "text", "image"]
    sources = [e.id_table, *e.modality_tables().values()]
    table = sum(w[:, None] * s for w, s in zip(weights.values(), sources, strict=True))
    assert_close(table, e.table())
    total = torch.stack([*weights.values()]).sum(0)
    assert_close(total, (torch.arange(ITEMS + 2) > 0).float())
    assert weights["image"][2] == weights["image"][5] == weights["text"][5] == 0
    assert weights["ids"][-1] == 1  # the mask token's


def test_a_fusion_without_weights_has_none_and_a_single_source_all() -> None:
    assert embedding("concat").source_weights() is None
    alone = FusedItemEmbedding(item_count=3, width=4).source_weights()
    assert alone is not None
    assert_close(alone["ids"], torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize(("items", "width", "dim"), [(37, 8, 12), (64, 1, 3), (5, 4, 2)])
@pytest.mark.parametrize("adapter", [None, "linear"])
def test_made_by_the_process_that_holds_them_rows_are_those_of_whole_tables(
    items: int, width: int, dim: int, adapter: AdapterKind | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_embedding, "_ROWS_AT_ONCE", 16)
    teacher = torch.randn(items + 1, dim, generator=torch.Generator().manual_seed(1))
    present = torch.arange(items + 1) % 3 > 0
    teacher[~present] = 0

    def built(shards: Any = None) -> tuple[FusedItemEmbedding, torch.Tensor]:
        torch.manual_seed(7)
        options: Any = {"modalities": {"text": teacher}, "present": {"text": present}}
        embedding = FusedItemEmbedding(
            item_count=items, width=width, adapter=adapter, shards=shards, **options
        )
        return embedding, torch.randn(3)

    whole, drawn_next = built()
    for rank in range(3):
        first, end = rows_of(rank, 3, items + 2)
        part, also = built(SimpleNamespace(first=first, end=end))
        assert torch.equal(part.id_table, whole.id_table[first:end])
        assert torch.equal(part.tables["text"], whole.tables["text"][first:end])
        assert torch.equal(part.has, whole.has) and torch.equal(also, drawn_next)
