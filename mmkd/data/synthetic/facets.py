"""The facets of a made-up catalogue: what there is to know about an item, and where it shows.

Colour and shape show in the picture only, material and occasion in the text only, pattern in both
(and among the attributes), price among the attributes only. A model that wants all of an item must
therefore read both modalities.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

FACETS: Final[dict[str, tuple[str, ...]]] = {
    "colour": ("red", "orange", "yellow", "green", "teal", "blue", "purple", "grey"),
    "shape": ("circle", "square", "triangle", "star", "cross", "ring"),
    "pattern": ("plain", "striped", "dotted", "checked"),
    "material": ("wood", "steel", "cotton", "leather", "glass", "clay"),
    "occasion": ("office", "party", "travel", "kitchen", "sport", "bedtime"),
    "price": ("budget", "standard", "premium"),
}


def draw_facets(count: int, rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Draws each facet of each item uniformly, facets independent of one another.

    Args:
        count: I, number of items.
        rng: Source of randomness.

    Returns:
        Facet name to [I+1] int64, an index into `FACETS`; row 0 is -1.
    """
    return {
        name: np.concatenate([np.full(1, -1), rng.integers(0, len(values), count)])
        for name, values in FACETS.items()
    }
