"""The made-up shop: same seed same bytes, facets show where they should, and users follow them."""

import hashlib
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from mmkd import InteractionLog, ItemTable, load_interactions, load_items
from mmkd.data import leave_one_out
from mmkd.demo import SyntheticCatalogue, make_synthetic
from mmkd.errors import DataError

ITEMS, USERS = 400, 500
PURE_RGB = {
    "red": (205, 40, 40),
    "orange": (240, 130, 20),
    "yellow": (235, 210, 40),
    "green": (50, 150, 60),
    "teal": (30, 170, 170),
    "blue": (45, 75, 200),
    "purple": (130, 50, 165),
    "grey": (110, 110, 115),
}


def read(made: SyntheticCatalogue) -> tuple[ItemTable, InteractionLog]:
    items = load_items(
        path="items.csv",
        root=made.folder,
        title="title",
        text="{title}. {description}",
        image="image",
        attributes="attributes",
    )
    return items, load_interactions(items, path="interactions.csv.gz", root=made.folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticCatalogue:
    return make_synthetic(tmp_path_factory.mktemp("shop"), items=ITEMS, users=USERS, seed=3)


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_synthetic(tmp_path / folder, items=40, users=30, seed=seed)
    packed = (tmp_path / "a" / "interactions.csv.gz").read_bytes()
    assert packed[4:8] == b"\0\0\0\0"  # gzip's time stamp
    first, again, other = (digests(tmp_path / folder) for folder in "abc")
    assert len(first) == 3 + 38
    assert first == again
    for name in ("items.csv", "interactions.csv.gz", "facets.csv"):
        assert first[name] != other[name]


def test_what_was_written_loads_as_what_was_returned(made: SyntheticCatalogue) -> None:
    items, _ = read(made)
    assert items.ids == made.ids
    assert [text is not None for text in items.text] == made.has_text.tolist()
    assert [path is not None for path in items.image_path] == made.has_image.tolist()
    assert all(path is None or path.is_file() for path in items.image_path)
    truth = pl.read_csv(made.facets_path)
    assert truth["item_id"].to_list() == list(made.ids[1:])
    for name, values in made.facet_values.items():
        assert [values[index] for index in made.facets[name][1:]] == truth[name].to_list()
        assert made.facets[name][0] == -1
        assert set(truth[name]) == set(values)
    rows = zip(truth["pattern"], truth["price"], strict=True)
    assert list(items.attributes[1:]) == list(rows)


def test_a_tenth_of_the_items_lacks_a_modality_and_none_lacks_both(
    made: SyntheticCatalogue,
) -> None:
    assert (~made.has_text[1:]).sum() == (~made.has_image[1:]).sum() == ITEMS // 20
    assert (made.has_text | made.has_image)[1:].all()


def test_texts_tell_material_and_occasion_but_not_colour_and_shape(
    made: SyntheticCatalogue,
) -> None:
    items, _ = read(made)
    words = [set(re.findall(r"[a-z]+", (text or "").lower())) for text in items.text]
    hidden = {*made.facet_values["colour"], *made.facet_values["shape"]}
    assert not any(found & hidden for found in words)
    rows = np.flatnonzero(made.has_text)
    features = TfidfVectorizer(ngram_range=(1, 2)).fit_transform([items.text[row] for row in rows])
    learn, judge = slice(0, None, 2), slice(1, None, 2)
    for name in ("material", "occasion", "pattern"):
        labels = made.facets[name][rows]
        model = LogisticRegression(C=30).fit(features[learn], labels[learn])
        assert model.score(features[judge], labels[judge]) > 0.9
    for name in ("colour", "shape"):
        labels = made.facets[name][rows]
        model = LogisticRegression(C=30).fit(features[learn], labels[learn])
        assert model.score(features[judge], labels[judge]) < 0.3  # near chance: 1 in 8, 1 in 6
    assert len({items.text[row] for row in rows}) > 0.99 * len(rows)


def test_pictures_tell_the_colour_and_none_is_like_another(made: SyntheticCatalogue) -> None:
    items, _ = read(made)
    right, seen = [], set()
    for row in np.flatnonzero(made.has_image).tolist():
        path = items.image_path[row]
        assert path is not None
        with Image.open(path) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")
            pixels = np.asarray(picture, dtype=np.float64).reshape(-1, 3)
        seen.add(pixels.tobytes())
        if made.facet_values["pattern"][made.facets["pattern"][row]] != "plain":
            continue
        filled = pixels[np.abs(pixels - pixels[0]).sum(1) > 60].mean(0)  # corner is background
        nearest = min(PURE_RGB, key=lambda name: float(np.square(filled - PURE_RGB[name]).sum()))
        right.append(nearest == made.facet_values["colour"][made.facets["colour"][row]])
    assert len(seen) == made.has_image.sum()
    assert len(right) > ITEMS / 6
    assert np.mean(right) > 0.95


def test_histories_have_5_to_25_different_items_with_rising_times(
    made: SyntheticCatalogue,
) -> None:
    _, log = read(made)
    assert len(log.user_ids) == USERS
    lengths = np.bincount(log.user)
    assert (lengths.min(), lengths.max()) == (5, 25)
    assert len(set(zip(log.user.tolist(), log.item.tolist(), strict=True))) == len(log)
    assert (np.diff(log.timestamp) >= 0).all()
    order = np.argsort(log.user, kind="stable")
    same = np.diff(log.user[order]) == 0
    assert (np.diff(log.timestamp[order])[same] > 0).all()


def test_a_quarter_of_the_items_is_hardly_taken_and_no_few_rule(made: SyntheticCatalogue) -> None:
    _, log = read(made)
    counts = np.sort(np.bincount(log.item, minlength=ITEMS + 1)[1:])
    assert ITEMS // 50 <= (counts == 0).sum() < ITEMS // 4
    assert (counts <= 5).mean() > 0.25
    assert 0.2 * counts.sum() < counts[-ITEMS // 10 :].sum() < 0.3 * counts.sum()


def in_first_three(ranks: list[float]) -> float:
    return float(np.mean(np.array(ranks) < 3))


def test_facets_foretell_the_next_item_and_each_modality_alone_tells_less(
    made: SyntheticCatalogue,
) -> None:
    _, log = read(made)
    split = leave_one_out(log, ITEMS)
    popularity = split.train_counts() + 0.5
    pairs = {
        "none": (),
        "picture": (("colour", "pattern"), ("shape", "pattern")),
        "text": (("material", "pattern"), ("occasion", "pattern")),
        "both": (("colour", "material", "pattern"), ("shape", "occasion", "pattern")),
    }
    hits: dict[str, float] = {}
    for name, moods in pairs.items():
        ranks = []
        for user, position, target in zip(
            split.test.user, split.test.position, split.target_items(split.test), strict=True
        ):
            history = split.sequence(user)[:position]
            last = history[-1]
            score = 1e-3 * popularity
            for mood in moods:
                same = [made.facets[facet] == made.facets[facet][last] for facet in mood]
                score = score + popularity * np.all(same, axis=0)
            score[0] = -1
            score[history] = -1
            ranks.append(float((score > score[target]).sum()))
        hits[name] = in_first_three(ranks)
    assert hits["both"] > 0.3
    assert hits["both"] > 2 * max(hits["picture"], hits["text"])
    assert min(hits["picture"], hits["text"]) > 10 * hits["none"]


@pytest.mark.parametrize(("items", "users"), [(19, 10), (50, 0)])
def test_too_small_a_shop_is_refused(items: int, users: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="use at least 20 items and 1 user"):
        make_synthetic(tmp_path, items=items, users=users)
    assert not list(tmp_path.iterdir())


def test_the_smallest_shop_works(tmp_path: Path) -> None:
    made = make_synthetic(tmp_path / "tiny", items=20, users=1)
    _, log = read(made)
    assert 5 <= len(log) <= 20
