"""Rows of pictures: which files are read, and that no broken one moves another's vector."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from embeddings.fakes import FakeImage, card, catalogue, image_vector, never
from PIL import Image

from mmkd import EmbeddingCache, EmbeddingTable
from mmkd.embeddings.inputs import FileKeys, content_key

RED = (200, 20, 30)


def pictures(folder: Path, count: int = 20) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for n in range(count):
        paths.append(folder / f"{n}.png")
        Image.new("RGB", (n + 2, 3), (n * 10, 5, 250 - n)).save(paths[-1])
        settle(paths[-1])
    return paths


def settle(path: Path, ago_s: float = 60.0) -> None:
    """Dates a file back: a file changed just now is never trusted to stay as it is."""
    when = time.time() - ago_s
    os.utime(path, (when, when))


def check(table: EmbeddingTable, paths: list[Path | None], absent: set[int]) -> None:
    for row, path in enumerate(paths, 1):
        assert table.present[row] == (row not in absent)
        if row not in absent and path is not None:
            with Image.open(path) as image:
                wanted = image_vector(image.convert("RGB"))
            np.testing.assert_array_equal(table.vectors[row], wanted)
        else:
            assert not table.vectors[row].any()


def test_broken_and_missing_pictures_never_shift_a_row(
    cache: EmbeddingCache, tmp_path: Path
) -> None:
    paths: list[Path | None] = [*pictures(tmp_path / "images")]
    (tmp_path / "folder.png").mkdir()
    for row, data in {3: b"", 4: b"no picture", 9: b"\x89PNG\r\n\x1a\n" + bytes(60)}.items():
        path = paths[row - 1]
        assert path is not None
        path.write_bytes(data)
    paths[6], paths[16] = None, tmp_path / "folder.png"
    paths[19] = tmp_path / "nowhere" / "x.png"
    items = catalogue(images=paths)
    table = cache.table(card("FakeImage"), items, encoder_factory=FakeImage, batch_size=4)
    check(table, paths, {3, 4, 7, 9, 17, 20})
    reasons = {item.row: (item.status, item.reason) for item in cache.absent(table)}
    assert {row: status for row, (status, _) in reasons.items()} == {
        3: "failed", 4: "failed", 7: "missing", 9: "failed", 17: "failed", 20: "missing",
    }  # fmt: skip
    for row, reason in {3: "empty", 4: "not a picture", 7: "no image path", 20: "no such"}.items():
        assert reason in reasons[row][1]
    cache.table(card("FakeImage"), items, encoder_factory=never)


def test_unchanged_files_are_not_read_again(
    cache: EmbeddingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.embeddings.inputs.SETTLED_NS", 0)
    items = catalogue(images=pictures(tmp_path / "images"))
    cache.table(card("FakeImage"), items, encoder_factory=FakeImage)
    reads: list[Path] = []
    read_bytes = Path.read_bytes

    def counting(path: Path) -> bytes:
        reads.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counting)
    cache.table(card("FakeImage"), items, encoder_factory=never)
    assert not [path for path in reads if path.suffix == ".png"]


def test_changed_touched_and_moved_files(cache: EmbeddingCache, tmp_path: Path) -> None:
    paths: list[Path | None] = [*pictures(tmp_path / "images")]
    cache.table(card("FakeImage"), catalogue(images=paths), encoder_factory=FakeImage)
    first, second, third = paths[:3]
    assert first and second and third
    settle(first, 30)  # touched: read once more, the same content
    moved = tmp_path / "moved.png"
    second.rename(moved)
    paths[1] = moved
    cache.table(card("FakeImage"), catalogue(images=paths), encoder_factory=never)
    Image.new("RGB", (40, 40), RED).save(third)
    encoder = FakeImage()
    table = cache.table(card("FakeImage"), catalogue(images=paths), encoder_factory=lambda: encoder)
    assert encoder.seen == [(40, 40)]
    check(table, paths, set())


def test_a_file_changed_within_a_moment_is_noticed(cache: EmbeddingCache, tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    Image.new("RGB", (9, 9), RED).save(path)
    stat = path.stat()
    cache.table(card("FakeImage"), catalogue(images=[path]), encoder_factory=FakeImage)
    Image.new("RGB", (9, 9), (1, 2, 3)).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a coarse clock would have it
    table = cache.table(card("FakeImage"), catalogue(images=[path]), encoder_factory=FakeImage)
    check(table, [path], set())


def test_file_names_that_are_no_utf8(cache: EmbeddingCache, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    Image.new("RGB", (9, 9), RED).save(path)
    settle(path)
    paths: list[Path | None] = [path, path.with_suffix(".gif"), tmp_path / "null\0byte"]
    items = catalogue(images=paths)
    table = cache.table(card("FakeImage"), items, encoder_factory=FakeImage)
    check(table, paths, {2, 3})
    assert "caf\\udce9.gif" in cache.absent(table)[0].reason
    cache.table(card("FakeImage"), items, encoder_factory=never)


def test_a_file_replaced_between_hashing_and_decoding(
    cache: EmbeddingCache, tmp_path: Path
) -> None:
    """The vector is filed under the content it was made from."""
    paths = pictures(tmp_path / "images", 3)
    old = paths[1].read_bytes()

    def factory() -> FakeImage:
        Image.new("RGB", (50, 50), RED).save(paths[1])
        paths[2].unlink()
        return FakeImage()

    table = cache.table(card("FakeImage"), catalogue(images=paths), encoder_factory=factory)
    check(table, [*paths], {3})
    paths[1].write_bytes(old)
    table = cache.table(card("FakeImage"), catalogue(images=paths[:2]), encoder_factory=FakeImage)
    check(table, [*paths[:2]], set())


@pytest.mark.parametrize("replaced", [False, True], ids=["written over", "renamed over"])
def test_a_file_that_keeps_size_and_time_of_change_is_read_again(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an archive that is unpacked over pictures leaves them."""
    monkeypatch.setattr("mmkd.embeddings.inputs.SETTLED_NS", 0)
    file, store = tmp_path / "p.png", tmp_path / "files.parquet"
    file.write_bytes(b"one")
    stat = file.stat()
    assert FileKeys(store).keys([file]) == {file: content_key(b"one")}
    time.sleep(0.01)  # a coarse clock's tick
    written = tmp_path / "new" if replaced else file
    written.write_bytes(b"two")
    os.utime(written, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(written, file)
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert FileKeys(store).keys([file]) == {file: content_key(b"two")}
