"""The stages of the flow: items -> encoders -> cache -> distiller -> student -> ranks.

Each function takes the checked plan of a recipe and what the stage before it returned;
``pipeline`` runs them in their order.
"""

from collections.abc import Mapping

import torch

from mmkd.config.plan import Plan
from mmkd.data import AttributeVocabulary, Dataset, ItemTable
from mmkd.distiller import CorrelationDistiller
from mmkd.embeddings import EmbeddingTable
from mmkd.errors import RunError
from mmkd.student import Ensemble, StudentSpec
from mmkd.training.step import TrainStep


def load_data(planned: Plan) -> Dataset:
    """Read the catalogue and the log, and split the sequences."""
    data = planned.recipe.data
    return Dataset.load(
        data.folder,
        items=planned.items,
        interactions=planned.interactions,
        split={"kind": data.split.kind, **planned.split},
    )


def distil(planned: Plan, tables: Mapping[str, EmbeddingTable]) -> CorrelationDistiller | None:
    """Reduce the teachers and fit their codebooks; None without encoders.

    Raises:
        RunError: A modality's vectors can't be distilled.
    """
    if planned.distiller is None:
        return None
    try:
        return CorrelationDistiller(**planned.distiller).fit(tables)
    except ValueError as error:  # vectors that can't be distilled, such as all equal ones
        raise RunError(f"{planned.recipe.name}: distiller: {error}") from error


def build_step(
    planned: Plan,
    data: Dataset,
    distiller: CorrelationDistiller | None,
    *,
    vocabulary: AttributeVocabulary | None = None,
    compressed: Ensemble | None = None,
) -> tuple[TrainStep, StudentSpec]:
    """Student and objective, and the spec from which the student can be built again.

    Args:
        planned: The recipe.
        data: What it trains on.
        distiller: Of ``distil``.
        vocabulary: Of ``vocabulary_of``.
        compressed: The ensemble to compress, on the device.
    """
    teachers = distiller.reduced if distiller else {}
    spec = StudentSpec(
        item_count=data.split.item_count,
        max_length=planned.training.max_length,
        embedding=planned.embedding,
        backbone=planned.backbone,
        score_with=planned.recipe.student.score_with,
        ensemble=planned.ensemble,
        modalities={name: teacher.shape[1] for name, teacher in teachers.items()},
    )
    present = distiller.present if distiller else {}
    student = spec.build(teachers, present, seed=planned.recipe.seed)
    objective = planned.objective.build(
        train_counts=torch.from_numpy(data.split.train_counts()),
        distiller=distiller,
        members=len(student.members),
        width=planned.width,
        vocabulary=vocabulary,
    )
    return TrainStep(student, objective, compressed), spec


def vocabulary_of(planned: Plan, items: ItemTable) -> AttributeVocabulary | None:
    """The attributes to predict, where the recipe has them predicted."""
    return None if planned.objective.attributes is None else AttributeVocabulary.of(items)


def digests_of(data: Dataset) -> dict[str, str]:
    """What identifies the data a run trains on."""
    return data.digests()
