"""A page of sweeps, and several seeds as one run: what they tell, and that it is text."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hostile_runs import HOSTILE, trained
from markup import Page

import mmkd
from mmkd import Run, SeedRuns, write_report
from mmkd.errors import RunError
from mmkd.pipeline.seeds import summarise
from mmkd.pipeline.study import Dimension, Sweep, Trial
from mmkd.report import figures, write_sweep_report
from mmkd.report.sweeps import course, points
from mmkd.runs.seeds import SeedFolder

RATE = Dimension("training.lr", "log", (1e-4, 1e-2))
WORD = Dimension("evil", "choice", tuple(HOSTILE[:3]))


def trial(number: int, rate: float, value: float | None, **more: object) -> Trial:
    chosen = (f"training.lr={rate}", f"evil={HOSTILE[number % 3]}")
    return Trial(number, chosen, value, 60.0, **more)  # type: ignore[arg-type]


def swept(folder: Path, name: str) -> Sweep:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "best.yaml").write_text(f"name: {HOSTILE[0]}\n", "utf-8")
    trials = (
        trial(0, 0.001, 0.25),
        trial(1, 0.0002, None, error=HOSTILE[1], state="failed"),
        trial(2, 0.004, 0.5),
        trial(3, 0.003, None, state="pruned", so_far=0.125, epochs=4),
        trial(4, 0.002, 0.375),
    )
    importance = {"training.lr": 0.75, HOSTILE[2]: 0.25}
    return Sweep(folder, name, "NDCG@10", (RATE, WORD), trials, importance)


def test_rows_of_the_charts_are_the_trials(tmp_path: Path) -> None:
    one = swept(tmp_path, "shop")
    assert [row["best"] for row in course(one)] == [0.25, 0.5, 0.5]
    assert [row["number"] for row in course(one)] == [1, 3, 5]
    found = points(one, RATE)
    assert [(row["at"], row["value"], row["state"]) for row in found] == [
        (0.001, 0.25, "complete"),
        (0.004, 0.5, "complete"),
        (0.003, 0.125, "pruned"),
        (0.002, 0.375, "complete"),
    ]
    assert one.best is not None and one.best.number == 2


@pytest.mark.parametrize("count", [1, 2])
def test_the_page_of_sweeps_tells_what_mattered_and_nothing_runs(
    tmp_path: Path, count: int
) -> None:
    given = [swept(tmp_path / str(n), f"{HOSTILE[0]}{n}") for n in range(count)]
    html = write_sweep_report(given, tmp_path / "sweep.html").read_text("utf-8")
    page = Page(html)
    charts = 4 if count == 1 else 7  # importance, two options, the course
    assert page.open == [] and page.values("class").count("chart") == charts
    assert page.tags["script"] == charts + 2 and page.tags["img"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    for kind, text in page.scripts:
        assert kind != "application/json" or json.loads(text)["width"] == "container"
    text = " ".join(page.texts)
    assert "0.5000" in text and "0.75" in text and HOSTILE[1] in text
    assert ("The recipes" in text) == (count == 2)
    assert all(re.fullmatch(r"#[a-z0-9]+", value) for value in page.values("href"))


def test_no_sweep_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no sweep to report on"):
        write_sweep_report([], tmp_path / "sweep.html")
    page = write_sweep_report(
        [Sweep(tmp_path, "new", "NDCG@10", (RATE,), (), None)], tmp_path / "new.html"
    )
    assert "importances take two trials" in page.read_text("utf-8")


@pytest.fixture(scope="module")
def seeds(run: Run, shop_of_strangers: Path, tmp_path_factory: pytest.TempPathFactory) -> SeedRuns:
    """The run of the other tests, and one of another seed."""
    kept = SeedFolder(tmp_path_factory.mktemp("seeds") / "<b>both<")
    shutil.copytree(run.folder.path, kept.path / "seed-0")
    other = trained(shop_of_strangers, "other", "seed=1")
    shutil.copytree(other.folder.path, kept.path / "seed-1")
    kept.write(recipe="quickstart", seeds=(0, 1))
    kept.write(summary=summarise(kept))
    return SeedRuns(kept.path)


def test_seeds_are_one_row_with_a_point_each(
    seeds: SeedRuns, run: Run, ids_only: Run, tmp_path: Path
) -> None:
    first, second = (one.result["test"]["metrics"]["NDCG@10"] for one in seeds.runs)
    rows = figures.compared([seeds, ids_only])
    assert [row["name"] for row in rows] == ["<b>both<", "ids"]
    assert rows[0]["gain"].value == pytest.approx((first + second) / 2)
    assert (rows[0]["seeds"], rows[1]["seeds"]) == (2, 0)
    found = figures.points([run, seeds])
    assert [row["kind"] for row in found] == ["this run", "run", "seed", "seed"]
    assert [row["value"] for row in found[2:]] == [first, second]
    gains = figures.gain_by_slice(seeds, ids_only, run.data.split)
    assert sum(row["n"] for row in gains) == seeds.result["test"]["n"]
    weighted = sum(row["n"] * row["value"] for row in gains) / seeds.result["test"]["n"]
    change = rows[0]["gain"].value - ids_only.result["test"]["metrics"]["NDCG@10"]
    assert weighted == pytest.approx(change)
    file = write_report([seeds, ids_only], tmp_path / "report.html")
    page = Page(file.read_text("utf-8"))
    text = " ".join(page.texts)
    assert "2 seeds" in text and "seed-0" in text and page.tags["b"] == 0
    low, high = seeds.result["test"]["intervals"]["NDCG@10"]
    assert f"[{low:.4f}, {high:.4f}]" in text
    other = mmkd.SeedRuns(seeds.folder.path).report(tmp_path / "alone.html")
    assert np.isclose(other.stat().st_size, file.stat().st_size, rtol=0.3)
