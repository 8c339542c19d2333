"""Denoisers of grids, sets and single tokens: transformers and a residual MLP, with adaLN-zero.

Each is a network F(c_in x, c_noise) whose output is 0 before training, so that under any
preconditioning D(x) = c_skip x at the start. Rows are independent: there are no batch statistics.
Samplers call network(x, c_noise), so bind a condition first, e.g. by `functools.partial`.

Sources: Peebles and Xie 2023 (DiT, arXiv 2212.09748, section 3.2); Li et al. 2024 (MAR, arXiv
2406.11838, appendix A). Letters beyond the package's: C image channels, Y, X pixels, p patch side;
D also counts a particle's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmtok.nn.attention import rotate
from mmtok.nn.conditioning import (
    ConditionConfig,
    Conditioning,
    TimestepEmbedding,
    modulate,
    zero_module,
)
from mmtok.nn.graph import GraphBias

NORM_EPS = 1e-6


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a diffusion transformer; `from_depth` derives them as the trunk's."""

    depth: int = 4
    width: int = 128
    n_heads: int = 4

    def __post_init__(self) -> None:
        if self.depth < 1 or self.n_heads < 1 or self.width % self.n_heads or self.width % 4:
            raise ValueError(
                "a diffusion transformer's width must be a multiple of 4 and of its number of"
                f" heads; got depth {self.depth}, width {self.width}, n_heads {self.n_heads}"
            )

    @classmethod
    def from_depth(cls, depth: int) -> DiTConfig:
        """Width 64 per layer, heads of 64."""
        return cls(depth, 64 * depth, depth)

    def build(
        self, shape: tuple[int, int, int], patch: int, condition: ConditionConfig
    ) -> GridDenoiser:
        """The network for pictures of `shape` (C, Y, X), a token per patch."""
        return GridDenoiser(self, shape, patch, condition)


@dataclass(frozen=True)
class TokenMLPConfig:
    """Sizes of the per-token residual MLP."""

    depth: int = 3
    width: int = 256

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 1:
            raise ValueError(
                f"a token's MLP needs a block and a width; got depth {self.depth}, width"
                f" {self.width}"
            )


class Past:
    """Keys and values (B, H, L, M / H) that one layer of attention has kept."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None
        self.keep = True
        """Whether what comes is kept; else it reads what was kept and is forgotten."""

    def joined(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those kept, followed by these."""
        if self.kept is not None:
            k = torch.cat([self.kept[0], k], 2)
            v = torch.cat([self.kept[1], v], 2)
        if self.keep:
            self.kept = (k, v)
        return k, v


class SelfAttention(nn.Module):
    """Attention without a causal mask: (B, L, M) -> (B, L, M)."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Attend within x (B, L, M).

        attn_mask (B, 1, 1, L) or (L, L) bool: positions that may be attended to; None is all. rope:
        of `grid_rope`. past: earlier positions, which are attended to as well.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, L, M / H)
        if rope is not None:
            q = rotate(q, *rope)
            k = rotate(k, *rope)
        if past is not None:
            k, v = past.joined(k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out(y.transpose(1, 2).flatten(2))


class _GELUWithSlope(torch.autograd.Function):
    """GELU (tanh approximation) that computes its derivative in the forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ones = x.new_ones(()).expand_as(x)
        ctx.save_for_backward(torch.ops.aten.gelu_backward(ones, x, approximate="tanh"))
        return F.gelu(x, approximate="tanh")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope


