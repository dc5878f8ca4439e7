"""``mmkd tune``: what it prints; its card is found, listed, and not torn from its weights."""

from pathlib import Path

import pytest
import yaml
from commands import invoke, printed
from encoders.image_models import save_vision_models
from encoders.language_models import save

from mmkd.errors import RecipeError


def test_tune_ends_with_what_to_do_next(
    synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save("llama", tmp_path / "llama")
    card = {"modality": "text", "kind": "language_model", "model": "./llama", "pooling": "mean"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(card))
    given = (
        *("tune", "quickstart", *synthetic, "encoders={text: ./tiny.yaml, image: null}"),
        *("tune.text={epochs: 1, pairs: 32, batch_size: 16}", "--name", "mine"),
    )
    result = invoke(*given)
    assert result.exit_code == 0
    head, hits, gains, told, worth, use = result.stdout.splitlines()
    assert head.split() == ["validation", "pairs", "tiny", "mine"]
    record = printed(*given, "--resume")
    for line, name in ((hits, "HR@10"), (gains, "NDCG@10")):
        figures = (record["before"][name], record["history"][0]["valid"][name])
        assert line.split() == [name, *(f"{figure:.4f}" for figure in figures)]
    assert told.startswith("32 pairs in ") and told.endswith("best epoch 1.")
    assert worth.endswith("mmkd teacher quickstart --against mine")
    assert use.endswith("mmkd train quickstart encoders.text=mine")
    listed = {one["card"] for one in printed("ls", "encoders")}
    assert "mine" in listed
    with pytest.raises(RecipeError, match=r"mine: has its weights beside it; copy the folder"):
        invoke("cp", "mine", str(tmp_path / "other"))
    found = printed("teacher", "quickstart", *synthetic, "encoders.image=null", "--against", "mine")
    assert list(found) == ["text", "mine"]


def test_two_encoders_are_tuned_together_and_named_apart(
    synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_vision_models(tmp_path)
    for tower in ("text", "image"):
        card = {"modality": tower, "kind": "clip", "model": "./clip"}
        (tmp_path / f"{tower}.yaml").write_text(yaml.safe_dump(card))
    given = (
        *("tune", "quickstart", *synthetic, "encoders={text: ./text.yaml, image: ./image.yaml}"),
        *("tune.text+image={epochs: 1, pairs: 16, batch_size: 8}", "--name", "both"),
        *("--encoder", "text", "--encoder", "image"),
    )
    result = invoke(*given)
    assert result.exit_code == 0
    head, *figures, told, worth, use = result.stdout.splitlines()
    assert head.split() == ["validation", "pairs", "text+image", "both"]
    assert [line.split()[0] for line in figures] == [
        f"{tower}{name}" for tower in ("", "text.", "image.") for name in ("HR@10", "NDCG@10")
    ]
    assert told.startswith("16 pairs in ")
    assert worth.endswith("mmkd teacher quickstart --against both-text --against both-image")
    assert use.endswith("mmkd train quickstart encoders.text=both-text encoders.image=both-image")
    assert printed(*given, "--resume")["cards"] == {"text": "both-text", "image": "both-image"}
    assert {"both-text", "both-image"} <= {one["card"] for one in printed("ls", "encoders")}
    with pytest.raises(RecipeError, match=r"both-image: has its weights beside it; copy the fold"):
        invoke("cp", "both-image", str(tmp_path / "other"))
