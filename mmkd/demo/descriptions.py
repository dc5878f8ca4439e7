"""Facet values to a title and a description, in varied words.

Each value has several wordings and each sentence several forms, so that a text encoder must know
that oak and beech are both wood; colour and shape are never mentioned.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

_WORDINGS: Final[dict[str, tuple[str, ...]]] = {
    "plain": ("plain", "unadorned", "with no decoration", "of one tone"),
    "striped": ("striped", "with bold stripes", "banded", "lined from end to end"),
    "dotted": ("dotted", "with polka dots", "speckled", "covered in small spots"),
    "checked": ("checked", "in a chequered design", "with a plaid grid", "gingham-like"),
    "wood": ("solid oak", "beech wood", "carved walnut", "sanded pine timber"),
    "steel": ("brushed steel", "stainless metal", "polished iron", "a sturdy metal alloy"),
    "cotton": ("soft cotton", "woven cotton cloth", "washable fabric", "combed cotton yarn"),
    "leather": ("full-grain leather", "supple cowhide", "stitched suede", "tanned leather"),
    "glass": ("blown glass", "clear crystal", "tempered glass", "fine glassware"),
    "clay": ("fired clay", "glazed ceramic", "hand-thrown stoneware", "white porcelain"),
    "office": ("a day at the office", "your desk", "meetings and paperwork", "the workplace"),
    "party": ("a party", "a night out", "birthdays and celebrations", "festive evenings"),
    "travel": ("travel", "long journeys", "the suitcase of a tourist", "trips abroad"),
    "kitchen": ("the kitchen", "cooking at home", "baking and family dinners", "busy cooks"),
    "sport": ("sport", "the gym", "training and workouts", "runners and athletes"),
    "bedtime": ("bedtime", "a good night's sleep", "quiet hours in bed", "the bedroom"),
}
_SENTENCES: Final[tuple[str, ...]] = (
    "Made of {material} and meant for {occasion}, {pattern}.",
    "This one is {pattern}. Ideal for {occasion}; we build it from {material}.",
    "For {occasion}. The surface is {pattern}, the body {material}.",
    "{material} throughout, {pattern}, a reliable companion for {occasion}.",
    "Customers take it along for {occasion}. It comes {pattern} and consists of {material}.",
    "Think of {occasion}: here is something {pattern}, crafted from {material}.",
)
_CLOSINGS: Final[tuple[str, ...]] = (
    "",
    " Ships within a week.",
    " A gift that lasts.",
    " Two-year guarantee.",
    " Designed in small batches.",
    " Please read the care label.",
)
_MAKERS: Final[tuple[str, ...]] = (
    "Alder",
    "Brixo",
    "Corvane",
    "Dunmore",
    "Elvik",
    "Farrow & Lind",
    "Gentian",
    "Hallam",
    "Ixora",
    "Juno",
)
_GOODS: Final[tuple[str, ...]] = (
    "holder",
    "keepsake",
    "set",
    "box",
    "stand",
    "case",
    "ornament",
    "tray",
    "cover",
    "charm",
)


def describe(facets: Mapping[str, str], rng: np.random.Generator) -> tuple[str, str]:
    """Writes about one item.

    Args:
        facets: Facet name to value; pattern, material and occasion are read.
        rng: Source of randomness.

    Returns:
        The title (which tells nothing) and the description.
    """
    words = {
        name: _pick(_WORDINGS[facets[name]], rng) for name in ("pattern", "material", "occasion")
    }
    text = _pick(_SENTENCES, rng).format(**words) + _pick(_CLOSINGS, rng)
    title = f"{_pick(_MAKERS, rng)} {_pick(_GOODS, rng)} no. {rng.integers(1, 100)}"
    return title, text[0].upper() + text[1:]


def _pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
