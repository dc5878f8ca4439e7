"""Archives that lead out of their folder, link, lie about their size, or are broken."""

import stat
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from published_files import zipped

from mmkd.errors import DataError
from mmkd.published.archives import read_member, unpack


def name_of(path: PurePosixPath) -> str | None:
    return path.name if path.suffix == ".jpg" else None


def unpacked(archive: Path, folder: Path, *, most_bytes: int = 1000, most_files: int = 10) -> int:
    return unpack(archive, folder, name_of, most_bytes=most_bytes, most_files=most_files)


def test_what_is_wanted_comes_out_flat_and_is_not_written_twice(tmp_path: Path) -> None:
    members = {"a/1.jpg": b"one", "a/b/2.jpg": b"two", "a/readme.txt": b"no", "a/": b""}
    archive = zipped(tmp_path / "covers.zip", members)
    assert unpacked(archive, tmp_path / "out") == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        "1.jpg": b"one",
        "2.jpg": b"two",
    }
    before = (tmp_path / "out" / "1.jpg").stat().st_mtime_ns
    (tmp_path / "out" / "2.jpg").write_bytes(b"t")  # one that was cut short
    unpacked(archive, tmp_path / "out")
    assert (tmp_path / "out" / "1.jpg").stat().st_mtime_ns == before
    assert (tmp_path / "out" / "2.jpg").read_bytes() == b"two"


@pytest.mark.parametrize(
    "name", ["../1.jpg", "/etc/1.jpg", "a/../../1.jpg", "..\\1.jpg", "\\1.jpg", "C:/1.jpg"]
)
def test_a_path_out_of_the_archive_refuses_all_of_it(tmp_path: Path, name: str) -> None:
    archive = zipped(tmp_path / "in" / "covers.zip", {"a/1.jpg": b"one", name: b"evil"})
    with pytest.raises(DataError, match="its path leaves the archive's folder"):
        unpacked(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*.jpg")] == []


def test_links_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "covers.zip"
    link = zipfile.ZipInfo("a/1.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="it is a link or a device"):
        unpacked(archive, tmp_path / "out")


def test_no_more_is_written_than_allowed_whatever_the_archive_says(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "covers.zip", {f"{n}.jpg": b"x" * 400 for n in range(4)})
    with pytest.raises(DataError, match="more than 10 files or 1,000 bytes"):
        unpacked(archive, tmp_path / "out")
    with pytest.raises(DataError, match="more than 2 files"):
        unpacked(archive, tmp_path / "out2", most_bytes=10**6, most_files=2)
    bomb = zipped(tmp_path / "bomb.zip", {"1.jpg": b"\0" * 1_000_000})
    content = bomb.read_bytes()
    told = (1_000_000).to_bytes(4, "little")
    bomb.write_bytes(content.replace(told, (10).to_bytes(4, "little")))  # both headers lie
    with pytest.raises(DataError):
        unpacked(bomb, tmp_path / "out3")
    assert sum(path.stat().st_size for path in (tmp_path / "out3").iterdir()) <= 1000
    with pytest.raises(DataError, match="is larger than 100 bytes"):
        read_member(archive, "1.jpg", most_bytes=100)


def test_what_is_no_archive_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "covers.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"covers\.zip: is no sound ZIP archive"):
        unpacked(tmp_path / "covers.zip", tmp_path / "out")
    whole = zipped(tmp_path / "whole.zip", {"1.jpg": bytes(range(256))})
    content = bytearray(whole.read_bytes())
    content[60] ^= 255
    whole.write_bytes(content)
    with pytest.raises(DataError, match="is no sound ZIP archive"):
        read_member(whole, "1.jpg", most_bytes=1000)
    with pytest.raises(DataError, match=r"holds no 3\.jpg"):
        read_member(zipped(tmp_path / "b.zip", {"1.jpg": b""}), "3.jpg", most_bytes=10)
