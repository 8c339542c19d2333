"""Graphs for attention over sets: how near two elements are, from the graph's Laplacian.

L = U U^T with U = V sqrt(Lambda), from the eigenvectors V and eigenvalues Lambda of the Laplacian.
All that is read of them are the heat kernels

    K_t = V exp(-t Lambda) V^T

which are the same for every choice of the eigenvectors' signs, and of a basis where eigenvalues are
equal (Huang et al. 2023, arXiv 2310.02579, section 3): no such choice changes any output. Letters
beyond the package's: P elements, K eigenvectors, T times.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TIMES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
FLOOR = 0.01  # of a kernel, under its logarithm: below it float32's rounding would count
HIDDEN = 32


def heat_kernels(u: Tensor, mask: Tensor) -> Tensor:
    """(B, P, P, T) of U (B, P, K), whose columns that are 0 count for nothing; mask (B, P) bool.

    The constant eigenvector of L, of eigenvalue 0, is no column of U and is put back.
    """
    u = u.double().masked_fill(~mask[..., None], 0)
    eigenvalues = u.square().sum(1)  # (B, K), as |V|^2 is 1
    v = u / eigenvalues.clamp(min=1e-9).sqrt()[:, None]
    times = torch.tensor(TIMES, dtype=u.dtype, device=u.device)
    decay = torch.exp(-times * eigenvalues[..., None])
    kernels = torch.einsum("bik,bjk,bkt->bijt", v, v, decay)
    constant = 1 / mask.sum(1).clamp(min=1).to(u.dtype)
    return kernels + constant[:, None, None, None]


class GraphBias(nn.Module):
    """What attention adds to its logits, for each layer and head: (depth, B, H, P, P).

    A small network reads the logarithms of the heat kernels of each pair of elements.
    """

    def __init__(self, depth: int, n_heads: int):
        super().__init__()
        self.depth = depth
        self.network = nn.Sequential(
            nn.Linear(len(TIMES), HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, depth * n_heads)
        )

    def forward(self, u: Tensor, mask: Tensor) -> Tensor:
        """U (B, P, K) and mask (B, P) bool, as `heat_kernels` takes them."""
        kernels = heat_kernels(u, mask)
        near = (kernels + FLOOR).clamp(min=FLOOR / 2).log().to(u.dtype)
        bias = self.network(near).unflatten(-1, (self.depth, -1))
        return bias.permute(3, 0, 4, 1, 2)
