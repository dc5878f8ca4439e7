"""A trained run opened once: lists for users and strangers, neighbours, vectors, comparisons."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_runs import recipe_of

import mmkd
from mmkd.errors import DataError, RunError
from mmkd.evaluation.significance import holm
from mmkd.runs.recommend import recommend


@pytest.fixture(scope="module")
def run(synthetic: list[str], tmp_path_factory: pytest.TempPathFactory) -> mmkd.Run:
    return mmkd.train(recipe_of(synthetic), folder=tmp_path_factory.mktemp("runs") / "shop")


def test_lists_for_all_users_are_those_of_one_user_after_another(run: mmkd.Run) -> None:
    found = run.recommend(users="all", k=4)
    users = list(run.data.log.user_ids)
    assert found["query"].unique(maintain_order=True).to_list() == users
    for user in users[::37]:
        sequence = run.data.split.sequence(users.index(user))
        ids = [run.items.ids[row] for row in sequence]
        alone = run.student.recommend(run.items, ids, k=4)
        mine = found.filter(found["query"] == user)
        assert mine["item_id"].to_list() == [one["item"] for one in alone]
        assert mine["score"].to_list() == pytest.approx([one["score"] for one in alone], abs=1e-5)
        assert not set(mine["item_id"]) & set(ids)
        assert run.recommend(users=[user], k=4)["item_id"].to_list() == mine["item_id"].to_list()


def test_lists_for_all_users_are_a_naive_loops(run: mmkd.Run) -> None:
    """One history at a time through the network in float64, a product an item, a sort of floats."""
    network = deepcopy(run.student.networks[0]).double()
    length, sequence = run.folder.student_spec().max_length, run.data.split.sequence
    allowed, denied = set(run.items.ids[5:]), set(run.items.ids[9:12])
    found = run.recommend(users="all", k=6, allow=sorted(allowed), deny=sorted(denied))
    lists = found.partition_by("query", as_dict=True, maintain_order=True)
    assert len(lists) == len(run.data.log.user_ids)
    for user, name in enumerate(run.data.log.user_ids):
        rows = sequence(user).tolist()
        with torch.no_grad():
            states = network(torch.tensor([rows[-length:]]))
        state, matrix = states.hidden[0, -1].tolist(), states.item_matrix.tolist()
        scored = [
            (sum(a * b for a, b in zip(state, vector, strict=True)), run.items.ids[item])
            for item, vector in enumerate(matrix, start=1)
            if item not in rows and run.items.ids[item] in allowed - denied
        ]
        scored.sort(reverse=True)
        mine = lists[(name,)]
        assert mine["item_id"].to_list() == [item for _, item in scored[:6]], name
        assert mine["score"].to_list() == pytest.approx([s for s, _ in scored[:6]], abs=1e-4)


def test_an_open_run_leaves_the_callers_gradients_alone(run: mmkd.Run) -> None:
    """Gradient mode is the whole thread's: whoever trains beside an open run must not lose it."""
    run.recommend([run.items.ids[1]], k=2)
    assert torch.is_grad_enabled()
    assert not run.student.training
    lists = recommend(
        run.student,
        run.items,
        ["a", "b", "c"],
        [np.array([1])] * 3,
        k=2,
        batch_size=1,
    )
    next(lists)
    assert torch.is_grad_enabled()


def test_lists_are_what_the_test_ranked(run: mmkd.Run) -> None:
    """The ten best kept with each test case, from the events before it, are these lists."""
    ranks, split = run.folder.ranks(), run.data.split
    for place in range(0, len(ranks.case), 41):
        case, user = int(ranks.case[place]), int(ranks.user[place])
        before = split.sequence(user)[: split.test.position[case]]
        ids = [run.items.ids[row] for row in before]
        found = run.items.rows(run.recommend(ids, k=10)["item_id"])
        kept = ranks.top_items[place]
        # the target, where it was taken before, stays a candidate of the test
        assert set(kept[kept > 0]) - {int(ranks.target[place])} <= set(found.tolist())


def test_histories_come_alone_or_together_by_place_or_by_name(run: mmkd.Run) -> None:
    a, b, c = run.items.ids[1:4]
    one = run.recommend([a, b], k=3)
    assert one["query"].to_list() == [0, 0, 0]
    both = run.recommend([[a, b], [c]], k=3)
    assert both["query"].to_list() == [0, 0, 0, 1, 1, 1]
    assert both["item_id"][:3].to_list() == one["item_id"].to_list()
    named = run.recommend({"ada": [c]}, k=3)
    assert named["query"].to_list() == ["ada"] * 3
    assert named["item_id"].to_list() == both["item_id"][3:].to_list()


def test_neighbours_by_the_student_and_by_an_encoder(run: mmkd.Run) -> None:
    ids, vectors = run.item_vectors()
    assert ids == list(run.items.ids[1:]) and vectors.shape[0] == len(ids)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit[4]
    cosine[4] = -2
    found = run.similar([ids[4]], k=3)
    assert found["item_id"].to_list() == [ids[i] for i in np.argsort(-cosine)[:3]]
    assert found["score"].to_list() == pytest.approx(np.sort(cosine)[::-1][:3].tolist(), abs=1e-5)
    by_text = run.similar([ids[4]], k=3, by="text")
    assert by_text["query"].to_list() == [ids[4]] * 3
    assert by_text["item_id"].to_list() != found["item_id"].to_list()
    with pytest.raises(RunError, match="no encoder for sound"):
        run.similar([ids[4]], by="sound")


def test_history_has_a_row_an_epoch(run: mmkd.Run) -> None:
    assert len(run.history) == run.result["epochs"]
    assert run.history["valid.NDCG@10"][run.result["best_epoch"]] == pytest.approx(
        run.result["valid"]["NDCG@10"]
    )


def test_a_run_compared_with_itself_differs_in_nothing(run: mmkd.Run) -> None:
    [row] = run.compare(run).to_dicts()
    assert row["difference"] == 0 and row["p_value"] == row["p_holm"] == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_tables_are_fused_once_while_a_run_is_open(
    run: mmkd.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.recommend([run.items.ids[1]])
    fuse = run.student.networks[0].embedding.fuse
    assert fuse is not None
    monkeypatch.setattr(fuse, "forward", lambda *_: pytest.fail("fused again"))
    run.recommend([run.items.ids[2]], k=2)


def test_a_kept_table_is_let_go_before_weights_change() -> None:
    embedding = mmkd.FusedItemEmbedding(
        item_count=4, width=4, modalities={"text": torch.randn(5, 4)}
    )
    before = embedding.table()
    with embedding.table_kept():
        torch.testing.assert_close(embedding.table(), before)
    with torch.no_grad():
        embedding.id_table.add_(1.0)
    assert not torch.allclose(embedding.table(), before)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "give either histories or users"),
        ({"histories": ["x"], "users": ["y"]}, "give either histories or users"),
        ({"histories": ["nobody-sells-this"]}, "not among the"),
        ({"users": ["stranger"]}, "user 'stranger' is not among the"),
        ({"histories": [[]]}, "the history is empty"),
    ],
)
def test_what_cannot_be_answered_is_told(
    run: mmkd.Run, options: dict[str, list[str]], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        run.recommend(**options)  # type: ignore[arg-type]


def test_a_folder_without_a_finished_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run "):
        mmkd.load(tmp_path)
