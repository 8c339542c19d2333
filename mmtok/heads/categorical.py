"""Categorical heads: the channels of a many-channel frame, from the hidden state before it.

A head is a distribution over the C channel values of a frame, written once as a coroutine
(`channel_logits`) that yields the logits of the next channels and is sent the values chosen.
Scoring sends it the true values, sampling sends draws, and guidance runs two of them in parallel on
the same draws, so that the three cannot disagree.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.core.segment import Signature
from mmtok.heads.base import Callback, Head, HeadConfig, Known
from mmtok.heads.sampling import LOGIT_SETTINGS, Sampling, mix_guidance, pick
from mmtok.nn.cross_entropy import upcast
from mmtok.nn.device import constant

ChannelLogits = Generator[Tensor, Tensor, None]


class CategoricalConfig(HeadConfig):
    """Base of the settings of heads over several channels of codes."""

    frames = "codes of several channels"

    @classmethod
    def fits(cls, signature: Signature) -> bool:
        """Codes that are not single ids of the stream."""
        return bool(signature.levels) and not signature.one_channel


@dataclass(frozen=True)
class Parallel(CategoricalConfig):
    """All channels independent given the past (dMel, He Bai et al. 2024): one projection."""

    def build(self, width: int, signature: Signature) -> ParallelHead:
        """The head for hidden states of this width and frames of this signature."""
        return ParallelHead(self, width, signature)


@dataclass(frozen=True)
class Chained(CategoricalConfig):
    """Channel c given the past and the channels before it.

    For pt, then eta, then phi; for residual codebooks. hidden: width of each channel's network.
    """

    hidden: int = 128

    def build(self, width: int, signature: Signature) -> ChainedHead:
        """The head for hidden states of this width and frames of this signature."""
        return ChainedHead(self, width, signature)


class CategoricalHead(Head):
    """Scoring and sampling from `channel_logits`.

    ceiling: where frames are a set, the frame before each (N, C), which the next one may not exceed
    in lexicographic order; see `Ceiling`.
    """

    settings = LOGIT_SETTINGS
    draws_by_row = True
    can_be_captured = True

    def __init__(self, config: CategoricalConfig, signature: Signature):
        super().__init__(config, signature)
        self.codebook_sizes = signature.levels

    @abstractmethod
    def channel_logits(self, h: Tensor) -> ChannelLogits:
        """For h (N, M), yield logits (N, c, K) of the next c channels; is sent values (N, c)."""

    def loss(self, h: Tensor, y: Tensor, ceiling: Tensor | None = None) -> Tensor:
        """-log p of frames: h (N, M), y (N, C), ceiling (N, C) -> (N,)."""
        total = upcast(h.new_zeros(len(h)))
        bounds = self._bounds(ceiling, total.dtype)
        channels = self.channel_logits(h)
        logits = next(channels)
        start = 0
        while True:
            now = y[:, start : start + logits.shape[1]]
            logits = self._legal(upcast(logits), start, y, bounds)
            nll = F.cross_entropy(logits.flatten(0, 1), now.flatten(), reduction="none")
            total = total + nll.view(now.shape).sum(1)
            start += now.shape[1]
            if start == len(self.codebook_sizes):
                return total
            logits = channels.send(now)

    def log_prob(
        self,
        h: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Log p of frames, exact: h (N, M), y (N, C), ceiling (N, C) -> (N,)."""
        return -self.loss(h, y, ceiling)

    def sample(
        self,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        known: Known | None = None,
        callback: Callback | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Draw frames (N, C), channel after channel."""
        bounds = self._bounds(ceiling, upcast(hs[0]).dtype)
        streams = [self.channel_logits(h) for h in hs]
        if bounds is not None:
            streams = [_one_by_one(channels) for channels in streams]
        logits = [next(channels) for channels in streams]
        drawn = torch.zeros(len(hs[0]), 0, dtype=torch.long, device=hs[0].device)
        while True:
            mixed = mix_guidance([upcast(x) for x in logits], sampling.guidance)
            mixed = self._legal(mixed, drawn.shape[1], drawn, bounds)
            chosen = pick(mixed.flatten(0, 1), sampling, generator).view(mixed.shape[:2])
            drawn = torch.cat([drawn, chosen], 1)
            if drawn.shape[1] == len(self.codebook_sizes):
                return drawn
            # where logits are NaN the value is none, which is for the caller to refuse
            sent = chosen.clamp(max=mixed.shape[2] - 1)
            logits = [channels.send(sent) for channels in streams]

    def _bounds(self, ceiling: Tensor | None, dtype: torch.dtype) -> Ceiling | None:
        if ceiling is None:
            return None
        return Ceiling(ceiling, self.codebook_sizes, dtype)

    def _legal(self, logits: Tensor, start: int, values: Tensor, bounds: Ceiling | None) -> Tensor:
        """Logits (N, c, K) of channels from `start` on, with illegal values at -inf.

        values (N, ...): at least those of all channels before the last.
        """
        if bounds is not None:
            return bounds.apply(logits, start, values)
        sizes = self.codebook_sizes[start : start + logits.shape[1]]
        if min(sizes) == logits.shape[2]:
            return logits
        highest = constant(sizes, logits.device) - 1
        return logits.masked_fill(_above(logits, highest), float("-inf"))


class Ceiling:
    """The order of a set's frames: how the frame before (N, C) bounds the channels of the next.

    A channel is bounded by the ceiling's value while all channels before it are at theirs, and free
    from the first one below. An untrained head makes all legal frames equally likely: the ceiling's
    own value of a channel admits only a part of the frames that any lower value admits, and the
    logarithm of this part is added to its logit.
    """

    def __init__(self, ceiling: Tensor, codebook_sizes: Sequence[int], dtype: torch.dtype):
        self.ceiling = ceiling
        self.last = constant(tuple(codebook_sizes), ceiling.device) - 1
        parts = [torch.ones(len(ceiling), dtype=dtype, device=ceiling.device)]
        for c in range(len(codebook_sizes) - 1, 0, -1):
            parts.append((ceiling[:, c] + parts[-1]) / codebook_sizes[c])
        # (N, C): of the ceiling's value of each channel
        self.log_part = torch.stack(parts[::-1], 1).log()

    def apply(self, logits: Tensor, start: int, values: Tensor) -> Tensor:
        """Logits (N, c, K) of channels from `start` on, bounded.

        values (N, ...): at least those of all channels before the last.
        """
        n_before = start + logits.shape[1] - 1
        channels = slice(start, start + logits.shape[1])
        same = (values[:, :n_before] == self.ceiling[:, :n_before]).long().cumprod(1)
        tied = F.pad(same, (1, 0), value=1)[:, channels].bool()
        highest = torch.where(tied, self.ceiling[:, channels], self.last[channels])
        part = self.log_part[:, channels] * tied
        prior = part.new_zeros(logits.shape).masked_fill_(_above(logits, highest), float("-inf"))
        return logits + prior.scatter_(2, highest[..., None], part[..., None])


def _above(logits: Tensor, highest: Tensor) -> Tensor:
    """Which values of the channels of logits (N, c, K) exceed their highest, (c,) or (N, c)."""
    return torch.arange(logits.shape[2], device=logits.device) > highest[..., None]


def _one_by_one(channels: ChannelLogits) -> ChannelLogits:
    """The same logits, one channel at a time: a channel's ceiling depends on those before it."""
    logits = next(channels)
    while True:
        values = []
        for one in logits.split(1, 1):
            values.append((yield one))
        logits = channels.send(torch.cat(values, 1))


class ParallelHead(CategoricalHead):
    """p(frame) = product over c of p(v_c | h). Starts at the uniform distribution."""

    def __init__(self, config: Parallel, width: int, signature: Signature):
        super().__init__(config, signature)
        self.out = nn.Linear(width, len(self.codebook_sizes) * max(self.codebook_sizes))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def channel_logits(self, h: Tensor) -> ChannelLogits:
        """Yields once: the logits (N, C, K) of all channels."""
        yield self.out(h).unflatten(-1, (len(self.codebook_sizes), max(self.codebook_sizes)))


class ChainedHead(CategoricalHead):
    """p(frame) = product over c of p(v_c | h, v_<c).

    Each channel's network reads h and the embedded values of the channels before it. Starts at the
    uniform distribution.
    """

    def __init__(self, config: Chained, width: int, signature: Signature):
        super().__init__(config, signature)
        hidden = config.hidden
        n_channels = len(self.codebook_sizes)
        self.enter = nn.ModuleList([nn.Linear(width, hidden) for _ in self.codebook_sizes])
        self.conditioning = nn.ModuleList(
            [
                nn.Embedding(k, hidden * (n_channels - 1 - c))
                for c, k in enumerate(self.codebook_sizes[:-1])
            ]
        )
        self.mix = nn.ModuleList([nn.Linear(hidden, hidden) for _ in self.codebook_sizes])
        self.out = nn.ModuleList([nn.Linear(hidden, k) for k in self.codebook_sizes])
        for name, parameter in self.named_parameters():
            if name.startswith("conditioning."):
                nn.init.normal_(parameter, std=0.1)
            elif name.startswith("out."):
                nn.init.zeros_(parameter)

    def channel_logits(self, h: Tensor) -> ChannelLogits:
        """Yields C times: the logits (N, 1, K_c) of channel c, sent the value of each before it."""
        n_channels = len(self.codebook_sizes)
        # what channel c reads of the values before it
        conditioning: list[list[Tensor]] = [[] for _ in range(n_channels)]
        for c in range(n_channels):
            z = F.silu(sum(conditioning[c], self.enter[c](h)))
            z = z + F.silu(self.mix[c](z))
            value = yield self.out[c](z)[:, None]
            if c == n_channels - 1:
                return
            parts = self.conditioning[c](value[:, 0]).chunk(n_channels - 1 - c, -1)
            for later, part in enumerate(parts, c + 1):
                conditioning[later].append(part)
