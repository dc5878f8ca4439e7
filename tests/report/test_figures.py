"""Figures, neighbours, lists and types, each against a computation of its own."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mmkd import Run
from mmkd.evaluation.metrics import SLICES
from mmkd.report import figures
from mmkd.report.cards import Cards
from mmkd.report.correlations import modality_types
from mmkd.report.lists import user_lists
from mmkd.report.neighbours import SHOWN, neighbourhoods
from mmkd.runs.recommend import student_vectors
from mmkd.terminal import printable


def gains(run: Run) -> NDArray[np.float64]:
    """NDCG@10 of each test case; no scores tie here."""
    rank = run.folder.ranks().rank
    return np.where(rank <= 10, 1 / np.log2(1 + rank), 0.0)


def slice_of(run: Run, item: int) -> str:
    counts = run.data.split.train_counts()
    total, reached, head = counts.sum(), 0, 0
    for count in sorted(counts[1:], reverse=True):
        reached += count
        head = count
        if reached >= total / 2:
            break
    if counts[item] == 0:
        return "cold"
    return "tail" if counts[item] <= 5 else "head" if counts[item] >= max(6, head) else "mid"


def test_the_gain_over_ids_is_the_mean_difference_of_a_slices_cases(
    run: Run, ids_only: Run
) -> None:
    change = gains(run) - gains(ids_only)
    parts = [slice_of(run, item) for item in run.folder.ranks().target]
    rows = figures.gain_by_slice(run, ids_only, run.data.split, resamples=200)
    assert [row["slice"] for row in rows] == [part for part in SLICES if part in parts]
    for row in rows:
        here = [value for value, part in zip(change, parts, strict=True) if part == row["slice"]]
        assert row["n"] == len(here)
        assert row["value"] == pytest.approx(np.mean(here))
        assert row["low"] <= row["value"] <= row["high"]
    assert figures.reads_ids_only(ids_only) and not figures.reads_ids_only(run)


def test_leanings_count_places_by_slice(run: Run) -> None:
    ranks, split = run.folder.ranks(), run.data.split
    measures, rows = figures.leanings(ranks, split)
    assert measures == run.result["breakdown"]["test"]["lists"]
    events = [
        item
        for user in range(split.user_count)
        for item in split.sequence(user)[: split.train_end[user]]
    ]
    held = {
        "the catalogue": range(1, len(run.items) + 1),
        "training events": events,
        "what was taken": ranks.target,
        "recommended": ranks.top_items.ravel(),
    }
    shares = {(row["what"], row["slice"]): row["share"] for row in rows}
    for what, items in held.items():
        parts = [slice_of(run, int(item)) for item in items]
        for part in SLICES:
            assert shares[what, part] == pytest.approx(parts.count(part) / len(parts))


def test_epochs_and_retention_are_those_of_the_history(run: Run) -> None:
    found = figures.epochs(run)
    first = run.folder.history()[0]
    at_first = {(row["name"]): row["value"] for rows in found.values() for row in rows[::-1]}
    assert at_first["recommendation"] == first["losses"]["recommendation"]
    assert at_first["dissected text"] == first["losses"]["dissected.text"]
    assert at_first["NDCG@10"] == first["valid"]["NDCG@10"]
    assert at_first["image spearman"] == first["valid"]["retention.image.spearman"]
    assert {row["epoch"] for row in found["metric"]} == {1, 2}
    assert figures.retention(run)["text"] == run.result["valid"]["retention.text.spearman"]


def test_neighbours_are_the_nearest_and_know_their_place_elsewhere(run: Run) -> None:
    split = run.data.split
    student = student_vectors(run.student)
    encoders = {name: np.asarray(table.vectors) for name, table in run.tables.items()}
    found = neighbourhoods(
        run.items, split, Cards(run.items), student=student, encoders=encoders, seed=3
    )
    assert len({one.card.id for one in found}) == 6
    assert {one.slice for one in found} >= {"head", "tail"}
    row_of = {printable(id): row for row, id in enumerate(run.items.ids)}
    taken = {u: {*split.sequence(u)[: split.train_end[u]]} for u in range(split.user_count)}

    def order(vectors: NDArray[np.float32], row: int) -> list[int]:
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        near = np.argsort(-(unit @ unit[row]), kind="stable")
        return [r for r in near.tolist() if r not in (0, row) and vectors[r].any()]

    moved = 0
    for one in found:
        row = row_of[one.card.id]
        assert slice_of(run, row) == one.slice
        by = {name: order(vectors, row) for name, vectors in encoders.items()}
        mine = order(student.numpy(), row)
        assert [row_of[n.card.id] for n in one.columns["student"]] == mine[:SHOWN]
        for name, near in by.items():
            assert [row_of[n.card.id] for n in one.columns[name]] == near[:SHOWN]
        for neighbour in one.columns["student"]:
            other = row_of[neighbour.card.id]
            best = min(near.index(other) + 1 for near in by.values() if other in near)
            assert neighbour.elsewhere == best  # fewer than a hundred items: always somewhere
            assert neighbour.moved == (best > SHOWN)
            moved += neighbour.moved
        together = [row_of[n.card.id] for n in one.columns["together"]]
        assert all(any({row, other} <= items for items in taken.values()) for other in together)
        beside = {n for n in row_of.values() for items in taken.values() if {row, n} <= items}
        assert len(together) == min(SHOWN, len(beside - {row}))
    assert moved


def test_lists_of_users_are_those_of_the_test(run: Run) -> None:
    ranks, split, names = run.folder.ranks(), run.data.split, run.folder.users()
    weights = run.student.source_weights()
    assert weights is not None
    sources = {name: values.numpy() for name, values in weights.items()}
    counts = split.train_counts()
    found = user_lists(ranks, split, names, Cards(run.items, counts), sources=sources)
    assert len({one.user for one in found}) == 12
    hits = (ranks.top_items == ranks.target[:, None]).any(1)
    assert [one.hit for one in found] == sorted((one.hit for one in found), reverse=True)
    assert sum(one.hit for one in found) == min(6, int(hits.sum()))
    row_of = {printable(id): row for row, id in enumerate(run.items.ids)}
    for one in found:
        user = names.index(one.user)
        case = int(np.flatnonzero(ranks.user == user)[0])
        sequence = split.sequence(user)[:-1]  # leave-one-out: the last one is the test's
        assert [row_of[card.id] for card in one.history] == sequence[-10:].tolist()
        assert one.earlier == max(0, len(sequence) - 10)
        listed = [row_of[each.card.id] for each in one.listed]
        assert listed == ranks.top_items[case].tolist()
        assert [each.hit for each in one.listed] == [r == ranks.target[case] for r in listed]
        assert [each.card.cold for each in one.listed] == [counts[r] == 0 for r in listed]
        assert one.rank == ranks.rank[case]
        for each, row in zip(one.listed, listed, strict=True):
            assert each.sources == {name: pytest.approx(w[row]) for name, w in sources.items()}
            assert sum(each.sources.values()) == pytest.approx(1)


def test_a_types_pairs_are_nearest_to_its_centroid(run: Run) -> None:
    distiller = run.distiller
    assert distiller is not None
    found = modality_types(distiller, run.items, Cards(run.items), name="image")
    row_of = {printable(id): row for row, id in enumerate(run.items.ids)}
    x = distiller.reduced["image"].double().numpy()
    centroids = distiller.codebooks["image"].centroids.double().numpy()
    used = centroids[np.isfinite(centroids).all(1)]

    def correlation(one: int, other: int) -> NDArray[np.float64]:
        a, b = (x[row].reshape(distiller.facets, -1) for row in (one, other))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        found: NDArray[np.float64] = (a * b).sum(1) / norms
        return found

    rows = np.flatnonzero(distiller.present["image"].numpy()).tolist()
    assert found.types and found.used <= len(used)
    assert [one.strength for one in found.types] == sorted(
        (one.strength for one in found.types), reverse=True
    )
    assert found.labelled == 1.0  # one label is on every item
    for one in found.types:
        centroid = centroids[one.number]
        np.testing.assert_allclose(one.facets, centroid, rtol=1e-5)
        pairs = [(row_of[a.id], row_of[b.id]) for a, b in one.pairs]
        shown = [row for pair in pairs for row in pair]
        assert pairs and len(set(shown)) == len(shown)
        # so few items that all their pairs were looked at: none is nearer than the first
        distances = [
            np.linalg.norm(correlation(i, j) - centroid) for i in rows for j in rows if i < j
        ]
        first = np.linalg.norm(correlation(*pairs[0]) - centroid)
        assert first == pytest.approx(min(distances), abs=1e-5)


def test_a_card_of_a_picture_that_is_none_shows_the_title(run: Run) -> None:
    cards = Cards(run.items)
    without = [r for r in range(1, len(run.items) + 1) if run.items.image_path[r] is None]
    assert without and all(cards(row).picture is None for row in without)
    assert cards(without[0]).title == printable(run.items.titles[without[0]])
    assert not cards(without[0]).cold  # counts are not known
