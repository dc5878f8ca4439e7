"""Downloads from a server that breaks off, changes its mind, or sends too much."""

import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest
from published_files import Site, picture

from mmkd.errors import DataError
from mmkd.published.download import Unreachable, download, size_of
from mmkd.published.known import RemoteFile
from mmkd.published.pictures import fetch_pictures

CONTENT = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


def remote(site: Site, **changes: object) -> RemoteFile:
    site.files.setdefault("/data.zip", CONTENT)
    given = {"name": "data.zip", "urls": (f"{site.url}/data.zip",), "most_bytes": 10**6}
    return RemoteFile(**(given | changes))  # type: ignore[arg-type]


def test_a_line_that_breaks_is_taken_up_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.breaks_after = [100_000, 0, 50_000]
    told: list[int] = []
    found = download(
        remote(site, md5=MD5), tmp_path, wait_s=0, progress=lambda _, done, total: told.append(done)
    )
    assert found.read_bytes() == CONTENT
    asked = [where for _, where in site.asked]
    assert asked == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]
    assert told[-1] == len(CONTENT) and sorted(told) == told
    assert [path.name for path in tmp_path.iterdir()] == ["data.zip"]
    site.asked.clear()
    assert download(remote(site, md5=MD5), tmp_path) == found and not site.asked


def test_a_later_call_asks_for_the_rest(site: Site, tmp_path: Path) -> None:
    site.breaks_after = [120_000, *[0] * 5]
    with pytest.raises(Unreachable, match=r"data\.zip: "):
        download(remote(site), tmp_path, wait_s=0)
    assert (tmp_path / "data.zip.part").stat().st_size == 120_000
    site.asked.clear()
    assert download(remote(site), tmp_path, wait_s=0).read_bytes() == CONTENT
    assert site.asked == [("/data.zip", "bytes=120000-")]


def test_a_file_that_changed_meanwhile_is_taken_from_the_start(site: Site, tmp_path: Path) -> None:
    site.breaks_after = [120_000, *[0] * 5]
    with pytest.raises(Unreachable):
        download(remote(site), tmp_path, wait_s=0)
    site.files["/data.zip"] = CONTENT[::-1]
    assert download(remote(site), tmp_path, wait_s=0).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(("ranges", "tagged"), [(False, True), (True, False)])
def test_servers_without_pieces_or_tags_send_all_of_it_again(
    site: Site, tmp_path: Path, ranges: bool, tagged: bool
) -> None:
    site.ranges, site.tagged, site.breaks_after = ranges, tagged, [100_000]
    assert download(remote(site), tmp_path, wait_s=0).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(b"x" * 400_000)
    (tmp_path / "data.zip.part.tag").write_text(f'"{hash(CONTENT)}"')
    assert download(remote(site), tmp_path, wait_s=0).read_bytes() == CONTENT


def test_a_wrong_checksum_and_too_many_bytes_are_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wanted 0000; it was damaged on the way"):
        download(remote(site, md5="0000"), tmp_path, wait_s=0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="the server sends 300,000 bytes or more, wanted at most"):
        download(remote(site, most_bytes=1000), tmp_path, wait_s=0)
    assert not (tmp_path / "data.zip").exists()


def test_the_next_address_is_asked_and_none_is_told_at_once(site: Site, tmp_path: Path) -> None:
    gone = "http://127.0.0.1:1/data.zip"
    both = remote(site, urls=(gone, f"{site.url}/data.zip"))
    assert download(both, tmp_path).read_bytes() == CONTENT
    assert size_of(both) == len(CONTENT)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1/data\.zip: .*; .*/none: HTTP 404"):
        size_of(remote(site, urls=(gone, f"{site.url}/none")))
    with pytest.raises(Unreachable, match="HTTP 404"):
        download(remote(site, urls=(f"{site.url}/none",)), tmp_path / "new")


def test_pictures_are_fetched_once_from_known_hosts_and_what_is_none_is_counted(
    site: Site, tmp_path: Path
) -> None:
    site.files |= {"/a.jpg": picture(1), "/b.jpg": b"<html>", "/busy.jpg": picture(2)}
    site.files["/huge.jpg"] = b"\xff" * 10_000_001
    site.statuses["/busy.jpg"] = [503, 429]
    addresses = {
        "A1": f"{site.url}/a.jpg",
        "B1": f"{site.url}/b.jpg",
        "B2": f"{site.url}/busy.jpg",
        "C1": f"{site.url}/none.jpg",
        "D1": "http://169.254.169.254/latest",
        "D2": "file:///etc/passwd",
        "../E1": f"{site.url}/a.jpg",
        "F1": f"{site.url}/huge.jpg",
        "G1": "http://[broken",
    }
    names, problems = fetch_pictures(addresses, tmp_path, hosts=[site.host], wait_s=0)
    assert names == {"A1": "A1.jpg", "B2": "B2.jpg"}
    assert problems == Counter(
        {
            "another host's": 3,
            "no picture": 1,
            "HTTP 404": 1,
            "an id that is no file's name": 1,
            "too large": 1,
        }
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A1.jpg", "B2.jpg"]
    assert (tmp_path / "A1.jpg").read_bytes() == picture(1)
    site.asked.clear()
    fetch_pictures({"A1": f"{site.url}/a.jpg"}, tmp_path, hosts=[site.host])
    assert not site.asked


def test_a_site_that_never_answers_is_not_asked_for_ever(tmp_path: Path) -> None:
    addresses = {f"A{n}": "http://127.0.0.1:1/a.jpg" for n in range(200)}
    names, problems = fetch_pictures(addresses, tmp_path, hosts=["127.0.0.1:1"], wait_s=0)
    assert not names and sum(problems.values()) == 200
    assert problems["unreachable"] < 40
