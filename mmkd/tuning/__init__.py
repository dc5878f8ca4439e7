"""Tuning: an encoder, a log and a split to an encoder that has read the log."""

from mmkd.tuning.arguments import TuningArguments
from mmkd.tuning.loss import pair_loss
from mmkd.tuning.pairs import TrainingPairs
from mmkd.tuning.tuner import Tower, Tuner, TuningReport

__all__ = ["Tower", "TrainingPairs", "Tuner", "TuningArguments", "TuningReport", "pair_loss"]
