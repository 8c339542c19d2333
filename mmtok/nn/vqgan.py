"""The convolutional autoencoder that published image tokenizers share, to read their weights.

Esser et al. 2021 (VQGAN, arXiv 2012.09841) as LlamaGen, Janus and Chameleon have it, and Rombach et
al. 2022 (arXiv 2112.10752), whose latents are Gaussian. Its weights go by the names that Janus has.

Letters beyond the package's: C image channels, Y, X pixels, Z channels of the encoder's output, D
numbers of a code or latents, s the stride, so that the grid is Y/s by X/s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.quantize import nearest_code

NORM_EPS = 1e-6


@dataclass(frozen=True)
class VQGANSizes:
    """Sizes of such a network.

    Attributes:
        widths: channels of each level, the finest first.
        blocks: residual blocks of a level of the encoder; the decoder has one more.
        attention: levels with attention after each block.
        z_channels: Z.
        code_size: D.
        n_codes: of the codebook; 0: latents, D of mean and D of log variance.
        channels: C.
        groups: of the norms.
        has_quant_conv: whether a layer lies between Z and D.
        normalises_vectors: codes are looked up by the angle.
        normalises_codes: codes have length 1 in the decoder.
    """

    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    z_channels: int
    code_size: int
    n_codes: int
    channels: int = 3
    groups: int = 32
    has_quant_conv: bool = True
    normalises_vectors: bool = False
    normalises_codes: bool = False

    @property
    def stride(self) -> int:
        """Pixels between patches."""
        return 2 ** (len(self.widths) - 1)


def _norm(n: int, groups: int) -> nn.Module:
    return nn.GroupNorm(groups, n, eps=NORM_EPS)


class _Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, n_in: int, n_out: int, groups: int):
        super().__init__()
        self.norm1 = _norm(n_in, groups)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2 = _norm(n_out, groups)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.nin_shortcut: nn.Module = nn.Identity()
        if n_in != n_out:
            self.nin_shortcut = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class _Attention(nn.Module):
    """One head over all places."""

    def __init__(self, n: int, groups: int):
        super().__init__()
        self.norm = _norm(n, groups)
        self.q = nn.Conv2d(n, n, 1)
        self.k = nn.Conv2d(n, n, 1)
        self.v = nn.Conv2d(n, n, 1)
        self.proj_out = nn.Conv2d(n, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        found = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(found.transpose(1, 2).unflatten(2, x.shape[2:]))


class _Middle(nn.Module):
    def __init__(self, n: int, groups: int):
        super().__init__()
        self.block_1 = _Block(n, n, groups)
        self.attn_1 = _Attention(n, groups)
        self.block_2 = _Block(n, n, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Shrink(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.conv = nn.Conv2d(n, n, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Grow(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.conv = nn.Conv2d(n, n, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Blocks of one resolution, attention after each where it has any, and a change of it."""

    def __init__(self, n_in: int, n_out: int, blocks: int, attention: bool, groups: int):
        super().__init__()
        inputs = [n_in] + [n_out] * (blocks - 1)
        self.block = nn.ModuleList([_Block(n, n_out, groups) for n in inputs])
        self.attn = nn.ModuleList()
        if attention:
            self.attn.extend([_Attention(n_out, groups) for _ in inputs])

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


def _changes(level: nn.Module, name: str) -> list[nn.Module]:
    """What changes the resolution after a level, where anything does."""
    return [child for own, child in level.named_children() if own == name]


