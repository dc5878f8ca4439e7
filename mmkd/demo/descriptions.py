"""Facet values to a title and a description, in varied words.

Each value has several wordings around one word and each sentence several forms; colour and shape
are never mentioned.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

_WORDINGS: Final[dict[str, tuple[str, ...]]] = {
    "plain": ("plain", "quite plain", "kept plain", "plain all over"),
    "striped": ("striped", "striped in bold", "finely striped", "striped from end to end"),
    "dotted": ("dotted", "dotted all over", "lightly dotted", "dotted like a dice"),
    "checked": ("checked", "checked like plaid", "boldly checked", "checked in two tones"),
    "wood": ("solid wood", "carved wood", "sanded oak wood", "beech wood"),
    "steel": ("brushed steel", "stainless steel", "polished steel", "sturdy steel"),
    "cotton": ("soft cotton", "woven cotton", "washable cotton", "combed cotton yarn"),
    "leather": ("full-grain leather", "supple leather", "stitched leather", "tanned leather"),
    "glass": ("blown glass", "clear glass", "tempered glass", "fine glass"),
    "clay": ("fired clay", "glazed clay", "hand-thrown clay", "white clay"),
    "office": ("the office", "a day at the office", "office meetings", "your office desk"),
    "party": ("a party", "the party season", "birthday party nights", "party guests"),
    "travel": ("travel", "long travel", "travel abroad", "light travel"),
    "kitchen": ("the kitchen", "a family kitchen", "kitchen work", "busy kitchen days"),
    "sport": ("sport", "sport and training", "outdoor sport", "team sport"),
    "bedtime": ("bedtime", "a calm bedtime", "bedtime reading", "the hour of bedtime"),
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
