"""KDSR's training step: mmkd beside a plain implementation of the public scheme, at beauty's size.

    python benchmarks/train_step.py

Prints, for each width, seconds a step, peak memory and how many times less mmkd takes; writes
benchmarks/results/train_step.json. What is compared with what: benchmarks/README.md.
"""

import argparse
from collections.abc import Sequence

from benchmarks.measure import (
    MIB,
    BenchmarkError,
    Help,
    Measurement,
    add_step_options,
    measure,
    print_table,
    write_results,
)

OURS = "benchmarks.ours:kdsr"
REFERENCE = "benchmarks.reference.trial:kdsr"


def main() -> None:
    """Parse the command line, measure every variant, print and write."""
    options = _parser().parse_args()
    rows: list[Measurement] = []
    for width in options.widths:
        rows += _measure_width(width, options)
    settings = vars(options)
    print(f"\nKDSR training step, {', '.join(f'{k} {v}' for k, v in settings.items())}")
    _print(rows)
    print(f"\nwritten to {write_results('train_step', settings, rows)}")


def _measure_width(width: int, options: argparse.Namespace) -> list[Measurement]:
    sizes = {"width": width, "batch_size": options.batch, "modalities": options.modalities}
    plain = sizes | {
        "batches": 2,
        "random_codes": not options.fitted_codes,
        "float64": options.float64,
    }
    variants = [("reference", REFERENCE, plain, options.reference_steps, 1)]
    for precision in options.precisions:
        # 16 batches are one group that training sorts by length: their mean is an epoch's
        own = sizes | {"batches": 16, "bf16": precision == "bf16"}
        variants += [
            (f"mmkd {precision}", OURS, own | {"bucketed": True}, options.steps, 16),
            (f"mmkd {precision}, same batch", OURS, own | {"bucketed": False}, options.steps, 16),
        ]
    rows = []
    for name, target, arguments, steps, warmup in variants:
        if options.skip_reference and target == REFERENCE:
            continue
        print(f"width {width}: {name} ...", flush=True)
        try:
            row = measure(
                f"{name}, width {width}",
                target,
                arguments,
                steps=steps,
                warmup=warmup,
                threads=options.threads,
                allocator=options.allocator,
                timeout_s=options.timeout_s,
            )
        except BenchmarkError as error:
            print(f"  not measured: {error}")
            continue
        rows.append(row)
    return rows


def _print(rows: Sequence[Measurement]) -> None:
    header = ["variant", "s/step", "median", "times less", "peak MiB", "times less"]
    header += ["steps/epoch", "min/epoch", "targets/step", "parameters"]
    table = []
    for row in rows:
        width = row.name.rpartition(",")[2]
        base = next((r for r in rows if r.name == f"reference,{width}"), None)
        epoch_s = row.mean_s * row.notes["steps_per_epoch"]
        table.append(
            [
                row.name,
                f"{row.mean_s:.3f}",
                f"{row.median_s:.3f}",
                f"{base.mean_s / row.mean_s:.1f}" if base else "",
                f"{row.peak_bytes / MIB:.0f}",
                f"{base.peak_bytes / row.peak_bytes:.1f}" if base else "",
                str(row.notes["steps_per_epoch"]),
                f"{epoch_s / 60:.2f}",
                str(row.notes["targets_per_step"]),
                f"{row.notes['parameters']:,}",
            ]
        )
    print_table(header, table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch", type=int, default=256, help="sequences (samples) a batch")
    parser.add_argument("--modalities", type=int, default=2, help="the public code has two")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--steps", type=int, default=32, help="of mmkd; a multiple of 16")
    parser.add_argument("--reference-steps", type=int, default=3)
    parser.add_argument("--float64", action="store_true", help="teacher matrices as published")
    parser.add_argument("--fitted-codes", action="store_true", help="k-means, not random codes")
    add_step_options(parser, timeout_s=900.0)
    return parser


if __name__ == "__main__":
    main()
