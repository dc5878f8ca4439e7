"""A made-up shop on disk: catalogue, pictures, descriptions and log, from one seed.

For the demo, the tests and quick experiments: small enough to make in seconds, yet what a user
takes next depends on facets that only the pictures and only the texts show.
"""

import gzip
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.demo.behaviour import FACETS, draw_appeal, draw_facets, simulate
from mmkd.demo.descriptions import describe
from mmkd.demo.pictures import draw
from mmkd.errors import DataError

_MIN_ITEMS = 20


@dataclass(frozen=True)
class SyntheticCatalogue:
    """What was written, and the truth behind it.

    Attributes:
        folder: The data root.
        items_path: ``items.csv``: item_id, title, description, attributes, image.
        interactions_path: ``interactions.csv.gz``: user_id, item_id, timestamp; by time.
        facets_path: ``facets.csv``: item_id and a column for each facet; for analysis only.
        ids: [I+1] external ids; ``ids[0]`` is the empty string.
        facets: Facet name to [I+1] int64, an index into `facet_values`; row 0 is -1.
        facet_values: Facet name to the words for its values.
        has_text: [I+1] bool.
        has_image: [I+1] bool.
    """

    folder: Path
    items_path: Path
    interactions_path: Path
    facets_path: Path
    ids: tuple[str, ...]
    facets: Mapping[str, NDArray[np.int64]]
    facet_values: Mapping[str, tuple[str, ...]]
    has_text: NDArray[np.bool_]
    has_image: NDArray[np.bool_]


def make_synthetic(
    folder: Path | str,
    *,
    items: int = 1000,
    users: int = 4000,
    events: tuple[int, int] = (5, 25),
    seed: int = 0,
) -> SyntheticCatalogue:
    """Writes a made-up catalogue with pictures, texts and a log; the same seed, the same bytes.

    One item in twenty has no picture and another one in twenty no text; one in fifty never occurs
    in the log.

    Args:
        folder: Where to write; made where it does not exist. Files of the same names are replaced.
        items: I, 20 or more.
        users: U.
        events: The fewest and the most of a user.
        seed: Source of all randomness.

    Returns:
        The paths and the facets.

    Raises:
        DataError: If there are too few items or users.
    """
    if items < _MIN_ITEMS or users < 1:
        raise DataError(f"items={items}, users={users}; use at least {_MIN_ITEMS} items and 1 user")
    # A stream for each purpose: more users leave the pictures as they are.
    catalogue_rng, text_rng, image_rng, user_rng = (
        np.random.default_rng([seed, purpose]) for purpose in range(4)
    )
    facets = draw_facets(items, catalogue_rng)
    popularity, launched = draw_appeal(items, catalogue_rng)
    has_text, has_image = _presence(items, catalogue_rng)
    ids = ("", *(f"item-{row:0{len(str(items))}d}" for row in range(1, items + 1)))
    words = [
        {name: values[facets[name][row]] for name, values in FACETS.items()}
        for row in range(1, items + 1)
    ]
    folder = Path(folder)
    made = SyntheticCatalogue(
        folder=folder,
        items_path=folder / "items.csv",
        interactions_path=folder / "interactions.csv.gz",
        facets_path=folder / "facets.csv",
        ids=ids,
        facets=facets,
        facet_values=FACETS,
        has_text=has_text,
        has_image=has_image,
    )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    _write_items(made, words, text_rng)
    _write_images(made, words, image_rng)
    happened = simulate(facets, popularity, launched, users, user_rng, events=events)
    log = pl.DataFrame(
        {
            "user_id": [
                f"user-{user:0{len(str(users))}d}" for user in (happened.user + 1).tolist()
            ],
            "item_id": [ids[row] for row in happened.item.tolist()],
            "timestamp": happened.timestamp,
        }
    )
    made.interactions_path.write_bytes(gzip.compress(log.write_csv().encode(), 6, mtime=0))
    return made


def _presence(items: int, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which items have a text and which a picture, [I+1] each; every item has one of the two."""
    lacking = rng.permutation(np.arange(1, items + 1))[: 2 * (items // 20)].reshape(2, -1)
    present = np.ones((2, items + 1), dtype=np.bool_)
    present[:, 0] = False
    present[0, lacking[0]] = False
    present[1, lacking[1]] = False
    return present[0], present[1]


def _write_items(
    made: SyntheticCatalogue, words: list[dict[str, str]], rng: np.random.Generator
) -> None:
    written = [describe(facets, rng) for facets in words]
    kept = made.has_text[1:].tolist()
    images = zip(made.ids[1:], made.has_image[1:].tolist(), strict=True)
    pl.DataFrame(
        {
            "item_id": made.ids[1:],
            "title": [
                title if keep else None for (title, _), keep in zip(written, kept, strict=True)
            ],
            "description": [
                text if keep else None for (_, text), keep in zip(written, kept, strict=True)
            ],
            "attributes": [f"{facets['pattern']}|{facets['price']}" for facets in words],
            "image": [f"images/{item_id}.png" if keep else None for item_id, keep in images],
        }
    ).write_csv(made.items_path)
    truth = {name: [facets[name] for facets in words] for name in FACETS}
    pl.DataFrame({"item_id": made.ids[1:], **truth}).write_csv(made.facets_path)


def _write_images(
    made: SyntheticCatalogue, words: list[dict[str, str]], rng: np.random.Generator
) -> None:
    for row, facets in enumerate(words, start=1):
        picture = draw(facets, rng)  # drawn even where it is not kept: the stream goes on alike
        if made.has_image[row]:
            data = io.BytesIO()
            picture.save(data, format="PNG")
            (made.folder / "images" / f"{made.ids[row]}.png").write_bytes(data.getvalue())
