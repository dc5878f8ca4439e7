"""A file that names a class outside mmkd runs nothing until its user says so."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mmkd import load_card, load_recipe, trust
from mmkd.config.plan import plan
from mmkd.encoders import list_cards
from mmkd.encoders.offline import _at_hand
from mmkd.encoders.sentence_transformer import SentenceTransformerEncoder
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


def package_card(folder: Path, package: str) -> Path:
    card = folder / "packaged.yaml"
    card.write_text(
        f"modality: text\nkind: sentence_transformer\nmodel: 'package:{package}'\n", "utf-8"
    )
    return card


@pytest.mark.parametrize("package", ["anothers_code", "anothers_folder.inner"])
def test_a_package_with_a_model_is_not_imported_until_it_is_trusted(
    ran: Path, package: str
) -> None:
    folder = ran.parent / "anothers_folder"
    folder.mkdir()
    for name in ("__init__.py", "inner.py"):
        (folder / name).write_text(f"open({str(ran)!r}, 'w').close()\n", "utf-8")
    card = load_card(str(package_card(ran.parent, package)))
    build = partial(SentenceTransformerEncoder, model=f"package:{package}")
    for use in (card.build, card.check_trust, build):
        with pytest.raises(EncoderError, match=rf"outside mmkd.*--trust-code {package}"):
            use()
    # which cards work here is asked without an import as well
    (ran.parent / "shelf").mkdir()
    package_card(ran.parent / "shelf", package)
    shelf = list_cards(folder=ran.parent / "shelf")
    assert [_at_hand(one) for one in shelf if one.name == "packaged"] == [False]
    with pytest.raises(RecipeError, match=f"--trust-code {package}"):
        plan(load_recipe("quickstart", ["data.root=.", f"encoders.text={card_path(ran)}"]))
    assert not ran.exists()
    trust_code(package)
    with pytest.raises(EncoderError, match=r"no get_model_path"):
        card.build()
    assert ran.exists()
    for name in ("anothers_folder", "anothers_folder.inner"):
        sys.modules.pop(name, None)


def card_path(ran: Path) -> Path:
    return ran.parent / "packaged.yaml"


def test_the_card_of_the_packaged_model_needs_no_trust() -> None:
    card = load_card("minilm-packaged")
    card.check_trust()
    assert _at_hand(card) and card.build().dim == 384


def test_code_beside_weights_is_run_for_the_user_and_not_for_a_file(tmp_path: Path) -> None:
    """A model of transformers whose config names a class of its own folder."""
    model, mark = tmp_path / "a model", tmp_path / "ran"
    model.mkdir()
    (model / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "theirs.C", "AutoModel": "theirs.M"}}'
    )
    (model / "theirs.py").write_text(f"open({str(mark)!r}, 'w').close()\nC = M = int\n")
    path = tmp_path / "card.yaml"
    path.write_text(
        "modality: text\nkind: language_model\nmodel: ./a model\npooling: mean\n"
        "trust_remote_code: true\n"
    )
    told = rf"runs code that comes with {model}.*--trust-code 'model:{model}'"
    card = load_card(str(path))
    for use in (card.check_trust, card.build):
        with pytest.raises(EncoderError, match=told):
            use()
    with pytest.raises(RecipeError, match="trust_remote_code: true runs code"):
        plan(load_recipe("quickstart", ["data.root=.", f"encoders.text={path}"]))
    assert not mark.exists()
    with pytest.raises(EncoderError):  # the class is none, but it was asked for
        load_card(str(path), trust_code=f"model:{model}").build()
    assert mark.exists()
    mark.unlink()
    trust._trusted.clear()
    path.write_text("modality: text\nkind: language_model\nmodel: ./a model\npooling: mean\n")
    with pytest.raises(EncoderError):
        load_card(str(path)).build()
    assert not mark.exists()


def test_modules_of_a_sentence_transformers_folder_run_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    model = tmp_path / "model"
    model.mkdir()
    modules = [{"idx": 0, "name": "0", "path": "", "type": "theirs.Module"}]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "config.json").write_text('{"model_type": "bert"}')
    (model / "theirs.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    (tmp_path / "card.yaml").write_text(
        "modality: text\nkind: sentence_transformer\nmodel: ./model\n"
    )
    with pytest.raises(EncoderError, match=r"theirs\.Module"):
        load_card(str(tmp_path / "card.yaml")).build()
    assert not mark.exists()
