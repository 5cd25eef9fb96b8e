import numpy as np
import pytest

from adg.geometry import (
    anisotropy,
    centred_grams,
    dispersion,
    divergence_score,
    first_answers,
    num_answers,
)


def test_two_orthogonal_answers_by_hand():
    grams = centred_grams(np.array([[3.0, 0.0], [0.0, 0.5]]))  # lengths do not matter
    assert np.allclose(grams, [[0.5, -0.5], [-0.5, 0.5]])
    assert dispersion(grams) == pytest.approx(0.5)  # 1 - |mean|^2 = 1 - 1/2
    assert anisotropy(grams) == 0.0  # two points lie on a line
    stored = centred_grams(np.random.default_rng(0).normal(size=(20, 2, 32))).astype(np.float32)
    assert (anisotropy(stored) == 0).all()  # and no rounding of it ranks one record above another


def test_answers_along_axes_spread_in_all_directions():
    grams = centred_grams(np.eye(5))
    assert dispersion(grams) == pytest.approx(1 - 1 / 5)
    assert anisotropy(grams) == pytest.approx(1 - 1 / 4)  # the upper bound for K = 5


def test_same_as_a_record_by_record_computation_from_the_covariance():
    rng = np.random.default_rng(0)
    clouds = rng.normal(size=(20, 5, 32)) + 3 * rng.normal(size=(20, 1, 32))
    grams = centred_grams(clouds)
    for cloud, gram in zip(clouds, grams, strict=True):
        units = cloud / np.linalg.norm(cloud, axis=1, keepdims=True)
        spectrum = np.linalg.eigvalsh(np.cov(units.T, bias=True))  # H x H, not K x K
        assert dispersion(gram) == pytest.approx(spectrum.sum(), abs=1e-12)
        assert anisotropy(gram) == pytest.approx(1 - spectrum.max() / spectrum.sum(), abs=1e-10)


def test_near_identical_answers_keep_their_shape_in_float32():
    rng = np.random.default_rng(1)
    base = rng.normal(size=64)
    cloud = base + 1e-4 * rng.normal(size=(5, 64))
    units = cloud / np.linalg.norm(cloud, axis=1, keepdims=True)
    squared = np.linalg.svd(units - units.mean(0), compute_uv=False) ** 2
    stored = centred_grams(cloud).astype(np.float32)
    assert anisotropy(stored) == pytest.approx(1 - squared.max() / squared.sum(), abs=1e-6)


def test_the_first_answers_are_as_if_no_more_had_been_drawn():
    clouds = np.random.default_rng(3).normal(size=(3, 10, 16)) + 5
    clouds[1, 1], clouds[2, :3] = np.nan, np.nan
    stored = centred_grams(clouds).astype(np.float32)
    for count in (2, 3, 7, 10):
        found, expected = first_answers(stored, count), centred_grams(clouds[:, :count])
        assert found.shape == (3, count, count)
        np.testing.assert_allclose(found, expected, atol=1e-7)
        np.testing.assert_allclose(anisotropy(found), anisotropy(expected), atol=1e-6)


def test_identical_answers_have_neither_spread_nor_shape():
    grams = centred_grams(np.tile(np.arange(1.0, 9.0), (5, 1)))
    assert dispersion(grams) == pytest.approx(0.0, abs=1e-15)
    assert anisotropy(grams) == 0.0


def test_missing_answers_are_left_out_and_zero_rows_stay():
    rng = np.random.default_rng(2)
    cloud = rng.normal(size=(5, 16))
    with_gap = cloud.copy()
    with_gap[2] = np.nan
    gram, others = centred_grams(with_gap), centred_grams(np.delete(cloud, 2, axis=0))
    assert np.isnan(gram[2]).all() and np.isnan(gram[:, 2]).all()
    assert num_answers(gram) == 4
    assert dispersion(gram) == pytest.approx(dispersion(others))
    assert anisotropy(gram) == pytest.approx(anisotropy(others))
    cloud[1] = 0.0
    assert np.isfinite(centred_grams(cloud)).all()


def test_fewer_than_two_answers_have_no_score():
    cloud = np.full((3, 8), np.nan)
    cloud[0] = 1.0
    assert np.isnan(dispersion(centred_grams(cloud))) and np.isnan(anisotropy(centred_grams(cloud)))


def test_score_weights_the_two_terms():
    assert divergence_score(0.5, 0.25) == pytest.approx(0.6 * 0.5 + 0.4 * 0.25)
    assert divergence_score(0.5, 0.25, 1.0) == 0.25
