"""A ConvNeXt over frames, whole or in pieces that arrive one after another.

Liu et al. 2022, "A ConvNet for the 2020s", arXiv 2201.03545, in one dimension as in Vocos (Siuzdak
2023, arXiv 2306.00814, section 3.2): depthwise convolutions over 7 frames, layer norm, an inner
layer three times as wide, and a scale of 1 / depth on every block at first.

Letters: B clips, T frames, M width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.errors import check_ranges

KERNEL = 7  # frames
# Streams compute so many outputs of a layer at a time, always: products of one shape round every
# frame alike, so that the pieces in which a clip arrives change no bit.
ROWS = 32
INNER = 3  # the inner layer's width over the block's


@dataclass(frozen=True)
class ConvNeXtConfig:
    """Sizes of a ConvNeXt.

    Attributes:
        width: channels between the blocks.
        depth: blocks.
        look_ahead: how many later frames a frame's output depends on; 0 is causal, -1 as many
            as earlier ones, which is 3 (depth + 1).
    """

    width: int = 192
    depth: int = 7
    look_ahead: int = -1

    def __post_init__(self) -> None:
        check_ranges(self, width=(1, 4096), depth=(0, 64))
        if not -1 <= self.look_ahead <= self.reach:
            raise ValueError(
                f"ConvNeXtConfig: look_ahead is {self.look_ahead}; it must be -1 to {self.reach},"
                f" three frames a convolution of {self.depth + 1}"
            )

    @property
    def reach(self) -> int:
        """How many frames the convolutions reach to one side when they are centred."""
        return KERNEL // 2 * (self.depth + 1)

    @property
    def ahead(self) -> int:
        """The look-ahead in frames."""
        return self.reach if self.look_ahead < 0 else self.look_ahead

    @property
    def ahead_of_layers(self) -> list[int]:
        """The look-ahead of the first convolution and of each block: the first layers have it."""
        left = self.ahead
        shares = []
        for _ in range(self.depth + 1):
            shares.append(min(left, KERNEL // 2))
            left -= shares[-1]
        return shares


class FrameLayer(nn.Module):
    """A layer whose output at a frame depends on `before` earlier and `after` later frames.

    Outside a clip there are zeros. `valid` maps (B, before + T + after, D) to (B, T, M).
    """

    def __init__(self, after: int):
        super().__init__()
        self.before = KERNEL - 1 - after
        self.after = after

    def valid(self, frames: Tensor) -> Tensor:
        """(B, before + T + after, D) -> (B, T, M)."""
        raise NotImplementedError

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, M)."""
        return self.valid(F.pad(frames, (0, 0, self.before, self.after)))


class Stem(FrameLayer):
    """A convolution to the width of the blocks, and layer norm."""

    def __init__(self, n_in: int, width: int, after: int):
        super().__init__(after)
        self.conv = nn.Conv1d(n_in, width, KERNEL)
        self.norm = nn.LayerNorm(width)

    def valid(self, frames: Tensor) -> Tensor:
        """(B, before + T + after, D) -> (B, T, M)."""
        out: Tensor = self.norm(self.conv(frames.transpose(1, 2)).transpose(1, 2))
        return out


class Block(FrameLayer):
    """x + scale * MLP(norm(depthwise convolution of x))."""

    def __init__(self, width: int, after: int, scale: float):
        super().__init__(after)
        self.conv = nn.Conv1d(width, width, KERNEL, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, INNER * width)
        self.down = nn.Linear(INNER * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def valid(self, frames: Tensor) -> Tensor:
        """(B, before + T + after, M) -> (B, T, M)."""
        x = frames[:, self.before : frames.shape[1] - self.after]
        h = self.norm(self.conv(frames.transpose(1, 2)).transpose(1, 2))
        return x + self.scale * self.down(F.gelu(self.up(h)))


class ConvNeXt(nn.Module):
    """Frames (B, T, D) -> (B, T, n_out).

    The last layer is a norm and a linear map.
    """

    def __init__(self, n_in: int, n_out: int, config: ConvNeXtConfig):
        super().__init__()
        self.config = config
        first, *after = config.ahead_of_layers
        layers: list[FrameLayer] = [Stem(n_in, config.width, first)]
        layers += [Block(config.width, n, 1 / config.depth) for n in after]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, n_out)

    @property
    def frame_layers(self) -> list[FrameLayer]:
        """The first convolution and the blocks."""
        return cast(list[FrameLayer], list(self.layers))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, n_out)."""
        for layer in self.frame_layers:
            frames = layer(frames)
        return self.last(frames)

    def last(self, frames: Tensor) -> Tensor:
        """The last norm and linear map, frame by frame."""
        out: Tensor = self.out(self.norm(frames))
        return out


class ConvNeXtStream:
    """The same of one clip whose frames arrive in pieces.

    `push` (t, D) returns the outputs (t', n_out) that are complete, the look-ahead behind; `finish`
    the rest. Joined, they are the same bits whatever the pieces, see `ROWS`, and equal `forward` to
    rounding.
    """

    def __init__(self, network: ConvNeXt):
        self.network = network
        # of every layer, the inputs (1, t, D) that later outputs need; at first zeros
        self.kept: list[Tensor | None] = [None] * len(network.layers)

    @torch.no_grad()
    def push(self, frames: Tensor) -> Tensor:
        """(t, D) -> (t', n_out), t' >= 0."""
        return self._push(frames[None], 0)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The outputs (t', n_out) that are left; nothing may be pushed after it."""
        if self.kept[0] is None:
            return self.network.out.weight.new_zeros(0, self.network.out.out_features)
        n_in = self.kept[0].shape[2]
        return self._push(self.kept[0].new_zeros(1, 0, n_in), 1)

    def _push(self, x: Tensor, is_end: int) -> Tensor:
        for i, layer in enumerate(self.network.frame_layers):
            kept = self.kept[i]
            if kept is None:
                kept = x.new_zeros(1, layer.before, x.shape[2])
            joined = F.pad(torch.cat([kept, x], 1), (0, 0, 0, is_end * layer.after))
            n = max(0, joined.shape[1] - (KERNEL - 1))
            self.kept[i] = joined[:, n:]
            x = joined.new_zeros(1, 0, self.network.config.width)
            if n:
                x = by_rows(layer.valid, joined, n)
        return by_rows(self.network.last, x, x.shape[1])[0]


def by_rows(compute: Callable[[Tensor], Tensor], frames: Tensor, n: int) -> Tensor:
    """The n outputs (1, n, M) of `compute` on (1, around + n, D), ROWS at a time.

    `around`: how many more frames it takes than it gives. What is missing at the end is zeros.
    """
    around = frames.shape[1] - n
    filled = F.pad(frames, (0, 0, 0, -n % ROWS))
    starts = range(0, max(n, 1), ROWS)
    pieces = [compute(filled[:, start : start + ROWS + around]) for start in starts]
    return torch.cat(pieces, 1)[:, :n]
