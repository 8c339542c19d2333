"""Attention over packed rows. Knows documents only as integers that must agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    flex_attention,
)

# True or False has `packing` choose FlexAttention or the dense mask on every device: to compare the
# two
FUSED: bool | None = None


@dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3.1 stretches its rotary positions (Llama Team 2024, section 3.4.2 and the released
    code).

    Waves that turn less than `low_freq_factor` times in `original_positions` are slowed down by
    `factor`, those that turn more than `high_freq_factor` times are left alone, and between the two
    the frequency is interpolated.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def __post_init__(self):
        if not (
            self.factor >= 1
            and 0 < self.low_freq_factor < self.high_freq_factor
            and self.original_positions > 0
        ):
            raise ValueError(
                "scaled rotary positions need factor >= 1, 0 < low_freq_factor < high_freq_factor,"
                f" positions; got {self.factor}, {self.low_freq_factor}, {self.high_freq_factor},"
                f" {self.original_positions}"
            )

    def __call__(self, frequency: Tensor) -> Tensor:
        turns = self.original_positions * frequency / (2 * math.pi)
        kept = (
            (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        ).clamp(0, 1)
        return frequency * (kept + (1 - kept) / self.factor)


def rotary(
    position: Tensor, head_size: int, theta: float, scaling: Llama3Scaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (Su et al.

    2021, eq. 34), halves layout: two (B, 1, L, head_size) in float32.
    """
    frequency = theta ** (
        -torch.arange(0, head_size, 2, device=position.device, dtype=torch.float32) / head_size
    )
    frequency = scaling(frequency) if scaling else frequency
    angle = position[..., None].float() * frequency
    angle = torch.cat([angle, angle], -1)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, H, L, head_size) queries or keys by their positions."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if torch.compiler.is_compiling():  # a compiler fuses this by itself
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin
    return _Rotation.apply(x, cos, sin)


class _Rotation(torch.autograd.Function):
    """`rotate` in half of the passes over memory: y_a = a cos - b sin, y_b = b cos + a sin.

    Its gradient turns back.
    """

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return _turned(grad, *ctx.saved_tensors, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    y = x * cos
    (a, b), (y_a, y_b), (sin_a, sin_b) = x.chunk(2, -1), y.chunk(2, -1), sin.chunk(2, -1)
    y_a.addcmul_(b, sin_a, value=-direction)
    y_b.addcmul_(a, sin_b, value=direction)
    return y


def document_mask(document: Tensor, head_size: int) -> Tensor | BlockMask | None:
    """What packed rows see, made once per batch from their document numbers (B, L): each position
    itself and its own document's past.

    On a GPU the blocks of positions that FlexAttention visits (Dong et al. 2024), whose cost goes
    with documents, not rows; its kernel takes heads of 16 and more. Elsewhere a dense mask (B, 1,
    L, L) bool: FlexAttention has no backward on a CPU, nor has the variable-length kernel, and
    calls for each document by itself were no faster there. None where each row is one document,
    padding behind it: then the past is all that counts, and half of the pairs need not be looked
    at.
    """
    if not (document.is_cuda and head_size >= 16 if FUSED is None else FUSED):
        if not (document > 0).any():
            return None
        same = document[:, :, None] == document[:, None, :]
        return same.tril()[:, None]
    seen = lambda row, head, query, key: (
        (query >= key) & (document[row, query] == document[row, key])
    )
    make = (
        _compiled(create_block_mask) if document.is_cuda else create_block_mask
    )  # uncompiled it goes over all pairs of positions
    return make(
        seen, len(document), None, document.shape[1], document.shape[1], device=document.device
    )


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | BlockMask | None) -> Tensor:
    """softmax(q k^T / sqrt(head_size)) v over what `packing` lets be seen: q (B, H, L, head_size),
    k and v (B, KV, L, head_size) -> as q.

    Heads share keys in groups of H / KV. Queries, keys and values are of one type.
    """
    grouped = q.shape[1] != k.shape[1]
    if seen is None or isinstance(seen, Tensor):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=seen is None, enable_gqa=grouped
        )
    fused = (
        _compiled(flex_attention)
        if q.is_cuda and not torch.compiler.is_compiling()
        else flex_attention
    )
    return fused(q, k, v, block_mask=seen, enable_gqa=grouped)


@cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (Ainslie et al.

    2023); weights named as in a Llama.
    """

    def __init__(self, width: int, n_heads: int, n_kv_heads: int):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_size = n_heads, n_kv_heads, width // n_heads
        self.q_proj = nn.Linear(width, n_heads * self.head_size, bias=False)
        self.k_proj = nn.Linear(width, n_kv_heads * self.head_size, bias=False)
        self.v_proj = nn.Linear(width, n_kv_heads * self.head_size, bias=False)
        self.o_proj = nn.Linear(n_heads * self.head_size, width, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor | BlockMask | None
    ) -> Tensor:
        """X (B, L, M), cosines and sines of `rotary`, what `packing` made -> (B, L, M)."""
        split = lambda y, n: y.unflatten(-1, (n, self.head_size)).transpose(1, 2)
        q, k, v = (
            split(self.q_proj(x), self.n_heads),
            split(self.k_proj(x), self.n_kv_heads),
            split(self.v_proj(x), self.n_kv_heads),
        )
        q, k = rotate(q, *turn), rotate(k, *turn)
        return self.o_proj(attend(q, k, v, seen).transpose(1, 2).flatten(2))
