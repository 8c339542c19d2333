"""How a many-channel frame is read: channel embeddings joined and projected, and where asked the moments of its set so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmtok.segment import BadInput, Signature

N_SCALES = 6  # of the sines that moments are read through


class FrameEmbedding(nn.Module):
    """Channel embeddings joined, then projected: (N, C) codes -> (N, M). Level K_c of channel c means "masked".

    moments: whether a frame also tells the moments of its segment up to it, see `Moments`.
    """

    def __init__(self, signature: Signature, channel_size: int, width: int, moments: bool = False):
        super().__init__()
        sizes = torch.tensor([k + 1 for k in signature.levels])
        joined = channel_size * len(sizes)
        self.table = nn.Embedding(int(sizes.sum()), channel_size)
        self.project = nn.Linear(joined, width, bias=False)
        self.register_buffer("offset", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("levels", torch.tensor(signature.levels), persistent=False)
        nn.init.normal_(self.table.weight)
        nn.init.normal_(self.project.weight, std=0.08 / joined**0.5)
        self.moments = Moments(signature, width) if moments else None

    def forward(self, codes: Tensor, mask: Tensor | None, kept: Tensor, segment: Tensor) -> Tensor:
        """All frames of a batch in stream order, (N, C) -> (N, M).

        mask (N, C) bool: channel values that may not be read; kept (N, 1) bool: frames that may be read at all;
        segment (N,): numbers that change from one segment to the next.
        """
        x = self._projected(codes if mask is None else torch.where(mask, self.levels, codes))
        if self.moments is not None:
            read = kept if mask is None else kept & ~mask.any(1, keepdim=True)
            x = x + self.moments(running_totals(self.moments.terms(codes) * read, segment)).to(x.dtype)
        return x * kept

    def step(self, codes: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
        """One frame of each of n segments (n, C) and the totals before it (n, R) -> (n, M), and the totals with it."""
        x = self._projected(codes)
        if self.moments is not None:
            totals = totals + self.moments.terms(codes)
            x = x + self.moments(totals).to(x.dtype)
        return x, totals

    def totals(self, codes: Tensor) -> Tensor:
        """What `step` starts from after the frames (T, C) of a segment: (R,)."""
        return self.table.weight.new_zeros(0) if self.moments is None else self.moments.terms(codes).sum(0)

    def _projected(self, codes: Tensor) -> Tensor:
        return self.project(self.table(codes + self.offset).flatten(1))


class Moments(nn.Module):
    """Of a set of weighted points: total weight, mean and covariance, read through sines at several scales.

    What comes next in a jet hangs on sums over all constituents before it, the pt that is left and the mass so far, but
    attention averages where this wants to add. The weight is the channel that orders the set (pt), the other channels are
    coordinates (eta, phi); mass^2 is about weight^2 * trace of the covariance.
    """

    def __init__(self, signature: Signature, width: int):
        super().__init__()
        d = signature.descending
        if d is None or not signature.values or min(signature.values[d]) <= 0:
            raise BadInput(f"moments of {signature.modality} need a tokenizer whose signature tells an ordering channel, and positive values for it")
        values = torch.zeros(len(signature.levels), max(signature.levels), dtype=torch.float64)
        for c, row in enumerate(signature.values):
            values[c, : len(row)] = torch.tensor(row, dtype=torch.float64)
        self.register_buffer("values", values.to(torch.get_default_dtype()), persistent=False)
        self.weight_channel, self.others = d, [c for c in range(len(values)) if c != d]
        n = len(self.others)
        self.pairs = torch.triu_indices(n, n)
        n_features = 2 + n + len(self.pairs[0])
        self.read = nn.Sequential(nn.Linear(n_features * (1 + 2 * N_SCALES), 256), nn.SiLU(), nn.Linear(256, width, bias=False))

    def terms(self, codes: Tensor) -> Tensor:
        """Every frame's share of the sums, (N, C) -> (N, R): weight * (1, coordinates, products of two coordinates)."""
        weight = self.values[self.weight_channel][codes[:, self.weight_channel]][:, None]
        x = self.values[self.others, codes[:, self.others]]
        return weight * torch.cat([torch.ones_like(weight), x, x[:, self.pairs[0]] * x[:, self.pairs[1]]], 1)

    def forward(self, totals: Tensor) -> Tensor:
        """Sums of terms (N, R) -> (N, M)."""
        features = self._features(totals)
        angle = features[..., None] * (math.pi / 2 * 2.0 ** torch.arange(N_SCALES, device=features.device))
        return self.read(torch.cat([features[..., None], angle.sin(), angle.cos()], -1).flatten(1))

    def _features(self, totals: Tensor) -> Tensor:
        """log weight, mean, covariance (log of variances, correlations), and the log of weight * spread: numbers of order one."""
        n = len(self.others)
        weight, first, second = totals.split([1, n, totals.shape[1] - 1 - n], 1)
        there = weight > 0  # not where all frames so far were hidden
        weight = torch.where(there, weight, 1)
        mean = first / weight
        covariance = second / weight - mean[:, self.pairs[0]] * mean[:, self.pairs[1]]
        diagonal = self.pairs[0] == self.pairs[1]
        variance = covariance[:, diagonal].clamp_min(1e-6)
        of_pair = variance[:, self.pairs[0]] * variance[:, self.pairs[1]]
        scaled = torch.where(diagonal.to(of_pair.device), 0.5 * of_pair.sqrt().log(), covariance / of_pair.sqrt())
        mass = weight.log() + 0.5 * variance.sum(1, keepdim=True).log()
        return torch.cat([weight.log(), mean, scaled, mass], 1) * there


def running_totals(terms: Tensor, segment: Tensor) -> Tensor:
    """Sums over the frames of a segment up to each: (N, R), rows of a segment being neighbours with equal numbers (N,).

    Each segment is summed on its own, so that no other one touches its rounding.
    """
    if not len(terms):
        return terms
    _, lengths = segment.unique_consecutive(return_counts=True)
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=terms.device), lengths)
    place = torch.arange(len(terms), device=terms.device) - (lengths.cumsum(0) - lengths)[rows]
    padded = terms.new_zeros(len(lengths), int(lengths.max()), terms.shape[1]).index_put((rows, place), terms)
    return padded.cumsum(1)[rows, place]
