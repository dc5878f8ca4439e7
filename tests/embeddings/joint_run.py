"""Run as a program by test_joining.py: joins the cache named on its line; 60 texts, shards of 8."""

import sys
from pathlib import Path

from embeddings.fakes import BatchBoundText, card, catalogue

from mmkd import EmbeddingCache

if __name__ == "__main__":
    texts = [f"text number {n}" for n in range(60)]
    cache = EmbeddingCache(Path(sys.argv[1]), shard_size=8)
    cache.table(card(), catalogue(texts), encoder_factory=BatchBoundText)
