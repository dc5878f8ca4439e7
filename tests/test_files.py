"""Files: replaced whole, readable like any other, by one writer at a time."""

import json
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import save_file

from mmkd import files
from mmkd.column_files import ParquetColumns, read_any_parquet, read_parquet, write_parquet
from mmkd.files import (
    file_checksum,
    open_plain,
    read_json,
    read_yaml,
    remove_temporaries,
    replacing,
    replacing_folder,
    write_json,
    write_sealed_json,
    write_text,
    writer_lock,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError), replacing(path / "b"):
        pass
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_disk_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(call, fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "new", "x")
    assert list(tmp_path.iterdir()) == []


def plain(path: Path) -> None:
    path.write_text("x")


def by_tempfile(path: Path) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    os.replace(name, path)


def by_safetensors(path: Path) -> None:
    save_file({"x": torch.zeros(2)}, path)


@pytest.mark.parametrize("write", [plain, by_tempfile, by_safetensors])
@pytest.mark.parametrize(("umask", "wanted"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_who_may_read_a_file_is_up_to_the_umask(
    tmp_path: Path, write: Callable[[Path], None], umask: int, wanted: int
) -> None:
    before = os.umask(umask)
    try:
        for _ in range(2):  # a new file, and one that is replaced
            with replacing(tmp_path / "file") as temporary:
                write(temporary)
            assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == wanted
    finally:
        os.umask(before)


def test_the_file_and_the_names_on_the_way_to_it_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append(path.name))
    write_text(tmp_path / "a" / "b" / "file", "x")
    assert synced[0].startswith(".file.") and synced[0].endswith(".tmp")
    assert synced[1:] == ["b", "a", tmp_path.name]
    synced.clear()
    write_text(tmp_path / "a" / "b" / "file", "y")
    assert synced[1:] == ["b"]


def test_what_killed_writers_left_goes_once_it_is_old(tmp_path: Path) -> None:
    left = tmp_path / ".file.1-2.tmp"
    left.touch()
    (tmp_path / "file").touch()
    remove_temporaries(tmp_path)
    assert left.exists()
    os.utime(left, (0, 0))
    remove_temporaries(tmp_path)
    remove_temporaries(tmp_path / "no such folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_flip_is_told_also_where_much_stands_behind_the_seal(tmp_path: Path) -> None:
    """Of each column Parquet notes something behind the seal: here many kB."""
    path = tmp_path / "wide.parquet"
    write_parquet(path, pl.DataFrame({f"column {n}": [n] for n in range(1200)}))
    content = path.read_bytes()
    seal = content.rindex(b"mmkd.sha256")
    assert len(content) - seal > 4096 and read_parquet(path)[0].width == 1200
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    # a letter of a column's name, a row count, the seal itself, and any byte
    places = [
        content.index(b"column 999", footer),
        seal,
        seal + 3,
        *range(7, len(content), 16_001),
    ]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(ValueError):
            read_parquet(path)


def test_json_is_an_object_with_the_keys_it_must_have(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "päper", "n": 1})
    assert read_json(path, "n") == {"name": "päper", "n": 1} == json.loads(path.read_text("utf-8"))
    with pytest.raises(ValueError, match="lacks m"):
        read_json(path, "n", "m")
    path.write_text("[1]")
    with pytest.raises(ValueError, match="no JSON object"):
        read_json(path)


def test_yaml_is_a_mapping_whose_numbers_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("lr: 1e-3\nseed: 4\ncopy: ${seed}\n")
    assert read_yaml(path) == {"lr": 1e-3, "seed": 4, "copy": "${seed}"}
    assert read_yaml(path, resolve=True)["copy"] == 4
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="holds a list"):
        read_yaml(path)


def test_one_byte_changes_a_checksum_and_an_empty_file_has_none(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"123456789")
    assert file_checksum(path) == 0xCBF43926  # the check value of CRC-32
    path.write_bytes(b"123456788")
    assert file_checksum(path) != 0xCBF43926
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        file_checksum(path)


def test_a_second_writer_waits(tmp_path: Path) -> None:
    entered = threading.Event()

    def second() -> None:
        with writer_lock(tmp_path):
            entered.set()

    thread = threading.Thread(target=second)
    with writer_lock(tmp_path):
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    thread.join()
    (tmp_path / "file").touch()
    with pytest.raises(OSError), writer_lock(tmp_path / "file"):
        pass


