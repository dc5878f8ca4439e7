"""The measured process: builds one target, runs its steps, prints one JSON line.

Started by `benchmarks.measure`, not by hand. A target is a function that takes keyword arguments
and returns a `Trial`.
"""

import argparse
import importlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Trial:
    """A thing to time: `step()` runs once and returns its loss; `notes` describe it."""

    step: Callable[[], float]
    notes: Mapping[str, Any] = field(default_factory=dict)


def peak_bytes() -> int:
    """Peak resident size of this process, in bytes.

    On Linux VmHWM rather than getrusage: the latter keeps the parent's peak across exec.
    """
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def restart_peak() -> None:
    """Let the peak start again from the present resident size, where the kernel allows it."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return  # then the steps' peak includes the set-up's


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="module:function")
    parser.add_argument("arguments", type=json.loads, help="keyword arguments as JSON")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    # torch loads much of itself with the first optimiser and the first step, whoever takes it
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    interpreter = peak_bytes()

    module, function = options.target.split(":")
    started = time.perf_counter()
    trial: Trial = getattr(importlib.import_module(module), function)(**options.arguments)
    setup_s = time.perf_counter() - started
    setup_peak = peak_bytes()
    restart_peak()

    losses: list[float] = []
    seconds: list[float] = []
    for _ in range(options.warmup + options.steps):
        started = time.perf_counter()
        losses.append(trial.step())
        seconds.append(time.perf_counter() - started)

    reply = {
        "seconds": seconds[options.warmup :],
        "setup_s": setup_s,
        "interpreter_bytes": interpreter,
        "setup_peak_bytes": setup_peak - interpreter,
        "peak_bytes": peak_bytes() - interpreter,
        "notes": {**trial.notes, "first_loss": losses[0], "last_loss": losses[-1]},
    }
    print(json.dumps(reply))


if __name__ == "__main__":
    main()
