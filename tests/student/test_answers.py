"""What a student answers: the list that `recommend` gives, of one network and of several."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mmkd import BERT4Rec, Ensemble, FusedItemEmbedding, GRU4Rec, MmkdError, Recommender, SASRec
from mmkd.student import BACKBONES, build_backbone, build_ensemble

ITEMS, WIDTH, LENGTH = 9, 8, 4
KINDS = sorted(BACKBONES)


@dataclass
class Catalogue:
    ids: Sequence[str] = ("", *(f"i{n}" for n in range(1, ITEMS + 1)))

    @property
    def titles(self) -> list[str]:
        return [name.upper() for name in self.ids]

    def row(self, item_id: str, /) -> int:
        return self.ids.index(item_id)


def network(kind: str = "sasrec", max_length: int | None = None) -> Recommender:
    return Recommender(
        embedding=FusedItemEmbedding(item_count=ITEMS, width=WIDTH, id_std=0.5),
        backbone=build_backbone(kind, width=WIDTH, max_length=LENGTH),
        max_length=max_length,
    )


def last_scores(student: Recommender, rows: list[int]) -> Tensor:
    """By hand: a mask token after the history where the student reads one, the latest items."""
    if not student.causal:
        rows = [*rows, ITEMS + 1]
    student.eval()
    return student.score(student(torch.tensor([rows[-LENGTH:]])).hidden[0, -1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 3, 7])
def test_the_best_items_after_a_history_come_first(kind: str, length: int) -> None:
    torch.manual_seed(1)
    student, history = network(kind, max_length=LENGTH), list(range(1, length + 1))
    ids = [f"i{row}" for row in history]
    found = student.train().recommend(Catalogue(), ids, k=5, exclude_seen=False)
    assert student.training and student.backbone.training  # as before, though it drops nothing
    wanted = last_scores(student, history)
    order = wanted.argsort(descending=True)[: len(found)].tolist()
    assert [each["item"] for each in found] == [f"i{row}" for row in order]
    assert [each["title"] for each in found] == [f"I{row}" for row in order]
    assert [each["score"] for each in found] == pytest.approx(wanted[order].tolist())
    unseen = student.recommend(Catalogue(), ids, k=100)
    assert {each["item"] for each in unseen} == {*Catalogue().ids[1:]} - {*ids}
    assert unseen == Ensemble.of(student).recommend(Catalogue(), ids, k=100)


def test_an_ensemble_answers_with_its_members_sum() -> None:
    ensemble = build_ensemble(lambda: network("bert4rec"), seed=2, members=3)
    wanted = torch.stack([last_scores(member, [4, 2]) for member in ensemble.networks]).sum(0)
    torch.testing.assert_close(
        ensemble.train().next_scores(torch.tensor([[0, 0, 4, 2]]))[0], wanted
    )
    assert ensemble.training
    found = ensemble.recommend(Catalogue(), ["i4", "i2"], k=1, exclude_seen=False)
    assert found[0]["item"] == f"i{int(wanted.argmax())}"
    assert Ensemble.of(ensemble) is ensemble


def test_the_longest_history_is_known() -> None:
    assert network("sasrec").max_length == LENGTH
    assert network("sasrec", max_length=2).max_length == 2
    assert network("gru4rec").max_length is None
    assert network("gru4rec", max_length=3).max_length == 3
    pair = Ensemble([network("sasrec"), network("gru4rec", max_length=3)])
    assert pair.max_length == 3 and Ensemble([network("gru4rec")]).max_length is None


def test_what_cannot_be_answered_says_so() -> None:
    student = network()
    with pytest.raises(MmkdError, match="history is empty; give at least one item id"):
        student.recommend(Catalogue(), [])
    with pytest.raises(ValueError, match="k: got 0, wanted at least 1"):
        student.recommend(Catalogue(), ["i1"], k=0)
    with pytest.raises(MmkdError, match="catalogue of 3 items, wanted the 9"):
        student.recommend(Catalogue(("", "i1", "i2", "i3")), ["i1"])
    with torch.no_grad():
        student.embedding.id_table[3] = torch.nan
    with pytest.raises(MmkdError, match="NaN"):
        student.recommend(Catalogue(), ["i1"])


class Own(nn.Module):
    """A backbone of a user's own: the mean of what was read so far."""

    causal = True

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return x.cumsum(1) / (~padding).cumsum(1).clamp(min=1)[:, :, None] * self.scale


@dataclass
class Fitted:
    reduced: dict[str, Tensor]
    present: dict[str, Tensor]


def fitted(dim: int = WIDTH) -> Fitted:
    teacher = torch.randn(ITEMS + 1, dim, generator=torch.Generator().manual_seed(0))
    return Fitted({"text": teacher}, {"text": torch.arange(ITEMS + 1) > 1})


@pytest.mark.parametrize(
    ("backbone", "width"),
    [
        (SASRec(width=4, max_length=LENGTH), 4),
        (BERT4Rec(width=12, max_length=LENGTH), 12),
        (GRU4Rec, WIDTH),
        (Own, WIDTH),
        (Own(width=WIDTH), WIDTH),
    ],
)
def test_a_student_starts_from_a_teacher_around_any_backbone(
    backbone: SASRec | type[Own], width: int
) -> None:
    student = Recommender.from_teacher(fitted(), backbone=backbone, fusion="sum", id_std=0.3)
    assert student.embedding.width == width and student.item_count == ITEMS
    assert not student.embedding.tables["text"][[0, 1]].any()
    norms = student.embedding.tables["text"][2:-1].norm(dim=1)
    torch.testing.assert_close(norms.mean(), torch.tensor(0.3 * width**0.5))
    assert len(student.recommend(Catalogue(), ["i3", "i5"], k=4)) == 4


def test_a_class_gets_the_length_it_is_built_for() -> None:
    student = Recommender.from_teacher(fitted(), backbone=SASRec, max_length=3, width=4)
    assert student.max_length == 3 and student.embedding.width == 4


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no teacher; call its fit first"):
        Recommender.from_teacher(Fitted({}, {}), backbone=GRU4Rec)
    with pytest.raises(ValueError, match="backbone: got one of width 4, wanted the embedding's 8"):
        Recommender.from_teacher(fitted(), backbone=GRU4Rec(width=4), width=8)
    with pytest.raises(ValueError, match=r"wanted an nn\.Module class with a `causal`"):
        Recommender.from_teacher(fitted(), backbone=nn.Identity)
    with pytest.raises(
        ValueError, match=r"got Identity, wanted a torch\.nn\.Module with a `causal`"
    ):
        Recommender.from_teacher(fitted(), backbone=nn.Identity())  # type: ignore[arg-type]
