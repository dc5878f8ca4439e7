"""A stand-in of the hub's HTTP API on the loopback: repositories, commits, tokens, in memory."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, cast
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main") -> str:
        content = json.dumps({name: hashlib.sha1(c).hexdigest() for name, c in files.items()})
        sha = hashlib.sha1(f"{len(self.commits)}{content}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.branches.get(revision, revision)]


class Hub(ThreadingHTTPServer):
    """Tokens: ``writer`` may do everything, ``reader`` may read."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken: int | None = None  # a status to answer everything but HEAD / with
        self.sizes: dict[str, int] = {}  # what is said of a file's size, where it is a lie

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return cast(Hub, self.server)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._began()
        if path is None:
            return
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self._token() != "writer":
            status = 401 if self._token() is None else 403
            return self._json({"error": "this token may not write"}, status)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.hub.repositories
            if not known:
                made = Repository(private=asked.get("visibility") == "private")
                made.commit({".gitattributes": b""})
                self.hub.repositories[name] = made
            answer = {"url": f"{self.hub.url}/{name}", "name": name}
            return self._json(answer, 409 if known else 200)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            return self._commit(found[1], found[2], body)
        return self._json({"error": "not found"}, 404)

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.files(branch))
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files, branch)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def _get(self) -> None:
        path = self._began()
        if path is None:
            return
        if path == "/":
            return self._json({})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            if (known := self._known(found[1], found[2] or "main")) is not None:
                sha, files = known
                siblings = [{"rfilename": name} for name in files]
                private = self.hub.repositories[found[1]].private
                told = {"id": found[1], "modelId": found[1], "sha": sha, "private": private}
                self._json({**told, "siblings": siblings, "tags": []})
            return
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            if (known := self._known(found[1], found[2])) is not None:
                self._json(
                    [
                        {
                            "type": "file",
                            "path": name,
                            "size": self.hub.sizes.get(name, len(content)),
                            "oid": hashlib.sha1(content).hexdigest(),
                        }
                        for name, content in known[1].items()
                    ]
                )
            return
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (known := self._known(found[1], found[2])) is not None:
                sha, files = known
                if found[3] not in files:
                    return self._json(
                        {"error": "no file"}, 404, **{"X-Error-Code": "EntryNotFound"}
                    )
                content = files[found[3]]
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                self._send(content, 200, **{"ETag": etag, "X-Repo-Commit": sha})
            return
        self._json({"error": "not found"}, 404)

    def _known(self, name: str, revision: str) -> tuple[str, Files] | None:
        repository = self.hub.repositories.get(name)
        hidden = repository is not None and repository.private and self._token() is None
        if repository is None or hidden:
            self._json({"error": "no such"}, 401, **{"X-Error-Code": "RepoNotFound"})
            return None
        if repository.gated and self._token() != "writer":
            self._json({"error": "gated"}, 403, **{"X-Error-Code": "GatedRepo"})
            return None
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            self._json({"error": "no such"}, 404, **{"X-Error-Code": "RevisionNotFound"})
            return None
        return sha, repository.commits[sha]

    def _began(self) -> str | None:
        """The path, noted; None where the answer is out already."""
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if self.hub.broken is not None and path != "/":
            self._json({"error": "broken"}, self.hub.broken)
            return None
        return path

    def _token(self) -> str | None:
        given = self.headers.get("Authorization")
        return None if given is None else given.removeprefix("Bearer ")

    def _json(self, content: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(content).encode(), status, **headers)

    def _send(self, content: bytes, status: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
