"""Vector quantisation: vectors to the nearest code and back, and how much of a codebook is used.

The look-up is our own, so that reading a saved codebook needs no training library.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHUNK = 16_384  # rows per table of distances, which bounds its memory to CHUNK x K numbers


def nearest_code(vectors: Tensor, book: Tensor) -> Tensor:
    """Index of the nearest code by Euclidean distance, the lowest one on a tie.

    vectors (..., D), book (K, D) -> codes (...) int64.
    """
    rows = vectors.reshape(-1, vectors.shape[-1])
    half_norms = book.square().sum(1) / 2  # argmin |v - b|^2 = argmax v.b - |b|^2 / 2
    codes = [(part @ book.T - half_norms).argmax(1) for part in rows.split(CHUNK)]
    if not codes:
        return vectors.new_zeros(vectors.shape[:-1], dtype=torch.long)
    return torch.cat(codes).reshape(vectors.shape[:-1])


def code_counts(codes: Tensor, n_codes: int) -> Tensor:
    """How often each code occurs: codes (...) integers -> (K,) int64."""
    return torch.bincount(codes.reshape(-1).long(), minlength=n_codes)


def book_use(counts: Tensor) -> float:
    """Share of the codes that occur at all: counts (K,) -> [0, 1]."""
    return float((counts > 0).double().mean())


def perplexity(counts: Tensor) -> float:
    """Exp of the entropy of the codes: K when all are equally frequent.

    counts (K,) -> [1, K]; 0 when there are none.
    """
    total = counts.sum()
    if total == 0:
        return 0.0
    p = counts.double() / total
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


class Codebook(nn.Module):
    """K vectors of size D, as a buffer: learned elsewhere, saved with the weights."""

    vectors: Tensor

    def __init__(self, n_codes: int, code_size: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(n_codes, code_size))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Vectors (..., D) -> codes (...)."""
        return nearest_code(vectors, self.vectors)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (...) -> vectors (..., D)."""
        return self.vectors[codes]
