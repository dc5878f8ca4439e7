"""Serving: a trained run as a recommender."""

from mmkd.serving.scorer import scorer

__all__ = ["scorer"]
