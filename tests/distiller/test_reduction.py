"""Reduced teachers against scikit-learn and against what reconstruction can reach."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA, TruncatedSVD

from mmkd.distiller.reduction import autoencoder, pca, spread_over_facets


def data(count: int = 60, width: int = 20, *, rank: int = 20) -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    basis = rng.normal(size=(rank, width)) * np.linspace(3, 1, rank)[:, None]
    return (rng.normal(size=(count, rank)) @ basis + 5).astype(np.float32)


def same_up_to_sign(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    signs = np.sign((a * b).sum(axis=0))
    np.testing.assert_allclose(a * signs, b, rtol=1e-3, atol=1e-3)


def test_pca_is_scikit_learns() -> None:
    x = data()
    same_up_to_sign(pca(x, 6), PCA(6, svd_solver="full").fit_transform(x.astype(np.float64)))


def test_uncentred_pca_is_the_truncated_svd() -> None:
    x = data()
    wanted = TruncatedSVD(6, algorithm="arpack").fit_transform(x.astype(np.float64))
    same_up_to_sign(pca(x, 6, center=False), wanted)


def test_the_sign_depends_on_the_direction_not_on_the_solver() -> None:
    rng = np.random.default_rng(0)
    along = rng.normal(size=(40, 1))
    x = (along @ np.array([[1.0, -3.0]])).astype(np.float32)  # the largest entry is the second's
    scores = pca(x, 1)[:, 0]
    assert np.corrcoef(scores, along[:, 0])[0, 1] == pytest.approx(-1)  # so that is positive
    np.testing.assert_array_equal(scores, pca(x.copy(), 1)[:, 0])


def test_chunks_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pca(data(), 4)
    monkeypatch.setattr("mmkd.distiller.reduction._CHUNK_ROWS", 7)
    np.testing.assert_allclose(pca(data(), 4), whole, atol=1e-4)


@pytest.mark.parametrize(("count", "width", "rank"), [(60, 20, 5), (4, 20, 20), (60, 8, 8)])
def test_rounding_noise_is_no_direction(count: int, width: int, rank: int) -> None:
    x = data(count, width, rank=rank)
    reduced = pca(x, 16)
    assert reduced.shape == (count, min(rank, count - 1, width))
    centred = x - x.mean(axis=0)
    np.testing.assert_allclose(reduced @ reduced.T, centred @ centred.T, rtol=1e-3, atol=1e-2)


def test_spread_gives_every_facet_its_share_and_keeps_inner_products() -> None:
    x = data(10, 5)
    laid_out = spread_over_facets(x, 16, 4)
    filled = (laid_out != 0).any(axis=0).reshape(4, 4).sum(axis=1)
    assert filled.tolist() == [2, 1, 1, 1]
    np.testing.assert_allclose(laid_out @ laid_out.T, x @ x.T, rtol=1e-5)
    np.testing.assert_array_equal(spread_over_facets(data(9, 16), 16, 4), data(9, 16))


def test_autoencoder_keeps_what_its_bottleneck_can() -> None:
    x = data(400, 12, rank=3)
    codes = autoencoder(x, 8, batch_size=50)
    np.testing.assert_array_equal(codes, autoencoder(x, 8, batch_size=50))
    design = np.c_[codes, np.ones(len(codes))]
    fitted = design @ np.linalg.lstsq(design, x, rcond=None)[0]
    assert ((x - fitted) ** 2).mean() < 0.1 * x.var(axis=0).mean()


def test_centring_moves_the_codes_and_nothing_else() -> None:
    x = data(50)
    raw, centred = autoencoder(x, 8, center=False, max_epochs=3), autoencoder(x, 8, max_epochs=3)
    assert raw.min() > 0 and raw.max() < 1
    np.testing.assert_allclose(raw - raw.mean(axis=0), centred, atol=1e-6)


def test_errors_name_the_remedy() -> None:
    broken = data()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 60 vectors hold NaN or infinity; re-encode"):
        pca(broken, 4)
    with pytest.raises(ValueError, match="at least two vectors"):
        autoencoder(data()[:1], 4)
    for reduce in (pca, autoencoder):
        with pytest.raises(ValueError, match="all 9 vectors are equal"):
            reduce(np.ones((9, 4), dtype=np.float32), 2)
    with pytest.raises(ValueError, match=r"3 independent directions.* use facets <= 3"):
        spread_over_facets(data(9, 3), 16, 8)
