"""Ensemble: N recommenders side by side, [B, L] to N states, and one score a catalogue item.

The networks of EMKD (arXiv:2304.14668), section 4.1; they may differ in what they read and how.
One network is an ensemble of one: training, evaluation and files know ensembles only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import at_least, one_of, refuse, within
from mmkd.student.recommender import (
    Catalogue,
    Recommender,
    StudentOutput,
    answering,
    best_items,
    prompt,
)
from mmkd.student.rows import TableRows, TableShards

Inference = Literal["logits", "probabilities", "standardized"]
ModalityTables = Literal["shared", "own"]
Weights = Literal["validation"] | Sequence[float] | None
Offset = Literal["validation"] | float | None
_LAST = -4.0  # standard deviations of a list's scores


class Ensemble(nn.Module):
    """Networks with their own weights, scored together.

    They read the same catalogue, though each may know it by other sources, and look the same way.

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

    def __init__(
        self,
        members: Sequence[Recommender],
        *,
        inference: Inference = "logits",
        weights: Sequence[float] | None = None,
        untrained_offset: float | None = None,
    ) -> None:
        """Put the networks together.

        Args:
            members: At least one, of one causality. Of those that hold the same modality table, the
                very parameter, the first keeps it in the state dict.
            inference: `logits` adds the members' scores; `probabilities` adds their softmax
                probabilities over the catalogue, as the paper writes; `standardized` adds the
                scores in standard deviations from the list's own mean, so that no member outweighs
                the others by its scale (see `combine`).
            weights: What each member counts, 0 or more; only their ratios matter. Kept in the state
                dict, as `weights` [N]. None counts all alike.
            untrained_offset: What the items marked in `untrained` [I] get on their scores, in
                standard deviations of all scores of the list; both are kept in the state dict. No
                loss says how the scores of an item that never trains lie beside the others'. None
                marks none.

        Raises:
            ValueError: No member, members that don't fit together, or an option that is wrong.
        """
        super().__init__()
        if not members:
            raise ValueError("members: got none, wanted at least 1 network")
        if len({(m.causal, m.embedding.item_count) for m in members}) > 1:
            raise ValueError(
                "members: got causal and bidirectional networks or other catalogues side by side; "
                "build all of them from one recipe"
            )
        refuse(check_build_ensemble(members=len(members), inference=inference, weights=weights))
        self.members = nn.ModuleList(members)
        self.inference = inference
        self.weights: Tensor | None
        counted = None if weights is None else torch.tensor([*weights], dtype=torch.float32)
        self.register_buffer("weights", counted)
        self.untrained_offset: Tensor | None
        self.untrained: Tensor | None
        offset = None if untrained_offset is None else torch.tensor(float(untrained_offset))
        none = None if offset is None else torch.zeros(members[0].embedding.item_count).bool()
        self.register_buffer("untrained_offset", offset)
        self.register_buffer("untrained", none)
        self.causal = members[0].causal
        self.item_count = members[0].item_count
        self.max_length = min(
            (m.max_length for m in members if m.max_length is not None), default=None
        )
        self._shared = tuple(_repeated_tables(members))
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

    @property
    def shards(self) -> TableShards | None:
        """How the item tables lie on several processes; None where each has them whole."""
        return self.networks[0].shards

    def shard(self, shards: TableShards) -> None:
        """Keep this process's rows of every item table, and forget the others."""
        for table in self.item_tables().values():
            table.data = shards.cut(table.data)
        for member in self.networks:
            member.embedding.shards = shards

    def rows(self, numbers: Tensor) -> TableRows:
        """Rows of every item table; of tables over processes also those that others ask for."""
        return TableRows(numbers) if self.shards is None else self.shards.rows(numbers)

    def forward(self, items: Tensor, rows: TableRows | None = None) -> list[StudentOutput]:
        """States of every position, by member.

        Args:
            items: [B, L] int64, as for `Recommender`.
            rows: As for `Recommender`.
        """
        return [member(items, rows) for member in self.members]

    def score(
        self, hidden: Sequence[Tensor], item_matrices: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The members' scores over the catalogue, added up as `combine` says, some moved.

        Args:
            hidden: N states [..., d].
            item_matrices: The members' [I, d], as their outputs have them; None makes them anew.

        Returns:
            [..., I+1], column r for item r, column 0 (padding) -inf. With `probabilities` their
            logarithm, which ranks the same and does not underflow.
        """
        total = self.combined(hidden, item_matrices)
        if self.untrained_offset is not None:
            total = total + self.moved(total, self.untrained_offset)
        return F.pad(total, (1, 0), value=-float("inf"))

    def combined(
        self, hidden: Sequence[Tensor], item_matrices: Sequence[Tensor] | None = None
    ) -> Tensor:
        """`score` [..., I] without padding and before untrained items are moved."""
        matrices = item_matrices or [member.item_matrix() for member in self.networks]
        logits = [h @ matrix.mT for h, matrix in zip(hidden, matrices, strict=True)]  # N x [..., I]
        return combine(logits, inference=self.inference, weights=self.weights, known=self.known())

    def moved(self, scores: Tensor, offset: Tensor | float) -> Tensor:
        """What an offset adds to scores [..., I]: 0 but for untrained items."""
        assert self.untrained is not None
        deviation = scores.std(dim=-1, correction=0, keepdim=True)
        return offset * deviation * self.untrained

    def known(self) -> list[Tensor | None]:
        """By member the items [I] that it knows anything of; None where it knows all.

        Only `standardized` asks.
        """
        if self.inference != "standardized":
            return [None] * len(self.members)
        found = [member.known() for member in self.networks]
        return [None if bool(known.all()) else known for known in found]

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

    def shares(self) -> list[float]:
        """What each member counts of the whole; they sum to 1."""
        weights = torch.ones(len(self.members)) if self.weights is None else self.weights
        return (weights.double() / weights.double().sum()).tolist()

    def set_weights(self, weights: Sequence[float]) -> None:
        """Count the members otherwise; the ensemble must have weights."""
        assert self.weights is not None
        self.weights.copy_(torch.tensor([*weights]))

    def set_untrained_offset(self, offset: float) -> None:
        """Move untrained items otherwise; the ensemble must have an offset."""
        assert self.untrained_offset is not None
        self.untrained_offset.fill_(offset)

    def modality_tables(self, rows: TableRows | None = None) -> dict[str, list[Tensor]]:
        """Name to the different tables S_m [I+2, d] there are: one where the members share it.

        Args:
            rows: Of which [R, d] are wanted; None = all.
        """
        tables = [member.embedding.modality_tables(rows) for member in self.networks]
        names = dict.fromkeys(name for each in tables for name in each)
        return {
            name: list({id(each[name]): each[name] for each in tables if name in each}.values())
            for name in names
        }

    def stored_tables(self) -> dict[str, list[nn.Parameter]]:
        """Name to the different tables that are kept, each once."""
        stored: dict[str, dict[int, nn.Parameter]] = {}
        for member in self.networks:
            for name, table in member.embedding.tables.items():
                stored.setdefault(name, {})[id(table)] = table
        return {name: list(tables.values()) for name, tables in stored.items()}

    def item_tables(self) -> dict[str, nn.Parameter]:
        """Every table with a row an item, trained or not, by its name in the state dict."""
        found: dict[int, str] = {}
        for n, member in enumerate(self.networks):
            held = {f"tables.{name}": table for name, table in member.embedding.tables.items()}
            if member.embedding.ids:
                held["id_table"] = member.embedding.id_table
            for name, table in held.items():
                found.setdefault(id(table), f"members.{n}.embedding.{name}")
        named = dict(self.named_parameters())
        return {name: named[name] for name in found.values()}

    def vectors(self, modality: str | None = None, rows: TableRows | None = None) -> Tensor:
        """Item vectors whose cosines are the mean of the members' cosines, weighted as they are.

        Args:
            modality: Of which table; None for the fused vectors.
            rows: Of which; None for all. Fused ones begin with the padding and end with the mask
                token.

        Returns:
            [I+2, d], or [R, d] of the rows, where there is one table, otherwise the tables' unit
            rows side by side, those of the fused vectors times the root of the member's weight.
        """
        if modality is None:
            tables = [member.embedding.table(rows=rows) for member in self.networks]
        else:
            tables = self.modality_tables(rows)[modality]
        if len(tables) == 1:
            return tables[0]
        unit = [F.normalize(table, dim=1) for table in tables]
        if modality is None and self.weights is not None:
            roots = (self.weights / self.weights.sum()).sqrt()
            unit = [rows * root for rows, root in zip(unit, roots, strict=True)]
        return torch.cat(unit, dim=1)

    def source_weights(self) -> dict[str, Tensor] | None:
        """Source to what it counts in each row [I+2], the members' mean weighted as they are.

        None where a member's fusion has no such weights, see `FusedItemEmbedding.source_weights`.
        """
        found: dict[str, Tensor] = {}
        for member, share in zip(self.networks, self.shares(), strict=True):
            own = member.embedding.source_weights()
            if own is None:
                return None
            for name, weights in own.items():
                found[name] = found.get(name, 0) + share * weights
        return found

    def size(self) -> int:
        """How many numbers its weights hold, of tables over processes those of all."""
        found = sum(p.numel() for p in self.parameters())
        if self.shards is not None:
            elsewhere = self.shards.table_rows - (self.shards.end - self.shards.first)
            found += sum(elsewhere * table.shape[1] for table in self.item_tables().values())
        return found

    def enable_gradient_checkpointing(self) -> None:
        """Train every member in less memory and more time, see `Recommender`."""
        for member in self.networks:
            member.gradient_checkpointing = True

    def modality_parameters(self) -> list[nn.Parameter]:
        """The modality tables, each once, for a parameter group with a schedule of its own."""
        found = [p for member in self.networks for p in member.modality_parameters()]
        return list({id(p): p for p in found}.values())

    def trained_tables(self) -> list[nn.Parameter]:
        """Every item table that trains, ids and modalities, each once."""
        found = [p for member in self.networks for p in member.embedding.trained_tables()]
        return list({id(p): p for p in found}.values())


def combine(
    logits: Sequence[Tensor],
    *,
    inference: Inference,
    weights: Tensor | None = None,
    known: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """N members' scores [..., I] to one, the weighted sum of what `inference` makes of each.

    `standardized`: a member's scores minus their mean, by their standard deviation, both over the
    items that it knows; of the others it says nothing, that is 0, and so it does of all where all
    its scores are alike. What a member's scores are multiplied by, or raised by, changes nothing.

    >>> import torch
    >>> from mmkd.student.ensemble import combine
    >>> scores = [torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[500.0, 0.0, 1000.0]])]
    >>> combine(scores, inference="standardized").argsort(descending=True).tolist()
    [[2, 0, 1]]

    Args:
        logits: N times [..., I].
        inference: As for `Ensemble`.
        weights: [N], scaled to a mean of 1, so that equal ones are none.
        known: By member [I] bool, see `Ensemble.known`; None = all items by all members.

    Returns:
        [..., I]; of `probabilities` the logarithm.
    """
    each = list(logits)
    if inference == "probabilities":
        each = [z.float().log_softmax(-1) for z in each]
    elif inference == "standardized":
        masks = known or [None] * len(each)
        each = [standardized(z, mask)[0] for z, mask in zip(each, masks, strict=True)]
    return added(each, inference=inference, weights=weights)


def added(each: Sequence[Tensor], *, inference: Inference, weights: Tensor | None) -> Tensor:
    """What `combine` makes of members' scores [..., I] that are logarithms, or standardised."""
    shares = None if weights is None else weights / weights.mean()
    if inference == "probabilities":
        stacked = torch.stack([*each])
        if shares is not None:
            stacked = stacked + shares.log().view(-1, *[1] * (stacked.ndim - 1))
        return stacked.logsumexp(0)
    if shares is not None:
        each = [z * share for z, share in zip(each, shares, strict=True)]
    total = each[0]
    for other in each[1:]:
        total = total + other
    return total


