"""Denoisers of grids, sets and single tokens: transformers and a residual MLP, modulate by what
they are told (adaLN-zero).

Each is a network F(c_in x, c_noise) that says 0 before training, so that under any preconditioning
D(x) = c_skip x at the start.
Rows never meet: no batch statistics. Bind a condition beforehand: `lambda x, c: network(x, c,
condition)`.

Sources: Peebles and Xie 2023 (DiT, arXiv 2212.09748, section 3.2); Li et al. 2024 (MAR, arXiv
2406.11838, appendix A). Letters beyond the package's: C image channels, Y, X pixels, p patch side;
D also counts a particle's features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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

NORM_EPS = 1e-6


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a diffusion transformer.

    `from_depth` derives them from one dial, in the proportions of the trunk.
    """

    depth: int = 4
    width: int = 128
    n_heads: int = 4

    def __post_init__(self):
        if self.depth < 1 or self.n_heads < 1 or self.width % self.n_heads or self.width % 4:
            raise ValueError(
                "a diffusion transformer's width must be a multiple of 4 and of its number of"
                f" heads; got depth {self.depth}, width {self.width}, n_heads {self.n_heads}"
            )

    @classmethod
    def from_depth(cls, depth: int) -> DiTConfig:
        """Width 64 per layer, heads of 64."""
        return cls(depth, 64 * depth, depth)


@dataclass(frozen=True)
class TokenMLPConfig:
    """Sizes of the per-token residual MLP."""

    depth: int = 3
    width: int = 256

    def __post_init__(self):
        if self.depth < 1 or self.width < 1:
            raise ValueError(
                f"a token's MLP needs a block and a width; got depth {self.depth}, width"
                f" {self.width}"
            )


class SelfAttention(nn.Module):
    """All positions see all others that exist: (B, L, M) -> (B, L, M)."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, seen: Tensor | None = None, turn: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Seen (B, 1, 1, L) bool: positions that may be looked at; None is all.

        turn: of `grid_turns`.
        """
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, H, L, M / H)
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(y.transpose(1, 2).flatten(2))


