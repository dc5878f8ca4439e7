"""Text vectors without any model: hashed n-grams, tf-idf, truncated SVD.

From: texts, after a fit on all texts of the catalogue. To: ``[n, components]`` float32. Source:
latent semantic analysis, Deerwester et al., JASIS 1990; scikit-learn does the work.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mmkd.encoders.base import checked_texts, encode_in_batches, unit_rows
from mmkd.errors import EncoderError, at_least, refuse, within

_SEED = 0  # of the SVD's random projection


class HashedTextEncoder:
    """Latent semantic analysis of hashed word and character n-grams.

    Needs no download, so it serves tests, demos and offline machines; it knows spelling and
    co-occurrence, not meaning. It is a `FittedEncoder`: the same text gets another vector in
    another catalogue.

    A catalogue with fewer texts than ``components`` gives a lower rank; the vectors are then padded
    with zeros to the same width. A text without any known n-gram, such as an empty one, is the zero
    vector.

    Args:
        components: Width of the vectors.
        word_ngrams: Longest word n-gram; 0 leaves words out.
        character_ngrams: Longest character n-gram within a word, from 3 up; 0 leaves them out.
        hash_bits: n-grams are hashed to ``2 ** hash_bits`` columns of each sort.
        max_length_characters: Longer texts are cut, so that one broken record cannot take the
            memory of a whole catalogue.

    Raises:
        ValueError: A setting is out of range.
    """

    version: ClassVar[int] = 1
    fitted: ClassVar[bool] = True

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with these options, a line each."""
        sizes = {n: options[n] for n in ("components", "max_length_characters") if n in options}
        words, characters = options.get("word_ngrams"), options.get("character_ngrams")
        problems = at_least(1, **sizes) + at_least(0, "0 leaves words out", word_ngrams=words)
        if characters in (1, 2):
            problems.append(f"character_ngrams: got {characters}, wanted 3 or more; 0 for none")
        problems += at_least(0, "0 leaves them out", character_ngrams=characters)
        problems += within(1, 24, "15 suits most catalogues", hash_bits=options.get("hash_bits"))
        if words == characters == 0:
            problems.append("word_ngrams and character_ngrams are both 0; set one of them")
        return problems

    def __init__(
        self,
        *,
        components: int = 256,
        word_ngrams: int = 2,
        character_ngrams: int = 5,
        hash_bits: int = 15,
        max_length_characters: int = 20_000,
    ) -> None:
        refuse(self.check(word_ngrams=word_ngrams, character_ngrams=character_ngrams))
        sizes = {"components": components, "max_length_characters": max_length_characters}
        refuse(self.check(hash_bits=hash_bits, **sizes))
        self.modality = "text"
        self.dim = components
        self._max_length_characters = max_length_characters
        self._counts = _ngram_counts(word_ngrams, character_ngrams, 2**hash_bits)
        self._weights: Any = None
        self._projection: NDArray[np.float64] | None = None  # [columns, rank]

    def fit(self, inputs: Sequence[str]) -> Self:
        """Learns the n-gram weights and the projection from all texts of a catalogue.

        Args:
            inputs: The catalogue's texts.

        Returns:
            Itself, ready to encode.

        Raises:
            EncoderError: There is no text, or no text with an n-gram.
        """
        from sklearn.feature_extraction.text import TfidfTransformer

        counts = self._count(checked_texts(inputs, batch_size=1))
        if counts.nnz == 0:
            raise EncoderError(
                f"none of the {counts.shape[0]} texts has a word to fit on; give the items text"
            )
        self._weights = TfidfTransformer(sublinear_tf=True).fit(counts)
        self._projection = _principal_directions(self._weights.transform(counts), self.dim)
        return self

    def encode(self, inputs: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Encodes n texts into ``[n, dim]`` float32 of length 1 or 0; see `Encoder`.

        Raises:
            EncoderError: `fit` was not called, or an input is no text.
        """
        texts = checked_texts(inputs, batch_size=batch_size)
        if self._projection is None:
            raise EncoderError("hashed_text is not fitted; call fit(texts of the catalogue) first")
        return encode_in_batches(texts, self._project, dim=self.dim, batch_size=batch_size)

    def _project(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``[b, dim]`` of length 1 or 0."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        found = self._weights.transform(self._count(texts)) @ self._projection  # [b, rank]
        vectors[:, : found.shape[1]] = found
        return unit_rows(vectors)

    def _count(self, texts: Sequence[str]) -> Any:
        """Sparse ``[n, columns]`` counts of hashed n-grams."""
        if not texts:
            raise EncoderError("no texts to fit on; give the items text")
        return self._counts.transform([text[: self._max_length_characters] for text in texts])


def _ngram_counts(word_ngrams: int, character_ngrams: int, columns: int) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.pipeline import FeatureUnion

    def hashed(analyzer: str, shortest: int, longest: int) -> Any:
        return HashingVectorizer(
            analyzer=analyzer,
            ngram_range=(shortest, longest),
            n_features=columns,
            # plain counts: tf-idf needs them non-negative and not yet normalised
            alternate_sign=False,
            norm=None,
            dtype=np.float32,
            strip_accents="unicode",
            # single letters and digits count too: "Vitamin C", "Part 2", and most CJK text
            token_pattern=r"(?u)\b\w+\b",
        )

    parts = []
    if word_ngrams:
        parts.append(("words", hashed("word", 1, word_ngrams)))
    if character_ngrams:
        parts.append(("characters", hashed("char_wb", 3, character_ngrams)))
    return FeatureUnion(parts)


def _principal_directions(weighted: Any, components: int) -> NDArray[np.float64]:
    """Right singular vectors of sparse ``[n, columns]``, as ``[columns, rank]``."""
    from sklearn.decomposition import TruncatedSVD

    rank = min(components, weighted.shape[0])
    svd = TruncatedSVD(rank, algorithm="randomized", n_iter=5, random_state=_SEED)
    with np.errstate(invalid="ignore"):  # of its share of variance, which one text has none of
        svd.fit(weighted)
    values = svd.singular_values_
    # directions beyond the rank of the texts (duplicates, few texts) are noise: drop them
    real = values > values[0] * 1e-6
    directions: NDArray[np.float64] = svd.components_[real].T
    return directions
