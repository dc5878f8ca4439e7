"""State: what a page shows, as its address has it.

Every control of the page is a link to the state that it leads to, so that an address can be kept,
sent and gone back to, and nothing is remembered for anybody.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote

HISTORY = 50  # items; of more the latest are kept
_COUNTS = (10, 20, 50)  # items a list
_MOST_CHARACTERS = 512  # of an id, and of a query
_ENCODED = 4096  # ids held


@dataclass(frozen=True)
class State:
    """What a page shows.

    >>> from mmkd.serve.state import State
    >>> state = State(history=("A1", "B7"))
    >>> state.adding("C 3"), state.moving(1, -1), state.without(0).address
    ('./?item=A1&item=B7&item=C%203', './?item=B7&item=A1', './?item=B7')
    >>> State.of("item=A1&item=B7") == state
    True

    Attributes:
        history: Ids, oldest first.
        seen: Whether lists hold the history's own items too.
        everything: Whether lists hold what is not in stock too.
        k: Items a list.
        near: Id of the item whose neighbours are shown.
        query: What is searched for; no address of ``address`` has it, as the page sends what stands
            in its field.
    """

    history: tuple[str, ...] = ()
    seen: bool = False
    everything: bool = False
    k: int = _COUNTS[0]
    near: str | None = None
    query: str = ""

    @classmethod
    def of(cls, query: str) -> "State":
        """The state of an address's query; what is not understood is left out."""
        given = parse_qsl(query)
        forms = [value for name, value in given if name == "state"]  # all but what is searched for
        given = [pair for value in forms for pair in parse_qsl(value)] + given
        fields: dict[str, Any] = {}
        for name, value in given:
            if name in ("seen", "everything"):
                fields[name] = value == "1"
            elif name == "k" and value in map(str, _COUNTS):
                fields["k"] = int(value)
            elif name in ("near", "q"):
                fields["query" if name == "q" else name] = value[:_MOST_CHARACTERS]
        items = [value[:_MOST_CHARACTERS] for name, value in given if name == "item"]
        return cls(history=tuple(items[-HISTORY:]), **fields)

    @property
    def form(self) -> str:
        """All but what is searched for, as the value of a form's field ``state``."""
        told = [_field("item", item) for item in self.history]
        told += [_field(name, "1") for name in ("seen", "everything") if getattr(self, name)]
        told += [_field("k", str(self.k))] if self.k != _COUNTS[0] else []
        told += [] if self.near is None else [_field("near", self.near)]
        return "&".join(told)

    @property
    def address(self) -> str:
        """Relative to the page."""
        form = self.form
        return f"./?{form}" if form else "./"

    @property
    def shown(self) -> str:
        """As ``address``, with what is searched for."""
        if not self.query:
            return self.address
        address = self.address
        return address + ("&" if "?" in address else "?") + _field("q", self.query)

    @property
    def more(self) -> int | None:
        """The next longer list; None where there is none."""
        return next((count for count in _COUNTS if count > self.k), None)

    def to(self, **changes: Any) -> str:
        """The address of a state with changes."""
        return replace(self, **changes).address

    def adding(self, item: str) -> str:
        """The address with an item taken last."""
        return self.to(history=(*self.history, item)[-HISTORY:])

    def without(self, place: int) -> "State":
        """The state without one item of the history."""
        return replace(self, history=self.history[:place] + self.history[place + 1 :])

    def moving(self, place: int, by: int) -> str:
        """The address with an item of the history elsewhere; places from 0."""
        rest = list(self.history)
        item = rest.pop(place)
        rest.insert(place + by, item)
        return self.to(history=tuple(rest))


@lru_cache(_ENCODED)  # a page has a hundred links, all of which hold the history
def _field(name: str, value: str) -> str:
    return f"{name}={quote(value, safe='')}"
