"""A running `mmkd serve` under load: how long JSON lists and the page's lists take.

    python -m benchmarks.serve --run RUN

Starts a server of its own on the loopback, with all of the machine's cores, and clients in other
processes that ask one after the other over connections they keep: 1, 8 and 32 at once. Histories
are drawn from the catalogue. Prints p50, p99, what the server computed for an answer, and requests
a second, and writes benchmarks/results/serve.json.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from benchmarks.measure import BenchmarkError, Help, print_table, write_results

_HISTORIES = 500
_STOPPING_S = 60.0


def main() -> None:
    """Parse the command line, measure, print and write."""
    options = _parser().parse_args()
    if options.ask:
        _ask_as_told(options.ask)
        return
    from mmkd.runs.folder import find_run  # here, as a client needs no torch

    folder = find_run(options.run, Path("runs"))
    asked = _histories([str(one) for one in folder.items().ids[1:]], options.length)
    rows: list[dict[str, Any]] = []
    with _server(folder.path, threads=options.threads) as (server, address):
        for what, requests in {"json": _posts(asked, options.k), "page": _gets(asked)}.items():
            _measured(address, requests, clients=1, seconds=1.0)  # the first is slower
            for clients in options.clients:
                before_s = _cpu_s(server.pid)
                found = _measured(address, requests, clients=clients, seconds=options.seconds)
                cpu_ms = 1000 * (_cpu_s(server.pid) - before_s) / found["answers"]
                rows.append({"what": what, "clients": clients, **found, "cpu_ms": cpu_ms})
    settings = {name: getattr(options, name) for name in ("k", "length", "seconds", "threads")}
    settings |= {"run": folder.path.name, "items": len(folder.items())}
    print(f"\na server, {', '.join(f'{name} {value}' for name, value in settings.items())}")
    header = ["what", "clients", "p50 ms", "p99 ms", "CPU ms", "requests/s", "answers"]
    table = []
    for row in rows:
        times = [f"{row[name]:.1f}" for name in ("p50", "p99", "cpu_ms", "per_second")]
        table.append([row["what"], str(row["clients"]), *times, f"{row['answers']:,}"])
    print_table(header, table)
    print(f"\nwritten to {write_results('serve', settings, rows)}")


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in ms."""
    p50, p99 = np.percentile(np.asarray(seconds) * 1000, (50, 99))
    return {"p50": float(p50), "p99": float(p99)}


def ask(address: str, requests: Sequence[bytes], *, clients: int, seconds: float) -> list[float]:
    """Seconds of every answer that so many clients got, each asking again once it has one.

    Raises:
        BenchmarkError: An answer was not 200.
    """
    return asyncio.run(_ask(address, requests, clients, seconds))


async def _ask(
    address: str, requests: Sequence[bytes], clients: int, seconds: float
) -> list[float]:
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def client(first: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        number = first
        while (started := time.perf_counter()) < end:
            writer.write(requests[number % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            took.append(time.perf_counter() - started)
            if not head.startswith(b"HTTP/1.1 200"):
                raise BenchmarkError(f"{head.decode()}{body[:500].decode()}")
            number += clients
        writer.close()

    await asyncio.gather(*map(client, range(clients)))
    return took


def _measured(
    address: str, requests: Sequence[bytes], *, clients: int, seconds: float
) -> dict[str, Any]:
    """Clients in a process of their own, so that they don't wait for this one's lock."""
    command = [sys.executable, "-m", "benchmarks.serve", "--ask", address]
    given = {"requests": [one.decode() for one in requests], "clients": clients}
    found = subprocess.run(
        command,
        input=json.dumps(given | {"seconds": seconds}),
        capture_output=True,
        text=True,
        timeout=seconds + 120,
    )
    if found.returncode:
        raise BenchmarkError(f"clients: {found.stderr[-2000:]}")
    took = json.loads(found.stdout)
    return {**percentiles(took), "per_second": len(took) / seconds, "answers": len(took)}


def _ask_as_told(address: str) -> None:
    told = json.load(sys.stdin)
    requests = [one.encode() for one in told["requests"]]
    took = ask(address, requests, clients=told["clients"], seconds=told["seconds"])
    print(json.dumps(took))


def _histories(ids: Sequence[str], length: int) -> list[list[str]]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, length + 1, _HISTORIES)
    return [generator.choice(ids, size=size).tolist() for size in lengths]


def _posts(histories: Sequence[Sequence[str]], k: int) -> list[bytes]:
    bodies = [json.dumps({"history": history, "k": k}).encode() for history in histories]
    head = "POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


def _gets(histories: Sequence[Sequence[str]]) -> list[bytes]:
    """What htmx asks for: the part of the page with the lists, the history and all links."""
    found = []
    for history in histories:
        query = "&".join(f"item={quote(item, safe='')}" for item in history)
        head = f"GET /?{query} HTTP/1.1\r\nHost: localhost\r\nHX-Request: true\r\n\r\n"
        found.append(head.encode())
    return found


@contextmanager
def _server(run: Path, *, threads: int) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    command = [sys.executable, "-m", "mmkd", "serve", str(run), "--port", "0", "--json"]
    environment: Mapping[str, str] = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        told = ""
        while not told.endswith("}\n"):
            line = process.stdout.readline()
            if not line:
                raise BenchmarkError(f"the server ended with {process.wait(_STOPPING_S)}")
            told += line
        yield process, json.loads(told)["address"]
    finally:
        process.terminate()
        process.wait(_STOPPING_S)


def _cpu_s(process: int) -> float:
    """What a process has computed so far, in all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--run", help="a trained run")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--length", type=int, default=20, help="of the longest history")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--ask", metavar="ADDRESS", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
