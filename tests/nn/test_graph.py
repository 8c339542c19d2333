"""Heat kernels of a graph are exact, and blind to the choice of its eigenvectors."""

import numpy as np
import torch
from scipy.linalg import expm

from mmtok.nn.graph import TIMES, GraphBias, heat_kernels


def laplacian(n, edges):
    weights = np.zeros((n, n))
    for i, j in edges:
        weights[i, j] = weights[j, i] = 1
    return np.diag(weights.sum(1)) - weights


def rows(matrix, columns=8):
    """U (P, columns), with columns of zeros behind those that there are."""
    eigenvalues, vectors = np.linalg.eigh(matrix)
    u = np.zeros((len(matrix), columns))
    u[:, : len(matrix) - 1] = vectors[:, 1:] * np.sqrt(eigenvalues[1:].clip(min=0))
    return torch.from_numpy(u)


RING = laplacian(6, [(i, (i + 1) % 6) for i in range(6)])  # eigenvalues 1, 1, 3, 3, 4
ALL = torch.ones(1, 6, dtype=torch.bool)


def bias():
    torch.manual_seed(0)
    return GraphBias(2, 3).double()


def test_they_are_the_matrix_exponential():
    found = heat_kernels(rows(RING)[None], ALL)[0]
    for k, t in enumerate(TIMES):
        np.testing.assert_allclose(found[..., k], expm(-t * RING), atol=1e-9)


def test_neither_signs_nor_bases_of_equal_eigenvalues_change_anything():
    u = rows(RING)
    angle = 0.7
    turn = torch.tensor([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    other = u.clone()
    other[:, :2] = u[:, :2] @ turn
    other[:, 2:4] = u[:, 2:4] @ turn.T
    other = -other[:, torch.randperm(8)]
    with torch.no_grad():
        plain = bias()(u[None], ALL)
        changed = bias()(other[None], ALL)
    torch.testing.assert_close(changed, plain, rtol=0, atol=1e-9)


def test_float32_rows_change_little():
    """The floor under the logarithm keeps the rounding of single rows below 1e-4."""
    network = bias()
    with torch.no_grad():
        exact = network(rows(RING)[None], ALL)
        rounded = network(rows(RING).float().double()[None], ALL)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=1e-5)


def test_renaming_the_elements_renames_the_pairs_and_padding_is_not_read():
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    u = rows(laplacian(6, [(0, 1), (1, 2), (2, 3), (1, 4), (4, 5)]))
    padded = torch.cat([u[order], torch.full((2, 8), torch.nan, dtype=torch.float64)])
    mask = torch.tensor([[True] * 6 + [False] * 2])
    with torch.no_grad():
        plain = bias()(u[None], ALL)
        moved = bias()(padded[None], mask)[..., :6, :6]
    torch.testing.assert_close(moved, plain[..., order, :][..., order])
