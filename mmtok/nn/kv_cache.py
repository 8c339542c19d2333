"""The trunk as sampling uses it: reads on from what it has read, one position for all rows at a
time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtok.nn.attention import rotary
from mmtok.nn.compiled import compiled_step
from mmtok.nn.inference_linear import WeightPrecision, prepare_linear
from mmtok.nn.precision import DTYPES, matmul_rates
from mmtok.nn.transformer import Block, Transformer

FIRST_SLOTS = 64  # of a cache; it doubles as it fills
Product = Callable[[Tensor], Tensor]


class Layer(NamedTuple):
    """A block's products; the norms' weights are folded into those that read their output."""

    qkv: Product
    out: Product
    gate: Product
    up: Callable[[Tensor, Tensor], Tensor]  # times the gate
    down: Product


class KVCacheDecoder:
    """A trunk laid out for few positions at a time, with the keys and values of all that it has
    read; to be made anew once the trunk learned.

    All rows write the same slot in a step, so a row shorter than the longest starts at a later
    slot; nobody sees the slots before it.
    precision: of weights, and of keys and values; the residual stream stays in float32 at least, as
    in training. Beside int8 weights keys and values are bfloat16 where this machine is fast at it:
    on one that is not, attention took nine times as long.
    """

    def __init__(
        self,
        trunk: Transformer,
        precision: WeightPrecision = "float32",
        start: Tensor | None = None,
        n_rows: int = 1,
        compile_slots: int | None = None,
    ):
        """Start (B,): each row's first slot; None where all begin at 0. n_rows: how many are
        expected.

        compile_slots: compile the step for so many slots at most, all rows staying along.
        """
        self.config, weight = trunk.config, trunk.norm.weight
        self.dtype = _cache_dtype(weight, precision)
        self.stream = torch.promote_types(weight.dtype, torch.float32)
        self.layers = [_layer(block, precision, n_rows) for block in trunk.layers]
        self.last_norm = weight.to(self.stream) * self.config.width**0.5
        self.least = torch.tensor(
            (self.config.width * self.config.norm_eps) ** 0.5,
            dtype=self.stream,
            device=weight.device,
        )
        self.start = start if start is not None and bool(start.any()) else None
        self.used = self.capacity = 0
        self.static = (
            None
            if compile_slots is None
            else compiled_step(trunk, self.dtype, n_rows, self._capacity_for(compile_slots))
        )
        self.compile_slots = 0 if self.static is None else compile_slots
        self.stored: list[
            Tensor
        ] = []  # per layer keys, then values: (B, 2 n_kv_heads, capacity, head_size)

    def read(self, x: Tensor) -> Tensor:
        """Embedded frames (B, L, M) for the next L slots -> hidden states (B, L, M).

        Before a row's start both are meaningless.
        """
        first, self.used = self.used, self.used + x.shape[1]
        if self.used > self.capacity:
            self._grow(len(x), x.device)
        x = x.to(self.stream)
        if self.static is not None and x.shape[1] == 1:
            return self._read_static(x, first)
        turn, mask = self._turn(first), self._mask(first)
        for layer, stored in zip(self.layers, self.stored):
            x = x + self._attend(layer.qkv(self._normed(x)), stored, first, turn, mask, layer.out)
            y = self._normed(x).to(self.dtype)
            x = x + layer.down(layer.up(y, layer.gate(y)))
        return self._normed(x) * self.last_norm

    def _read_static(self, x: Tensor, first: int) -> Tensor:
        """The compiled step, which sees every slot of the cache but those that the mask hides."""
        self.ahead[..., : self.used] = 0
        cos, sin = self._turn(first)
        mask = self.ahead if self.start is None else self.ahead + self.unseen
        half = cos.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)  # unsigned, as `rotate` takes them
        flat = lambda t: t.reshape(-1, 1, t.shape[-1])
        return self.static(
            x[:, 0], flat(cos), flat(sin), torch.tensor([first], device=x.device), mask, self.stored
        )[:, None]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self.stored = [x[rows] for x in self.stored]
        if self.start is not None:
            self.start, self.unseen = self.start[rows], self.unseen[rows]

    def _normed(self, x: Tensor) -> Tensor:
        """X / sqrt(|x|^2 + M eps): the root-mean-square norm but for the factor sqrt(M) and the
        weights, which are folded elsewhere.
        """
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.least)

    def _attend(
        self,
        qkv: Tensor,
        stored: Tensor,
        first: int,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None,
        out: Product,
    ) -> Tensor:
        """Queries, keys and values side by side (B, L, N) -> what the layer adds (B, L, M)."""
        n, n_kv = self.config.n_heads, self.config.n_kv_heads
        b, length, size = len(qkv), qkv.shape[1], self.config.width // n
        qkv = qkv.to(self.dtype).view(b, length, n + 2 * n_kv, size)
        cos, sin = turn
        turned = qkv.narrow(2, 0, n + n_kv)
        swapped = turned.unflatten(-1, (2, size // 2)).flip(-2).flatten(-2)
        turned.mul_(cos).addcmul_(swapped, sin)
        stored.narrow(2, first, length).copy_(qkv.narrow(2, n, 2 * n_kv).transpose(1, 2))
        k, v = stored.narrow(2, 0, self.used).split(n_kv, 1)
        q = qkv.narrow(2, 0, n).transpose(1, 2)
        if length == 1:  # heads that share keys are as many queries of one head
            y = F.scaled_dot_product_attention(
                q.reshape(b, n_kv, n // n_kv, size), k, v, attn_mask=mask
            ).reshape(b, 1, n * size)
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=n != n_kv
            )
            y = y.transpose(1, 2).flatten(2)
        return out(y)

    def _mask(self, first: int) -> Tensor | None:
        """What may be seen from slots first..used: None where that is all, or all before; else (B
        or 1, 1, L or 1, used).
        """
        length = self.used - first
        if length == 1:
            return None if self.start is None else self.unseen.narrow(3, 0, self.used)
        if self.start is None and first == 0:
            return None
        slot = torch.arange(self.used, device=self.least.device)
        own = slot[first:, None]
        seen = slot <= own
        if (
            self.start is not None
        ):  # what stands before the start sees itself: seeing nothing is not a number
            seen = seen & ((slot >= self.start[:, None, None]) | (slot == own))
            return seen[:, None]
        return seen

    def _turn(self, first: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of the slots first..used, (L, 1, head_size) or (B, L, 1,
        head_size).
        """
        if self.start is None:
            return self.cos[first : self.used], self.sin[first : self.used]
        position = (
            torch.arange(first, self.used, device=self.least.device) - self.start[:, None]
        ).clamp(min=0)
        return self.cos[position], self.sin[position]

    def _grow(self, n_rows: int, device: torch.device) -> None:
        """Room for the slots used; what is stored is copied over."""
        before, self.capacity = (
            self.capacity,
            self._capacity_for(max(self.used, self.compile_slots)),
        )
        c = self.config
        size = c.width // c.n_heads
        shape = (n_rows, 2 * c.n_kv_heads, self.capacity, size)
        grown = [torch.zeros(shape, dtype=self.dtype, device=device) for _ in self.layers]
        for old, new in zip(self.stored, grown):
            new[:, :, :before] = old
        if self.static is not None:  # a captured graph may write to what does not move
            for new in grown:
                torch._dynamo.mark_static_address(new)
        self.stored = grown
        slot = torch.arange(self.capacity, device=device)
        cos, sin = (
            x[0, 0, :, None].to(self.dtype)
            for x in rotary(slot[None], size, c.rope_theta, c.rope_scaling)
        )
        sign = torch.ones(size, dtype=self.dtype, device=device)
        sign[: size // 2] = -1
        self.cos, self.sin = cos, sin * sign
        self.ahead = torch.full(
            (1, 1, 1, self.capacity), -math.inf, dtype=self.dtype, device=device
        )
        if self.start is not None:
            unseen = (slot < self.start[:, None])[:, None, None]
            self.unseen = torch.zeros(unseen.shape, dtype=self.dtype, device=device).masked_fill_(
                unseen, -math.inf
            )

    @staticmethod
    def _capacity_for(n_slots: int) -> int:
        return max(FIRST_SLOTS, 1 << (n_slots - 1).bit_length())


def _cache_dtype(weight: Tensor, precision: WeightPrecision) -> torch.dtype:
    """The type of keys and values beside weights of this precision."""
    if precision == "float32":
        return weight.dtype
    if precision == "bf16":
        return torch.bfloat16
    return DTYPES[matmul_rates(weight.device).best]


def _layer(block: Block, precision: WeightPrecision, n_rows: int) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    root = block.input_layernorm.weight.shape[0] ** 0.5
    folded = lambda norm, *linears: prepare_linear(
        torch.cat([x.weight for x in linears]) * (norm.weight * root), None, precision, n_rows
    )
    plain = lambda linear: prepare_linear(linear.weight, None, precision, n_rows).forward
    return Layer(
        qkv=folded(
            block.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj
        ).forward,
        out=plain(attention.o_proj),
        gate=folded(block.post_attention_layernorm, mlp.gate_proj).silu,
        up=folded(block.post_attention_layernorm, mlp.up_proj).times,
        down=plain(mlp.down_proj),
    )