class _Encoder(nn.Module):
    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        widths = sizes.widths
        self.conv_in = nn.Conv2d(sizes.channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        n_in = widths[0]
        for i, n_out in enumerate(widths):
            level = _Level(n_in, n_out, sizes.blocks, i in sizes.attention, sizes.groups)
            if i < len(widths) - 1:
                level.downsample = _Shrink(n_out)
            self.down.append(level)
            n_in = n_out
        self.mid = _Middle(n_in, sizes.groups)
        self.norm_out = _norm(n_in, sizes.groups)
        n_moments = 1 if sizes.n_codes else 2
        self.conv_out = nn.Conv2d(n_in, n_moments * sizes.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
            for change in _changes(level, "downsample"):
                x = change(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class _Decoder(nn.Module):
    """`up` has the coarsest level first."""

    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        widths = sizes.widths
        n_in = widths[-1]
        self.conv_in = nn.Conv2d(sizes.z_channels, n_in, 3, padding=1)
        self.mid = _Middle(n_in, sizes.groups)
        self.up = nn.ModuleList()
        for i in reversed(range(len(widths))):
            n_out = widths[i]
            level = _Level(n_in, n_out, sizes.blocks + 1, i in sizes.attention, sizes.groups)
            if i:
                level.upsample = _Grow(n_out)
            self.up.append(level)
            n_in = n_out
        self.norm_out = _norm(n_in, sizes.groups)
        self.conv_out = nn.Conv2d(n_in, sizes.channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in self.up:
            x = level(x)
            for change in _changes(level, "upsample"):
                x = change(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Quantize(nn.Module):
    """Holds the codebook, under the name that published weights have."""

    def __init__(self, n_codes: int, code_size: int):
        super().__init__()
        self.embedding = nn.Embedding(n_codes, code_size)


class VQGAN(nn.Module):
    """Images in -1..1 to codes or to latents, and back."""

    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        self.sizes = sizes
        n_moments = 1 if sizes.n_codes else 2
        self.encoder = _Encoder(sizes)
        self.decoder = _Decoder(sizes)
        self.quant_conv: nn.Module = nn.Identity()
        self.post_quant_conv: nn.Module = nn.Identity()
        if sizes.has_quant_conv:
            self.quant_conv = nn.Conv2d(
                n_moments * sizes.z_channels, n_moments * sizes.code_size, 1
            )
            self.post_quant_conv = nn.Conv2d(sizes.code_size, sizes.z_channels, 1)
        if sizes.n_codes:
            self.quantize = _Quantize(sizes.n_codes, sizes.code_size)

    def encoded(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, Y/s, X/s, D): vectors to be looked up, or means of latents."""
        found = self.quant_conv(self.encoder(images))
        if not self.sizes.n_codes:
            found = found.chunk(2, 1)[0]
        return found.permute(0, 2, 3, 1)

    def decoded(self, vectors: Tensor) -> Tensor:
        """(B, Y/s, X/s, D) -> (B, C, Y, X)."""
        return self.decoder(self.post_quant_conv(vectors.permute(0, 3, 1, 2)))

    def codes(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> codes (B, Y/s, X/s)."""
        vectors = self.encoded(images)
        book = self.quantize.embedding.weight
        if self.sizes.normalises_vectors:
            vectors = F.normalize(vectors, dim=-1)
            book = F.normalize(book, dim=-1)
        return nearest_code(vectors, book)

    def images(self, codes: Tensor) -> Tensor:
        """Codes (B, Y/s, X/s) -> images (B, C, Y, X)."""
        vectors = self.quantize.embedding(codes)
        if self.sizes.normalises_codes:
            vectors = F.normalize(vectors, dim=-1)
        return self.decoded(vectors)


def sizes_of(weights: dict[str, Tensor], groups: int = 32, normalised: bool = False) -> VQGANSizes:
    """The sizes of a network with these weights, under Janus's names.

    normalised: codes are looked up by the angle.

    Raises KeyError where weights that every such network has are missing.
    """
    n_levels = len({name.split(".")[2] for name in weights if name.startswith("encoder.down.")})
    levels = range(n_levels)
    blocks = {name.split(".")[4] for name in weights if name.startswith("encoder.down.0.block.")}
    attention = [i for i in levels if f"encoder.down.{i}.attn.0.q.weight" in weights]
    book = weights.get("quantize.embedding.weight")
    z_channels = weights["decoder.conv_in.weight"].shape[1]
    has_quant_conv = "quant_conv.weight" in weights
    code_size = z_channels
    if has_quant_conv:
        code_size = weights["post_quant_conv.weight"].shape[1]
    return VQGANSizes(
        widths=tuple(weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels),
        blocks=len(blocks),
        attention=tuple(attention),
        z_channels=z_channels,
        code_size=code_size,
        n_codes=0 if book is None else len(book),
        channels=weights["encoder.conv_in.weight"].shape[1],
        groups=groups,
        has_quant_conv=has_quant_conv,
        normalises_vectors=normalised,
        normalises_codes=normalised,
    )
