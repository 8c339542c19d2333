"""Causal attention with rotary positions over rows that hold several documents each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    flex_attention,
)
from torch.nn.attention.varlen import varlen_attn

# True: `document_mask` makes masks of FlexAttention on every device; False: dense masks on every
# device; None: as fits the device. Tests set it to compare the two.
USE_FLEX_ATTENTION: bool | None = None
MIN_FLEX_HEAD_SIZE = 16
USE_LENGTHS = True  # the variable-length kernel where it can be used


@dataclass(frozen=True)
class Llama3Scaling:
    """Scaled rotary positions of Llama 3.1 (Llama Team 2024, section 3.4.2, and the released code).

    Frequencies that make fewer than `low_freq_factor` turns within `original_positions` are divided
    by `factor`. Those that make more than `high_freq_factor` turns are kept. Those between are
    interpolated.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def __post_init__(self) -> None:
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
        """The scaled frequencies, in radians per position."""
        n_turns = self.original_positions * frequency / (2 * math.pi)
        smooth = (n_turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        smooth = smooth.clamp(0, 1)
        return frequency * (smooth + (1 - smooth) / self.factor)


def rotary(
    position: Tensor, head_size: int, theta: float, scaling: Llama3Scaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (Su et al. 2021, eq. 34).

    position (B, L) -> two of (B, 1, L, head_size), float32, in the layout of halves that Llama has.
    """
    exponent = -torch.arange(0, head_size, 2, device=position.device, dtype=torch.float32)
    frequency = theta ** (exponent / head_size)
    if scaling is not None:
        frequency = scaling(frequency)
    angle = position[..., None].float() * frequency
    angle = torch.cat([angle, angle], -1)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to queries or keys (B, H, L, head_size)."""
    cos = cos.to(x.dtype)
    sin = sin.to(x.dtype)
    if torch.compiler.is_compiling():  # the compiler fuses this by itself
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin
    return _Rotation.apply(x, cos, sin)


class _Rotation(torch.autograd.Function):
    """`rotate` with half as many passes over memory: y_a = a cos - b sin, y_b = b cos + a sin.

    Its gradient is the rotation by the negative angle.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    y = x * cos
    a, b = x.chunk(2, -1)
    y_a, y_b = y.chunk(2, -1)
    sin_a, sin_b = sin.chunk(2, -1)
    y_a.addcmul_(b, sin_a, value=-direction)
    y_b.addcmul_(a, sin_b, value=direction)
    return y


@dataclass(frozen=True, eq=False)
class DocumentEnds:
    """Where the documents of packed rows end, as the variable-length kernel takes them.

    Attributes:
        ends: (n + 1,) int32: 0, and the ends of documents and padding in the flattened rows; the
            last one may be repeated.
        longest: no document is longer.
    """

    ends: Tensor
    longest: int


LinearMaker = Callable[[int, int], nn.Module]
AttentionMask = Tensor | BlockMask | DocumentEnds | None


def document_mask(
    document: Tensor,
    head_size: int,
    ends: Tensor | None = None,
    one_per_row: bool | None = None,
    both_ways: Tensor | None = None,
) -> AttentionMask:
    """The attention mask of packed rows: each position attends to its own document's past.

    Made once per batch from the documents' numbers (B, L). Where both_ways (B, L) is true, it
    attends to the document's future too; the mask is dense then.

    ends, one_per_row: as of `BatchIndex`, where they are known. On a GPU they spare a wait for the
    device, and the variable-length kernel of FlashAttention (Dao 2023) takes the ends, for heads of
    a multiple of 8. Without them it is a block mask of FlexAttention (Dong et al. 2024), whose
    kernel takes heads of 16 and more. Elsewhere it is a dense mask (B, 1, L, L) bool: on a CPU
    neither has a backward pass, and one call per document was no faster. It is None where each row
    is one document followed by padding: plain causal attention is enough there, and skips half of
    the pairs.
    """
    if both_ways is not None:
        same = document[:, :, None] == document[:, None, :]
        return (same & (same.tril() | both_ways[:, :, None]))[:, None]
    use_flex = USE_FLEX_ATTENTION
    if use_flex is None:
        if one_per_row:
            return None
        if document.is_cuda and ends is not None and can_use_lengths(document.device, head_size):
            return DocumentEnds(ends, document.shape[1])
        use_flex = document.is_cuda and head_size >= MIN_FLEX_HEAD_SIZE
    if not use_flex:
        if one_per_row is None and not (document > 0).any():
            return None
        same = document[:, :, None] == document[:, None, :]
        return same.tril()[:, None]

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[row, query] == document[row, key])

    make: Callable = create_block_mask
    if document.is_cuda:  # uncompiled it makes the whole table of pairs first
        make = _compiled(create_block_mask)
    n_rows, length = document.shape
    return make(visible, n_rows, None, length, length, device=document.device)


def can_use_lengths(device: torch.device, head_size: int) -> bool:
    """Whether the variable-length kernel takes such heads: it is for 16-bit types alone."""
    return (
        USE_LENGTHS
        and torch.is_autocast_enabled(device.type)
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and head_size % 8 == 0
        and head_size <= 256
    )


def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: AttentionMask) -> Tensor:
    """Scaled dot-product attention, softmax(q k^T / sqrt(head_size)) v.

    q (B, H, L, head_size), k and v (B, KV, L, head_size), all of one type -> as q. Heads share keys
    in groups of H / KV. attn_mask: of `document_mask`; None is plain causal attention.
    """
    grouped = q.shape[1] != k.shape[1]
    if isinstance(attn_mask, DocumentEnds):
        return _attend_by_lengths(q, k, v, attn_mask)
    if attn_mask is None or isinstance(attn_mask, Tensor):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, is_causal=attn_mask is None, enable_gqa=grouped
        )
    attention: Callable = flex_attention
    if q.is_cuda and not torch.compiler.is_compiling():
        attention = _compiled(flex_attention)
    return attention(q, k, v, block_mask=attn_mask, enable_gqa=grouped)


def _attend_by_lengths(q: Tensor, k: Tensor, v: Tensor, mask: DocumentEnds) -> Tensor:
    """`attend` of all documents of all rows in one line, (B L, H, head_size) each."""
    n_rows, n_heads, length, _ = q.shape
    n_queries = n_heads // k.shape[1]
    if n_queries > 1:
        k = k.repeat_interleave(n_queries, 1)
        v = v.repeat_interleave(n_queries, 1)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    ends = mask.ends
    y = varlen_attn(q, k, v, ends, ends, mask.longest, mask.longest, window_size=(-1, 0))
    assert isinstance(y, Tensor)  # a pair only where it is asked for
    return y.view(n_rows, length, n_heads, -1).transpose(1, 2)


@cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (Ainslie et al. 2023).

    Its weights are named as in `transformers`.

    head_size: None is width / n_heads. bias: of queries, keys and values. q_norm, k_norm: norms of
    queries and keys before they turn, with a weight for each number of a head, or of all heads.
    linear: makes the four maps from their two sizes; None: linear maps.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        n_kv_heads: int,
        head_size: int | None = None,
        bias: bool = False,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        linear: LinearMaker | None = None,
        out: LinearMaker | None = None,
    ):
        super().__init__()
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.head_size = head_size or width // n_heads
        # what asks for their weights asks first whether they are linear
        make = cast(Callable[..., nn.Linear], linear or partial(nn.Linear, bias=bias))
        self.q_proj = make(width, n_heads * self.head_size)
        self.k_proj = make(width, n_kv_heads * self.head_size)
        self.v_proj = make(width, n_kv_heads * self.head_size)
        make = cast(Callable[..., nn.Linear], out or partial(nn.Linear, bias=False))
        self.o_proj = make(n_heads * self.head_size, width)
        self.q_norm = q_norm
        self.k_norm = k_norm

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], attn_mask: AttentionMask) -> Tensor:
        """States x (B, L, M) -> (B, L, M). rope: cosines and sines of `rotary`."""
        q = self._heads(normed_heads(self.q_proj(x), self.q_norm), self.n_heads)
        k = self._heads(normed_heads(self.k_proj(x), self.k_norm), self.n_kv_heads)
        v = self._heads(self.v_proj(x), self.n_kv_heads)
        y = attend(rotate(q, *rope), rotate(k, *rope), v, attn_mask)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, n: int) -> Tensor:
        return x.unflatten(-1, (n, self.head_size)).transpose(1, 2)


def normed_heads(x: Tensor, norm: nn.Module | None) -> Tensor:
    """Queries or keys (..., H head_size) under a norm of each head, or of all heads at once.

    It is computed in float32 at least, as in `transformers`.
    """
    if norm is None:
        return x
    size = cast(Tensor, norm.weight).shape[0]
    groups = x.unflatten(-1, (-1, size)).to(torch.promote_types(x.dtype, torch.float32))
    return norm(groups).to(x.dtype).flatten(-2)
