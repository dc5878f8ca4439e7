"""A user's own vectors: the numbers of the file, by id or by row, and nothing made up."""

import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from mmkd import EncoderCard, MmkdError, load_card
from mmkd.encoders.precomputed import PrecomputedEncoder
from mmkd.errors import EncoderError

IDS = ["B00A", "007", "7", "dés"]
VECTORS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def card(model: Path | str, *, normalize: bool = False, **options: Any) -> EncoderCard:
    return EncoderCard(
        name="p",
        modality="image",
        kind="precomputed",
        model=str(model),
        normalize=normalize,
        options={name: str(value) for name, value in options.items()},
    )


def look_up(model: Path, inputs: list[str], **options: Any) -> NDArray[np.float32]:
    return card(model, **options).build().encode(inputs)


@pytest.fixture
def npy(tmp_path: Path) -> Path:
    np.save(tmp_path / "image_feat.npy", VECTORS)
    return tmp_path / "image_feat.npy"


def test_rows_follow_the_catalogue_without_ids(npy: Path) -> None:
    assert card(npy).reads == "row"
    np.testing.assert_array_equal(look_up(npy, ["3", "1", "3"]), VECTORS[[2, 0, 2]])
    encoder = card(npy).build()
    assert encoder.dim == 3
    assert encoder.modality == "image"


@pytest.mark.parametrize("row", ["0", "5", "-1", "B00A", "1.0", "², "])
def test_a_row_that_the_file_has_not_is_an_error(npy: Path, row: str) -> None:
    with pytest.raises(EncoderError, match=r"not one of .*image_feat.npy's 4 rows"):
        look_up(npy, ["1", row])


def test_number_of_rows_must_be_the_catalogues(npy: Path, tmp_path: Path) -> None:
    encoder = card(npy).build()
    assert isinstance(encoder, PrecomputedEncoder)
    encoder.check_catalogue(4)
    with pytest.raises(EncoderError, match=r"has 4 rows, the catalogue 5 items"):
        encoder.check_catalogue(5)
    (tmp_path / "ids.txt").write_text("\n".join(IDS), encoding="utf-8")
    by_id = card(npy, ids=tmp_path / "ids.txt").build()
    assert isinstance(by_id, PrecomputedEncoder)
    by_id.check_catalogue(5)  # ids say which item a row is


def test_ids_of_every_sort_of_file(npy: Path, tmp_path: Path) -> None:
    table = pl.DataFrame({"asin": IDS, "itemID": [0, 1, 2, 3]})
    (tmp_path / "ids.txt").write_text("\n".join(IDS) + "\n", encoding="utf-8")
    table.write_csv(tmp_path / "ids.csv")
    # MMRec's mapping: parted by tabs, whatever its name says
    table.write_csv(tmp_path / "i_id_mapping.csv", separator="\t")
    table.write_parquet(tmp_path / "ids.parquet")
    wanted = VECTORS[[3, 1, 2]]
    np.testing.assert_array_equal(
        look_up(npy, ["dés", "007", "7"], ids=tmp_path / "ids.txt"), wanted
    )
    for name in ("ids.csv", "i_id_mapping.csv", "ids.parquet"):
        found = look_up(npy, ["dés", "007", "7"], ids=tmp_path / name, id_column="asin")
        np.testing.assert_array_equal(found, wanted)
    assert card(npy, ids=tmp_path / "ids.txt").reads == "id"


def test_unknown_ids_and_rows_that_are_not_finite_give_nan(tmp_path: Path) -> None:
    vectors = VECTORS.astype(np.float64)
    vectors[1, 2], vectors[2, 0], vectors[3, 1] = np.nan, -np.inf, 1e300
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "ids.txt").write_text("\n".join(IDS), encoding="utf-8")
    found = look_up(tmp_path / "v.npy", ["B00A", "unknown", *IDS[1:]], ids=tmp_path / "ids.txt")
    np.testing.assert_array_equal(found[0], VECTORS[0])
    assert np.isnan(found[1:]).all()
    unit = card(tmp_path / "v.npy", normalize=True).build().encode(["1", "2"])
    np.testing.assert_allclose(unit[0], VECTORS[0] / np.linalg.norm(VECTORS[0]), rtol=1e-6)
    assert np.isnan(unit[1]).all()


