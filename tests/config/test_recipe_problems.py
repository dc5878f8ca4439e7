"""What a recipe refuses: every mistake, all together, each with its file and key."""

from pathlib import Path

import pytest

from mmkd import load_recipe
from mmkd.errors import RecipeError

GOOD = """
name: x
data:
  root: data
  items: {path: items.csv}
  interactions: {path: log.csv}
  split: leave_one_out
student:
  backbone: {kind: sasrec, layers: 2}
  score_with: fused
task: next_item
objective:
  recommendation: softmax
"""


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    write("x", GOOD)


def write(name: str, text: str) -> str:
    path = Path("recipes", f"{name}.yaml")
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems(name: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, overrides)
    assert str(caught.value).splitlines() == caught.value.problems
    return caught.value.problems


@pytest.mark.parametrize("name", ["ml-1m-base", "ml-1m-kdsr", "beauty-id"])
def test_a_shipped_recipe_asks_for_the_data_folder(name: str) -> None:
    [problem] = problems(name)
    assert "data.root: has no value yet (???)" in problem and "data.root=VALUE" in problem


def test_all_structural_problems_come_together() -> None:
    found = problems(
        "x",
        "trainning.lr=1",
        "seed=a",
        "data.rot=b",
        "data.root=???",
        "student.score_with=idd",
        "student.backbone=[1]",
        "objective=3",
        "encoders.text=5",
        "data.items=file",
        "broken",
        "name=[",
    )
    assert sorted(found) == sorted(
        [
            "override 'broken': wanted key=value, such as training.lr=1e-3",
            "override 'name=[': its value is not YAML; quote it: name='\"...\"'",
            "recipes/x.yaml: data.root: has no value yet (???); set it in the file or with "
            "data.root=VALUE",
            "override: trainning: unknown; did you mean training?",
            "override: seed: got 'a', wanted an integer",
            "override: data.rot: unknown; did you mean root?",
            "override: data.items: got 'file', wanted a mapping",
            "override: student.score_with: got 'idd', wanted one of id, fused",
            "override: student.backbone: got [1], wanted a kind with its options",
            "override: objective: got 3, wanted a mapping",
            "override: encoders.text: got 5, wanted text",
        ]
    )


def test_problems_of_the_file_name_the_file() -> None:
    path = write(
        "bad",
        GOOD.replace("root: data", "rooot: data").replace("kind: sasrec, ", "")
        + "seed: true\nzzz: 1\n",
    )
    found = problems("bad")
    assert sorted(found[:-1]) == [
        f"{path}: data.rooot: unknown; did you mean root?",
        f"{path}: data.root: required, but not given",
        f"{path}: seed: got true, wanted an integer",
        f"{path}: student.backbone.kind: required, but not given",
    ]
    assert found[-1].startswith(f"{path}: zzz: unknown; known: asynchronous, cache, data, ")


def test_missing_sections_are_reported_each() -> None:
    path = write("empty", "name: empty\n")
    assert problems("empty") == [
        f"{path}: {section}: required, but not given"
        for section in ("data", "student", "task", "objective")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not readable as YAML"),
        ("- 1\n- 2\n", "not readable as YAML (holds a list, wanted a mapping"),
        ("name: a\nname: b\n", "not readable as YAML"),
        ("base: xx\n", "base: no recipe 'xx' in recipes; did you mean x?"),
        (
            "base: far-away\n",
            "base: no recipe 'far-away' in recipes; it must lie there, or be a preset (best",
        ),
        ("base: [x]\n", "base: got ['x'], wanted the name of a recipe"),
        ("base: second\n", "base: 'second' has a base itself; one level is the limit"),
        (GOOD + "cache: {folder: '${nowhere.at.all}'}", "cache.folder: "),
    ],
)
def test_a_file_that_cannot_be_used_is_named(text: str, message: str) -> None:
    write("second", "base: x\nname: second\n")
    path = write("broken", text)
    [problem] = problems("broken")
    assert problem.startswith(f"{path}: {message}")


def test_an_unknown_name_gets_a_suggestion_and_where_it_was_looked_for() -> None:
    [problem] = problems("ml-1m-kdr")
    assert problem.startswith("ml-1m-kdr: no such recipe; did you mean ml-1m-kdsr? (looked in rec")
    [problem] = problems("recipes/none.yaml")
    assert problem == "recipes/none.yaml: no such recipe file"


def test_a_broken_interpolation_does_not_hide_the_other_problems() -> None:
    path = write("both", GOOD + "cache: {folder: '${nowhere}'}\nsead: 1\n")
    first, second = problems("both")
    assert first.startswith(f"{path}: cache.folder: ") and "nowhere" in first
    assert second == f"{path}: sead: unknown; did you mean seed?"


def test_a_kind_that_is_no_text_is_refused() -> None:
    assert problems("x", "student.backbone.kind=[1]") == [
        "override: student.backbone.kind: got [1], wanted text"
    ]


@pytest.mark.parametrize("name", ["''", "a/b", "../x", "-x", ".x", "'a b'", '"a\\n"'])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    [problem] = problems("x", f"name={name}")
    assert problem.startswith("override: name: got ") and "rename it" in problem


def test_a_name_may_have_dots_and_dashes() -> None:
    assert load_recipe("x", ["name=ml-1m_v2.1"]).name == "ml-1m_v2.1"


@pytest.mark.parametrize(("seed", "bound"), [("-1", "at least 0"), ("4294967296", "at most")])
def test_a_seed_that_some_generator_refuses_is_refused(seed: str, bound: str) -> None:
    [problem] = problems("x", f"seed={seed}")
    assert problem.startswith(f"override: seed: got {seed}, wanted {bound}")
