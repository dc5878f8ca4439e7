"""Every part's `check`: any subset of its options, all problems together, as its constructor."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmkd import (
    RGAT,
    BERT4Rec,
    CorrelationDistiller,
    FusedItemEmbedding,
    GRU4Rec,
    Recommender,
    SASRec,
)
from mmkd.distiller import CorrelationCodebook
from mmkd.student import check_build_ensemble

WRONG: list[tuple[Callable[..., list[str]], dict[str, Any]]] = [
    (SASRec.check, {"width": 0, "layers": 0, "dropout": 1.0, "activation": "tanh"}),
    (BERT4Rec.check, {"max_length": 0, "heads": -1, "feedforward": 0}),
    (GRU4Rec.check, {"hidden": 0, "dropout": -0.1}),
    (RGAT.check, {"width": 0, "layers": 0, "last_n": 0, "dropout": 1.0}),
    (FusedItemEmbedding.check, {"item_count": 0, "id_std": 0.0, "fusion": "mean"}),
    (FusedItemEmbedding.check, {"gate_width": 0, "modality_std": float("inf")}),
    (Recommender.check, {"score_with": "text", "max_length": 0}),
    (check_build_ensemble, {"members": 0, "modality_tables": "both", "inference": "sum"}),
    (CorrelationCodebook.check, {"codes": 0, "assignment": "firm", "temperature": 0.0}),
    (CorrelationDistiller.check, {"dim": 0, "facets": 0, "codes": 1, "seed": -1}),
    (CorrelationDistiller.check, {"similarity": "cosin", "reduction": "svd", "max_pairs": 0}),
    (CorrelationDistiller.check, {"assignment": "firm", "code_temperature": -1.0}),
]


@pytest.mark.parametrize(("check", "wrong"), WRONG)
def test_a_line_an_option_each_alone_or_together(
    check: Callable[..., list[str]], wrong: dict[str, Any]
) -> None:
    assert check() == []
    assert sorted(line.split(": got ")[0] for line in check(**wrong)) == sorted(
        name for name in wrong
    )
    assert sorted(check(**wrong)) == sorted(
        line for name, value in wrong.items() for line in check(**{name: value})
    )


@pytest.mark.parametrize(
    ("check", "options", "message"),
    [
        (SASRec.check, {"width": 8, "heads": 3}, "heads: width 8 does not split into 3 heads"),
        (CorrelationDistiller.check, {"dim": 16, "facets": 5}, "facets: dim 16 does not split"),
        (
            CorrelationDistiller.check,
            {"codes": 50, "sampled_pairs": 40},
            "sampled_pairs: got 40, which cannot place 50 codes",
        ),
        (
            FusedItemEmbedding.check,
            {"present": {"image": torch.ones(3)}, "modalities": None},
            "present: has 'image' but modalities has not",
        ),
    ],
)
def test_a_constraint_between_two_options_needs_both(
    check: Callable[..., list[str]], options: dict[str, Any], message: str
) -> None:
    [problem] = check(**options)
    assert problem.startswith(message)
    for name, value in options.items():
        assert check(**{name: value}) == []


def test_a_constructor_tells_all_at_once() -> None:
    with pytest.raises(ValueError) as error:
        CorrelationDistiller(dim=10, facets=4, codes=1, seed=-1)
    names = [line.split(":")[0] for line in str(error.value).splitlines()]
    assert sorted(names) == ["codes", "facets", "seed"]
