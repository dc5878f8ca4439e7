"""Correlation types, looked at: a fitted codebook to the pairs of items nearest to its centroids.

A type is a way of being alike, a centroid of dissected correlations (KDSR, arXiv:2401.07257). Shown
are its correlation in each facet and the pairs that are most of that type, so that a person sees
what they have in common.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmkd.data.items import ItemTable
from mmkd.distiller import CorrelationDistiller, sample_pairs
from mmkd.report.cards import Card, Cards
from mmkd.terminal import printable

TYPES = 6
PAIRS = 4
_NEAREST = 200  # pairs of a type whose labels are counted
_SAMPLED = 100_000


@dataclass(frozen=True)
class CorrelationType:
    """One type.

    Attributes:
        number: Of the code.
        share: Of the sampled pairs that are of this type.
        facets: [F] its correlation in each facet.
        pairs: Those nearest to the centroid, each item once.
        labelled: Of the nearest pairs the share with a label in common; None without labels.
        label: The label that they have in common more than other pairs do.
    """

    number: int
    share: float
    facets: list[float]
    pairs: list[tuple[Card, Card]]
    labelled: float | None
    label: str | None

    @property
    def strength(self) -> float:
        """Mean correlation."""
        return float(np.mean(self.facets))


@dataclass(frozen=True)
class ModalityTypes:
    """Some types of a modality.

    Attributes:
        name: The modality.
        used: How many types the sampled pairs have.
        labelled: Share of all sampled pairs with a label in common; None without labels.
        types: Those shown.
    """

    name: str
    used: int
    labelled: float | None
    types: list[CorrelationType]


def modality_types(
    distiller: CorrelationDistiller, items: ItemTable, cards: Cards, *, name: str, seed: int = 0
) -> ModalityTypes:
    """Some types of one modality.

    Args:
        distiller: Fitted.
        items: The catalogue.
        cards: To show the items.
        name: The modality.
        seed: Of the pairs, half of which are neighbours, as when the types were fitted.
    """
    rows = torch.nonzero(distiller.present[name])[:, 0].numpy()
    vectors = distiller.reduced[name][torch.from_numpy(rows)].numpy()
    first, second = (rows[part] for part in sample_pairs(vectors, _SAMPLED, seed=seed))
    _, dissected = distiller.correlations(
        name, torch.from_numpy(first), torch.from_numpy(second)
    )  # [P, F]
    centroids = distiller.codebooks[name].centroids
    distance = torch.cdist(dissected, centroids.nan_to_num(posinf=1e6))  # [P, K]
    code = distance.argmin(1).numpy()
    counts = np.bincount(code, minlength=len(centroids))
    labels = _Labels(items)
    everywhere = labels.common(first[:5000], second[:5000])
    found = []
    for number in _chosen(centroids.numpy(), counts):
        here = np.flatnonzero(code == number)
        near = here[np.argsort(distance[here, number].numpy(), kind="stable")][:_NEAREST]
        common = labels.common(first[near], second[near])
        found.append(
            CorrelationType(
                number=number,
                share=float(counts[number] / len(code)),
                facets=centroids[number].tolist(),
                pairs=_distinct(first[near], second[near], cards),
                labelled=_share(common) if labels else None,
                label=_most(common, everywhere),
            )
        )
    used = int((counts > 0).sum())
    return ModalityTypes(name, used, _share(everywhere) if labels else None, found)


def _chosen(centroids: NDArray[np.float32], counts: NDArray[np.int64]) -> list[int]:
    """The strongest type, those that differ most between facets, and the weakest."""
    used = np.flatnonzero(counts >= PAIRS)
    by_strength = used[np.argsort(-centroids[used].mean(1), kind="stable")]
    if len(by_strength) <= TYPES:
        return [int(code) for code in by_strength]
    between = by_strength[1:-1]
    uneven = between[np.argsort(-centroids[between].std(1), kind="stable")][: TYPES - 2]
    kept = {int(code) for code in (by_strength[0], by_strength[-1], *uneven)}
    return [int(code) for code in by_strength if int(code) in kept]


def _distinct(
    first: NDArray[np.int64], second: NDArray[np.int64], cards: Cards
) -> list[tuple[Card, Card]]:
    """The first pairs of which no item was shown before."""
    shown: set[int] = set()
    pairs = []
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        if one in shown or other in shown:
            continue
        shown |= {one, other}
        pairs.append((cards(one), cards(other)))
        if len(pairs) == PAIRS:
            break
    return pairs


class _Labels:
    """Which labels items have in common."""

    def __init__(self, items: ItemTable) -> None:
        self._labels = items.attributes

    def __bool__(self) -> bool:
        return bool((self._labels.series.list.len() > 0).any())

    def common(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> list[frozenset[str]]:
        """The labels that each pair has in common."""
        return [
            frozenset(self._labels[one]) & frozenset(self._labels[other])
            for one, other in zip(first.tolist(), second.tolist(), strict=True)
        ]


def _share(common: list[frozenset[str]]) -> float:
    return sum(map(bool, common)) / max(1, len(common))


def _most(common: list[frozenset[str]], everywhere: list[frozenset[str]]) -> str | None:
    """The label that more of these pairs have in common than others, at least a fifth of them."""
    here, there = (
        Counter(label for each in pairs for label in each) for pairs in (common, everywhere)
    )
    above = {
        label: count / len(common) - there[label] / len(everywhere)
        for label, count in here.items()
        if count >= len(common) / 5
    }
    return printable(max(sorted(above), key=above.__getitem__)) if above else None
