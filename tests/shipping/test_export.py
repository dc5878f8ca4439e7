"""An exported folder: what is in it, whether it answers as the run, and what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
import polars as pl
import pytest
import torch
from commands import invoke, printed
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime import InferenceSession
from safetensors.numpy import load_file
from synthetic_runs import BERT4REC, GRU4REC, RGAT, recipe_of

import mmkd
from mmkd import MmkdError
from mmkd.errors import RunError
from mmkd.files import file_digest, read_json
from mmkd.shipping import export as exporting
from mmkd.shipping import graphs
from mmkd.shipping.export import Exported
from mmkd.student import Retrieval

PROBABILITIES = [
    "name=mix",
    "ensemble={members: 2, inference: probabilities, untrained_offset: 0.3}",
    "data.split={kind: cold_items}",
]
RECIPES = {
    "sasrec": ["student.embedding.fusion=concat"],
    "bert4rec": BERT4REC,
    "gru4rec": [*GRU4REC, "training.max_length=2"],  # of a fixed length
    "rgat": RGAT,
    "standardized": [
        "name=pair",
        "ensemble={members: [{}, {modalities: [text], ids: false}], "
        "inference: standardized, weights: validation, untrained_offset: -0.5}",
        "objective.recommendation={kind: softmax, candidates: trained}",
        "data.split={kind: cold_items}",
    ],
    "probabilities": PROBABILITIES,
}


@pytest.fixture(scope="module", params=sorted(RECIPES))
def shipped(
    request: pytest.FixtureRequest, synthetic: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[mmkd.Run, Exported]:
    """A run of every kind, and its export."""
    place = tmp_path_factory.mktemp("shipped")
    recipe = recipe_of(synthetic, *RECIPES[request.param], "training.epochs=1")
    run = mmkd.train(recipe, folder=place / request.param)
    return run, run.export(place / "out", onnx=True)


@pytest.fixture(scope="module")
def service(kdsr: mmkd.Run, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return kdsr.export(tmp_path_factory.mktemp("service") / "out", onnx=True, index="faiss")


@pytest.fixture
def made(service: Exported, monkeypatch: pytest.MonkeyPatch) -> ModelProto:
    """The graph of the service's encoder, which is not made again where it is asked for."""
    model = onnx.load(str(service.folder / "encoder.onnx"))
    monkeypatch.setattr(graphs, "encoder_graph", lambda towers: model)
    return model


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def histories(run: mmkd.Run) -> list[list[str]]:
    """Of the log, of one item, with an item twice, and longer than what is read."""
    ids, rng = run.items.ids, np.random.default_rng(3)
    real = [[ids[row] for row in run.data.split.sequence(user)] for user in (0, 7, 33)]
    drawn = [[ids[row] for row in rng.integers(1, len(ids), n)] for n in (1, 2, 5, 40)]
    return [*real, *drawn, [ids[4], ids[9], ids[4]]]


def padded(run: mmkd.Run, given: list[list[str]]) -> NDArray[np.int64]:
    length = max(map(len, given))
    return np.array([[0] * (length - len(one)) + [run.items.row(i) for i in one] for one in given])


