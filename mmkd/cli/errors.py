"""Which exceptions are a user's mistake or order, and not a fault of the program."""


def user_errors() -> tuple[type[Exception], ...]:
    """Exceptions whose message is all a user needs."""
    from mmkd.data.errors import DataError
    from mmkd.embedding_cache.errors import CacheError
    from mmkd.encoders import EncoderError
    from mmkd.evaluation import EvaluationError
    from mmkd.options import RecipeError
    from mmkd.serving.run_folder import RunError
    from mmkd.training.checkpoint import CheckpointError
    from mmkd.training.interruption import TrainingInterrupted
    from mmkd.training.trainer import TrainingError

    return (
        DataError,
        CacheError,
        EncoderError,
        EvaluationError,
        RecipeError,
        RunError,
        CheckpointError,
        TrainingError,
        TrainingInterrupted,
    )
