"""Metrics of images: a classifier, Fréchet distances, copies, nearest images, PSNR.

Images are uint8, (Y, X) or (Y, X, 3). The classifier is trained on raw pixels of real images only,
so it shares nothing with any tokenizer. Torch is imported only where it is a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmtok.core import units
from mmtok.errors import missing_extra

BATCH_ROWS = 512  # bounds the memory of a table of distances
FITTED_ROWS = 20_000  # images that principal components are fitted to at most
FITTED_VALUES = 20_000_000  # values of all their pixels, at most
NETWORK_SIDE = 16  # pictures whose shorter side has so many pixels are judged by a network


def flat_pixels(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images of one size as rows (N, values) in float64, from 0 to 1."""
    stacked = np.stack([np.asarray(image) for image in images])
    return stacked.reshape(len(images), -1).astype(np.float64) / 255


def of_one_size(images: Sequence[np.ndarray], height: int, width: int) -> list[np.ndarray]:
    """Images scaled to (height, width), where they differ: what compares pixels needs that."""
    found = []
    for image in images:
        if np.shape(image)[:2] != (height, width):
            scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
            image = np.array(scaled)
        found.append(image)
    return found


class ImageJudge:
    """A classifier of images. Made by `train_image_judge`.

    Args:
        classifier: Anything with scikit-learn's `predict` and `decision_function`.
        features: What it reads of images. Default: `flat_pixels`.
    """

    def __init__(
        self, classifier: Any, features: Callable[[Sequence[np.ndarray]], Any] = flat_pixels
    ):
        self._classifier = classifier
        self._features = features

    def predict(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Labels (N,) of images, which have the size of the training images."""
        if not len(images):
            return np.array([])
        return self._classifier.predict(self._features(images))

    def decision_values(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """What it decides by (N, classes), as features for a Fréchet distance."""
        return self._classifier.decision_function(self._features(images))

    def right(self, images: Sequence[np.ndarray], labels: Sequence) -> np.ndarray:
        """Whether the predicted label is the given one, of each image (N,)."""
        return self.predict(images) == np.asarray(labels)

    def accuracy(self, images: Sequence[np.ndarray], labels: Sequence) -> float:
        """Share of images whose predicted label is the given one."""
        return float(np.mean(self.right(images, labels)))


def train_image_judge(images: Sequence[np.ndarray], labels: Sequence, seed: int = 0) -> ImageJudge:
    """A classifier of real training images, by its raw pixels.

    A support vector machine where a side is shorter than 16 pixels. A small convolutional network
    where both are longer: of 28 x 28 handwritten digits it is right more often (docs/figures.md).

    Raises UserError without scikit-learn, where that is needed.
    """
    if min(np.shape(images[0])[:2]) < NETWORK_SIDE:
        return train_pixel_judge(images, labels)
    from mmtok.metrics.image_judge import train_image_network

    return ImageJudge(train_image_network(images, labels, seed), list)


def train_pixel_judge(images: Sequence[np.ndarray], labels: Sequence) -> ImageJudge:
    """A support vector machine (RBF kernel, C = 10) on the raw pixels of real training images.

    Raises UserError without scikit-learn.
    """
    try:
        from sklearn.svm import SVC
    except ModuleNotFoundError:
        raise missing_extra("the image judge", "eval") from None
    return ImageJudge(SVC(C=10.0).fit(flat_pixels(images), np.asarray(labels)))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians fitted to features (N, D) and (M, D).

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in float64, in the features' unit squared.
    Source: Dowson and Landau 1982; Heusel et al. 2017, equation 6.

    Raises ValueError for fewer than two rows or different D.
    """
    a, b = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in (a, b))
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"frechet: needs (N, D) and (M, D) with N, M >= 2, got {a.shape} and {b.shape}"
        )
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = _psd_root(cov_a)
    eigenvalues = np.linalg.eigvalsh(root @ cov_b @ root)  # of S_a S_b: similar, but symmetric
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    of_means = np.square(a.mean(0) - b.mean(0)).sum()
    of_covariances = max(0.0, np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
    return float(of_means + of_covariances)


def _psd_root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def principal_components(
    real_train: Sequence, *sets: Sequence, n_components: int = 16, seed: int = 0
) -> list[np.ndarray]:
    """Sets of images as points (N, D) on principal components of real training pixels.

    Pixels run from 0 to 1. The components are fitted to a random part of many or large training
    images: at most 20,000, and fewer of more than a thousand values, so that they take 160 MB.
    """
    n_max = min(FITTED_ROWS, max(n_components + 1, FITTED_VALUES // np.size(real_train[0])))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(real_train))[:n_max])
    train = flat_pixels([real_train[i] for i in chosen])
    centre = train.mean(0)
    components = np.linalg.svd(train - centre, full_matrices=False)[2][:n_components]
    return [(flat_pixels(images) - centre) @ components.T for images in sets]


def frechet_pixels(
    real_train: Sequence, a: Sequence, b: Sequence, n_components: int = 16, seed: int = 0
) -> float:
    """Fréchet distance of two sets of images on `principal_components`."""
    points = principal_components(real_train, a, b, n_components=n_components, seed=seed)
    return frechet(*points)


def copied(
    codes: Sequence[np.ndarray] | np.ndarray, training_codes: Iterable[np.ndarray]
) -> np.ndarray:
    """Which samples equal a training example in every code, or in every pixel: (N,) bool.

    Args:
        codes: N of (T,) or (T, C), or images (Y, X) or (Y, X, 3).
        training_codes: A stream of (T,), (T, C), (Y, X) or (Y, X, 3). It may be larger than memory:
            only copies are kept.
    """
    sampled = [_integer_bytes(row) for row in codes]
    found = set(sampled).intersection(map(_integer_bytes, training_codes))
    return np.array([row in found for row in sampled], bool)


def _integer_bytes(row: np.ndarray) -> bytes:
    """The bytes of integers, whatever their type."""
    return np.ascontiguousarray(row, dtype=np.int64).tobytes()


def copy_share(
    codes: Sequence[np.ndarray] | np.ndarray, training_codes: Iterable[np.ndarray]
) -> float:
    """Share of samples that are copies; arguments as `copied` has them."""
    return float(copied(codes, training_codes).sum()) / max(1, len(codes))


def nearest(samples: Sequence[np.ndarray], training: Sequence[np.ndarray]) -> np.ndarray:
    """Index (N,) of the training image nearest to each sample, by Euclidean distance of pixels."""
    if not len(samples):
        return np.zeros(0, np.int64)
    rows = flat_pixels(samples)
    known = flat_pixels(training)
    # |x - y|^2 = |x|^2 - 2 (x y - |y|^2 / 2), of which |x|^2 is the same for all y
    half_norms = np.square(known).sum(1) / 2
    found = []
    for start in range(0, len(rows), BATCH_ROWS):
        closeness = rows[start : start + BATCH_ROWS] @ known.T - half_norms
        found.append(closeness.argmax(1))
    return np.concatenate(found)


def psnr_db(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """Peak signal-to-noise ratio in dB over all values of all images, as of `units.psnr_db`."""
    errors = [np.subtract(x, y, dtype=np.float64) for x, y in zip(a, b, strict=True)]
    squares = np.concatenate([np.square(error).ravel() for error in errors])
    return units.psnr_db(float(squares.mean()))
