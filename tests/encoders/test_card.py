"""A card's fingerprint is the identity of its vectors, and a wrong card says what is wrong."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embeddings.fakes import catalogue
from pydantic import ValidationError

from mmkd import EmbeddingCache, EncoderCard, load_card
from mmkd.encoders import ENCODERS, hashed_text
from mmkd.encoders.card import LABELS
from mmkd.encoders.language_model import LanguageModelEncoder
from mmkd.errors import EncoderError
from mmkd.trust import trust_code

CLIP: Mapping[str, Any] = {
    "name": "clip",
    "modality": "text",
    "kind": "open_clip",
    "model": "ViT-B-32",
    "pretrained": "openai",
}
TEXT: Mapping[str, Any] = {
    "name": "text",
    "modality": "text",
    "kind": "sentence_transformer",
    "model": "org/name",
}
# another package's kind may use every field
ANY: Mapping[str, Any] = {"name": "any", "modality": "text", "kind": "kind_of_a_test:AnyEncoder"}

CHANGES: list[tuple[Mapping[str, Any], str, Any]] = [
    (CLIP, "modality", "image"),
    (TEXT, "kind", "open_clip"),
    (TEXT, "model", "org/other"),
    (TEXT, "revision", "abc"),
    (CLIP, "pretrained", "laion2b_s34b_b79k"),
    (ANY, "pooling", "mean"),
    (TEXT, "prompt", "query: "),
    (TEXT, "max_length_tokens", 64),
    (TEXT, "dtype", "bfloat16"),
    (TEXT, "normalize", True),
    (CLIP, "image_size", 128),
    (CLIP, "image_mean", (0.5, 0.5, 0.5)),
    (CLIP, "image_std", (0.5, 0.5, 0.5)),
    (CLIP, "image_interpolation", "bilinear"),
    (CLIP, "image_resize_mode", "squash"),
    (TEXT, "trust_remote_code", True),
    (ANY, "options", {"layer": 3}),
]
LABEL_CHANGES = {
    "name": "other",
    "dim": 12,
    "license": "MIT",
    "size_mb": 1.5,
    "notes": "new",
    "tuned": {"parent": "a", "parent_fingerprint": "b", "events": "c", "split": "d", "seed": 1},
}


@pytest.fixture(autouse=True)
def kind_of_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An importable module with a kind that takes every field."""
    fields = [f for f in EncoderCard.model_fields if f not in (*LABELS, "kind", "options")]
    arguments = ", ".join(f"{field}=None" for field in [*fields, "layer"])
    code = f"class AnyEncoder:\n    version = 1\n    def __init__(self, *, {arguments}): pass\n"
    (tmp_path / "kind_of_a_test.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    trust_code(["kind_of_a_test", "rows_of_a_test", "no_such_package"])


def fingerprint(content: Mapping[str, Any], **changes: Any) -> str:
    return EncoderCard(**{**content, **changes}).fingerprint()


def test_every_field_is_a_label_or_tested_to_matter() -> None:
    assert {field for _, field, _ in CHANGES} | set(LABEL_CHANGES) == set(EncoderCard.model_fields)
    assert set(LABEL_CHANGES) == set(LABELS)


@pytest.mark.parametrize(("content", "field", "value"), CHANGES, ids=[c[1] for c in CHANGES])
def test_whatever_changes_vectors_changes_the_fingerprint(
    content: Mapping[str, Any], field: str, value: Any
) -> None:
    assert fingerprint(content, **{field: value}) != fingerprint(content)


def test_fields_never_stand_in_for_each_other() -> None:
    found = [fingerprint(content, **{field: value}) for content, field, value in CHANGES]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("field", LABEL_CHANGES)
def test_labels_do_not_change_the_fingerprint(field: str) -> None:
    assert fingerprint(TEXT, **{field: LABEL_CHANGES[field]}) == fingerprint(TEXT)


def test_order_of_fields_and_spelled_out_defaults_do_not_matter() -> None:
    turned = dict(reversed(list(TEXT.items())))
    assert fingerprint(turned, dtype="float32", prompt=None) == fingerprint(TEXT)
    first, second = {"components": 8, "word_ngrams": 1}, {"word_ngrams": 1, "components": 8}
    hashed = {"name": "h", "modality": "text", "kind": "hashed_text"}
    assert fingerprint(hashed, options=first) == fingerprint(hashed, options=second)


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from mmkd.encoders import EncoderCard;"
        f"print(EncoderCard.model_validate({dict(TEXT)!r}).fingerprint())"
    )
    environment = {"PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(__file__).parents[2])}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == fingerprint(TEXT)


def test_fingerprint_of_a_released_card_never_moves() -> None:
    # if this fails, every user's cache has lost its vectors: is that meant?
    pinned = "da24f701b5967fe9"
    assert fingerprint(TEXT).startswith(pinned)


def test_new_code_of_a_kind_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = {"name": "h", "modality": "text", "kind": "hashed_text"}
    before = fingerprint(hashed)
    monkeypatch.setattr(hashed_text.HashedTextEncoder, "version", 99)
    assert fingerprint(hashed) != before


def test_local_weights_count_by_content_and_not_by_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "a" / "README.md").write_text("about")
    (tmp_path / "b" / ".git").mkdir(parents=True)
    (tmp_path / "b" / ".git" / "HEAD").write_text("main")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"weights")
    first = fingerprint(TEXT, model=str(tmp_path / "a"))
    assert fingerprint(TEXT, model=str(tmp_path / "b")) == first
    (tmp_path / "b" / "model.safetensors").write_bytes(b"retrained")
    assert fingerprint(TEXT, model=str(tmp_path / "b")) != first
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    assert fingerprint(TEXT, model=str(tmp_path / "a")) != first


