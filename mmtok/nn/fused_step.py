"""One step of the trunk on a GPU in five kernels a layer, for few rows.

A step reads every weight once, so it is bound by memory, and by the time that each kernel takes to
start. The kernels are those between which all rows must meet: norm and queries, keys and values;
rotation, cache and attention; output and residual; norm and SwiGLU; output and residual. Nothing
depends on the host, so that the step can be captured as a CUDA graph: the position is on the
device, and attention reads only what the cache holds.

Written in Triton, which comes with torch on a GPU. `TRITON_INTERPRET=1` runs the kernels on a CPU,
slowly, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mmtok.nn.device import missing_for_kernels

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs comes without it
    triton = None

MAX_ROWS = 128  # beyond, torch's own products are as fast
MIN_PROGRAMS = 264  # two for each multiprocessor of an H100
MAX_TILE = 8192  # weights that a program holds at a time
SHARED_RESERVE = 2**14  # bytes of shared memory that the compiler takes for other things
TIME_BLOCK = 128  # cached positions at a time, of heads of up to 64


class FusedLayer(NamedTuple):
    """A block's weights (N, M); each norm's weights are folded into the maps that follow it."""

    qkv: Tensor
    out: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class Heads(NamedTuple):
    """Counts of heads, and numbers per head."""

    n: int
    n_kv: int
    size: int


def fused_layer(
    x: Tensor,
    layer: FusedLayer,
    heads: Heads,
    cache: Tensor,
    rope: tuple[Tensor, Tensor],
    position: Tensor,
    left_padding: Tensor,
    eps: float,
) -> Tensor:
    """A block at one position: x (B, M) float32 -> (B, M); the cache is written in place.

    cache (B, 2 n_kv, capacity, size); rope: cosines and sines (capacity, size) in float32; position
    (1,): where in the cache; left_padding (B,): positions of padding that each row begins with;
    eps: of the norm, times M.
    """
    qkv = linear(x, layer.qkv, eps=eps)
    y = attend_step(qkv, heads, cache, rope, position, left_padding)
    x = linear(y, layer.out, added=x)
    y = linear(x, layer.gate, times=layer.up, eps=eps)
    return linear(y, layer.down, added=x)


def linear(
    x: Tensor,
    weight: Tensor,
    added: Tensor | None = None,
    times: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """x W^T of few rows x (B, M) and W (N, M): (B, N).

    Args:
        x: Of any type; products are in W's.
        weight: W.
        added: (B, N) float32 to add; the result is then float32, else of W's type.
        times: W_2 (N, M): the result is silu(x W^T) * (x W_2^T), Shazeer 2020, eq. 6.
        eps: x is divided by sqrt(|x|^2 + eps) first; None: it is not.
    """
    n_rows, n_in = x.shape
    n_out = len(weight)
    dtype = weight.dtype if added is None else torch.float32
    y = torch.empty(n_rows, n_out, dtype=dtype, device=x.device)
    block_rows = 1
    if n_rows > 1:
        block_rows = max(16, min(64, triton.next_power_of_2(n_rows)))
    block_out, block_in = _tile(n_out, n_in, block_rows)
    grid = (triton.cdiv(n_out, block_out), triton.cdiv(n_rows, block_rows))
    n_weights = 1 + (times is not None)
    tile = block_rows * x.element_size() + block_out * weight.element_size() * n_weights
    _linear_kernel[grid](
        x,
        weight,
        weight if times is None else times,
        x if added is None else added,
        y,
        n_rows,
        n_out,
        n_in,
        eps or 0.0,
        NORM=eps is not None,
        SWIGLU=times is not None,
        ADD=added is not None,
        ROWS=block_rows,
        OUT=block_out,
        IN=block_in,
        num_warps=4,
        num_stages=_n_stages(block_in * tile, _shared_memory(x.device)),
    )
    return y


def _n_stages(tile: int, shared_memory: int) -> int:
    """How many tiles of so many bytes are on their way at once; one of them is in registers."""
    return max(1, min(4, (shared_memory - SHARED_RESERVE) // tile + 1))


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have."""
    if device.type != "cuda":
        return 2**16
    properties = torch.cuda.get_device_properties(device)
    # torch's stubs do not know the first name
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)


