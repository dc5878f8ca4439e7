"""Published data sets: a name to files that train, downloaded where there is a network.

From a name (`known.py`) to files on the disk (`download.py`), to tables of one form
(`movielens.py`, `amazon.py`, `microlens.py`) and a recipe (`getting.py`).
"""

from mmkd.published.getting import get
from mmkd.published.known import Published, find, names

__all__ = ["Published", "find", "get", "names"]
