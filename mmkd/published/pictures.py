"""Pictures from the web: addresses in a catalogue to files, politely, and none of them trusted.

Few at once, each bounded, from known hosts over http or https alone: an address in a stranger's
file must not lead into a private network. What is no picture is no file. One that can't be had is
counted and costs nothing else; what is there is not asked for again.
"""

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmkd.embeddings.pictures import ImageProblem, decode_image
from mmkd.errors import DataError, outside
from mmkd.published.download import AGENT

_AT_ONCE = 4
_MOST_BYTES = 10_000_000  # of a picture
_TIMEOUT_S = 20.0
_ATTEMPTS = 3
_MOST_WAIT_S = 60.0
_HOPELESS = 25  # failures in a row, before the first success, after which no more are asked for
_SUFFIX = ".jpg"  # whatever it is: encoders look at the content


def fetch_pictures(
    addresses: Mapping[str, str],
    folder: Path,
    *,
    hosts: Sequence[str],
    progress: Callable[[str, int, int], None] | None = None,
    wait_s: float = 1.0,
) -> tuple[dict[str, str], Counter[str]]:
    """Fetch pictures that are not there yet.

    Args:
        addresses: Item's id to address.
        folder: Made; a picture is ``ID.jpg``.
        hosts: Whose pictures are fetched; redirects are held to them too.
        progress: Told how many are done.
        wait_s: Before a busy server is asked again, where it does not say.

    Returns:
        Item's id to the file's name, of those that are there now; and of the others how many for
        which reason.

    Raises:
        DataError: The folder can't be written.
    """
    with outside(DataError, folder, "can't be written", remedy="give another place with --out"):
        folder.mkdir(parents=True, exist_ok=True)
    fetcher = _Fetcher(folder, hosts, wait_s)
    names: dict[str, str] = {}
    problems: Counter[str] = Counter()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            results = pool.map(fetcher, addresses.items())
            for done, (id_, problem) in enumerate(results, start=1):
                if problem is None:
                    names[id_] = f"{id_}{_SUFFIX}"
                else:
                    problems[problem] += 1
                if progress and (done % 100 == 0 or done == len(addresses)):
                    progress("pictures", done, len(addresses))
        except BaseException:
            fetcher.stopped = True
            pool.shutdown(cancel_futures=True)
            raise
    return names, problems


class _Fetcher:
    """One address to one file; called by several threads."""

    def __init__(self, folder: Path, hosts: Sequence[str], wait_s: float) -> None:
        self._folder, self._hosts, self._wait_s = folder, hosts, wait_s
        self._opener = urllib.request.build_opener(_SameHosts(self))
        self._lock = threading.Lock()
        self._failures, self._any = 0, False
        self.stopped = False

    def __call__(self, pair: tuple[str, str]) -> tuple[str, str | None]:
        """The id, and why there is no picture, if there is none."""
        id_, address = pair
        if not id_.isascii() or not id_.replace("-", "").replace("_", "").isalnum():
            return id_, "an id that is no file's name"
        target = self._folder / f"{id_}{_SUFFIX}"
        if target.is_file():
            return id_, None
        if self.stopped:
            return id_, "not asked for: the server does not answer"
        problem = self._fetch(address, target)
        self._judge(problem)
        return id_, problem

    def allowed(self, address: str) -> bool:
        """Whether an address is one of the hosts'."""
        try:
            parts = urlsplit(address)
            where = parts.netloc if parts.port else parts.hostname
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and where in self._hosts

    def _fetch(self, address: str, target: Path) -> str | None:
        if not self.allowed(address):
            return "another host's"
        for attempt in range(_ATTEMPTS):
            try:
                request = urllib.request.Request(address, headers={"User-Agent": AGENT})
                with self._opener.open(request, timeout=_TIMEOUT_S) as response:
                    content = response.read(_MOST_BYTES + 1)
                break
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503) or attempt + 1 == _ATTEMPTS:
                    return f"HTTP {error.code}"
                time.sleep(_pause(error.headers, self._wait_s * 2**attempt))
            except (OSError, http.client.HTTPException, ValueError):
                if attempt + 1 == _ATTEMPTS:
                    return "unreachable"
                time.sleep(self._wait_s * 2**attempt)
        if len(content) > _MOST_BYTES:
            return "too large"
        try:
            decode_image(content)
        except ImageProblem:
            return "no picture"
        temporary = target.with_suffix(".part")
        temporary.write_bytes(content)
        temporary.replace(target)
        return None

    def _judge(self, problem: str | None) -> None:
        """Stop asking where nothing but failures of the line has come."""
        with self._lock:
            self._any = self._any or problem != "unreachable"
            self._failures += 1
            if not self._any and self._failures >= _HOPELESS:
                self.stopped = True


class _SameHosts(urllib.request.HTTPRedirectHandler):
    """Follows redirects to known hosts alone."""

    def __init__(self, fetcher: _Fetcher) -> None:
        self._fetcher = fetcher

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """As the parent's; HTTPError where the new address is another host's."""
        if not self._fetcher.allowed(newurl):
            raise urllib.error.HTTPError(req.full_url, code, "to another host", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _pause(headers: Any, usual_s: float) -> float:
    """How long a busy server wants one to wait."""
    asked = headers.get("Retry-After", "") if headers else ""
    return min(_MOST_WAIT_S, float(asked) if asked.isdecimal() else usual_s)
