"""Distiller: cached teacher tables and a batch of items to correlation supervision."""

from mmkd.distiller.codebook import CorrelationCodebook, sample_pairs
from mmkd.distiller.correlation import (
    Similarity,
    dissected_correlation,
    dissected_matrix,
    holistic_correlation,
    holistic_matrix,
    unit_rows,
)
from mmkd.distiller.distiller import CorrelationDistiller, CorrelationTargets, TeacherTable
from mmkd.distiller.neighbours import TeacherNeighbours, TypeShares
from mmkd.distiller.reduction import (
    FittedReduction,
    ReducedTeacher,
    fit_autoencoder,
    fit_pca,
    spread_over_facets,
)

__all__ = [
    "CorrelationCodebook",
    "CorrelationDistiller",
    "CorrelationTargets",
    "FittedReduction",
    "ReducedTeacher",
    "Similarity",
    "TeacherNeighbours",
    "TeacherTable",
    "TypeShares",
    "dissected_correlation",
    "dissected_matrix",
    "fit_autoencoder",
    "fit_pca",
    "holistic_correlation",
    "holistic_matrix",
    "sample_pairs",
    "spread_over_facets",
    "unit_rows",
]
