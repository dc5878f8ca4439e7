"""StudentSpec: what a file holds, and networks that are the same whenever they are built of it."""

import json
from pathlib import Path

import pytest
import torch

from mmkd.student import StudentSpec

SPEC = StudentSpec(
    item_count=5,
    max_length=4,
    embedding={"width": 8},
    backbone={"kind": "gru4rec"},
    score_with="fused",
    ensemble={"members": 2},
    modalities={"text": 6},
)
RELEASE = Path(__file__).parents[1] / "fixtures" / "release_0_1" / "runs"


def test_the_file_gives_the_spec_back() -> None:
    content = json.loads(json.dumps(SPEC.to_json()))
    assert StudentSpec.from_json(content) == SPEC
    assert StudentSpec.from_json(content | {"of a later version": 1}) == SPEC


@pytest.mark.parametrize("run", ["single", "ensemble", "interrupted"])
def test_a_file_of_release_0_1_is_read_and_written_unchanged(run: str) -> None:
    content = json.loads((RELEASE / run / "student.json").read_text("utf-8"))
    spec = StudentSpec.from_json(content)
    assert spec.to_json() == content and list(spec.to_json()) == list(content)
    student = spec.build()
    assert student.item_count == 28 and student.max_length == 8  # also of a backbone without limit


def test_a_seed_gives_the_same_networks_and_the_teacher_their_tables() -> None:
    teacher = {"text": torch.linspace(-1, 1, 36).view(6, 6)}
    present = {"text": torch.arange(6) > 1}
    one, other = (SPEC.build(teacher, present, seed=3).state_dict() for _ in range(2))
    assert one.keys() == SPEC.build().state_dict().keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    table = one["members.0.embedding.tables.text"]
    assert torch.all(table[2:6].norm(dim=1) > 0) and not table[[0, 1, 6]].any()


def test_a_file_that_lacks_something_says_what() -> None:
    content = SPEC.to_json()
    del content["backbone"], content["modalities"]
    with pytest.raises(ValueError, match="lacks backbone, modalities"):
        StudentSpec.from_json(content)
