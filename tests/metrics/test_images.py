"""Distances against their exact values; the judge on real held-out scans."""

import numpy as np
import pytest

from mmtok.metrics import images as room
from mmtok.metrics.images import (
    copied,
    copy_share,
    frechet,
    frechet_pixels,
    nearest,
    psnr_db,
    train_image_judge,
)


def standardised(n: int, d: int) -> np.ndarray:
    """Features whose sample mean is 0 and whose sample covariance is the identity, to rounding."""
    x = np.random.default_rng(0).normal(size=(n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_frechet_of_points_is_the_distance_of_means():
    assert frechet(np.full((50, 2), 2.0), np.zeros((40, 2))) == pytest.approx(8.0, abs=1e-12)
    assert frechet(np.ones((50, 2)), np.zeros((40, 2))) == pytest.approx(2.0, abs=1e-12)


def test_frechet_of_commuting_gaussians():
    x = standardised(500, 3)
    s1 = np.array([1.0, 2.0, 0.5])
    s2 = np.array([3.0, 2.0, 0.0])
    shift = np.array([0.3, -1.0, 2.0])
    expected = np.square(shift).sum() + np.square(s1 - s2).sum()
    assert frechet(x * s1, x * s2 + shift) == pytest.approx(expected, rel=1e-9)


def test_frechet_laws():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(300, 4))
    b = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert frechet(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)
    assert frechet(a @ turn, b @ turn) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(a * 3, b * 3) == pytest.approx(9 * frechet(a, b), rel=1e-9)


def test_frechet_against_the_matrix_square_root():
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    rng = np.random.default_rng(2)
    a = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 3))
    b = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 3)) + 1
    cov_a = np.cov(a, rowvar=False)
    cov_b = np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(
        cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real
    )
    assert frechet(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_a_set_with_itself(rng):
    x = rng.normal(size=(1000, 64))
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [1000, 5000, 10_000])
def test_frechet_of_two_samples_of_one_gaussian(rng, n):
    """Its bias at N samples: E = (2 d + d (d + 1) / 2) / N for N(0, I_d).

    The mean of eight pairs, as one alone varies by 3 %.
    """
    d = 64
    bias = (2 * d + d * (d + 1) / 2) / n
    distances = [frechet(rng.normal(size=(n, d)), rng.normal(size=(n, d))) for _ in range(8)]
    assert np.mean(distances) == pytest.approx(bias, rel=0.05)


def test_frechet_refuses_what_has_no_covariance():
    with pytest.raises(ValueError, match="N, M >= 2"):
        frechet(np.zeros((1, 3)), np.zeros((5, 3)))


def test_frechet_pixels_of_shifted_brightness():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (300, 4, 4), dtype=np.uint8)
    assert frechet_pixels(images, images, images) == pytest.approx(0.0, abs=1e-9)
    assert frechet_pixels(images, images, images + 51) == pytest.approx(
        16 * 0.2**2, rel=1e-9
    )  # all 16 components: the pixels turned
    assert frechet_pixels(images, images, images + 51, n_components=3) < 16 * 0.2**2


class Watched(list):
    """A list that knows which of its items were read."""

    def __getitem__(self, i):
        self.__dict__.setdefault("read", set()).add(int(i))
        return super().__getitem__(i)

    def __iter__(self):
        return (self[i] for i in range(len(self)))


@pytest.mark.parametrize("cap, value", [("FITTED_ROWS", 50), ("FITTED_VALUES", 50 * 16)])
def test_components_are_fitted_to_a_fair_part_of_many_images(monkeypatch, cap, value):
    """The images come sorted: the first half differs from image to image in its first row only, the
    second in its last.
    """
    rng = np.random.default_rng(0)
    images = np.zeros((400, 4, 4), np.uint8)
    images[:200, 0], images[200:, 3] = rng.integers(0, 200, (2, 200, 4))
    monkeypatch.setattr(room, cap, value)
    many = Watched(images)
    brighter = images[200:].copy()
    brighter[:, 3] += 51
    assert frechet_pixels(many, images[200:], brighter, n_components=8) == pytest.approx(
        4 * 0.2**2, rel=1e-9
    )
    assert len(many.read) <= 51


def test_copies_are_found_in_a_stream():
    samples = np.array([[0, 1], [2, 3], [4, 5], [2, 3]])
    assert copied(
        samples, iter([np.array([2, 3]), np.array([9, 9]), np.array([0, 1], np.int32)])
    ).tolist() == [True, True, False, True]
    assert copied(samples, iter(())).tolist() == [False] * 4


def test_copy_share():
    training = np.arange(12).reshape(3, 4)
    samples = np.array([[0, 1, 2, 3], [0, 1, 2, 4], [8, 9, 10, 11], [3, 2, 1, 0]])
    assert copy_share(samples, training) == 0.5
    assert copy_share(samples[:, :, None].astype(np.int32), training[:, :, None]) == 0.5
    assert copy_share(training, training) == 1.0
    assert copy_share(samples[:0], training) == 0.0


def test_nearest():
    training = np.random.default_rng(0).integers(0, 256, (30, 5, 5), dtype=np.uint8)
    order = np.array([3, 29, 0, 3])
    nudged = np.clip(training[order].astype(int) + 2, 0, 255).astype(np.uint8)
    assert np.array_equal(nearest(nudged, training), order)
    distances = np.square(training[:, None].astype(float) - training[None]).sum((2, 3))
    np.fill_diagonal(distances, np.inf)
    assert nearest(training[:1], training[1:])[0] == distances[0, 1:].argmin()


def test_psnr():
    a = np.zeros((2, 3, 3), np.uint8)
    assert psnr_db(a, a + 255) == 0.0
    assert psnr_db(a, a + 51) == pytest.approx(20 * np.log10(5))
    assert psnr_db(a, a) == 100.0


def test_judge_on_real_held_out_scans():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    names = np.array([f"d{label}" for label in digits.target])
    judge = train_image_judge(images[order[:1438]], names[order[:1438]])
    assert judge.accuracy(images[order[1438:]], names[order[1438:]]) >= 0.97
    assert judge.predict(images[order[1438:1441]]).tolist() == names[order[1438:1441]].tolist()
    assert len(judge.predict([])) == 0
