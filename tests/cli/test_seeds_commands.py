"""``train --seeds``, ``show``, ``compare``, ``ls runs`` on several seeds, against the API."""

import json
from pathlib import Path

import pytest
from commands import ID_ONLY, Shop, invoke, printed

from mmkd import SeedRuns
from mmkd.errors import RecipeError, RunError

IDS = [*ID_ONLY, "name=ids", "training.epochs=1", "evaluation.baselines=false"]


@pytest.fixture(scope="module")
def seeds(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    given = ["train", "quickstart", *shop.overrides, *IDS, "--seeds", "2", "--runs", str(runs)]
    told = invoke(*given)
    assert told.exit_code == 0, told.output
    assert "seed 0, 1 of 2\n" in told.stderr and "seed 1, 2 of 2\n" in told.stderr
    return runs / "ids-seeds"


def test_what_training_ends_with_is_shown_again(shop: Shop, seeds: Path) -> None:
    summary = SeedRuns(seeds).result
    assert printed("show", "ids-seeds", "--runs", seeds.parent) == {**summary, "folder": str(seeds)}
    lines = invoke("show", seeds).stdout.splitlines()
    assert lines[0].split() == "test mean 95% interval deviation seed 0 seed 1".split()
    low, high = summary["test"]["intervals"]["HR@10"]
    first, second = summary["by_seed"]["test"]["HR@10"]
    told = [f"{summary['test']['metrics']['HR@10']:.4f}", f"[{low:.4f},", f"{high:.4f}]"]
    told += [f"{abs(first - second) / 2**0.5:.4f}", f"{first:.4f}", f"{second:.4f}"]
    assert lines[1].split() == ["HR@10", *told]
    assert f"mmkd recommend {seeds}/seed-0 --history " in "\n".join(lines)
    run = invoke("show", shop.runs / "quickstart").stdout
    assert f"{shop.kdsr['test']['metrics']['NDCG@10']:.4f}" in run


def test_a_folder_of_seeds_is_one_row_and_one_line(shop: Shop, seeds: Path) -> None:
    found = printed("compare", seeds, "quickstart", "id-only", "--runs", shop.runs)
    assert [one["run"] for one in found["others"]] == ["quickstart", "id-only"]
    mean = SeedRuns(seeds).result["test"]["metrics"]["NDCG@10"]
    assert found["others"][0]["this"] == pytest.approx(mean)
    turned = printed("compare", "quickstart", seeds, "--runs", shop.runs)
    assert turned["others"][0]["other"] == pytest.approx(mean)
    listed = {one["run"]: one for one in printed("ls", "runs", "--runs", seeds.parent)}
    assert listed["ids-seeds"]["state"] == "2 of 2 seeds"
    assert listed["ids-seeds"]["test NDCG@10"] == pytest.approx(mean)


def test_it_goes_on_only_when_told_and_one_seed_is_no_several(shop: Shop, seeds: Path) -> None:
    given = ["train", "quickstart", *shop.overrides, *IDS, "--runs", str(seeds.parent)]
    before = (seeds / "seed-0" / "result.json").stat().st_mtime_ns
    with pytest.raises(RunError, match="give --resume to go on with them"):
        invoke(*given, "--seeds", "3")
    told = invoke(*given, "--seeds", "2", "--resume")
    assert "seed 0, 1 of 2: trained already" in told.stderr
    assert (seeds / "seed-0" / "result.json").stat().st_mtime_ns == before
    with pytest.raises(RecipeError, match="got 1, wanted two or more"):
        invoke(*given, "--seeds", "1")
    with pytest.raises(RunError, match="holds the runs of several seeds"):
        invoke("recommend", seeds, "--history", "P01")
    with pytest.raises(RunError, match="no run nothing"):
        invoke("show", "nothing", "--runs", shop.runs)
    marker = seeds / "seeds.json"
    content = json.loads(marker.read_text())
    marker.write_text(json.dumps(content | {"seeds": [0, 5]}))
    try:
        with pytest.raises(RunError, match=r"seeds\.json: damaged \(its checksum differs\)"):
            invoke("compare", seeds, shop.runs / "quickstart")
    finally:
        marker.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
