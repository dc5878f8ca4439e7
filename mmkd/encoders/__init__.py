"""Encoders: from a card, an encoder that turns texts or images into frozen vectors."""

from mmkd.encoders.base import Encoder, EncoderError, FittedEncoder, PreparingEncoder
from mmkd.encoders.card import EncoderCard
from mmkd.encoders.card_files import list_cards, load_card
from mmkd.encoders.kinds import ENCODERS, build_encoder, encoder_class

__all__ = [
    "ENCODERS",
    "Encoder",
    "EncoderCard",
    "EncoderError",
    "FittedEncoder",
    "PreparingEncoder",
    "build_encoder",
    "encoder_class",
    "list_cards",
    "load_card",
]
