"""Peak memory of this process."""

import resource
import sys


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far (Linux and macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
