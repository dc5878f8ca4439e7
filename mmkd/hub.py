"""The hub: files of a repository fetched, by name and size, or sent; and whether it can be reached.

A repository is anybody's: of its files only those of an allow-list are brought here, each up to a
size, and nothing that is brought is code or a pickle. Whoever reads them checks them as those of
any folder. Where the hub cannot be reached its clients would try for most of a minute; here it is
asked once, for three seconds at most.
"""

import re
import ssl
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from mmkd.errors import MmkdError

_PROBE_S = 3.0
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repository(name: str | Path) -> bool:
    """Whether a name is spelled like a repository's, ``org/name``.

    >>> from mmkd.hub import is_repository
    >>> is_repository("ann/shop"), is_repository("shop"), is_repository("./ann/shop")
    (True, False, False)
    """
    return _REPOSITORY.fullmatch(str(name)) is not None


def is_elsewhere(name: str | Path) -> bool:
    """Whether a name is a repository's and cannot be meant as a path: no such folder is here."""
    return is_repository(name) and not Path(name).parent.is_dir()


def fetch(
    repository: str,
    allowed: Mapping[str, int],
    *,
    holds: Sequence[str],
    what: str,
    kind: type[MmkdError],
    revision: str | None = None,
) -> Path:
    """Bring a repository's files into the hub's cache, or find them there.

    Args:
        repository: ``org/name``.
        allowed: Patterns of the only names to bring, and the most bytes of a file of each.
        holds: Files of which any says that it is what is wanted, the usual one first.
        what: What that is, such as ``a run of mmkd``.
        kind: The error to raise.
        revision: Branch, tag or commit; None is the main branch.

    Returns:
        The folder that holds them.

    Raises:
        MmkdError: Of ``kind``: there is no such repository or revision, it holds something else or
            a file that is too large, or the hub can't be reached and the cache has no copy.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    online = not constants.HF_HUB_OFFLINE and hub_reachable()
    with _asking(repository, kind, revision=revision):
        if not online:
            patterns = list(allowed)
            folder = snapshot_download(
                repository, revision=revision, local_files_only=True, allow_patterns=patterns
            )
            if not any((Path(folder) / name).is_file() for name in holds):
                raise kind(_not_here(repository))
            return Path(folder)
        api = HfApi(endpoint=constants.ENDPOINT)
        commit = api.model_info(repository, revision=revision).sha
        found = api.list_repo_tree(repository, recursive=True, revision=commit)
        sizes = {file.path: file.size for file in found if isinstance(file, RepoFile)}
        if not sizes.keys() & {*holds}:
            raise kind(
                f"{repository}: holds no {holds[0]}, so it is not {what}; look at "
                f"{constants.ENDPOINT}/{repository}"
            )
        wanted = _wanted(repository, sizes, allowed, kind)
        folder = snapshot_download(  # by its name, so that it is found by it without a network
            repository,
            revision=revision,
            allow_patterns=sorted(wanted),
            endpoint=constants.ENDPOINT,
        )
        if Path(folder).name != commit:
            raise kind(f"{repository}: changed while it was read; load it again")
    for name in wanted:
        if (size := (Path(folder) / name).stat().st_size) != sizes[name]:
            raise kind(
                f"{repository}: {name} has {size} bytes and not the {sizes[name]} that the hub "
                "names; delete it from the hub's cache and load again"
            )
    return Path(folder)


def send(
    repository: str,
    files: Mapping[str, Path | bytes],
    *,
    replaces: Mapping[str, int],
    holds: Sequence[str],
    message: str,
    kind: type[MmkdError],
    private: bool | None = None,
) -> str:
    """Put files into a repository as one commit; it is made where there is none.

    Args:
        repository: ``org/name``.
        files: Name in the repository to the file, or to its content.
        replaces: Patterns of names that go where they are not among ``files``: those of what was
            sent before.
        holds: Files by any of which a repository that is there says that it is such a one.
        message: Of the commit.
        kind: The error to raise.
        private: Whether a new repository is for its owner alone; None leaves it to the hub.

    Returns:
        Where it is to be looked at.

    Raises:
        MmkdError: Of ``kind``: there is no token, it may not write, the repository holds something
            else, or the hub can't be reached.
    """
    from huggingface_hub import (
        CommitOperationAdd,
        CommitOperationDelete,
        HfApi,
        constants,
        get_token,
    )

    if constants.HF_HUB_OFFLINE or not hub_reachable():
        raise kind(
            f"{repository}: {_out_of_reach()}, so nothing was sent; try again with a network"
        )
    if get_token() is None:
        raise kind(
            f"{repository}: there is no token to write with; log in with `hf auth login`, or set "
            "HF_TOKEN"
        )
    with _asking(repository, kind):
        api = HfApi(endpoint=constants.ENDPOINT)
        api.create_repo(repository, private=private, exist_ok=True)
        there = set(api.list_repo_files(repository)) - {".gitattributes", "README.md"}
        if there and not there & {*holds}:
            raise kind(
                f"{repository}: holds {sorted(there)[0]} and no {holds[0]}, so it is something "
                "else of yours; give another name"
            )
        gone = [
            name
            for name in sorted(there - files.keys())
            if any(fnmatchcase(name, pattern) for pattern in replaces)
        ]
        added = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in files.items()
        ]
        deleted = [CommitOperationDelete(path_in_repo=name) for name in gone]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a table of items is no data set
            api.create_commit(repository, [*added, *deleted], commit_message=message)
    return f"{constants.ENDPOINT}/{repository}"


@cache
def hub_reachable() -> bool:
    """Whether the hub answers at all; asked once, and for three seconds at most."""
    from huggingface_hub import constants

    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_PROBE_S):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError) as error:
            # a certificate that only the hub's own client knows still came from somebody
            if isinstance(getattr(error, "reason", error), ssl.SSLError):
                answered.set()
        finally:
            asked.set()

    asked = threading.Event()
    # beside this thread, because a name that doesn't resolve heeds no timeout
    threading.Thread(target=ask, daemon=True).start()
    asked.wait(_PROBE_S)
    return answered.is_set()


def _wanted(
    repository: str, sizes: Mapping[str, int], allowed: Mapping[str, int], kind: type[MmkdError]
) -> list[str]:
    """The names that are allowed; an error of ``kind`` where one is too large."""
    wanted = []
    for name, size in sizes.items():
        most = max((n for pattern, n in allowed.items() if fnmatchcase(name, pattern)), default=0)
        if not most or name.startswith("/") or ".." in name.split("/"):
            continue
        if size > most:
            raise kind(
                f"{repository}: {name} has {size / 1e6:,.0f} MB, wanted at most {most / 1e6:,.0f}; "
                "it is none that mmkd wrote"
            )
        wanted.append(name)
    return wanted


@contextmanager
def _asking(
    repository: str, kind: type[MmkdError], *, revision: str | None = None
) -> Iterator[None]:
    """What the hub's client raises, as one message of ``kind``."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{repository}"
    try:
        yield
    except GatedRepoError as error:
        raise kind(
            f"{repository}: its owner asks for terms to be accepted at {page}, by whom your token "
            "is (hf auth login)"
        ) from error
    except RepositoryNotFoundError as error:
        raise kind(
            f"{repository}: is no folder here, and there is no such repository on "
            f"{constants.ENDPOINT}, or it is private and your token may not see it (hf auth login, "
            "or HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise kind(f"{repository}: has no revision {revision}; those there are: {page}") from error
    except LocalEntryNotFoundError as error:
        raise kind(_not_here(repository)) from error
    except HFValidationError as error:
        raise kind(f"{repository}: is no name for the hub's; write org/name") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise kind(
                f"{repository}: your token may not do that ({status}); give one that may write "
                "there (hf auth login, or HF_TOKEN)"
            ) from error
        raise kind(
            f"{repository}: {constants.ENDPOINT} answered with {status}; try again later"
        ) from error
    except MmkdError:
        raise
    except Exception as error:  # the client's transport has kinds of its own
        if isinstance(error, OSError) or type(error).__module__.startswith("http"):
            told = next(iter(str(error).splitlines()), type(error).__name__)
            raise kind(f"{repository}: the hub can't be asked ({told}); try again") from error
        raise


def _not_here(repository: str) -> str:
    from huggingface_hub import constants

    return (
        f"{repository}: is no folder here nor in the hub's cache {constants.HF_HUB_CACHE}, and "
        f"{_out_of_reach()}; where there is a network: hf download {repository}, then copy its "
        "folder here"
    )


def _out_of_reach() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    return f"{constants.ENDPOINT} can't be reached"