@pytest.mark.parametrize("value", ["!!int abc", "!!float x", "!!timestamp 2024-13-450", "!!int []"])
def test_a_yaml_value_that_is_none_of_its_tag_is_told(value: str, tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(f"a: {value}\n")
    with pytest.raises((ValueError, yaml.YAMLError)):
        read_yaml(file)


def test_any_flipped_bit_of_a_sealed_file_is_noticed(tmp_path: Path) -> None:
    path, content = tmp_path / "a.json", {"a": 1, "b": {"c": "x" * 64}, "d": [0.5, None]}
    write_sealed_json(path, content)
    assert read_json(path) == content
    frame = pl.DataFrame({"n": [1, 2, 3], "t": ["a", None, "b" * 64], "l": [["x"], [], None]})
    write_parquet(tmp_path / "a.parquet", frame, {"mmkd.about": {"k": [1]}})
    read, about = read_parquet(tmp_path / "a.parquet")
    assert read.equals(frame) and about == {"mmkd.about": {"k": [1]}}
    assert pl.read_parquet(tmp_path / "a.parquet").equals(frame)  # any reader's
    for sealed, again in ((path, read_json), (tmp_path / "a.parquet", read_parquet)):
        sound = sealed.read_bytes()
        for place in range(0, len(sound), 1 if sealed is path else 7):
            for bit in range(8):
                flipped = bytearray(sound)
                flipped[place] ^= 1 << bit
                sealed.write_bytes(flipped)
                with pytest.raises(ValueError):
                    again(sealed)
        sealed.write_bytes(sound)
        again(sealed)


def test_what_an_earlier_version_left_unsealed_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json", "a") == {"a": 1}
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "a.parquet")
    assert read_parquet(tmp_path / "a.parquet", ["a"])[0]["a"].to_list() == [1]
    with pytest.raises(ValueError, match="lacks b"):
        read_parquet(tmp_path / "a.parquet", ["a", "b"])


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe, listening = tmp_path / "pipe", socket.socket(socket.AF_UNIX)
    os.mkfifo(pipe)
    listening.bind(str(tmp_path / "socket"))
    for path in (pipe, tmp_path / "socket", Path("/dev/zero"), Path("/dev/tty")):
        if path.exists():
            with pytest.raises(OSError, match="not a plain file"):
                open_plain(path)
            with pytest.raises(OSError, match="not a plain file"):
                read_json(path)
    listening.close()
    with pytest.raises(IsADirectoryError):
        open_plain(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    (tmp_path / "plain").write_bytes(b"x")
    with open_plain(tmp_path / "link") as file:
        assert file.read() == b"x"


@pytest.mark.parametrize("row", range(3))
def test_damaged_parquet_of_a_stranger_takes_no_process_down(tmp_path: Path, row: int) -> None:
    frame = pl.DataFrame({"u": [f"u{n % 17}" for n in range(90)], "l": [["a", None]] * 90})
    frame = frame.with_columns(n=pl.int_range(90), when=pl.lit(0).cast(pl.Datetime("us")))
    path = tmp_path / "a.parquet"
    frame.write_parquet(path)
    assert read_any_parquet(path).equals(frame)
    assert read_any_parquet(path.read_bytes()).equals(frame)
    sound, draw = path.read_bytes(), np.random.default_rng(row)
    for _ in range(100):
        damaged = bytearray(sound)
        damaged[int(draw.integers(len(sound)))] ^= 1 << int(draw.integers(8))
        path.write_bytes(damaged[: int(draw.integers(1, len(sound)))] if row == 2 else damaged)
        with suppress(OSError, ValueError, pa.ArrowException):
            read_any_parquet(path).to_dicts()


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with replacing_folder(target) as new:
        (new / "a").write_text("1")
        assert not target.exists() and new.parent == target.parent
    assert (target / "a").read_text() == "1"
    with pytest.raises(KeyError), replacing_folder(target) as new:
        (new / "b").write_text("2")
        raise KeyError
    assert [file.name for file in target.iterdir()] == ["a"]
    with replacing_folder(target) as new:
        (new / "b").write_text("2")
    assert [file.name for file in target.iterdir()] == ["b"]
    assert [one.name for one in target.parent.iterdir()] == ["out"]


def test_what_a_killed_writer_of_a_folder_left_goes_with_the_next(tmp_path: Path) -> None:
    old, living = tmp_path / ".out.9-aa.tmp", tmp_path / ".out.9-bb.tmp"
    for folder in (old, living):
        folder.mkdir()
    os.utime(old, (0, 0))
    with replacing_folder(tmp_path / "out"):
        pass
    assert not old.exists() and living.exists() and (tmp_path / "out").is_dir()


@pytest.mark.slow
def test_texts_of_a_column_may_take_more_than_two_gigabytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some 6 GiB of memory: offsets of 32 bits reach no further."""
    monkeypatch.setattr(files, "_GROUP_ROWS", 64)
    long = "x" * (4 << 20)
    parts = (pl.DataFrame({"user": [f"{n % 540}{long}"]}) for n in range(545))
    columns = ParquetColumns.of_parts(pl.DataFrame(schema={"user": pl.String}), parts)
    codes, texts = columns.coded("user")
    assert texts.str.len_bytes().sum() > 2**31
    assert codes.tolist() == [*range(540), *range(5)]
    assert texts.str.slice(0, 4).str.strip_chars("x").to_list() == [str(n) for n in range(540)]
