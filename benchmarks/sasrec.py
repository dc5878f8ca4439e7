"""One epoch of SASRec: mmkd beside RecTools and RecBole, on the same log, sizes and threads.

    python benchmarks/sasrec.py --data FOLDER

FOLDER holds interactions.csv(.gz) with user_id, item_id, timestamp. Each peer lives in an
environment of its own under benchmarks/.venv-peers, made on the first run. Prints seconds an
epoch and what each library trained on; writes benchmarks/results/sasrec.json.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    ALLOCATORS,
    ROOT,
    BenchmarkError,
    environment,
    last_json_line,
    print_table,
    write_results,
)
from benchmarks.training_log import write_training_log

ENVIRONMENTS = Path(__file__).parent / ".venv-peers"
REQUIREMENTS = {
    # RecTools 0.19 holds numpy below 2, and newer pyarrows want 2
    "rectools": ("rectools[torch]==0.19.0", "pyarrow<22"),
    # RecBole 1.2.1 predates numpy 2 and needs pkg_resources
    "recbole": ("recbole==1.2.1", "numpy<2", "setuptools<81"),
    "replay": ("replay-rec[torch]==0.22.0",),
}


@dataclass(frozen=True)
class Side:
    """One library with one batch size."""

    name: str
    library: str
    epochs: int
    batch: int
    extra: tuple[str, ...] = ()


def main() -> None:
    """Parse the command line, prepare the environments, measure, print and write."""
    options = _parser().parse_args()
    sides = [
        Side("mmkd fp32", "mmkd", options.epochs, options.batch),
        Side("mmkd bf16", "mmkd", options.epochs, options.batch, ("--bf16",)),
        Side("RecTools", "rectools", options.rectools_epochs, options.rectools_batch),
        Side("RecBole", "recbole", options.recbole_epochs, options.recbole_batch),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "training.csv"
        write_training_log(options.data, log)
        for side in sides:
            if side.library not in options.only:
                continue
            print(f"{side.name} ...", flush=True)
            try:
                rows.append(_run(side, log, options))
            except BenchmarkError as error:
                print(f"  not measured: {error}")
    settings = vars(options) | {"data": options.data.name}
    print(f"\nSASRec epoch, {', '.join(f'{k} {v}' for k, v in settings.items())}")
    _print(rows)
    print(f"\nwritten to {write_results('sasrec', settings, rows)}")


def _run(side: Side, log: Path, options: argparse.Namespace) -> dict[str, Any]:
    if side.library == "mmkd":
        command = [sys.executable, "-m", "benchmarks.ours"]
    else:
        script = Path(__file__).parent / "peers" / f"{side.library}_sasrec.py"
        command = [str(peer_python(side.library)), str(script)]
    command += [str(log), "--epochs", str(side.epochs), "--batch", str(side.batch), *side.extra]
    for size in ("length", "width", "layers", "heads", "threads"):
        command += [f"--{size}", str(getattr(options, size))]
    if options.steps:
        command += ["--steps", str(options.steps)]
    reply = last_json_line(
        command,
        environment=environment(threads=options.threads, allocator=options.allocator),
        timeout_s=options.timeout_s,
        label=side.name,
    )
    return {"name": side.name, "batch": side.batch, **reply}


def peer_python(library: str) -> Path:
    """The peer's interpreter; its environment is made on the first call.

    The peers get the torch that mmkd runs on. uv makes the environment if there is one, else venv
    and pip.

    Raises:
        BenchmarkError: the environment cannot be made.
    """
    folder = ENVIRONMENTS / library
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if ready.exists():
        return python
    wanted = [*REQUIREMENTS[library], f"torch=={version('torch').partition('+')[0]}"]
    uv = shutil.which("uv")
    if uv:
        commands = [
            [uv, "venv", "--allow-existing", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--python", str(python), *wanted],
        ]
    else:
        commands = [
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", *wanted],
        ]
    print(f"making {folder.relative_to(ROOT)}: {' '.join(wanted)}", flush=True)
    for command in commands:
        if subprocess.run(command).returncode != 0:
            raise BenchmarkError(f"{library}: {' '.join(command)} failed; see its output above.")
    ready.touch()
    return python


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    ours = next((row for row in rows if row["name"] == "mmkd fp32"), None)
    header = ["library", "version", "s/epoch", "mmkd fp32 is x faster", "batch", "steps"]
    header += ["sequences", "targets", "parameters", "feedforward", "epochs timed"]
    table = []
    for row in rows:
        best = min(row["seconds"])
        table.append(
            [
                row["name"],
                row["version"],
                f"{best:.1f}",
                f"{best / min(ours['seconds']):.2f}" if ours else "",
                f"{row['batch']}",
                f"{row['steps']}",
                f"{row['sequences']:,}",
                f"{row['targets']:,}",
                f"{row['parameters']:,}",
                f"{row['feedforward']}",
                f"{len(row['seconds'])}",
            ]
        )
    print_table(header, table)
    cut = [row["name"] for row in rows if row["timed_steps"] < row["steps"]]
    if cut:
        print(f"extrapolated from fewer steps (--steps): {', '.join(cut)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["mmkd", "rectools", "recbole"])
    parser.add_argument("--batch", type=int, default=2048, help="of mmkd, in sequences")
    parser.add_argument("--rectools-batch", type=int, default=2048, help="in sequences")
    parser.add_argument("--recbole-batch", type=int, default=2048, help="in prefixes")
    parser.add_argument("--epochs", type=int, default=3, help="of mmkd; the fastest counts")
    parser.add_argument("--rectools-epochs", type=int, default=2)
    parser.add_argument("--recbole-epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="time so many steps and extrapolate")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--allocator", choices=sorted(ALLOCATORS), default="reuse")
    parser.add_argument("--timeout-s", type=float, default=1800.0)
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults shown, the description's lines kept."""


if __name__ == "__main__":
    main()
