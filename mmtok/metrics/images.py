"""What a number about images means.

The judge sees raw pixels of real images only, so it shares nothing with any tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mmtok.errors import missing_extra

EXACT_DB = 100.0  # stands for "no error at all": finite, so that it can be written as JSON
ROWS_AT_ONCE = 512  # bounds the memory of a table of distances
FITTED_ROWS, FITTED_VALUES = (
    20_000,
    20_000_000,
)  # images, and values of all their pixels, that principal components are fitted to at most


def flat_pixels(images: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 images of one size -> (N, pixels) float64 in 0..1."""
    return (
        np.stack([np.asarray(image) for image in images])
        .reshape(len(images), -1)
        .astype(np.float64)
        / 255
    )


class ImageJudge:
    """Names what an image shows: a support vector machine on raw pixels."""

    def __init__(self, classifier):
        """classifier: anything with scikit-learn's `predict`, fitted on `flat_pixels`."""
        self._classifier = classifier

    def predict(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images of the size judged -> labels (N,), of the kind the judge was trained with."""
        return self._classifier.predict(flat_pixels(images)) if len(images) else np.array([])

    def accuracy(self, images: Sequence[np.ndarray], labels: Sequence) -> float:
        """Share of images that are named as their labels say."""
        return float(np.mean(self.predict(images) == np.asarray(labels)))


def train_image_judge(images: Sequence[np.ndarray], labels: Sequence) -> ImageJudge:
    """A judge from REAL training images only. Raises UserError without scikit-learn."""
    try:
        from sklearn.svm import SVC
    except ModuleNotFoundError:
        raise missing_extra("the image judge", "eval") from None
    return ImageJudge(SVC(C=10.0).fit(flat_pixels(images), np.asarray(labels)))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians fitted to features (N, D) and (M, D), in float64.

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)): Dowson and Landau 1982; Heusel et al. 2017, equation 6.
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
    return float(
        np.square(a.mean(0) - b.mean(0)).sum()
        + max(0.0, np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
    )


def _psd_root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def frechet_pixels(
    real_train: Sequence, a: Sequence, b: Sequence, n_components: int = 16, seed: int = 0
) -> float:
    """Frechet distance of two sets of images on the first principal components of real training
    pixels (in 0..1).

    Of many or large training images the components are those of a part, drawn by `seed`: at most
    20,000 images, and of more than a thousand values fewer, so that they take 160 MB.
    """
    most = min(FITTED_ROWS, max(n_components + 1, FITTED_VALUES // np.size(real_train[0])))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(real_train))[:most])
    train = flat_pixels([real_train[i] for i in chosen])
    centre = train.mean(0)
    components = np.linalg.svd(train - centre, full_matrices=False)[2][:n_components]
    return frechet(*((flat_pixels(images) - centre) @ components.T for images in (a, b)))


def copied(codes: np.ndarray, training_codes: Iterable[np.ndarray]) -> np.ndarray:
    """Which samples' codes all equal those of one training image: (N, T) or (N, T, C) against a
    stream of (T,) or (T, C) -> (N,) bool; or pictures, (N, Y, X) or (N, Y, X, 3), against pictures.

    The stream may be longer than memory: of it only copies are kept.
    """
    key = lambda row: np.ascontiguousarray(row, dtype=np.int64).tobytes()
    sampled = [key(row) for row in codes]
    found = set(sampled).intersection(map(key, training_codes))
    return np.array([row in found for row in sampled], bool)


def copy_share(codes: np.ndarray, training_codes: Iterable[np.ndarray]) -> float:
    """Share of samples that are copies, as `copied` says."""
    return float(copied(codes, training_codes).sum()) / max(1, len(codes))


def nearest(samples: Sequence[np.ndarray], training: Sequence[np.ndarray]) -> np.ndarray:
    """Index of the training image nearest to each sample, by Euclidean distance of the pixels:
    (N,).
    """
    known = flat_pixels(training)
    half_norms = np.square(known).sum(1) / 2
    rows = flat_pixels(samples) if len(samples) else np.zeros((0, known.shape[1]))
    found = [
        (rows[i : i + ROWS_AT_ONCE] @ known.T - half_norms).argmax(1)
        for i in range(0, len(rows), ROWS_AT_ONCE)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def psnr_db(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """Peak signal-to-noise ratio over all values of all images, peak 255; 100 dB when they are
    equal.
    """
    squares = np.concatenate(
        [np.square(np.subtract(x, y, dtype=np.float64)).ravel() for x, y in zip(a, b, strict=True)]
    )
    return (
        float(min(EXACT_DB, 10 * np.log10(255.0**2 / squares.mean())))
        if squares.any()
        else EXACT_DB
    )
