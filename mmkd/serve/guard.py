"""Guard: the first to see a request; who may ask, from where, and how much.

On the loopback a page of another site must not reach the server through the user's browser: the
Host header has to name the loopback, which stops a name that was pointed there (DNS rebinding), and
what is posted has to come from the server's own page. Elsewhere a token is asked for. Bodies are
bounded in size and time, and every answer carries the policy that lets a page run no script and
load nothing but the server's own.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmkd.serve.refusal import Problem, refused

MOST_BYTES = 1_048_576  # of a body
COOKIE = "mmkd"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_PATIENCE_S = 10.0  # for a body
_LEAST = 16  # characters of a token
_OPEN = ("/health", "/static/")  # without a token
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, reached by nobody else."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(token: str | None) -> list[str]:
    """A line where a token could be guessed, or not be sent."""
    if token is None or (len(token) >= _LEAST and token.isascii() and token.isprintable()):
        return []
    remedy = "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
    return [f"token: got {len(token)} characters, wanted {_LEAST} or more of ASCII; {remedy}"]


class Guard:
    """Refuses what may not ask; the rest goes to ``app``.

    Args:
        app: What answers.
        token: What a request has to carry; None asks for none.
        loopback_only: Whether the Host header has to name the loopback.
        most_bytes: Of a body.
        patience_s: How long a body may take.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None = None,
        loopback_only: bool = True,
        most_bytes: int = MOST_BYTES,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._loopback_only = loopback_only
        self._most_bytes = most_bytes
        self._patience_s = patience_s
        # the cookie is no token: who reads it can't ask another server, nor this one tomorrow
        key = secrets.token_bytes(32)
        self._session = hmac.new(key, self._token or b"", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket: there are none here
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send)
        answer = self._stopped(scope)
        if answer is None and scope["method"] in ("POST", "PUT", "PATCH"):
            body = await self._body(scope, receive)
            if isinstance(body, Response):
                answer = body
            else:
                receive = _replayed(body, receive)
        await (answer or self._app)(scope, receive, send)

    def _stopped(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._loopback_only and not is_loopback(_hostname(host)):
            return _refused(
                HTTPStatus.MISDIRECTED_REQUEST,
                "Host",
                f"got {host[:100]!r}, wanted this machine's own name",
                "open it as http://localhost with its port, or start it with --host and --token",
            )
        if scope["method"] not in ("GET", "HEAD") and not _same_site(headers, host):
            return _refused(
                HTTPStatus.FORBIDDEN,
                "Origin",
                "the request comes from a page of another site",
                "send it from this server's own page, or from a program",
            )
        if self._token is None or scope["path"].startswith(_OPEN):
            return None
        return self._entered(scope, headers)

    def _entered(self, scope: Scope, headers: Headers) -> Response | None:
        """None where the request carries the token; a way in where its address does."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        for given in [value for name, value in query if name == "token"][:1]:
            if not self._is_token(given):
                break
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            answer = RedirectResponse("?" + rest, HTTPStatus.SEE_OTHER)
            answer.set_cookie(COOKIE, self._session, httponly=True, samesite="lax")
            return answer
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(bearer.strip()):
            return None
        if hmac.compare_digest(_cookie(headers).encode(), self._session.encode()):
            return None
        return _unknown(headers)

    def _is_token(self, given: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Response:
        """The whole body, or why it is not read."""
        too_large = _refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "body",
            f"wanted at most {self._most_bytes:,} bytes",
            "send fewer ids; what is in stock can be given with --allow",
        )
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > self._most_bytes:
            return too_large
        found = bytearray()
        try:
            async with asyncio.timeout(self._patience_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody reads it
                    found += message.get("body", b"")
                    if len(found) > self._most_bytes:
                        return too_large
                    if not message.get("more_body", False):
                        return bytes(found)
        except TimeoutError:
            return _refused(
                HTTPStatus.REQUEST_TIMEOUT,
                "body",
                f"it took longer than {self._patience_s:.0f} s",
                "send it at once",
            )


def _refused(status: HTTPStatus, where: str, what: str, remedy: str) -> Response:
    return refused(status, [Problem(where, what, remedy)], {"Connection": "close"})


def _unknown(headers: Headers) -> Response:
    challenge = {"WWW-Authenticate": "Bearer"}
    if "text/html" not in headers.get("accept", ""):
        problem = Problem("Authorization", "no token, or a wrong one", "send Bearer and the token")
        return refused(HTTPStatus.UNAUTHORIZED, [problem], challenge)
    return Response(_ENTRANCE, HTTPStatus.UNAUTHORIZED, challenge, "text/html; charset=utf-8")


_ENTRANCE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>mmkd</title>
<link rel="stylesheet" href="/static/page.css"></head>
<body><main class="entrance"><p class="eyebrow">mmkd</p><h1>Who are you?</h1>
<form><label for="token">Token</label> <input type="password" id="token" name="token"
autocomplete="current-password" autofocus required> <button>Enter</button></form></main>
</body></html>
"""


def _hostname(host: str) -> str:
    """A Host header without its port; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _same_site(headers: Headers, host: str) -> bool:
    """Whether a page of this server sent a request, or no page at all."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == host


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What receives a body that was read already, and then whatever else comes."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving
