"""An ensemble: networks that differ from the start, score as one, and share what they should."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd.student import Ensemble, FusedItemEmbedding, Recommender, build_backbone, build_ensemble

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
