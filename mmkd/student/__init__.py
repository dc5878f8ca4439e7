"""The student: fused item embeddings, a backbone, scores. Imports only torch."""

from mmkd.student.backbones import BACKBONES, Backbone, backbone_class, build_backbone
from mmkd.student.build import StudentSpec
from mmkd.student.ensemble import Ensemble, build_ensemble, check_build_ensemble
from mmkd.student.fusion import ConcatFusion, GateFusion, SumFusion
from mmkd.student.item_embedding import FusedItemEmbedding, TeacherStart
from mmkd.student.new_items import with_new_items
from mmkd.student.recommender import Recommender, StudentOutput
from mmkd.student.retrieval import Retrieval

__all__ = [
    "BACKBONES",
    "Backbone",
    "ConcatFusion",
    "Ensemble",
    "FusedItemEmbedding",
    "GateFusion",
    "Recommender",
    "Retrieval",
    "StudentOutput",
    "StudentSpec",
    "SumFusion",
    "TeacherStart",
    "backbone_class",
    "build_backbone",
    "build_ensemble",
    "check_build_ensemble",
    "with_new_items",
]