def test_parquet_with_a_column_of_lists(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    lists = [VECTORS[0].tolist(), None, [], VECTORS[3].tolist()]
    pl.DataFrame({"item": IDS, "title": IDS, "vector": lists}).write_parquet(path)
    assert card(path, id_column="item").reads == "id"
    found = look_up(path, ["dés", "B00A", "007", "7"], id_column="item")
    np.testing.assert_array_equal(found[:2], VECTORS[[3, 0]])
    assert np.isnan(found[2:]).all()
    by_row = look_up(path, ["4"], vector_column="vector")
    np.testing.assert_array_equal(by_row, VECTORS[[3]])


def test_parquet_with_numeric_columns(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    columns = {f"x{i}": VECTORS[:, i].tolist() for i in range(3)}
    columns["x1"][2] = None
    pl.DataFrame({"item": IDS, **columns}).write_parquet(path)
    found = look_up(path, IDS, id_column="item")
    np.testing.assert_array_equal(found[[0, 1, 3]], VECTORS[[0, 1, 3]])
    assert np.isnan(found[2]).all()


@pytest.mark.parametrize("index", ["__index_level_0__", "__index_level_12__"])
def test_the_index_of_pandas_is_no_feature(tmp_path: Path, index: str) -> None:
    path = tmp_path / "v.parquet"
    columns = {f"f{i}": VECTORS[:, i] for i in range(3)}
    pl.DataFrame({"item": IDS, **columns, index: [9, 8, 7, 6]}).write_parquet(path)
    np.testing.assert_array_equal(look_up(path, IDS, id_column="item"), VECTORS)


def test_columns_that_only_happen_to_be_numeric_are_no_features(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    columns = {f"f{i}": VECTORS[:, i] for i in range(3)}
    for odd in ("price", "Unnamed: 0", "g7"):
        pl.DataFrame({"item": IDS, odd: [9, 8, 7, 6], **columns}).write_parquet(path)
        with pytest.raises(EncoderError, match=f"column '{odd}' is not numbered as.*such as f0"):
            look_up(path, IDS, id_column="item")
        for named in ("f*", "f2, f0,f1"):
            found = look_up(path, IDS, id_column="item", vector_columns=named)
            np.testing.assert_array_equal(found, VECTORS)
    with pytest.raises(EncoderError, match="no column is 'h\\*' "):
        look_up(path, IDS, id_column="item", vector_columns="f*, h*")


def test_a_mapping_says_which_row_an_id_has(npy: Path, tmp_path: Path) -> None:
    mapping = pl.DataFrame({"asin": [IDS[row] for row in (2, 0, 3)], "itemID": [2, 0, 3]})
    mapping.write_csv(tmp_path / "ids.csv")
    options = {"ids": tmp_path / "ids.csv", "id_column": "asin"}
    found = look_up(npy, [*IDS], row_column="itemID", **options)
    np.testing.assert_array_equal(found[[0, 2, 3]], VECTORS[[0, 2, 3]])
    assert np.isnan(found[1]).all()  # not in the mapping
    for rows, message in [
        ([2, 0, 4], "names row 4, but there are 4"),
        ([2, 0, -1], "'-1', wanted"),
    ]:
        mapping.with_columns(itemID=pl.Series(rows)).write_csv(tmp_path / "ids.csv")
        with pytest.raises(EncoderError, match=message):
            look_up(npy, IDS, row_column="itemID", **options)


def test_a_mapping_in_another_order_is_not_read_as_the_rows_order(
    npy: Path, tmp_path: Path
) -> None:
    order = [3, 1, 0, 2]
    mapping = pl.DataFrame({"asin": [IDS[row] for row in order], "itemID": order})
    mapping.write_csv(tmp_path / "ids.csv", separator="\t")
    options = {"ids": tmp_path / "ids.csv", "id_column": "asin"}
    with pytest.raises(
        EncoderError, match=r"'itemID' numbers the rows in another order.*row_column"
    ):
        look_up(npy, IDS, **options)
    np.testing.assert_array_equal(look_up(npy, IDS, row_column="itemID", **options), VECTORS)


def test_ids_that_are_the_numbers_of_rows_themselves_are_ids(npy: Path, tmp_path: Path) -> None:
    ids = ["3", "1", "0", "2"]
    pl.DataFrame({"item": ids}).write_csv(tmp_path / "ids.csv")
    pl.DataFrame({"item": ids}).write_parquet(tmp_path / "ids.parquet")
    for name in ("ids.csv", "ids.parquet"):
        np.testing.assert_array_equal(look_up(npy, ids, ids=tmp_path / name), VECTORS)


def test_a_repeated_id_among_many_is_found_at_once(tmp_path: Path) -> None:
    ids = [str(n) for n in range(60_000)]
    np.save(tmp_path / "v.npy", np.ones((60_001, 1), np.float32))
    (tmp_path / "ids.txt").write_text("\n".join([*ids, "59999"]), encoding="utf-8")
    start = time.process_time()
    with pytest.raises(EncoderError, match="id '59999' is there twice"):
        look_up(tmp_path / "v.npy", ["1"], ids=tmp_path / "ids.txt")
    assert time.process_time() - start < 5  # each id compared with all before it: a minute


def test_an_id_may_hold_what_ends_lines_elsewhere(npy: Path, tmp_path: Path) -> None:
    ids = ["a\u2028b", " c", "d\x0b", "e"]
    (tmp_path / "ids.txt").write_text("\r\n".join(ids) + "\r\n", encoding="utf-8")
    np.testing.assert_array_equal(look_up(npy, ids, ids=tmp_path / "ids.txt"), VECTORS)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e20, 1e37])
def test_unit_vectors_do_not_depend_on_the_scale(tmp_path: Path, scale: float) -> None:
    np.save(tmp_path / "v.npy", VECTORS * np.float32(scale))
    found = card(tmp_path / "v.npy", normalize=True).build().encode(["1", "2", "3", "4"])
    wanted = VECTORS / np.linalg.norm(VECTORS.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int32])
