"""What every backbone promises, and each one against an independent reference."""

from typing import cast

import pytest
import torch
from references.student import rgat_states, transformer_states
from torch import Tensor, nn
from torch.testing import assert_close

from mmkd import RGAT, GRU4Rec
from mmkd.student import BACKBONES, backbone_class, build_backbone
from mmkd.student.backbones.rgat import session_graphs
from mmkd.student.backbones.transformer import TransformerBlock, attention_mask
from mmkd.trust import trust_code

WIDTH, MAX_LENGTH, LENGTH = 8, 12, 7
KINDS = sorted(BACKBONES)


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    net = cast(nn.Module, build_backbone(kind, width=WIDTH, max_length=MAX_LENGTH, layers=2))
    for parameter in net.parameters():  # nothing at a value that would hide a mistake
        nn.init.normal_(parameter, std=0.5)
    return net.double().eval()


def batch(lengths: tuple[int, ...] = (7, 4, 1)) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    x = torch.randn(len(lengths), LENGTH, WIDTH, generator=g, dtype=torch.float64)
    padding = torch.arange(LENGTH) < LENGTH - torch.tensor(lengths)[:, None]
    return torch.where(padding[:, :, None], 0.0, x), padding


@pytest.mark.parametrize("kind", KINDS)
def test_left_padding_changes_nothing(kind: str) -> None:
    net = network(kind)
    x, padding = batch()
    states = net(x, padding)
    more = nn.functional.pad(x, (0, 0, 4, 0))
    wide = net(more, nn.functional.pad(padding, (4, 0), value=True))
    assert_close(wide[:, 4:][~padding], states[~padding])
    for row, length in enumerate((7, 4, 1)):  # and each sequence alone, without any padding
        alone = net(x[row : row + 1, -length:], padding[row : row + 1, -length:])
        assert_close(alone[0], states[row, -length:])


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_at_padding_is_never_read(kind: str) -> None:
    net = network(kind)
    x, padding = batch()
    noisy = torch.where(padding[:, :, None], 9 * torch.randn_like(x), x)
    assert_close(net(noisy, padding)[~padding], net(x, padding)[~padding])


@pytest.mark.parametrize("kind", KINDS)
def test_only_bidirectional_ones_look_ahead(kind: str) -> None:
    net = network(kind)
    x, padding = batch()
    changed = x.clone()
    changed[:, 5] *= -1  # not a shift, to which LayerNorm would be blind
    before, after = net(x, padding), net(changed, padding)
    early = ~padding[:, :5]
    assert early.any()
    difference = (after - before)[:, :5][early].abs().amax(-1)
    if net.causal:
        assert torch.all(difference == 0)
    else:
        assert torch.all(difference > 1e-6)
    assert torch.all((after - before)[:2, 6].abs().amax(-1) > 1e-6)  # and all look back


@pytest.mark.parametrize("kind", KINDS)
def test_batch_order_changes_nothing(kind: str) -> None:
    net = network(kind)
    x, padding = batch()
    order = torch.tensor([2, 0, 1])
    assert_close(net(x[order], padding[order]), net(x, padding)[order])


@pytest.mark.parametrize("kind", KINDS)
def test_wholly_padded_rows_are_finite_forward_and_backward(kind: str) -> None:
    net = network(kind).train()
    x, padding = batch((0, 3, 0))
    x.requires_grad_()
    states = net(x, padding)
    assert states.isfinite().all()
    states.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_in_training_only(kind: str) -> None:
    net = network(kind)
    x, padding = batch()
    assert torch.equal(net(x, padding), net(x, padding))
    net.train()
    assert not torch.equal(net(x, padding), net(x, padding))


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_transformer_matches_a_naive_loop(kind: str, heads: int) -> None:
    net = cast(
        nn.Module, build_backbone(kind, width=WIDTH, max_length=MAX_LENGTH, layers=2, heads=heads)
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    net = net.double().eval()
    x, padding = batch()
    expected = transformer_states(
        net.state_dict(),
        x,
        padding,
        heads=heads,
        layers=2,
        causal=kind == "sasrec",
        max_length=MAX_LENGTH,
    )
    assert_close(net(x, padding)[~padding], expected[~padding])


def test_attention_matches_torchs_multihead_attention() -> None:
    torch.manual_seed(2)
    block = TransformerBlock(width=8, heads=2, dropout=0.0, feedforward=8, activation="relu")
    nn.init.zeros_(block.feedforward_out.weight)
    nn.init.zeros_(block.feedforward_out.bias)
    reference = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(block.qkv.weight)
        reference.in_proj_bias.copy_(block.qkv.bias)
        reference.out_proj.weight.copy_(block.attention_out.weight)
        reference.out_proj.bias.copy_(block.attention_out.bias)
    x, padding = batch((7, 4))
    x = x.float()
    mask = attention_mask(padding, causal=True, dtype=x.dtype)
    normed = block.attention_norm(x)
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    expected, _ = reference(
        normed, normed, normed, key_padding_mask=padding, attn_mask=later, need_weights=False
    )
    assert_close(block(x, mask)[~padding], (x + expected)[~padding])


def test_attention_mask_by_hand() -> None:
    padding = torch.tensor([[True, False, False]])
    inf = float("inf")
    causal = attention_mask(padding, causal=True, dtype=torch.float32)
    assert causal[0, 0].tolist() == [[0, -inf, -inf], [-inf, 0, -inf], [-inf, 0, 0]]
    both = attention_mask(padding, causal=False, dtype=torch.float32)
    assert both[0, 0].tolist() == [[0, 0, 0], [-inf, 0, 0], [-inf, 0, 0]]


@pytest.mark.parametrize("layers", [1, 2])
def test_gru_matches_a_loop_over_gru_cells(layers: int) -> None:
    torch.manual_seed(3)
    net = GRU4Rec(width=WIDTH, layers=layers, hidden=5).double().eval()
    cells = []
    for layer in range(layers):
        cell = nn.GRUCell(WIDTH if layer == 0 else 5, 5, bias=False).double()
        with torch.no_grad():
            cell.weight_ih.copy_(getattr(net.gru, f"weight_ih_l{layer}"))
            cell.weight_hh.copy_(getattr(net.gru, f"weight_hh_l{layer}"))
        cells.append(cell)
    x, padding = batch()
    states = net(x, padding)
    for row, length in enumerate((7, 4, 1)):
        hidden = [torch.zeros(5, dtype=torch.float64) for _ in cells]
        for position in range(LENGTH - length, LENGTH):
            value = net.input_norm(x[row, position])
            for layer, cell in enumerate(cells):
                value = hidden[layer] = cell(value, hidden[layer])
            assert_close(states[row, position], net.output_norm(net.output(value)))


def rgat(layers: int, last_n: int) -> RGAT:
    net = RGAT(width=WIDTH, layers=layers, last_n=last_n)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.6)
    return net.double().eval()


