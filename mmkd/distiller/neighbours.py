"""Teacher neighbours: fitted distiller to the items that could have been taken instead of an item.

For each item its k nearest by the teachers' holistic correlations, and how likely each is to stand
in for it: ``softmax_k(rho(y, .) / t)``. With pairs of items that were taken together the dissected
correlations say which kinds of likeness count: P(type | taken together) / P(type | by chance).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmkd.distiller.correlation import unit_rows
from mmkd.distiller.distiller import CorrelationDistiller
from mmkd.distiller.nearest import nearest
from mmkd.errors import at_least, positive, refuse

_WIDER = 4  # candidates a modality, times k; of them the correlations choose
_CHUNK_ITEMS = 2048
_CHUNK_PAIRS = 262_144
_PRIOR = 1.0  # pairs a type is thought to have been seen in, taken together and by chance


@dataclass(frozen=True)
class TeacherNeighbours:
    """The items nearest to each item, and their shares.

    >>> from types import SimpleNamespace
    >>> import numpy as np
    >>> from mmkd import CorrelationDistiller, TeacherNeighbours
    >>> vectors = np.random.default_rng(0).normal(size=(21, 12)).astype("float32")
    >>> table = SimpleNamespace(vectors=vectors, present=np.arange(21) > 0)
    >>> distiller = CorrelationDistiller(dim=8, facets=4, codes=5).fit({"text": table})
    >>> found = TeacherNeighbours.fit(distiller, k=3)
    >>> found.rows.shape, found.shares[5].sum().item()
    (torch.Size([21, 3]), 1.0)

    Attributes:
        rows: [I+1, k] int64, nearest first; 0 where there is none.
        shares: [I+1, k] float32, each row's sum 1; 0 where there is none.
        lift: Modality to [K] float32: how many times more often a correlation type occurs among
            items taken together than by chance; empty where no pairs were given.
    """

    rows: Tensor
    shares: Tensor
    lift: dict[str, Tensor]

    @classmethod
    def fit(
        cls,
        distiller: CorrelationDistiller,
        *,
        k: int = 20,
        temperature: float = 0.05,
        modalities: Sequence[str] | None = None,
        taken_together: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
        among: NDArray[np.bool_] | None = None,
        seed: int = 0,
    ) -> Self:
        """Find every item's neighbours; items that never trained are among them.

        Args:
            distiller: Fitted.
            k: Neighbours an item; fewer in a smaller catalogue.
            temperature: t; the lower, the more the nearest takes.
            modalities: Whose correlations count, as the mean over those that both items have; None
                means all.
            taken_together: Two arrays [P] of rows, such as neighbours in the training events; with
                them the shares are ``softmax_k(rho / t + log lift)``, with the lift of the pair's
                correlation types, summed over the modalities.
            among: Mask [I+1] of the items that may be somebody's neighbours; None means all.
            seed: Draws among equally near items, and the pairs by chance: the second items dealt
                out anew, so that popularity stays.

        Raises:
            ValueError: An option is out of range, a modality is unknown, or no pair was given.
        """
        refuse(cls.check(k=k, temperature=temperature))
        names = list(distiller.reduced) if modalities is None else list(modalities)
        if not names or (unknown := [name for name in names if name not in distiller.reduced]):
            raise ValueError(
                f"modalities: got {', '.join(unknown if names else []) or 'none'}, wanted some of "
                f"{', '.join(distiller.reduced) or 'a fitted distiller'}"
            )
        lift = {}
        if taken_together is not None:
            lift = {
                name: TypeShares.of(distiller, name, *taken_together, seed=seed).lift
                for name in names
            }
        count = len(distiller.reduced[names[0]])
        k = min(k, max(count - 2, 1))
        rng = np.random.default_rng(seed)
        candidates = _candidates(distiller, names, _WIDER * k, rng, among)  # [I+1, c]
        rows = torch.zeros(count, k, dtype=torch.int64)
        shares = torch.zeros(count, k)
        for start in range(1, count, _CHUNK_ITEMS):
            items = torch.arange(start, min(start + _CHUNK_ITEMS, count))
            others = candidates[items]  # [n, c]
            logits = _correlation(distiller, names, items, others) / temperature
            for name, each in lift.items():
                logits = logits + _log_lift(distiller, name, items, others, each)
            best, place = logits.topk(min(k, logits.shape[1]), dim=1)
            kept = best > -torch.inf
            found = others.gather(1, place).masked_fill(~kept, 0)
            rows[items, : found.shape[1]] = found
            shares[items, : found.shape[1]] = best.softmax(dim=1).nan_to_num(0.0)
        return cls(rows, shares, lift)

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        return [
            *at_least(1, k=options.get("k")),
            *positive("such as 0.05", temperature=options.get("temperature")),
        ]

    def to(self, device: torch.device | str) -> "TeacherNeighbours":
        """The same on a device."""
        lift = {name: each.to(device) for name, each in self.lift.items()}
        return TeacherNeighbours(self.rows.to(device), self.shares.to(device), lift)

    def draw(self, items: Tensor, draws: Tensor) -> Tensor:
        """A neighbour of each item, as likely as its share; the item itself where it has none.

        Args:
            items: [...] int64 in 0..I.
            draws: [...] float32 in [0, 1).
        """
        below = self.shares[items].cumsum(-1) <= draws[..., None]  # [..., k]
        place = below.sum(-1, keepdim=True).clamp_(max=self.rows.shape[1] - 1)
        found = self.rows[items].gather(-1, place).squeeze(-1)
        return torch.where(found > 0, found, items)

    def spread(self, counts: Tensor) -> Tensor:
        """[I+1] how often each item is drawn, if every item is asked about ``counts`` [I+1] times.

        An item without neighbours stays itself.
        """
        alone = self.shares.sum(1) == 0
        kept = torch.where(alone, counts, 0.0)
        flow = counts[:, None] * self.shares  # [I+1, k]
        return kept.index_add(0, self.rows.flatten(), flow.flatten())

    def mean(self, item_matrix: Tensor) -> Tensor:
        """[I+1, D] each item's neighbours' vectors [I, D], in their shares; its own without any.

        Row 0 is zero.
        """
        vectors = torch.nn.functional.pad(item_matrix, (0, 0, 1, 0))  # [I+1, D]
        alone = self.shares.sum(1) == 0
        rows = torch.where(alone[:, None], torch.arange(len(alone))[:, None].to(alone.device), 0)
        rows = torch.where(self.rows > 0, self.rows, rows)
        first = torch.zeros_like(self.shares)
        first[:, 0] = 1.0
        shares = torch.where(alone[:, None], first, self.shares)
        return torch.nn.functional.embedding_bag(
            rows, vectors, mode="sum", per_sample_weights=shares.to(vectors.dtype)
        )


@dataclass(frozen=True)
class TypeShares:
    """How often each correlation type of a modality occurs, together and by chance.

    Attributes:
        together: [K] float32 P(type | taken together).
        chance: [K] float32 P(type | by chance).
        correlation: [K] float32 mean holistic correlation of a type's pairs, of both kinds.
    """

    together: Tensor
    chance: Tensor
    correlation: Tensor

    @property
    def lift(self) -> Tensor:
        """[K] how many times more often a type occurs among items taken together."""
        return self.together / self.chance

    @classmethod
    def of(
        cls,
        distiller: CorrelationDistiller,
        name: str,
        first: NDArray[np.int64],
        second: NDArray[np.int64],
        *,
        seed: int = 0,
    ) -> Self:
        """Count the types of pairs that were taken together, and of the same items dealt anew.

        Args:
            distiller: Fitted.
            name: The modality; pairs that lack it do not count.
            first: [P] rows.
            second: [P] rows; dealt out anew they are as popular as before.
            seed: Deals.

        Raises:
            ValueError: No pair has the modality.
        """
        here = distiller.present[name].cpu().numpy()
        other = second[np.random.default_rng(seed).permutation(len(second))]
        seen, correlated = [], []
        for a, b in ((first, second), (first, other)):
            kept = here[a] & here[b] & (a != b)
            if not kept.any():
                raise ValueError(
                    f"{name}: no two items that were taken together have it; leave `types` out"
                )
            types, correlations = _summed_types(distiller, name, np.stack([a[kept], b[kept]]))
            seen.append(types)
            correlated.append(correlations)
        together, chance = (_PRIOR + types for types in seen)
        total = (seen[0] + seen[1]).clamp(min=1e-12)
        return cls(
            together / together.sum(),
            chance / chance.sum(),
            (correlated[0] + correlated[1]) / total,
        )


def _candidates(
    distiller: CorrelationDistiller,
    names: Sequence[str],
    count: int,
    rng: np.random.Generator,
    among: NDArray[np.bool_] | None,
) -> Tensor:
    """[I+1, c] rows near each row in any of the modalities, in random order; 0 where there is none.

    One search a modality: by a sum of cosines an item that lacks one would hardly be found.
    """
    near = []
    for name in names:
        present = distiller.present[name].cpu().numpy().nonzero()[0]
        unit = unit_rows(distiller.reduced[name].cpu()[present]).numpy()
        places = np.arange(len(present))
        within = places if among is None else np.flatnonzero(among[present])
        found = np.full((len(present), 1), -1)
        if len(within):
            found = nearest(unit, places, min(count, len(within) - 1), rng, within)
        rows = np.zeros((len(distiller.present[name]), found.shape[1]), np.int64)
        rows[present] = np.where(found < 0, 0, present[found])
        near.append(rows)
    candidates = np.sort(np.concatenate(near, axis=1), axis=1)
    itself = np.arange(len(candidates))[:, None]
    candidates[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = 0  # found by several
    candidates[candidates == itself] = 0
    # of equally likely ones the first are taken, which must not be everybody's
    return torch.from_numpy(rng.permuted(candidates, axis=1))


def _correlation(
    distiller: CorrelationDistiller, names: Sequence[str], items: Tensor, others: Tensor
) -> Tensor:
    """[n, c] mean correlation over the modalities both have; -inf where there is none."""
    total = torch.zeros(others.shape)
    shared = torch.zeros(others.shape)
    for name in names:
        both = distiller.present[name].cpu()[items][:, None] & distiller.present[name].cpu()[others]
        first, second = _flat(items, others)
        rho = distiller.correlations(name, first, second)[0].cpu()
        total += torch.where(both, rho.view(others.shape), 0.0)
        shared += both
    found = (others > 0) & (shared > 0)
    return torch.where(found, total / shared.clamp(min=1), -torch.inf)


def _log_lift(
    distiller: CorrelationDistiller, name: str, items: Tensor, others: Tensor, lift: Tensor
) -> Tensor:
    """[n, c] expected log lift of each pair's types; 0 where one lacks the modality."""
    both = distiller.present[name].cpu()[items][:, None] & distiller.present[name].cpu()[others]
    first, second = _flat(items, others)
    _, types = _types(distiller, name, first, second)
    return torch.where(both, (types @ lift.log()).view(others.shape), 0.0)


def _summed_types(
    distiller: CorrelationDistiller, name: str, pairs: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """[K] the types of pairs [2, n], and [K] those times the pairs' correlations, both summed."""
    sums, weighted = torch.zeros(distiller.codes), torch.zeros(distiller.codes)
    for at in range(0, pairs.shape[1], _CHUNK_PAIRS):
        first, second = torch.from_numpy(pairs[:, at : at + _CHUNK_PAIRS])
        rho, types = _types(distiller, name, first, second)
        sums += types.sum(0)
        weighted += rho @ types
    return sums, weighted


def _types(
    distiller: CorrelationDistiller, name: str, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """[P] holistic correlations and [P, K] shares of the correlation types of pairs."""
    rho, dissected = distiller.correlations(name, first, second)
    codes = distiller.codebooks[name].assign(dissected).cpu()
    if codes.ndim == 1:
        codes = torch.nn.functional.one_hot(codes, distiller.codes).to(torch.float32)
    return rho.cpu(), codes


def _flat(items: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    return items[:, None].expand(others.shape).reshape(-1), others.reshape(-1)
