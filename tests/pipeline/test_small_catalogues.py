"""Catalogues of three items and a few more train, are evaluated and recommend."""

from pathlib import Path

import polars as pl
import pytest
from synthetic_runs import BERT4REC, EMKD, GRU4REC, MASKED, TINY, recipe_of

import mmkd
from mmkd.pipeline.train import train

WORDS = "red blue green tall small round flat old new soft hard warm".split()
NO_ENCODERS = [
    "encoders=null",
    "distiller=null",
    "objective.correlation=null",
    "asynchronous={kind: none}",
    "student.score_with=id",
]
VARIANTS = {
    "encoders": [],
    "autoencoder": ["distiller.reduction=autoencoder", "distiller.assignment=hard"],
    "no encoders": NO_ENCODERS,
    "bert4rec": BERT4REC,
    "gru4rec": GRU4REC,
    "emkd": [*MASKED, *EMKD],
    "sampled": ["objective.recommendation={kind: sampled_softmax, negatives: 64}"],
    "gbce": ["objective.recommendation={kind: gbce, negatives: 64}"],
}


def shop(root: Path, items: int) -> list[str]:
    """So many items, and users who take five of them in turn; returns the overrides."""
    catalogue = {
        "item_id": [f"i{row}" for row in range(items)],
        "title": [f"{WORDS[row % 12]} thing {WORDS[row * 5 % 7]}" for row in range(items)],
        "tags": [WORDS[row % 3] for row in range(items)],
    }
    pl.DataFrame(catalogue).write_csv(root / "items.csv")
    events = [
        (f"u{user}", f"i{(user + step) % items}", step) for user in range(10) for step in range(5)
    ]
    log = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_csv(root / "log.csv")
    return [
        f"data.root={root}",
        "data.items={path: items.csv, title: title, text: '{title}', attributes: tags}",
        "data.items.image=null",
        "data.interactions={path: log.csv}",
        "encoders={text: hashed-text, image: null}",
        f"cache.folder={root / 'cache'}",
        *TINY,
        "training.epochs=1",
    ]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("items", [3, 6])
def test_a_small_catalogue_trains_and_is_evaluated(name: str, items: int, tmp_path: Path) -> None:
    recipe = recipe_of(shop(tmp_path, items), *VARIANTS[name])
    run = mmkd.train(recipe, folder=tmp_path / "run")
    assert run.result["test"]["n"] == 10
    assert 0 <= run.result["test"]["metrics"]["NDCG@10"] <= 1
    assert run.evaluate()["metrics"] == run.result["test"]["metrics"]
    assert len(run.recommend(["i0"], k=10)) == items - 1


def test_some_validation_cases_are_ranked_and_it_is_said(tmp_path: Path) -> None:
    recipe = recipe_of(shop(tmp_path, 6), "evaluation.cases=4", *VARIANTS["sampled"])
    said: list[str] = []
    result = train(recipe, folder=tmp_path / "run", announce=said.append)
    assert result["validation_cases"] == {"ranked": 4, "of": 10}
    assert result["validation"]["n"] == 4 and result["test"]["n"] == 10
    assert result["baselines"]["popularity"]["valid"].keys() == result["valid"].keys() - {
        name for name in result["valid"] if name.startswith("retention")
    }
    assert any("4 of 10 validate, 10 test" in line for line in said)
    assert mmkd.load(tmp_path / "run").evaluate(cases="valid")["metrics"] == pytest.approx(
        result["validation"]["metrics"]
    )
