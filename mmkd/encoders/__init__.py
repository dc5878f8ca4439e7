"""Encoders: from a card, an encoder that turns texts or images into frozen vectors."""

from mmkd.encoders.base import Encoder, FittedEncoder, PreparingEncoder
from mmkd.encoders.card import EncoderCard, list_cards, load_card
from mmkd.encoders.registry import ENCODERS, encoder_class
from mmkd.errors import EncoderError

__all__ = [
    "ENCODERS",
    "Encoder",
    "EncoderCard",
    "EncoderError",
    "FittedEncoder",
    "PreparingEncoder",
    "encoder_class",
    "list_cards",
    "load_card",
]
