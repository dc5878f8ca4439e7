"""A trained ensemble as two towers: inner products are the scores that it gives itself."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from mmkd import Ensemble, FusedItemEmbedding, Recommender
from mmkd.student import BACKBONES, Retrieval, build_backbone

ITEMS, WIDTH, LENGTH = 11, 8, 5


def network(
    kind: str,
    *,
    score_with: Any = "fused",
    ids: bool = True,
    fusion: Any = "gate",
    trained: Tensor | None = None,
) -> Recommender:
    present = {"text": torch.arange(ITEMS + 1) % 4 != 1, "image": torch.arange(ITEMS + 1) % 3 != 1}
    return Recommender(
        embedding=FusedItemEmbedding(
            item_count=ITEMS,
            width=WIDTH,
            modalities={name: torch.randn(ITEMS + 1, 6) for name in present},
            present=present,
            ids=ids,
            fusion=fusion,
            trained=trained,
            id_std=0.5,
        ),
        backbone=build_backbone(kind, width=WIDTH, max_length=LENGTH),
        score_with=score_with,
        max_length=LENGTH,
    )


def histories() -> Tensor:
    """Of all lengths, some longer than what is read, some with an item twice."""
    rows = torch.randint(1, ITEMS + 1, (12, LENGTH + 2))
    for n, row in enumerate(rows):
        row[: max(LENGTH + 2 - 1 - n, 0)] = 0
    rows[6, -1] = rows[6, -3]
    return rows


def assert_scores(student: Ensemble) -> Retrieval:
    """The towers' scores are those of the student, whose own mode they leave alone."""
    student.train()
    towers, history = Retrieval(student), histories()
    assert all(module.training for module in student.modules())
    query = towers(history)
    wanted = student.double().next_scores(history)[:, 1:].float()
    torch.testing.assert_close(towers.scores(query), wanted, rtol=1e-5, atol=2e-5)
    if towers.dot:
        torch.testing.assert_close(query @ towers.vectors.mT, wanted, rtol=1e-5, atol=2e-5)
    return towers


@pytest.mark.parametrize("kind", sorted(BACKBONES))
@pytest.mark.parametrize("score_with", ["fused", "id"])
def test_one_network_is_its_state_and_its_item_matrix(kind: str, score_with: str) -> None:
    student = Ensemble([network(kind, score_with=score_with)])
    towers = assert_scores(student)
    torch.testing.assert_close(towers.vectors, student.networks[0].float().item_matrix())
    assert towers.columns == [(0, WIDTH)] and towers.shares == [1.0]
    assert towers.length == (LENGTH - 1 if kind == "bert4rec" else LENGTH)


@pytest.mark.parametrize("fusion", ["gate", "concat", "sum"])
def test_whatever_the_fusion_and_without_ids(fusion: str) -> None:
    assert_scores(Ensemble([network("sasrec", ids=False, fusion=fusion)]))


@pytest.mark.parametrize(
    ("inference", "weights", "offset"),
    product(("logits", "standardized", "probabilities"), (None, [0.5, 2.0]), (None, -1.5)),
)
def test_members_are_columns_and_untrained_items_one_more(
    inference: Any, weights: list[float] | None, offset: float | None
) -> None:
    trained = torch.arange(ITEMS + 1) % 5 != 2
    # the second knows some items by nothing; the first reads content alone
    members = [network("gru4rec", ids=False), network("sasrec", score_with="id", trained=trained)]
    student = Ensemble(members, inference=inference, weights=weights, untrained_offset=offset)
    if student.untrained is not None:
        student.untrained.copy_(~trained[1:])
    towers = assert_scores(student)
    assert towers.dot == (inference != "probabilities")
    marked = int(offset is not None and towers.dot)
    assert towers.vectors.shape == (ITEMS, 2 * WIDTH + marked)
    assert towers.columns == [(0, WIDTH), (WIDTH, 2 * WIDTH)]


@pytest.mark.parametrize("knows", [False, True])
def test_a_member_that_knows_no_item_or_none_apart_says_nothing(knows: bool) -> None:
    quiet = network("sasrec", ids=False)
    with torch.no_grad():
        quiet.embedding.has[1:-1, 0] = not knows
        quiet.embedding.has[1:-1, 1:] = knows
        for table in [*quiet.embedding.tables.values(), quiet.embedding.stand_in]:
            table.copy_(torch.linspace(-0.2, 0.9, WIDTH).expand_as(table))
    student = Ensemble([network("sasrec"), quiet], inference="standardized")
    towers = assert_scores(student)
    assert towers(histories())[:, WIDTH:].abs().max() == 0


def test_scores_in_standard_deviations_by_hand() -> None:
    """Two members, one history, in plain numbers."""
    student = Ensemble([network("gru4rec"), network("gru4rec")], inference="standardized")
    towers, history = Retrieval(student), torch.tensor([[4, 2]])
    student.eval()
    total = [0.0] * ITEMS
    for member in student.networks:
        out: Mapping[str, Any] = vars(member(history))
        state, matrix = out["hidden"][0, -1].tolist(), out["item_matrix"].tolist()
        own = [sum(a * b for a, b in zip(state, row, strict=True)) for row in matrix]
        mean = sum(own) / ITEMS
        deviation = (sum((z - mean) ** 2 for z in own) / ITEMS) ** 0.5
        total = [t + (z - mean) / deviation for t, z in zip(total, own, strict=True)]
    found = (towers(history) @ towers.vectors.mT)[0].tolist()
    assert found == pytest.approx(total, abs=1e-5)
