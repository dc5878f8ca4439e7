"""An embedding run that is killed, damaged and doubled: every vector must equal a clean run's.

    python -m benchmarks.embed_faults
    python -m benchmarks.embed_faults --items 2000 --kills 5 --padding

The run (`embed_run.py`) is killed at random moments and started again, then shards are damaged in
several ways, then two processes embed at once. Prints what each fault cost; exit status 1 if a
vector differs or anything was encoded that had been committed and was sound.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.fault_run import Event, FaultRun
from benchmarks.measure import print_table, write_results
from benchmarks.store_damage import DAMAGES


def fault_run(
    folder: Path,
    *,
    items: int,
    kills: int,
    shard_size: int,
    pause_s: float,
    seed: int,
    padding: bool = False,
) -> list[Event]:
    """All faults after one another on one store; what each came to."""
    run = FaultRun(
        folder, items=items, shard_size=shard_size, pause_s=pause_s, seed=seed, padding=padding
    )
    run.kill(kills)
    run.finish()
    for name, spoil in DAMAGES.items():
        run.damage(name, spoil)
    run.two_writers(kill_one=False)
    run.two_writers(kill_one=True)
    return run.events


def report(events: Sequence[Event], *, shard_size: int) -> None:
    """Print the table and the sums."""
    header = ["moment", "encoded", "again", "allowed", "committed", "outcome"]
    rows = []
    for event in events:
        counts = (event.encoded, event.again, event.allowed, event.committed)
        outcome = f"{event.outcome}; WRONG: {event.fault}" if event.fault else event.outcome
        rows.append([event.moment, *map(str, counts), outcome])
    print_table(header, rows)
    kills = sum(event.moment.startswith("kill ") for event in events)
    again = sum(event.again for event in events[: kills + 1])
    print(
        f"\n{kills} kills: {again} items encoded again, {again / max(1, kills):.0f} a "
        f"kill, at most {shard_size} allowed; {sum(bool(e.fault) for e in events)} faults"
    )


def main() -> None:
    """Run, print, and exit with status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--pause-s", type=float, default=4e-4, help="seconds an item takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--padding", action="store_true", help="vectors depend on their batch in the last bits"
    )
    options = vars(parser.parse_args())
    with tempfile.TemporaryDirectory(prefix="mmkd-faults-") as name:
        events = fault_run(Path(name), **options)
    report(events, shard_size=options["shard_size"])
    write_results("embed_faults", options, [asdict(event) for event in events])
    sys.exit(any(event.fault for event in events))


if __name__ == "__main__":
    main()