def test_a_card_cannot_be_changed() -> None:
    card = EncoderCard(**TEXT)
    with pytest.raises(ValidationError):
        card.prompt = "x"  # type: ignore[misc]


def test_only_hashed_text_is_fitted() -> None:
    assert EncoderCard(name="h", modality="text", kind="hashed_text").fitted
    assert not EncoderCard(**TEXT).fitted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promt": "x"}, "promt: unknown; did you mean 'prompt'?"),
        ({"kind": "sentence_transformers"}, "did you mean 'sentence_transformer'?"),
        ({"kind": "nonsense"}, "built in: clip, color_image"),
        ({"kind": "encoder.py"}, "a card never runs a file"),
        ({"kind": "/home/me/encoder.py:Mine"}, "a card never runs a file"),
        ({"kind": "./encoder:Mine"}, "a card never runs a file"),
        ({"kind": "package.module:"}, "is unknown"),
        ({"image_size": 64}, "kind sentence_transformer does not use image_size"),
        ({"options": {"x": 1}}, "options.x is unknown to kind sentence_transformer"),
        ({"max_length_tokens": 0}, "greater than or equal to 1"),
        ({"dtype": "float64"}, "dtype"),
        ({"name": "../up"}, "name"),
    ],
)
def test_a_wrong_card_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError) as caught:
        EncoderCard(**{**TEXT, **changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_of_a_card_come_together() -> None:
    options: dict[str, Any] = {"components": 0, "hash_bits": 99, "word": 1}
    with pytest.raises(EncoderError) as caught:
        EncoderCard(name="h", modality="text", kind="hashed_text", dtype="float16", options=options)
    for part in ("does not use dtype", "options.word is unknown", "components: got 0", "hash_bits"):
        assert part in str(caught.value)
    with pytest.raises(EncoderError, match=r"name: missing; dim: .*; nam: unknown.*'name'"):
        EncoderCard(**{"nam": "x", "modality": "text", "kind": "hashed_text", "dim": 0})


def test_a_card_without_the_model_that_its_kind_needs() -> None:
    for kind in set(ENCODERS) - {"hashed_text", "color_image"}:
        with pytest.raises(EncoderError, match=f"kind {kind} needs a model; name one in the card"):
            EncoderCard(name="x", modality="image", kind=kind)


def test_close_option_is_suggested() -> None:
    content = {"name": "h", "modality": "text", "kind": "hashed_text", "options": {"component": 3}}
    with pytest.raises(EncoderError, match="did you mean 'components'"):
        EncoderCard(**content)


@pytest.mark.parametrize("kind", ["no_such_package:Mine", "kind_of_a_test:Missing"])
def test_a_kind_that_cannot_be_imported_says_so(kind: str) -> None:
    with pytest.raises(EncoderError, match="cannot be imported"):
        fingerprint({**ANY, "kind": kind})


def test_batch_tokens_is_a_run_time_argument_and_no_option() -> None:
    content = {**TEXT, "options": {"batch_tokens": 9}}
    with pytest.raises(EncoderError, match=r"options\.batch_tokens is unknown"):
        EncoderCard(**content)
    hashed = EncoderCard(name="h", modality="text", kind="hashed_text")
    with pytest.raises(EncoderError, match="batch_tokens 0 is not positive"):
        hashed.build(batch_tokens=0)


def test_a_card_reads_content_unless_its_kind_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EncoderCard(**TEXT).reads == "content"
    code = (
        "class Rows:\n    version = 1\n"
        "    def __init__(self, *, by=None): pass\n"
        "    @staticmethod\n    def reads(settings): return settings.get('by', 'row')\n"
    )
    (tmp_path / "rows_of_a_test.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    content = {"name": "r", "modality": "text", "kind": "rows_of_a_test:Rows"}
    assert EncoderCard(**content).reads == "row"
    assert EncoderCard(**{**content, "options": {"by": "id"}}).reads == "id"
    with pytest.raises(EncoderError, match="wanted content, id or row"):
        _ = EncoderCard(**{**content, "options": {"by": "x"}}).reads


def test_a_kind_that_cannot_be_spread_takes_one_device() -> None:
    card = load_card("minilm-packaged")
    wanted = card.build().encode(["one text"])
    found = card.build(device="auto").encode(["one text"])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("device", ["gpu", "cuda:7"])
def test_a_device_that_is_not_there_is_one_line(device: str) -> None:
    with pytest.raises(EncoderError, match=f"device '{device}' is not to be had here"):
        load_card("minilm-packaged").build(device=device)


class Lengths:
    """An encoder of one's own, of a class that no card could name."""

    version = 1
    modality = "text"
    dim = 1

    def __init__(self, unit: float = 1.0) -> None:
        self.unit = unit

    def encode(self, inputs: Any, *, batch_size: int = 64) -> Any:
        return np.array([[len(text) * self.unit] for text in inputs], np.float32)


def test_an_encoder_object_of_ones_own_goes_through_the_cache(tmp_path: Path) -> None:
    class Local(Lengths):
        pass

    cache = EmbeddingCache(tmp_path)
    items = catalogue(["a", "bcd"])
    for encoder in (Lengths(), Local(3.0), Local(5.0)):
        card = EncoderCard.of(encoder, name="lengths", identity=f"unit {encoder.unit}")
        assert card.build() is encoder
        for _ in range(2):  # encoded, and then out of the cache
            vectors = np.asarray(cache.table(card, items).vectors)
            np.testing.assert_array_equal(vectors[1:, 0], [encoder.unit, 3 * encoder.unit])


def test_identity_version_and_class_tell_objects_apart() -> None:
    class Other(Lengths):
        pass

    class Newer(Lengths):
        version = 2

    Newer.__name__ = "Lengths"
    cards = [
        EncoderCard.of(Lengths(), name="a", identity="1"),
        EncoderCard.of(Lengths(), name="a", identity="2"),
        EncoderCard.of(Other(), name="a", identity="1"),
        EncoderCard.of(Newer(), name="a", identity="1"),
    ]
    assert len({card.fingerprint() for card in cards}) == 4
    same = EncoderCard.of(Lengths(9.0), name="b", identity="1")
    assert same.fingerprint() == cards[0].fingerprint()


def test_what_is_no_encoder_or_has_no_identity_is_refused() -> None:
    whatever: Any = object()
    with pytest.raises(EncoderError, match="a object is no encoder; give an object with modality"):
        EncoderCard.of(whatever, name="a", identity="1")
    with pytest.raises(EncoderError, match="identity is blank"):
        EncoderCard.of(Lengths(), name="a", identity=" ")


def test_an_object_may_be_fitted_and_say_what_it_reads() -> None:
    class Fitted(Lengths):
        fitted = True

        @staticmethod
        def reads(settings: Mapping[str, Any]) -> str:
            return "id"

    card = EncoderCard.of(Fitted(), name="a", identity="1")
    assert card.fitted
    assert card.reads == "id"


def test_a_templates_end_has_a_version_of_its_own() -> None:
    """Its vectors of long texts changed, those of other prompts did not."""
    found = {
        prompt: LanguageModelEncoder.version_of({"prompt": prompt} if prompt else {})
        for prompt in (None, "query: ", "query: {text}", "{text} means")
    }
    assert list(found.values()) == [1, 1, 1, 2]
