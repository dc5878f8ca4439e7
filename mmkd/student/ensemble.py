"""Ensemble: N recommenders side by side, [B, L] to N states, and one score a catalogue item.

The networks of EMKD (arXiv:2304.14668), section 4.1. One network is an ensemble of one: training,
evaluation and files know ensembles only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import at_least, one_of, refuse
from mmkd.student.recommender import (
    Catalogue,
    Recommender,
    StudentOutput,
    answering,
    best_items,
    prompt,
)

Inference = Literal["logits", "probabilities"]
ModalityTables = Literal["shared", "own"]


class Ensemble(nn.Module):
    """Networks of one shape with their own weights, scored together.

    They run one after the other: at the sizes of training each one fills the machine by itself,
    and a batched program of all of them was no faster (docs/ensemble.md).

    `causal`, `item_count` and `max_length` are what the members have in common; of `max_length` the
    smallest.

    >>> import torch
    >>> from mmkd import Ensemble, FusedItemEmbedding, GRU4Rec, Recommender
    >>> def network():
    ...     return Recommender(
    ...         embedding=FusedItemEmbedding(item_count=3, width=8), backbone=GRU4Rec(width=8)
    ...     )
    >>> ensemble = Ensemble([network(), network()])
    >>> hidden = [output.hidden[:, -1] for output in ensemble(torch.tensor([[0, 2, 1]]))]
    >>> ensemble.score(hidden).shape
    torch.Size([1, 4])
    """

    def __init__(self, members: Sequence[Recommender], *, inference: Inference = "logits") -> None:
        """Put the networks together.

        Args:
            members: At least one, of one causality. Those that hold the same modality tables, the
                very module, keep them once in the state dict.
            inference: `logits` adds the members' scores; `probabilities` adds their softmax
                probabilities over the catalogue, as the paper writes.

        Raises:
            ValueError: No member, members that don't fit together, or an unknown `inference`.
        """
        super().__init__()
        if not members:
            raise ValueError("members: got none, wanted at least 1 network")
        if len({(m.causal, m.embedding.item_count) for m in members}) > 1:
            raise ValueError(
                "members: got causal and bidirectional networks or other catalogues side by side; "
                "build all of them from one recipe"
            )
        refuse(check_build_ensemble(inference=inference))
        self.members = nn.ModuleList(members)
        self.inference = inference
        self.causal = members[0].causal
        self.item_count = members[0].item_count
        self.max_length = min(
            (m.max_length for m in members if m.max_length is not None), default=None
        )
        self._shared = tuple(
            (f"members.{n}.embedding.tables.", "members.0.embedding.tables.")
            for n, member in enumerate(members[1:], start=1)
            if member.embedding.tables is members[0].embedding.tables
        )
        self.register_state_dict_post_hook(_drop_repeats)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_repeat_shared)  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, student: "Ensemble | Recommender") -> "Ensemble":
        """A network as an ensemble of one, around the network itself; an ensemble as it is."""
        return student if isinstance(student, Ensemble) else cls([student])

    @property
    def networks(self) -> list[Recommender]:
        """The members."""
        return cast(list[Recommender], list(self.members))

    def forward(self, items: Tensor) -> list[StudentOutput]:
        """States of every position, by member.

        Args:
            items: [B, L] int64, as for `Recommender`.
        """
        return [member(items) for member in self.members]

    def score(
        self, hidden: Sequence[Tensor], item_matrices: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The members' scores over the catalogue, added up.

        Args:
            hidden: N states [..., d].
            item_matrices: The members' [I, d], as their outputs have them; None makes them anew.

        Returns:
            [..., I+1], column r for item r, column 0 (padding) -inf. With `probabilities` their
            logarithm, which ranks the same and does not underflow.
        """
        matrices = item_matrices or [member.item_matrix() for member in self.networks]
        logits = [h @ matrix.mT for h, matrix in zip(hidden, matrices, strict=True)]  # N x [..., I]
        if self.inference == "probabilities":
            total = torch.stack([z.float().log_softmax(-1) for z in logits]).logsumexp(0)
        else:
            total = logits[0]
            for other in logits[1:]:
                total = total + other
        return F.pad(total, (1, 0), value=-float("inf"))

    def next_scores(self, histories: Tensor) -> Tensor:
        """Scores [B, I+1] of what comes after each of the histories [B, L], left-padded."""
        with answering(self):
            outputs = self(prompt(self, histories))
            hidden = [out.hidden[:, -1] for out in outputs]  # N x [B, d]
            return self.score(hidden, [out.item_matrix for out in outputs])

    def recommend(
        self, items: Catalogue, history: Sequence[str], *, k: int = 10, exclude_seen: bool = True
    ) -> list[dict[str, Any]]:
        """The k items that a user is likeliest to take next, as `Recommender.recommend`."""
        return best_items(self, self.next_scores, items, history, k, exclude_seen=exclude_seen)

    def modality_tables(self) -> dict[str, list[Tensor]]:
        """Name to the different tables S_m [I+2, d] there are: one where the members share it."""
        tables = [member.embedding.modality_tables() for member in self.networks]
        return {
            name: list({id(each[name]): each[name] for each in tables}.values())
            for name in tables[0]
        }

    def vectors(self, modality: str | None = None) -> Tensor:
        """Item vectors whose cosines are the mean of the members' cosines.

        Args:
            modality: Of which table; None for the fused vectors.

        Returns:
            [I+2, d] where there is one table, otherwise the tables' unit rows side by side.
        """
        if modality is None:
            tables = [member.embedding.table() for member in self.networks]
        else:
            tables = self.modality_tables()[modality]
        if len(tables) == 1:
            return tables[0]
        return torch.cat([F.normalize(table, dim=1) for table in tables], dim=1)

    def enable_gradient_checkpointing(self) -> None:
        """Train every member in less memory and more time, see `Recommender`."""
        for member in self.networks:
            member.gradient_checkpointing = True

    def modality_parameters(self) -> list[nn.Parameter]:
        """The modality tables, each once, for a parameter group with a schedule of its own."""
        found = [p for member in self.networks for p in member.modality_parameters()]
        return list({id(p): p for p in found}.values())


