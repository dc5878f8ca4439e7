"""What the commands say while they work: bars for a person, a line now and then for a log."""

import time

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from mmkd.terminal import console, printable


class EmbeddingProgress:
    """A bar for each modality that is encoded, in a log a line now and then; counts what was."""

    def __init__(self, verb: str = "encode ", *, line_every_s: float = 30.0) -> None:
        self._line_every_s = line_every_s
        self._told_s: dict[str, tuple[float, float]] = {}  # name -> (started, last line)
        self._verb = verb
        self.encoded: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        terminal = console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(show_speed=True),
            TimeRemainingColumn(),
            console=terminal,
            transient=True,
            disable=not terminal.is_terminal,  # in a log it would leave empty lines
        )

    def __enter__(self) -> "EmbeddingProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` inputs of modality ``name`` are encoded."""
        if name not in self._tasks:
            self._progress.start()
            self._tasks[name] = self._progress.add_task(f"{self._verb}{name}", total=total)
        self.encoded[name] = done
        if self._progress.disable:
            self._line(name, done, total)
        self._progress.update(self._tasks[name], completed=done, total=total)
        if done >= total:
            self._progress.stop()  # the training's own lines follow

    def _line(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        started, last = self._told_s.setdefault(name, (now, now))
        if not done or now <= started or now - last < self._line_every_s:
            return
        self._told_s[name] = started, now
        rate = done / (now - started)
        note(
            f"{self._verb}{name}: {done} of {total}, {rate:.1f} a second, "
            f"{(total - done) / rate:.0f} s left"
        )


class Bar:
    """A bar of one task."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._progress = EmbeddingProgress(verb="")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.__exit__()

    def advance(self, done: int, total: int) -> None:
        """``done`` of ``total`` are done."""
        self._progress.advance(self._name, done, total)


def note(line: str) -> None:
    """One line on standard error, where it is in no program's way."""
    console(stderr=True, soft_wrap=True).print(printable(line))
