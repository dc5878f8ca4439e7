"""A search against a loop over the catalogue."""

import numpy as np
import pytest

from mmkd import ItemTable
from mmkd.serve.search import Search

WORDS = ["red", "Red", "teapot", "pot", "tea", "a.b", "[", "Ärmel", "x" * 40]


@pytest.fixture(scope="module")
def items() -> ItemTable:
    generator = np.random.default_rng(0)
    titles = [" ".join(generator.choice(WORDS, generator.integers(1, 4))) for _ in range(200)]
    size = len(titles) + 1
    return ItemTable(
        ids=["", *(f"Id{n}" for n in range(1, size))],
        titles=["", *titles],
        text=[None] * size,
        image_path=[None] * size,
        attributes=[[]] * size,
    )


def by_hand(items: ItemTable, query: str, limit: int) -> list[int]:
    text = " ".join(query.lower().split())
    rows = range(1, len(items) + 1)
    titles = [title.lower() for title in items.titles]
    found = [row for row in rows if items.ids[row].lower() == text]
    found += [row for row in rows if titles[row].startswith(text)]
    found += [row for row in rows if all(word in titles[row] for word in text.split())]
    return list(dict.fromkeys(found))[:limit]


@pytest.mark.parametrize("query", ["red", "RED tea", "id7", "pot  a.b", "[", "ärmel", "none", "x"])
def test_ids_come_first_then_beginnings_then_titles_with_all_words(
    items: ItemTable, query: str
) -> None:
    assert Search(items)(query, limit=12).tolist() == by_hand(items, query, 12)


@pytest.mark.parametrize("query", ["", "  ", "\x00"])
def test_nothing_finds_nothing(items: ItemTable, query: str) -> None:
    assert Search(items)(query).tolist() == []
