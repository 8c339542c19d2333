"""A linear probe: what a linear map of frozen vectors knows of labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch.nn import functional as F

from mmtok.metrics.classifier_test import auc

L2 = 1e-4  # of the weights, per training vector
N_STEPS = 100  # of L-BFGS, at most


def linear_probe(
    training: np.ndarray, labels: Sequence[str], test: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Log p (n, K) of each label for test vectors (n, D), and the K labels in order.

    Multinomial logistic regression (Alain and Bengio 2016), by L-BFGS in float64 on training
    vectors (N, D), standardised by them.
    """
    classes = sorted(set(labels))
    number = {label: k for k, label in enumerate(classes)}
    y = torch.tensor([number[label] for label in labels])
    mean = training.mean(0)
    spread = training.std(0) + 1e-6
    x = torch.from_numpy((training - mean) / spread).double()
    weight = torch.zeros(len(classes), x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=N_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + L2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    rows = torch.from_numpy((test - mean) / spread).double()
    with torch.no_grad():
        return F.linear(rows, weight, bias).log_softmax(1).numpy(), classes


def pairwise_aucs(
    log_p: np.ndarray, classes: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """For every pair of classes the AUC of their log odds, on the vectors of these two."""
    true = np.array(labels)
    found = {}
    for a, b in combinations(range(len(classes)), 2):
        odds = log_p[:, b] - log_p[:, a]
        first = odds[true == classes[a]]
        second = odds[true == classes[b]]
        if len(first) and len(second):
            found[f"{classes[a]} / {classes[b]}"] = auc(first, second)
    return found
