"""The whole objective is the weighted sum of its parts, for one network or for several."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmkd import (
    GBCE,
    CompressionLoss,
    ContrastiveLoss,
    CorrelationLoss,
    MutualLoss,
    NextItem,
    Objective,
    Softmax,
)
from mmkd.data.tasks import Batch
from mmkd.distiller import CorrelationTargets
from mmkd.student import StudentOutput

ITEMS, WIDTH, CODES = 8, 6, 3
NAMES = ("text", "image")


def batch() -> Batch:
    events = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    return NextItem().batch(events, item_count=ITEMS)


def output(seed: int = 0) -> StudentOutput:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    return StudentOutput(
        hidden=leaf(2, 3, WIDTH),
        modality={name: leaf(ITEMS + 2, WIDTH) for name in NAMES},
        item_matrix=leaf(ITEMS, WIDTH),
    )


def targets() -> dict[str, CorrelationTargets]:
    return {
        name: CorrelationTargets(
            sequence=torch.tensor([0, 1, 1]),
            first=torch.tensor([1, 0, 1]),
            second=torch.tensor([2, 2, 2]),
            holistic=torch.tensor([0.9, -0.3, 0.1]) * scale,
            dissected=torch.tensor([[0.0], [2.0], [1.0]]),
            assign=lambda r: r[:, 0].long(),
        )
        for name, scale in zip(NAMES, (1.0, 0.5), strict=True)
    }


def objective(holistic: float = 0.7, dissected: float = 0.3) -> Objective:
    torch.manual_seed(4)
    return Objective(
        Softmax(),
        correlation={
            name: CorrelationLoss(
                width=WIDTH, codes=CODES, holistic_weight=holistic, dissected_weight=dissected
            )
            for name in NAMES
        },
    )


def test_total_is_the_weighted_sum_of_the_parts() -> None:
    found, out = objective()([output()], batch(), targets()), output()
    asked = batch().targets[0]
    states, target = out.hidden[asked > 0], asked[asked > 0]
    alone = Softmax()(states, out.item_matrix, target) / len(target)
    wanted = {"recommendation": alone}
    losses = objective().correlation
    for name in NAMES:
        parts = losses[name](out.modality[name], batch().items, targets()[name])
        wanted |= {f"{part}.{name}": value for part, value in parts.items()}
    assert found.parts.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found.parts[name], value.detach())
    weights = {"recommendation": 1.0, "holistic": 0.7, "dissected": 0.3}
    total = sum(weights[name.split(".")[0]] * float(v.detach()) for name, v in wanted.items())
    assert float(found.total.detach()) == pytest.approx(total, rel=1e-5)
    assert not any(part.requires_grad for part in found.parts.values())


def test_equal_networks_give_the_loss_of_one() -> None:
    out = output()
    one, three = (objective()([out] * n, batch(), targets()) for n in (1, 3))
    torch.testing.assert_close(one.total, three.total)
    torch.testing.assert_close(one.parts, three.parts)


def test_several_networks_give_the_mean_of_their_losses() -> None:
    outs = [output(seed) for seed in (1, 2)]
    both = objective()(outs, batch(), targets())
    alone = [objective()([out], batch(), targets()).total for out in outs]
    torch.testing.assert_close(both.total, torch.stack(alone).mean())


def test_without_correlation_only_recommendation_counts() -> None:
    found = Objective(Softmax())([output()], batch(), {})
    assert list(found.parts) == ["recommendation"]
    torch.testing.assert_close(found.total.detach(), found.parts["recommendation"])


def test_the_gradient_reaches_states_matrix_tables_and_heads() -> None:
    whole, out = objective(), output()
    whole([out], batch(), targets()).total.backward()
    heads = [parameter for _, parameter in whole.named_parameters()]
    assert heads
    for tensor in (out.hidden, out.item_matrix, *out.modality.values()):
        assert tensor.grad is not None and tensor.grad.any()
    # a ReLU unit may be dead on three pairs; every tensor as a whole must learn
    for parameter in heads:
        assert parameter.grad is not None and parameter.grad.any()
    table = out.modality["text"].grad
    assert table is not None
    # only items that stand in a pair: row 1 (columns 1, 2) and row 2 (columns 0 to 2)
    assert table.any(-1).nonzero().flatten().tolist() == [1, 2, 4, 5, 6]


def test_a_weight_of_zero_takes_its_term_out() -> None:
    out = output()
    nothing = objective(holistic=0.0, dissected=0.0)
    found = nothing([out], batch(), targets())
    found.total.backward()
    assert list(found.parts) == ["recommendation"] and not list(nothing.parameters())
    assert all(table.grad is None for table in out.modality.values())
    half = objective(holistic=0.0)
    assert {name.split(".")[2] for name, _ in half.named_parameters()} == {"dissected"}
    wanted = {name: value for name, value in objective()([out], batch(), targets()).parts.items()}
    assert set(half([output()], batch(), targets()).parts) == {
        name for name in wanted if "holistic" not in name
    }
    gone = Objective(
        Softmax(),
        contrastive=ContrastiveLoss(intra_weight=0, cross_weight=0),
        mutual=MutualLoss(weight=0),
        compression=CompressionLoss(weight=0, states_weight=0),
    )
    assert gone.contrastive is None and gone.mutual is None and gone.compression is None
    assert not gone.clean


def test_what_compares_whole_predictions_wants_a_softmax() -> None:
    gbce = GBCE(train_counts=torch.ones(ITEMS + 1))
    with pytest.raises(ValueError, match=r"mutual: got a recommendation loss of GBCE, wanted Soft"):
        Objective(gbce, mutual=MutualLoss())
    with pytest.raises(ValueError, match=r"compression: got a recommendation loss of GBCE"):
        Objective(gbce, compression=CompressionLoss())


def test_heads_are_the_objectives_own_parameters() -> None:
    names = {name.split(".")[1] for name, _ in objective().named_parameters()}
    assert names == set(NAMES)
    assert isinstance(objective().correlation, nn.ModuleDict)


def test_networks_add_the_correlations_of_their_own_tables_by_their_shares() -> None:
    """One with the whole share, one with a quarter, one without the modality, one with none."""
    outputs = [output(seed) for seed in range(4)]
    outputs[2] = replace(outputs[2], modality={})
    loss = objective()
    loss.correlation_shares = [1.0, 0.25, 1.0, 0.0]
    found = loss(outputs, batch(), targets())
    alone = [objective()([outputs[n]], batch(), targets()).parts for n in (0, 1)]
    for name in alone[0]:
        if name != "recommendation":
            wanted = (alone[0][name] + 0.25 * alone[1][name]) / 4
            torch.testing.assert_close(found.parts[name], wanted)


def test_a_shared_table_counts_once_with_the_share_of_its_networks() -> None:
    first, other, without = (output(seed) for seed in range(3))
    outputs = [first, replace(other, modality=first.modality), replace(without, modality={})]
    found = objective()(outputs, batch(), targets())
    alone = objective()([first], batch(), targets())
    for name, value in alone.parts.items():
        if name != "recommendation":
            torch.testing.assert_close(found.parts[name], value * 2 / 3)