def revisits(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, items and padding of sequences over four items, equal items with equal vectors."""
    g = torch.Generator().manual_seed(seed)
    _, padding = batch()
    items = torch.randint(1, 5, padding.shape, generator=g).masked_fill(padding, 0)
    return torch.randn(5, WIDTH, generator=g, dtype=torch.float64)[items], items, padding


@pytest.mark.parametrize(("layers", "last_n"), [(1, 1), (1, 2), (1, 20), (3, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_rgat_matches_a_loop_over_nodes_and_edges(layers: int, last_n: int, seed: int) -> None:
    torch.manual_seed(seed)
    net = rgat(layers, last_n)
    x, items, padding = revisits(seed)
    expected = rgat_states(net.state_dict(), x, items, padding, layers=layers, last_n=last_n)
    assert_close(net(x, padding, items)[~padding], expected[~padding])
    alone = torch.arange(LENGTH).expand_as(items)  # what no ids mean: every position a node
    expected = rgat_states(net.state_dict(), x, alone, padding, layers=layers, last_n=last_n)
    assert_close(net(x, padding)[~padding], expected[~padding])


def test_rgat_sees_no_later_item_nor_that_one_comes_back() -> None:
    net = rgat(layers=2, last_n=3)
    x, items, padding = revisits(0)
    before = net(x, padding, items)[:, :5]
    for item in range(1, 5):  # whichever it is: also one that stands there already
        changed, vectors = items.clone(), x.clone()
        changed[:, 5:] = item
        vectors[:, 5:] *= -1
        after = net(vectors, padding, changed)[:, :5]
        assert torch.equal(after[~padding[:, :5]], before[~padding[:, :5]])


def test_session_graphs_by_hand() -> None:
    items = torch.tensor([[0, 3, 5, 3, 4]])
    relation, node = session_graphs(items, items == 0, last_n=2)
    # the last item: itself 1; out 2, in 3, both 4; a node stands where it was visited last
    assert relation[0, 0, 1:].tolist() == [
        [0, 1, 0, 0, 0],
        [0, 3, 1, 0, 0],
        [0, 0, 4, 1, 0],
        [0, 0, 0, 3, 1],
    ]
    assert relation[1, 0, 2:].tolist() == [[0, 1, 2, 0, 0], [0, 0, 1, 4, 0], [0, 0, 4, 1, 2]]
    assert node[0, 0].tolist() == [0, 1, 2, 3, 4] and node[1, 0, 2:].tolist() == [1, 2, 3]


def test_unknown_backbone_names_the_closest() -> None:
    with pytest.raises(ValueError, match=r"'sasrek': unknown; did you mean sasrec\?"):
        backbone_class("sasrek")
    trust_code(["no_such_package", "torch.nn"])
    with pytest.raises(ValueError, match="'no_such_package:Net': cannot be imported"):
        backbone_class("no_such_package:Net")
    with pytest.raises(ValueError, match=r"no attribute 'OfANotebook'.*define it here as it was"):
        backbone_class("__main__:OfANotebook")
    with pytest.raises(ValueError, match="unknown"):
        backbone_class("folder/net.py:Net")
    with pytest.raises(ValueError, match=r"wanted an nn\.Module class with a `causal`"):
        backbone_class("torch.nn:Linear")


def test_a_users_backbone_is_found_by_its_path() -> None:
    net = build_backbone("mmkd.student.backbones.gru4rec:GRU4Rec", width=4, max_length=3, layers=1)
    assert isinstance(net, GRU4Rec)


def test_errors_name_what_was_wanted() -> None:
    with pytest.raises(ValueError, match="width 8 does not split into 3 heads"):
        build_backbone("sasrec", width=8, max_length=4, heads=3)
    net = build_backbone("bert4rec", width=8, max_length=4)
    with pytest.raises(ValueError, match="5 positions, wanted at most max_length 4"):
        net(torch.zeros(1, 5, 8), torch.zeros(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="activation: got 'tanh', wanted one of gelu, relu"):
        build_backbone("sasrec", width=8, max_length=4, activation="tanh")
