"""The server: an application on a socket until a signal comes; it finishes what it began."""

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from mmkd.errors import RunError, within
from mmkd.interruption import Interruption
from mmkd.serve.guard import check_token, is_loopback

_CONNECTIONS = 1024
_FINISHING_S = 10  # for requests that were begun


def check_address(host: str, port: int, token: str | None) -> list[str]:
    """A line for what is wrong with where a server is to listen."""
    problems = within(0, 65_535, "0 takes any that is free", port=port) + check_token(token)
    if token is None and not is_loopback(host):
        problems.append(
            f"host: got {host}, which others can reach; give a --token too, or leave --host out"
        )
    return problems


def run(
    app: ASGIApp, *, host: str, port: int, ready: Callable[[str], None] = lambda address: None
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; requests that were begun are answered first.

    Args:
        app: What answers.
        host: A name or an address of this machine.
        port: 0 takes any that is free.
        ready: Told the address once connections are taken.

    Raises:
        RunError: The address can't be listened on.
    """
    listening = _listen(host, port)
    config = uvicorn.Config(
        app,
        access_log=False,  # which would write tokens and histories down
        log_level="warning",
        limit_concurrency=_CONNECTIONS,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_FINISHING_S,
    )
    name = f"[{host}]" if ":" in host else host
    server = _Server(config, lambda: ready(f"http://{name}:{listening.getsockname()[1]}/"))
    with listening:
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn's, stopped as everything else here is: a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._interruption = Interruption()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which would raise the signal again once it has stopped."""
        with self._interruption:
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; asked ten times a second."""
        return await super().on_tick(counter) or self._interruption.requested


def _listen(host: str, port: int) -> socket.socket:
    remedy = "give another port with --port, or another host with --host"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise RunError(f"{host}: {error.strerror}; {remedy}") from error
    try:
        if sys.platform != "win32":  # there it would take a port from another server
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(2048)
    except OSError as error:
        found.close()
        raise RunError(f"{host}:{port}: {error.strerror}; {remedy}") from error
    return found
