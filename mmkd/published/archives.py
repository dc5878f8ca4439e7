"""Archives: a ZIP that a stranger packed, to the files that are wanted of it and nowhere else.

A member's own path is never a path here: who unpacks says what a wanted member is called. An
archive with a path out of its folder, a link or an encrypted member is refused whole, and never
more is written than was allowed, whatever the archive says of itself.
"""

import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from mmkd.errors import DataError, outside

_BLOCK = 1 << 20
_REMEDY = "get the archive again from its owners"


def read_member(archive: Path, name: str, *, most_bytes: int) -> bytes:
    """One member's content.

    Raises:
        DataError: The archive is damaged or unsafe, lacks the member, or it is too large.
    """
    with _opened(archive) as packed:
        found = next((info for info in packed.infolist() if info.filename == name), None)
        if found is None:
            raise DataError(f"{archive}: holds no {name}; {_REMEDY}")
        with packed.open(found) as member:
            content = member.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise DataError(f"{archive}: {name} is larger than {most_bytes:,} bytes; {_REMEDY}")
    return content


def unpack(
    archive: Path,
    folder: Path,
    wanted: Callable[[PurePosixPath], str | None],
    *,
    most_bytes: int,
    most_files: int,
) -> int:
    """Unpack what is wanted into one folder; a file that is there in full is left as it is.

    Args:
        archive: A ZIP.
        folder: Made.
        wanted: From a member's path to a file's name in ``folder``, or None.
        most_bytes: Of all files together.
        most_files: How many.

    Returns:
        How many files there are of it now.

    Raises:
        DataError: The archive is damaged or unsafe, or holds more than allowed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, total = 0, 0
    with _opened(archive) as packed:
        for info in packed.infolist():
            name = None if info.is_dir() else wanted(PurePosixPath(info.filename))
            if name is None:
                continue
            if PurePosixPath(name).name != name or name in ("", ".", ".."):
                raise DataError(f"{archive}: {info.filename}: {name!r} is no file's name")
            count += 1
            target, room = folder / name, most_bytes - total
            if target.is_file() and target.stat().st_size == info.file_size:
                total += info.file_size
                continue
            if count > most_files or info.file_size > room:
                raise DataError(_too_much(archive, most_bytes, most_files))
            with packed.open(info) as member, target.open("wb") as out:
                while block := member.read(min(_BLOCK, room + 1)):
                    room -= len(block)
                    if room < 0:  # its header says less than it holds
                        raise DataError(_too_much(archive, most_bytes, most_files))
                    out.write(block)
            total = most_bytes - room
    return count


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """A checked archive; what goes wrong inside says that it is damaged."""
    broken = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
    what = "is no sound ZIP archive"
    with outside(DataError, archive, what, remedy=_REMEDY, also=broken):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                _check_safe(archive, info)
            yield packed


def _check_safe(archive: Path, info: zipfile.ZipInfo) -> None:
    """Raise DataError of a member that an archive of data has no use for."""
    parts = info.filename.replace("\\", "/").split("/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    problem = None
    if info.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        problem = "its path leaves the archive's folder"
    elif "\x00" in info.orig_filename:
        problem = "its name has a null character"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        problem = "it is a link or a device"
    elif info.flag_bits & 1:
        problem = "it is encrypted"
    if problem:
        raise DataError(
            f"{archive}: member {info.filename!r} is refused: {problem}; the archive is not "
            f"the published one, {_REMEDY}"
        )


def _too_much(archive: Path, most_bytes: int, most_files: int) -> str:
    return (
        f"{archive}: holds more than {most_files:,} files or {most_bytes:,} bytes of what is "
        f"wanted; {_REMEDY}"
    )
