"""SIGINT, SIGTERM and SIGHUP to a flag that long work reads between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


def end_early() -> None:
    """From now on SIGTERM raises KeyboardInterrupt, as SIGINT does, where no `Interruption` is."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


class Interruption:
    """Context manager: ``requested`` turns true on SIGINT, SIGTERM or SIGHUP, a closed terminal's.

    A second signal goes to who would have got the first: it ends at once, or another one around
    this is told. Under nohup SIGHUP stays ignored.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
