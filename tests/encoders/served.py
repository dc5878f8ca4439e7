"""A server of embeddings on the loopback, which fails as it is told to."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

MODEL, WIDTH = "letters", 64


class Served:
    """What the server was asked, and how it is to answer.

    ``failing`` are statuses that the next requests get, in turn; ``changed`` is put over a reply.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.failing: list[int] = []
        self.changed: dict[str, Any] = {}
        self.raw: bytes | None = None
        self.url = ""

    def reply(self, body: dict[str, Any]) -> bytes:
        if self.raw is not None:
            return self.raw
        rows = [
            {"index": at, "embedding": vector.tolist()}
            for at, vector in enumerate(vectors(body["input"]))
        ]
        rows.reverse()  # the order is the index's
        return json.dumps({"model": MODEL, "data": rows} | self.changed).encode()


def vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """[n, WIDTH] counts of three letters in a row, hashed."""
    found = np.zeros((len(texts), WIDTH), np.float32)
    for row, text in zip(found, texts, strict=True):
        row[0] = 1
        for at in range(len(text) - 2):
            row[crc32(text[at : at + 3].encode()) % WIDTH] += 1
    return found


@contextmanager
def serving() -> Iterator[Served]:
    """A running server."""
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(body)
            state.tokens.append(self.headers["Authorization"])
            status = state.failing.pop(0) if state.failing else 200
            content = state.reply(body) if status == 200 else b"not now\n"
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1/embeddings"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
