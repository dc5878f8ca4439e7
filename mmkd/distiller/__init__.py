"""Distiller: cached teacher tables and a batch of items to correlation supervision."""

from mmkd.distiller.codebook import CorrelationCodebook, sample_pairs
from mmkd.distiller.correlation import (
    Similarity,
    dissected_correlation,
    dissected_matrix,
    holistic_correlation,
    holistic_matrix,
)
from mmkd.distiller.distiller import CorrelationDistiller, CorrelationTargets, TeacherTable
from mmkd.distiller.reduction import autoencoder, pca

__all__ = [
    "CorrelationCodebook",
    "CorrelationDistiller",
    "CorrelationTargets",
    "Similarity",
    "TeacherTable",
    "autoencoder",
    "dissected_correlation",
    "dissected_matrix",
    "holistic_correlation",
    "holistic_matrix",
    "pca",
    "sample_pairs",
]
