"""A run as a recommender: lists by the student itself, and neighbours against a loop."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmkd import Ensemble, ItemTable
from mmkd.errors import DataError, RunError
from mmkd.runs import recommend as module
from mmkd.runs.folder import RunFolder
from mmkd.runs.recommend import (
    Query,
    answer,
    barred,
    nearest,
    recommend,
    similar,
    student_vectors,
)
from mmkd.student import StudentSpec
from mmkd.student.scores import BlockScores

ITEMS = 12


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Two networks with tables of their own over items a, b, c...; item c has no text."""
    ids = ("", *"abcdefghijkl")
    blank = (None,) * len(ids)
    items = ItemTable(
        ids=ids,
        titles=tuple(name.upper() for name in ids),
        text=blank,
        image_path=blank,
        attributes=((),) * len(ids),
    )
    spec = StudentSpec(
        item_count=ITEMS,
        max_length=4,
        embedding={"width": 4},
        backbone={"kind": "gru4rec"},
        score_with="fused",
        ensemble={"members": 2, "modality_tables": "own"},
        modalities={"text": 4},
    )
    student = spec.build(seed=0)
    with torch.no_grad():
        for network in student.networks:
            table = network.embedding.tables["text"]
            table.copy_(torch.randn(table.shape))
            table[[0, 3]] = 0.0
    RunFolder(tmp_path).write(items=items, spec=spec)
    save_file(student.state_dict(), tmp_path / "student.safetensors")
    return RunFolder(tmp_path)


def lists(
    run: RunFolder, *histories: str, student: Ensemble | None = None, **options: Any
) -> list[dict[str, Any]]:
    items = run.items()
    rows = [items.rows(list(history)) for history in histories]
    frames = recommend(student or run.student(), items, [*range(len(rows))], rows, **options)
    return pl.concat(frames).to_dicts()


def test_a_history_is_answered_by_the_student_itself(run: RunFolder) -> None:
    found = lists(run, "be", k=20)
    expected = run.student().recommend(run.items(), ["b", "e"], k=20)
    assert [one["item_id"] for one in found] == [one["item"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected])
    assert {one["item_id"] for one in found} == set("abcdefghijkl") - {"b", "e"}
    assert all(one["title"] == one["item_id"].upper() for one in found)
    assert [one["rank"] for one in found] == [*range(1, 11)]
    assert len(lists(run, "be", k=20, exclude_seen=False)) == ITEMS


def test_many_histories_are_answered_each_as_if_alone(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.runs.recommend._CHUNK_BATCHES", 2)
    generator = np.random.default_rng(0)
    histories = [
        "".join(generator.choice([*"abcdefghijkl"], size=generator.integers(1, 9)))
        for _ in range(23)
    ]
    found = lists(run, *histories, k=3, batch_size=4)
    assert [one["query"] for one in found] == [q for q in range(23) for _ in range(3)]
    options: dict[str, Any] = {"student": run.student(), "k": 3}
    alone = [
        one | {"query": q} for q, h in enumerate(histories) for one in lists(run, h, **options)
    ]
    for one, other in zip(found, alone, strict=True):
        assert one | {"score": 0} == other | {"score": 0}
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)


def test_only_what_is_allowed_and_not_denied_is_recommended(run: RunFolder) -> None:
    items = run.items()
    every = [one["item_id"] for one in lists(run, "be", k=20)]
    allow, deny = items.rows(list("acdf")), items.rows(["c"])
    found = lists(run, "be", k=20, allow=allow, deny=deny)
    assert [one["item_id"] for one in found] == [name for name in every if name in "adf"]
    assert lists(run, "be", k=20, allow=items.rows(["b"])) == []


def text_tables(student: Ensemble) -> list[Tensor]:
    return [network.embedding.modality_tables()["text"].detach() for network in student.networks]


