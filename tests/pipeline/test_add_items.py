"""Items added to a trained run: where they land, what stays as it was, and what is refused."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from commands import ID_ONLY, invoke, printed
from sklearn.decomposition import PCA
from synthetic_runs import EMKD, MASKED, recipe_of
from torch import Tensor

from mmkd import FusedItemEmbedding, ItemTable, Run, load_card, load_recipe
from mmkd.config.plan import plan
from mmkd.errors import DataError, RunError
from mmkd.files import write_json
from mmkd.pipeline.add_items import add_items
from mmkd.pipeline.embed import embed
from mmkd.pipeline.evaluate import evaluate
from mmkd.pipeline.train import train
from mmkd.runs.folder import RunFolder
from mmkd.runs.recommend import similar, student_vectors

HISTORY = ["item-004", "item-009"]


@pytest.fixture(scope="module")
def run(synthetic: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(recipe_of(synthetic), folder=folder)
    return RunFolder(folder)


def copies(run: RunFolder, *originals: str) -> ItemTable:
    """New items with the text, picture and labels of items that there are."""
    rows = run.items().frame[[0, *run.items().rows(originals).tolist()]]
    names = ["", *(f"new-{name}" for name in originals)]
    return ItemTable.of(rows.with_columns(id=pl.Series(names), title=pl.Series(names)))


def with_both(run: RunFolder, count: int) -> list[str]:
    """Ids of items that have a text and a picture that can be read."""
    has = run.student().networks[0].embedding.has[1:-1].all(dim=1)
    return [run.items().ids[row + 1] for row in has.nonzero().flatten().tolist()[:count]]


def embedding_of(run: RunFolder) -> FusedItemEmbedding:
    return run.student().networks[0].embedding


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def next_scores(run: RunFolder, history: Sequence[str]) -> Tensor:
    return run.student().next_scores(torch.from_numpy(run.items().rows(history))[None])[0]


def test_the_kept_placement_is_how_the_table_started(run: RunFolder) -> None:
    planned = plan(load_recipe(str(run.recipe)))
    table = embed(planned, run.items())["text"]
    vectors = np.asarray(table.vectors[table.present]).astype(np.float64)
    reduced = PCA(16, svd_solver="full").fit_transform(vectors)  # [n, d]: as wide as the student
    rows = run.placements()["text"].rows(np.asarray(table.vectors[table.present])).double().numpy()
    signs = np.sign((rows * reduced).sum(axis=0))
    scale = 0.1 * 16**0.5 / np.linalg.norm(reduced, axis=1).mean()  # modality_std of the recipe
    np.testing.assert_allclose(rows * signs, reduced * scale, atol=1e-4)


def test_a_copy_lands_where_its_original_is_most_alike(run: RunFolder, tmp_path: Path) -> None:
    originals = with_both(run, 3)
    before = content(run.path)
    done = add_items(run.path, copies(run, *originals), out=tmp_path / "more")
    assert (done.added, done.catalogue, done.left_out) == (3, 123, ())
    assert done.present == {"text": 3, "image": 3}
    assert content(run.path) == before
    more = RunFolder(tmp_path / "more")
    for name in originals:
        for modality in ("text", "image"):
            vectors = student_vectors(more.student(), modality)
            items = more.items()
            [nearest] = similar(vectors, items, items.rows([f"new-{name}"]), k=1).to_dicts()
            assert nearest["item_id"] == name and nearest["score"] > 0.97
    opened = Run(more.path)
    found = set(opened.recommend(list(HISTORY), k=123)["item_id"])
    assert {f"new-{name}" for name in originals} < found
    assert len(opened.similar([f"new-{originals[0]}"], k=1)) == 1


@pytest.mark.parametrize("options", [(), ("distiller.reduction=autoencoder",), (*MASKED, *EMKD)])
def test_what_was_there_is_as_it_was(
    synthetic: list[str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    train(recipe_of(synthetic, *options, "training.epochs=1"), folder=tmp_path / "run")
    run, more = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "more")
    add_items(run.path, copies(run, "item-007", "item-011"), out=more.path)
    assert more.items().ids[:121] == run.items().ids and more.users() == run.users()
    old, new = run.student(), more.student()
    for one, other in zip(old.networks, new.networks, strict=True):
        rows = [*range(121), -1]  # the mask token is the last row of both
        torch.testing.assert_close(
            other.embedding.table()[rows], one.embedding.table(), rtol=0, atol=1e-7
        )
        assert not other.embedding.has[121:123, 0].any()
        assert torch.equal(other.embedding.has[rows], one.embedding.has)
    torch.testing.assert_close(
        next_scores(more, HISTORY)[:121], next_scores(run, HISTORY), rtol=1e-6, atol=1e-6
    )


def test_an_id_row_that_was_not_trained_is_never_read(run: RunFolder, tmp_path: Path) -> None:
    first, second = with_both(run, 2)
    add_items(run.path, copies(run, first, second), out=tmp_path / "more")
    more = RunFolder(tmp_path / "more")
    student = more.student()
    history = torch.tensor(
        [[*more.items().rows([first, f"new-{first}", f"new-{second}"]).tolist()]]
    )
    before = student.next_scores(history)
    with torch.no_grad():
        for network in student.networks:
            network.embedding.id_table[121:123] = 1e3 * torch.randn(2, 16)
    assert torch.equal(student.next_scores(history), before)
    with torch.no_grad():  # of an item that trained it counts
        student.networks[0].embedding.id_table[more.items().row(first)] += 1.0
    assert not torch.equal(student.next_scores(history), before)


def test_items_without_a_modality_are_added_and_those_without_any_left_out(
    run: RunFolder, tmp_path: Path
) -> None:
    (name,) = with_both(run, 1)
    image = str(run.items().image_path[run.items().row(name)])
    new = pl.DataFrame(
        {
            "item_id": ["n1", "n2", "n3"],
            "title": ["Red teapot of leather", None, None],
            "description": ["Lined, for a party", None, None],
            "attributes": [None, "dotted", None],
            "image": [None, Path(image).relative_to(Path(image).parents[1]).as_posix(), None],
        }
    )
    new.write_parquet(tmp_path / "new.parquet")
    done = add_items(run.path, tmp_path / "new.parquet", out=tmp_path / "more")
    assert (done.added, done.left_out, done.present) == (2, ("n3",), {"text": 1, "image": 1})
    more = RunFolder(tmp_path / "more")
    assert list(more.items().ids[-2:]) == ["n1", "n2"] and more.items().titles[-1] == "n2"
    assert embedding_of(more).has[-3:-1].tolist() == [[False, True, False], [False, False, True]]
    assert not embedding_of(more).table().isnan().any()


def test_items_are_added_to_a_run_with_added_items(run: RunFolder, tmp_path: Path) -> None:
    one, two = with_both(run, 2)
    both = copies(run, one, two)
    add_items(run.path, both, out=tmp_path / "at-once")
    add_items(run.path, ItemTable.of(both.frame[:2]), out=tmp_path / "first")
    add_items(tmp_path / "first", ItemTable.of(both.frame[[0, 2]]), out=tmp_path / "second")
    at_once, second = RunFolder(tmp_path / "at-once"), RunFolder(tmp_path / "second")
    assert second.items() == at_once.items()
    state = second.student().state_dict()
    for key, value in at_once.student().state_dict().items():
        torch.testing.assert_close(state[key], value)
    there = os.path.relpath(run.path, second.path)
    assert second.marker()["added"] == {"items": 2, "run": there}
    with pytest.raises(
        RunError, match=rf"2 items .* evaluate {run.path}, to which they were added"
    ):
        evaluate(second.path)
    (tmp_path / "deeper").mkdir()
    shutil.move(second.path, tmp_path / "deeper" / "moved")
    with pytest.raises(RunError, match=rf"evaluate the run {run.path.name} to which .* any more"):
        evaluate(tmp_path / "deeper" / "moved")


def test_what_cannot_be_added_is_refused_before_anything_is_encoded(
    run: RunFolder, synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, out = copies(run, *with_both(run, 1)), tmp_path / "more"
    with pytest.raises(DataError, match=r"2 of the 2 new items are in the catalogue.*item-00"):
        add_items(run.path, ItemTable.of(run.items().frame[:3]), out=out)
    blank = pl.lit(None, dtype=pl.String)
    nothing = ItemTable.of(new.frame.with_columns(text=blank, image_path=blank))
    with pytest.raises(DataError, match=r"none of the 1 new items has anything"):
        add_items(run.path, nothing, out=out)
    with pytest.raises(RunError, match="is the run itself"):
        add_items(run.path, new, out=run.path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match=r"not empty and holds no run"):
        add_items(run.path, new, out=tmp_path / "mine")
    train(recipe_of(synthetic, *ID_ONLY, "training.epochs=1"), folder=tmp_path / "ids")
    with pytest.raises(RunError, match=r"scores with ids.*score_with: fused"):
        add_items(tmp_path / "ids", new, out=out)

    shutil.copytree(run.path, tmp_path / "old")
    (tmp_path / "old" / "reduction.safetensors").unlink()
    marker = {k: v for k, v in RunFolder(tmp_path / "old").marker().items() if k != "files"}
    write_json(tmp_path / "old" / "run.json", marker)  # as release 0.1 wrote it
    with pytest.raises(RunError, match=r"holds no reduction\.safetensors.*train again"):
        add_items(tmp_path / "old", new, out=out)
    other = replace(plan(load_recipe(str(run.recipe))))
    other.cards["text"] = load_card("minilm-packaged")
    monkeypatch.setattr("mmkd.pipeline.add_items.plan", lambda *_, **__: other)
    with pytest.raises(RunError, match=r"encoders\.text changed since the run was trained"):
        add_items(run.path, new, out=out)
    assert not out.exists()


def test_the_command_adds_and_says_so(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(
        "item_id,title,description,attributes,image\nn1,Red teapot,for a party,,\nn2,,,,\n"
    )
    out = tmp_path / "more"
    told = printed("add-items", run.path, tmp_path / "new.csv", "--out", out)
    assert told == {
        "added": 1,
        "catalogue": 121,
        "left_out": ["n2"],
        "present": {"text": 1, "image": 0},
        "folder": str(out),
    }
    assert json.loads((out / "run.json").read_text("utf-8"))["added"]["items"] == 1
    again = invoke("add-items", run.path, tmp_path / "new.csv", "--out", tmp_path / "again")
    assert "1 new item (1 with text, 0 with image), 121 in all" in again.stdout
    assert "left out" in again.stdout and "n2" in again.stdout


def test_a_frame_is_read_as_a_file_is(run: RunFolder, tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "item_id": ["n1"],
            "title": ["Red vase"],
            "description": ["A red vase with stripes."],
            "attributes": ["striped|low"],
            "image": pl.Series([None], dtype=pl.String),
        }
    )
    frame.write_csv(tmp_path / "new.csv")
    opened = Run(run.path)
    by_frame = opened.add_items(frame, out=tmp_path / "one")
    by_file = opened.add_items(tmp_path / "new.csv", out=tmp_path / "two")
    assert by_frame.items == by_file.items and by_frame.items.titles[-1] == "Red vase"
    near = [one.similar(["n1"], k=3) for one in (by_frame, by_file)]
    assert near[0].equals(near[1]) and len(near[0]) == 3
    with pytest.raises(DataError, match=r"wanted|frame"):
        opened.add_items(7, out=tmp_path / "three")


def test_an_addition_that_was_killed_begins_anew(run: RunFolder, tmp_path: Path) -> None:
    new = ItemTable(["", "n1"], ["", "New"], [None, "a new thing"], [None] * 2, [[], []])
    add_items(run.path, new, out=tmp_path / "more")
    whole = (tmp_path / "more" / "student.safetensors").read_bytes()
    with pytest.raises(RunError, match="holds a run already"):
        add_items(run.path, new, out=tmp_path / "more")
    (tmp_path / "more" / "result.json").unlink()  # the last that is written
    add_items(run.path, new, out=tmp_path / "more")
    assert (tmp_path / "more" / "student.safetensors").read_bytes() == whole
    Run(tmp_path / "more")