class _GELUWithSlope(torch.autograd.Function):
    """GELU (tanh approximation) whose derivative is taken once, going forward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(
            torch.ops.aten.gelu_backward(x.new_ones(()).expand_as(x), x, approximate="tanh")
        )
        return F.gelu(x, approximate="tanh")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope


class KeptGELU(nn.Module):
    """GELU (tanh approximation) that keeps its derivative instead of its input, in the same memory.

    An exact trace goes backward once per dimension: PyTorch's own takes the derivative anew each
    time, three tenths of all that time. A training step costs 2 % more. There are no second
    derivatives.
    """

    def forward(self, x: Tensor) -> Tensor:
        return (
            _GELUWithSlope.apply(x)
            if torch.is_grad_enabled() and x.requires_grad
            else F.gelu(x, approximate="tanh")
        )


class DiTBlock(nn.Module):
    """x + gate attention(modulate norm x), then the same with a feed-forward; the gates start at 0."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.width
        self.attention = SelfAttention(width, config.n_heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), KeptGELU(), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self,
        x: Tensor,
        conditioning: Tensor,
        seen: Tensor | None,
        turn: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """X (B, L, M), told (B, M), seen and turn as of `SelfAttention` -> (B, L, M)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(
            F.silu(conditioning)
        ).chunk(6, 1)
        x = x + gate_a[:, None] * self.attention(modulate(_norm(x), shift_a, scale_a), seen, turn)
        return x + gate_m[:, None] * self.mlp(modulate(_norm(x), shift_m, scale_m))


class Final(nn.Module):
    """Modulated norm and a linear map, which starts at 0: (B, ..., M) -> (B, ..., n_out)."""

    def __init__(self, width: int, n_out: int):
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, n_out)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        return self.out(modulate(_norm(x), *self.modulation(F.silu(conditioning)).chunk(2, 1)))


class GridDenoiser(nn.Module):
    """A diffusion transformer over the patches of a grid of fixed size, pixels or latents."""

    def __init__(
        self,
        config: DiTConfig,
        shape: tuple[int, int, int],
        patch: int = 1,
        condition: ConditionConfig | None = None,
    ):
        """shape: (C, Y, X); patch must divide Y and X."""
        super().__init__()
        channels, height, width = shape
        if height % patch or width % patch:
            raise ValueError(
                f"patches of {patch} do not tile a grid of {height} x {width}: choose a patch that"
                " divides both"
            )
        self.shape, self.patch = shape, patch
        self.conditioning = Conditioning(config.width, condition)
        self.enter = nn.Linear(channels * patch**2, config.width)
        self.blocks = nn.ModuleList([DiTBlock(config) for _ in range(config.depth)])
        self.final = Final(config.width, channels * patch**2)
        _initialise(self)
        # DiT keeps these waves as they are; on grids of a few patches most hardly turn, so here
        # they are only the start
        self.position_embed = nn.Parameter(
            grid_waves(height // patch, width // patch, config.width)
        )

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """X (B, C, Y, X), c_noise (B,), condition and dropped as in `Told` -> (B, C, Y, X)."""
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"this denoiser was built for grids of {self.shape}, got {tuple(x.shape[1:])}"
            )
        patches = F.pixel_unshuffle(x, self.patch)  # (B, C p^2, Y/p, X/p)
        conditioning = self.conditioning(c_noise, condition, dropped)
        z = self.enter(patches.flatten(2).transpose(1, 2)) + self.position_embed
        for block in self.blocks:
            z = block(z, conditioning, None)
        return F.pixel_shuffle(
            self.final(z, conditioning).transpose(1, 2).unflatten(2, patches.shape[2:]), self.patch
        )


class CodeDenoiser(nn.Module):
    """A transformer that says what hidden codes of a grid may be, given those that are not and a
    vector: masked diffusion's network.

    It is not told how many are hidden: it can count them (Ou et al. 2024, arXiv 2406.03736, section
    3). The vector is told thrice, as where most codes are known it hardly matters and is learned
    late: it modulates every layer, stands before the codes as a token, and is added to each of them
    (samples of digits by name, after 600 steps and under guidance: 0.30 judged right without the
    last, 0.60 with it). Hidden codes look alike, so that where they stand is all that attention has
    to go by: it is told as turns too, of which a neighbour's is the same everywhere.
    """

    def __init__(self, config: DiTConfig, n_levels: int, grid: tuple[int, int], hidden_size: int):
        super().__init__()
        self.enter = nn.Embedding(n_levels + 1, config.width)  # the last one is the mask
        self.state = nn.Linear(hidden_size, config.width)
        self.token = nn.Linear(hidden_size, config.width)
        self.everywhere = nn.Linear(hidden_size, config.width)
        self.blocks = nn.ModuleList([DiTBlock(config) for _ in range(config.depth)])
        self.final = Final(config.width, n_levels)
        _initialise(self)
        nn.init.normal_(self.enter.weight, std=0.5)
        self.position_embed = nn.Parameter(grid_waves(*grid, config.width))
        for name, turn in zip(("cos", "sin"), grid_turns(*grid, config.width // config.n_heads)):
            self.register_buffer(
                name, F.pad(turn, (0, 0, 1, 0), value=float(name == "cos")), persistent=False
            )  # the vector stands nowhere

    def forward(self, codes: Tensor, h: Tensor) -> Tensor:
        """Codes (B, L), hidden ones n_levels; h (B, hidden_size) -> logits (B, L, n_levels).

        Rows of the grid follow each other.
        """
        conditioning = self.state(h)
        z = self.enter(codes) + self.position_embed + self.everywhere(h)[:, None]
        z = torch.cat([self.token(h)[:, None].to(z.dtype), z], 1)
        for block in self.blocks:
            z = block(z, conditioning, None, (self.cos, self.sin))
        return self.final(z[:, 1:], conditioning)


class SetDenoiser(nn.Module):
    """A diffusion transformer over sets of particles: no positions, so reordered particles give
    reordered answers.
    """

    def __init__(
        self, config: DiTConfig, n_features: int, condition: ConditionConfig | None = None
    ):
        super().__init__()
        self.conditioning = Conditioning(config.width, condition)
        self.count = TimestepEmbedding(config.width)
        self.enter = nn.Linear(n_features, config.width)
        self.blocks = nn.ModuleList([DiTBlock(config) for _ in range(config.depth)])
        self.final = Final(config.width, n_features)
        _initialise(self)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        mask: Tensor,
        condition: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """X (B, P, D), c_noise (B,), mask (B, P) bool, True where a particle is real -> (B, P, D),
        0 where it is not.

        What stands at the other places is not read, be it NaN. The number of real particles is told
        apart: attention averages, so it cannot count.
        """
        conditioning = self.conditioning(c_noise, condition, dropped) + self.count(
            mask.sum(1).to(c_noise.dtype)
        )
        seen = (mask | ~mask.any(1, keepdim=True))[
            :, None, None
        ]  # an empty set looks at its padding, as a softmax needs something
        z = self.enter(x.masked_fill(~mask[..., None], 0))
        for block in self.blocks:
            z = block(z, conditioning, seen)
        return self.final(z, conditioning).masked_fill(~mask[..., None], 0)


class TokenBlock(nn.Module):
    """x + gate MLP(modulate norm x): (B, M) -> (B, M)."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(conditioning)).chunk(3, 1)
        return x + gate * self.mlp(modulate(_norm(x), shift, scale))


