"""What the embedding cache tells a user."""


class CacheError(ValueError):
    """The cache cannot give what was asked: what was found, what was wanted, what to do."""


class EmbeddingInterrupted(Exception):  # noqa: N818 - an order obeyed, not an error
    """An embedding run stopped on request, after committing what it had encoded."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(
            f"stopped: {done} of {total} inputs are encoded and kept; the same command goes on"
        )
