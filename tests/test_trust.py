"""A file that names a class outside mmkd runs nothing until its user says so."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmkd import trust
from mmkd.config.plan import plan
from mmkd.config.recipe import load_recipe
from mmkd.encoders import load_card
from mmkd.errors import EncoderError, RecipeError
from mmkd.student import backbone_class
from mmkd.trust import is_trusted, trust_code

CODE = """open({mark!r}, "w").close()
from torch import nn
class Letters:
    version = 1
    def __init__(self, *, modality: str) -> None: ...
class Network(nn.Module):
    causal = True
    def __init__(self, *, width: int) -> None: ...
"""


@pytest.fixture(autouse=True)
def nobody_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_trusted", set())


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that a module writes when it is imported; a card names a class of it."""
    mark = tmp_path / "ran"
    (tmp_path / "anothers_code.py").write_text(CODE.format(mark=str(mark)), "utf-8")
    (tmp_path / "card.yaml").write_text("modality: text\nkind: anothers_code:Letters\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield mark
    sys.modules.pop("anothers_code", None)


def test_names_stand_for_themselves_and_what_is_in_them() -> None:
    trust_code(["mine", "a.b"])
    assert all(map(is_trusted, ("mine", "mine.deep.er", "a.b", "a.b.c", "mmkd", "mmkd.student")))
    assert not any(map(is_trusted, ("mine2", "a", "a.bc", "os", "mmkd_x")))
    with pytest.raises(ValueError, match=r"got 'a/b', wanted a package or module"):
        trust_code("a/b")


def test_a_card_imports_nothing_until_its_package_is_trusted(ran: Path) -> None:
    card = load_card(str(ran.parent / "card.yaml"))  # read and listed, not imported
    for use in (card.fingerprint, card.build, lambda: card.fitted, card.check_settings):
        with pytest.raises(EncoderError, match=r"outside mmkd.*--trust-code anothers_code"):
            use()
    assert not ran.exists()
    assert load_card(str(ran.parent / "card.yaml"), trust_code="anothers_code").fingerprint()
    assert ran.exists()


def test_a_backbone_is_no_other_than_mmkds_until_it_is_trusted(ran: Path) -> None:
    for kind in ("anothers_code:Network", "os:system", "subprocess:Popen"):
        with pytest.raises(ValueError, match=r"outside mmkd.*trust_code="):
            backbone_class(kind)
    assert not ran.exists()
    trust_code("anothers_code")
    assert backbone_class(backbone_class("anothers_code:Network")).__name__ == "Network"


def test_a_recipe_is_planned_without_an_import(ran: Path) -> None:
    overrides = [
        "data.root=.",
        f"encoders.text={ran.parent / 'card.yaml'}",
        "student.backbone={kind: anothers_code:Network}",
    ]
    with pytest.raises(RecipeError) as refused:
        plan(load_recipe("quickstart", overrides))
    assert sum("--trust-code anothers_code" in line for line in refused.value.problems) == 2
    assert not ran.exists()
    planned = plan(load_recipe("quickstart", overrides, trust_code=["anothers_code"]))
    assert planned.cards["text"].kind == "anothers_code:Letters" and ran.exists()
