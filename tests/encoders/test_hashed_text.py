"""Hashed text: latent semantic analysis of the catalogue, deterministic at every size."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from mmkd.encoders import FittedEncoder
from mmkd.encoders.hashed_text import HashedTextEncoder
from mmkd.errors import EncoderError


def test_full_rank_keeps_the_cosines_of_tf_idf(catalogue: list[str]) -> None:
    # with as many components as texts the projection is a rotation: angles are those of tf-idf
    encoder = HashedTextEncoder(word_ngrams=1, character_ngrams=0, hash_bits=18).fit(catalogue)
    found = encoder.encode(catalogue)
    counts = HashingVectorizer(
        n_features=2**18,
        norm=None,
        alternate_sign=False,
        strip_accents="unicode",
        token_pattern=r"\b\w+\b",
    ).transform(catalogue)
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts).toarray()
    np.testing.assert_allclose(found @ found.T, weighted @ weighted.T, atol=1e-4)


def test_related_texts_are_closer() -> None:
    texts = [
        "a toy cowboy and a toy spaceman",
        "toys and a cowboy doll",
        "a detective hunts a killer",
        "two detectives and one killer",
        "an alien in a space ship",
        "the ship meets an alien",
    ]
    vectors = HashedTextEncoder(components=32).fit(texts).encode(texts)
    nearest = (vectors @ vectors.T - 2 * np.eye(6)).argmax(axis=1)
    assert nearest.tolist() == [1, 0, 3, 2, 5, 4]


def test_few_texts_are_padded_with_zeros(catalogue: list[str]) -> None:
    vectors = HashedTextEncoder(components=50).fit(catalogue[:2]).encode(catalogue)
    assert vectors.shape == (len(catalogue), 50)
    assert not vectors[:, 2:].any()
    lonely = HashedTextEncoder(components=5).fit(["one text"]).encode(["one text"])
    np.testing.assert_allclose(np.abs(lonely), [[1, 0, 0, 0, 0]], atol=1e-6)


def test_duplicates_give_no_noise_directions() -> None:
    texts = ["same text"] * 20 + ["another one"]
    vectors = HashedTextEncoder(components=16).fit(texts).encode(texts)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[:20], np.broadcast_to(vectors[0], (20, 16)), atol=1e-6)
    assert np.count_nonzero(np.abs(vectors).max(axis=0) > 1e-6) == 2


def test_two_fits_give_the_same_bits(catalogue: list[str]) -> None:
    texts = [f"{text} {number}" for text in catalogue for number in range(40)]
    first = HashedTextEncoder(components=20).fit(texts).encode(texts)
    second = HashedTextEncoder(components=20).fit(texts).encode(texts)
    np.testing.assert_array_equal(first, second)


def test_vectors_depend_on_the_catalogue(catalogue: list[str]) -> None:
    encoder = HashedTextEncoder(components=4)
    assert isinstance(encoder, FittedEncoder)
    small = encoder.fit(catalogue[:4]).encode(catalogue[:1])
    large = encoder.fit(catalogue).encode(catalogue[:1])
    assert np.abs(small - large).max() > 0.01


def test_text_without_words_is_the_zero_vector(catalogue: list[str]) -> None:
    encoder = HashedTextEncoder(components=4).fit(catalogue)
    assert not encoder.encode(["", "  ", "\n"]).any()


def test_typo_and_accent_stay_close(catalogue: list[str]) -> None:
    encoder = HashedTextEncoder(components=8).fit(catalogue)
    vectors = encoder.encode(["detective murder", "detectve murdér", "alien ship"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_encoding_before_fitting_is_an_error() -> None:
    with pytest.raises(EncoderError, match="call fit"):
        HashedTextEncoder().encode(["text"])


@pytest.mark.parametrize("texts", [[], ["", " "]])
def test_fitting_on_nothing_is_an_error(texts: list[str]) -> None:
    with pytest.raises(EncoderError, match="give the items text"):
        HashedTextEncoder().fit(texts)


@pytest.mark.parametrize(
    "settings",
    [
        {"components": 0},
        {"hash_bits": 40},
        {"word_ngrams": -1},
        {"character_ngrams": 2},
        {"word_ngrams": 0, "character_ngrams": 0},
        {"max_length_characters": 0},
    ],
)
def test_settings_out_of_range_are_errors(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="|".join(settings)):
        HashedTextEncoder(**settings)
