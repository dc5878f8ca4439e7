"""The demo's own figure: do the lists follow what the made-up users follow?"""

import csv
import gzip
from pathlib import Path

import polars as pl
import pytest

from mmkd.demo.catalogue import make_synthetic
from mmkd.demo.run import alike

MOODS = (("colour", "material", "pattern"), ("shape", "occasion", "pattern"))


def test_alike_counts_listed_items_that_share_a_mood_with_the_last_one(tmp_path: Path) -> None:
    shop = make_synthetic(tmp_path, items=150, users=40, events=(3, 7), seed=1)
    facets = {row["item_id"]: row for row in csv.DictReader(shop.facets_path.open())}
    last: dict[str, str] = {}
    with gzip.open(shop.interactions_path, "rt") as log:
        for event in csv.DictReader(log):
            last[event["user_id"]] = event["item_id"]
    listed = [(user, item) for user in last for item in shop.ids[1:]]
    lists = pl.DataFrame(listed, schema=["query", "item_id"], orient="row").sample(
        fraction=1.0, shuffle=True, seed=0
    )
    shared = [
        any(all(facets[last[user]][f] == facets[item][f] for f in mood) for mood in MOODS)
        for user, item in listed
    ]
    assert 0 < sum(shared) < len(shared) / 4
    assert alike(shop, lists) == pytest.approx(sum(shared) / len(shared))
    theirs = pl.DataFrame({"query": list(last), "item_id": list(last.values())})
    assert alike(shop, theirs) == 1.0
