"""The embedding benchmark's arithmetic and its made-up inputs."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.embed import LIBRARY, LIMIT, TABLE, ratio, take_turns
from benchmarks.embed_contestants import precision_cost
from benchmarks.embed_inputs import (
    LENGTH_TENTHS,
    catalogue,
    draw_pictures,
    drawn_texts,
    recorded_items,
    recorded_pictures,
    recorded_texts,
    token_lengths,
    whole_words,
)
from benchmarks.table_runs import EncoderClock


def test_a_ratio_pairs_the_turns_so_a_load_on_one_of_them_cancels() -> None:
    seconds = {LIMIT: [1.0, 10.0, 1.0], TABLE: [2.0, 20.0, 2.0]}
    assert ratio(seconds, TABLE, LIMIT) == pytest.approx(0.5)  # half the throughput in each turn
    assert ratio(seconds, LIMIT, TABLE) == pytest.approx(2.0)
    assert ratio(seconds, TABLE, LIBRARY) is None


def test_ways_take_turns_and_the_first_turn_does_not_count() -> None:
    called: list[str] = []
    for measured in take_turns({name: partial(called.append, name) for name in "ab"}, 2):
        assert {name: len(taken) for name, taken in measured.items()} == {"a": 2, "b": 2}
    assert "".join(called) == "ababab"


def test_the_cost_of_precision_counts_what_a_loop_counts() -> None:
    draw = np.random.default_rng(0)
    exact = draw.standard_normal((30, 8)).astype(np.float32)
    rounded = (3 * exact + draw.standard_normal((30, 8))).astype(np.float32)
    cosines, recalls = [], []
    for row in range(30):
        a, b = exact[row].astype(float), rounded[row].astype(float)
        cosines.append(a @ b / np.sqrt((a @ a) * (b @ b)))
        near = []
        for vectors in (exact.astype(float), rounded.astype(float)):
            scores = [v @ vectors[row] / np.sqrt(v @ v) for v in vectors]
            near.append(set(sorted(set(range(30)) - {row}, key=lambda n: -scores[n])[:4]))
        recalls.append(len(near[0] & near[1]) / 4)
    cost = precision_cost(exact, rounded, k=4)
    assert cost["cosine_mean"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert cost["cosine_min"] == pytest.approx(min(cosines), abs=1e-6)
    assert cost["recall"] == pytest.approx(np.mean(recalls))
    assert precision_cost(exact, exact)["recall"] == 1


def test_made_up_texts_have_the_measured_lengths() -> None:
    lengths = np.array(token_lengths(20_000, np.random.default_rng(0)))
    np.testing.assert_allclose(np.percentile(lengths, range(0, 101, 10)), LENGTH_TENTHS, atol=2)
    words = whole_words({"the": 2, "[CLS]": 0, "##ing": 3, "of": 1, "é": 4, "a": 5, "film": 9})
    assert words == ["of", "the", "film"]
    texts = drawn_texts(words, 50)
    assert texts == drawn_texts(words, 50) != drawn_texts(words, 50, seed=1)
    assert all(LENGTH_TENTHS[0] - 2 <= len(text.split()) <= LENGTH_TENTHS[-1] for text in texts)


def test_made_up_pictures_are_jpegs_of_a_posters_size(tmp_path: Path) -> None:
    paths = draw_pictures(tmp_path, 3)
    for path in paths:
        assert Image.open(path).format == "JPEG" and Image.open(path).size == (224, 332)
        assert 5_000 < path.stat().st_size < 30_000
    assert len({path.read_bytes() for path in paths}) == 3


def test_a_catalogue_is_read_as_the_recipe_reads_it(tmp_path: Path) -> None:
    (tmp_path / "posters").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "posters" / "1.jpg")
    (tmp_path / "items.csv").write_text(
        "item_id,title,genres,director,actors,plot,image\n"
        "1,One,Drama|War,Ann,Bo,A plot.,posters/1.jpg\n"
        "2,Two,,,,Another.,posters/none.jpg\n"
        "3,Two,,,,Another.,\n"
    )
    items = recorded_items(tmp_path)
    texts = recorded_texts(items, 9)
    assert len(texts) == 2 and texts[0].startswith("One. Drama") and "Directed by Ann" in texts[0]
    assert recorded_texts(items, 1) == texts[:1]
    assert recorded_pictures(items, 9) == [tmp_path / "posters" / "1.jpg"]
    assert len(catalogue(texts=texts)) == 2


def test_the_clock_counts_a_method_that_calls_the_other_once() -> None:
    class Nested:
        def encode_prepared(self, inputs: int) -> int:
            return inputs + 1

        def encode(self, inputs: int) -> int:
            return 2 * self.encode_prepared(inputs)

    encoder = Nested()
    ticks = iter(range(100))
    clock = EncoderClock(encoder, now=lambda: float(next(ticks)))
    assert encoder.encode(3) == 8
    assert clock.seconds == 1
    assert encoder.encode_prepared(3) == 4
    assert clock.seconds == 2
