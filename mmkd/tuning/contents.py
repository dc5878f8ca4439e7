"""What is encoded of each item while an encoder is tuned: texts as tokens, pictures as pixels."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmkd.embeddings.inputs import Work
from mmkd.embeddings.pictures import PictureLoader
from mmkd.encoders.base import TunableEncoder
from mmkd.errors import DataError

Features = list[NDArray[Any]]
_AHEAD = 4  # batches of pictures


class Contents:
    """Items' contents in the form that a model takes.

    Args:
        encoder: Whose form it is.
        sources: [I+1] texts or pictures' files, None or blank where an item has none.
        workers: Processes that prepare pictures; None chooses by itself.

    Attributes:
        encoder: See above.
        groups: [I+1] int64, equal where items have the same source; 0 where there is none.
    """

    def __init__(
        self,
        encoder: TunableEncoder,
        sources: Sequence[str | Path | None],
        *,
        workers: int | None = None,
    ) -> None:
        self.encoder, self._sources, self._workers = encoder, sources, workers
        numbers: dict[str, int] = {}
        self.groups = np.array(
            [0 if not s else numbers.setdefault(str(s), len(numbers) + 1) for s in sources],
            np.int64,
        )
        self._tokens: dict[int, NDArray[Any]] = {}

    def batches(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Features]:
        """Features of the items of each batch, in its order; pictures are read some way ahead.

        Raises:
            DataError: A picture cannot be read any more.
        """
        if self.encoder.modality == "text":
            for rows in batches:
                yield self._texts(rows)
            return
        work = [self._work(int(row)) for rows in batches for row in rows]
        prepare: Any = getattr(self.encoder, "prepare", None)
        ahead = _AHEAD * max(map(len, batches), default=1)
        with PictureLoader(
            prepare, workers=self._workers, ahead=ahead, count=len(work)
        ) as pictures:
            loaded = pictures.load(work)
            for rows in batches:
                found = list(islice(loaded, len(rows)))
                for row, one in zip(rows, found, strict=False):
                    if one.content is None or one.item_id != str(row):
                        raise DataError(f"{self._sources[int(row)]}: {one.reason or 'is gone'}")
                if len(found) < len(rows):
                    raise DataError(f"{self._sources[int(rows[len(found)])]}: is gone")
                yield [np.asarray(one.content) for one in found]

    def _texts(self, rows: NDArray[np.int64]) -> Features:
        new = [int(row) for row in rows if int(row) not in self._tokens]
        texts = [str(self._sources[row]) for row in new]
        self._tokens |= dict(zip(new, self.encoder.features(texts), strict=True))
        return [self._tokens[int(row)] for row in rows]

    def _work(self, row: int) -> Work:
        source = self._sources[row]
        return Work(key=str(row), item_id=str(row), source=source if source is not None else "")
