"""Naive float64 re-derivations of KDSR's formulas, one pair at a time (arXiv:2401.07257)."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def similarity(a: Vector, b: Vector, kind: str) -> float:
    dot = sum(float(p) * float(q) for p, q in zip(a, b, strict=True))
    if kind == "dot":
        return dot
    if kind == "cosine":
        norms = math.sqrt(sum(float(p) ** 2 for p in a)) * math.sqrt(sum(float(q) ** 2 for q in b))
        return dot / norms if norms > 0 else 0.0
    gaps = [abs(float(p) - float(q)) for p, q in zip(a, b, strict=True)]
    distance = sum(gaps) if kind == "manhattan" else math.sqrt(sum(g**2 for g in gaps))
    return 1 / (1 + distance)


def dissected(a: Vector, b: Vector, facets: int, kind: str) -> list[float]:
    size = len(a) // facets
    return [
        similarity(a[p * size : (p + 1) * size], b[p * size : (p + 1) * size], kind)
        for p in range(facets)
    ]


def pairs_of(items: Sequence[Sequence[int]], present: Sequence[bool]) -> list[tuple[int, int, int]]:
    """(sequence, first, second) of every unordered pair of distinct items with the modality."""
    found = []
    for b, row in enumerate(items):
        for i in range(len(row)):
            for j in range(i + 1, len(row)):
                if row[i] == row[j]:
                    continue
                if all(0 < r < len(present) and present[r] for r in (row[i], row[j])):
                    found.append((b, i, j))
    return found


def soft_code(r: Sequence[float], centroids: Vector, temperature: float) -> list[float]:
    squared = [sum((x - float(c)) ** 2 for x, c in zip(r, row, strict=True)) for row in centroids]
    nearest = min(squared)
    weights = [math.exp(-(s - nearest) / temperature) for s in squared]
    return [w / sum(weights) for w in weights]


def hard_code(r: Sequence[float], centroids: Vector) -> int:
    squared = [sum((x - float(c)) ** 2 for x, c in zip(r, row, strict=True)) for row in centroids]
    return squared.index(min(squared))


def holistic_loss(
    table: Vector,
    items: Sequence[Sequence[int]],
    present: Sequence[bool],
    rho: Callable[[int, int], float],
    *,
    g: Callable[[Vector], Vector],
    kind: str,
    temperature: float,
    rms: bool = False,
) -> float:
    """The Frobenius norm as published: over the full matrix, so over ordered pairs."""
    norms = []
    for row in items:
        squares = []
        for i, a in enumerate(row):
            for j, b in enumerate(row):
                if i == j or a == b:
                    continue
                if all(0 < r < len(present) and present[r] for r in (a, b)):
                    error = similarity(g(table[a]), g(table[b]), kind) - rho(a, b)
                    squares.append((abs(error) / temperature) ** 2)
        if squares:
            norms.append(math.sqrt(sum(squares) / (len(squares) if rms else 1)))
    return sum(norms) / len(norms) if norms else 0.0


def dissected_loss(
    table: Vector,
    items: Sequence[Sequence[int]],
    present: Sequence[bool],
    code: Callable[[int, int], list[float]],
    *,
    mlp: Callable[[Vector], Vector],
    normalize: bool = False,
) -> float:
    """Mean KL(code || softmax(mlp(|S_i - S_j|))); a one-hot code makes it the cross-entropy."""
    losses = []
    for b, i, j in pairs_of(items, present):
        one, other = table[items[b][i]], table[items[b][j]]
        if normalize:
            one, other = (
                v / math.sqrt(float((v**2).sum())) * math.sqrt(len(v)) for v in (one, other)
            )
        logits = mlp(np.abs(one - other))
        log_total = math.log(sum(math.exp(x) for x in logits))
        losses.append(
            sum(
                q * (math.log(q) - (float(x) - log_total))
                for q, x in zip(code(items[b][i], items[b][j]), logits, strict=True)
                if q > 0
            )
        )
    return sum(losses) / len(losses) if losses else 0.0
