"""Placement: an encoder's vectors [n, D] to rows [n, d] of a student's modality table.

The way of the catalogue at the start of training, kept with the run (`reduction.safetensors`), so
that an item that comes later lands in the space that the table was trained from.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmkd.distiller import CorrelationDistiller, FittedReduction, spread_over_facets
from mmkd.student import Ensemble, TeacherStart

_REDUCTION, _BASIS = "reduction.", "start.basis"


@dataclass(frozen=True)
class Placement:
    """One modality's: reduced as its teacher was, and put where its table started.

    Attributes:
        fingerprint: Of the encoder's card; another one's vectors would land anywhere.
        reduction: To the teacher's directions.
        dim: Width of the reduced teacher.
        facets: Over which its columns are laid out.
        start: To the student's width and scale.
    """

    fingerprint: str
    reduction: FittedReduction
    dim: int
    facets: int
    start: TeacherStart

    @classmethod
    def all_of(
        cls, distiller: CorrelationDistiller, student: Ensemble, fingerprints: Mapping[str, str]
    ) -> dict[str, Self]:
        """Each modality's, of a fitted distiller and an ensemble that starts from it."""
        starts: dict[str, TeacherStart] = {}
        for member in student.networks:  # of a modality's tables those that train start alike
            own = member.embedding
            frozen = {k: v for k, v in own.starts.items() if k in own.adapters}
            starts = frozen | starts | {k: v for k, v in own.starts.items() if k not in frozen}
        return {
            name: cls(fingerprints[name], fitted, distiller.dim, distiller.facets, starts[name])
            for name, fitted in distiller.reductions.items()
        }

    def rows(self, vectors: NDArray[np.float32], *, frozen: bool = False) -> Tensor:
        """[n, D] to [n, d].

        Args:
            vectors: The encoder's.
            frozen: Whether the table is the reduced teacher itself, behind an adapter.

        Raises:
            ValueError: The vectors are of another width, or one is not finite.
        """
        spread = spread_over_facets(self.reduction(vectors), self.dim, self.facets)
        reduced = torch.from_numpy(spread)  # [n, dim]
        return reduced if frozen else self.start(reduced)


def write_placements(path: Path, placements: Mapping[str, Placement]) -> None:
    """Write all of a run's placements into a safetensors file."""
    tensors: dict[str, Tensor] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, one in placements.items():
        for part, array in one.reduction.arrays().items():
            tensors[f"{name}.{_REDUCTION}{part}"] = torch.from_numpy(np.ascontiguousarray(array))
        if one.start.basis is not None:
            tensors[f"{name}.{_BASIS}"] = one.start.basis.contiguous()
        described[name] = {
            "fingerprint": one.fingerprint,
            "dim": one.dim,
            "facets": one.facets,
            "width": one.start.width,
            "factor": one.start.factor,
        }
    save_file(tensors, path, metadata={"placements": json.dumps(described)})


def read_placements(path: Path) -> dict[str, Placement]:
    """Read what `write_placements` wrote.

    Raises:
        KeyError, TypeError, ValueError: It is not what that wrote.
    """
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["placements"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    placements = {}
    for name, one in described.items():
        own = {
            k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")
        }
        arrays = {
            key.removeprefix(_REDUCTION): value.numpy()
            for key, value in own.items()
            if key.startswith(_REDUCTION)
        }
        start = TeacherStart(int(one["width"]), float(one["factor"]), own.get(_BASIS))
        placements[name] = Placement(
            fingerprint=str(one["fingerprint"]),
            reduction=FittedReduction.from_arrays(arrays),
            dim=int(one["dim"]),
            facets=int(one["facets"]),
            start=start,
        )
    return placements
