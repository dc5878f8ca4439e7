"""Naive float64 re-derivations of the student's formulas, one position or item at a time."""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    centred = x - x.mean()
    out = centred / torch.sqrt((centred**2).mean() + 1e-5)
    if weight is not None and bias is not None:
        out = out * weight + bias
    return out


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def transformer_states(
    weights: Mapping[str, Tensor],
    x: Tensor,
    padding: Tensor,
    *,
    heads: int,
    layers: int,
    causal: bool,
    max_length: int,
) -> Tensor:
    """States [B, L, d] at the real positions, zero elsewhere; reads real positions only."""
    w = {name: value.double() for name, value in weights.items()}
    out = torch.zeros_like(x, dtype=torch.float64)
    for b in range(len(x)):
        real = [i for i in range(x.shape[1]) if not padding[b, i]]
        shift = max_length - x.shape[1]
        state = {
            i: layer_norm(
                x[b, i].double() + w["positions"][i + shift],
                w["input_norm.weight"],
                w["input_norm.bias"],
            )
            for i in real
        }
        for layer in range(layers):
            p = f"blocks.{layer}."
            state = _block(w, p, state, heads=heads, causal=causal)
        for i in real:
            out[b, i] = layer_norm(state[i], w["output_norm.weight"], w["output_norm.bias"])
    return out


def rgat_states(
    weights: Mapping[str, Tensor],
    x: Tensor,
    items: Tensor,
    padding: Tensor,
    *,
    layers: int,
    last_n: int,
) -> Tensor:
    """States [B, L, d] at the real positions, zero elsewhere: a graph of items for every prefix."""
    w = {name: value.double() for name, value in weights.items()}
    out = torch.zeros_like(x, dtype=torch.float64)
    for b in range(len(x)):
        real = [i for i in range(x.shape[1]) if not padding[b, i]]
        names = {i: int(items[b, i]) for i in real}
        state = {
            i: layer_norm(x[b, i].double(), w["input_norm.weight"], w["input_norm.bias"])
            for i in real
        }
        sessions = {i: real[: n + 1] for n, i in enumerate(real)}
        for layer in range(layers):
            p, asked = f"hops.{layer}.", last_n if layer == layers - 1 else 1
            reached = {}
            for i, session in sessions.items():
                h = {names[j]: state[j] for j in session}  # nodes, as they stood at last
                edges = {(names[j], names[k]) for j, k in itertools.pairwise(session)}
                reached[i] = sum(
                    (_node(w, p, names[j], h, edges) for j in session[-asked:]), torch.zeros(())
                )
            state = reached
        for i in real:
            session_state = w["output.weight"] @ state[i] + w["output.bias"]
            out[b, i] = layer_norm(session_state, w["output_norm.weight"], w["output_norm.bias"])
    return out


def _node(
    w: Mapping[str, Tensor], p: str, u: int, h: dict[int, Tensor], edges: set[tuple[int, int]]
) -> Tensor:
    """What one hop makes of node `u`, from the nodes' states and the directed edges."""
    z = {v: w[f"{p}project.weight"] @ state for v, state in h.items()}
    powers = {}
    for v in h:
        out, into = (u, v) in edges, (v, u) in edges
        if u == v or out or into:
            relation = 0 if u == v else 3 if out and into else 1 if out else 2
            score = float((z[u] * z[v]) @ w[f"{p}relations"][relation])
            powers[v] = math.exp(score if score > 0 else 0.1 * score)
    told = sum((power * z[v] for v, power in powers.items()), torch.zeros(()))
    return h[u] + told / sum(powers.values())


def _block(
    w: Mapping[str, Tensor], p: str, state: dict[int, Tensor], *, heads: int, causal: bool
) -> dict[int, Tensor]:
    def linear(name: str, v: Tensor) -> Tensor:
        return w[f"{p}{name}.weight"] @ v + w[f"{p}{name}.bias"]

    def norm(name: str, v: Tensor) -> Tensor:
        return layer_norm(v, w[f"{p}{name}.weight"], w[f"{p}{name}.bias"])

    qkv = {i: linear("qkv", norm("attention_norm", v)).chunk(3) for i, v in state.items()}
    result = {}
    for i, v in state.items():
        seen = [j for j in state if not causal or j <= i]
        pieces = []
        for head in range(heads):
            q = qkv[i][0].chunk(heads)[head]
            keys = [qkv[j][1].chunk(heads)[head] for j in seen]
            values = [qkv[j][2].chunk(heads)[head] for j in seen]
            powers = [math.exp(float(q @ k) / math.sqrt(len(q))) for k in keys]
            mixed = sum((a * u for a, u in zip(powers, values, strict=True)), torch.zeros(()))
            pieces.append(mixed / sum(powers))
        v = v + linear("attention_out", torch.cat(pieces))
        result[i] = v + linear(
            "feedforward_out", gelu(linear("feedforward_in", norm("feedforward_norm", v)))
        )
    return result


def gate(weights: Mapping[str, Tensor], sources: Sequence[Tensor | None]) -> Tensor:
    """Fused vector of one item; None is a missing source."""
    w = {name: value.double() for name, value in weights.items()}
    powers: list[tuple[float, Tensor]] = []
    for k, source in enumerate(sources):
        if source is None:
            continue
        v = source.double()
        hidden = torch.tanh(w["hidden.weight"] @ layer_norm(v) + w["hidden.bias"])
        powers.append((math.exp(float(w["score.weight"][0] @ hidden + w["bias"][k])), v))
    total = sum(power for power, _ in powers)
    return sum((power / total * v for power, v in powers), torch.zeros(()).double())
