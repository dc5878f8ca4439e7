"""Serving: a trained run as a recommender."""

from mmkd.student.ensemble import scorer

__all__ = ["scorer"]