def answer(folder: Path, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    session = InferenceSession(folder / "topk.onnx")
    return [np.asarray(one) for one in session.run(["items", "scores"], inputs)]


def test_every_backbone_and_ensemble_answers_as_the_run(
    shipped: tuple[mmkd.Run, Exported],
) -> None:
    """Lists of the graph beside the run's own, whatever is seen and allowed."""
    run, done = shipped
    assert done.difference is not None and done.difference <= 1e-4
    assert {*done.milliseconds} == {1, 32} and done.checked[0] > 100
    given, count = histories(run), len(run.items)
    allowed = np.arange(count + 1) % 7 != 3
    stock = [run.items.ids[row] for row in range(1, count + 1) if allowed[row]]
    wanted = run.recommend(given, k=8, allow=stock)
    rows = padded(run, given)
    found, scores = answer(done.folder, history=rows, seen=rows, allowed=allowed, k=np.array([8]))
    for place, (mine, own) in enumerate(zip(found, scores, strict=True)):
        theirs = wanted.filter(pl.col("query") == place)
        assert own.tolist() == pytest.approx(theirs["score"].to_list(), rel=1e-4, abs=1e-4)
        gaps = np.abs(np.diff(own, append=-np.inf, prepend=np.inf))
        clear = (gaps[:-1] > 1e-3) & (gaps[1:] > 1e-3)  # of ties the order is nobody's
        clear[-1] = False
        ids = np.array([run.items.ids[row] for row in mine])
        assert ids[clear].tolist() == theirs["item_id"].to_numpy()[clear].tolist()


def test_a_query_is_the_last_state_and_its_product_with_the_vectors_the_score(
    shipped: tuple[mmkd.Run, Exported],
) -> None:
    """From the files alone: encoder.onnx, vectors.safetensors, and plain numpy."""
    run, done = shipped
    about = json.loads((done.folder / "export.json").read_text("utf-8"))
    vectors = load_file(done.folder / "vectors.safetensors")["vectors"].astype(np.float64)
    session = InferenceSession(done.folder / "encoder.onnx")
    assert vectors.shape == tuple(about["vectors"]["shape"]) and not vectors[0].any()
    for one in histories(run):
        rows = padded(run, [one])
        query = session.run(["query"], {"history": rows})[0].astype(np.float64)
        found = run.recommend([one], k=len(run.items), exclude_seen=False).sort("item_id")
        wanted = dict(zip(found["item_id"], found["score"], strict=True))
        by_hand = _scores(query[0], vectors[1:], about)
        mine = dict(zip(run.items.ids[1:], by_hand, strict=True))
        assert [mine[i] for i in wanted] == pytest.approx([*wanted.values()], rel=1e-4, abs=1e-4)


def _scores(
    query: NDArray[np.float64], vectors: NDArray[np.float64], about: Mapping[str, Any]
) -> list[float]:
    """What export.json says, word by word."""
    if about["scores"]["rule"] == "inner product":
        return [float(one) for one in vectors @ query]
    total = np.zeros(len(vectors))
    for network in about["networks"]:
        start, stop = network["columns"]
        logits = vectors[:, start:stop] @ query[start:stop]
        total += network["weight"] * np.exp(logits) / np.exp(logits).sum()
    scores = np.log(total)
    offset = about["scores"]["untrained_offset"]
    if offset is not None:
        scores[np.array(offset["rows"], int) - 1] += offset["deviations"] * scores.std()
    return [float(one) for one in scores]


def test_the_files_say_what_is_in_them(kdsr: mmkd.Run, service: Exported) -> None:
    done, folder = service, service.folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(done.files)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask()}
    about = read_json(folder / "export.json")
    assert {*about["files"]} == {*done.files} - {"export.json"}
    for name, told in about["files"].items():
        assert told["sha256"] == file_digest(folder / name)
        assert told["bytes"] == (folder / name).stat().st_size
    assert about["run"]["weights_sha256"] == kdsr.folder.weights_digest()
    assert about["history"]["length_read"] == 12
    assert about["scores"]["untrained_offset"] is None
    assert about["graphs"]["topk.onnx"]["inputs"]["allowed"]["shape"] == [len(kdsr.items) + 1]
    assert about["index"]["kind"] == "Flat" and about["index"]["recall@10"] == done.recall

    vectors = load_file(folder / "vectors.safetensors")["vectors"]
    frame = pl.read_parquet(folder / "items.parquet")
    assert frame.columns == ["row", "id", "title", "vector"]
    assert frame["row"].to_list() == list(range(1, len(kdsr.items) + 1))
    assert frame["id"].to_list() == list(kdsr.items.ids[1:])
    assert frame["title"].to_list() == list(kdsr.items.titles[1:])
    np.testing.assert_array_equal(np.array(frame["vector"].to_list(), np.float32), vectors[1:])
    matrix = kdsr.student.networks[0].item_matrix().numpy()
    np.testing.assert_array_equal(vectors[1:], matrix)
    lines = (folder / "items.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == frame.drop("vector").to_dicts()


@pytest.mark.parametrize(
    ("spec", "kind"), [("faiss", "Flat"), ("HNSW8", "HNSW8"), ("IVF2,SQ8", None)]
)
def test_an_index_gives_rows_by_inner_product(
    kdsr: mmkd.Run, tmp_path: Path, spec: str, kind: str | None
) -> None:
    done = kdsr.export(tmp_path / "out", index=spec)
    assert done.index == (kind or spec) and done.difference is None
    assert not (tmp_path / "out" / "encoder.onnx").exists()
    assert done.recall is not None and done.recall > (0.999 if kind == "Flat" else 0.9)
    index = faiss.read_index(str(tmp_path / "out" / "index.faiss"))
    vectors = load_file(tmp_path / "out" / "vectors.safetensors")["vectors"]
    query = np.random.default_rng(0).normal(size=(6, vectors.shape[1])).astype(np.float32)
    scores, rows = index.search(query, 5)
    wanted = np.argsort(-(query @ vectors[1:].T), axis=1)[:, :5] + 1
    share = np.mean([len({*a} & {*b}) / 5 for a, b in zip(rows, wanted, strict=True)])
    assert share == 1 if kind == "Flat" else share > 0.8
    if kind == "Flat":
        np.testing.assert_allclose(scores[:, 0], (query * vectors[rows[:, 0]]).sum(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "told"),
    [("Nonsense", "--index 'Nonsense' is no FAISS"), ("IVF4096,Flat", "fewer lists")],
)
def test_an_index_that_does_not_fit_leaves_nothing(
    kdsr: mmkd.Run, tmp_path: Path, spec: str, told: str
) -> None:
    with pytest.raises(RunError, match=told):
        kdsr.export(tmp_path / "out", index=spec)
    assert not list(tmp_path.iterdir())


def test_probabilities_have_no_index_and_the_remedy_is_named(
    synthetic: list[str], tmp_path: Path
) -> None:
    recipe = recipe_of(synthetic, *PROBABILITIES, "training.epochs=1")
    run = mmkd.train(recipe, folder=tmp_path / "mix")
    with pytest.raises(RunError, match=r"no inner product gives.*mmkd compress"):
        run.export(tmp_path / "out", index="faiss")
    assert not (tmp_path / "out").exists()


def test_what_stands_there_is_kept(kdsr: mmkd.Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty one may be used
    kdsr.export(out)
    with pytest.raises(RunError, match="holds an export; give --force"):
        kdsr.export(out)
    kdsr.export(out, index="Flat", force=True)
    assert (out / "index.faiss").is_file()
    kdsr.export(out, force=True)
    assert not (out / "index.faiss").exists() and [*tmp_path.iterdir()] == [out]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds notes\.txt beside an export"):
        kdsr.export(out, force=True)
    assert (out / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter").write_text("dear")
    for force in (False, True):
        with pytest.raises(RunError, match="holds letter and no export"):
            kdsr.export(other, force=force)
    with pytest.raises(RunError, match="is no folder"):
        kdsr.export(other / "letter", force=True)


def test_a_graph_that_answers_otherwise_is_not_written(
    kdsr: mmkd.Run, tmp_path: Path, made: ModelProto
) -> None:
    """One weight of a thousand moved by a hundredth."""
    weight = max(made.graph.initializer, key=lambda one: len(one.raw_data))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[1:, 0] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(RunError, match=r"differ from torch's by .* nothing was written"):
        kdsr.export(tmp_path / "out", onnx=True)
    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_the_earlier_export(
    kdsr: mmkd.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kdsr.export(tmp_path / "out")
    before = read_json(tmp_path / "out" / "export.json")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_sealed_json", full)
    with pytest.raises(RunError, match="No space left"):
        kdsr.export(tmp_path / "out", force=True)
    assert read_json(tmp_path / "out" / "export.json") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_large_weights_lie_beside_the_graph(
    kdsr: mmkd.Run, tmp_path: Path, made: ModelProto
) -> None:
    towers = Retrieval(kdsr.student)
    graphs.save_graph(made, tmp_path / "encoder.onnx", external_bytes=0)
    assert (tmp_path / "encoder.onnx.data").stat().st_size > towers.vectors.nbytes / 2
    session = graphs.session(tmp_path / "encoder.onnx", threads=1)
    history = np.array([[0, 3, 5]])
    found = graphs.run(session, history=history)[0]
    np.testing.assert_allclose(found, towers(torch.from_numpy(history)).numpy(), atol=1e-5)


def test_a_moved_log_leaves_random_histories_to_check_on(
    kdsr: mmkd.Run, tmp_path: Path, made: ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mmkd.load(kdsr.folder.path)

    def gone(_: mmkd.Run) -> None:
        raise RunError("moved")

    monkeypatch.setattr(mmkd.Run, "data", property(gone))
    done = run.export(tmp_path / "out", onnx=True)
    assert done.checked[0] == 0 and done.checked[1] > 20 and done.difference is not None


def test_without_onnx_it_is_named(
    kdsr: mmkd.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MmkdError, match=r"pip install 'mmkd\[onnx\]'"):
        kdsr.export(tmp_path / "out", onnx=True)
    kdsr.export(tmp_path / "out", index="faiss")  # which needs none


BLOCKED = """
import importlib.abc, runpy, sys
class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mmkd", "torch", "polars", "pyarrow", "transformers"}:
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Wall())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def example(name: str) -> str:
    """A block of docs/export.md, word for word."""
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text("utf-8")
    start = page.index(f'```python title="{name}"\n') + len(f'```python title="{name}"\n')
    return page[start : page.index("```", start)]


@pytest.mark.parametrize("name", ["recommend.py", "search.py"])
def test_the_documented_script_prints_the_runs_list_without_mmkd(
    kdsr: mmkd.Run, service: Exported, tmp_path: Path, name: str
) -> None:
    code = example(name)
    assert len(code.splitlines()) <= 24 and "mmkd" not in code and "torch" not in code
    (tmp_path / name).write_text(code)
    for user in (0, 5):
        ids = [kdsr.items.ids[row] for row in kdsr.data.split.sequence(user)]
        command = [sys.executable, "-c", BLOCKED, name, str(service.folder), ",".join(ids)]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        wanted = kdsr.recommend([ids], k=10)["title"].to_list()
        assert found.stdout.splitlines() == wanted


def test_a_run_with_added_items_is_exported_with_them(kdsr: mmkd.Run, tmp_path: Path) -> None:
    new = mmkd.ItemTable(
        ids=["", "N1"], titles=["", "Red teapot"], text=[None, "A red teapot of clay"],
        image_path=[None, None], attributes=[[], []],
    )  # fmt: skip
    grown = kdsr.add_items(new, out=tmp_path / "tomorrow")
    done = grown.export(tmp_path / "out", onnx=True)
    assert done.items == len(kdsr.items) + 1 and done.checked[0] == 0
    rows = padded(grown, [["N1", grown.items.ids[2]]])
    found, _ = answer(
        tmp_path / "out",
        history=rows,
        seen=np.zeros((1, 0), np.int64),
        allowed=np.ones(done.items + 1, bool),
        k=np.array([done.items + 1]),
    )
    assert sorted(found[0]) == list(range(done.items + 1))  # all once, and padding as the end


def test_an_old_run_is_exported(tmp_path: Path) -> None:
    fixture = Path(__file__).parents[1] / "fixtures" / "release_0_1"
    for folder in sorted(path.parent for path in fixture.rglob("result.json")):
        done = mmkd.load(folder).export(tmp_path / folder.name, index="faiss")
        assert done.recall is not None and done.recall > 0.99


def test_the_command_line_exports_and_says_so(kdsr: mmkd.Run, tmp_path: Path) -> None:
    given = ("export", kdsr.folder.path, "--out", tmp_path / "out", "--index", "Flat")
    told = invoke(*given).stdout
    assert told.startswith(
        f"{tmp_path / 'out'}: {len(kdsr.items)} items, vectors of 16; index.faiss"
    )
    assert "Flat finds 100.0% of the ten best items" in told
    with pytest.raises(RunError, match="give --force to replace it"):
        invoke(*given)
    found = printed(*given, "--force")
    assert found["folder"] == str(tmp_path / "out") and found["index"] == "Flat"
    assert found["difference"] is None and "export.json" in found["files"]
