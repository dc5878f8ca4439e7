"""A shop whose titles, ids and labels are hostile, and runs of it, for tests of what is shown."""

import csv
import gzip
from pathlib import Path

from synthetic_runs import TINY

from mmkd import Run, load_recipe
from mmkd.demo import make_synthetic
from mmkd.pipeline.run import train

HOSTILE = [
    '<script>alert("title")</script>',
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "' onmouseover='alert(3)",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(4)",
    "\x1b[31mred\u202egnp.exe",
    "<!--",
    "&lt;b&gt; & more",
    "]]></style><style>*{display:none}",
]
USER = '<svg onload=alert("user")>'
LABEL = "<i>label</i>"


def hostile_shop(folder: Path) -> None:
    """The made-up shop with words of a stranger's in every place that holds words."""
    make_synthetic(folder, items=80, users=150, events=(4, 8))
    items = folder / "items.csv"
    with items.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    renamed = {row["item_id"]: f"{HOSTILE[n % 10]}-{n}" for n, row in enumerate(rows)}
    for n, row in enumerate(rows):
        row["title"] = f"{HOSTILE[n % 10]} {n}"
        row["item_id"] = renamed[row["item_id"]]
        row["attributes"] += f"|{LABEL}"
    with items.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    log = folder / "interactions.csv.gz"
    with gzip.open(log, "rt", newline="", encoding="utf-8") as file:
        events = list(csv.DictReader(file))
    for event in events:
        event["item_id"] = renamed[event["item_id"]]
        event["user_id"] = f"{USER}{event['user_id']}"
    with gzip.open(log, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, events[0])
        writer.writeheader()
        writer.writerows(events)


def trained(shop: Path, name: str, *more: str) -> Run:
    own = [f"data.root={shop / 'data'}", f"cache.folder={shop / 'cache'}", *TINY, *more]
    return train(load_recipe("quickstart", own), folder=shop / "runs" / name)
