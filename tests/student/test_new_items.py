"""A student of a larger catalogue: where rows go, and what does not fit."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmkd import Ensemble
from mmkd.student import StudentSpec, TeacherStart, with_new_items

SPEC = StudentSpec(
    item_count=5,
    max_length=4,
    embedding={"width": 4, "dropout": 0.0},
    backbone={"kind": "bert4rec", "layers": 1, "heads": 1},
    score_with="fused",
    ensemble={"members": 2, "modality_tables": "own"},
    modalities={"text": 4, "image": 6},
)
TEXT, IMAGE = torch.tensor([True, False]), torch.tensor([True, True])


def trained(spec: StudentSpec = SPEC) -> Ensemble:
    teachers = {name: torch.randn(6, dim) for name, dim in SPEC.modalities.items()}
    return spec.build(teachers if spec.modalities else None, seed=3)


def rows(tables: int) -> dict[str, list[Tensor]]:
    return {name: [torch.randn(2, 4) for _ in range(tables)] for name in ("text", "image")}


@pytest.mark.parametrize("fusion", ["gate", "concat", "sum"])
@pytest.mark.parametrize("held", ["own", "shared"])
def test_a_new_item_is_fused_of_its_own_rows_and_no_id(fusion: str, held: str) -> None:
    ensemble = {"members": 2, "modality_tables": held}
    spec = replace(SPEC, embedding={**SPEC.embedding, "fusion": fusion}, ensemble=ensemble)
    student, new = trained(spec), rows(2 if held == "own" else 1)
    larger, grown = with_new_items(spec, student, new, {"text": TEXT, "image": IMAGE})
    assert larger.item_count == grown.item_count == 7 and spec.item_count == 5
    for n, (one, other) in enumerate(zip(student.networks, grown.networks, strict=True)):
        own = 0 if held == "shared" else n
        text, image = new["text"][own], new["image"][own]
        assert one.embedding.fuse is not None
        wanted = one.embedding.fuse(
            [torch.zeros(2, 4), torch.stack([text[0], torch.zeros(4)]), image],
            torch.tensor([[False, True, True], [False, False, True]]),
        )
        table = other.embedding.table()
        torch.testing.assert_close(table[6:8], wanted)
        torch.testing.assert_close(table[[*range(6), -1]], one.embedding.table())
    histories = torch.tensor([[0, 1, 2]])
    torch.testing.assert_close(
        grown.next_scores(histories)[:, :6], student.eval().next_scores(histories)
    )


def test_what_does_not_fit_is_refused() -> None:
    both = {"text": TEXT, "image": IMAGE}
    with pytest.raises(ValueError, match=r"scores with ids.*score_with: fused"):
        ids = replace(SPEC, score_with="id")
        with_new_items(ids, trained(ids), rows(2), both)
    with pytest.raises(ValueError, match="wanted those of text, image"):
        with_new_items(SPEC, trained(), {"text": rows(2)["text"]}, {"text": TEXT})
    with pytest.raises(ValueError, match="no modality to go by"):
        with_new_items(SPEC, trained(), rows(2), {"text": TEXT, "image": TEXT})


@pytest.mark.parametrize("width", [3, 6, 8])
def test_a_row_starts_alone_where_it_starts_among_the_others(width: int) -> None:
    teacher, mask = torch.randn(9, 6), torch.arange(9) > 0
    start = TeacherStart.fit(teacher, mask, width=width, norm=0.5)
    table = start(teacher)
    assert table[1:].norm(dim=1).mean().item() == pytest.approx(0.5)
    torch.testing.assert_close(start(teacher[4:5]), table[4:5])
    gram = table[1:] @ table[1:].T / start.factor**2
    left, values, _ = torch.linalg.svd(teacher[1:])
    kept = left[:, : min(width, 6)] * values[: min(width, 6)]
    torch.testing.assert_close(gram, kept @ kept.T, rtol=1e-4, atol=1e-4)
