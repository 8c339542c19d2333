"""Vectors to codes and back, and how much of a codebook is used.

The look-ups are our own, so that reading a saved tokenizer needs no training library. They are
exact under autocast too: distances and indices are never computed in less than float32 (in bfloat16
half of the indices of an FSQ are wrong).

Letters: D numbers of a vector, C codes of a vector, K codes of a codebook.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 16_384  # rows per table of distances, which bounds its memory to CHUNK x K numbers
FSQ_MARGIN = 1e-3  # by which the bound exceeds the outermost levels, so that they can be reached


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


def codebook_figures(codes: Tensor, levels: Sequence[int]) -> tuple[float, float]:
    """Use and perplexity of codes (..., C): the means over the C codebooks."""
    counts = [code_counts(codes[..., c], n) for c, n in enumerate(levels)]
    uses = [book_use(count) for count in counts]
    perplexities = [perplexity(count) for count in counts]
    return sum(uses) / len(uses), sum(perplexities) / len(perplexities)


class LookUp(nn.Module):
    """Vectors (..., D) to codes (..., C) and back.

    Attributes:
        levels: sizes of the C codebooks.
        size: D.
    """

    levels: tuple[int, ...]
    size: int

    def codes(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (..., C) int64, in float32 at least."""
        with torch.autocast(vectors.device.type, enabled=False):
            if vectors.dtype not in (torch.float32, torch.float64):
                vectors = vectors.float()
            return self._codes(vectors)

    def forward(self, codes: Tensor) -> Tensor:
        """(..., C) -> (..., D)."""
        with torch.autocast(codes.device.type, enabled=False):
            return self._vectors(codes)

    @abstractmethod
    def _codes(self, vectors: Tensor) -> Tensor: ...

    @abstractmethod
    def _vectors(self, codes: Tensor) -> Tensor: ...


class Codebook(LookUp):
    """K vectors of size D, as a buffer: learned elsewhere, saved with the weights.

    normalised: codes lie on the unit sphere, and the nearest is that of the smallest angle (Yu et
    al. 2021, ViT-VQGAN, arXiv 2110.04627, section 3.2).
    """

    vectors: Tensor

    def __init__(self, n_codes: int, code_size: int, normalised: bool = False):
        super().__init__()
        self.levels = (n_codes,)
        self.size = code_size
        self.normalised = normalised
        self.register_buffer("vectors", torch.zeros(n_codes, code_size))

    def _codes(self, vectors: Tensor) -> Tensor:
        if self.normalised:
            vectors = F.normalize(vectors, dim=-1)
        return nearest_code(vectors, self.vectors)[..., None]

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.vectors[codes[..., 0]]


class ResidualCodebooks(LookUp):
    """Q codebooks, each of what those before it leave out; their vectors add up."""

    vectors: Tensor

    def __init__(self, n_books: int, n_codes: int, code_size: int):
        super().__init__()
        self.levels = (n_codes,) * n_books
        self.size = code_size
        self.register_buffer("vectors", torch.zeros(n_books, n_codes, code_size))

    def _codes(self, vectors: Tensor) -> Tensor:
        found = []
        rest = vectors
        for book in self.vectors:
            code = nearest_code(rest, book)
            rest = rest - book[code]
            found.append(code)
        return torch.stack(found, -1)

    def _vectors(self, codes: Tensor) -> Tensor:
        parts = [book[codes[..., q]] for q, book in enumerate(self.vectors)]
        return torch.stack(parts).sum(0)


class FiniteScalars(LookUp):
    """Each of D numbers is rounded to one of its own few levels (Mentzer et al. 2023, FSQ).

    arXiv 2309.15505, section 3. With L levels: z -> round(tanh(z + s) (L - 1) (1 + margin) / 2 - o)
    over L // 2, o = 1/2 for even L, s so that 0 stays 0. The code is the level indices' number in
    mixed radix, the first one fastest, as vector-quantize-pytorch has it.
    """

    n_levels: Tensor
    basis: Tensor
    one: Tensor  # of the type of the vectors

    def __init__(self, n_levels: Sequence[int]):
        super().__init__()
        self.levels = (math.prod(n_levels),)
        self.size = len(n_levels)
        basis = [math.prod(n_levels[:d]) for d in range(self.size)]
        # their values are in the settings, not in the weights
        self.register_buffer("n_levels", torch.tensor(n_levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)
        self.register_buffer("one", torch.ones(()), persistent=False)

    def bounded(self, z: Tensor) -> Tensor:
        """Numbers (..., D) within the levels, not rounded: level index minus L // 2."""
        half = (self.n_levels - 1).to(z) * (1 + FSQ_MARGIN) / 2
        offset = (self.n_levels % 2 == 0).to(z) / 2
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def _codes(self, vectors: Tensor) -> Tensor:
        index = self.bounded(vectors).round().long() + self.n_levels // 2
        return (index * self.basis).sum(-1, keepdim=True)

    def _vectors(self, codes: Tensor) -> Tensor:
        index = codes // self.basis % self.n_levels
        half = self.n_levels // 2
        return (index - half).to(self.one) / half


class Signs(LookUp):
    """Each of D numbers is its sign (Yu et al. 2023, LFQ, arXiv 2310.05737, section 3.1).

    The code is the number that the signs make as bits, the first one highest. spherical: vectors
    have length 1 (Zhao et al. 2024, BSQ, arXiv 2406.07548, section 3).
    """

    weights: Tensor
    scale: Tensor

    def __init__(self, n_bits: int, spherical: bool):
        super().__init__()
        self.levels = (2**n_bits,)
        self.size = n_bits
        scale = torch.tensor(n_bits**-0.5) if spherical else torch.ones(())
        bits = 2 ** torch.arange(n_bits - 1, -1, -1)
        self.register_buffer("weights", bits, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def _codes(self, vectors: Tensor) -> Tensor:
        return ((vectors > 0) * self.weights).sum(-1, keepdim=True)

    def _vectors(self, codes: Tensor) -> Tensor:
        is_set = codes // self.weights % 2
        return (2 * is_set - 1) * self.scale
