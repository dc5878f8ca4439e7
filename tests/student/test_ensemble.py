"""An ensemble: networks that differ from the start, score as one, and share what they should."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd import Ensemble, FusedItemEmbedding, Recommender
from mmkd.student import build_backbone, build_ensemble
from mmkd.student.fusion import Fusion

ITEMS, WIDTH, LENGTH = 9, 8, 5


def network(kind: str = "sasrec") -> Recommender:
    teacher = torch.linspace(-1, 1, (ITEMS + 1) * WIDTH).view(ITEMS + 1, WIDTH)
    embedding = FusedItemEmbedding(item_count=ITEMS, width=WIDTH, modalities={"text": teacher})
    backbone = build_backbone(kind, width=WIDTH, max_length=LENGTH, layers=1)
    return Recommender(embedding=embedding, backbone=backbone)


def ensemble(members: int = 3, **options: str) -> Ensemble:
    return build_ensemble(network, seed=5, members=members, **options).eval()  # type: ignore[arg-type]


def sequences() -> Tensor:
    return torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8]])


def scores(found: Ensemble) -> Tensor:
    return found.score([out.hidden[:, -1] for out in found(sequences())])


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_one_member_is_the_network_itself() -> None:
    torch.manual_seed(5)
    alone = network().eval()
    one = ensemble(members=1)
    for name, value in alone.state_dict().items():
        assert torch.equal(one.state_dict()[f"members.0.{name}"], value)
    states = alone(sequences()).hidden
    assert torch.equal(one(sequences())[0].hidden, states)
    assert torch.equal(scores(one), alone.score(states[:, -1]))
    assert torch.equal(one.vectors(), alone.embedding.table())
    assert torch.equal(one.vectors("text"), alone.embedding.tables["text"])


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec", "bert4rec"])
def test_members_differ_in_every_drawn_weight_and_in_what_they_predict(kind: str) -> None:
    found = build_ensemble(lambda: network(kind), seed=0, members=3).eval()
    outputs = found(sequences())
    one = {n: p for n, p in found.networks[0].named_parameters() if p.ndim > 1}
    for other, out in zip(found.networks[1:], outputs[1:], strict=True):
        for name, weight in other.named_parameters():
            if name in one and not name.startswith("embedding.tables."):
                assert not torch.allclose(weight, one[name]), name
        assert not torch.allclose(out.hidden[:, -1], outputs[0].hidden[:, -1], atol=1e-2)
    matrices = [out.item_matrix for out in outputs]
    logits = [out.hidden[:, -1] @ m.mT for out, m in zip(outputs, matrices, strict=True)]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


def test_member_n_is_the_network_of_seed_plus_n() -> None:
    torch.manual_seed(7)
    third = network().state_dict()
    for name, value in ensemble().networks[2].state_dict().items():
        assert torch.equal(value, third[name])


def test_shared_modality_tables_are_one_parameter_kept_once() -> None:
    shared, own = ensemble(), ensemble(modality_tables="own")
    assert len(shared.modality_parameters()) == len(shared.modality_tables()["text"]) == 1
    assert len(own.modality_parameters()) == len(own.modality_tables()["text"]) == 3
    tables = {name for name in shared.state_dict() if ".tables." in name}
    assert tables == {"members.0.embedding.tables.text"}
    assert len([name for name in own.state_dict() if ".tables." in name]) == 3
    extra = 2 * (ITEMS + 2) * WIDTH
    assert sum(p.numel() for p in own.parameters()) == extra + sum(
        p.numel() for p in shared.parameters()
    )


@pytest.mark.parametrize("modality_tables", ["shared", "own"])
def test_the_state_dict_restores_every_member(modality_tables: str) -> None:
    saved, loaded = (ensemble(modality_tables=modality_tables) for _ in range(2))
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(1.0)
    outer = torch.nn.Sequential(loaded)  # as the training step holds it
    outer.load_state_dict({f"0.{name}": value for name, value in saved.state_dict().items()})
    for ours, theirs in zip(loaded.networks, saved.networks, strict=True):
        for name, parameter in ours.named_parameters():
            assert torch.equal(parameter, theirs.get_parameter(name)), name
    with pytest.raises(RuntimeError, match=r"Missing key.*members\.0\.embedding\.tables\.text"):
        loaded.load_state_dict({k: v for k, v in saved.state_dict().items() if "tables" not in k})


@pytest.mark.parametrize("inference", ["logits", "probabilities"])
def test_scores_are_the_members_added_up(inference: str) -> None:
    found = ensemble(inference=inference)
    each = [
        out.hidden[:, -1].double() @ member.item_matrix().double().mT
        for out, member in zip(found(sequences()), found.networks, strict=True)
    ]
    wanted = sum(z if inference == "logits" else z.exp() / z.exp().sum(-1, True) for z in each)
    got = scores(found)
    assert torch.isneginf(got[:, 0]).all()
    got = got[:, 1:].double()
    torch.testing.assert_close(got if inference == "logits" else got.exp(), wanted)


def test_probabilities_do_not_underflow_to_ties() -> None:
    found = ensemble(inference="probabilities")
    hidden = [torch.full((1, WIDTH), 1e3)] * 3
    got = found.score(hidden)[0, 1:]
    assert got.isfinite().all() and len(set(got.tolist())) == ITEMS


def test_cosines_of_the_vectors_are_the_mean_of_the_members() -> None:
    found = ensemble(modality_tables="own")
    with torch.no_grad():
        for table in found.modality_parameters():
            table.add_(torch.randn(table.shape, generator=torch.Generator().manual_seed(2)))
    for modality in (None, "text"):
        tables = (
            [member.embedding.table() for member in found.networks]
            if modality is None
            else found.modality_tables()[modality]
        )
        cosines = [F.cosine_similarity(t[1:2], t[2:-1]) for t in tables]
        vectors = found.vectors(modality)
        got = F.cosine_similarity(vectors[1:2], vectors[2:-1])
        torch.testing.assert_close(got, torch.stack(cosines).mean(0))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got none, wanted at least 1"):
        Ensemble([])
    with pytest.raises(ValueError, match=r"causal and bidirectional"):
        Ensemble([network("sasrec"), network("bert4rec")])
    with pytest.raises(ValueError, match=r"members: got 0, wanted at least 1"):
        build_ensemble(network, members=0)
    with pytest.raises(ValueError, match=r"inference: got 'sum', wanted one of logits"):
        build_ensemble(network, inference="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"modality_tables: got 'both', wanted one of shared"):
        build_ensemble(network, modality_tables="both")  # type: ignore[arg-type]


def fused(*, ids: bool = True, modalities: bool = True, missing: int = 0) -> Recommender:
    teacher = torch.linspace(-1, 1, (ITEMS + 1) * WIDTH).view(ITEMS + 1, WIDTH).sin()
    embedding = FusedItemEmbedding(
        item_count=ITEMS,
        width=WIDTH,
        modalities={"text": teacher} if modalities else None,
        present={"text": torch.arange(ITEMS + 1) > missing} if modalities else None,
        trained=torch.arange(ITEMS + 1) < ITEMS,
        ids=ids,
    )
    backbone = build_backbone("sasrec", width=WIDTH, max_length=LENGTH, layers=1)
    return Recommender(embedding=embedding, backbone=backbone).eval()


def naive_standardized(found: Ensemble, weights: list[float]) -> Tensor:
    """Item by item, user by user; a member is silent of items it knows nothing of."""
    rows = []
    for user in sequences():
        total = [0.0] * ITEMS
        for weight, member in zip(weights, found.networks, strict=True):
            state = member(user[None]).hidden[0, -1].double()
            matrix = member.item_matrix().double()
            known = [bool(k) for k in member.known()]
            values = [float(state @ row) for row in matrix]
            heard = [v for v, k in zip(values, known, strict=True) if k]
            mean = sum(heard) / len(heard)
            deviation = (sum((v - mean) ** 2 for v in heard) / len(heard)) ** 0.5
            for i, (v, k) in enumerate(zip(values, known, strict=True)):
                total[i] += weight * (v - mean) / deviation if k else 0.0
        rows.append(total)
    return torch.tensor(rows, dtype=torch.float64)


def test_standardized_scores_are_the_naive_sum() -> None:
    members = [fused(), fused(ids=False, missing=2), fused(modalities=False)]
    silent = [int((~member.known()).sum()) for member in members]
    assert silent == [0, 2, 1]  # no title, never trained
    plain = Ensemble(members, inference="standardized")
    torch.testing.assert_close(
        scores(plain)[:, 1:].double(), naive_standardized(plain, [1, 1, 1]), rtol=1e-4, atol=1e-5
    )
    weighed = Ensemble(members, inference="standardized", weights=[1, 5, 0])
    torch.testing.assert_close(
        scores(weighed)[:, 1:].double(),
        naive_standardized(weighed, [0.5, 2.5, 0]),
        rtol=1e-4,
        atol=1e-5,
    )
    assert weighed.shares() == pytest.approx([1 / 6, 5 / 6, 0])
    assert weighed.state_dict()["weights"].tolist() == [1, 5, 0]


@pytest.mark.parametrize(("factor", "changes"), [(1000.0, False), (0.001, False), (-1.0, True)])
def test_a_standardized_sum_does_not_see_a_members_scale(factor: float, changes: bool) -> None:
    found = ensemble(inference="standardized", modality_tables="own")
    hidden = [out.hidden[:, -1] for out in found(sequences())]
    matrices = [member.item_matrix() for member in found.networks]
    before = found.score(hidden, matrices)
    after = found.score([hidden[0] * factor, *hidden[1:]], matrices)
    assert torch.allclose(before[:, 1:], after[:, 1:], atol=1e-4) is not changes
    raised = [torch.cat([h, torch.ones(2, 1)], 1) for h in hidden]
    constants = [torch.full((ITEMS, 1), 7.0 * n) for n in range(3)]
    wider = [torch.cat([m, c], 1) for m, c in zip(matrices, constants, strict=True)]
    torch.testing.assert_close(found.score(raised, wider), before, rtol=1e-3, atol=1e-4)


def test_a_member_whose_scores_are_all_alike_says_nothing() -> None:
    found = ensemble(inference="standardized")
    hidden = [out.hidden[:, -1] for out in found(sequences())]
    matrices = [member.item_matrix() for member in found.networks]
    flat = torch.full_like(matrices[0], 0.1)
    with_flat = found.score(hidden, [flat, *matrices[1:]])
    without = Ensemble(found.networks[1:], inference="standardized").score(hidden[1:], matrices[1:])
    torch.testing.assert_close(with_flat, without)


@pytest.mark.parametrize("inference", ["logits", "probabilities"])
def test_weights_count_in_every_kind_of_sum(inference: str) -> None:
    found = Ensemble(ensemble().networks, inference=inference, weights=[3, 0, 1])  # type: ignore[arg-type]
    each = [
        out.hidden[:, -1].double() @ member.item_matrix().double().mT
        for out, member in zip(found(sequences()), found.networks, strict=True)
    ]
    each = [z if inference == "logits" else z.softmax(-1) for z in each]
    wanted = 2.25 * each[0] + 0.75 * each[2]
    got = scores(found)[:, 1:].double()
    torch.testing.assert_close(got if inference == "logits" else got.exp(), wanted)


def test_cosines_are_weighted_as_the_members_are() -> None:
    found = Ensemble(ensemble(modality_tables="own").networks, weights=[3, 0, 1])
    tables = [member.embedding.table() for member in found.networks]
    cosines = [F.cosine_similarity(t[1:2], t[2:-1]) for t in tables]
    vectors = found.vectors()
    got = F.cosine_similarity(vectors[1:2], vectors[2:-1])
    torch.testing.assert_close(got, 0.75 * cosines[0] + 0.25 * cosines[2])


def test_unlike_members_share_what_they_have_in_common() -> None:
    def build(**member: object) -> Recommender:
        return fused(**member)  # type: ignore[arg-type]

    what: list[dict[str, object]] = [{"modalities": False}, {}, {"ids": False, "seed": 5}]
    found = build_ensemble(build, seed=5, members=what)
    assert [len(member.embedding.tables) for member in found.networks] == [0, 1, 1]
    assert len(found.modality_tables()["text"]) == len(found.stored_tables()["text"]) == 1
    own = build_ensemble(build, seed=5, members=what, modality_tables="own")
    assert len(own.modality_parameters()) == 2
    keys = {name for name in found.state_dict() if ".tables." in name}
    assert keys == {"members.1.embedding.tables.text"}
    loaded = build_ensemble(build, members=what)
    loaded.load_state_dict(found.state_dict())
    torch.testing.assert_close(scores(loaded.eval()), scores(found.eval()))
    # each is drawn by itself, after its place's seed or its own; only the table is the second's
    for member, seed, given in zip(found.networks, (5, 6, 5), what, strict=True):
        torch.manual_seed(seed)
        alone = build(**{key: value for key, value in given.items() if key != "seed"})
        wanted = alone.state_dict() | {
            f"embedding.tables.{name}": found.networks[1].embedding.tables[name].detach()
            for name in alone.embedding.tables
        }
        assert_equal(member.state_dict(), wanted)
    shared = found.state_dict()
    assert_equal(
        found.networks[2].embedding.tables.state_dict(),
        {"text": shared["members.1.embedding.tables.text"]},
    )
    # of members with tables of their own everything is as drawn
    torch.manual_seed(5)
    assert_equal(own.networks[2].state_dict(), build(ids=False).state_dict())


def test_source_weights_are_the_members_mean_weighted_as_they_are() -> None:
    def member(**options: bool | Fusion) -> Recommender:
        own = FusedItemEmbedding(
            item_count=ITEMS,
            width=WIDTH,
            modalities={"text": torch.randn(ITEMS + 1, WIDTH)},
            **options,  # type: ignore[arg-type]
        )
        return Recommender(embedding=own, backbone=build_backbone("gru4rec", width=WIDTH))

    fused, content = member(), member(ids=False)
    found = Ensemble([fused, content], weights=[3, 1]).source_weights()
    own = fused.embedding.source_weights()
    assert found is not None and own is not None
    torch.testing.assert_close(found["ids"], 0.75 * own["ids"])
    torch.testing.assert_close(found["text"][1:], 0.75 * own["text"][1:] + 0.25)
    assert Ensemble([fused, member(fusion="concat")]).source_weights() is None
