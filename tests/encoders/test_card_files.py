"""Cards are found by name in a fixed order, and every card of this repository is right."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mmkd import EncoderCard, load_card
from mmkd.encoders import list_cards
from mmkd.errors import EncoderError

CARDS = Path(__file__).parents[2] / "encoders"
NAMES = sorted(path.stem for path in CARDS.glob("*.yaml"))

OPEN_CLIP_NAMES = [name for name in NAMES if load_card(name, folder=CARDS).kind == "open_clip"]


def test_expected_cards_are_there() -> None:
    wanted = {
        *("minilm", "minilm-packaged", "mpnet-base", "e5-base", "bge-small", "gte-small"),
        *("multilingual-e5-small", "hashed-text", "color-image"),
        *("clip-vit-b32", "clip-vit-b32-text", "siglip-b16", "siglip-b16-text"),
        *("clip-vit-l14", "clip-vit-l14-text", "siglip2-b16", "siglip2-b16-text"),
        *("dinov2-base", "vit-b16", "resnet50", "swin-tiny", "efficientnet-b0"),
        *("qwen3-embedding-0.6b", "llama-3.2-1b", "t5-base"),
    }
    assert wanted <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_card_is_valid_and_complete(name: str) -> None:
    card = load_card(name, folder=CARDS)
    assert card.name == name
    assert len(card.fingerprint()) == 64
    assert card.dim is not None
    assert card.notes
    assert not card.trust_remote_code
    if card.model is not None:
        assert card.license in ("Apache-2.0", "MIT", "Llama-3.2")
        assert card.size_mb is not None
        if card.kind == "sentence_transformer":
            assert card.revision is not None  # or a new commit would change the vectors unseen


@pytest.mark.parametrize("name", OPEN_CLIP_NAMES)
def test_open_clip_cards_name_weights_that_fit(name: str) -> None:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    card = load_card(name, folder=CARDS)
    config = open_clip.get_model_config(card.model)
    weights = get_pretrained_cfg(card.model, card.pretrained)
    assert config["embed_dim"] == card.dim
    # weights trained with the other activation load without an error and give bad vectors
    assert bool(config.get("quick_gelu")) == bool(weights.get("quick_gelu"))


def test_timm_card_names_a_model_of_its_width() -> None:
    import timm

    card = load_card("efficientnet-b0", folder=CARDS)
    assert timm.is_model_pretrained(card.model or "")
    model: Any = timm.create_model(card.model or "", pretrained=False, num_classes=0)
    assert model.num_features == card.dim


def test_e5_cards_have_the_prompt_for_symmetric_tasks() -> None:
    assert load_card("e5-base").prompt == "query: "
    assert load_card("multilingual-e5-small").prompt == "query: "


def test_two_towers_differ_only_in_modality() -> None:
    for name in ("clip-vit-b32", "siglip-b16", "clip-vit-l14", "siglip2-b16"):
        image, text = load_card(name), load_card(f"{name}-text")
        assert image.changed_settings() == text.changed_settings()
        assert image.fingerprint() != text.fingerprint()


def test_readme_lists_every_card_with_its_facts() -> None:
    lines = (CARDS / "README.md").read_text(encoding="utf-8").splitlines()
    for name in NAMES:
        card = load_card(name, folder=CARDS)
        row = next(line for line in lines if line.startswith("|") and f"`{name}`" in line)
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[3] == str(card.dim)
        assert cells[4] == (f"{card.size_mb:g} MB" if card.size_mb else "none")
        assert cells[5] == (card.license or "")


def test_working_folder_hides_other_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_card("minilm").model == "sentence-transformers/all-MiniLM-L6-v2"
    write(tmp_path / "encoders" / "minilm.yaml", "model: org/mine\n")
    assert load_card("minilm").model == "org/mine"
    write(tmp_path / "elsewhere" / "minilm.yaml", "model: org/theirs\n")
    assert load_card("minilm", folder=tmp_path / "elsewhere").model == "org/theirs"
    assert load_card(str(tmp_path / "elsewhere" / "minilm.yaml")).model == "org/theirs"
    assert [c.model for c in list_cards() if c.name == "minilm"] == ["org/mine"]


def test_list_has_every_card_once_by_name() -> None:
    names = [card.name for card in list_cards()]
    assert names == sorted(set(names))
    assert set(NAMES) <= set(names)


def test_listing_cards_imports_no_model_library() -> None:
    code = (
        "import sys; from mmkd.encoders import list_cards; cards = list_cards();"
        "[card.fingerprint() for card in cards];"
        "print(len(cards), [m for m in ('torch', 'transformers', 'timm') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == f"{len(list_cards())} []"


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(EncoderError, match="did you mean 'minilm'") as caught:
        load_card("minilmm")
    assert "hashed-text" in str(caught.value)


def test_missing_file_is_named() -> None:
    with pytest.raises(EncoderError, match="no such file"):
        load_card("nowhere/x.yaml")


def test_all_faults_of_a_file_come_together(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.yaml", "dtype: int8\nmax_length_tokens: many\n")
    with pytest.raises(EncoderError) as caught:
        load_card(str(path))
    for part in ("bad.yaml", "dtype", "max_length_tokens", "'many'"):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", ["- a list", "just text", "a: [unclosed", "", "kind: ${oops}"])
def test_a_file_that_is_no_card_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(EncoderError, match=r"bad\.yaml"):
        load_card(str(path))


def test_dotted_paths_are_relative_to_the_card(tmp_path: Path) -> None:
    path = write(tmp_path / "cards" / "x.yaml", "model: ../weights\n")
    assert load_card(str(path)).model == str(tmp_path / "weights")


def test_a_card_survives_being_written_out(tmp_path: Path) -> None:
    card = load_card("e5-base")
    path = tmp_path / "copy.yaml"
    path.write_text(yaml.safe_dump(card.model_dump(mode="json", exclude_defaults=True)))
    copy = load_card(str(path))
    assert copy == card


def test_width_of_the_card_is_checked_against_the_model() -> None:
    card = EncoderCard(name="c", modality="image", kind="color_image", dim=12)
    with pytest.raises(EncoderError, match="dim 12, but the model gives 362"):
        card.build()


def test_modality_of_the_card_is_checked_against_the_kind() -> None:
    card = EncoderCard(name="c", modality="text", kind="color_image")
    with pytest.raises(EncoderError, match="gives 'image'"):
        card.build()


def test_options_and_fields_reach_the_encoder() -> None:
    card = EncoderCard(name="c", modality="image", kind="color_image", image_size=32)
    plain = EncoderCard(name="c", modality="image", kind="color_image")
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    difference = card.build().encode([picture]) - plain.build().encode([picture])
    assert np.abs(difference).max() > 0.01
    hashed = EncoderCard(name="h", modality="text", kind="hashed_text", options={"components": 7})
    assert hashed.build().dim == 7


def write(path: Path, lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"modality: text\nkind: sentence_transformer\n{lines}"
    path.write_text(text, encoding="utf-8")
    return path
