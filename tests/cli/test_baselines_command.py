"""``mmkd baselines``: the table and the JSON hold what the pipeline finds."""

from commands import Shop, invoke, printed

NAMES = ["popularity", "transition", "item-knn", "content-text", "content-image"]


def test_baselines_prints_a_row_for_each(shop: Shop) -> None:
    found = printed("baselines", "quickstart", *shop.overrides)
    assert list(found) == NAMES
    for name, kept in shop.kdsr["baselines"].items():
        assert found[name]["test"] == kept["test"] and found[name]["valid"] == kept["valid"]
    result = invoke("baselines", "quickstart", *shop.overrides)
    assert result.exit_code == 0
    head, *rows, last = result.stdout.splitlines()
    assert head.split() == [
        *("baseline", "HR@10", "NDCG@10", "[95%]"),
        *("cold", "tail", "mid", "head", "coverage@10", "seconds"),
    ]
    assert last.startswith("200 test cases (cold ")
    for name, row in zip(NAMES, rows, strict=True):
        test = found[name]["test"]
        low, high = test["intervals"]["NDCG@10"]
        cells = row.split()
        assert cells[:3] == [name, *(f"{test['metrics'][m]:.4f}" for m in ("HR@10", "NDCG@10"))]
        assert cells[3:5] == [f"[{low:.4f},", f"{high:.4f}]"]
        cold = test["slices"]["cold"]
        assert cells[5] == (f"{cold['NDCG@10']:.4f}" if cold["n"] else "-")
        assert cells[9] == f"{test['coverage@10']:.3f}"


def test_without_encoders_and_with_another_cut_off(shop: Shop) -> None:
    options = ("encoders=null", "distiller=null", "objective.correlation=null")
    result = invoke(
        *("baselines", "quickstart", *shop.overrides, *options, "student.score_with=id"),
        *("evaluation.ks=[3, 7]", "training.select_metric=NDCG@7"),
    )
    assert "NDCG@7 [95%]" in result.stdout and "content" not in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[1:4]] == NAMES[:3]
