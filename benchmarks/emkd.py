"""EMKD's training step and evaluation: mmkd beside a plain implementation of the public scheme.

    python benchmarks/emkd.py --data beauty --batch 128
    python benchmarks/emkd.py --data ml-1m --batch 64

Prints seconds a step, peak memory, and seconds an evaluation batch; writes
benchmarks/results/emkd-DATA-BATCH-ALLOCATOR.json. What is compared with what: benchmarks/README.md.
"""

import argparse

from benchmarks.emkd_trials import SIZES
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


def main() -> None:
    """Parse the command line, measure every variant, print and write."""
    options = _parser().parse_args()
    sizes = {"data": options.data, "width": options.width, "members": options.members}
    step = sizes | {"batch_size": options.batch, "views": options.views}
    lengths = 16 if options.data == "beauty" else 1  # batches until all shapes have been met
    own = {"bucketed": True, "bf16": False}
    lean, half = own | {"recomputed": True}, own | {"bf16": True}
    variants = [
        ("reference step", "reference_step", step, options.reference_steps, 1),
        ("mmkd step, same batch", "our_step", step | own | {"bucketed": False}, options.steps, 2),
        ("mmkd step", "our_step", step | own, options.steps, lengths),
        ("mmkd step, checkpointing", "our_step", step | lean, options.steps, lengths),
        ("mmkd step, bf16", "our_step", step | half, options.steps, lengths),
        ("mmkd step, bf16, checkpointing", "our_step", step | lean | half, options.steps, lengths),
        ("reference evaluation", "reference_evaluation", sizes | {"batch_size": 256}, 3, 1),
        ("mmkd evaluation", "our_evaluation", sizes | {"batch_size": 256}, 3, 1),
    ]
    rows: list[Measurement] = []
    for name, target, arguments, steps, warmup in variants:
        skipped = options.skip_reference and name.startswith("reference")
        if skipped or options.only not in name:
            continue
        print(f"{name} ...", flush=True)
        try:
            rows.append(
                measure(
                    name,
                    f"benchmarks.emkd_trials:{target}",
                    arguments,
                    steps=steps,
                    warmup=warmup,
                    threads=options.threads,
                    allocator=options.allocator,
                    timeout_s=options.timeout_s,
                )
            )
        except BenchmarkError as error:
            print(f"  not measured: {error}")
    print(f"\nEMKD, {', '.join(f'{k} {v}' for k, v in vars(options).items())}")
    _print(rows)
    name = f"emkd-{options.data}-{options.batch}-{options.allocator}"
    print(f"\nwritten to {write_results(name, vars(options), rows)}")


def _print(rows: list[Measurement]) -> None:
    table = []
    for row in rows:
        kind = "evaluation" if "evaluation" in row.name else "step"
        base = next((r for r in rows if r.name == f"reference {kind}"), None)
        table.append(
            [
                row.name,
                f"{row.mean_s:.3f}",
                f"{row.median_s:.3f}",
                f"{base.mean_s / row.mean_s:.1f}" if base else "",
                f"{row.peak_bytes / MIB:.0f}",
                f"{base.peak_bytes / row.peak_bytes:.1f}" if base else "",
            ]
        )
    print_table(["variant", "seconds", "median", "times less", "peak MiB", "times less"], table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--data", choices=sorted(SIZES), default="beauty")
    parser.add_argument("--batch", type=int, default=128, help="sequences a batch")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16, help="of mmkd; on beauty a multiple of 16")
    parser.add_argument("--reference-steps", type=int, default=2)
    parser.add_argument("--only", default="", help="variants whose names contain this")
    add_step_options(parser, timeout_s=1800.0)
    return parser


if __name__ == "__main__":
    main()
