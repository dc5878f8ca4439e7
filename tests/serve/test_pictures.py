"""No picture path leaves the pictures' folder, and what comes is small, whatever the file holds."""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from serve.conftest import client
from starlette.testclient import TestClient

from mmkd import ItemTable, Run
from mmkd.serve.pictures import Pictures


def catalogue(paths: Sequence[Path | str | None]) -> ItemTable:
    size = len(paths) + 1
    return ItemTable(
        ids=["", *(f"i{n}" for n in range(1, size))],
        titles=["", *(f"Item {n}" for n in range(1, size))],
        text=[None] * size,
        image_path=[None, *(None if path is None else Path(path) for path in paths)],
        attributes=[[]] * size,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A picture inside the folder, one outside, and ways from one to the other."""
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    for path in (root / "in.png", root / "deep" / "in.png", tmp_path / "out.png"):
        Image.new("RGB", (900, 30), "teal").save(path)
    (tmp_path / "pictures-too").mkdir()
    (tmp_path / "pictures-too" / "out.png").write_bytes((tmp_path / "out.png").read_bytes())
    os.symlink(tmp_path / "out.png", root / "link.png")
    os.symlink(tmp_path, root / "up")
    os.symlink("deep/in.png", root / "inner.png")
    os.symlink("loop.png", root / "loop.png")
    os.mkfifo(root / "pipe.png")
    (root / "text.png").write_text("no picture")
    (root / "page.png").write_text("<svg onload=alert(1)>")
    (root / "cut.png").write_bytes((root / "in.png").read_bytes()[:60])
    return tmp_path


def test_only_pictures_below_the_folder_are_read(folder: Path) -> None:
    root = folder / "pictures"
    inside = [
        root / "in.png",
        root / "deep" / "in.png",
        root / "inner.png",
        root / "deep/../in.png",
    ]
    outside: list[Path | str | None] = [
        folder / "out.png",
        root / ".." / "out.png",
        root / "link.png",
        root / "up" / "out.png",
        folder / "pictures-too" / "out.png",
        "/etc/passwd",
        root / "loop.png",
        root / "pipe.png",
        root / "deep",
        root / "nowhere.png",
        f"{root}/in.png\x00.png",
        Path("out.png"),
        None,
    ]
    given: list[Path | str | None] = [*inside, *outside]
    pictures = Pictures(catalogue(given), root)
    for row in range(1, len(inside) + 1):
        assert pictures.has(row)
        with Image.open(BytesIO(pictures.webp(row) or b"")) as image:
            assert image.format == "WEBP" and image.size == (320, 11)
    for row in range(len(inside) + 1, len(inside) + len(outside) + 1):
        assert not pictures.has(row) and pictures.webp(row) is None
    for row in (0, -1, 1000):
        assert not pictures.has(row) and pictures.webp(row) is None


def test_a_file_that_is_no_picture_is_known_as_that_once_it_was_tried(folder: Path) -> None:
    root = folder / "pictures"
    pictures = Pictures(catalogue([root / f"{n}.png" for n in ("text", "page", "cut")]), root)
    for row in (1, 2, 3):
        assert pictures.has(row) and pictures.webp(row) is None and not pictures.has(row)


def test_a_link_that_turns_outside_later_is_not_followed(folder: Path) -> None:
    root = folder / "pictures"
    pictures = Pictures(catalogue([root / "in.png"]), root)
    assert pictures.has(1)
    (root / "in.png").unlink()
    os.symlink(folder / "out.png", root / "in.png")
    assert pictures.webp(1) is None


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(20, 30), (20, 31), (30, 20)], "tall"),
        ([(30, 20), (90, 20), (20, 30)], "wide"),
        ([(30, 30), (30, 29), (20, 90)], "square"),
        ([], "square"),
    ],
)
def test_the_shape_is_that_of_most(
    tmp_path: Path, sizes: list[tuple[int, int]], shape: str
) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.new("RGB", size).save(path)
    pictures = Pictures(catalogue([*paths, None, tmp_path / "nowhere.png"]), tmp_path)
    assert pictures.shape(range(1, len(sizes) + 3)) == shape


def test_a_folder_that_was_moved_is_found_where_it_is(folder: Path) -> None:
    old, new = folder / "pictures", folder / "elsewhere"
    items = catalogue([old / "deep" / "in.png", old / "link.png", folder / "out.png"])
    old.rename(new)
    assert not Pictures(items, old).has(1)
    pictures = Pictures(items, old, moved_to=new)
    assert pictures.has(1) and pictures.webp(1)
    assert not pictures.has(2) and not pictures.has(3)


def test_a_picture_has_an_address_and_no_other_file_has(shop: TestClient, hostile_run: Run) -> None:
    page = shop.get("/").text
    found = page.split('<img src="')[1].partition('"')[0]
    answer = shop.get(f"/{found}")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/webp"
    assert "max-age" in answer.headers["cache-control"]
    with Image.open(BytesIO(answer.content)) as image:
        assert image.format == "WEBP" and max(image.size) <= 320
    folder = found.split("/")[1]
    root = hostile_run.items.image_path[1]
    for path in (
        f"/picture/{folder}/0.webp",
        f"/picture/{folder}/99999.webp",
        f"/picture/{folder}/1.webp/../../../../etc/passwd",
        f"/picture/{folder}/..%2f..%2f1.webp",
        "/picture/..%2f..%2fetc/1.webp",
        f"/picture/{root}",
        "/static/..%2fapp.py",
        "/static/../app.py",
        "/static/htmx/htmx.min.js",
        "/static/%2fetc%2fpasswd",
    ):
        assert shop.get(path).status_code in (404, 422), path


def test_a_run_of_a_strangers_shows_no_files_outside_its_pictures(
    hostile_run: Run, tmp_path: Path
) -> None:
    """Nothing of the page is broken where the folder is another."""
    page = client(hostile_run, image_root=tmp_path).get("/")
    assert page.status_code == 200 and "<img" not in page.text and "plate" in page.text
