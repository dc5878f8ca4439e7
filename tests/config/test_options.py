"""Options against signatures: what is taken, what is refused, and in which words."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from pydantic import Field

from mmkd.config.options import check_options

WHERE = "recipes/x.yaml: distiller"


class Part:
    def __init__(
        self,
        *,
        codes: int,
        tables: Mapping[str, torch.Tensor],
        rate: float = 0.1,
        similarity: Literal["cosine", "dot"] = "cosine",
        pairs: int | None = None,
        soft: bool = True,
        folder: Path = Path("."),
        ks: Sequence[int] = (5,),
        betas: tuple[float, float] = (0.9, 0.99),
        names: Collection[str] = (),
        share: Annotated[float, Field(ge=0, le=1)] = 0.5,
        precision: Literal["no", "bf16"] = "no",
        trackers: Sequence[Literal["tensorboard", "wandb"]] = (),
        extra: dict[str, object] | None = None,
    ) -> None:
        raise AssertionError("checking must not construct")


def check(**options: object) -> tuple[dict[str, object], list[str]]:
    return check_options(Part, {"codes": 5, **options}, where=WHERE, given=["tables"])


def problem(**options: object) -> str:
    accepted, problems = check(**options)
    assert len(problems) == 1, problems
    assert accepted == {"codes": 5} or "codes" in options
    return problems[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"rate": 1}, {"rate": 1.0}),
        ({"rate": float("inf")}, {"rate": float("inf")}),
        ({"pairs": None}, {"pairs": None}),
        ({"pairs": 7}, {"pairs": 7}),
        ({"folder": "a/b"}, {"folder": Path("a/b")}),
        ({"ks": [1, 2]}, {"ks": [1, 2]}),
        ({"betas": [0, 1]}, {"betas": (0.0, 1.0)}),
        ({"names": ["a"]}, {"names": ["a"]}),
        ({"extra": {"a": {"b": [1, "x", None]}}}, {"extra": {"a": {"b": [1, "x", None]}}}),
        ({"precision": False}, {"precision": "no"}),  # YAML's reading of a bare `no`
    ],
)
def test_valid_options_become_keyword_arguments(
    options: dict[str, object], expected: dict[str, object]
) -> None:
    accepted, problems = check(**options)
    assert problems == []
    assert accepted == {"codes": 5} | expected
    for name, value in expected.items():
        assert type(accepted[name]) is type(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": "many"}, "codes: got 'many', wanted an integer"),
        ({"codes": "3"}, "codes: got '3', wanted an integer"),
        ({"codes": True}, "codes: got true, wanted an integer"),
        ({"codes": 3.0}, "codes: got 3.0, wanted an integer"),
        ({"codes": None}, "codes: got null, wanted an integer"),
        ({"rate": "1e-3"}, "rate: got '1e-3', wanted a number"),
        ({"pairs": "all"}, "pairs: got 'all', wanted an integer or null"),
        ({"soft": 1}, "soft: got 1, wanted true or false"),
        ({"folder": 3}, "folder: got 3, wanted a path"),
        ({"ks": [5, "x"]}, "ks: got [5, 'x'], wanted a list of integers"),
        ({"ks": "5"}, "ks: got '5', wanted a list of integers"),
        ({"betas": [0.9]}, "betas: got [0.9], wanted a list of 2: a number, a number"),
        ({"names": "a"}, "names: got 'a', wanted a list of texts"),
        ({"extra": [1]}, "extra: got [1], wanted a mapping or null"),
        ({"trackers": ["wnb"]}, "trackers: got ['wnb'], wanted a list of tensorboard, wandb"),
        ({"soft": "no"}, "soft: got 'no', wanted true or false"),
        (
            {"similarity": "cosin"},
            "similarity: got 'cosin', wanted one of cosine, dot; did you mean cosine?",
        ),
        ({"similarity": "x"}, "similarity: got 'x', wanted one of cosine, dot"),
        ({"precision": True}, "precision: got true, wanted one of no, bf16"),
        ({"tables": {}}, "tables: set by the program itself; remove it"),
        ({"similarty": "dot"}, "similarty: unknown; did you mean similarity?"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_wanted(
    options: dict[str, object], message: str
) -> None:
    assert problem(**options) == f"{WHERE}.{message}"


def test_the_bound_of_an_annotation_is_told() -> None:
    assert problem(share=2).startswith(f"{WHERE}.share: got 2, wanted a number (")
    assert "less than or equal to 1" in problem(share=2)


def test_a_key_like_no_other_gets_the_list_but_not_what_the_program_gives() -> None:
    message = problem(zzz=1)
    assert message.startswith(f"{WHERE}.zzz: unknown; known: betas, codes, ")
    assert "tables" not in message


def test_a_missing_option_is_reported_unless_the_program_gives_it() -> None:
    accepted, problems = check_options(Part, {}, where=WHERE, given=["tables"])
    assert accepted == {}
    assert problems == [f"{WHERE}.codes: required, but not given; wanted an integer"]


def test_all_problems_come_together_and_the_good_options_survive() -> None:
    options = {"code": 3, "rate": 1, "similarity": "dots", "soft": "yes"}
    accepted, problems = check_options(Part, options, where=WHERE, given=["tables"])
    assert accepted == {"rate": 1.0}
    assert [line.split(":")[1].removeprefix(" distiller.") for line in problems] == [
        "code",
        "similarity",
        "soft",
        "codes",
    ]


def test_what_yaml_cannot_hold_is_said_to_be_so() -> None:
    def with_tensor(*, weight: torch.Tensor | None = None) -> None: ...

    _, problems = check_options(with_tensor, {"weight": 1}, where="x")
    assert problems == ["x.weight: a Tensor or null cannot be written in a recipe; remove it"]


def test_functions_defaults_and_open_signatures() -> None:
    def quantile(log: object, *, valid: float = 0.1, free=None) -> None: ...  # type: ignore[no-untyped-def]

    def open_ended(**options: object) -> None: ...

    def nothing() -> None: ...

    def run(
        target: Callable[..., object], **options: object
    ) -> tuple[dict[str, object], list[str]]:
        return check_options(target, options, where="x", given=["log"])

    assert run(quantile, valid=1, free="any") == ({"valid": 1.0, "free": "any"}, [])
    assert run(open_ended, a=1) == ({"a": 1}, [])
    assert run(nothing, a=1) == ({}, ["x.a: unknown; nothing can be set here"])


def test_text_annotations_are_resolved() -> None:
    def late(*, codes: "int | None" = None) -> None: ...

    _, problems = check_options(late, {"codes": "x"}, where="x")
    assert problems == ["x.codes: got 'x', wanted an integer or null"]
