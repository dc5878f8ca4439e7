"""Memory: how much this process may use, so that what cannot fit is refused before it is built."""

import os
import resource
from contextlib import suppress
from math import isfinite
from pathlib import Path

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def usable_bytes() -> int:
    """The machine's memory, or what a container or a limit leaves of it; used or not."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _CGROUPS:
        with suppress(OSError, ValueError):  # ValueError: the word max
            limits.append(int(Path(name).read_text()))
    limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit >= 0]
    return min(limits)


def check_fits(size_bytes: float, what: str, remedy: str) -> list[str]:
    """A line where something is larger than all memory there is.

    >>> from mmkd.memory import check_fits
    >>> check_fits(1e6, "a table", "make it smaller")
    []

    Args:
        size_bytes: At least what it takes.
        what: What it is, such as ``the networks' weights``.
        remedy: What to do.
    """
    if size_bytes <= (usable := usable_bytes()):
        return []
    size = f"{size_bytes / 1e9:.3g} GB" if isfinite(size_bytes) else "more than can be counted"
    return [f"{what}: {size}, but there are {usable / 1e9:.3g} GB; {remedy}"]
