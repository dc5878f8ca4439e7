"""Tasks: what each kind of view may do to a sequence, what is asked, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mmkd import MaskedItem, NextItem
from mmkd.data.batches import seeded_generator
from mmkd.data.tasks import TASKS

ITEMS, L, VIEWS = 30, 10, 200
MASK = ITEMS + 1
LENGTHS = (1, 2, 5, 10)


def sequences() -> Tensor:
    """Distinct items in every row, so that a view tells where each came from."""
    rows = torch.zeros(len(LENGTHS), L, dtype=torch.int64)
    for row, count in enumerate(LENGTHS):
        rows[row, L - count :] = torch.randperm(ITEMS)[:count] + 1
    return rows


def views_of(**shares: float) -> tuple[Tensor, list[list[list[int]]]]:
    """The sequences, and their views row by row without the padding, which must be on the left."""
    made = sequences()
    kinds: dict[str, Any] = {"crop": 0.0, "mask": 0.0, "reorder": 0.0} | shares
    events = torch.nn.functional.pad(made, (0, 1), value=1)  # the last is only a target
    task = NextItem(views=VIEWS, **kinds)
    found = task.batch(events, item_count=ITEMS, generator=seeded_generator(3)).views[1:]
    assert found.shape == (VIEWS, len(LENGTHS), L)
    rows = []
    for view in found.tolist():
        rows.append([[item for item in row if item] for row in view])
        for row, real in zip(view, rows[-1], strict=True):
            assert row == [0] * (L - len(real)) + real
    return made, rows


def real(row: Tensor) -> list[int]:
    return [item for item in row.tolist() if item]


def test_a_crop_is_one_piece_of_the_share_from_anywhere() -> None:
    made, views = views_of(crop=0.6)
    for row, count in enumerate(LENGTHS):
        whole, kept = real(made[row]), max(1, int(0.6 * count))
        pieces = [whole[i : i + kept] for i in range(count - kept + 1)]
        assert {tuple(view[row]) for view in views} == {tuple(piece) for piece in pieces}


def test_a_mask_hides_the_share_and_keeps_the_rest_in_place() -> None:
    made, views = views_of(mask=0.3)
    for row, count in enumerate(LENGTHS):
        whole, hidden = real(made[row]), set()
        for view in views:
            assert view[row].count(MASK) == int(0.3 * count)
            assert all(a in (b, MASK) for a, b in zip(view[row], whole, strict=True))
            hidden |= {place for place, item in enumerate(view[row]) if item == MASK}
        assert len(hidden) == (count if int(0.3 * count) else 0)


def test_a_reorder_shuffles_one_piece_of_the_share() -> None:
    made, views = views_of(reorder=0.5)
    for row, count in enumerate(LENGTHS):
        whole, size, starts = real(made[row]), int(0.5 * count), set()
        for view in views:
            assert sorted(view[row]) == sorted(whole)
            moved = [i for i, (a, b) in enumerate(zip(view[row], whole, strict=True)) if a != b]
            if moved:
                assert moved[-1] - moved[0] < size
                starts.add(moved[0])
        assert (len(starts) > 1) == (size > 1)


def test_kinds_mix_within_a_batch_and_every_view_is_drawn_alone() -> None:
    made, views = views_of(crop=0.5, mask=0.4, reorder=0.8)
    whole = real(made[3])
    kinds = ["crop" if len(v[3]) < L else "mask" if MASK in v[3] else "reorder" for v in views]
    assert {kinds.count(kind) > VIEWS / 5 for kind in ("crop", "mask", "reorder")} == {True}
    assert len({tuple(v[3]) for v in views}) > VIEWS / 3
    assert whole != sorted(whole)


def test_a_next_item_batch_learns_from_the_sequence_and_not_from_its_views() -> None:
    events = torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8]])
    plain = NextItem().batch(events, item_count=9)
    batch = NextItem(views=4).batch(events, item_count=9, generator=seeded_generator(0))
    assert batch.clean and plain.clean
    assert torch.equal(batch.views[:1], plain.views) and torch.equal(batch.views[0], batch.items)
    assert torch.equal(batch.targets[:1], plain.targets) and not batch.targets[1:].any()
    assert batch.views.shape == (5, 2, 4) and batch.supervised_views == 1


def test_bad_numbers_are_told_together() -> None:
    with pytest.raises(ValueError, match=r"^crop: got 1\.5, wanted 0 to 1.*\n.*mask: got -1"):
        NextItem(views=1, crop=1.5, mask=-1)
    with pytest.raises(ValueError, match=r"views: got -1, wanted at least 0; 0 makes none"):
        NextItem(views=-1)
    with pytest.raises(ValueError, match=r"all 0, so the views would not differ"):
        NextItem(views=2, crop=0, mask=0, reorder=0)
    with pytest.raises(ValueError, match=r"views: got 0, wanted at least 1"):
        MaskedItem(views=0)


@pytest.mark.parametrize("kind", TASKS)
def test_windows_slide_by_one_event_at_least(kind: str) -> None:
    assert TASKS[kind](window_step=3).window_step == 3
    with pytest.raises(ValueError, match=r"window_step: got 0, wanted at least 1; null cuts"):
        TASKS[kind](window_step=0)


def test_a_check_judges_only_what_it_is_told() -> None:
    assert NextItem.check() == MaskedItem.check() == []
    assert NextItem.check(views=2, crop=0, mask=0) == []
    assert len(NextItem.check(views=2, crop=0, mask=0, reorder=0)) == 1


@pytest.mark.parametrize("option", ["mask_ratio", "last_only"])
@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(option: str, share: float) -> None:
    with pytest.raises(ValueError, match=f"{option}: got {share}, wanted 0 to 1; it is a share"):
        MaskedItem(**{option: share})  # type: ignore[arg-type]


def test_only_masked_item_is_for_bidirectional_networks() -> None:
    causal = {kind: TASKS[kind]().causal for kind in TASKS}
    assert causal == {"next_item": True, "masked_item": False}


def test_without_contrast_only_unsupervised_views_go() -> None:
    assert NextItem(views=3, crop=0.5).without_contrast() == NextItem(crop=0.5)
    masked = MaskedItem(views=3)
    assert masked.without_contrast() == masked and masked.supervised_views == 3
