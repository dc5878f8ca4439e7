"""Clocks a script of three functions, from a log to lists; prints one JSON line.

    python benchmarks/peers/phases.py rectools benchmarks/peers/rectools_shop.py DATA OUT ...

Runs in the environment of the library that the script uses, so it imports nothing beyond the
standard library.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any


def main() -> None:
    """Parse the command line, do the job, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", help="whose version to tell")
    parser.add_argument("script", type=Path)
    parser.add_argument("data", type=Path, help="folder of items.csv and interactions.csv.gz")
    parser.add_argument("out", type=Path, help="folder to write to")
    for name in ("epochs", "batch", "length", "k"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    cpu_seconds: dict[str, float] = {}

    def clocked(phase: str, task: Callable[..., Any], *given: Any, **sizes: int) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        found = task(*given, **sizes)
        seconds[phase] = time.perf_counter() - wall
        cpu_seconds[phase] = time.process_time() - cpu
        return found

    sizes = {name: getattr(options, name) for name in ("epochs", "batch", "length")}
    path = options.out / f"{options.library}.parquet"
    user = clocked("import", _imported, options.script)
    data = clocked("read", user.read, options.data)
    model = clocked("fit", user.fit, data, options.out, **sizes)
    clocked("recommend", user.recommend, model, data, path, k=options.k)
    reply = {
        "version": sys.modules[options.library].__version__,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "path": str(path),
    }
    print(json.dumps(reply))


def _imported(script: Path) -> ModuleType:
    spec = spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{script}: is no Python file")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
