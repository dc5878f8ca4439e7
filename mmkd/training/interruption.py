"""The order to stop a training run."""

from pathlib import Path


class TrainingInterrupted(Exception):  # noqa: N818 - an order obeyed, not an error
    """A run stopped on request, after writing a checkpoint."""

    def __init__(self, epoch: int, folder: Path) -> None:
        super().__init__(f"stopped in epoch {epoch + 1}; continue with --resume (run: {folder})")
