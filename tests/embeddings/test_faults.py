"""An embedding run that is killed, damaged and doubled ends in a clean run's vectors."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.embed_faults import fault_run
from benchmarks.embed_run import catalogue, text_vector
from benchmarks.fault_run import FaultRun
from benchmarks.store_damage import DAMAGES, leave_temporary


def test_no_fault_changes_a_vector_or_costs_more_than_a_shard(tmp_path: Path) -> None:
    events = fault_run(tmp_path, items=600, kills=4, shard_size=64, pause_s=4e-4, seed=1)
    assert [event.fault for event in events] == [""] * len(events)
    assert sum(event.outcome.startswith("killed") for event in events) >= 4
    assert sum(event.encoded for event in events[:5]) - 600 <= 4 * 64
    assert all(event.committed == 600 for event in events[4:])


@pytest.fixture
def run(tmp_path: Path) -> FaultRun:
    run = FaultRun(tmp_path, items=40, shard_size=16, pause_s=0, seed=0)
    run.finish()
    return run


def test_the_clean_run_it_is_held_to_has_the_encoders_vectors(run: FaultRun) -> None:
    wanted = np.stack([text_vector(str(text)) for text in catalogue(40).text[1:]])
    np.testing.assert_array_equal(run.wanted[0][1:], wanted)


def test_it_notices_a_vector_that_differs_in_one_bit(run: FaultRun) -> None:
    run.wanted[0].view(np.uint32)[7, 3] ^= 1
    run.damage("nothing", leave_temporary)
    assert run.events[-1].fault == "1 vectors differ"


def test_it_notices_a_committed_vector_that_differs_in_one_bit(run: FaultRun) -> None:
    run.wanted[0].view(np.uint32)[7, 3] ^= 1
    assert run._altered() == ["1 committed vectors differ"]


def test_it_notices_sound_items_that_are_encoded_again(run: FaultRun, tmp_path: Path) -> None:
    def too_much(vectors: Path, draw: np.random.Generator) -> None:
        for path in vectors.parent.glob("*.npy"):
            path.unlink()

    run.damage("everything", too_much)
    fault = run.events[-1].fault
    assert "items encoded that were committed and sound" in fault
    assert "encoded other items than the damaged" in fault


def test_every_damage_alters_the_store(run: FaultRun) -> None:
    for name, spoil in DAMAGES.items():
        run.damage(name, spoil)
    counts = [event.encoded for event in run.events[1:]]
    assert counts[-1] == 0  # a temporary file costs nothing
    assert all(count in (8, 16) for count in counts[:-1])  # the damaged shard, no more
