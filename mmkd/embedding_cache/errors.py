"""The embedding cache's one user-facing error."""


class CacheError(ValueError):
    """The cache cannot give what was asked: what was found, what was wanted, what to do."""