def test_neighbours_are_by_the_members_mean_cosine(run: RunFolder) -> None:
    student = run.student()
    found = near(run, "b", modality="text", k=20)
    cosines = {
        name: sum(float(torch.cosine_similarity(t[2], t[row], dim=0)) for t in text_tables(student))
        / 2
        for row, name in enumerate("abcdefghijkl", start=1)
        if name not in "bc"  # itself, and one that has no text
    }
    expected = sorted(cosines, key=lambda name: -cosines[name])
    assert [entry["item_id"] for entry in found] == expected
    assert [entry["score"] for entry in found] == pytest.approx(
        [cosines[n] for n in expected], abs=1e-6
    )
    assert len(near(run, "b", k=3)) == 3  # of the fused vectors


def near(run: RunFolder, item: str, *, modality: str | None = None, k: int) -> list[dict[str, Any]]:
    items = run.items()
    vectors = student_vectors(run.student(), modality)
    return similar(vectors, items, items.rows([item]), k=k).to_dicts()


def test_what_the_run_does_not_know_is_told(run: RunFolder) -> None:
    with pytest.raises(DataError, match="the history is empty of '1'"):
        lists(run, "a", "")
    with pytest.raises(DataError, match="there is no history to recommend for"):
        recommend(run.student(), run.items(), [], [])
    with pytest.raises(ValueError, match="k: got 0, wanted at least 1"):
        lists(run, "a", k=0)
    with pytest.raises(RunError, match="the student has no modality image; it has text"):
        near(run, "a", modality="image", k=1)
    with pytest.raises(DataError, match="'c': no vector, so nothing is near"):
        near(run, "c", modality="text", k=1)


def test_several_queries_with_conditions_of_their_own_are_answered_in_one_pass(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, student = run.items(), run.student()
    passes = []
    scored = Ensemble.next_scores

    def counted(own: Ensemble, histories: Tensor) -> Tensor:
        passes.append(len(histories))
        return scored(own, histories)

    monkeypatch.setattr(Ensemble, "next_scores", counted)
    asked: list[tuple[str, dict[str, Any]]] = [
        ("be", {"k": 3}),
        ("abcdefgh", {"k": 20, "exclude_seen": False}),
        ("l", {"k": 5, "allow": items.rows([*"acel"])}),
        ("b", {"k": 20, "deny": items.rows([*"acel"])}),
        ("cb", {"k": 20, "allow": items.rows([*"abcd"]), "deny": items.rows(["a"])}),
    ]
    queries = [
        Query(
            items.rows([*history]),
            given["k"],
            barred(ITEMS, allow=given.get("allow"), deny=given.get("deny")),
            given.get("exclude_seen", True),
        )
        for history, given in asked
    ]
    found = answer(student, queries)
    assert passes == [len(asked)]
    for (history, given), (rows, scores) in zip(asked, found, strict=True):
        alone = lists(run, history, student=student, **given)
        assert [items.ids[row] for row in rows] == [one["item_id"] for one in alone]
        assert scores.tolist() == pytest.approx([one["score"] for one in alone], abs=1e-6)
    assert [items.ids[row] for row in found[4][0]] == ["d"]  # a is denied; b and c were seen


def test_of_an_item_without_a_vector_nothing_is_near() -> None:
    unit = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    found, cosines = nearest(unit, np.array([1, 2]), k=3)
    assert found.tolist() == [[3, 4, 0], [0, 0, 0]]
    assert cosines[0, :2].tolist() == pytest.approx([0.6, 0.0])


@pytest.mark.parametrize("k", [3, 20])
def test_lists_by_blocks_are_those_of_the_whole_catalogue(
    run: RunFolder, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, items = run.student(), run.items()
    histories = [np.array([1, 2]), np.array([3]), np.array([4, 5, 6, 7, 8])]
    options: dict[str, Any] = {"k": k, "deny": np.array([9, 11])}
    whole = pl.concat(recommend(student, items, ["p", "q", "r"], histories, **options))
    monkeypatch.setattr(module, "ITEM_BLOCK", ITEMS - 1)
    after = BlockScores.after
    monkeypatch.setattr(BlockScores, "after", lambda *given: after(*given, block=5))
    blocks = pl.concat(recommend(student, items, ["p", "q", "r"], histories, **options))
    assert blocks.drop("score").equals(whole.drop("score"))
    assert blocks["score"].to_list() == pytest.approx(whole["score"].to_list(), rel=1e-4)
