"""Attribute vocabulary: an ItemTable's labels, such as genres and brands, to numbers an item.

From text labels to a padded table [I+2, A] of label numbers, and back by ``names``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmkd.data.errors import DataError
from mmkd.data.items import ItemTable


@dataclass(frozen=True)
class AttributeVocabulary:
    """Every label of a catalogue, and which of them each item has.

    Attributes:
        names: The C labels, sorted; label number c is ``names[c - 1]``.
        labels: [I+2, A] int64, an item's label numbers 1..C, then 0; the padding's and the mask
            token's rows are 0.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, items: ItemTable) -> "AttributeVocabulary":
        """Number the labels of a catalogue.

        Raises:
            DataError: No item has one.
        """
        names = tuple(sorted({label for labels in items.attributes for label in labels}))
        if not names:
            raise DataError(
                "no item of the catalogue has an attribute to predict; name their column in "
                "data.items.attributes (and what parts them in attribute_separator), or set "
                "objective.attributes: null"
            )
        number = {name: c for c, name in enumerate(names, start=1)}
        rows = [sorted({number[label] for label in labels}) for labels in items.attributes]
        table = np.zeros((len(rows) + 1, max(map(len, rows))), dtype=np.int64)
        for row, labels in enumerate(rows):
            table[row, : len(labels)] = labels
        return cls(names=names, labels=table)
