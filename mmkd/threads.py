"""Threads: how many this process may use, and how they wait for work.

From ``OMP_NUM_THREADS``, the process's CPU affinity and the container's quota to a number that
torch, FAISS and the picture workers share. One place, so that no part counts cores that it may not
use.
"""

import os
import sys
from collections.abc import MutableMapping

_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


def wait_passively(environment: MutableMapping[str, str] | None = None) -> bool:
    """Let OpenMP's threads sleep while they wait for work, and not spin.

    On a machine that is busy with something else a spinning thread takes the core from the very
    thread it waits for, and small operations run tens of times slower; on a quiet one the two are
    equally fast. OpenMP reads this once, when it is loaded, so nothing is changed once torch is;
    and nothing where the user has chosen a way to wait.

    >>> from mmkd.threads import wait_passively
    >>> chosen = {"OMP_WAIT_POLICY": "ACTIVE"}
    >>> wait_passively(chosen), chosen
    (False, {'OMP_WAIT_POLICY': 'ACTIVE'})

    Args:
        environment: Where it is set; None for the process's own.

    Returns:
        Whether it was set.
    """
    given = os.environ if environment is None else environment
    # libgomp reads OMP_WAIT_POLICY and GOMP_SPINCOUNT, LLVM's and Intel's KMP_BLOCKTIME too
    if "GOMP_SPINCOUNT" in given or any(name in given for name in _WAITING):
        return False
    if environment is None and "torch" in sys.modules:
        return False
    given.update(_WAITING)
    return True


def thread_count(processes: int = 1) -> int:
    """How many threads one of several processes on this machine should compute with.

    Args:
        processes: That share the machine.

    Returns:
        ``OMP_NUM_THREADS`` where it is set, which is meant for each process; else an even share of
        the cores that this process may use, at least 1.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is one per level
    if first.isdecimal() and int(first) > 0:
        return int(first)
    return max(1, usable_cores() // processes)


def usable_cores() -> int:
    """Cores that this process may use: its CPU affinity and its container's quota (cgroup 1, 2)."""
    from joblib import cpu_count  # scikit-learn's; it reads all of these

    return int(cpu_count())


def use_threads(count: int) -> None:
    """Compute with so many threads from now on, in torch and, where it is loaded, in FAISS."""
    import torch

    torch.set_num_threads(count)
    if (faiss := sys.modules.get("faiss")) is not None:  # it has an OpenMP of its own
        faiss.omp_set_num_threads(count)
