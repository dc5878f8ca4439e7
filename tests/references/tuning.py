"""The loss of tuning, written out in float64, one logit after the other."""

import math
from collections.abc import Sequence


def reference_pair_loss(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    first_content: Sequence[int],
    second_content: Sequence[int],
    temperature: float,
) -> float:
    total = 0.0
    for anchors, others, contents in (
        (first, second, second_content),
        (second, first, first_content),
    ):
        for i, anchor in enumerate(anchors):
            own = {first_content[i], second_content[i]}
            partition = 0.0
            for j, other in enumerate(others):
                if j == i or contents[j] not in own:
                    partition += math.exp(_cosine(anchor, other) / temperature)
            total -= math.log(math.exp(_cosine(anchor, others[i]) / temperature) / partition)
    return total / (2 * len(first))


def reference_towers_loss(
    vectors: Sequence[Sequence[Sequence[float] | None]],
    contents: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]],
    temperature: float,
) -> float:
    """By tower, vector (None if an item has none) and content of each item; pairs of items."""
    means = []
    for one in range(len(vectors)):
        for other in range(len(vectors)):
            kept = [
                (a, b)
                for a, b in pairs
                if vectors[one][a] is not None and vectors[other][b] is not None
            ]
            total = 0.0
            for a, b in kept:
                for anchor, target, at, to in ((a, b, one, other), (b, a, other, one)):
                    candidates = [pair[1] if target == b else pair[0] for pair in kept]
                    own = {contents[to][a], contents[to][b]}
                    logits = {
                        place: _cosine(vectors[at][anchor], vectors[to][item]) / temperature
                        for place, item in enumerate(candidates)
                        if place == kept.index((a, b)) or contents[to][item] not in own
                    }
                    partition = sum(math.exp(logit) for logit in logits.values())
                    total -= math.log(math.exp(logits[kept.index((a, b))]) / partition)
            if kept:
                means.append(total / (2 * len(kept)))
    return sum(means) / len(means)


def _cosine(a: Sequence[float] | None, b: Sequence[float] | None) -> float:
    assert a is not None and b is not None
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
