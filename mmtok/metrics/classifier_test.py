"""Can a classifier tell two sets of points apart? Trained on one half, tested on the other.

Letters: n and m points of the two sets that are held out, d coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmtok.errors import UserError, missing_extra

CLASSIFIERS = ("boosted", "quadratic", "linear")
RIDGE = 1e-9  # of the covariance's mean diagonal, so that constant coordinates can be inverted
N_PERMUTATIONS = 1_000
BOOSTED_ROUNDS = 100

# (points (N, d), whether each is of the second set (N,)) -> a score of points, larger for the
# second set, that is 0 where both are as likely
Classifier = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class ClassifierTest:
    """How well held-out points of two sets are told apart.

    Attributes:
        auc: Area under the ROC curve: how often a point of the second set has the larger score than
            one of the first; ties count half.
        auc_sd: Its standard deviation if both sets are alike, sqrt((n + m + 1) / (12 n m)).
        accuracy: Share of points that are named rightly, the mean of both sets'.
        accuracy_sd: Its standard deviation if both sets are alike, of a classifier that names half
            the points each: sqrt((1 / n + 1 / m) / 16), for n = m 1 / sqrt(4 (n + m)).
        p_value: How often labels at random give an AUC as large, or larger.
        n: Held-out points of the first set.
        m: Of the second.
        null: AUCs of labels at random.
    """

    auc: float
    auc_sd: float
    accuracy: float
    accuracy_sd: float
    p_value: float
    n: int
    m: int
    null: np.ndarray


def classifier_test(
    x: np.ndarray,
    y: np.ndarray,
    classifier: str | Classifier = "boosted",
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
) -> ClassifierTest:
    """Train a classifier on half of x (n, d) and y (m, d), and test it on the other halves.

    The classifier is fixed while the labels of held-out points are permuted, so the p-value is
    exact. Source: Lopez-Paz and Oquab 2017; Mann and Whitney 1947 for the spread of the AUC.

    Args:
        x: The first set.
        y: The second set.
        classifier: "boosted" trees (scikit-learn), "quadratic" or "linear" discriminants, or a
            function of the type `Classifier`.
        seed: Of the split, the classifier and the permutations.
        n_permutations: Of the null.

    Raises UserError for less than 4 points in a set, an unknown classifier, or no scikit-learn.
    """
    if min(len(x), len(y)) < 4:
        raise UserError(f"classifier test: sets of {len(x)} and {len(y)}; each needs 4 points")
    rng = np.random.default_rng(seed)
    x = x[rng.permutation(len(x))]
    y = y[rng.permutation(len(y))]
    half_x = len(x) // 2
    half_y = len(y) // 2
    train = np.concatenate((x[:half_x], y[:half_y]))
    labels = np.repeat([False, True], [half_x, half_y])
    score = _classifier(classifier, seed)(train, labels)
    a = score(x[half_x:])
    b = score(y[half_y:])
    n = len(a)
    m = len(b)
    seen, null = _aucs(a, b, rng, n_permutations)
    as_large = np.count_nonzero(null >= seen * (1 - 1e-12))
    return ClassifierTest(
        auc=seen,
        auc_sd=float(np.sqrt((n + m + 1) / (12 * n * m))),
        accuracy=float(_named(-a).mean() + _named(b).mean()) / 2,
        accuracy_sd=float(np.sqrt((1 / n + 1 / m) / 16)),
        p_value=(1 + as_large) / (1 + n_permutations),
        n=n,
        m=m,
        null=null,
    )


def _named(score: np.ndarray) -> np.ndarray:
    """1 where a score is above 0, one half where it is 0."""
    return (np.sign(score) + 1) / 2


def auc(a: np.ndarray, b: np.ndarray) -> float:
    """How often a score of b (m,) is above one of a (n,); ties count half."""
    return _aucs(np.asarray(a, float), np.asarray(b, float), np.random.default_rng(0), 0)[0]


def _aucs(
    a: np.ndarray, b: np.ndarray, rng: np.random.Generator, n_permutations: int
) -> tuple[float, np.ndarray]:
    """The AUC of scores a (n,) and b (m,), and those of permuted labels."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate((a, b)))
    n = len(a)
    m = len(b)
    lowest = m * (m + 1) / 2
    seen = (ranks[n:].sum() - lowest) / (n * m)
    sums = np.array([rng.permutation(ranks)[:m].sum() for _ in range(n_permutations)])
    return float(seen), (sums - lowest) / (n * m)


# ---- classifiers


def _classifier(name: str | Classifier, seed: int) -> Classifier:
    if callable(name):
        return name
    if name == "boosted":
        return _boosted(seed)
    if name == "quadratic":
        return _quadratic
    if name == "linear":
        return _linear
    raise UserError(f"classifier {name!r} is unknown; one of {', '.join(CLASSIFIERS)}")


def _boosted(seed: int) -> Classifier:
    """Gradient-boosted trees.

    Raises UserError without scikit-learn.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ModuleNotFoundError:
        raise missing_extra("the boosted classifier", "eval") from None
    trees = HistGradientBoostingClassifier(
        max_iter=BOOSTED_ROUNDS, early_stopping=False, random_state=seed
    )

    def fit(points: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        # scikit-learn reports through warnings what a user of this test cannot act on
        return trees.fit(points, labels).decision_function

    return fit


def _linear(points: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fisher's discriminant: the optimum for two Gaussians of one covariance."""
    a = points[~labels]
    b = points[labels]
    centre = (a.mean(0) + b.mean(0)) / 2
    spread = np.atleast_2d(np.cov(a, rowvar=False) + np.cov(b, rowvar=False)) / 2
    spread = spread + (RIDGE * np.trace(spread) / len(spread) + 1e-300) * np.eye(len(spread))
    weights = np.linalg.solve(spread, b.mean(0) - a.mean(0))

    def score(rows: np.ndarray) -> np.ndarray:
        return (rows - centre) @ weights

    return score


def _quadratic(points: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fisher's discriminant over the coordinates, their squares and products."""
    mean = points.mean(0)
    sd = points.std(0)
    sd[sd == 0] = 1.0
    rows, columns = np.triu_indices(points.shape[1])

    def expanded(raw: np.ndarray) -> np.ndarray:
        scaled = (raw - mean) / sd
        return np.concatenate((scaled, scaled[:, rows] * scaled[:, columns]), axis=1)

    score = _linear(expanded(points), labels)

    def score_of(raw: np.ndarray) -> np.ndarray:
        return score(expanded(raw))

    return score_of