def _tile(n_out: int, n_in: int, block_rows: int) -> tuple[int, int]:
    """Outputs and inputs of a program's tile: enough programs, then long rows of weights."""
    if block_rows > 1:
        return (32 if n_out >= 32 * MIN_PROGRAMS // 2 else 16), 128
    block_out = 16
    while block_out > 2 and n_out / block_out < MIN_PROGRAMS:
        block_out //= 2
    return block_out, min(triton.next_power_of_2(n_in), MAX_TILE // block_out, 2048)


def attend_step(
    qkv: Tensor,
    heads: Heads,
    cache: Tensor,
    rope: tuple[Tensor, Tensor],
    position: Tensor,
    left_padding: Tensor,
) -> Tensor:
    """Attention of one new position to itself and all before it, with rotary positions.

    qkv (B, (n + 2 n_kv) size) -> (B, n size); keys and values go into the cache. Others as of
    `fused_layer`.
    """
    n_rows = len(qkv)
    y = torch.empty(n_rows, heads.n * heads.size, dtype=qkv.dtype, device=qkv.device)
    half = heads.size // 2
    _attend_kernel[(n_rows, heads.n)](
        qkv,
        cache,
        *rope,
        left_padding,
        position,
        y,
        heads.n,
        heads.n_kv,
        cache.shape[2],
        heads.size**-0.5,
        HALF=half,
        HALF_BLOCK=triton.next_power_of_2(half),
        TIME=_positions_at_a_time(half),
        num_warps=4,
    )
    return y


def _positions_at_a_time(half: int) -> int:
    """Cached positions of a tile: fewer of large heads, so that tiles stay in registers."""
    return max(32, TIME_BLOCK * 32 // max(32, triton.next_power_of_2(half)))


def can_fuse(tensors: Sequence[Tensor], n_rows: int) -> bool:
    """Whether the kernels serve these weights and so many rows."""
    types = (torch.float32, torch.bfloat16, torch.float16)
    return (
        triton is not None
        and not missing_for_kernels()
        and n_rows <= MAX_ROWS
        and all(x.is_cuda and x.dtype in types and x.is_contiguous() for x in tensors)
    )


if triton is not None:

    @triton.jit
    def _linear_kernel(
        x: tl.tensor,
        weight: tl.tensor,
        weight_2: tl.tensor,
        added: tl.tensor,
        y: tl.tensor,
        n_rows: tl.tensor,
        n_out: tl.tensor,
        n_in: tl.tensor,
        eps: tl.tensor,
        NORM: tl.constexpr,
        SWIGLU: tl.constexpr,
        ADD: tl.constexpr,
        ROWS: tl.constexpr,
        OUT: tl.constexpr,
        IN: tl.constexpr,
    ) -> None:
        """A tile of `linear`: ROWS rows by OUT outputs."""
        out = tl.program_id(0) * OUT + tl.arange(0, OUT)
        is_out = out < n_out
        if ROWS == 1:
            row = tl.program_id(1)
            total = tl.zeros([OUT, IN], tl.float32)
            total_2 = tl.zeros([OUT, IN], tl.float32)
            square = tl.zeros([IN], tl.float32)
            for start in range(0, n_in, IN):
                k = start + tl.arange(0, IN)
                here = k < n_in
                at = out[:, None] * n_in + k[None, :]
                inside = is_out[:, None] & here[None, :]
                v = tl.load(x + row * n_in + k, mask=here, other=0.0).to(tl.float32)
                w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
                total += w * v[None, :]
                if SWIGLU:
                    w = tl.load(weight_2 + at, mask=inside, other=0.0).to(tl.float32)
                    total_2 += w * v[None, :]
                if NORM:
                    square += v * v
            a = tl.sum(total, 1)
            b = tl.sum(total_2, 1)
            if NORM:
                r = tl.rsqrt(tl.sum(square, 0) + eps)
                a = a * r
                b = b * r
            if SWIGLU:
                a = a * tl.sigmoid(a) * b
            at_y = row * n_out + out
            if ADD:
                a = a + tl.load(added + at_y, mask=is_out, other=0.0).to(tl.float32)
            tl.store(y + at_y, a.to(y.dtype.element_ty), mask=is_out)
        else:
            row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
            is_row = row < n_rows
            total = tl.zeros([ROWS, OUT], tl.float32)
            total_2 = tl.zeros([ROWS, OUT], tl.float32)
            square = tl.zeros([ROWS], tl.float32)
            for start in range(0, n_in, IN):
                k = start + tl.arange(0, IN)
                here = k < n_in
                at = out[None, :] * n_in + k[:, None]
                inside = is_out[None, :] & here[:, None]
                at_x = row[:, None] * n_in + k[None, :]
                v = tl.load(x + at_x, mask=is_row[:, None] & here[None, :], other=0.0)
                w = tl.load(weight + at, mask=inside, other=0.0)
                total = tl.dot(v.to(w.dtype), w, total, input_precision="ieee")
                if SWIGLU:
                    w_2 = tl.load(weight_2 + at, mask=inside, other=0.0)
                    total_2 = tl.dot(v.to(w_2.dtype), w_2, total_2, input_precision="ieee")
                if NORM:
                    v = v.to(tl.float32)
                    square += tl.sum(v * v, 1)
            if NORM:
                r = tl.rsqrt(square + eps)[:, None]
                total = total * r
                total_2 = total_2 * r
            if SWIGLU:
                total = total * tl.sigmoid(total) * total_2
            at_y = row[:, None] * n_out + out[None, :]
            inside = is_row[:, None] & is_out[None, :]
            if ADD:
                total = total + tl.load(added + at_y, mask=inside, other=0.0).to(tl.float32)
            tl.store(y + at_y, total.to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def _attend_kernel(
        qkv: tl.tensor,
        cache: tl.tensor,
        cos: tl.tensor,
        sin: tl.tensor,
        left_padding: tl.tensor,
        position: tl.tensor,
        y: tl.tensor,
        n_heads: tl.tensor,
        n_kv: tl.tensor,
        capacity: tl.tensor,
        scale: tl.tensor,
        HALF: tl.constexpr,
        HALF_BLOCK: tl.constexpr,
        TIME: tl.constexpr,
    ) -> None:
        """One head of one row, with running maximum m and sum n of the softmax (Dao et al. 2022).

        Halves a and b of each vector are apart, as rotary positions take them.
        """
        row = tl.program_id(0).to(tl.int64)
        head = tl.program_id(1)
        n_queries = n_heads // n_kv
        kv = head // n_queries
        now = tl.load(position).to(tl.int32)
        first = tl.load(left_padding + row).to(tl.int32)
        d = tl.arange(0, HALF_BLOCK)
        real = d < HALF
        c = tl.load(cos + (now - first) * 2 * HALF + d, mask=real, other=0.0)
        s = tl.load(sin + (now - first) * 2 * HALF + d, mask=real, other=0.0)
        base = qkv + row * (n_heads + 2 * n_kv) * 2 * HALF
        q = base + head * 2 * HALF + d
        k = base + (n_heads + kv) * 2 * HALF + d
        v = base + (n_heads + n_kv + kv) * 2 * HALF + d
        a = tl.load(q, mask=real, other=0.0).to(tl.float32)
        b = tl.load(q + HALF, mask=real, other=0.0).to(tl.float32)
        q_a = (a * c - b * s) * scale
        q_b = (b * c + a * s) * scale
        a = tl.load(k, mask=real, other=0.0).to(tl.float32)
        b = tl.load(k + HALF, mask=real, other=0.0).to(tl.float32)
        k_a = (a * c - b * s).to(cache.dtype.element_ty)
        k_b = (b * c + a * s).to(cache.dtype.element_ty)
        v_a = tl.load(v, mask=real, other=0.0).to(cache.dtype.element_ty)
        v_b = tl.load(v + HALF, mask=real, other=0.0).to(cache.dtype.element_ty)
        keys = cache + (row * 2 * n_kv + kv) * capacity * 2 * HALF
        values = keys + n_kv * capacity * 2 * HALF
        if head % n_queries == 0:
            at = now * 2 * HALF + d
            tl.store(keys + at, k_a, mask=real)
            tl.store(keys + at + HALF, k_b, mask=real)
            tl.store(values + at, v_a, mask=real)
            tl.store(values + at + HALF, v_b, mask=real)
        m = tl.sum(q_a * k_a.to(tl.float32) + q_b * k_b.to(tl.float32), 0)
        n = m * 0.0 + 1.0
        y_a = v_a.to(tl.float32)
        y_b = v_b.to(tl.float32)
        for start in range(first, now, TIME):
            t = start + tl.arange(0, TIME)
            past = t < now
            at = t[:, None] * 2 * HALF + d[None, :]
            inside = past[:, None] & real[None, :]
            key_a = tl.load(keys + at, mask=inside, other=0.0).to(tl.float32)
            key_b = tl.load(keys + at + HALF, mask=inside, other=0.0).to(tl.float32)
            value_a = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
            value_b = tl.load(values + at + HALF, mask=inside, other=0.0).to(tl.float32)
            score = tl.sum(key_a * q_a[None, :] + key_b * q_b[None, :], 1)
            score = tl.where(past, score, float("-inf"))
            most = tl.maximum(m, tl.max(score, 0))
            p = tl.exp(score - most)
            kept = tl.exp(m - most)
            n = n * kept + tl.sum(p, 0)
            y_a = y_a * kept + tl.sum(p[:, None] * value_a, 0)
            y_b = y_b * kept + tl.sum(p[:, None] * value_b, 0)
            m = most
        to = y + row * n_heads * 2 * HALF + head * 2 * HALF + d
        tl.store(to, (y_a / n).to(y.dtype.element_ty), mask=real)
        tl.store(to + HALF, (y_b / n).to(y.dtype.element_ty), mask=real)
