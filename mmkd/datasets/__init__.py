"""Published data sets: a name to files that train, downloaded where there is a network.

From a name (`published.py`) to files on the disk (`download.py`), to tables of one form
(`movielens.py`, `amazon.py`, `microlens.py`) and a recipe (`get.py`).
"""

from mmkd.datasets.get import get
from mmkd.datasets.published import Published, find, names

__all__ = ["Published", "find", "get", "names"]
