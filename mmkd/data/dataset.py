"""Dataset: a user's files to the catalogue, the log and its split.

Its digests tell a resumed or evaluated run of other data.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mmkd.data.interactions import InteractionLog
from mmkd.data.items import ItemTable
from mmkd.data.readers import load_interactions, load_items
from mmkd.data.splits import SPLITS, SequenceSplit
from mmkd.errors import DataError, did_you_mean

Split = Callable[[InteractionLog, int], SequenceSplit]


@dataclass(frozen=True)
class Dataset:
    r"""What a run trains on and is measured by.

        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from mmkd import Dataset
        >>> root = Path(mkdtemp())
        >>> _ = (root / "items.csv").write_text("item_id,name\nA1,Teapot\nB7,Cup\nC3,Tray\n")
        >>> _ = (root / "log.csv").write_text("user_id,item_id\nada,A1\nada,C3\nada,B7\n")
        >>> data = Dataset.load(
        ...     root,
        ...     items={"path": "items.csv", "title": "name"},
        ...     interactions={"path": "log.csv", "timestamp": None},
        ...     split="leave_one_out",
        ... )
        >>> [data.items.titles[row] for row in data.split.sequence(0)]
        ['Teapot', 'Tray', 'Cup']

    Attributes:
        items: The catalogue.
        log: The events that are left after filtering.
        split: The users' sequences, and what of them trains, validates and tests.
    """

    items: ItemTable
    log: InteractionLog
    split: SequenceSplit

    @classmethod
    def load(
        cls,
        root: Path | str,
        *,
        items: Mapping[str, Any],
        interactions: Mapping[str, Any],
        split: str | Mapping[str, Any] | Split = "leave_one_out",
    ) -> Self:
        """Reads the catalogue and the log, and splits the sequences.

        Args:
            root: The data folder.
            items: Options of `load_items`.
            interactions: Options of `load_interactions`.
            split: A name of `SPLITS`; a mapping of its ``kind`` and options; or a function of one's
                own, from the log and the number of items to a `SequenceSplit`.

        Raises:
            DataError: The split is unknown, a file cannot be used, or there is nothing to test.
        """
        protocol = split if callable(split) else _protocol(split)
        catalogue = load_items(root=Path(root), **items)
        log = load_interactions(catalogue, root=Path(root), **interactions)
        return cls(items=catalogue, log=log, split=protocol(log, len(catalogue)))

    def digests(self) -> dict[str, str]:
        """One SHA-256 for each thing that may change by itself.

        Returns:
            ``catalogue``, ``users``, ``events`` and ``split``: name to hexadecimal digest.
        """
        split, valid, test = self.split, self.split.valid, self.split.test
        cases = (valid.user, valid.position, test.user, test.position)
        return {
            "catalogue": _of_texts(self.items.ids),
            "users": _of_texts(self.log.user_ids),
            "events": _of_arrays(split.items, split.offsets),
            "split": _of_arrays(split.train_end, *cases),
        }


def _protocol(given: str | Mapping[str, Any]) -> Split:
    options = {"kind": given} if isinstance(given, str) else dict(given)
    kind = options.pop("kind", None)
    if kind not in SPLITS:
        raise DataError(
            f"split: got kind {kind!r}, wanted one of {', '.join(SPLITS)}, or a function"
            f"{did_you_mean(str(kind), SPLITS)}"
        )
    return partial(SPLITS[kind], **options)


def _of_texts(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little"))  # or "a","bc" would equal "ab","c"
        digest.update(content)
    return digest.hexdigest()


def _of_arrays(*arrays: NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()
