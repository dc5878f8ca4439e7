"""Batch targets against float64 loops, and what must not change them."""

import resource
import tracemalloc
from typing import Any, get_args

import numpy as np
import pytest
import torch
from references import correlation as reference
from references.teacher import Table, random_table
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mmkd import CorrelationDistiller
from mmkd.distiller import CorrelationTargets, Similarity, codebook
from mmkd.distiller import distiller as module

ITEMS = torch.tensor([[0, 0, 3, 7, 3, 1], [2, 9, 4, 5, 6, 31], [0, 0, 0, 0, 0, 8]])
TABLES = {
    "text": random_table(30, 24, missing=(4, 30)),
    "image": random_table(30, 40, missing=(1, 2, 3, 5), seed=1),
}


def small(**options: Any) -> CorrelationDistiller:
    return CorrelationDistiller(**{"dim": 16, "facets": 4, "codes": 6, **options})


def as_dict(targets: CorrelationTargets, items: Tensor) -> dict[tuple[int, int, int], Tensor]:
    """Pair -> [holistic, codes...]; keyed by what does not move with padding or batch order."""
    values = torch.cat([targets.holistic[:, None], targets.codes.view(len(targets.first), -1)], 1)
    keys = zip(
        targets.sequence.tolist(), targets.first.tolist(), targets.second.tolist(), strict=True
    )
    return {
        (int(items[b, i]), int(items[b, j]), items.shape[1] - j): value
        for (b, i, j), value in zip(keys, values, strict=True)
    }


@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("kind", get_args(Similarity))
@pytest.mark.parametrize("dense", [True, False])
def test_targets_match_the_naive_loop(
    kind: Similarity, assignment: Any, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DENSE_SHARE", 0.0 if dense else 1.0)
    distiller = small(similarity=kind, assignment=assignment).fit(TABLES)
    for name, got in distiller.targets(ITEMS).items():
        x = distiller.reduced[name].double().numpy()
        book = distiller.codebooks[name]
        c, temperature = book.centroids.double().numpy(), book.temperature or 0.0
        pairs = reference.pairs_of(ITEMS.tolist(), TABLES[name].present.tolist())
        found = zip(got.sequence.tolist(), got.first.tolist(), got.second.tolist(), strict=True)
        assert list(found) == pairs
        ends = [(x[ITEMS[b, i]], x[ITEMS[b, j]]) for b, i, j in pairs]
        r = [reference.dissected(one, other, 4, kind) for one, other in ends]
        codes: list[Any] = (
            [reference.soft_code(row, c, temperature) for row in r]
            if assignment == "soft"
            else [reference.hard_code(row, c) for row in r]
        )
        whole = [reference.similarity(one, other, kind) for one, other in ends]
        assert_close(got.holistic, torch.tensor(whole), rtol=1e-4, atol=1e-5)
        assert_close(got.codes, torch.tensor(codes), rtol=1e-3, atol=1e-4)


def test_width_of_padding_and_order_of_sequences_change_nothing() -> None:
    distiller = small().fit(TABLES)
    wide = torch.cat([torch.zeros(3, 5, dtype=torch.int64), ITEMS], dim=1)[[2, 0, 1]]
    for name, got in distiller.targets(ITEMS).items():
        before = as_dict(got, ITEMS)
        after = as_dict(distiller.targets(wide)[name], wide)
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert_close(after[key], value)


def test_only_present_items_shape_the_teacher() -> None:
    table = TABLES["image"]
    noisy = table.vectors.copy()
    noisy[~table.present] = 1e3
    clean, other = small().fit({"x": table}), small().fit({"x": Table(noisy, table.present)})
    assert torch.equal(clean.reduced["x"], other.reduced["x"])
    assert not clean.reduced["x"][torch.from_numpy(~table.present)].any()


def test_no_pair_gives_empty_targets() -> None:
    got = small().fit(TABLES).targets(torch.tensor([[0, 0, 4], [0, 5, 5]]))["text"]
    assert got.holistic.shape == (0,) and got.codes.shape == (0, 6)


def test_max_pairs_draws_with_the_generator() -> None:
    everything = small().fit(TABLES).targets(ITEMS)["text"]
    distiller = small(max_pairs=5).fit(TABLES)
    seen: set[tuple[int, int, int]] = set()
    for seed in range(20):
        got = distiller.targets(ITEMS, generator=torch.Generator().manual_seed(seed))["text"]
        again = distiller.targets(ITEMS, generator=torch.Generator().manual_seed(seed))["text"]
        assert torch.equal(got.holistic, again.holistic)
        assert len(got.first) == 5 and got.kept == 5 / len(everything.first)
        values = as_dict(got, ITEMS)
        for key, value in values.items():
            assert_close(as_dict(everything, ITEMS)[key], value)
        seen |= values.keys()
    assert seen == as_dict(everything, ITEMS).keys()


def test_facets_tell_pairs_of_equal_likeness_apart() -> None:
    """Colour in the first facet, shape in the second; pairs share the one or the other."""
    colours, shapes = np.eye(4), np.eye(4)
    rows = [np.r_[colours[c], shapes[s]] for c in range(4) for s in range(4)]
    vectors = np.vstack([np.zeros(8), rows]).astype(np.float32)
    present = np.arange(17) > 0
    distiller = CorrelationDistiller(
        dim=8, facets=2, codes=3, assignment="hard", reduction="pca", center=False
    )
    distiller.fit({"image": Table(vectors, present)})
    # the reduction mixes the two blocks, so hand the constructed vectors over as they are
    distiller.reduced["image"] = torch.from_numpy(vectors)
    r = np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float32)
    distiller.codebooks["image"].fit(r)
    red_cup, red_hat, blue_cup, blue_hat = 1, 2, 5, 6
    same_colour, same_shape, neither = (
        distiller.targets(torch.tensor([pair]))["image"]
        for pair in ([red_cup, red_hat], [red_cup, blue_cup], [red_cup, blue_hat])
    )
    assert_close(same_colour.holistic, same_shape.holistic)
    assert_close(same_colour.holistic, torch.tensor([0.5]))
    codes = [int(t.codes[0]) for t in (same_colour, same_shape, neither)]
    assert len(set(codes)) == 3
    other_red = distiller.targets(torch.tensor([[3, 4]]))["image"]
    assert int(other_red.codes[0]) == codes[0]


