"""A run as a recommender: lists by the student itself, and neighbours against a loop."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmkd.data.items import ItemTable
from mmkd.errors import DataError, RunError
from mmkd.runs.folder import RunFolder
from mmkd.runs.recommend import recommend, student_neighbours
from mmkd.student import Ensemble, StudentSpec

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


def test_a_history_is_answered_by_the_student_itself(run: RunFolder) -> None:
    found = recommend(run, ["b", "e"], k=20)
    assert found == run.student().recommend(run.items(), ["b", "e"], k=20)
    assert {entry["item"] for entry in found} == set("abcdefghijkl") - {"b", "e"}
    assert all(entry["title"] == entry["item"].upper() for entry in found)
    assert len(recommend(run, ["b", "e"], k=20, exclude_seen=False)) == ITEMS


def text_tables(student: Ensemble) -> list[Tensor]:
    return [network.embedding.modality_tables()["text"].detach() for network in student.networks]


def test_neighbours_are_by_the_members_mean_cosine(run: RunFolder) -> None:
    student = run.student()
    found = student_neighbours(run, "b", modality="text", k=20)
    cosines = {
        name: sum(float(torch.cosine_similarity(t[2], t[row], dim=0)) for t in text_tables(student))
        / 2
        for row, name in enumerate("abcdefghijkl", start=1)
        if name not in "bc"  # itself, and one that has no text
    }
    expected = sorted(cosines, key=lambda name: -cosines[name])
    assert [entry["item"] for entry in found] == expected
    assert [entry["score"] for entry in found] == pytest.approx([cosines[n] for n in expected])
    assert len(student_neighbours(run, "b", k=3)) == 3  # of the fused vectors


def test_what_the_run_does_not_know_is_told(run: RunFolder) -> None:
    with pytest.raises(DataError, match="item 'z' is not among the 12 items"):
        recommend(run, ["z"])
    with pytest.raises(DataError, match="the history is empty"):
        recommend(run, [])
    with pytest.raises(RunError, match="the student has no modality image; it has text"):
        student_neighbours(run, "a", modality="image")
