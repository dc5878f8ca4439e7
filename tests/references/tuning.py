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
    def cosine(a: Sequence[float], b: Sequence[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

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
                    partition += math.exp(cosine(anchor, other) / temperature)
            total -= math.log(math.exp(cosine(anchor, others[i]) / temperature) / partition)
    return total / (2 * len(first))