def test_short_and_rank_poor_tables_fill_every_facet() -> None:
    distiller = CorrelationDistiller(dim=64, facets=8, codes=5).fit({"c": random_table(40, 12)})
    filled = distiller.reduced["c"].view(41, 8, 8).abs().sum(2)[1:]
    assert (filled > 0).all()


def test_fits_repeat_exactly() -> None:
    first, second = (small(seed=3).fit(TABLES) for _ in range(2))
    for name in TABLES:
        assert torch.equal(first.reduced[name], second.reduced[name])
        assert torch.equal(first.present[name], second.present[name])
        one, other = first.codebooks[name], second.codebooks[name]
        assert torch.equal(one.centroids, other.centroids)
        assert one.temperature == other.temperature


@pytest.mark.parametrize("reduction", ["pca", "autoencoder"])
@pytest.mark.parametrize("many", [False, True])
def test_a_part_of_a_teacher_that_never_was_whole_is_that_of_the_whole(
    reduction: Any, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many:  # neighbours are then searched block by block
        monkeypatch.setattr(codebook, "EXACT_BELOW", 10)
        monkeypatch.setattr(codebook, "_ROWS_AT_ONCE", 7)
    whole = small(reduction=reduction).fit(TABLES)
    part = small(reduction=reduction).fit(TABLES, in_memory=False)
    assert not part.reduced and part.teachers["text"].shape == (31, 16)
    part.cut(lambda teacher: teacher[5:20])
    for name in TABLES:
        assert_close(part.reduced[name], whole.reduced[name][5:20])
        assert_close(part.codebooks[name].centroids, whole.codebooks[name].centroids)
        assert torch.equal(part.present[name], whole.present[name])
    again = small(reduction=reduction).fit(TABLES, in_memory=False).teachers["image"]
    rows = torch.tensor([30, 0, 2, 7, 7])
    assert_close(again[rows], whole.reduced["image"][rows])


def test_fifty_thousand_items_need_no_matrix_over_all() -> None:
    items = 50_000
    table = random_table(items, 48)
    largest = _LargestTensor()  # type: ignore[no-untyped-call]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with largest:
        tracemalloc.start()
        distiller = CorrelationDistiller(dim=32, facets=8, sampled_pairs=20_000)
        distiller.fit({"text": table})
        batch = torch.randint(1, items + 1, (64, 20), generator=torch.Generator().manual_seed(0))
        assert len(distiller.targets(batch)["text"].first) > 10_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    square = 4 * items**2  # 10 GB
    assert largest.elements <= items * 32 + 32
    assert peak < square / 100
    assert grown < square / 20


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="dim 512 does not split into 7 facets"):
        CorrelationDistiller(dim=512, facets=7)
    with pytest.raises(ValueError, match="no teacher; call fit"):
        small().targets(ITEMS)
    with pytest.raises(ValueError, match="same items, got rows"):
        small().fit({"a": random_table(30, 24), "b": random_table(31, 24)})
    with pytest.raises(ValueError, match=r"^b: need at least two vectors"):
        small().fit(
            {"a": random_table(9, 24), "b": random_table(9, 24, missing=tuple(range(2, 10)))}
        )


class _LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("reduction", ["pca", "autoencoder"])
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 1e37])
def test_cosines_are_the_same_at_any_scale(scale: float, reduction: Any) -> None:
    vectors = np.random.default_rng(0).normal(size=(41, 12)).astype(np.float32)
    items = torch.arange(1, 41).view(4, 10)
    found = []
    for factor in (1.0, scale):
        table = Table(vectors * np.float32(factor), np.arange(41) > 0)
        distiller = CorrelationDistiller(dim=8, facets=4, codes=5, reduction=reduction)
        found.append(distiller.fit({"text": table}).targets(items)["text"])
    one, other = found
    assert_close(other.holistic, one.holistic, atol=1e-4, rtol=0)
    assert_close(other.dissected, one.dissected, atol=1e-4, rtol=0)


def test_similarities_beyond_float32_are_refused() -> None:
    vectors = np.random.default_rng(0).normal(size=(41, 12)).astype(np.float32)
    table = Table(vectors * np.float32(1e30), np.arange(41) > 0)
    with pytest.raises(ValueError, match=r"text: similarity dot .* normalize: true"):
        CorrelationDistiller(dim=8, facets=4, codes=5, similarity="dot").fit({"text": table})
