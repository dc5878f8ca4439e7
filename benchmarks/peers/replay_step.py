"""RePlay's SASRec, timed a step at a time on made-up batches: sizes to one JSON line.

Runs in RePlay's own environment (see `benchmarks/sasrec.py`), so it imports nothing of mmkd. Its
network, sampled cross-entropy, sampler of negatives and optimiser; batches are full sequences.
"""

import argparse
import importlib.metadata
import json
import resource
import statistics
import time

import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.loss import CESampled
from replay.nn.sequential import SasRec
from replay.nn.transform import UniformNegativeSamplingTransform


def main() -> None:
    """Parse the command line, step, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for size in ("items", "batch", "length", "width", "negatives", "steps", "warmup", "threads"):
        parser.add_argument(f"--{size}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    item = TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        embedding_dim=options.width,
        padding_value=options.items,
        cardinality=options.items,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
    )
    model = SasRec.from_params(
        TensorSchema([item]),
        embedding_dim=options.width,
        num_heads=2,
        num_blocks=2,
        max_sequence_length=options.length,
    )
    model.loss = CESampled(ignore_index=options.items)
    model.loss.logits_callback = model.get_logits
    optimizer = OptimizerFactory().create(model.parameters())
    negatives = UniformNegativeSamplingTransform(options.items, options.negatives)
    model.train()

    def step() -> None:
        events = torch.randint(options.items, (options.batch, options.length + 1))
        whole = torch.ones(options.batch, options.length, dtype=torch.bool)
        loss = model(
            feature_tensors={"item_id": events[:, :-1]},
            padding_mask=whole,
            positive_labels=events[:, 1:].unsqueeze(-1),
            negative_labels=negatives({})["negative_labels"],
            target_padding_mask=whole.unsqueeze(-1),
        )["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = []
    for at in range(options.warmup + options.steps):
        began = time.perf_counter()
        step()
        if at >= options.warmup:
            seconds.append(time.perf_counter() - began)
    reply = {
        "step_s": statistics.median(seconds),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2,
        "parameters": sum(p.numel() for p in model.parameters()),
        "version": importlib.metadata.version("replay-rec"),
    }
    print(json.dumps(reply))


if __name__ == "__main__":
    main()
