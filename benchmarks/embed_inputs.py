"""What `embed.py` encodes: a catalogue's own texts and pictures, or made-up ones like them.

Made-up texts have the token lengths of 3,700 films' descriptions (title, genres, names, a sentence
of plot: 70 tokens on average); made-up pictures have the size of small posters.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmkd.config.plan import plan
from mmkd.config.recipe import load_recipe
from mmkd.data import ItemTable, load_items

# token counts of real descriptions at each tenth: least, 10%, ..., 90%, most
LENGTH_TENTHS = (11, 54, 59, 62, 65, 69, 72, 76, 80, 86, 120)
RECIPE = "ml-1m-kdsr"
_POSTER = (224, 332)  # pixels: width, height
_SPECIAL_TOKENS = 2


def token_lengths(count: int, draw: np.random.Generator) -> list[int]:
    """Token counts, distributed like `LENGTH_TENTHS`."""
    at = draw.uniform(0, len(LENGTH_TENTHS) - 1, count)
    drawn = np.interp(at, range(len(LENGTH_TENTHS)), LENGTH_TENTHS)
    return [round(length) for length in drawn]


def drawn_texts(words: Sequence[str], count: int, *, seed: int = 0) -> list[str]:
    """Texts of random words, each of which is one token.

    Args:
        words: Whole words of the model's vocabulary, the frequent ones first.
        count: How many texts.
        seed: Of the lengths and the words.
    """
    draw = np.random.default_rng(seed)
    texts = []
    for length in token_lengths(count, draw):
        # log-uniform ranks: a word's frequency falls with its rank, as in natural text
        ranks = len(words) ** draw.uniform(0, 1, length - _SPECIAL_TOKENS)
        texts.append(" ".join(words[int(rank) - 1] for rank in ranks))
    return texts


def whole_words(vocabulary: dict[str, int]) -> list[str]:
    """The plain words of a vocabulary, by their id."""
    found = [w for w in sorted(vocabulary, key=lambda w: vocabulary[w]) if w.isascii()]
    return [word for word in found if word.isalpha() and len(word) > 1]


def draw_pictures(folder: Path, count: int, *, seed: int = 0) -> list[Path]:
    """Writes JPEG files of coloured shapes, about 17 kB each as small posters are."""
    draw = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        grain = draw.integers(0, 256, (*_POSTER[::-1], 3), dtype=np.uint8)
        image = Image.fromarray(grain).filter(ImageFilter.GaussianBlur(1.5))
        canvas = ImageDraw.Draw(image)
        for _ in range(8):
            corners = sorted(draw.integers(0, _POSTER[0], 2)), sorted(draw.integers(0, 332, 2))
            box = (corners[0][0], corners[1][0], corners[0][1], corners[1][1])
            canvas.ellipse(box, fill=tuple(int(c) for c in draw.integers(0, 256, 3)))
        paths.append(folder / f"{number}.jpg")
        image.save(paths[-1], quality=85)
    return paths


def recorded_items(folder: Path) -> ItemTable:
    """The catalogue in a folder, read as the recipe `RECIPE` reads it."""
    planned = plan(load_recipe(RECIPE, [f"data.root={folder}"]), needs_data=False)
    return load_items(root=folder, **planned.items)


def recorded_texts(items: ItemTable, limit: int) -> list[str]:
    """The first different texts of a catalogue."""
    return list(dict.fromkeys(text for text in items.text if text))[:limit]


def recorded_pictures(items: ItemTable, limit: int) -> list[Path]:
    """The first picture files of a catalogue that exist."""
    paths = (path for path in items.image_path if path is not None and path.exists())
    return [path for path, _ in zip(paths, range(limit), strict=False)]


def catalogue(
    *, texts: Sequence[str] | None = None, pictures: Sequence[Path] | None = None
) -> ItemTable:
    """An item for each text or each picture."""
    count = len(texts if texts is not None else pictures or [])
    ids = ("", *(str(n) for n in range(count)))
    nothing = (None,) * count
    return ItemTable(
        ids, ids, (None, *(texts or nothing)), (None, *(pictures or nothing)), ((),) * (count + 1)
    )