def test_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "v.safetensors"
    tensor = (10 * torch.from_numpy(VECTORS)).to(dtype)
    save_file({"image": tensor, "text": torch.zeros(4, 2)}, path)
    found = look_up(path, ["1", "2", "3", "4"], tensor="image")
    np.testing.assert_array_equal(found, tensor.float().numpy())
    with pytest.raises(EncoderError, match=r"holds 2 tensors \(image, text\); name one"):
        look_up(path, ["1"])
    with pytest.raises(EncoderError, match="did you mean 'image'"):
        look_up(path, ["1"], tensor="imag")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    np.save(tmp_path / "objects.npy", np.array([[Attack()]], dtype=object), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Attack()))
    for name in ("objects.npy", "bare.npy"):
        with pytest.raises(EncoderError, match="pickles are never loaded"):
            look_up(tmp_path / name, ["1"])
    assert not marker.exists()


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((2, 3, 4)), np.zeros((0, 3))])
def test_wrong_shape_is_named(tmp_path: Path, array: NDArray[np.float64]) -> None:
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(EncoderError, match=r"wanted \[items, dim\]"):
        look_up(tmp_path / "v.npy", ["1"])


def test_wrong_ids_are_named(npy: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    for text, message in [
        ("a\nb\na\nc", "id 'a' is there twice"),
        ("a\nb\nc", "3 ids for 4 vectors"),
        ("a\n\nb\nc", r"ids\.txt: .* is empty in row 2; give each row an id"),
    ]:
        ids.write_text(text, encoding="utf-8")
        with pytest.raises(MmkdError, match=message):
            look_up(npy, ["a"], ids=ids)
    ids.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EncoderError, match="cannot be read as UTF-8"):
        look_up(npy, ["a"], ids=ids)


def test_wrong_columns_and_files_are_named(npy: Path, tmp_path: Path) -> None:
    table = tmp_path / "v.parquet"
    frame = pl.DataFrame({"item": IDS, "x": [1.0] * 4, "ragged": [[1.0], [1.0, 2.0], [3.0], []]})
    frame.write_parquet(table)
    for options, message in [
        ({"id_column": "itme"}, "no column 'itme'.*did you mean 'item'"),
        ({"id_column": "item"}, "vectors of 2 widths"),
        ({"vector_column": "x"}, "wanted lists of numbers"),
        ({"tensor": "x"}, "options.tensor has no effect on a .parquet"),
    ]:
        with pytest.raises(MmkdError, match=message):
            look_up(table, ["1"], **options)
    frame.drop("ragged").write_parquet(table)
    with pytest.raises(EncoderError, match="'item' holds no numbers; name the ids' column"):
        look_up(table, ["1"])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 3)
    for name in ("broken.parquet", "broken.safetensors"):
        with pytest.raises(MmkdError, match=f"{name}.*(cannot be read as|not a readable)"):
            look_up(tmp_path / name, ["1"])
    with pytest.raises(EncoderError, match="does not exist"):
        look_up(tmp_path / "none.npy", ["1"])
    with pytest.raises(EncoderError, match=r"not one of \.npy"):
        look_up(tmp_path / "v.pt", ["1"])
    with pytest.raises(EncoderError, match="is not a path"):
        card("org/name").build()


def test_contents_of_both_files_make_the_fingerprint(npy: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(IDS), encoding="utf-8")
    first = card(npy, ids=ids).fingerprint()
    moved = tmp_path / "moved.txt"
    moved.write_bytes(ids.read_bytes())
    assert card(npy, ids=moved).fingerprint() == first
    moved.write_text("\n".join(reversed(IDS)), encoding="utf-8")
    assert card(npy, ids=moved).fingerprint() != first
    np.save(tmp_path / "other.npy", VECTORS + 1)
    assert card(tmp_path / "other.npy", ids=ids).fingerprint() != first


def test_paths_are_relative_to_the_card(npy: Path, tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "i_id_mapping.csv").write_text(
        "asin\titemID\n" + "".join(f"{one}\t{row}\n" for row, one in enumerate(IDS)),
        encoding="utf-8",
    )
    (tmp_path / "cards" / "mmrec.yaml").write_text(
        "modality: image\nkind: precomputed\nmodel: ../image_feat.npy\n"
        "options: {ids: ../i_id_mapping.csv, id_column: asin}\n",
        encoding="utf-8",
    )
    loaded = load_card(str(tmp_path / "cards" / "mmrec.yaml"))
    np.testing.assert_array_equal(loaded.build().encode(["007"]), VECTORS[[1]])


def test_other_kinds_read_content() -> None:
    assert load_card("minilm").reads == load_card("color-image").reads == "content"
