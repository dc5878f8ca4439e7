"""Reduced teachers against scikit-learn and against what reconstruction can reach."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA, TruncatedSVD

from mmkd.distiller.reduction import FittedReduction, fit_autoencoder, fit_pca, spread_over_facets


def data(count: int = 60, width: int = 20, *, rank: int = 20) -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    basis = rng.normal(size=(rank, width)) * np.linspace(3, 1, rank)[:, None]
    return (rng.normal(size=(count, rank)) @ basis + 5).astype(np.float32)


def same_up_to_sign(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    signs = np.sign((a * b).sum(axis=0))
    np.testing.assert_allclose(a * signs, b, rtol=1e-3, atol=1e-3)


def test_pca_is_scikit_learns() -> None:
    x = data()
    same_up_to_sign(fit_pca(x, 6)(x), PCA(6, svd_solver="full").fit_transform(x.astype(np.float64)))


def test_uncentred_pca_is_the_truncated_svd() -> None:
    x = data()
    wanted = TruncatedSVD(6, algorithm="arpack").fit_transform(x.astype(np.float64))
    same_up_to_sign(fit_pca(x, 6, center=False)(x), wanted)


def test_the_sign_depends_on_the_direction_not_on_the_solver() -> None:
    rng = np.random.default_rng(0)
    along = rng.normal(size=(40, 1))
    x = (along @ np.array([[1.0, -3.0]])).astype(np.float32)  # the largest entry is the second's
    scores = fit_pca(x, 1)(x)[:, 0]
    assert np.corrcoef(scores, along[:, 0])[0, 1] == pytest.approx(-1)  # so that is positive
    np.testing.assert_array_equal(scores, fit_pca(x.copy(), 1)(x)[:, 0])


def test_chunks_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit_pca(data(), 4)(data())
    monkeypatch.setattr("mmkd.distiller.reduction._CHUNK_ROWS", 7)
    np.testing.assert_allclose(fit_pca(data(), 4)(data()), whole, atol=1e-4)


@pytest.mark.parametrize(("count", "width", "rank"), [(60, 20, 5), (4, 20, 20), (60, 8, 8)])
def test_rounding_noise_is_no_direction(count: int, width: int, rank: int) -> None:
    x = data(count, width, rank=rank)
    reduced = fit_pca(x, 16)(x)
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
    codes = fit_autoencoder(x, 8, batch_size=50)(x)
    np.testing.assert_array_equal(codes, fit_autoencoder(x, 8, batch_size=50)(x))
    design = np.c_[codes, np.ones(len(codes))]
    fitted = design @ np.linalg.lstsq(design, x, rcond=None)[0]
    assert ((x - fitted) ** 2).mean() < 0.1 * x.var(axis=0).mean()


def test_centring_moves_the_codes_and_nothing_else() -> None:
    x = data(50)
    raw = fit_autoencoder(x, 8, center=False, max_epochs=3)(x)
    centred = fit_autoencoder(x, 8, max_epochs=3)(x)
    assert raw.min() > 0 and raw.max() < 1
    np.testing.assert_allclose(raw - raw.mean(axis=0), centred, atol=1e-6)


def test_a_new_vector_is_projected_by_what_was_fitted() -> None:
    known, new = data()[:50], data()[50:]
    peer = PCA(6, svd_solver="full").fit(known.astype(np.float64))
    same_up_to_sign(fit_pca(known, 6)(new), peer.transform(new.astype(np.float64)))
    fitted = fit_autoencoder(known, 6, max_epochs=3)
    assert fitted.scale is not None and fitted.bias is not None and fitted.offset is not None
    spread = (known - known.mean(axis=0)).std(ddof=1)
    inner = (new - known.mean(axis=0)) / spread @ fitted.weight.T + fitted.bias
    np.testing.assert_allclose(fitted(new), 1 / (1 + np.exp(-inner)) - fitted.offset, atol=1e-5)
    np.testing.assert_allclose(fitted(known).mean(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("fit", [fit_pca, fit_autoencoder])
def test_what_was_fitted_is_the_same_after_a_file(fit: Callable[..., FittedReduction]) -> None:
    fitted = fit(data(), 5)
    again = FittedReduction.from_arrays({k: v.copy() for k, v in fitted.arrays().items()})
    np.testing.assert_array_equal(again(data()), fitted(data()))
    with pytest.raises(ValueError, match=r"width 7, wanted 20.*same card"):
        again(data(width=7))


def test_errors_name_the_remedy() -> None:
    broken = data()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 60 vectors hold NaN or infinity; re-encode"):
        fit_pca(broken, 4)
    with pytest.raises(ValueError, match="at least two vectors"):
        fit_autoencoder(data()[:1], 4)
    for fit in (fit_pca, fit_autoencoder):
        with pytest.raises(ValueError, match="all 9 vectors are equal"):
            fit(np.ones((9, 4), dtype=np.float32), 2)
    with pytest.raises(ValueError, match=r"3 independent directions.* use facets <= 3"):
        spread_over_facets(data(9, 3), 16, 8)
    few = data(3, 2)  # three items have no more than two directions
    np.testing.assert_array_equal(spread_over_facets(few, 16, 8)[:, [0, 2]], few)
