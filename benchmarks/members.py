"""Three networks in a loop or as one batched program: forward and backward of their transformers.

    python benchmarks/members.py

The batched program is `torch.func.stack_module_state` with `vmap`, and the loop what
`mmkd.student.Ensemble` does. Prints the median seconds of each at several batch sizes.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from benchmarks.measure import print_table
from mmkd.student.backbones.transformer import BERT4Rec


def main() -> None:
    """Parse the command line, time both ways, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 144, 1152], help="B times V")
    parser.add_argument("--length", type=int, default=15)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    networks = [
        # no dropout: its random numbers are drawn in the same way in both
        BERT4Rec(width=options.width, max_length=options.length, dropout=0.0).to(options.device)
        for _ in range(options.members)
    ]
    table = []
    for rows in options.rows:
        x = torch.randn(options.members, rows, options.length, options.width, device=options.device)
        padding = torch.zeros(rows, options.length, dtype=torch.bool, device=options.device)
        looped = _median(lambda: _loop(networks, x, padding), options.repeats)  # noqa: B023
        batched = _median(lambda: _batched(networks, x, padding), options.repeats)  # noqa: B023
        table.append([str(rows), f"{looped:.3f}", f"{batched:.3f}"])
    print_table(["rows", "loop s", "batched s"], table)


def _loop(networks: list[BERT4Rec], x: Tensor, padding: Tensor) -> None:
    total = sum(network(x[n], padding).square().sum() for n, network in enumerate(networks))
    assert isinstance(total, Tensor)
    total.backward()  # type: ignore[no-untyped-call]


def _batched(networks: list[BERT4Rec], x: Tensor, padding: Tensor) -> None:
    parameters, buffers = stack_module_state(list(networks))

    def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = functional_call(networks[0], (parameters, buffers), (x, padding))
        return found

    vmap(one)(parameters, x).square().sum().backward()  # type: ignore[no-untyped-call]


def _median(run: Callable[[], None], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
