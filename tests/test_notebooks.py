"""The notebooks of the documentation run from their first cell to their last."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


_LONG = ("new_items", "tuning")  # tens of seconds; the others run in every check


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem in _LONG)) for p in NOTEBOOKS],
)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    last = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
    assert last


def test_the_notebooks_that_the_pages_name_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "comparing",
        "new_items",
        "parts",
        "shop",
        "tuning",
    ]
