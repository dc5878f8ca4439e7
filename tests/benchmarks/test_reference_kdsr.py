"""The benchmark's plain KDSR computes the published losses, pair by pair in float64."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.reference.kdsr import ReferenceKDSR
from benchmarks.reference.session_graph import (
    BOTH,
    INCOMING,
    OUTGOING,
    SELF,
    graph_batch,
    prefixes,
)
from benchmarks.reference.teacher_matrices import code_matrix, holistic_matrix

WIDTH, ITEMS, CODES, LENGTH = 8, 12, 5, 6
SAMPLES = [([3, 1, 3, 2], 7), ([5, 6], 1), ([4, 8, 9, 10, 11], 12)]


def _vectors(seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((ITEMS + 1, WIDTH)).astype(np.float32)
    vectors[0] = 0
    return vectors


@pytest.fixture
def model() -> ReferenceKDSR:
    torch.manual_seed(0)
    teachers = {"text": _vectors(0), "image": _vectors(1)}
    made = ReferenceKDSR(
        teachers=teachers, codes=CODES, facets=4, dropout=0.0, attention_dropout=0.0
    )
    # away from the teacher, or the holistic difference would be small
    torch.nn.init.normal_(made.get_parameter("tables.text.weight"))
    return made


def _cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_edges_name_the_direction_of_each_transition() -> None:
    batch = graph_batch([([1, 2, 1, 3, 3], 4)], length=5)

    assert batch.nodes[0].tolist() == [1, 2, 3, 0, 0]
    assert batch.position[0].tolist() == [0, 1, 0, 2, 2]
    assert batch.events.tolist() == [5]
    assert batch.edges[0].tolist() == [
        [SELF, BOTH, OUTGOING, 0, 0],
        [BOTH, SELF, 0, 0, 0],
        [INCOMING, 0, SELF, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]


def test_only_the_latest_events_fit() -> None:
    batch = graph_batch([([5, 1, 2, 3], 4)], length=2)

    assert batch.nodes.tolist() == [[2, 3]]
    assert batch.edges[0].tolist() == [[SELF, OUTGOING], [INCOMING, SELF]]


def test_prefixes_give_every_event_but_the_first_once() -> None:
    assert prefixes([5, 6, 7]) == [([5], 6), ([5, 6], 7)]


def test_holistic_loss_is_the_mean_norm_over_real_pairs(model: ReferenceKDSR) -> None:
    batch = graph_batch(SAMPLES, length=LENGTH)
    vectors = model.tables["text"](batch.nodes)
    got = model.holistic_loss("text", vectors, batch).item()

    teacher = _vectors(0).astype(np.float64)
    student = (
        model.projections["text"](model.get_parameter("tables.text.weight"))
        .detach()
        .double()
        .numpy()
    )
    norms = []
    for prefix, _ in SAMPLES:
        nodes = sorted(set(prefix))
        total = sum(
            ((_cosine(student[i], student[j]) - _cosine(teacher[i], teacher[j])) / 1.5) ** 2
            for i in nodes
            for j in nodes
        )
        norms.append(math.sqrt(total))
    assert got == pytest.approx(np.mean(norms), rel=1e-4)


def test_dissected_loss_is_the_cross_entropy_of_real_pairs(model: ReferenceKDSR) -> None:
    batch = graph_batch(SAMPLES, length=LENGTH)
    got = model.dissected_loss("text", model.tables["text"](batch.nodes), batch).item()

    table = model.get_parameter("tables.text.weight")
    losses = []
    for prefix, _ in SAMPLES:
        for i in set(prefix):
            for j in set(prefix):
                logits = model.typers["text"]((table[i] - table[j]).abs())
                code = int(model.codes["text"][i, j])
                losses.append(-float(logits.detach().double().log_softmax(-1)[code]))
    assert got == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_loss_does_not_depend_on_the_padding(model: ReferenceKDSR) -> None:
    short = model(graph_batch(SAMPLES, length=5)).item()
    long = model(graph_batch(SAMPLES, length=11)).item()

    assert short == pytest.approx(long, rel=1e-5)


def test_each_pair_gets_its_nearest_centroid_and_symmetric_codes() -> None:
    vectors = _vectors(2)
    codes = code_matrix(vectors, facets=2, codes=3, sampled_pairs=500)

    assert torch.equal(codes, codes.mT)
    parts = vectors.reshape(len(vectors), 2, -1)
    r = np.array([[[_cosine(a[p], b[p]) for p in range(2)] for b in parts[1:]] for a in parts[1:]])
    inner = codes[1:, 1:].numpy()
    centres = {code: r[inner == code] for code in np.unique(inner)}
    # clusters of k-means are convex: none holds another's mean
    means = {code: members.mean(0) for code, members in centres.items()}
    for code, members in centres.items():
        own = np.linalg.norm(members - means[code], axis=1).mean()
        assert all(
            own < np.linalg.norm(members - other, axis=1).mean()
            for name, other in means.items()
            if name != code
        )


def test_holistic_matrix_is_the_cosine_and_zero_at_padding() -> None:
    vectors = _vectors(3)
    matrix = holistic_matrix(vectors, dtype=torch.float64)

    assert matrix[0].abs().sum() == 0
    assert float(matrix[2, 5]) == pytest.approx(_cosine(vectors[2], vectors[5]), abs=1e-6)
