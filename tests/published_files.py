"""Small files of the forms that are published, and a server that breaks off in the middle."""

import gzip
import http.server
import io
import json
import random
import zipfile
from email.utils import formatdate
from pathlib import Path
from typing import Any

from PIL import Image

USERS, FILMS = 30, 12


def picture(shade: int) -> bytes:
    written = io.BytesIO()
    noise = random.Random(shade).randbytes(8 * 8 * 3)
    Image.frombytes("RGB", (8, 8), noise).save(written, "JPEG")
    return written.getvalue()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


def pairs() -> list[tuple[int, int, int]]:
    """User, item and second: every user takes six in a row."""
    return [
        (user, (user + step) % FILMS + 1, 978_300_000 + 100 * step + user)
        for user in range(1, USERS + 1)
        for step in range(6)
    ]


def million_files() -> dict[str, bytes]:
    """As ml-1m.zip: Latin-1, parted by ``::``."""
    titles = {3: "Mis\xe9rables, Les (1995)", 4: "Face::Off (1997)"}
    movies = "".join(
        f"{n}::{titles.get(n, f'Film {n} (1990)')}::{'Drama|War' if n % 2 else 'Comedy'}\n"
        for n in range(1, FILMS + 1)
    )
    ratings = "".join(f"{u}::{i}::{u % 5 + 1}::{t}\n" for u, i, t in pairs())
    return {
        "ml-1m/movies.dat": movies.encode("latin-1"),
        "ml-1m/ratings.dat": ratings.encode(),
        "ml-1m/README": b"read me",
    }


def hundred_thousand_files() -> dict[str, bytes]:
    """As ml-100k.zip: u.item with 24 cells, Latin-1, and u.data with tabs."""
    rows = []
    for n in range(1, FILMS + 1):
        flags = ["0"] * 19
        flags[5 if n % 2 else 8] = "1"
        title = "unknown" if n == 7 else f"L\xe9on {n} (1994)"
        rows.append("|".join([str(n), title, "01-Jan-1994", "", "http://x/y", *flags]))
    return {
        "ml-100k/u.item": "\n".join(rows).encode("latin-1") + b"\n",
        "ml-100k/u.data": "".join(f"{u}\t{i}\t3\t{t}\n" for u, i, t in pairs()).encode(),
    }


def amazon_files(folder: Path, host: str = "http://127.0.0.1:1") -> Path:
    """As a category of Amazon Reviews 2023: gzip, an object a line."""
    folder.mkdir(parents=True, exist_ok=True)
    reviews: list[dict[str, Any]] = [
        {
            "rating": 4.0,
            "title": "good",
            "text": "it is",
            "images": [],
            "asin": f"V{item}",
            "parent_asin": f"B00{item:03d}",
            "user_id": f"AE{user}",
            "timestamp": 1000 * second,
            "helpful_vote": 0,
            "verified_purchase": True,
        }
        for user, item, second in pairs()
    ]
    reviews.append({**reviews[0], "user_id": "AELONELY"})  # below any core
    products: list[dict[str, Any]] = [
        {
            "main_category": "All Beauty",
            "title": f"Soap {n}",
            "average_rating": 4.1,
            "rating_number": 9,
            "features": ["soft"],
            "description": [] if n % 2 else ["Smells of", "lemon."],
            "price": None,
            "images": [
                {"thumb": None, "large": f"{host}/side{n}.jpg", "variant": "PT01", "hi_res": None},
                {"thumb": None, "large": f"{host}/{n}.jpg", "variant": "MAIN", "hi_res": None},
            ],
            "videos": [],
            "store": "Maker",
            "categories": ["Beauty", "Soap"] if n != 5 else [],
            "details": {},
            "parent_asin": f"B00{n:03d}",
            "bought_together": None,
        }
        for n in range(1, FILMS + 1)
    ]
    products[2]["images"] = []
    products[3]["images"][1]["large"] = "http://169.254.169.254/latest/meta-data"
    products.append({**products[0], "parent_asin": "B00999"})  # nobody took it
    for name, rows in (("All_Beauty", reviews), ("meta_All_Beauty", products)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def microlens_files(folder: Path) -> Path:
    """As MicroLens-100K: pairs with a header, titles and topics without, covers in an archive."""
    folder.mkdir(parents=True, exist_ok=True)
    log = "user,item,timestamp\n" + "".join(f"{u},{i},{1000 * t}\n" for u, i, t in pairs())
    (folder / "MicroLens-100k_pairs.csv").write_text(log, "utf-8")
    titles = "".join(f'{n}, Cat {n}, "sleeping" again\n' for n in range(1, FILMS))
    (folder / "MicroLens-100k_title_en.csv").write_text(titles, "utf-8")
    topics = "".join(f"{n},{'Pets' if n % 2 else 'Food'}\n" for n in range(1, FILMS + 1))
    (folder / "tags_to_summary.csv").write_text(topics, "utf-8")
    covers = {f"MicroLens-100k_covers/{n}.jpg": picture(n) for n in range(1, FILMS - 1)}
    covers["MicroLens-100k_covers/999.jpg"] = picture(9)  # of no video in the log
    covers["__MACOSX/._1.jpg"] = b"no picture"
    zipped(folder / "MicroLens-100k_covers.zip", covers)
    return folder


class Site:
    """A server on the loopback: files by path, how many bytes it gives before it breaks off."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.statuses: dict[str, list[int]] = {}  # sent before a file is
        self.breaks_after: list[int] = []  # bytes of each answer, one after the other
        self.ranges = True
        self.tagged = True
        self.asked: list[tuple[str, str | None]] = []  # path and Range
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._send(head=True)

            def do_GET(self) -> None:
                self._send(head=False)

            def _send(self, *, head: bool) -> None:
                asked = self.headers.get("Range")
                if not head:
                    site.asked.append((self.path, asked))
                if queued := site.statuses.get(self.path):
                    self.send_response(queued.pop(0))
                    self.send_header("Retry-After", "0")
                    self.end_headers()
                    return
                content = site.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                tag = f'"{hash(content)}"'
                same = self.headers.get("If-Range") in (None, tag)
                start = int(asked[6:-1]) if asked and site.ranges and same else 0
                if start > len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    where = f"bytes {start}-{len(content) - 1}/{len(content)}"
                    self.send_header("Content-Range", where)
                self.send_header("Content-Length", str(len(content) - start))
                if site.tagged:
                    self.send_header("ETag", tag)
                self.send_header("Date", formatdate())
                self.end_headers()
                if not head:
                    rest = content[start:]
                    most = site.breaks_after.pop(0) if site.breaks_after else len(rest)
                    self.wfile.write(rest[:most])

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.url = f"http://{self.host}"
