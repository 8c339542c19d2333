"""The network of masked diffusion over codes: of whole grids, or of one block after another.

Sources: Sahoo et al. 2024 (arXiv 2406.07524); Arriola et al. 2025 (BD3-LM, arXiv 2503.09573,
section 3). Letters: B segments, L codes of each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.nn.denoisers import (
    DiTBlock,
    DiTConfig,
    Final,
    Past,
    grid_rope,
    grid_waves,
    initialise,
)


class CodeDenoiser(nn.Module):
    """The network of masked diffusion: logits of the masked codes of a grid, given the others.

    No timestep input: the mask count carries it (Ou et al. 2024, arXiv 2406.03736, section 3).

    The condition h enters three times: by adaLN in every layer, as a prefix token, and as a bias
    added to every code. Where most codes are known it hardly matters, so that it is learned late.
    Digits by name, after 600 steps and under guidance: 0.30 were judged right without the bias,
    0.60 with it.

    Masked codes look alike, so attention has only their positions to go by. Positions enter as a
    learned embedding and as rotary positions, under which a neighbour looks the same everywhere.

    In blocks, a code is read by those of its own block and of later ones alone. What is read of
    earlier blocks then never changes, so that drawing keeps their keys and values (`begin`,
    `next_block`).
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor

    def __init__(
        self,
        config: DiTConfig,
        n_levels: int,
        grid: tuple[int, int],
        hidden_size: int,
        block: int | None = None,
    ):
        """Build the network for codes of a grid; block: so many of them make one, None all."""
        super().__init__()
        self.enter = nn.Embedding(n_levels + 1, config.width)  # the last one is the mask
        self.state = nn.Linear(hidden_size, config.width)
        self.token = nn.Linear(hidden_size, config.width)
        self.bias = nn.Linear(hidden_size, config.width)
        self.blocks = nn.ModuleList([DiTBlock(config) for _ in range(config.depth)])
        self.final = Final(config.width, n_levels)
        initialise(self)
        nn.init.normal_(self.enter.weight, std=0.5)
        self.position_embed = nn.Parameter(grid_waves(*grid, config.width))
        cos, sin = grid_rope(*grid, config.width // config.n_heads)
        # the prefix token is not rotated: cosine 1, sine 0
        self.register_buffer("cos", F.pad(cos, (0, 0, 1, 0), value=1.0), persistent=False)
        self.register_buffer("sin", F.pad(sin, (0, 0, 1, 0), value=0.0), persistent=False)
        if block is not None:
            mask = block_mask(grid[0] * grid[1], block)
            self.register_buffer("mask", mask, persistent=False)

    def forward(self, codes: Tensor, h: Tensor, clean: Tensor | None = None) -> Tensor:
        """Codes (B, L), row by row, and h (B, hidden_size) -> logits (B, L, n_levels).

        A masked code is n_levels. clean (B, L): of a network in blocks, the codes themselves; each
        block reads of the earlier ones these, and its own masked ones.
        """
        z = self._entered(codes, h)
        cos = self.cos
        sin = self.sin
        mask = None
        if clean is not None:
            z = torch.cat([self._entered(clean, h), z], 1)
            cos = torch.cat([cos, cos[1:]])
            sin = torch.cat([sin, sin[1:]])
            mask = self.mask
        z = torch.cat([self._prefix(h).to(z.dtype), z], 1)
        return self._logits(z, h, (cos, sin), mask)[:, -codes.shape[1] :]

    def begin(self, h: Tensor) -> list[Past]:
        """What the first block reads, for each layer."""
        pasts = [Past() for _ in self.blocks]
        self._logits(self._prefix(h), h, (self.cos[:1], self.sin[:1]), None, pasts)
        return pasts

    def next_block(
        self, codes: Tensor, h: Tensor, first: int, pasts: list[Past], keep: bool = False
    ) -> Tensor:
        """Logits (B, n, n_levels) of the codes first ... first + n - 1 (B, n), given the past.

        keep: the codes are final; the next block will read them.
        """
        for past in pasts:
            past.keep = keep
        places = slice(first + 1, first + 1 + codes.shape[1])
        rope = (self.cos[places], self.sin[places])
        return self._logits(self._entered(codes, h, first), h, rope, None, pasts)

    def _entered(self, codes: Tensor, h: Tensor, first: int = 0) -> Tensor:
        positions = self.position_embed[first : first + codes.shape[1]]
        return self.enter(codes) + positions + self.bias(h)[:, None]

    def _prefix(self, h: Tensor) -> Tensor:
        return self.token(h)[:, None]

    def _logits(
        self,
        z: Tensor,
        h: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        pasts: list[Past] | None = None,
    ) -> Tensor:
        conditioning = self.state(h)
        none: list[Past | None] = [None] * len(self.blocks)
        for block, past in zip(self.blocks, pasts or none, strict=True):
            z = block(z, conditioning, mask, rope, past)
        return self.final(z, conditioning)


def block_mask(n_codes: int, block: int) -> Tensor:
    """Which of the prefix, the L clean codes and the L masked ones reads which: (1 + 2 L,) * 2.

    Clean codes read the clean ones of their own block and of earlier ones, masked codes the masked
    ones of their own and the clean ones of earlier ones; all read the prefix, which reads itself
    (Arriola et al. 2025, section 3.1).
    """
    # the prefix is a block of its own, before all others
    number = F.pad(torch.arange(n_codes) // block, (1, 0), value=-1)
    earlier = number[:, None] > number
    same = number[:, None] == number
    upper = torch.cat([earlier | same, torch.zeros_like(same)[:, 1:]], 1)
    lower = torch.cat([earlier, same[:, 1:]], 1)[1:]
    return torch.cat([upper, lower])
