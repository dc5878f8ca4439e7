"""One measurement, one child process: from a target's name to seconds, peak memory, table, JSON.

Peak memory of two variants can only be compared when each has a process of its own, so every
variant runs in `python -m benchmarks.child`; this module starts it, reads the one JSON line it
prints last, and writes the results.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
MIB = 1024 * 1024

ALLOCATORS: dict[str, dict[str, str]] = {
    "system": {},
    # glibc keeps freed blocks instead of handing them back: no page faults on the next step
    "reuse": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TOP_PAD_": str(256 * MIB),
        "MALLOC_TRIM_THRESHOLD_": str(64 * 1024 * MIB),
    },
    # a block of 4 MiB or more is mapped by itself and goes back when it is freed, where glibc would
    # soon put blocks of up to 32 MiB into a heap full of holes; and oneDNN keeps fewer shapes
    "return": {
        "MALLOC_MMAP_THRESHOLD_": str(4 * MIB),
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    },
}


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults shown, the description's lines kept."""


def add_step_options(parser: argparse.ArgumentParser, *, timeout_s: float) -> None:
    """The options of every benchmark that measures steps beside a reference."""
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--allocator", choices=sorted(ALLOCATORS), default="system")
    parser.add_argument("--skip-reference", action="store_true")
    parser.add_argument("--timeout-s", type=float, default=timeout_s, help="a variant")


class BenchmarkError(RuntimeError):
    """A variant that could not be measured."""


@dataclass(frozen=True)
class Measurement:
    """What one child process reported.

    `peak_bytes` and `setup_peak_bytes` are resident sizes above `interpreter_bytes`, the peak of
    the same process once it had imported torch and taken an optimiser step on one number.
    """

    name: str
    seconds: tuple[float, ...]
    setup_s: float
    interpreter_bytes: int
    setup_peak_bytes: int
    peak_bytes: int
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def median_s(self) -> float:
        """Median of the timed steps, in seconds."""
        return statistics.median(self.seconds)

    @property
    def mean_s(self) -> float:
        """Mean of the timed steps, in seconds."""
        return statistics.fmean(self.seconds)


def environment(*, threads: int, allocator: str) -> dict[str, str]:
    """The environment every variant of a comparison gets: threads and allocator settings.

    Raises:
        BenchmarkError: an unknown allocator.
    """
    if allocator not in ALLOCATORS:
        raise BenchmarkError(f"allocator {allocator!r}: unknown; use one of {sorted(ALLOCATORS)}.")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    count = str(threads)
    return kept | ALLOCATORS[allocator] | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}


def measure(
    name: str,
    target: str,
    arguments: Mapping[str, Any],
    *,
    steps: int,
    warmup: int,
    threads: int,
    allocator: str,
    timeout_s: float,
) -> Measurement:
    """Build `target` ("module:function") in a child process and time its steps there.

    Raises:
        BenchmarkError: the child failed or ran past the limit; its last lines are in the message.
    """
    options: dict[str, Any] = {"steps": steps, "warmup": warmup, "threads": threads}
    options |= {"allocator": allocator, "timeout_s": timeout_s}
    return measure_together(name, target, arguments, processes=1, **options)[0]


def measure_together(
    name: str,
    target: str,
    arguments: Mapping[str, Any],
    *,
    processes: int,
    steps: int,
    warmup: int,
    threads: int,
    allocator: str,
    timeout_s: float,
) -> list[Measurement]:
    """As `measure`, in several processes that know of each other, as `accelerate launch` has it.

    Raises:
        BenchmarkError: as `measure`, of any of them.
    """
    command = [sys.executable, "-m", "benchmarks.child", target, json.dumps(dict(arguments))]
    command += ["--steps", str(steps), "--warmup", str(warmup), "--threads", str(threads)]
    shared = environment(threads=threads, allocator=allocator)
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}

    def one(rank: int) -> Measurement:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        reply = last_json_line(
            command,
            environment=shared | own,
            timeout_s=timeout_s,
            label=name if processes == 1 else f"{name}, process {rank}",
        )
        return Measurement(name=name, **(reply | {"seconds": tuple(reply["seconds"])}))

    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(one, range(processes)))


def last_json_line(
    command: Sequence[str], *, environment: Mapping[str, str], timeout_s: float, label: str
) -> dict[str, Any]:
    """Run a command and parse the last line it prints as JSON.

    Raises:
        BenchmarkError: exit status, time limit, or output that is not JSON.
    """
    try:
        done = subprocess.run(
            list(command),
            env=dict(environment),
            cwd=ROOT,
            timeout=timeout_s,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{label}: no result in {timeout_s:.0f} s.") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        tail = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise BenchmarkError(f"{label}: exit status {done.returncode} (-9: no memory).\n{tail}")
    try:
        reply = json.loads(lines[-1])
    except json.JSONDecodeError as error:
        raise BenchmarkError(f"{label}: last line is not JSON: {lines[-1]!r}.") from error
    if not isinstance(reply, dict):
        raise BenchmarkError(f"{label}: last line is not a JSON object: {lines[-1]!r}.")
    return reply


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]
    for row in [header, *rows]:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def write_results(name: str, settings: Mapping[str, Any], rows: Sequence[object]) -> Path:
    """Write `benchmarks/results/NAME.json`: settings, machine, rows (dataclasses or dicts)."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    plain = [asdict(row) if isinstance(row, Measurement) else row for row in rows]
    machine = {"cpus": os.cpu_count(), "processor": _processor(), "python": sys.version.split()[0]}
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    document = {"when": when, "machine": machine, "settings": dict(settings), "rows": plain}
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
