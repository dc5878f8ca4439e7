"""The campaign's tables: each variant's winner over seeds, and paired tests between variants."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.campaign.plan import Variant
from benchmarks.campaign.rows import Row, unpack
from benchmarks.measure import print_table
from mmkd.evaluation.metrics import per_case
from mmkd.evaluation.significance import compare, crossed_intervals, holm

_SLICES = ("cold", "tail", "mid", "head")


def winners(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Each variant's best trial on validation (of seed 0), one row a seed."""
    found = {}
    for name in dict.fromkeys(row.variant for row in rows):
        own = [row for row in rows if row.variant == name]
        best = max((row for row in own if row.seed == 0), key=lambda row: row.valid).trial
        found[name] = sorted((r for r in own if r.trial == best), key=lambda row: row.seed)
    return found


def print_tables(plan: Mapping[str, Variant], rows: Sequence[Row]) -> None:
    """The table of variants, the paired tests, and what was tried."""
    best = winners(rows)
    lines = []
    for name in (one for one in plan if one in best):
        own = best[name]
        tried = len({row.trial for row in rows if row.variant == name})
        lines.append(
            [
                name,
                str(tried),
                str(len(own)),
                _mean(row.valid for row in own),
                _mean(row.test["HR@10"] for row in own),
                f"{_mean(row.test['NDCG@10'] for row in own)} {_interval(own)}",
                " / ".join(
                    _mean(row.test.get(f"{part}/NDCG@10", float("nan")) for row in own)
                    for part in _SLICES
                ),
                f"{np.mean([row.seconds for row in own]) / 60:.1f}",
                f"{own[0].parameters / 1e6:.2f}",
            ]
        )
    header = ["variant", "trials", "seeds", "valid", "HR@10", "NDCG@10", " / ".join(_SLICES)]
    print_table([*header, "min", "M parameters"], lines)
    _tests(best)
    print()
    for row in rows:
        if row.seed == 0:
            print(
                f"{row.variant:12} {row.trial}  valid {row.valid:.4f}  test "
                f"{row.test['NDCG@10']:.4f}  {' '.join(row.chosen)}"
            )


def _tests(best: Mapping[str, Sequence[Row]]) -> None:
    others = [(name, base) for base in ("fused", "ids", "content") for name in best if name != base]
    known = [pair for pair in others if pair[1] in best]
    # each pair once, or Holm's correction would count it twice
    pairs = [pair for n, pair in enumerate(known) if pair[::-1] not in known[:n]]
    found = [
        compare([unpack(r.ranks) for r in best[name]], [unpack(r.ranks) for r in best[base]])
        for name, base in pairs
    ]
    corrected = holm([one["p_value"] for one in found])
    lines = [
        [
            f"{name} - {base}",
            f"{one['difference']:+.4f} [{one['interval'][0]:+.4f}, {one['interval'][1]:+.4f}]",
            f"{100 * one['difference'] / one['second']:+.1f}%",
            f"{p:.4f}",
        ]
        for (name, base), one, p in zip(pairs, found, corrected, strict=True)
    ]
    print()
    print_table(["NDCG@10", "difference", "share", "p (Holm)"], lines)


def _interval(rows: Sequence[Row]) -> str:
    ranks = [unpack(row.ranks) for row in rows]
    values = np.stack([per_case(one.rank, "NDCG@10", ties=one.ties) for one in ranks])
    low, high = crossed_intervals(values[..., None], ranks[0].user)[0]
    return f"[{low:.4f}, {high:.4f}]"


def _mean(values: Iterable[float]) -> str:
    return f"{np.mean([*values]):.4f}"
