"""Planning a recipe: every shipped one fits, and every mistake of a wrong one is told at once."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mmkd import (
    AttributeLoss,
    CompressionLoss,
    ContrastiveLoss,
    CorrelationDistiller,
    CorrelationLoss,
    EmbeddingCache,
    Evaluator,
    FusedItemEmbedding,
    MutualLoss,
    TrainingArguments,
    load_interactions,
    load_items,
    load_recipe,
)
from mmkd.config.checks import ranges_of
from mmkd.config.plan import DEFAULT_WIDTH, Plan, plan
from mmkd.config.recipe import recipe_names
from mmkd.data import SPLITS
from mmkd.data.tasks import TASKS
from mmkd.embeddings import EncodingSettings
from mmkd.errors import RecipeError
from mmkd.losses.recommendation import LOSSES
from mmkd.student import BACKBONES, backbone_class, build_ensemble
from mmkd.training.optimizer import ASYNCHRONOUS


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(*overrides: str, name: str = "quickstart") -> Plan:
    return plan(load_recipe(name, ["data.root=x", *overrides]), needs_data=False)


def problems(overrides: Sequence[str], *, name: str = "quickstart") -> list[str]:
    with pytest.raises(RecipeError) as error:
        planned(*overrides, name=name)
    return [problem.split(": ", 1)[1] for problem in error.value.problems]


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_can_be_planned(name: str) -> None:
    found = planned(name=name)
    assert set(found.cards) == set(found.recipe.encoders)
    assert (found.distiller is None) == (not found.cards)
    assert (found.objective.correlation is None) == (found.recipe.objective.correlation is None)
    assert found.width % int(found.backbone.get("heads", 1)) == 0


def test_the_recbole_section_of_the_data_page_works_as_printed(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    section = page.partition("## From RecBole files")[2].split("```yaml\n")[1].partition("```")[0]
    (tmp_path / "own.yaml").write_text(
        "name: own\nstudent: {backbone: sasrec, score_with: id}\ntask: next_item\n"
        f"objective: {{recommendation: softmax}}\n{section}"
    )
    films = tmp_path / "ml-100k"
    films.mkdir()
    (films / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Comedy\n2\tJumanji\t1995\tAdventure\n3\tHeat\t1995\t\n"
    )
    (films / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "7\t3\t5\t30\n7\t1\t4\t10\n7\t2\t1\t20\n8\t9\t1\t5\n"
    )
    data = plan(load_recipe("own.yaml")).load_data()
    assert data.items.text[1] == "Toy Story. Animation Comedy"
    assert data.items.attributes[1] == ("Animation", "Comedy")
    assert data.split.sequence(0).tolist() == [1, 2, 3] and data.split.train_end.tolist() == [1]


def test_values_of_the_recipe_reach_the_parts() -> None:
    found = planned(
        "seed=9", "training.epochs=3", "student.embedding.width=48", "distiller.codes=7"
    )
    assert found.training.epochs == 3 and found.training.lr == 2e-3
    assert found.width == 48
    assert found.distiller is not None
    assert found.distiller["seed"] == 9 and found.distiller["codes"] == 7
    assert found.objective.correlation is not None
    weights = {"holistic_weight": 0.4, "dissected_weight": 0.05}
    assert found.objective.correlation == {**weights, "temperature": 1.5}
    assert found.evaluator.batch_size == 512
    assert found.allow_random_weights is False


def test_the_width_has_a_default() -> None:
    assert planned("student.embedding={fusion: sum}", "student.embedding.width=64").width == 64
    assert DEFAULT_WIDTH == 64


def test_all_mistakes_are_told_together_with_what_was_meant() -> None:
    found = problems(
        [
            "training.epoch=3",
            "training.lr=fast",
            "distiller.code=5",
            "student.backbone.layer=2",
            "evaluation.exclude_seen=histery",
            "data.items.titel=title",
            "objective.correlation.holistic_wieght=1",
            "asynchronous.gama=2",
            "encoders.text=hashed-txt",
            "data.split=leave_on_out",
        ]
    )
    told = dict(problem.split(": ", 1) for problem in found)
    assert len(told) == len(found) == 10
    assert told["training.epoch"] == "unknown; did you mean epochs?"
    assert "wanted a number" in told["training.lr"]
    assert told["distiller.code"] == "unknown; did you mean codes?"
    assert told["student.backbone.layer"] == "unknown; did you mean layers?"
    assert "one of history, none" in told["evaluation.exclude_seen"]
    assert told["data.items.titel"] == "unknown; did you mean title?"
    assert told["asynchronous.gama"] == "unknown; did you mean gamma?"
    assert "hashed-text" in told["encoders.text"]
    assert told["data.split.kind"] == "unknown; did you mean leave_one_out?"
    assert "unknown" in told["objective.correlation.holistic_wieght"]


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (
            ["student.backbone={kind: bert4rec, layers: 1, heads: 2}"],
            "got next_item, wanted masked_item: backbone bert4rec is bidirectional",
        ),
        (
            ["task=masked_item"],
            "got masked_item, wanted next_item: backbone sasrec is causal",
        ),
    ],
)
def test_a_task_of_the_other_direction_is_refused(overrides: list[str], wanted: str) -> None:
    assert problems(overrides) == [f"task.kind: {wanted}"]


def test_a_bidirectional_backbone_with_masked_items_is_planned() -> None:
    found = planned(
        "student.backbone={kind: bert4rec, layers: 1, heads: 2}",
        "task={kind: masked_item, mask_ratio: 0.3}",
    )
    assert not found.task.causal


def test_what_needs_encoders_is_refused_beside_none() -> None:
    told = problems(["encoders=null", "distiller.dim=8", "objective.correlation.temperature=2"])
    assert told == [
        f"{key}: set, but there is no encoder to distil; add one to encoders"
        for key in ("distiller", "objective.correlation")
    ]
    found = planned("encoders=null")
    assert found.distiller is None and found.cards == {} and found.objective.correlation is None


def test_rows_step_where_the_loss_reads_some_items_only() -> None:
    assert problems(["training.tables=rows"]) == [
        "training.tables: got rows, but the recommendation loss is softmax, which reads every "
        "item; give objective.recommendation one of sampled_softmax, gbce, or leave this out"
    ]
    found = planned("training.tables=rows", "objective.recommendation=gbce")
    assert found.training.tables == "rows"


def test_tables_over_processes_are_refused_to_what_needs_them_whole() -> None:
    sharded = ["training.tables=sharded", "objective.recommendation=sampled_softmax"]
    assert planned(*sharded).training.tables == "sharded"
    (told,) = problems(["training.tables=sharded"])
    assert told.startswith("training.tables: got sharded, but the recommendation loss is softmax")
    (last,) = problems([*sharded, "asynchronous.kind=interval"])
    assert last.startswith("asynchronous: got interval, but training.tables is sharded")


def test_soft_targets_are_planned_and_checked() -> None:
    found = planned("objective.neighbours={share: 0.1, modalities: [text]}")
    assert found.objective.neighbours == {"share": 0.1, "modalities": ["text"]}
    assert planned("objective.neighbours={share: 0}").objective.neighbours is None
    told = problems(
        [
            "objective.neighbours={share: 2, temperature: 0, kk: 1, modalities: [sound], "
            "form: expected}",
            "objective.recommendation={kind: gbce}",
        ]
    )
    assert {problem.split(":")[0] for problem in told} == {
        f"objective.neighbours.{name}"
        for name in ("share", "temperature", "kk", "modalities", "form")
    }


def test_items_that_content_can_score_are_no_negatives_untrained() -> None:
    def options(*overrides: str) -> dict[str, object]:
        return planned(*overrides, name="beauty-fused").objective.recommendation

    assert options() == {"candidates": "trained"}
    assert options("student.score_with=id") == {}
    kept = options("objective.recommendation={kind: softmax, candidates: all}")
    assert kept == {"candidates": "all"}


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    [problem] = problems(["student.backbone.heads=3"])
    assert problem.startswith("student.backbone.heads: ")
    assert "32" in problem and "3" in problem


def test_facets_that_do_not_divide_the_teacher_are_refused() -> None:
    [problem] = problems(["distiller.facets=5"])
    assert problem.startswith("distiller.facets: ") and "5 facets" in problem


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("training.epochs=0", "training.epochs: got 0, wanted at least 1"),
        ("asynchronous.gamma=1", "asynchronous.gamma: got 1.0, wanted more than 1"),
        (
            "objective.recommendation.negatives=5",
            "objective.recommendation.negatives: unknown; known",
        ),
        ("cache.allow_random_weights=1", "cache.allow_random_weights: wanted true or false"),
        ("student.backbone=sasrek", "student.backbone.kind: backbone 'sasrek': unknown; did you"),
        ("asynchronous=rampp", "asynchronous.kind: unknown; did you mean ramp?"),
        ("distiller.seed=3", "distiller.seed: set by the program itself; remove it"),
        ("training.select_metric=NDCG@7", "training.select_metric: got NDCG@7, wanted one of HR@5"),
        (
            "objective.correlation.temperature=0",
            "objective.correlation.temperature: got 0.0, wanted",
        ),
        ("student.embedding.fusion=gates", "student.embedding.fusion: got 'gates', wanted one of"),
        ("evaluation.test=maybe", "evaluation.test: got 'maybe', wanted true or false"),
        ("evaluation.ks=[0]", "evaluation.ks: got 0, wanted at least 1"),
        ("evaluation.resamples=0", "evaluation.resamples: got 0, wanted at least 1"),
        ("evaluation.batch_size=0", "evaluation.batch_size: got 0, wanted at least 1"),
        ("training.lr=0", "training.lr: got 0.0, wanted a number above 0"),
        ("training.lr=-1", "training.lr: got -1.0, wanted a number above 0"),
        ("training.betas=[0.9, 1]", "training.betas: got (0.9, 1.0), wanted two from 0 to below"),
        ("training.betas=[-0.1, 0.9]", "training.betas: got (-0.1, 0.9)"),
        ("training.gradient_clip=0", "training.gradient_clip: got 0.0, wanted a number above 0"),
        ("training.weight_decay=-0.1", "training.weight_decay: got -0.1, wanted 0 or more"),
        ("training.warmup_steps=-1", "training.warmup_steps: got -1, wanted 0 or more"),
        ("training.patience=0", "training.patience: got 0, wanted at least 1"),
        ("training.checkpoint_every_s=-1", "training.checkpoint_every_s: got -1.0, wanted 0 or"),
        ("training.threads=0", "training.threads: got 0, wanted at least 1"),
        ("training.max_length=0", "training.max_length: got 0, wanted at least 1"),
        ("training.batch_size=0", "training.batch_size: got 0, wanted at least 1"),
        ("student.embedding.dropout=1", "student.embedding.dropout: got 1.0, wanted 0 up to"),
        ("student.embedding.dropout=-0.1", "student.embedding.dropout: got -0.1, wanted 0 up to"),
        ("student.embedding.width=0", "student.embedding.width: got 0, wanted at least 1"),
        ("student.embedding.gate_width=0", "student.embedding.gate_width: got 0, wanted at least"),
        ("student.embedding.id_std=0", "student.embedding.id_std: got 0.0, wanted a number"),
        ("student.embedding.modality_std=-1", "student.embedding.modality_std: got -1.0, wanted"),
        ("student.backbone.dropout=1", "student.backbone.dropout: got 1.0, wanted 0 up to"),
        ("student.backbone.heads=0", "student.backbone.heads: got 0, wanted at least 1"),
        ("student.backbone.layers=0", "student.backbone.layers: got 0, wanted at least 1"),
        ("student.backbone.feedforward=0", "student.backbone.feedforward: got 0, wanted at least"),
        ("student.backbone={kind: gru4rec, hidden: 0}", "student.backbone.hidden: got 0, wanted"),
        ("student.backbone={kind: rgat, last_n: 0}", "student.backbone.last_n: got 0, wanted"),
        ("student.backbone={kind: gru4rec, dropout: 1}", "student.backbone.dropout: got 1.0"),
        (
            "objective.recommendation={kind: gbce, negatives: 0}",
            "objective.recommendation.negatives: got 0, wanted at least 1",
        ),
        (
            "objective.recommendation={kind: gbce, calibration: 1.1}",
            "objective.recommendation.calibration: got 1.1, wanted 0 to 1",
        ),
        ("objective.correlation.hidden=-1", "objective.correlation.hidden: got"),
        ("objective.correlation.hidden=0", "objective.correlation.hidden: got"),
        (
            "objective.correlation.holistic_weight=-1",
            "objective.correlation.holistic_weight: got -1.0, wanted 0 or more",
        ),
        ("distiller.codes=1", "distiller.codes: got 1, wanted at least 2"),
        ("distiller.dim=-8", "distiller.dim: got -8, wanted at least 1"),
        ("distiller.max_pairs=0", "distiller.max_pairs: got 0, wanted at least 1"),
        ("cache.shard_size=0", "cache.shard_size: got 0, wanted at least 1"),
        (
            "training.select_metric=retention.text.spearmann",
            "training.select_metric: got retention.text.spearmann, wanted one of HR@5",
        ),
        ("data.items.text='{title'", "data.items.text: text template '{title': "),
        ("data.items.text=title", "data.items.text: text template 'title' has no placeholder"),
        ("data.interactions.min_rating=3", "data.interactions.min_rating: needs ratings"),
        ("encoders={a.b: hashed-text}", "encoders.a.b: modality 'a.b': wanted letters, digits"),
        ("encoders={'': hashed-text}", "encoders.: modality '': wanted letters, digits"),
        ("encoders={type: hashed-text}", "encoders.type: modality 'type': torch keeps this name"),
        ("encoders={keys: hashed-text}", "encoders.keys: modality 'keys': torch keeps this name"),
        ("encoders={items: hashed-text}", "encoders.items: modality 'items': torch keeps this"),
        ("encoders={train: hashed-text}", "encoders.train: modality 'train': torch keeps this"),
    ],
)
def test_a_value_that_a_part_refuses_is_a_mistake_of_the_recipe(override: str, wanted: str) -> None:
    [problem] = problems([override])
    assert problem.startswith(wanted)


@pytest.mark.parametrize("figure", ["spearman", "recall@10"])
def test_a_retention_metric_may_select(figure: str) -> None:
    found = planned(f"training.select_metric=retention.text.{figure}")
    assert found.training.select_metric == f"retention.text.{figure}"


def test_every_number_a_part_refuses_is_told() -> None:
    found = problems(["training.lr=0", "training.epochs=0", "training.weight_decay=-1"])
    assert [problem.split(": ")[0] for problem in found] == [
        "training.epochs",
        "training.lr",
        "training.weight_decay",
    ]


def test_an_untrained_encoder_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    card = tmp_path / "blank.yaml"
    card.write_text("modality: image\nkind: open_clip\nmodel: RN50\n", encoding="utf-8")
    blank = f"encoders.image={card}"
    [problem] = problems([blank])
    assert problem.startswith("encoders.image: ") and "untrained" in problem
    assert "cache.allow_random_weights" in problem
    assert planned(blank, "cache.allow_random_weights=true").allow_random_weights
    with card.open("a", encoding="utf-8") as file:
        file.write("pretrained: openai\n")
    assert not planned(blank).cards["image"].untrained


def test_a_mistake_of_the_structure_is_told_before_those_of_the_options() -> None:
    with pytest.raises(RecipeError) as error:
        planned("trainning.lr=1", "distiller.code=5", "seed=-1")
    assert [problem.split(": ")[1] for problem in error.value.problems] == ["seed", "trainning"]


def test_a_wrong_type_in_one_key_hides_no_range_of_another() -> None:
    found = dict(
        problem.split(": ", 1)
        for problem in problems(
            [
                "training.lr=fast",
                "training.epochs=0",
                "student.backbone.heads=x",
                "student.backbone.layers=0",
                "distiller.codes=many",
                "distiller.facets=5",
                "task.views=none",
                "task.crop=2",
            ]
        )
    )
    assert "wanted a number" in found["training.lr"] and "got 0" in found["training.epochs"]
    assert "wanted an integer" in found["student.backbone.heads"]
    assert "got 0" in found["student.backbone.layers"]
    assert "wanted an integer" in found["distiller.codes"] and "5" in found["distiller.facets"]
    assert "wanted an integer" in found["task.views"] and "got 2" in found["task.crop"]
    assert len(found) == 8


def test_missing_data_matters_only_where_it_is_needed(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["data.root=nowhere"])
    with pytest.raises(RecipeError, match=r"data\.root: no such folder: nowhere"):
        plan(recipe)
    (tmp_path / "nowhere").mkdir()
    assert plan(recipe).recipe is recipe


def test_every_part_that_takes_a_section_has_ranges_to_be_judged_by() -> None:
    parts = [
        load_items,
        load_interactions,
        *SPLITS.values(),
        EmbeddingCache,
        EncodingSettings,
        CorrelationDistiller,
        TrainingArguments,
        FusedItemEmbedding,
        *(backbone_class(kind) for kind in BACKBONES),
        build_ensemble,
        *TASKS.values(),
        *LOSSES.values(),
        CorrelationLoss,
        AttributeLoss,
        ContrastiveLoss,
        MutualLoss,
        CompressionLoss,
        ASYNCHRONOUS["ramp"],
        ASYNCHRONOUS["interval"],
        Evaluator,
    ]
    assert [part for part in parts if ranges_of(part) is None] == []
