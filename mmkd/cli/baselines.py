"""The command that says what a trained run must beat: baselines."""

from collections.abc import Mapping
from typing import Any

import typer

from mmkd.cli.arguments import AsJson, Overrides, RecipeName, planned


def baselines(recipe: RecipeName, overrides: Overrides = None, json: AsJson = False) -> None:
    """What needs no training, on a recipe's data: popularity, transitions, item and content kNN."""
    from mmkd.cli import show
    from mmkd.cli.progress import Bar, EmbeddingProgress
    from mmkd.pipeline.baselines import baselines as run_baselines

    plan = planned(recipe, overrides)
    with EmbeddingProgress() as encoding, Bar("baselines") as bar:
        found = run_baselines(plan, embed_progress=encoding.advance, progress=bar.advance)
    if json:
        show.as_json(found)
    else:
        _table(found, ks=plan.evaluator.ks)


def _table(found: Mapping[str, Mapping[str, Any]], *, ks: tuple[int, ...]) -> None:
    """A row a baseline; the cut-off is 10, or the last of the recipe's."""
    from mmkd.cli import show

    k = 10 if 10 in ks else ks[-1]
    hit, gain = f"HR@{k}", f"NDCG@{k}"
    rows = []
    for name, baseline in found.items():
        test = baseline["test"]
        low, high = test["intervals"][gain]
        slices = [test["slices"][part] for part in show.SLICES]
        rows.append(
            [
                name,
                f"{test['metrics'][hit]:.4f}",
                f"{test['metrics'][gain]:.4f} [{low:.4f}, {high:.4f}]",
                *(f"{part[gain]:.4f}" if part["n"] else "-" for part in slices),
                f"{test['coverage@10']:.3f}",
                f"{baseline['seconds']:.1f}",
            ]
        )
    names = ("baseline", hit, f"{gain} [95%]", *show.SLICES, "coverage@10", "seconds")
    show.rows(names, rows)
    cases = " ".join(f"{part} {test['slices'][part]['n']}" for part in show.SLICES)
    typer.echo(
        f"{test['n']} test cases ({cases}), ranked as the recipe's student is; the slices show "
        f"{gain} by how often the target trains."
    )