class GELU(nn.Module):
    """GELU (tanh approximation) that saves its derivative for the backward pass, not its input.

    An exact trace runs the backward pass once per dimension. PyTorch's own GELU computes the
    derivative anew each time, which took three tenths of the trace's time. A training step costs
    2 % more. There are no second derivatives.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _GELUWithSlope.apply(x)
        return F.gelu(x, approximate="tanh")


class DiTBlock(nn.Module):
    """x + gate attention(modulate norm x), then the same with a feed-forward.

    The gates are 0 before training.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.width
        self.attention = SelfAttention(width, config.n_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self,
        x: Tensor,
        conditioning: Tensor,
        attn_mask: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """States x (B, L, M) -> (B, L, M).

        conditioning (B, M); attn_mask, rope and past as of `SelfAttention`.
        """
        modulation = self.modulation(F.silu(conditioning)).chunk(6, 1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        y = self.attention(modulate(_norm(x), shift_a, scale_a), attn_mask, rope, past)
        x = x + gate_a[:, None] * y
        return x + gate_m[:, None] * self.mlp(modulate(_norm(x), shift_m, scale_m))


class Final(nn.Module):
    """Modulated norm and a linear map that is 0 before training: (B, ..., M) -> (B, ..., n_out)."""

    def __init__(self, width: int, n_out: int):
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, n_out)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """States (B, ..., M), conditioning (B, M) -> (B, ..., n_out)."""
        shift, scale = self.modulation(F.silu(conditioning)).chunk(2, 1)
        return self.out(modulate(_norm(x), shift, scale))


class GridDenoiser(nn.Module):
    """A diffusion transformer over the patches of a grid of fixed size, pixels or latents."""

    def __init__(
        self,
        config: DiTConfig,
        shape: tuple[int, int, int],
        patch: int = 1,
        condition: ConditionConfig | None = None,
    ):
        """Build the network for grids of `shape` (C, Y, X); `patch` must divide Y and X."""
        super().__init__()
        channels, height, width = shape
        if height % patch or width % patch:
            raise ValueError(
                f"patches of {patch} do not tile a grid of {height} x {width}: choose a patch that"
                " divides both"
            )
        self.shape = shape
        self.patch = patch
        self.conditioning = Conditioning(config.width, condition)
        self.enter = nn.Linear(channels * patch**2, config.width)
        self.blocks = nn.ModuleList([DiTBlock(config) for _ in range(config.depth)])
        self.final = Final(config.width, channels * patch**2)
        initialise(self)
        # DiT keeps these waves fixed. On grids of a few patches most of them hardly vary, so here
        # they are only the initial value.
        waves = grid_waves(height // patch, width // patch, config.width)
        self.position_embed = nn.Parameter(waves)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """Grids x (B, C, Y, X), c_noise (B,) -> (B, C, Y, X).

        condition, dropped: as in `Conditioning.forward`.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"this denoiser was built for grids of {self.shape}, got {tuple(x.shape[1:])}"
            )
        patches = F.pixel_unshuffle(x, self.patch)  # (B, C p^2, Y/p, X/p)
        conditioning = self.conditioning(c_noise, condition, dropped)
        z = self.enter(patches.flatten(2).transpose(1, 2)) + self.position_embed
        for block in self.blocks:
            z = block(z, conditioning)
        y = self.final(z, conditioning).transpose(1, 2).unflatten(2, patches.shape[2:])
        return F.pixel_shuffle(y, self.patch)


class CrossAttention(nn.Module):
    """x + attention from norm x to a context; it adds nothing before training."""

    def __init__(self, width: int, n_heads: int, context_size: int):
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context_size, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """Let x (B, L, M) attend to context (B, S, context_size); mask (B, S) bool: what of it."""
        q = self.q(_norm(x)).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=context_mask[:, None, None])
        return x + self.out(y.transpose(1, 2).flatten(2))


class SetDenoiser(nn.Module):
    """A diffusion transformer over sets of particles.

    It has no positions, so reordering the particles reorders the outputs. With a context_size each
    layer also attends to a context, such as the states of another set. With n_given it is told that
    many numbers of each particle, of which the last n_graph are a graph's (`GraphBias`).
    """

    def __init__(
        self,
        config: DiTConfig,
        n_features: int,
        condition: ConditionConfig | None = None,
        context_size: int = 0,
        n_given: int = 0,
        n_graph: int = 0,
    ):
        super().__init__()
        self.n_graph = n_graph
        self.conditioning = Conditioning(config.width, condition)
        self.count = TimestepEmbedding(config.width)
        self.enter = nn.Linear(n_features + n_given - n_graph, config.width)
        self.graph: GraphBias | None = None
        if n_graph:
            self.graph = GraphBias(config.depth, config.n_heads)
        self.blocks = nn.ModuleList([DiTBlock(config) for _ in range(config.depth)])
        self.crosses: nn.ModuleList | None = None
        if context_size:
            sizes = (config.width, config.n_heads, context_size)
            self.crosses = nn.ModuleList([CrossAttention(*sizes) for _ in range(config.depth)])
        self.final = Final(config.width, n_features)
        initialise(self)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        mask: Tensor,
        condition: Tensor | None = None,
        dropped: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """Particles x (B, P, D), c_noise (B,), mask (B, P) bool -> (B, P, D), 0 where masked out.

        context (B, S, context_size), with a mask (B, S) bool of what is there of it. given
        (B, P, n_given), where there are such numbers.

        mask: True where a particle is real; what stands elsewhere is not read, be it NaN. The
        number of real particles is an input of its own: attention averages, so it cannot count.
        """
        conditioning = self.conditioning(c_noise, condition, dropped)
        conditioning = conditioning + self.count(mask.sum(1).to(c_noise.dtype))
        # an empty set attends to its padding, as a softmax over nothing is NaN
        attn_mask = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        if given is not None:
            x = torch.cat([x, given[..., : given.shape[2] - self.n_graph]], 2)
        biases: Sequence[Tensor] = [attn_mask] * len(self.blocks)
        if self.graph is not None and given is not None:
            pairs = self.graph(given[..., given.shape[2] - self.n_graph :], mask)
            biases = [bias.masked_fill(~attn_mask, -torch.inf) for bias in pairs]
        z = self.enter(x.masked_fill(~mask[..., None], 0))
        for i, block in enumerate(self.blocks):
            z = block(z, conditioning, biases[i])
            if self.crosses is not None:
                z = self.crosses[i](z, context, context_mask)
        return self.final(z, conditioning).masked_fill(~mask[..., None], 0)


class TokenBlock(nn.Module):
    """x + gate MLP(modulate norm x): (B, M) -> (B, M)."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """States x (B, M), conditioning (B, M) -> (B, M)."""
        shift, scale, gate = self.modulation(F.silu(conditioning)).chunk(3, 1)
        return x + gate * self.mlp(modulate(_norm(x), shift, scale))


class TokenDenoiser(nn.Module):
    """MAR's head: a residual MLP that denoises one frame of latents, given the hidden state."""

    def __init__(self, config: TokenMLPConfig, latent_size: int, hidden_size: int):
        super().__init__()
        self.timestep = TimestepEmbedding(config.width)
        self.state = nn.Linear(hidden_size, config.width)
        self.enter = nn.Linear(latent_size, config.width)
        self.blocks = nn.ModuleList([TokenBlock(config.width) for _ in range(config.depth)])
        self.final = Final(config.width, latent_size)
        initialise(self)

    def forward(self, x: Tensor, c_noise: Tensor, h: Tensor) -> Tensor:
        """Frames x (B, D), c_noise (B,), hidden states h (B, hidden_size) -> (B, D)."""
        conditioning = self.timestep(c_noise) + self.state(h)
        z = self.enter(x)
        for block in self.blocks:
            z = block(z, conditioning)
        return self.final(z, conditioning)


def grid_waves(n_rows: int, n_columns: int, width: int) -> Tensor:
    """Sines and cosines of the position in a grid: (n_rows n_columns, width).

    The row stands in the first half of each vector, the column in the second.
    """
    frequency = 10_000 ** (-torch.arange(width // 4) / (width // 4))
    angles = [axis[:, None] * frequency for axis in _grid_axes(n_rows, n_columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)


def grid_rope(n_rows: int, n_columns: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions on a grid, for `rotate`.

    Two of (n_rows n_columns, head_size), in the layout of halves. One half of the pairs turns with
    the row, the other with the column (Heo et al. 2024, arXiv 2403.13298, section 3.2, axial). Our
    frequencies go from 1 towards 1 / the longer side, which still tells the whole grid apart;
    theirs, down to 1/100, learned more slowly on 8 x 8.

    Raises ValueError for a head size that is no multiple of 4.
    """
    if head_size % 4:
        raise ValueError(
            f"turns by row and column need heads of a multiple of 4 numbers, got {head_size}"
        )
    frequency = max(n_rows, n_columns) ** (-torch.arange(head_size // 4) / (head_size // 4))
    angles = [axis[:, None] * frequency for axis in _grid_axes(n_rows, n_columns)]
    angle = torch.cat(angles * 2, 1)
    return angle.cos(), angle.sin()


def _grid_axes(n_rows: int, n_columns: int) -> tuple[Tensor, Tensor]:
    """The row and the column of every place of a grid, row by row: two (n_rows n_columns,)."""
    row, column = torch.meshgrid(torch.arange(n_rows), torch.arange(n_columns), indexing="ij")
    return row.flatten(), column.flatten()


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def initialise(network: nn.Module) -> None:
    """Glorot's uniform weights; 0 for modulations (blocks start as the identity) and the output."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, (DiTBlock, TokenBlock, Final)):
            zero_module(module.modulation)
        if isinstance(module, (Final, CrossAttention)):
            zero_module(module.out)


# ---- how many rows go through a network at once

CHUNK_ROWS = 64  # on a CPU the activations of more rows fall out of its caches


def in_chunks(network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """network(*inputs) for inputs (B, ...).

    Runs the batch in chunks of 64 under no_grad on a CPU; 256 at once was 1.5 times slower (a DiT
    of width 128 on 8 x 8 pixels, and a small U-Net on 28 x 28; two cores).
    """
    if torch.is_grad_enabled() or inputs[0].device.type != "cpu" or len(inputs[0]) <= CHUNK_ROWS:
        return network(*inputs)
    chunks = zip(*(x.split(CHUNK_ROWS) for x in inputs), strict=True)
    return torch.cat([network(*chunk) for chunk in chunks])
