"""EncodingSettings: a recipe's ``embed`` section, what changes an embedding run but no vector."""

import os


class EncodingSettings:
    """How encoders are run.

    Args:
        device: Such as ``cpu`` or ``cuda:1``; ``auto`` is this process's GPU, or else the CPU;
            ``spread`` lays a language model over all GPUs of one process.
        batch_size: Inputs through a model at once.
        batch_tokens: Most tokens, padding counted, through a text model at once; None counts texts
            only. Short texts then go many at a time, long ones few.
        workers: Processes that decode pictures ahead of the model; None starts some where there is
            much to do, 0 decodes in the process itself.

    Raises:
        ValueError: A number is out of range; a line for each.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        batch_size: int = 64,
        batch_tokens: int | None = None,
        workers: int | None = None,
    ) -> None:
        wrong = [
            f"{name}: got {count}, wanted at least {least}"
            for name, count, least in (
                ("batch_size", batch_size, 1),
                ("batch_tokens", batch_tokens, 1),
                ("workers", workers, 0),
            )
            if count is not None and count < least
        ]
        if wrong:
            raise ValueError("\n".join(wrong))
        self.device = device
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.workers = workers

    def resolved_device(self) -> str:
        """``device`` as `mmkd.encoders.build_encoder` takes it, definite for this process.

        Of the processes that a launcher starts on one machine, each takes the GPU of its number.
        """
        if self.device == "spread":
            return "auto"
        if self.device not in ("auto", "cuda"):
            return self.device
        import torch

        if self.device == "auto" and not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"


def share_cores() -> None:
    """Gives this process its share of the cores, where a launcher started several on this machine.

    Processes that each take every core run many times slower than one after the other.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
