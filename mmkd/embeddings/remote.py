"""A cache on an object store: shards as immutable objects, read through a local mirror.

From ``cache.folder: s3://bucket/prefix`` to a mirror, a cache's folder like any other, in which all
the rest of this package works; and back to objects:

    STORE/meta.json, card.yaml          as in a folder
    STORE/shards/NAME.parquet           a shard's records; that it is there commits the shard
    STORE/shards/NAME-CHECKSUM.npy      its vectors

NAME is a digest of the keys of the shard's inputs, in their order, and of which have no vector: the
same for the same chunk, unless one machine could encode what another could not. An object is
written only if there is none of its name: of two machines that encode the same chunk the first is
kept, and neither needs a lock. What is not sent yet, for the network broke, is whatever the mirror
has and the store does not, so nothing has to be remembered.
"""

import hashlib
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import polars as pl
from filelock import FileLock, Timeout

from mmkd.column_files import parse_parquet
from mmkd.embeddings.inputs import text_key
from mmkd.embeddings.shards import OK, ShardInfo, ShardStore, reading, records_of, writing
from mmkd.embeddings.stores import DamagedMetaError, read_meta
from mmkd.errors import CacheError, Interrupted, one_of
from mmkd.files import read_json, replacing, write_json

_logger = logging.getLogger(__name__)
SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "file")
_DESCRIPTION = ("card.yaml", "meta.json")  # in this order: a store is one once it has the second
_AT_ONCE = 16  # requests under way
_HELD = 64  # fetched shards in memory at most
_CONNECT_S, _RETRIES, _RETRY_S = 10, 5, 60
_ASKED_S = 1.0  # between two questions whether to stop, while another process syncs


def is_url(folder: Path | str) -> bool:
    """Whether a cache's folder is named by an address, such as ``s3://bucket/prefix``."""
    return isinstance(folder, str) and "://" in folder


def url_problems(url: str) -> list[str]:
    """A line for each reason why an address can be no cache's; what is secret in it is not told."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as half a bracket
        return ["folder: got an address that is none; wanted such as s3://bucket/prefix"]
    if parts.username or parts.password or parts.query or parts.fragment:
        return [
            f"folder: got a {parts.scheme}:// address with more in it than a bucket and a prefix; "
            "an address is kept in run folders, so it may hold no password: give credentials by "
            "the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ]
    problems = one_of(SCHEMES, **{"folder (before ://)": parts.scheme})
    if not problems and (parts.scheme == "file") == bool(parts.netloc):
        problems = [f"folder: got {url}, wanted such as s3://bucket/prefix or file:///mnt/cache"]
    return problems


def default_mirror(url: str) -> Path:
    """Where an object store is mirrored by default: below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", url).strip("-")[:48]
    return home / "mmkd" / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