def build_ensemble(
    build: Callable[[], Recommender],
    *,
    seed: int | None = None,
    members: int = 1,
    modality_tables: ModalityTables = "shared",
    inference: Inference = "logits",
) -> Ensemble:
    """Build N networks that differ from the start.

    Args:
        build: Gives one untrained network, its weights drawn from torch's generator.
        seed: Network n is drawn after `torch.manual_seed(seed + n)`; None leaves the generator be.
        members: N.
        modality_tables: `shared` by all networks, or each its `own`. Ids are always their own.
        inference: As for `Ensemble`.

    Raises:
        ValueError: `members` is below 1, or an unknown choice.
    """
    refuse(
        check_build_ensemble(members=members, modality_tables=modality_tables, inference=inference)
    )
    networks = []
    for n in range(members):
        if seed is not None:
            torch.manual_seed(seed + n)
        networks.append(build())
        if modality_tables == "shared":
            networks[n].embedding.tables = networks[0].embedding.tables
    return Ensemble(networks, inference=inference)


def check_build_ensemble(**options: Any) -> list[str]:
    """What is wrong with any of the options of `build_ensemble`, a line each."""
    return [
        *at_least(1, members=options.get("members")),
        *one_of(get_args(ModalityTables), modality_tables=options.get("modality_tables")),
        *one_of(get_args(Inference), inference=options.get("inference")),
    ]


def _drop_repeats(
    module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Mapping[str, Any]
) -> None:
    """Keep shared tables once: a file holds what there is, not what refers to it."""
    for repeat, _ in cast(Ensemble, module)._shared:
        for key in [key for key in state if key.startswith(prefix + repeat)]:
            del state[key]


def _repeat_shared(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The other way round: every member that shares a table finds it under its own name."""
    for repeat, first in cast(Ensemble, module)._shared:
        for key in [key for key in state if key.startswith(prefix + first)]:
            state[prefix + repeat + key.removeprefix(prefix + first)] = state[key]
