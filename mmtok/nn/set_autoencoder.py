"""Networks over sets: each element by itself, or all elements of a set by attention.

Sets come one after another: elements (N, D) of all sets, and how many each has (B,). Neither
network knows an order, so both are permutation-equivariant, and what a set gives does not depend
on other sets, but for rounding.

Both begin as the identity on the numbers that input and output share, or that fit, so that a
codebook between two of them begins as one of the elements' own numbers.

Letters beyond the package's: N elements of all sets, D numbers of an element, W hidden numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.nn.conditioning import zero_module
from mmtok.nn.quantize import LookUp


class _Begun(nn.Module):
    """A linear map that begins as the identity, plus what is learned and begins as 0."""

    def __init__(self, n_in: int, n_out: int, width: int):
        super().__init__()
        self.direct = nn.Linear(n_in, n_out)
        nn.init.eye_(self.direct.weight)
        nn.init.zeros_(self.direct.bias)
        self.stem = nn.Linear(n_in, width)
        self.out = zero_module(nn.Linear(width, n_out))


class ElementNetwork(_Begun):
    """Each element by itself: an MLP (N, n_in) -> (N, n_out)."""

    def __init__(self, n_in: int, n_out: int, width: int, layers: int):
        super().__init__(n_in, n_out, width)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(layers - 1)])

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Elements (N, n_in) of sets of lengths (B,), which do not matter here, -> (N, n_out)."""
        y = F.relu(self.stem(x))
        for layer in self.hidden:
            y = F.relu(layer(y))
        return self.direct(x) + self.out(y)


class SetNetwork(_Begun):
    """All elements of a set by attention: (N, n_in) -> (N, n_out)."""

    def __init__(self, n_in: int, n_out: int, width: int, blocks: int, n_heads: int):
        super().__init__(n_in, n_out, width)
        self.blocks = nn.ModuleList([NormFormerBlock(width, n_heads) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Elements (N, n_in) of sets of lengths (B,) -> (N, n_out)."""
        is_real = real_places(lengths)
        y = self.stem(x)
        for block in self.blocks:
            y = block(y, is_real)
        return self.direct(x) + self.out(self.norm(y))


def real_places(lengths: Tensor) -> Tensor:
    """Lengths (B,) -> which of (B, L) places hold an element, L the longest."""
    longest = int(lengths.max()) if len(lengths) else 0
    return torch.arange(longest) < lengths[:, None]


class NormFormerBlock(nn.Module):
    """Attention without positions and a feed-forward, normed before and after.

    Shleifer et al. 2021 (NormFormer, arXiv 2110.09456, section 2), without the scales of heads and
    of the residual.
    """

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.before = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.after = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.LayerNorm(4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor, is_real: Tensor) -> Tensor:
        """States x (N, W) of the real places of (B, L) -> (N, W)."""
        x = x + self.after(self._attention(self.before(x), is_real))
        return x + self.mlp(x)

    def _attention(self, x: Tensor, is_real: Tensor) -> Tensor:
        qkv = self.qkv(x)
        padded = qkv.new_zeros(*is_real.shape, qkv.shape[1])
        padded[is_real] = qkv
        q, k, v = padded.unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None
        if not bool(is_real.all()):
            mask = is_real[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, L, W / H)
        return self.mix(y.transpose(1, 2).flatten(2)[is_real])


class SetAutoencoder(nn.Module):
    """Encoder, look-up and decoder of elements, as one set of weights."""

    def __init__(self, encoder: nn.Module, codebook: LookUp, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.codebook = codebook
        self.decoder = decoder

    def codes(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Elements (N, D) of sets of lengths (B,) -> codes (N, C)."""
        return self.codebook.codes(self.encoder(x, lengths))

    def elements(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Codes (N, C) of sets of lengths (B,) -> elements (N, D)."""
        return self.decoder(self.codebook(codes), lengths)