def standardized(logits: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scores [..., I] in standard deviations from their mean, and that deviation [..., 1].

    Args:
        logits: A member's.
        known: [I] bool; the others get 0 and take no part. None = all.
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    variance, mean = torch.var_mean(
        z if known is None else z[..., known], dim=-1, correction=0, keepdim=True
    )
    deviation = variance.sqrt()
    # rounding errors of scores that are all alike are no ranking
    alike = deviation <= 1e-6 * mean.abs()
    found = (z - mean) / torch.where(alike, 1.0, deviation)
    silent = alike if known is None else alike | ~known
    return found.masked_fill(silent, 0.0), deviation


def build_ensemble(
    build: Callable[..., Recommender],
    *,
    seed: int | None = None,
    members: int | Sequence[Mapping[str, Any]] = 1,
    modality_tables: ModalityTables = "shared",
    inference: Inference = "logits",
    weights: Weights = None,
    untrained_offset: Offset = None,
    untrained_price: float = 0.0,
    trained: Tensor | None = None,
) -> Ensemble:
    """Build N networks that differ from the start.

    Args:
        build: Gives one untrained network, its weights drawn from torch's generator. Of members
            that differ it is given what each is (`StudentSpec.build`).
        seed: Network n is drawn after `torch.manual_seed(seed + n)`; None leaves the generator be.
        members: N; or what each of them is, as keywords of `build` and, where it has one, a `seed`
            of its own.
        modality_tables: `shared` by the networks that have the modality, or each its `own`. Ids are
            always their own.
        inference: As for `Ensemble`.
        weights: As for `Ensemble`; `validation` starts with equal ones, to be chosen after
            training (`choose_weights`).
        untrained_offset: As for `Ensemble`; `validation` ranks untrained items last until one is
            chosen after training (`choose_offset`), so that epochs are compared by the others.
        untrained_price: Share of the best validation metric that may be given for untrained items,
            see `choose_offset`.
        trained: [I+1] bool, False where no event of the item trains; None where the state dict says
            so later.

    Raises:
        ValueError: `members` is below 1, or an option is wrong.
    """
    refuse(
        check_build_ensemble(
            members=members,
            modality_tables=modality_tables,
            inference=inference,
            weights=weights,
            untrained_price=untrained_price,
        )
    )
    wanted = [{} for _ in range(members)] if isinstance(members, int) else members
    networks: list[Recommender] = []
    for n, member in enumerate(wanted):
        if seed is not None:
            torch.manual_seed(member.get("seed", seed + n))
        networks.append(build(**{key: value for key, value in member.items() if key != "seed"}))
        if modality_tables == "shared":
            _share_tables(networks)
    chosen = [1.0] * len(networks) if weights == "validation" else weights
    offset = _LAST if untrained_offset == "validation" else untrained_offset
    ensemble = Ensemble(networks, inference=inference, weights=chosen, untrained_offset=offset)
    if ensemble.untrained is not None and trained is not None:
        ensemble.untrained.copy_(~trained[1:])
    return ensemble


def check_build_ensemble(**options: Any) -> list[str]:
    """What is wrong with any of the options of `build_ensemble`, a line each."""
    members, weights = options.get("members"), options.get("weights")
    count = members if isinstance(members, int) else len(members or ())
    problems = [
        *at_least(1, members=None if members is None else count),
        *one_of(get_args(ModalityTables), modality_tables=options.get("modality_tables")),
        *one_of(get_args(Inference), inference=options.get("inference")),
        *within(0, 1, "it is a share", untrained_price=options.get("untrained_price")),
    ]
    if weights is None or weights == "validation":
        return problems
    if isinstance(weights, str) or not all(0 <= w < float("inf") for w in weights):
        wanted = "validation, null or a list of numbers of 0 or more"
        return [*problems, f"weights: got {weights}, wanted {wanted}; correct it"]
    if not sum(weights):
        problems.append(f"weights: got {weights}, wanted one above 0; or no member counts")
    if members is not None and len(weights) != count:
        problems.append(
            f"weights: got {len(weights)}, wanted {count}, one a member; give that many, or null"
        )
    return problems


def _share_tables(networks: Sequence[Recommender]) -> None:
    """The last network takes over what others before it hold of its modalities."""
    own = networks[-1].embedding.tables
    for name in own:
        for other in networks[:-1]:
            theirs = other.embedding.tables
            # a frozen teacher behind an adapter is another table than one that trains
            if name in theirs and theirs[name].requires_grad == own[name].requires_grad:
                own[name] = theirs[name]
                break


def _repeated_tables(members: Sequence[Recommender]) -> Iterator[tuple[str, str]]:
    """State dict keys of tables that an earlier member holds too, and the keys there."""
    keys: dict[int, str] = {}
    for n, member in enumerate(members):
        for name, table in member.embedding.tables.items():
            key = f"members.{n}.embedding.tables.{name}"
            first = keys.setdefault(id(table), key)
            if first != key:
                yield key, first


def _drop_repeats(
    module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Mapping[str, Any]
) -> None:
    """Keep shared tables once: a file holds what there is, not what refers to it."""
    for repeat, _ in cast(Ensemble, module)._shared:
        state.pop(prefix + repeat, None)


def _repeat_shared(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The other way round: every member that shares a table finds it under its own name."""
    for repeat, first in cast(Ensemble, module)._shared:
        if prefix + first in state:
            state[prefix + repeat] = state[prefix + first]
