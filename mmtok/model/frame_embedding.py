"""Embedding of many-channel frames: channel embeddings, concatenated and projected.

Where configured, running totals over the segment are added.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.core.runs import Runs


class FrameEmbedding(nn.Module):
    """Channel embeddings, concatenated, then projected: codes (N, C) -> (N, M).

    Code K_c of channel c means "masked".

    n_totals: how many running totals each frame carries; 0 for none. The next particle of a set
    depends on sums over all before it (the pt that is left, the mass so far), but attention
    averages.
    """

    codebook_sizes: Tensor  # (C,) K_c
    offset: Tensor  # (C,) the row of channel c's code 0 in the table

    def __init__(
        self, codebook_sizes: tuple[int, ...], channel_size: int, width: int, n_totals: int = 0
    ):
        super().__init__()
        sizes = torch.tensor([k + 1 for k in codebook_sizes])
        # not sizes.sum(), as meta tensors hold no numbers
        n_values = sum(codebook_sizes) + len(codebook_sizes)
        joined = channel_size * len(codebook_sizes)
        self.table = nn.Embedding(n_values, channel_size)
        self.project = nn.Linear(joined, width, bias=False)
        self.register_buffer("offset", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("codebook_sizes", torch.tensor(codebook_sizes), persistent=False)
        nn.init.normal_(self.table.weight)
        nn.init.normal_(self.project.weight, std=0.08 / joined**0.5)
        self.n_totals = n_totals
        if n_totals:
            # what a channel's value adds to the totals, whatever the others are
            self.share = nn.Embedding(n_values, n_totals)
            # what all of a frame's values add together
            self.term = nn.Sequential(nn.Linear(joined, 128), nn.SiLU(), nn.Linear(128, n_totals))
            self.read = nn.Sequential(
                nn.Linear(n_totals, 512), nn.SiLU(), nn.Linear(512, width, bias=False)
            )
            nn.init.normal_(self.share.weight, std=0.1)

    def forward(self, codes: Tensor, mask: Tensor | None, kept: Tensor, runs: Runs) -> Tensor:
        """All frames of a batch in stream order, (N, C) -> (N, M).

        mask (N, C) bool: channel values that may not be read; kept (N, 1) bool: frames that may be
        read at all; runs: the segments of the frames.
        """
        if mask is not None:
            codes = torch.where(mask, self.codebook_sizes, codes)
        joined = self._joined(codes)
        x = self.project(joined)
        if self.n_totals:
            totals = running_totals(self._terms(codes, joined) * kept, runs)
            x = x + self.read(totals.to(joined.dtype))
        return x * kept

    @torch.no_grad()
    def folded(self) -> FoldedFrames:
        """A look-up for one frame at a time; make it anew once the weights have changed."""
        return FoldedFrames(self)

    def totals(self, codes: Tensor) -> Tensor:
        """The totals of one segment's frames (T, C): (n_totals,)."""
        if not self.n_totals:
            return self.table.weight.new_zeros(0)
        return self._terms(codes, self._joined(codes)).sum(0)

    def _joined(self, codes: Tensor) -> Tensor:
        return self.table(codes + self.offset).flatten(1)

    def _terms(self, codes: Tensor, joined: Tensor) -> Tensor:
        """What each frame adds to the totals: (N, n_totals).

        In the weights' own precision, as bfloat16 is too coarse for long sums.
        """
        share = self.share(codes + self.offset).sum(1)
        return (share + self.term(joined).to(share.dtype)) / 4


class FoldedFrames:
    """A `FrameEmbedding` with its products precomputed for each value of each channel.

    A frame then costs the sum of one row per channel, instead of a matrix product.
    """

    def __init__(self, inner: FrameEmbedding):
        self.inner = inner
        columns = [_folded(inner, inner.project)]
        if inner.n_totals:
            columns.append(_folded(inner, cast(nn.Linear, inner.term[0])))
        self.sizes = [x.shape[1] for x in columns]
        if inner.n_totals:
            columns.append(inner.share.weight)
            self.sizes.append(inner.n_totals)
        self.added = torch.cat(columns, 1)

    def step(self, codes: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
        """One frame of each of n segments (n, C) -> its embedding (n, M), and the new totals.

        totals (n, n_totals): before the frame.
        """
        inner = self.inner
        x = F.embedding_bag(codes + inner.offset, self.added, mode="sum")
        if not inner.n_totals:
            return x, totals
        x, z, share = x.split(self.sizes, 1)
        z = z + cast(nn.Linear, inner.term[0]).bias
        totals = totals + (share + inner.term[1:](z)) / 4
        return x + inner.read(totals), totals


def _folded(inner: FrameEmbedding, product: nn.Linear) -> Tensor:
    """The table's rows times the part of the product that reads their channel: (n_values, n_out).

    product: a layer that reads all channels of a frame, joined.
    """
    n_channels = len(inner.codebook_sizes)
    channels = torch.arange(n_channels, device=inner.codebook_sizes.device)
    channel = torch.repeat_interleave(channels, inner.codebook_sizes + 1)
    parts = product.weight.unflatten(1, (n_channels, -1))  # (n_out, C, size)
    rows = inner.table.weight
    return torch.cat([rows[channel == c] @ parts[:, c].T for c in range(n_channels)])


def running_totals(terms: Tensor, runs: Runs) -> Tensor:
    """Cumulative sums of terms (N, R) within each segment: (N, R).

    Each segment is summed on its own, so that its rounding does not depend on others.
    """
    if not len(terms):
        return terms
    padded = terms.new_zeros(runs.n, runs.longest, terms.shape[1])
    padded = padded.index_put((runs.number, runs.place), terms)
    return padded.cumsum(1)[runs.number, runs.place]
