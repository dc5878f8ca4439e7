"""Downloads: an address to a whole file, in pieces where the line breaks, never more than allowed.

What has come lies in ``NAME.part``, beside the server's word for this version of the file
(``NAME.part.tag``), so that a later call asks for the rest (``Range``, ``If-Range``) and gets all
of it again only where the file changed. A file has its name once it is whole and its checksum
agrees.
"""

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mmkd import __version__
from mmkd.errors import DataError, outside
from mmkd.files import open_plain, sync, write_text
from mmkd.published.known import RemoteFile

Progress = Callable[[str, int, int], None]
"""Told a file's name, the bytes that are there and the bytes in all (0: not known)."""

AGENT = f"mmkd/{__version__} (+https://mmkd.readthedocs.io)"
_TIMEOUT_S = 20.0
_BLOCK = 1 << 20
_ATTEMPTS = 5  # in a row without a new byte
_BROKEN = (OSError, http.client.HTTPException)


class Unreachable(DataError):  # noqa: N818 - a state of the network, not a fault
    """An address gives nothing: no network, no such host, or a refusal."""


def size_of(file: RemoteFile, *, timeout_s: float = _TIMEOUT_S) -> int | None:
    """How large a file is, as its server says; None where it does not.

    Raises:
        Unreachable: No address of it answers.
    """
    problems = []
    for url in file.urls:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": AGENT})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                length = response.headers.get("Content-Length")
                return int(length) if length and length.isdecimal() else None
        except _BROKEN as error:
            problems.append(f"{url}: {_said(error)}")
    raise Unreachable("; ".join(problems))


def download(
    file: RemoteFile,
    folder: Path,
    *,
    progress: Progress | None = None,
    timeout_s: float = _TIMEOUT_S,
    wait_s: float = 1.0,
) -> Path:
    """Bring a file into a folder, or what is missing of it.

    Args:
        file: What, from where, how much at most.
        folder: Made.
        progress: Told how far it is.
        timeout_s: Without a byte, after which a line counts as broken.
        wait_s: Before a broken line is tried again; doubled each time.

    Returns:
        The file, whole.

    Raises:
        Unreachable: No address of it answers, or the line breaks again and again.
        DataError: It is larger than allowed or than the disk has room, or its checksum differs.
    """
    target = folder / file.name
    with outside(DataError, folder, "can't be written", remedy="give another place with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        if target.is_file():
            _check(target, file)
            return target
        problems = []
        for url in file.urls:
            try:
                part = _fetched(file, url, folder, progress, timeout_s, wait_s)
                break
            except Unreachable as error:
                problems.append(str(error))
        else:
            raise Unreachable("; ".join(problems))
        _check(part, file)
        sync(part)
        os.replace(part, target)
        sync(folder)
        _tag(part).unlink(missing_ok=True)
    return target


def _fetched(
    file: RemoteFile,
    url: str,
    folder: Path,
    progress: Progress | None,
    timeout_s: float,
    wait_s: float,
) -> Path:
    """All of a file, beside its place; the line may break as long as something new comes."""
    part, failed, began = folder / f"{file.name}.part", 0, False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _piece(file, url, part, progress, timeout_s):
                return part
            problem: object = "the connection ended early"
            began = True
        except urllib.error.HTTPError as error:
            if error.code != 416 or not before:
                raise Unreachable(f"{url}: {_said(error)}") from error
            part.unlink()  # there is no such rest: it is of another version
            continue
        except _BROKEN as error:
            if isinstance(error, OSError) and error.filename:  # of the disk, not of the line
                raise
            problem = error
        now = part.stat().st_size if part.exists() else 0
        failed = 0 if now > before else failed + 1
        if failed >= (_ATTEMPTS if began or now else 1):  # the first refusal is told at once
            raise Unreachable(f"{url}: {_said(problem)}")
        began = True
        time.sleep(wait_s * 2**failed)


def _piece(
    file: RemoteFile, url: str, part: Path, progress: Progress | None, timeout_s: float
) -> bool:
    """Ask for what is missing and add what comes; whether the file is whole now."""
    tag = _tag(part)
    have = part.stat().st_size if part.exists() and tag.is_file() else 0
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text("utf-8")}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        if not (have and response.status == 206):
            have = 0  # all of it, from the start: it changed, or the server knows no pieces
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else 0
        _check_room(file, part, total, total - have)
        known = response.headers.get("ETag", "")
        if known.startswith("W/") or not known:  # a weak one is none to resume by
            known = response.headers.get("Last-Modified", "")
        if known and not have:
            write_text(tag, known)
        with part.open("r+b" if have else "wb") as out:
            out.seek(have)
            while block := response.read(_BLOCK):
                have += len(block)
                if have > file.most_bytes:
                    raise DataError(_too_large(file, have))
                out.write(block)
                if progress:
                    progress(file.name, have, total)
            out.truncate()
    return not total or have == total


def _check_room(file: RemoteFile, part: Path, total: int, missing: int) -> None:
    if total > file.most_bytes:
        raise DataError(_too_large(file, total))
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise DataError(
            f"{file.name}: {missing:,} bytes are missing and {free:,} are free in {part.parent}; "
            "free some space, or give another place with --out"
        )


def _too_large(file: RemoteFile, got: int) -> str:
    return (
        f"{file.name}: the server sends {got:,} bytes or more, wanted at most "
        f"{file.most_bytes:,}; it is another file than expected: get it by hand (--from)"
    )


def _check(path: Path, file: RemoteFile) -> None:
    """Raise DataError unless the checksum is the published one; then the file is removed."""
    if file.md5 is None:
        return
    with open_plain(path) as opened:
        digest = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != file.md5:
        with suppress(OSError):
            path.unlink()
            _tag(path).unlink(missing_ok=True)
        raise DataError(
            f"{path}: its MD5 is {digest}, wanted {file.md5}; it was damaged on the way or changed "
            "by its owners, and is removed: give the command again"
        )


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _said(error: object) -> str:
    reason = getattr(error, "reason", None)
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {reason}"
    told = getattr(reason, "strerror", None) or reason or error
    return str(told) or type(error).__name__
