"""The command: where it listens, what it refuses, and that a signal lets it finish."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import invoke

from mmkd import MmkdError, Run


@contextmanager
def served(
    *arguments: str | Path, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own, and its address without the last slash."""
    command = [sys.executable, "-m", "mmkd", "serve", *map(str, arguments), "--port", "0", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    try:
        told = ""
        while not told.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            told += line
        yield process, json.loads(told)["address"].rstrip("/")
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, complaints = process.communicate(timeout=30)
    return process.returncode, complaints


def until_refused(host: str, port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            return
        time.sleep(0.02)
    raise AssertionError("still takes connections")


def test_sigterm_lets_the_server_finish_what_it_began(hostile_run: Run) -> None:
    history = [hostile_run.items.ids[1]]
    body = json.dumps({"history": history, "k": 3}).encode()
    answers: list[int] = []

    def ask(address: str) -> None:
        with httpx.Client(timeout=20) as http, suppress(httpx.TransportError):  # once it is gone
            while True:
                answers.append(http.post(f"{address}/recommend", json=json.loads(body)).status_code)

    with served(hostile_run.folder.path) as (process, address), ThreadPoolExecutor(8) as threads:
        for _ in range(8):
            threads.submit(ask, address)
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as begun:
            head = "POST /recommend HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            begun.sendall(head.encode() + body[:10])
            while len(answers) < 50:
                time.sleep(0.02)
            process.terminate()
            until_refused(host, int(port))
            begun.sendall(body[10:])
            answer = b""
            while part := begun.recv(65_536):
                answer += part
        assert ended(process) == (0, "")
    assert answer.startswith(b"HTTP/1.1 200") and {*answers} == {200}
    found = json.loads(answer.partition(b"\r\n\r\n")[2])["items"]
    expected = hostile_run.recommend([history], k=3)["item_id"].to_list()
    assert [one["item_id"] for one in found] == expected


def test_a_token_comes_from_the_environment_and_nothing_is_written_down(
    hostile_run: Run, tmp_path: Path
) -> None:
    token = "a-token-of-some-length"
    (tmp_path / "stock.txt").write_text("\n".join(hostile_run.items.ids[1:6]))
    arguments = (hostile_run.folder.path, "--allow", tmp_path / "stock.txt")
    with served(*arguments, MMKD_TOKEN=token) as (process, address):
        assert httpx.get(f"{address}/").status_code == 401
        header = {"Authorization": f"Bearer {token}"}
        body = {"history": [hostile_run.items.ids[20]], "k": 50}
        answer = httpx.post(f"{address}/recommend", json=body, headers=header)
        assert {one["item_id"] for one in answer.json()["items"]} == {*hostile_run.items.ids[1:6]}
        assert httpx.get(f"{address}/?token={token}&item=A1").status_code == 303
        process.send_signal(signal.SIGINT)
        assert ended(process) == (0, "")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--host", "0.0.0.0"], "host: got 0.0.0.0, which others can reach; give a --token too"),
        (["--token", "short"], "token: got 5 characters, wanted 16 or more"),
        (["--port", "70000"], "port: got 70000, wanted 0 to 65535"),
        (["--image-root", "nowhere"], "--image-root: nowhere is no folder"),
        (["--allow", "nowhere.csv"], "nowhere.csv"),
        (["--host", "name.invalid", "--token", "x" * 16], "name.invalid: "),
    ],
)
def test_mistakes_are_told_before_anything_is_served(
    hostile_ids_only: Run, given: list[str], told: str
) -> None:
    with pytest.raises(MmkdError) as caught:
        invoke("serve", hostile_ids_only.folder.path, *given)
    assert told in str(caught.value)


def test_a_port_that_is_taken_and_runs_that_are_too_many_are_told(hostile_ids_only: Run) -> None:
    folder = hostile_ids_only.folder.path
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(MmkdError, match=r"Address already in use; give another port"):
            invoke("serve", folder, "--port", str(taken.getsockname()[1]))
    with pytest.raises(MmkdError, match="got 3 runs, wanted one or two"):
        invoke("serve", folder, folder, folder)


def test_what_serving_needs_is_named_where_it_is_not_installed(
    hostile_ids_only: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Any] = {"mmkd.serve": None}  # as if it had failed to be imported
    for name, module in wanted.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(MmkdError, match=r"pip install 'mmkd\[serve\]'"):
        invoke("serve", hostile_ids_only.folder.path)
