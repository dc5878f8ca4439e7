"""EvaluationError: the one user-facing error of the evaluation layer."""


class EvaluationError(ValueError):
    """Scores, ranks or cases that cannot be evaluated; the message says got, wanted, remedy."""