class TokenDenoiser(nn.Module):
    """MAR's head: a residual MLP that denoises one frame of latents, told the decoder's hidden
    state.
    """

    def __init__(self, config: TokenMLPConfig, latent_size: int, hidden_size: int):
        super().__init__()
        self.level = TimestepEmbedding(config.width)
        self.state = nn.Linear(hidden_size, config.width)
        self.enter = nn.Linear(latent_size, config.width)
        self.blocks = nn.ModuleList([TokenBlock(config.width) for _ in range(config.depth)])
        self.final = Final(config.width, latent_size)
        _initialise(self)

    def forward(self, x: Tensor, c_noise: Tensor, h: Tensor) -> Tensor:
        """X (B, D), c_noise (B,), hidden states h (B, hidden_size) -> (B, D). A row is a frame."""
        conditioning = self.level(c_noise) + self.state(h)
        z = self.enter(x)
        for block in self.blocks:
            z = block(z, conditioning)
        return self.final(z, conditioning)


def grid_waves(n_rows: int, n_columns: int, width: int) -> Tensor:
    """Sines and cosines of the row in one half of a vector, of the column in the other: (n_rows
    n_columns, width).
    """
    frequency = 10_000 ** (-torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(n_rows), torch.arange(n_columns), indexing="ij")
    angles = [at.flatten()[:, None] * frequency for at in (row, column)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)


def grid_turns(n_rows: int, n_columns: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions on a grid, for `rotate`: two (n_rows n_columns,
    head_size), halves layout.

    One half of the pairs turns with the row, the other with the column (Heo et al. 2024, arXiv
    2403.13298, section 3.2, axial). Their rates go from 1 towards 1 / the longer side, at which a
    turn tells the whole grid apart: theirs, to 1/100, learned more slowly on 8 x 8. Raises
    ValueError for a head that holds no pair for each.
    """
    if head_size % 4:
        raise ValueError(
            f"turns by row and column need heads of a multiple of 4 numbers, got {head_size}"
        )
    frequency = max(n_rows, n_columns) ** (-torch.arange(head_size // 4) / (head_size // 4))
    row, column = torch.meshgrid(torch.arange(n_rows), torch.arange(n_columns), indexing="ij")
    angle = torch.cat([at.flatten()[:, None] * frequency for at in (row, column)] * 2, 1)
    return angle.cos(), angle.sin()


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def _initialise(network: nn.Module) -> None:
    """Glorot's uniform weights; 0 for the modulations (blocks start as the identity) and for what
    the network says.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, (DiTBlock, TokenBlock, Final)):
            zero_module(module.modulation)
        if isinstance(module, Final):
            zero_module(module.out)


# ---- how many rows go through a network at once

CHUNK_ROWS = 64  # of pictures: on a CPU more of them fall out of its caches


def in_chunks(network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """network(*inputs), all (B, ...); where nothing is learned on a CPU, a few rows after another.

    Of 256 rows at once 8 x 8 pixels took a DiT of width 128 1.5 times as long, 28 x 28 a small
    U-Net too (two cores).
    """
    if torch.is_grad_enabled() or inputs[0].device.type != "cpu" or len(inputs[0]) <= CHUNK_ROWS:
        return network(*inputs)
    return torch.cat([network(*part) for part in zip(*(x.split(CHUNK_ROWS) for x in inputs))])
