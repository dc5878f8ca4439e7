"""The reference's side of `train_step`: builds the model and a cycle of batches, times one step."""

import itertools

import torch

from benchmarks.child import Trial
from benchmarks.reference.kdsr import ReferenceKDSR
from benchmarks.reference.session_graph import graph_batch
from benchmarks.workload import MAX_LENGTH, PREFIX_COUNT, sequences, teacher


def kdsr(
    *, width: int, batch_size: int, modalities: int, batches: int, random_codes: bool, float64: bool
) -> Trial:
    """Reference KDSR on prepared batches: forward, backward, Adam over every parameter.

    A sample is a whole sequence without its last event, which is the target. What a step costs
    hardly depends on the lengths, as all samples are padded to 50.
    """
    model = ReferenceKDSR(
        teachers={f"modality_{m}": teacher(width=width, seed=m) for m in range(modalities)},
        random_codes=random_codes,
        dtype=torch.float64 if float64 else torch.float32,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    prepared = itertools.cycle(
        graph_batch([(s[:-1], s[-1]) for s in chosen], length=MAX_LENGTH)
        for chosen in (sequences(count=batch_size, seed=n) for n in range(batches))
    )

    def step() -> float:
        optimizer.zero_grad()
        loss: torch.Tensor = model(next(prepared))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return Trial(
        step,
        {
            "parameters": sum(p.numel() for p in model.parameters()),
            "targets_per_step": batch_size,
            "steps_per_epoch": -(-PREFIX_COUNT // batch_size),
        },
    )
