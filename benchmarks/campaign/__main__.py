"""Run a part of the campaign, or print its table.

    python -m benchmarks.campaign run beauty --data ../data/beauty --work /tmp/campaign --trials 3
    python -m benchmarks.campaign table beauty

Trials of every variant with seed 0 come first, then the winners with more seeds. A row is written
as a run ends; what has a row is not run again, so the same command goes on after an interruption.
One run is one process of one thread: start a command a core, each with variants of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from benchmarks.campaign.plan import Variant, read_plan
from benchmarks.campaign.rows import Row, append_row, check, metrics_of, pack, read_rows
from benchmarks.campaign.table import print_tables
from benchmarks.measure import ROOT, Help
from mmkd.evaluation.ranking import CaseRanks
from mmkd.training.trainer import bf16_in_hardware

ROWS = Path(__file__).with_name("rows")


def main() -> None:
    """Parse the command line, run or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run", formatter_class=Help, help="run what has no row yet")
    run.add_argument("set")
    run.add_argument("--data", type=Path, required=True, help="the set's folder")
    run.add_argument("--work", type=Path, required=True, help="for runs and the cache")
    run.add_argument("--variants", default="", help="names with commas; all by default")
    run.add_argument(
        "--tuned", type=Path, help="card of the text encoder that was tuned on the set"
    )
    run.add_argument("--trials", type=int, default=3)
    run.add_argument("--seeds", type=int, default=3)
    run.add_argument("--minutes", type=float, default=float("inf"), help="begin none after these")
    table = commands.add_parser("table", help="what the rows say")
    table.add_argument("set")
    table.add_argument("--trials", type=int, help="the first so many alone; all by default")
    options = parser.parse_args()
    rows = ROWS / f"{options.set}.jsonl"
    if options.command == "table":
        most = float("inf") if options.trials is None else options.trials
        some = [row for row in read_rows(rows) if row.trial < most]
        print_tables(read_plan(options.set), some)
    else:
        _Campaign(options, rows).run()


class _Campaign:
    def __init__(self, options: argparse.Namespace, rows: Path) -> None:
        self.options, self.rows = options, rows
        self.plan = read_plan(options.set)
        named = [name for name in options.variants.split(",") if name] or list(self.plan)
        self.variants = [n for n in named if options.tuned or not self.plan[n].tuned]
        self.until = time.monotonic() + 60 * options.minutes

    def run(self) -> None:
        """Trials of all variants, then seeds of the winners."""
        searched = [self.plan[name] for name in self.variants if self.plan[name].space]
        for number in range(self.options.trials):
            for variant in searched:
                self._once(variant, number, 0)
        for seed in range(self.options.seeds):
            for name in self.variants:
                self._once(self.plan[name], self._winner(name), seed)

    def _winner(self, name: str) -> int:
        first = [row for row in self._rows(name) if row.seed == 0]
        return max(first, key=lambda row: row.valid).trial if first else 0

    def _rows(self, name: str) -> list[Row]:
        rows = read_rows(self.rows)
        return [row for row in rows if row.variant == name and row.trial < self.options.trials]

    def _once(self, variant: Variant, trial: int, seed: int) -> None:
        if (variant.name, trial, seed) in {row.key for row in read_rows(self.rows)}:
            return
        if time.monotonic() > self.until:
            sys.exit(f"{self.options.minutes} minutes are over; the same command goes on")
        chosen = variant.trial(trial)
        folder = self._folder(variant.name, trial, seed)
        print(f"{variant.name}, trial {trial}, seed {seed}: {' '.join(chosen)}", flush=True)
        if variant.of:
            of = self._folder(variant.of, self._winner(variant.of), seed)
            if not (of / "result.json").is_file():
                print(f"{of}: is not here; train {variant.of} on this machine first", flush=True)
                return
            done = self._mmkd("compress", of, [], folder)
        else:
            data = f"data.root={self.options.data.resolve()}"
            cache = f"cache.folder={self.options.work.resolve() / 'cache'}"
            tuned = [f"encoders.text={self.options.tuned.resolve()}"] if variant.tuned else []
            own = [data, cache, *variant.overrides, *tuned, *chosen, f"seed={seed}"]
            own.append(f"training.precision={'bf16' if bf16_in_hardware() else 'no'}")
            done = self._mmkd("train", Path(variant.recipe), own, folder)
        if not done:
            print(f"  failed; {folder.with_suffix('.log')} says why", flush=True)
            return
        row = _row(variant.name, trial, seed, chosen, folder)
        check(row)
        append_row(self.rows, row)
        print(f"  valid {row.valid:.4f}, test {row.test['NDCG@10']:.4f}", flush=True)

    def _folder(self, name: str, trial: int, seed: int) -> Path:
        return Path(self.options.work, self.options.set, f"{name}-{trial}-{seed}")

    def _mmkd(self, command: str, what: Path, overrides: Sequence[str], folder: Path) -> bool:
        begun = ["--resume"] if (folder / "recipe.yaml").is_file() else []
        folder.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "mmkd", command, str(what), *overrides, "--out", str(folder)]
        with folder.with_suffix(".log").open("a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            ended = subprocess.run(
                [*words, *begun], check=False, stdout=log, stderr=log, env=environment, cwd=ROOT
            )
        return ended.returncode == 0


def _row(variant: str, trial: int, seed: int, chosen: tuple[str, ...], folder: Path) -> Row:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    frame = pl.read_parquet(folder / "test_ranks.parquet")
    ranks = CaseRanks(**{name: frame[name].to_numpy() for name in frame.columns})
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return Row(
        variant=variant,
        trial=trial,
        seed=seed,
        chosen=chosen,
        valid=result["valid"]["NDCG@10"],
        test=metrics_of(result),
        ranks=pack(ranks),
        seconds=round(result["seconds"]["train_and_validate"], 1),
        epochs=result["epochs"],
        parameters=result["parameters"],
        commit=commit.stdout.strip(),
    )


if __name__ == "__main__":
    main()
