"""``mmkd teacher``: the table and the JSON hold what the pipeline finds, types among it."""

from collections import Counter

import pytest
import torch
from commands import invoke, printed

from mmkd import CorrelationDistiller, EmbeddingCache, load_recipe
from mmkd.config.plan import plan
from mmkd.errors import RunError
from mmkd.evaluation.teacher import teacher_worth, validation_pairs


def test_teacher_prints_a_row_for_each_encoder_and_its_types(synthetic: list[str]) -> None:
    options = [*synthetic, "distiller.assignment=hard", "encoders.image=null"]
    given = ("teacher", "quickstart", *options)
    found = printed(*given, "--against", "hashed-text")
    assert list(found) == ["text", "hashed-text"]
    planned = plan(load_recipe("quickstart", options))
    data = planned.load_data()
    table = EmbeddingCache(**planned.cache).table(planned.cards["text"], data.items)
    worth = teacher_worth(table, data.split, seed=planned.recipe.seed)
    assert found["text"].items() >= worth.items()

    # lift, from types counted one by one
    assert planned.distiller is not None
    distiller = CorrelationDistiller(**planned.distiller).fit({"text": table})
    first, second, _ = validation_pairs(data.split, table.present)
    types = distiller.codebooks["text"].assign(
        distiller.correlations("text", torch.from_numpy(first), torch.from_numpy(second))[1]
    )
    counted = Counter(types.tolist())
    codes = len(found["text"]["types"])
    for one in found["text"]["types"]:
        expected = (counted[one["type"]] + 1) / (len(first) + codes)
        assert one["together"] == pytest.approx(expected, rel=1e-5)
        assert one["lift"] == pytest.approx(one["together"] / one["chance"], rel=1e-5)
    lifts = [one["lift"] for one in found["text"]["types"]]
    assert lifts == sorted(lifts, reverse=True)

    result = invoke(*given)
    assert result.exit_code == 0
    head, row, *_ = result.stdout.splitlines()
    assert head.split()[:3] == ["encoder", "AUC", "HR@10"]
    assert row.split()[:3] == ["text", "(hashed-text)", f"{worth['auc']:.4f}"]
    assert "text: correlation types that go together" in result.stdout


def test_teacher_without_an_encoder_is_told_what_to_do(synthetic: list[str]) -> None:
    ids = ("encoders=null", "distiller=null", "objective.correlation=null")
    with pytest.raises(RunError, match=r"add one \(encoders.text=NAME\), or name cards with"):
        invoke("teacher", "quickstart", *synthetic, *ids, "student.score_with=id")
