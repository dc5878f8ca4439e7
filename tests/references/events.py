"""Naive re-derivations of k-core and of the split protocols: one event, one user at a time."""

from collections import Counter

Event = tuple[str, int, float]  # user, item, timestamp
Sequences = dict[str, list[tuple[int, float]]]


def reference_k_core(events: list[Event], min_user: int, min_item: int) -> list[Event]:
    """Drops one round of thin users and items after another until a round drops nothing."""
    while True:
        users = Counter(user for user, _, _ in events)
        items = Counter(item for _, item, _ in events)
        kept = [e for e in events if users[e[0]] >= min_user and items[e[1]] >= min_item]
        if len(kept) == len(events):
            return kept
        events = kept


def reference_duplicates(events: list[Event], policy: str) -> list[Event]:
    """Keeps the earliest or latest event of each user and item; ties go by file order."""
    best: dict[tuple[str, int], int] = {}
    for index, (user, item, time) in enumerate(events):
        other = best.setdefault((user, item), index)
        earlier, later = time < events[other][2], time >= events[other][2]
        if earlier if policy == "first" else later:
            best[user, item] = index
    return [events[index] for index in sorted(best.values())]


def reference_sequences(events: list[Event]) -> Sequences:
    """Each user's (item, time) by time; Python's sort is stable."""
    sequences: Sequences = {}
    for user, item, time in events:
        sequences.setdefault(user, []).append((item, time))
    return {user: sorted(own, key=lambda event: event[1]) for user, own in sequences.items()}


def reference_temporal(
    sequences: Sequences, start: float, middle: float
) -> tuple[dict[str, int], set[tuple[str, int]], set[tuple[str, int]]]:
    """Training events per user, and the (user, position) of the two kinds of case."""
    train = {user: 0 for user in sequences}
    valid, test = set(), set()
    for user, own in sequences.items():
        for position, (_, time) in enumerate(own):
            if time < start:
                train[user] += 1
            elif position and time < middle:
                valid.add((user, position))
            elif position:
                test.add((user, position))
    return train, valid, test


def reference_cold_items(
    sequences: Sequences, drawn: list[int], order: list[int]
) -> tuple[dict[str, list[int]], dict[str, list[int]], set[tuple[str, int]], set[tuple[str, int]]]:
    """Histories that train, and for each user the histories and targets of the two cases.

    Args:
        sequences: Of ``reference_sequences``.
        drawn: Items that may not train.
        order: All items, the drawn ones first: cold ones serve validation and test in turns.

    Returns:
        User to training items; user to the test case's history; (user, target) of validation
        and of test.
    """
    train, cases = {}, {}
    for user, own in sequences.items():
        items = [item for item, _ in own]
        warm = [item for item in items[:-2] if item not in drawn]
        if warm:
            train[user], cases[user] = warm, items[-2:]
        else:
            train[user] = [item for item in items if item not in drawn]
    trained = {item for items in train.values() for item in items}
    taken = {item for own in sequences.values() for item, _ in own}
    cold = [item for item in order if item in taken and item not in trained]
    for_valid = {item for place, item in enumerate(cold) if place % 2 == 0}
    valid, test, history = set(), set(), {}
    for user, (before, last) in cases.items():
        history[user] = list(train[user])
        if before in trained or before in for_valid:
            valid.add((user, before))
            history[user].append(before)
        if last in trained or last not in for_valid:
            test.add((user, last))
    return train, history, valid, test
