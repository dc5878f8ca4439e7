"""mmkd: multimodal knowledge distillation for sequential recommendation.

The public names; each is imported when it is first used, so that ``import mmkd`` costs nothing.
Where torch isn't loaded yet, its threads are told to sleep while they wait (`mmkd.threads`); set
``OMP_WAIT_POLICY`` yourself and it stays as it is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmkd.threads import wait_passively

__version__ = "0.1.0"

wait_passively()  # here, because every way in passes before anything loads torch

if TYPE_CHECKING:
    from mmkd.config.plan import plan as plan
    from mmkd.config.recipe import Recipe as Recipe
    from mmkd.config.recipe import load_recipe as load_recipe
    from mmkd.data.dataset import Dataset as Dataset
    from mmkd.data.interactions import InteractionLog as InteractionLog
    from mmkd.data.items import ItemTable as ItemTable
    from mmkd.data.readers import load_interactions as load_interactions
    from mmkd.data.readers import load_items as load_items
    from mmkd.data.soft_targets import SoftTargets as SoftTargets
    from mmkd.data.splits import SequenceSplit as SequenceSplit
    from mmkd.data.tasks import MaskedItem as MaskedItem
    from mmkd.data.tasks import NextItem as NextItem
    from mmkd.distiller import CorrelationDistiller as CorrelationDistiller
    from mmkd.distiller import TeacherNeighbours as TeacherNeighbours
    from mmkd.embeddings import EmbeddingCache as EmbeddingCache
    from mmkd.embeddings import EmbeddingTable as EmbeddingTable
    from mmkd.embeddings import RayActors as RayActors
    from mmkd.encoders import EncoderCard as EncoderCard
    from mmkd.encoders import load_card as load_card
    from mmkd.errors import MmkdError as MmkdError
    from mmkd.evaluation import ContentKNN as ContentKNN
    from mmkd.evaluation import Evaluator as Evaluator
    from mmkd.evaluation import ItemKNN as ItemKNN
    from mmkd.evaluation import Popularity as Popularity
    from mmkd.evaluation import Transition as Transition
    from mmkd.evaluation import teacher_worth as teacher_worth
    from mmkd.losses.attributes import AttributeLoss as AttributeLoss
    from mmkd.losses.compression import CompressionLoss as CompressionLoss
    from mmkd.losses.contrastive import ContrastiveLoss as ContrastiveLoss
    from mmkd.losses.correlation import CorrelationLoss as CorrelationLoss
    from mmkd.losses.mutual import MutualLoss as MutualLoss
    from mmkd.losses.objective import Objective as Objective
    from mmkd.losses.recommendation import GBCE as GBCE
    from mmkd.losses.recommendation import NeighbourLoss as NeighbourLoss
    from mmkd.losses.recommendation import SampledSoftmax as SampledSoftmax
    from mmkd.losses.recommendation import Softmax as Softmax
    from mmkd.pipeline.run import Run as Run
    from mmkd.pipeline.run import load as load
    from mmkd.pipeline.run import train as train
    from mmkd.pipeline.run import tune as tune
    from mmkd.pipeline.seeds import SeedRuns as SeedRuns
    from mmkd.pipeline.seeds import train_seeds as train_seeds
    from mmkd.report import write_report as write_report
    from mmkd.student import Ensemble as Ensemble
    from mmkd.student import FusedItemEmbedding as FusedItemEmbedding
    from mmkd.student import Recommender as Recommender
    from mmkd.student.backbones.gru4rec import GRU4Rec as GRU4Rec
    from mmkd.student.backbones.rgat import RGAT as RGAT
    from mmkd.student.backbones.transformer import BERT4Rec as BERT4Rec
    from mmkd.student.backbones.transformer import SASRec as SASRec
    from mmkd.training.arguments import TrainingArguments as TrainingArguments
    from mmkd.training.trainer import Trainer as Trainer
    from mmkd.tuning import TrainingPairs as TrainingPairs
    from mmkd.tuning import TuningArguments as TuningArguments

_HOMES = {
    "mmkd.config.plan": ("plan",),
    "mmkd.config.recipe": ("Recipe", "load_recipe"),
    "mmkd.data.dataset": ("Dataset",),
    "mmkd.data.interactions": ("InteractionLog",),
    "mmkd.data.items": ("ItemTable",),
    "mmkd.data.readers": ("load_interactions", "load_items"),
    "mmkd.data.soft_targets": ("SoftTargets",),
    "mmkd.data.splits": ("SequenceSplit",),
    "mmkd.data.tasks": ("MaskedItem", "NextItem"),
    "mmkd.distiller": ("CorrelationDistiller", "TeacherNeighbours"),
    "mmkd.embeddings": ("EmbeddingCache", "EmbeddingTable", "RayActors"),
    "mmkd.encoders": ("EncoderCard", "load_card"),
    "mmkd.errors": ("MmkdError",),
    "mmkd.evaluation": (
        *("ContentKNN", "Evaluator", "ItemKNN", "Popularity", "Transition"),
        "teacher_worth",
    ),
    "mmkd.losses.attributes": ("AttributeLoss",),
    "mmkd.losses.compression": ("CompressionLoss",),
    "mmkd.losses.contrastive": ("ContrastiveLoss",),
    "mmkd.losses.correlation": ("CorrelationLoss",),
    "mmkd.losses.mutual": ("MutualLoss",),
    "mmkd.losses.objective": ("Objective",),
    "mmkd.losses.recommendation": ("GBCE", "NeighbourLoss", "SampledSoftmax", "Softmax"),
    "mmkd.pipeline.run": ("Run", "load", "train", "tune"),
    "mmkd.pipeline.seeds": ("SeedRuns", "train_seeds"),
    "mmkd.report": ("write_report",),
    "mmkd.student": ("Ensemble", "FusedItemEmbedding", "Recommender"),
    "mmkd.student.backbones.gru4rec": ("GRU4Rec",),
    "mmkd.student.backbones.rgat": ("RGAT",),
    "mmkd.student.backbones.transformer": ("BERT4Rec", "SASRec"),
    "mmkd.training.arguments": ("TrainingArguments",),
    "mmkd.training.trainer": ("Trainer",),
    "mmkd.tuning": ("TrainingPairs", "TuningArguments"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mmkd' has no attribute {name!r}")
    found = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = found  # the next use is as fast as any
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
