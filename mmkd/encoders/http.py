"""Text vectors from a model that is served over HTTP, such as by TEI, infinity or vLLM.

From: texts. To: ``[n, dim]`` float32, by the ``/v1/embeddings`` form of the OpenAI API, which all
of these answer. No model is loaded here; urllib3 holds the connections and asks again where that
helps.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmkd.encoders.base import checked_texts, unit_rows
from mmkd.errors import EncoderError, at_least, positive, refuse

_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_MOST_BYTES_A_TEXT = 1 << 20  # of a reply: 40,000 features written out
_LONGEST_WAIT_S = 60
_PROBE = "width"
# so plain that nobody can read another host out of it than who connects
_ADDRESS = re.compile(
    r"https?://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?:/[^\s\\@]*)?"
)


class HttpEncoder:
    """A text encoder behind an address.

    Requests of one batch each are sent side by side and asked again, later and later, while the
    server is starting, busy or away. What the server makes of a text must depend on the model and
    the prompt alone: the card's ``model`` and ``revision`` stand for its vectors in the cache, the
    address doesn't. A reply that names another model is refused.

    Args:
        model: The model's name, as the server calls it.
        url: The address, such as ``http://127.0.0.1:8080/v1/embeddings``.
        revision: Of the model, for the cache; the server is not told.
        prompt: Put before every text.
        normalize: Whether vectors are scaled to length 1.
        max_length_characters: Longer texts are cut before they are sent.
        connections: Requests at once.
        retries: How often a request is sent again, after 0.5, 1, 2, ... seconds, a minute at most.
        timeout_s: Seconds without a byte from the server that count as a failure.
        token_env: Environment variable that holds the server's token, if it wants one.

    Raises:
        EncoderError: urllib3 isn't installed, the token is not set, or the server gives no vector.
        ValueError: A setting is out of range.
    """

    version: ClassVar[int] = 1
    # where the model is and how it is asked never changes a vector
    transport_options: ClassVar[tuple[str, ...]] = (
        *("url", "connections", "retries", "timeout_s", "token_env"),
    )

    @staticmethod
    def sends_to(options: Mapping[str, Any]) -> str | None:
        """The other machine that a card's texts would go to; None where they stay on this one."""
        address = _ADDRESS.fullmatch(str(options.get("url")))
        host = address["host"].lower() if address else str(options.get("url"))
        return None if host in ("127.0.0.1", "[::1]", "localhost") else host

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with these options, a line each."""
        counts = {n: options.get(n) for n in ("connections", "max_length_characters")}
        problems = at_least(1, **counts) + at_least(
            0, "0 asks once", retries=options.get("retries")
        )
        problems += positive("such as 60", timeout_s=options.get("timeout_s"))
        if (url := options.get("url")) is not None and (fault := _fault(url)):
            problems.append(f"url: got {str(url)[:200]!r}, {fault}")
        return problems

    def __init__(
        self,
        *,
        model: str,
        url: str,
        revision: str | None = None,
        prompt: str | None = None,
        normalize: bool = False,
        max_length_characters: int = 20_000,
        connections: int = 4,
        retries: int = 8,
        timeout_s: float = 60.0,
        token_env: str | None = None,
    ) -> None:
        refuse(self.check(connections=connections, max_length_characters=max_length_characters))
        refuse(self.check(retries=retries, timeout_s=timeout_s, url=url))
        self.modality = "text"
        self._model, self._url, self._prompt = model, url, prompt or ""
        self._normalize, self._most = normalize, max_length_characters
        self._connections = connections
        self._headers = {"Content-Type": "application/json"} | _authorization(token_env)
        self._pool = _pool(connections, retries=retries, timeout_s=timeout_s)
        self.dim = self._ask([_PROBE]).shape[1]

    def encode(self, inputs: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Encodes n texts into ``[n, dim]`` float32; see `Encoder`.

        Raises:
            EncoderError: An input is no text, or the server can't be reached, refuses, or answers
                with anything but a finite vector of that width for each text.
        """
        texts = [text[: self._most] for text in checked_texts(inputs, batch_size=batch_size)]
        batches = [texts[at : at + batch_size] for at in range(0, len(texts), batch_size)]
        vectors = np.zeros((len(texts), self.dim), np.float32)
        with ThreadPoolExecutor(self._connections) as threads:
            replies = [threads.submit(self._ask, batch) for batch in batches]
            try:
                for at, reply in enumerate(replies):
                    found = reply.result()
                    if found.shape[1] != self.dim:
                        raise EncoderError(
                            f"{self._url} gave vectors of {found.shape[1]} features, and of "
                            f"{self.dim} before; one model must serve all texts"
                        )
                    vectors[at * batch_size : at * batch_size + len(found)] = found
            finally:
                for reply in replies:  # after a failure nothing more is asked
                    reply.cancel()
        return unit_rows(vectors) if self._normalize else vectors

    def _ask(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``[n, features]`` of one request."""
        import urllib3

        asked = [self._prompt + text for text in texts]
        body = {"model": self._model, "input": asked, "encoding_format": "float"}
        try:
            reply = self._pool.request(
                "POST",
                self._url,
                body=json.dumps(body).encode(),
                headers=self._headers,
                preload_content=False,
                redirect=False,
            )
            limit = _MOST_BYTES_A_TEXT * len(texts)
            content = reply.read(limit + 1, decode_content=True)
            reply.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            cause = getattr(error, "reason", None) or error
            raise EncoderError(
                f"{self._url} gives no answer ({str(cause)[:200]}); start the server, or correct "
                "options.url of the card"
            ) from error
        if reply.status != 200:
            said = content[:200].decode("utf-8", "replace").strip()
            raise EncoderError(
                f"{self._url} answers {reply.status}: {said}; {_remedy(reply.status)}"
            )
        if len(content) > limit:
            raise EncoderError(
                f"{self._url}: a reply of over {limit:,} bytes for {len(texts)} texts"
            )
        return self._read(content, len(texts))

    def _read(self, content: bytes, count: int) -> NDArray[np.float32]:
        wrong = f"{self._url}: the reply is not that of /v1/embeddings"
        try:
            found = json.loads(content)
            rows = {int(row["index"]): row["embedding"] for row in found["data"]}
            vectors = np.array([rows[at] for at in range(count)], np.float32)
            named = found.get("model") or self._model
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise EncoderError(f"{wrong} ({str(error)[:100]}); correct options.url") from error
        if named != self._model:
            raise EncoderError(
                f"{self._url} serves {str(named)[:100]!r}, the card says {self._model!r}; correct "
                "one of the two: the cache would take the one's vectors for the other's"
            )
        if vectors.ndim != 2 or not vectors.shape[1] or not np.isfinite(vectors).all():
            raise EncoderError(f"{wrong}: a vector is empty or not finite")
        return vectors


def _fault(url: object) -> str | None:
    address = _ADDRESS.fullmatch(str(url))
    if address is not None and int(address["port"] or 1) < 1 << 16:
        return None
    if "@" in str(url):
        return "wanted one without user and password; token_env names a variable that holds a token"
    return "wanted an address such as http://127.0.0.1:8080/v1/embeddings"


def _authorization(token_env: str | None) -> dict[str, str]:
    if token_env is None:
        return {}
    if not (token := os.environ.get(token_env, "").strip()):
        raise EncoderError(f"options.token_env: {token_env} is not set; export the server's token")
    return {"Authorization": f"Bearer {token}"}


def _pool(connections: int, *, retries: int, timeout_s: float) -> Any:
    try:
        import urllib3
    except ImportError as error:
        raise EncoderError("kind http needs urllib3: pip install 'mmkd[http]'") from error
    again = urllib3.Retry(
        total=retries,
        status_forcelist=_RETRIED,
        allowed_methods=None,  # the same texts give the same vectors, so a POST may be repeated
        backoff_factor=0.5,
        backoff_max=_LONGEST_WAIT_S,
        retry_after_max=_LONGEST_WAIT_S,
        raise_on_status=False,
    )
    return urllib3.PoolManager(maxsize=connections, block=True, retries=again, timeout=timeout_s)


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "name the variable with the token in options.token_env"
    if status in (400, 413, 422):
        return "a smaller embed.batch_size or options.max_length_characters may help"
    if status == 404:
        return "correct options.url or model"
    return "look into the server's log"
