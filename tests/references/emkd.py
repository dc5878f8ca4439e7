"""Naive float64 re-derivations of EMKD's losses (arXiv:2304.14668), one number at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def flat(states: Tensor, items: Tensor) -> Tensor:
    """One sequence's states [L, D] side by side; at padding zeros."""
    return torch.cat([h if item else h * 0 for h, item in zip(states, items, strict=True)])


def contrast(hidden: Sequence[Tensor], views: Tensor, x: int, y: int, tau: float) -> Tensor:
    """Anchors of network x against network y: ICL where they are one, CCL where not; a mean."""
    count, batch = views.shape[:2]
    losses = []
    for b in range(batch):
        anchor = flat(hidden[x][0, b], views[0, b])
        near = [
            torch.exp(cosine(anchor, flat(hidden[y][v, b], views[v, b])) / tau)
            for v in range(1, count)
        ]
        far = [
            torch.exp(cosine(anchor, flat(hidden[y][0, o], views[0, o])) / tau)
            for o in range(batch)
            if o != b
        ]
        losses.append(torch.log(sum(far, torch.zeros(()))) - torch.log(sum(near, torch.zeros(()))))
    return torch.stack(losses).mean()


def kl(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """KL of two rows of logits; the teacher's are detached."""
    p = torch.exp(teacher.detach() / tau)
    p = p / p.sum()
    q = torch.exp(student / tau)
    q = q / q.sum()
    return (p * (torch.log(p) - torch.log(q))).sum()


def mutual(logits: Sequence[Tensor], tau: float) -> Tensor:
    """Sum over pairs of networks of the symmetric KL at each position, [M]."""
    rows = []
    for m in range(len(logits[0])):
        total = torch.zeros((), dtype=torch.float64)
        for a in range(len(logits)):
            for b in range(a):
                total = (
                    total
                    + (kl(logits[a][m], logits[b][m], tau) + kl(logits[b][m], logits[a][m], tau))
                    / 2
                )
        rows.append(total)
    return torch.stack(rows)


def attributes(logits: Tensor, labels: Sequence[set[int]]) -> Tensor:
    """Binary cross-entropy of each row, a mean over columns, [M]; labels are columns from 0."""
    rows = []
    for z, own in zip(logits, labels, strict=True):
        terms = []
        for c, value in enumerate(z):
            s = 1 / (1 + torch.exp(-value))
            terms.append(-torch.log(s if c in own else 1 - s))
        rows.append(torch.stack(terms).mean())
    return torch.stack(rows)


def cross_entropy(logits: Tensor, column: int) -> Tensor:
    return torch.log(torch.exp(logits).sum()) - logits[column]


def compression(logits: Tensor, teachers: Sequence[Tensor], tau: float, by_logits: bool) -> Tensor:
    """KL from the members put together to the student at each position, [M]."""
    rows = []
    for m in range(len(logits)):
        if by_logits:
            z = sum((t[m] for t in teachers), torch.zeros(())) / len(teachers)
        else:
            each = [torch.exp(t[m] / tau) for t in teachers]
            z = tau * torch.log(sum((p / p.sum() for p in each), torch.zeros(())))
        rows.append(kl(z, logits[m], tau))
    return torch.stack(rows)


def states_apart(states: Tensor, teachers: Sequence[Tensor]) -> Tensor:
    count = len(states)
    total = 0.0
    for a in range(count):
        for b in range(count):
            wanted = sum(float(cosine(t[a], t[b]).detach()) for t in teachers) / len(teachers)
            total += (float(cosine(states[a], states[b]).detach()) - wanted) ** 2
    return torch.tensor(total / count**2, dtype=torch.float64)
