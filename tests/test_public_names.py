"""The public face: names that are there, imported when they are used, each with a run example."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmkd
from mmkd.config.recipe import preset_names

FOUND = {name: getattr(mmkd, name) for name in mmkd.__all__}
WITH_EXAMPLE = [
    name
    for name, found in FOUND.items()
    if not (isinstance(found, type) and issubclass(found, Exception))
]


def test_a_type_checker_sees_the_names_that_are_there() -> None:
    tree = ast.parse(Path(mmkd.__file__).read_text("utf-8"))
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == mmkd._HOME_OF


def test_importing_imports_nothing_heavy_and_a_name_only_what_it_needs() -> None:
    code = """
import sys
import mmkd
heavy = {"torch", "polars", "numpy", "transformers", "pydantic", "faiss"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
mmkd.load_recipe
assert "torch" not in sys.modules
assert set(mmkd.__all__) <= set(dir(mmkd))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        mmkd.Recomender  # noqa: B018


def test_the_documentation_has_every_name_once() -> None:
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text("utf-8")
    shown = re.findall(r"^::: mmkd\.(\w+)$", page, re.MULTILINE)
    assert sorted(shown) == mmkd.__all__


@pytest.mark.parametrize("text", ["README.md", "docs/index.md", "docs/cli.md", "recipes/README.md"])
def test_every_preset_is_named_where_they_are_listed(text: str) -> None:
    page = (Path(__file__).parents[1] / text).read_text("utf-8")
    for name in preset_names():
        assert f"`{name}`" in page
        assert f"``{name}``" in (mmkd.train.__doc__ or "")


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_a_class_or_function_has_an_example_that_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(FOUND[name]) or ""
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples, f"{name} has no example"
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert result.failed == 0
