"""The campaign's rows: a line of JSON a run, with the rank of every test case packed into it.

A file holds one data set. Lines are appended as runs end, under a lock, so that several processes
write to one file, and a campaign goes on from its rows on any machine.
"""

import base64
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mmkd.evaluation.metrics import per_case
from mmkd.evaluation.ranking import CaseRanks

_FAR = 21  # ranks past all cut-offs are kept as this one


@dataclass(frozen=True)
class Row:
    """One run that ended.

    Attributes:
        variant: Its name.
        trial: Number of the draw.
        seed: Of the training.
        chosen: The searched overrides.
        valid: NDCG@10 on validation, of the kept epoch.
        test: Metrics on the test set, those of slices as ``cold/NDCG@10``.
        ranks: Of all test cases, packed.
        seconds: Of training, validations included; one thread.
        epochs: That were trained.
        parameters: Of the network or networks.
        commit: Of mmkd.
    """

    variant: str
    trial: int
    seed: int
    chosen: tuple[str, ...]
    valid: float
    test: dict[str, float]
    ranks: str
    seconds: float
    epochs: int
    parameters: int
    commit: str

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes a row unlike the others."""
        return self.variant, self.trial, self.seed


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Row(**{**one, "chosen": tuple(one["chosen"])}) for one in map(json.loads, lines)]


def append_row(path: Path, row: Row) -> None:
    """Add a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row), sort_keys=True) + "\n")


def pack(ranks: CaseRanks) -> str:
    """Users, best possible rank and ties of every case, as text.

    >>> import numpy as np
    >>> one = np.array([0, 1, 2])
    >>> ranks = CaseRanks(one, one, one, np.array([1.0, 4.5, 9000.0]), one % 2, one[:, None])
    >>> back = unpack(pack(ranks))
    >>> back.rank.tolist(), back.ties.tolist()
    ([1.0, 4.5, 21.0], [0, 1, 0])
    """
    best = np.rint(ranks.rank - ranks.ties / 2).clip(max=_FAR).astype(np.uint8)
    ties = np.where(best < _FAR, ranks.ties, 0).clip(max=255).astype(np.uint8)
    steps = np.diff(ranks.user, prepend=0).astype(np.int32)
    content = zlib.compress(best.tobytes() + ties.tobytes() + steps.tobytes(), 9)
    return base64.b85encode(content).decode()


def unpack(text: str) -> CaseRanks:
    """What ``pack`` kept; targets and lists are not."""
    content = zlib.decompress(base64.b85decode(text))
    count = len(content) // 6
    best, ties = np.frombuffer(content[: 2 * count], np.uint8).reshape(2, count).astype(np.int64)
    user = np.frombuffer(content[2 * count :], np.int32).astype(np.int64).cumsum()
    case = np.arange(count)
    nothing: NDArray[np.int64] = np.zeros((count, 1), np.int64)
    return CaseRanks(case, user, np.zeros(count, np.int64), best + ties / 2, ties, nothing)


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """The test figures of a run's result, flat."""
    test = result["test"]
    flat = {
        f"{name}/{key}": value for name, own in test["slices"].items() for key, value in own.items()
    }
    return {**test["metrics"], "coverage@10": test["coverage@10"], **flat}


def check(row: Row) -> None:
    """The packed ranks have the row's NDCG@10.

    Raises:
        ValueError: They do not.
    """
    ranks = unpack(row.ranks)
    found = float(per_case(ranks.rank, "NDCG@10", ties=ranks.ties).mean())
    if abs(found - row.test["NDCG@10"]) > 1e-6:
        raise ValueError(
            f"{row.key}: packed ranks have NDCG@10 {found}, the run {row.test['NDCG@10']}"
        )
