"""What there is to get: each data set's files, where they are, and on what terms they may be used.

Nothing of a data set is part of mmkd: addresses and the owners' terms are. A checksum stands where
the owner publishes one.
"""

from dataclasses import dataclass

from mmkd.errors import DataError, did_you_mean

_GB = 10**9


@dataclass(frozen=True)
class RemoteFile:
    """A file that is downloaded.

    Attributes:
        name: What it is called on the disk, and by who has it already.
        urls: Where it is; the second is asked where the first can't be reached.
        most_bytes: No more is taken.
        md5: As its owner publishes it, hexadecimal.
        needed: Whether nothing can be prepared without.
    """

    name: str
    urls: tuple[str, ...]
    most_bytes: int
    md5: str | None = None
    needed: bool = True


@dataclass(frozen=True)
class Published:
    """A data set.

    Attributes:
        name: What it is called here.
        kind: Which form its files have: ``ml-1m``, ``ml-100k``, ``amazon-2023``, ``microlens``.
        title: What it is called by its owners.
        what: In a line what it holds.
        page: Where they tell of it.
        terms: In words of our own, what they allow; the page has theirs.
        cite: What they ask to be cited.
        files: What is downloaded.
        pictures: Where pictures come from: ``archive``, ``web``, or None.
    """

    name: str
    kind: str
    title: str
    what: str
    page: str
    terms: str
    cite: str
    files: tuple[RemoteFile, ...]
    pictures: str | None = None


_MOVIELENS = (
    "for research; no redistribution and no commercial use without permission; no endorsement may "
    "be implied; cite it"
)
_HARPER = "Harper and Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_AMAZON = (
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw",
    "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_2023/raw",
)
_WESTLAKE = "https://recsys.westlake.edu.cn/MicroLens-100k-Dataset"
CATEGORIES = (
    "All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products "
    "Beauty_and_Personal_Care Books CDs_and_Vinyl Cell_Phones_and_Accessories "
    "Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards Grocery_and_Gourmet_Food "
    "Handmade_Products Health_and_Household Health_and_Personal_Care Home_and_Kitchen "
    "Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Movies_and_TV "
    "Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies Software "
    "Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement Toys_and_Games Video_Games"
).split()


def _movielens(name: str, title: str, what: str, md5: str) -> Published:
    file = RemoteFile(f"{name}.zip", (f"{_GROUPLENS}/{name}.zip",), 50_000_000, md5)
    page = f"https://grouplens.org/datasets/movielens/{name.removeprefix('ml-')}/"
    return Published(name, name, title, what, page, _MOVIELENS, _HARPER, (file,))


def _amazon(category: str) -> Published:
    files = [("review_categories", f"{category}.jsonl.gz", 40 * _GB)]
    files += [("meta_categories", f"meta_{category}.jsonl.gz", 20 * _GB)]
    return Published(
        name=f"amazon-2023-{category.lower().replace('_', '-')}",
        kind="amazon-2023",
        title=f"Amazon Reviews 2023, {category.replace('_', ' ')}",
        what="reviews as events; titles, descriptions, categories; pictures from the web",
        page="https://amazon-reviews-2023.github.io/",
        terms="its page names no licence: collected for research, cite it; texts and pictures are "
        "their owners'",
        cite="Hou et al., Bridging Language and Items for Retrieval and Recommendation, "
        "arXiv:2403.03952",
        files=tuple(
            RemoteFile(name, tuple(f"{base}/{folder}/{name}" for base in _AMAZON), most)
            for folder, name, most in files
        ),
        pictures="web",
    )


_MICROLENS = Published(
    name="microlens-100k",
    kind="microlens",
    title="MicroLens-100K",
    what="100,000 users, 19,738 short videos, 719,405 events; titles, topics, covers",
    page="https://github.com/westlake-repl/MicroLens",
    terms="for research; altered copies may not be offered for download; cite it",
    cite="Ni et al., A Content-Driven Micro-Video Recommendation Dataset at Scale, "
    "arXiv:2309.15379",
    files=tuple(
        RemoteFile(name, (f"{_WESTLAKE}/{name}",), most, needed=needed)
        for name, most, needed in (
            ("MicroLens-100k_pairs.csv", _GB, True),
            ("MicroLens-100k_title_en.csv", _GB, True),
            ("tags_to_summary.csv", _GB, False),
            ("MicroLens-100k_covers.zip", 40 * _GB, False),
        )
    ),
    pictures="archive",
)

_ALL = {
    one.name: one
    for one in (
        _movielens(
            "ml-100k",
            "MovieLens 100K",
            "943 users, 1,682 films, 100,000 ratings; titles, genres",
            "0e33842e24a9c977be4e0107933c0723",
        ),
        _movielens(
            "ml-1m",
            "MovieLens 1M",
            "6,040 users, 3,883 films, 1,000,209 ratings; titles, genres",
            "c4d9eecfca2ab87c1945afe126590906",
        ),
        _MICROLENS,
        *(_amazon(category) for category in CATEGORIES),
    )
}


def names() -> list[str]:
    """The names of all data sets there are."""
    return list(_ALL)


def find(name: str) -> Published:
    """A data set by its name.

    >>> from mmkd.published import find
    >>> find("ml-1m").files[0].name, find("amazon-2023-video-games").title
    ('ml-1m.zip', 'Amazon Reviews 2023, Video Games')

    Raises:
        DataError: There is none of that name.
    """
    if name not in _ALL:
        raise DataError(
            f"{name}: no such data set{did_you_mean(name, _ALL)}; mmkd data list names them"
        )
    return _ALL[name]