class RemoteCache:
    """The object store behind a mirror.

    Args:
        url: Such as ``s3://bucket/prefix``. Credentials come from the environment, or for S3 from
            where boto3 finds them, if it is installed.
        mirror: The mirror's folder, for messages.

    Raises:
        CacheError: obstore is not installed, or the address or the credentials are none.
    """

    def __init__(self, url: str, mirror: Path) -> None:
        self.url = url.rstrip("/")
        self._mirror = mirror
        with self._told("cannot be opened"):
            self._objects = _opened(self.url)

    def holds(self, store: str) -> bool:
        """Whether there is any vector of an encoder's store."""
        return bool(self._listed(f"{store}/shards/"))

    def sync(self, store: ShardStore, stop: Callable[[], bool] | None = None) -> None:
        """Fetches the shards that the mirror lacks, and sends those that the object store lacks.

        Lists once. A damaged object is removed, so that its inputs are encoded and sent again.

        Args:
            store: The mirror's.
            stop: Asked now and then while there is something to fetch.

        Raises:
            Interrupted: ``stop`` said so; what was fetched is kept.
            CacheError: The object store cannot be read or written; what the mirror has is kept.
        """
        name = store.folder.name
        found = self._listed(f"{name}/")
        self._describe(store.folder, found)
        # one process of a machine at a time: the others then find all of it here
        lock = store.folder / "claims" / "sync.lock"
        with writing(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            waiting = FileLock(lock)
            while not waiting.is_locked:
                _obey(stop)
                with suppress(Timeout):
                    waiting.acquire(timeout=_ASKED_S)
        try:
            here = shard_names(store)
            there = [p for p in found if p.startswith(f"{name}/shards/") and p.endswith(".parquet")]
            missing = [path for path in there if Path(path).stem not in here]
            for start in range(0, len(missing), _HELD):
                _obey(stop)
                self._fetch(store, missing[start : start + _HELD])
            if missing:
                _logger.info("%s: %d shards fetched to %s", self.url, len(missing), self._mirror)
            known = {Path(path).stem for path in there}
            unsent = [number for shard, number in here.items() if shard not in known]
            list(self._mapped(lambda number: self.send(store, number), unsent))
        finally:
            waiting.release()

    def send(self, store: ShardStore, number: int) -> None:
        """Sends one shard of the mirror, unless the object store has one of its inputs.

        Raises:
            CacheError: It cannot be written.
        """
        path, vectors = store.path(number), b""
        with reading(path):
            try:
                # read once: the number may be another shard's at any moment
                records = path.with_suffix(".parquet").read_bytes()
                read = records_of(parse_parquet(records))
                if read is not None and read[1].rows:
                    vectors = path.read_bytes()
            except (FileNotFoundError, ValueError):  # removed since, or damaged
                return
        if read is None or _unsound(vectors, read[1]):
            return  # damaged: whoever opens the table finds it
        frame, info = read
        folder = f"{store.folder.name}/shards/{_name(frame)}"
        if info.rows:
            self._put(f"{folder}-{info.checksum:08x}.npy", vectors)
        self._put(f"{folder}.parquet", records)

    def _describe(self, folder: Path, found: dict[str, Any]) -> None:
        """Fetches or sends what says which encoder a store is of, and in what format."""
        here = {f"{folder.name}/{name}": folder / name for name in _DESCRIPTION}
        for there, path in here.items():
            with suppress(FileNotFoundError):  # removed since
                if there in found and (content := self._get(there)) != _content(path):
                    with writing(path), replacing(path) as temporary:
                        temporary.write_bytes(content)
        try:
            read_meta(folder)  # refuses a newer format
        except DamagedMetaError:  # it is written again here, and then sent
            self._remove(f"{folder.name}/meta.json")
            return
        for there, path in here.items():
            if there not in found and (own := _content(path)) is not None:
                self._put(there, own)

    def _fetch(self, store: ShardStore, paths: list[str]) -> None:
        for path, shard in zip(paths, self._mapped(self._shard, paths), strict=True):
            if shard is None:
                _logger.warning("%s/%s: damaged; its inputs are encoded again", self.url, path)
            else:
                store.adopt(*shard)

    def _shard(self, path: str) -> tuple[pl.DataFrame, ShardInfo, bytes] | None:
        """A shard's records, what its vectors must be, and they; None if damaged, then removed."""
        vectors = ""
        for _ in range(2):  # what came damaged once may have been so by the way
            try:
                records = self._get(path)
                read = records_of(parse_parquet(records))
                if read is None:  # whole, but not as this version writes it
                    raise CacheError(
                        f"{self.url}/{path}: is no shard that this version of mmkd knows; upgrade "
                        "mmkd, or choose another cache.folder"
                    )
                frame, info = read
                vectors = f"{path.removesuffix('.parquet')}-{info.checksum:08x}.npy"
                content = self._get(vectors) if info.rows else b""
                if not _unsound(content, info) and _name(frame) == Path(path).stem:
                    return frame, info, content
            except (
                CacheError
            ):  # a ValueError too, but of the network: nothing is known to be damaged
                raise
            except (ValueError, FileNotFoundError):
                continue
        # the records first: without them the rest is no shard
        for damaged in filter(None, (path, vectors)):
            self._remove(damaged)
        return None

    def _listed(self, prefix: str) -> dict[str, Any]:
        """Objects below a prefix by path, the oldest first."""
        import obstore

        with self._told("cannot be listed"):
            pages = obstore.list(self._objects, prefix=prefix, chunk_size=1000)
            found = [one for page in pages for one in page]
        found.sort(key=lambda one: (one["last_modified"], one["path"]))
        return {one["path"]: one for one in found}

    def _get(self, path: str) -> bytes:
        """FileNotFoundError where there is none."""
        import obstore

        with self._told("cannot be read"):
            return bytes(obstore.get(self._objects, path).bytes())

    def _put(self, path: str, content: bytes) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._told("cannot be written"), suppress(AlreadyExistsError):
            try:
                obstore.put(self._objects, path, content, mode="create")
            except FileNotFoundError as error:  # of a put: there is no such bucket
                raise OSError(str(error)) from error

    def _remove(self, path: str) -> None:
        import obstore
        from obstore.exceptions import BaseError

        with suppress(BaseError, OSError):  # who may only read leaves it to the others
            obstore.delete(self._objects, path)

    def _mapped(self, function: Callable[[Any], Any], values: list[Any]) -> Iterator[Any]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield from pool.map(function, values)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Words the errors of an object store and of the network; a missing object's passes."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if not (isinstance(error, OSError) or type(error).__module__.startswith("obstore")):
                raise
            raise CacheError(
                f"{self.url}: {what} ({_cause(error)}); {_remedy(error)}; what is encoded is kept "
                f"in {self._mirror} and sent by the next run"
            ) from error


def shard_names(store: ShardStore) -> dict[str, int]:
    """Numbers of a store's whole shards by the names that they have in an object store.

    Of one whose vectors are gone or cut there is no name: it can be fetched again. ``names.json``
    keeps names by size and time of change of the records, so that these are read once.
    """
    path = store.folder / "names.json"
    known: dict[str, list[Any]] = {}
    with suppress(OSError, ValueError):
        known = read_json(path)
    found: dict[str, list[Any]] = {}
    for number in store.numbers():
        with suppress(FileNotFoundError):
            stat = store.path(number).with_suffix(".parquet").stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
            kept = known.get(str(number), [])
            if len(kept) != 4 or kept[:2] != stamp:
                if (read := store.records(number)) is None:
                    continue
                kept = [*stamp, read[1].size_bytes, _name(read[0])]
            if not kept[2] or store.path(number).stat().st_size == kept[2]:
                found[str(number)] = kept
    if found != known:
        with suppress(OSError):
            write_json(path, found)
    return {name: int(number) for number, (*_, name) in found.items()}


def _obey(stop: Callable[[], bool] | None) -> None:
    if stop is not None and stop():
        raise Interrupted("stopped: what was fetched is kept; the same command goes on")


def _content(path: Path) -> bytes | None:
    with reading(path), suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _name(records: pl.DataFrame) -> str:
    rows = records.select("key", "status").iter_rows()
    return text_key("\n".join(key if status == OK else f"{key} {status}" for key, status in rows))


def _unsound(content: bytes, info: ShardInfo) -> bool:
    return len(content) != info.size_bytes or zlib.crc32(content) != info.checksum


def _opened(url: str) -> Any:
    try:
        from obstore.store import from_url
    except ModuleNotFoundError:
        raise CacheError("obstore is not installed; run: pip install 'mmkd[objectstore]'") from None
    scheme = urlsplit(url).scheme
    if scheme == "file":
        return from_url(url, mkdir=True)
    options: dict[str, Any] = {
        "client_options": {"connect_timeout": timedelta(seconds=_CONNECT_S)},
        "retry_config": {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)},
    }
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        options["client_options"]["allow_http"] = endpoint.startswith("http://")
        if "AWS_ACCESS_KEY_ID" not in os.environ:
            with suppress(ImportError, ValueError):  # ~/.aws, single sign-on and the like
                from obstore.auth.boto3 import Boto3CredentialProvider

                options["credential_provider"] = Boto3CredentialProvider()
    return from_url(url, **options)


def _cause(error: Exception) -> str:
    """The first line, and the code in an S3 answer, which says most."""
    text = str(error)
    code = re.search(r"<Code>(\w+)</Code>", text)
    return code[1] if code else " ".join(text.partition("\n\n")[0].split())[:300]


def _remedy(error: Exception) -> str:
    text = str(error)
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return "there is no such bucket: make it, or correct cache.folder"
    denied = ("PermissionDenied", "Unauthenticated")
    if type(error).__name__.startswith(denied) or re.search("credential|169.254|metadata", text):
        return (
            "give credentials that may list, read and write it, by the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION) or ~/.aws (with boto3)"
        )
    return (
        "look after the network and AWS_ENDPOINT_URL (a service that knows no write on condition "
        "cannot be used), or do without it for now by naming the mirror as cache.folder"
    )
