"""One of several processes that `embed.py` sets to one store: loads its model, then waits for work.

Started by it, not by hand. It reads cache folders from its input, a line each, embeds the catalogue
into each, and answers with a line of JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.embed_contestants import quiet
from mmkd.data import ItemTable
from mmkd.embeddings import EmbeddingCache
from mmkd.encoders import EncoderCard


def main() -> None:
    """Load, then embed into each folder named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", type=json.loads)
    parser.add_argument("items", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--shard-size", type=int, required=True)
    options = parser.parse_args()

    import torch

    quiet()
    torch.set_num_threads(options.threads)
    card, items = EncoderCard(**options.card), ItemTable.load(options.items)
    encoder = card.build(allow_random_weights=True)
    answer(ready=True)
    for line in sys.stdin:
        started = time.perf_counter()
        cache = EmbeddingCache(Path(line.strip()), shard_size=options.shard_size)
        table = cache.table(
            card, items, encoder_factory=lambda: encoder, batch_size=options.batch_size
        )
        answer(seconds=time.perf_counter() - started, present=int(table.present.sum()))


def answer(**content: object) -> None:
    """One line for the process that listens."""
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
