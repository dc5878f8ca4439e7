"""New items without training: a trained ensemble of I items and n items' rows to one of I+n.

The new items follow the old ones, and the mask token's row them. They have no id row: what an
untrained one held would be noise that the gate trusts, so their id source is masked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmkd.student.build import StudentSpec
from mmkd.student.ensemble import Ensemble


def with_new_items(
    spec: StudentSpec,
    student: Ensemble,
    rows: Mapping[str, Sequence[Tensor]],
    present: Mapping[str, Tensor],
) -> tuple[StudentSpec, Ensemble]:
    """A student of a larger catalogue; the one that is given stays as it is.

    >>> import torch
    >>> from mmkd.student import StudentSpec, with_new_items
    >>> spec = StudentSpec(
    ...     item_count=3, max_length=5, embedding={"width": 4}, backbone={"kind": "gru4rec"},
    ...     score_with="fused", ensemble={}, modalities={"text": 6})
    >>> larger, student = with_new_items(
    ...     spec, spec.build(), {"text": [torch.randn(2, 4)]}, {"text": torch.tensor([True, True])})
    >>> larger.item_count, student.next_scores(torch.tensor([[1, 5]])).shape
    (5, torch.Size([1, 6]))

    Args:
        spec: What the student was built from.
        student: The trained networks.
        rows: Modality to the new items' rows [n, d] of each different table, in the order of
            `Ensemble.stored_tables`.
        present: Modality to [n] bool; each new item has at least one. A member that reads none of
            those of an item knows nothing of it.

    Returns:
        The larger student's spec, and the student in evaluation mode.

    Raises:
        ValueError: The student scores with ids or has no modality, or rows and masks do not fit it.
    """
    tables = student.stored_tables()
    if spec.score_with != "fused" or not tables:
        raise ValueError(
            "the student scores with ids, which a new item has none of; train with "
            "student.score_with: fused and an encoder"
        )
    if rows.keys() != tables.keys() or present.keys() != tables.keys():
        raise ValueError(
            f"got rows of {', '.join(rows) or 'no modality'}, wanted those of {', '.join(tables)}"
        )
    has = torch.stack([present[name] for name in tables], dim=1)  # [n, S - 1]
    if not has.any(dim=1).all():
        raise ValueError("an item has no modality to go by; leave it out")
    count = len(has)
    larger = replace(spec, item_count=spec.item_count + count)
    grown = larger.build()
    state = student.state_dict()
    for n, member in enumerate(student.networks):
        prefix, embedding = f"members.{n}.embedding.", member.embedding
        content = [present[name] for name in embedding.tables]
        has = torch.stack(content, dim=1) if content else torch.zeros(count, 0, dtype=torch.bool)
        if embedding.ids:
            own = torch.zeros(count, dtype=torch.bool)
            rows_of_ids = torch.zeros(count, embedding.width)
            state[prefix + "id_table"] = _inserted(embedding.id_table, rows_of_ids)
        else:
            own = ~has.any(1)  # they read the stand-in
        state[prefix + "has"] = _inserted(embedding.has, torch.cat([own[:, None], has], dim=1))
        for name, parameter in embedding.tables.items():
            number = next(k for k, one in enumerate(tables[name]) if one is parameter)
            new = torch.where(present[name][:, None], rows[name][number], 0.0)
            if (key := f"{prefix}tables.{name}") in state:  # of a shared one the first holds it
                state[key] = _inserted(parameter, new)
    if student.untrained is not None:
        state["untrained"] = torch.cat([student.untrained, student.untrained.new_ones(count)])
    grown.load_state_dict(state)
    return larger, grown.eval()


def _inserted(table: Tensor, new: Tensor) -> Tensor:
    """Rows [n, d] before the last one of [I+2, d], the mask token's."""
    table = table.detach()
    return torch.cat([table[:-1], new.to(table), table[-1:]])
