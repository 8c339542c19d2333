"""Heads: fill a many-channel frame in, from the hidden state before it.

A head is a distribution over the C channel values of a frame, written once as a coroutine (`links`) that yields the
logits of the next channels and is sent the values chosen. Scoring sends it the true values, sampling sends draws, and
guidance runs two of them side by side on the same draws, so that the three can never disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.segment import BadInput, Signature

Links = Generator[Tensor, Tensor, None]


@dataclass(frozen=True)
class Parallel:
    """All channels independent given the past (dMel, He Bai et al. 2024): one projection."""

    def build(self, width: int, signature: Signature) -> ParallelHead:
        """The head on hidden states of this width, for frames of this signature."""
        return ParallelHead(self, width, signature)


@dataclass(frozen=True)
class Chained:
    """Channel c given the past and channels before it (pt, then eta, then phi; residual codebooks)."""

    hidden: int = 128

    def build(self, width: int, signature: Signature) -> ChainedHead:
        """The head on hidden states of this width, for frames of this signature."""
        return ChainedHead(self, width, signature)


def widened(x: Tensor) -> Tensor:
    """x in float32 at least: half precision is for the layers, never for log p."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fitting_heads(signature: Signature) -> str:
    """The configs of all heads that can fill frames of this signature in, in words; "" where none can."""
    whole = signature.frames is not None
    if signature.one_channel:
        names = ["MaskedCodes"] * whole
    elif signature.levels:
        names = ["Parallel", "Chained"]
    else:
        names = ["FrameDiffusion"] + ["GridDiffusion", "Cascade"] * whole
    return " or ".join(", ".join(f"{name}()" for name in part) for part in (names[:-1], names[-1:]) if part)


class Head(nn.Module):
    """Common to both kinds: scoring and sampling from `links`.

    descending: the channel whose value may not exceed a ceiling given by the frame before.
    """

    kind = "exact"  # what its nats are

    def __init__(self, signature: Signature):
        super().__init__()
        if len(signature.levels) < 2:
            raise BadInput(f"{signature.modality} has no channels for a {type(self).__name__.removesuffix('Head')} head: its frames are "
                           + (f"single codes, which need none{f', or {heads}' if (heads := fitting_heads(signature)) else ''}"
                              if signature.levels else f"latents; give it {fitting_heads(signature)}"))
        self.levels, self.descending = signature.levels, signature.descending

    def links(self, h: Tensor) -> Links:
        """h (N, M). Yields logits (N, c, K) of the next c channels, is sent their values (N, c)."""
        raise NotImplementedError

    def nats(self, h: Tensor, values: Tensor, ceiling: Tensor | None = None) -> Tensor:
        """-log p of frames: h (N, M), values (N, C), ceiling (N,) -> (N,)."""
        total, start = widened(h.new_zeros(len(h))), 0
        walk = self.links(h)
        logits = next(walk)
        while True:
            now = values[:, start : start + logits.shape[1]]
            logits = self._bounded(widened(logits), start, ceiling)
            total = total + F.cross_entropy(logits.flatten(0, 1), now.flatten(), reduction="none").view(now.shape).sum(1)
            start += now.shape[1]
            if start == len(self.levels):
                return total
            logits = walk.send(now)

    def sample(self, hs: list[Tensor], mix: Callable[[list[Tensor]], Tensor], pick: Callable[[Tensor], Tensor],
               ceiling: Tensor | None = None) -> Tensor:
        """Draw frames (N, C). hs: one hidden state (N, M) per guidance stream; mix joins their logits; pick draws ids from (n, K)."""
        walks = [self.links(h) for h in hs]
        logits = [next(walk) for walk in walks]
        chosen: list[Tensor] = []
        while True:
            joined = self._bounded(mix([widened(x) for x in logits]), sum(x.shape[1] for x in chosen), ceiling)
            chosen.append(pick(joined.flatten(0, 1)).view(joined.shape[:2]))
            if sum(x.shape[1] for x in chosen) == len(self.levels):
                return torch.cat(chosen, 1)
            logits = [walk.send(chosen[-1]) for walk in walks]

    def _bounded(self, logits: Tensor, start: int, ceiling: Tensor | None) -> Tensor:
        """Rule out the levels a channel does not have, and those above the ceiling: (N, c, K) for channels start..start+c."""
        n, k = logits.shape[1:]
        if ceiling is None and min(self.levels[start : start + n]) == k:
            return logits
        levels = torch.tensor(self.levels[start : start + n], device=logits.device)
        outside = (torch.arange(k, device=logits.device) >= levels[:, None]).expand_as(logits)
        if ceiling is not None and self.descending is not None and start <= self.descending < start + n:
            outside = outside.clone()
            outside[:, self.descending - start] |= torch.arange(k, device=logits.device) > ceiling[:, None]
        return logits.masked_fill(outside, float("-inf"))


class ParallelHead(Head):
    """p(frame) = product over c of p(v_c | h). Starts at the uniform distribution."""

    def __init__(self, config: Parallel, width: int, signature: Signature):
        super().__init__(signature)
        self.out = nn.Linear(width, len(self.levels) * max(self.levels))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def links(self, h: Tensor) -> Links:
        """One link: the logits (N, C, K) of all channels at once."""
        yield self.out(h).unflatten(-1, (len(self.levels), max(self.levels)))


class ChainedHead(Head):
    """p(frame) = product over c of p(v_c | h, v_<c): each link reads h and the embedded values before it."""

    def __init__(self, config: Chained, width: int, signature: Signature):
        super().__init__(signature)
        hidden = config.hidden
        self.enter = nn.ModuleList([nn.Linear(width, hidden) for _ in self.levels])
        self.told = nn.ModuleList([nn.Embedding(k, hidden * (len(self.levels) - 1 - c)) for c, k in enumerate(self.levels[:-1])])
        self.mix = nn.ModuleList([nn.Linear(hidden, hidden) for _ in self.levels])
        self.out = nn.ModuleList([nn.Linear(hidden, k) for k in self.levels])
        for told in self.told:
            nn.init.normal_(told.weight, std=0.1)
        for out in self.out:
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)

    def links(self, h: Tensor) -> Links:
        """C links: the logits (N, 1, K_c) of channel c, once it is told the values of the channels before it."""
        n_links = len(self.levels)
        told: list[list[Tensor]] = [[] for _ in range(n_links)]  # what link c hears of the values before it
        for c in range(n_links):
            z = F.silu(sum(told[c], self.enter[c](h)))
            z = z + F.silu(self.mix[c](z))
            value = yield self.out[c](z)[:, None]
            if c < n_links - 1:
                for later, part in enumerate(self.told[c](value[:, 0]).chunk(n_links - 1 - c, -1), c + 1):
                    told[later].append(part)
