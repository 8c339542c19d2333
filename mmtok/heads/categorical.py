"""Heads: fill a many-channel frame in, from the hidden state before it.

A head is a distribution over the C channel values of a frame, written once as a coroutine (`links`)
that yields the logits of the next channels and is sent the values chosen. Scoring sends it the true
values, sampling sends draws, and guidance runs two of them side by side on the same draws, so that
the three can never disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.core.segment import Signature
from mmtok.errors import UserError

ChannelLogits = Generator[Tensor, Tensor, None]


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


def upcast(x: Tensor) -> Tensor:
    """X in float32 at least: half precision is for the layers, never for log p."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fitting_heads(signature: Signature) -> str:
    """The configs of all heads that can fill frames of this signature in, in words; "" where none
    can.
    """
    whole = signature.frames is not None
    if signature.one_channel:
        names = ["MaskedDiffusion"] * whole
    elif signature.levels:
        names = ["Parallel", "Chained"]
    else:
        names = ["FrameDiffusion"] + ["GridDiffusion", "Cascade"] * whole
    return " or ".join(
        ", ".join(f"{name}()" for name in part) for part in (names[:-1], names[-1:]) if part
    )


class Head(nn.Module):
    """Common to both kinds: scoring and sampling from `links`.

    ceiling: where frames are a set, the frame before each (N, C), which it may not exceed in
    lexicographic order; see `Ceiling`.
    """

    kind = "exact"  # what its nats are

    def __init__(self, signature: Signature):
        super().__init__()
        if not signature.levels or signature.one_channel:
            raise UserError(
                f"{signature.modality} has no channels for a"
                f" {type(self).__name__.removesuffix('Head')} head: its frames are "
                + (
                    "single codes, which need"
                    f" none{f', or {heads}' if (heads := fitting_heads(signature)) else ''}"
                    if signature.levels
                    else f"latents; give it {fitting_heads(signature)}"
                )
            )
        self.levels = signature.levels

    def channel_logits(self, h: Tensor) -> ChannelLogits:
        """H (N, M). Yields logits (N, c, K) of the next c channels, is sent their values (N, c)."""
        raise NotImplementedError

    def nats(self, h: Tensor, values: Tensor, ceiling: Tensor | None = None) -> Tensor:
        """-log p of frames: h (N, M), values (N, C), ceiling (N, C) -> (N,)."""
        total, start = upcast(h.new_zeros(len(h))), 0
        bounds = None if ceiling is None else Ceiling(ceiling, self.levels, total.dtype)
        walk = self.channel_logits(h)
        logits = next(walk)
        while True:
            now = values[:, start : start + logits.shape[1]]
            logits = self._legal(upcast(logits), start, values, bounds)
            total = total + F.cross_entropy(
                logits.flatten(0, 1), now.flatten(), reduction="none"
            ).view(now.shape).sum(1)
            start += now.shape[1]
            if start == len(self.levels):
                return total
            logits = walk.send(now)

    def sample(
        self,
        hs: list[Tensor],
        mix: Callable[[list[Tensor]], Tensor],
        pick: Callable[[Tensor], Tensor],
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Draw frames (N, C). hs: one hidden state (N, M) per guidance stream; mix joins their
        logits; pick draws ids from (n, K).
        """
        bounds = None if ceiling is None else Ceiling(ceiling, self.levels, upcast(hs[0]).dtype)
        walks = [
            self.channel_logits(h) if bounds is None else _one_by_one(self.channel_logits(h))
            for h in hs
        ]
        logits = [next(walk) for walk in walks]
        drawn = torch.zeros(len(hs[0]), 0, dtype=torch.long, device=hs[0].device)
        while True:
            joined = self._legal(mix([upcast(x) for x in logits]), drawn.shape[1], drawn, bounds)
            chosen = pick(joined.flatten(0, 1)).view(joined.shape[:2])
            drawn = torch.cat([drawn, chosen], 1)
            if drawn.shape[1] == len(self.levels):
                return drawn
            logits = [walk.send(chosen) for walk in walks]

    def _legal(self, logits: Tensor, start: int, values: Tensor, bounds: Ceiling | None) -> Tensor:
        """Logits (N, c, K) of channels from `start` on without what these cannot be; values (N,
        ...): at least those before the last.
        """
        if bounds is not None:
            return bounds.apply(logits, start, values)
        levels = self.levels[start : start + logits.shape[1]]
        if min(levels) == logits.shape[2]:
            return logits
        highest = torch.tensor(levels, device=logits.device) - 1
        return logits.masked_fill(_above(logits, highest), float("-inf"))


class Ceiling:
    """The order of a set's frames, as it bounds the channels of each next one, given the frame
    before it (N, C).

    A channel is bound by the ceiling's value while all channels before it are at theirs, and free
    from the first one below. Before anything is learned all legal frames are equally likely: the
    ceiling's own value of a channel opens only a part of the frames that any lower value opens, and
    the logarithm of this part is added to its logit.
    """

    def __init__(self, ceiling: Tensor, levels: Sequence[int], dtype: torch.dtype):
        self.ceiling = ceiling
        self.last = torch.tensor(levels, device=ceiling.device) - 1
        opens = [torch.ones(len(ceiling), dtype=dtype, device=ceiling.device)]
        for c in range(len(levels) - 1, 0, -1):
            opens.append((ceiling[:, c] + opens[-1]) / levels[c])
        self.log_opens = torch.stack(
            opens[::-1], 1
        ).log()  # (N, C) of the ceiling's value of each channel

    def apply(self, logits: Tensor, start: int, values: Tensor) -> Tensor:
        """Logits (N, c, K) of channels from `start` on, the values (N, ...) of at least all before
        the last being known.
        """
        n_before, channels = start + logits.shape[1] - 1, slice(start, start + logits.shape[1])
        same = (values[:, :n_before] == self.ceiling[:, :n_before]).long().cumprod(1)
        tied = F.pad(same, (1, 0), value=1)[:, channels].bool()
        highest = torch.where(tied, self.ceiling[:, channels], self.last[channels])
        part = self.log_opens[:, channels] * tied
        prior = part.new_zeros(logits.shape).masked_fill_(_above(logits, highest), float("-inf"))
        return logits + prior.scatter_(2, highest[..., None], part[..., None])


def _above(logits: Tensor, highest: Tensor) -> Tensor:
    """Which values of the channels of logits (N, c, K) are above their highest, (c,) or (N, c)."""
    return torch.arange(logits.shape[2], device=logits.device) > highest[..., None]


def _one_by_one(channel_logits: ChannelLogits) -> ChannelLogits:
    """The same links, a channel at a time: each must know the values before it to know its highest."""
    logits = next(channel_logits)
    while True:
        values = []
        for one in logits.split(1, 1):
            values.append((yield one))
        logits = channel_logits.send(torch.cat(values, 1))


class ParallelHead(Head):
    """p(frame) = product over c of p(v_c | h). Starts at the uniform distribution."""

    def __init__(self, config: Parallel, width: int, signature: Signature):
        super().__init__(signature)
        self.out = nn.Linear(width, len(self.levels) * max(self.levels))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def channel_logits(self, h: Tensor) -> ChannelLogits:
        """One link: the logits (N, C, K) of all channels at once."""
        yield self.out(h).unflatten(-1, (len(self.levels), max(self.levels)))


class ChainedHead(Head):
    """p(frame) = product over c of p(v_c | h, v_<c): each link reads h and the embedded values
    before it.
    """

    def __init__(self, config: Chained, width: int, signature: Signature):
        super().__init__(signature)
        hidden = config.hidden
        self.enter = nn.ModuleList([nn.Linear(width, hidden) for _ in self.levels])
        self.conditioning = nn.ModuleList(
            [
                nn.Embedding(k, hidden * (len(self.levels) - 1 - c))
                for c, k in enumerate(self.levels[:-1])
            ]
        )
        self.mix = nn.ModuleList([nn.Linear(hidden, hidden) for _ in self.levels])
        self.out = nn.ModuleList([nn.Linear(hidden, k) for k in self.levels])
        for conditioning in self.conditioning:
            nn.init.normal_(conditioning.weight, std=0.1)
        for out in self.out:
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)

    def channel_logits(self, h: Tensor) -> ChannelLogits:
        """C links: the logits (N, 1, K_c) of channel c, once it is told the values of the channels
        before it.
        """
        n_links = len(self.levels)
        conditioning: list[list[Tensor]] = [
            [] for _ in range(n_links)
        ]  # what link c hears of the values before it
        for c in range(n_links):
            z = F.silu(sum(conditioning[c], self.enter[c](h)))
            z = z + F.silu(self.mix[c](z))
            value = yield self.out[c](z)[:, None]
            if c < n_links - 1:
                for later, part in enumerate(
                    self.conditioning[c](value[:, 0]).chunk(n_links - 1 - c, -1), c + 1
                ):
                    conditioning[later].append(part)
