"""``mmkd encode``: what it prints is what the encoder gives, and a mistake is one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mmkd import load_card
from mmkd.cli.app import app
from mmkd.errors import EncoderError


def printed(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(
        app, ["encode", *map(str, arguments), "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    noise = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    paths = [tmp_path / f"{n}.png" for n in range(2)]
    for path, one in zip(paths, noise, strict=True):
        Image.fromarray(one).save(path)
    return paths


def test_pictures(pictures: list[Path]) -> None:
    found = printed("color-image", *pictures)
    encoder = load_card("color-image").build()
    expected = encoder.encode([Image.open(path) for path in pictures])
    assert found["dim"] == 362
    assert [one["input"] for one in found["inputs"]] == [str(path) for path in pictures]
    shown = [one["values"] for one in found["inputs"]]
    np.testing.assert_allclose(shown, expected[:, :5], rtol=0, atol=1e-6)
    np.testing.assert_allclose([one["norm"] for one in found["inputs"]], 1, atol=1e-6)
    np.testing.assert_allclose(found["cosine"], expected @ expected.T, rtol=0, atol=2e-6)


def test_texts_and_the_table_for_people() -> None:
    text = "a [bold]toy[/bold]"
    result = CliRunner().invoke(app, ["encode", "minilm-packaged", text, "a doll"])
    assert result.exit_code == 0
    assert "minilm-packaged: text, dim 384" in result.stdout
    assert text in result.stdout  # as it was typed
    assert "cosine" in result.stdout
    encoder = load_card("minilm-packaged").build()
    first, second = encoder.encode([text, "a doll"])
    assert f"{first @ second:.4f}" in result.stdout


def test_one_input_has_no_cosine(pictures: list[Path]) -> None:
    assert "cosine" not in printed("color-image", pictures[0])


def test_stored_vectors_by_row_and_by_id(tmp_path: Path) -> None:
    vectors = np.array([[3, 4], [np.nan, 1], [0, 0]], np.float32)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "ids.txt").write_text("a\nb\nc\n", encoding="utf-8")
    card = tmp_path / "mine.yaml"
    text = "modality: image\nkind: precomputed\nmodel: ./v.npy\n"
    card.write_text(text, encoding="utf-8")
    assert printed(card, "1")["inputs"][0] == {"input": "1", "norm": 5.0, "values": [3.0, 4.0]}
    card.write_text(text + "options: {ids: ./ids.txt}\n", encoding="utf-8")
    found = printed(card, "a", "b", "c")
    assert found["inputs"][1] == {"input": "b", "norm": None, "values": None}
    # a vector that is not there, and one of zeros, have no direction
    assert found["cosine"] == [[1.0, None, None], [None, None, None], [None, None, None]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-card", "x"], "is unknown"),
        (["color-image", "/no/such.png"], "no such file; card color-image encodes pictures"),
        (["color-image", __file__], "cannot be read as a picture"),
        (["hashed-text", "x"], "fitted on a whole catalogue"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        CliRunner().invoke(app, ["encode", *arguments], catch_exceptions=False)
