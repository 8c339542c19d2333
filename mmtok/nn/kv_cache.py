"""The trunk as sampling runs it: one position of all rows at a time, with a key-value cache."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtok.errors import UserError
from mmtok.nn.attention import normed_heads, rotary
from mmtok.nn.compiled import CompiledStep, compiled_step
from mmtok.nn.inference_layer import Layer, prepare_layer
from mmtok.nn.inference_linear import WeightPrecision
from mmtok.nn.mixture_of_depths import Router, kept_places, take
from mmtok.nn.precision import DTYPES, matmul_rates
from mmtok.nn.transformer import Transformer

MIN_CACHE_LENGTH = 64  # positions that a cache holds at first; it doubles as it fills


class KVCacheDecoder:
    """A trunk prepared for few positions at a time, with the cached keys and values of all before.

    It holds copies of the weights: make it anew once the trunk has learned.

    All rows write the same cache position in a step, so shorter rows are padded on the left, and
    the padding is masked.

    precision: of the weights, and of the cached keys and values. The residual stream stays in
    float32 at least, as in training. With int8 weights keys and values are bfloat16 where this
    machine is fast at it; on one that is not, attention took nine times as long.
    """

    # for all positions that the cache has room for
    cos: Tensor
    sin: Tensor  # its first half negative
    future_mask: Tensor
    padding_mask: Tensor

    def __init__(
        self,
        trunk: Transformer,
        precision: WeightPrecision = "float32",
        left_padding: Tensor | None = None,
        batch_size: int = 1,
        compile_length: int | None = None,
    ):
        """Prepare the trunk's weights.

        left_padding: (B,), how many positions of padding each row begins with; None is no padding.
        batch_size: how many rows are expected.
        compile_length: compile the step for a cache of that many positions at most. All rows must
        then stay to the end.
        """
        weight = trunk.norm.weight
        self.config = trunk.config
        self.dtype = _cache_dtype(weight, precision)
        self.stream_dtype = torch.promote_types(weight.dtype, torch.float32)
        self.layers = [prepare_layer(block, precision, batch_size) for block in trunk.blocks()]
        self.last_norm = weight.to(self.stream_dtype) * self.config.width**0.5
        self.root_eps = torch.tensor(
            (self.config.width * self.config.norm_eps) ** 0.5,
            dtype=self.stream_dtype,
            device=weight.device,
        )
        self.left_padding: Tensor | None = None
        if left_padding is not None and bool(left_padding.any()):
            self.left_padding = left_padding
        self.length = 0  # positions in the cache
        self.capacity = 0  # positions that it has room for
        # of blocks of mixture-of-depths, by layer: how many positions of each row are cached, (B,)
        self.n_kept: dict[int, Tensor] = {}
        self.compiled: CompiledStep | None = None
        if compile_length is not None and trunk.config.odd_blocks:
            raise UserError(
                f"a compiled step is of plain blocks, and this trunk has {trunk.config.odd_blocks}:"
                " leave --compiled out"
            )
        if compile_length is not None:
            capacity = capacity_for(compile_length)
            self.compiled = compiled_step(trunk, self.dtype, batch_size, capacity)
        self.compile_length = 0
        if compile_length is not None and self.compiled is not None:
            self.compile_length = compile_length
        # per layer the keys, then the values: (B, 2 n_kv_heads, capacity, head_size)
        self.cache: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Embedded frames (B, L, M) at the next L positions -> hidden states (B, L, M).

        At a row's padding both are meaningless.
        """
        cache_position = self.length
        self.length += x.shape[1]
        self.config.check_length(self.length)
        if self.length > self.capacity:
            self._grow(len(x), x.device)
        x = x.to(self.stream_dtype)
        if self.config.scale_embedding:
            x = x * self.config.input_scale
        if self.compiled is not None and x.shape[1] == 1:
            return self._compiled_forward(self.compiled, x, cache_position)
        rope = self._rope(cache_position)
        attn_mask = self._attn_mask(cache_position)
        for i, (layer, cached) in enumerate(zip(self.layers, self.cache, strict=True)):
            if layer.router is not None:
                x = self._routed(i, layer.router, x, cache_position, rope)
                continue
            attend = partial(
                self._attend,
                cached=cached,
                cache_position=cache_position,
                rope=rope,
                attn_mask=attn_mask,
            )
            x = self._through(layer, x, attend)
        return self._norm(x) * self.last_norm

    def _through(self, layer: Layer, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """States x (B, L, M) behind a block.

        attend: of queries, keys and values in one, see `_attend`.
        """
        y = layer.out(attend(self._normed_qkv(layer, layer.qkv(self._before(x)))))
        x = x + self._after(y, layer.after_attention)
        y = self._before(x).to(self.dtype)
        y = layer.down(layer.up(y, layer.gate(y)))
        return x + self._after(y, layer.after_mlp)

    def _routed(
        self,
        i: int,
        router: Router,
        x: Tensor,
        cache_position: int,
        rope: tuple[Tensor, Tensor],
    ) -> Tensor:
        """States x (B, L, M) behind layer i, which only the positions predicted pass through.

        Its cache holds the kept positions of each row one after another.
        """
        is_kept = router.predicted(x) > 0
        if self.left_padding is not None:
            slot = torch.arange(cache_position, self.length, device=x.device)
            is_kept = is_kept & (slot >= self.left_padding[:, None])
        rows = is_kept.any(1).nonzero()[:, 0]
        if not len(rows):
            return x
        index, counts = kept_places(is_kept[rows])
        kept = take(x[rows], index)
        before = self.n_kept[i][rows]
        slots = before[:, None] + torch.arange(index.shape[1], device=x.device)
        cos, sin = (self._taken_rope(part, rows, index) for part in rope)
        attend = partial(self._attend_kept, i=i, rows=rows, slots=slots, rope=(cos, sin))
        y = self._through(self.layers[i], kept, attend)
        weight = router.weights(kept) * counts
        added = (weight[..., None] * (y - kept)).to(x.dtype)
        self.n_kept[i][rows] = before + counts.sum(1)
        behind = x[rows].scatter_add(1, index[..., None].expand_as(added), added)
        return x.index_copy(0, rows, behind)

    def _taken_rope(self, part: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        """Cosines or sines (L, 1, head_size) or (B, L, 1, head_size) -> (R, k, 1, head_size)."""
        if part.ndim == 3:
            return part[index]
        return part[rows[:, None], index]

    def _attend_kept(
        self,
        qkv: Tensor,
        i: int,
        rows: Tensor,
        slots: Tensor,
        rope: tuple[Tensor, Tensor],
    ) -> Tensor:
        """As `_attend`, of R rows whose k positions go to places (R, k) of layer i's cache."""
        n = self.config.n_heads
        n_kv = self.config.n_kv_heads
        qkv = self._turned(qkv, rope)
        cached = self.cache[i]
        cached[rows[:, None], :, slots] = qkv.narrow(2, n, 2 * n_kv)
        total = int(slots.max()) + 1
        k, v = cached[rows, :, :total].split(n_kv, 1)
        # a row's places are filled in order, so what lies behind its own is of no row yet
        attn_mask = (torch.arange(total, device=slots.device) <= slots[..., None])[:, None]
        q = qkv.narrow(2, 0, n).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, enable_gqa=n != n_kv)
        return y.transpose(1, 2).flatten(2)

    def weights(self) -> list[Tensor]:
        """The prepared weights."""
        return [*(w for layer in self.layers for w in layer.all_weights()), self.last_norm]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self.cache = [x[rows] for x in self.cache]
        self.n_kept = {i: n[rows] for i, n in self.n_kept.items()}
        if self.left_padding is not None:
            self.left_padding = self.left_padding[rows]
            self.padding_mask = self.padding_mask[rows]

    def emptied(self, left_padding: Tensor) -> KVCacheDecoder:
        """The same weights for other rows, of which nothing is cached yet."""
        other = copy.copy(self)
        other.left_padding = left_padding
        other.length = 0
        other.capacity = 0
        other.cache = []
        other.n_kept = {}
        return other

    def join(self, other: KVCacheDecoder) -> None:
        """Take the rows of another decoder of these weights too, behind those that are here.

        Rows are aligned at their ends: shorter ones get more padding on the left, and positions
        that are padding of all rows are given up. Not for a compiled step, whose rows are fixed.
        """
        if self.compiled is not None or other.compiled is not None:
            raise ValueError("a compiled step takes no more rows")
        parts = (self, other)
        length = max(part.length for part in parts)
        padding = torch.cat([part._padding() + (length - part.length) for part in parts])
        spare = int(padding.min())
        caches = [part.cache for part in parts]
        lengths = [part.length for part in parts]
        kept = [part.n_kept for part in parts]
        self.length = length - spare
        self.left_padding = padding - spare
        self._make_room()
        self.n_kept = {i: torch.cat([n[i] for n in kept]) for i in self.n_kept}
        self.cache = [
            self._joined_kept(layers) if i in self.n_kept else self._joined(layers, lengths)
            for i, layers in enumerate(zip(*caches, strict=True))
        ]

    def _joined_kept(self, layers: Sequence[Tensor]) -> Tensor:
        """The same of a block of mixture-of-depths, whose rows begin at the first place."""
        n_rows = sum(map(len, layers))
        joined = layers[0].new_zeros(n_rows, layers[0].shape[1], self.capacity, layers[0].shape[3])
        rows = joined.split([len(layer) for layer in layers])
        for to, layer in zip(rows, layers, strict=True):
            n = min(self.capacity, layer.shape[2])
            to[:, :, :n] = layer[:, :, :n]
        return joined

    def _joined(self, layers: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
        """The caches of one layer, their rows below each other, their ends at `length`."""
        n_rows = sum(map(len, layers))
        joined = layers[0].new_zeros(n_rows, layers[0].shape[1], self.capacity, layers[0].shape[3])
        rows = joined.split([len(layer) for layer in layers])
        for to, layer, length in zip(rows, layers, lengths, strict=True):
            kept = min(length, self.length)
            to[:, :, self.length - kept : self.length] = layer[:, :, length - kept : length]
        return joined

    def _padding(self) -> Tensor:
        """(B,): how many positions of padding each row begins with."""
        if self.left_padding is not None:
            return self.left_padding
        return torch.zeros(len(self.cache[0]), dtype=torch.long, device=self.root_eps.device)

    def _compiled_forward(self, step: CompiledStep, x: Tensor, cache_position: int) -> Tensor:
        """The compiled step, which attends to the whole cache under an additive mask."""
        self.future_mask[..., : self.length] = 0
        cos, sin = self._rope(cache_position)
        attn_mask = self.future_mask
        if self.left_padding is not None:
            attn_mask = attn_mask + self.padding_mask
        half = cos.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)  # unsigned, as `rotate` takes them
        head_size = cos.shape[-1]
        hidden = step(
            x[:, 0],
            cos.reshape(-1, 1, head_size),
            sin.reshape(-1, 1, head_size),
            torch.tensor([cache_position], device=x.device),
            attn_mask,
            self.cache,
        )
        return hidden[:, None]

    def _norm(self, x: Tensor) -> Tensor:
        """X / sqrt(|x|^2 + M eps): RMSNorm without its weights and the factor sqrt(M).

        These are folded into the maps that follow.
        """
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.root_eps)

    def _before(self, x: Tensor) -> Tensor:
        """What a branch reads."""
        if self.config.norms == "before":
            return self._norm(x)
        return x

    def _after(self, y: Tensor, weight: Tensor | None) -> Tensor:
        """What a branch adds."""
        if weight is None:
            return y
        return self._norm(y.to(self.stream_dtype)) * weight

    def _normed_qkv(self, layer: Layer, qkv: Tensor) -> Tensor:
        """Queries, keys and values, the first two normed where the trunk does."""
        if layer.q_norm is None:
            return qkv
        n_keys = self.config.n_kv_heads * self.config.head_size
        q, k, v = qkv.split([qkv.shape[-1] - 2 * n_keys, n_keys, n_keys], -1)
        q = normed_heads(q, layer.q_norm)
        return torch.cat([q, normed_heads(k, layer.k_norm), v], -1)

    def _attend(
        self,
        qkv: Tensor,
        cached: Tensor,
        cache_position: int,
        rope: tuple[Tensor, Tensor],
        attn_mask: Tensor | None,
    ) -> Tensor:
        """Queries, keys and values in one (B, L, N) -> the heads' results (B, L, H head_size).

        The keys and values are written into the cache.
        """
        n = self.config.n_heads
        n_kv = self.config.n_kv_heads
        size = self.config.head_size
        n_rows, length = qkv.shape[:2]
        qkv = self._turned(qkv, rope)
        cached.narrow(2, cache_position, length).copy_(qkv.narrow(2, n, 2 * n_kv).transpose(1, 2))
        k, v = cached.narrow(2, 0, self.length).split(n_kv, 1)
        q = qkv.narrow(2, 0, n).transpose(1, 2)
        if length == 1:  # heads that share keys are queries of one head
            q = q.reshape(n_rows, n_kv, n // n_kv, size)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
            return y.reshape(n_rows, 1, n * size)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, is_causal=attn_mask is None, enable_gqa=n != n_kv
        )
        return y.transpose(1, 2).flatten(2)

    def _turned(self, qkv: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Queries, keys and values (B, L, N) by heads, the first two with their positions."""
        n = self.config.n_heads
        n_kv = self.config.n_kv_heads
        size = self.config.head_size
        qkv = qkv.to(self.dtype).view(*qkv.shape[:2], n + 2 * n_kv, size)
        cos, sin = rope
        q_k = qkv.narrow(2, 0, n + n_kv)
        halves_swapped = q_k.unflatten(-1, (2, size // 2)).flip(-2).flatten(-2)
        q_k.mul_(cos).addcmul_(halves_swapped, sin)
        return qkv

    def _attn_mask(self, cache_position: int) -> Tensor | None:
        """The mask of the positions from `cache_position` on: (B or 1, 1, L or 1, length).

        None: one position attends to all, or several attend causally to themselves alone.
        """
        n_new = self.length - cache_position
        if n_new == 1:
            if self.left_padding is None:
                return None
            return self.padding_mask.narrow(3, 0, self.length)
        if self.left_padding is None and cache_position == 0:
            return None
        key = torch.arange(self.length, device=self.root_eps.device)
        query = key[cache_position:, None]
        visible = key <= query
        if self.left_padding is None:
            return visible
        # padding attends to itself, as a softmax over nothing is NaN
        visible = visible & ((key >= self.left_padding[:, None, None]) | (key == query))
        return visible[:, None]

    def _rope(self, cache_position: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of the new positions: (L, 1, head_size) or (B, L, 1, ...)."""
        if self.left_padding is None:
            return self.cos[cache_position : self.length], self.sin[cache_position : self.length]
        slots = torch.arange(cache_position, self.length, device=self.root_eps.device)
        position = (slots - self.left_padding[:, None]).clamp(min=0)
        return self.cos[position], self.sin[position]

    def _grow(self, n_rows: int, device: torch.device) -> None:
        """Make room for the current length, and copy what is cached."""
        old_capacity = self.capacity
        self._make_room()
        shape = (n_rows, 2 * self.config.n_kv_heads, self.capacity, self.config.head_size)
        grown = [torch.zeros(shape, dtype=self.dtype, device=device) for _ in self.layers]
        for old, new in zip(self.cache, grown, strict=False):  # the first time there is none
            new[:, :, :old_capacity] = old
        self.cache = grown
        for i, layer in enumerate(self.layers):
            if layer.router is not None and i not in self.n_kept:
                self.n_kept[i] = torch.zeros(n_rows, dtype=torch.long, device=device)

    def _make_room(self) -> None:
        """A capacity for the current length, and what goes with it but the cache itself."""
        config = self.config
        size = config.head_size
        device = self.root_eps.device
        self.capacity = capacity_for(max(self.length, self.compile_length))
        slot = torch.arange(self.capacity, device=device)
        cos, sin = rotary(slot[None], size, config.rope_theta, config.rope_scaling)
        sign = torch.ones(size, dtype=self.dtype, device=device)
        sign[: size // 2] = -1
        self.cos = cos[0, 0, :, None].to(self.dtype)
        self.sin = sin[0, 0, :, None].to(self.dtype) * sign
        # additive masks: -inf at positions after the current one, and at padding
        self.future_mask = torch.full(
            (1, 1, 1, self.capacity), -math.inf, dtype=self.dtype, device=device
        )
        if self.left_padding is not None:
            padding = (slot < self.left_padding[:, None])[:, None, None]
            zeros = torch.zeros(padding.shape, dtype=self.dtype, device=device)
            self.padding_mask = zeros.masked_fill_(padding, -math.inf)


def capacity_for(length: int) -> int:
    """The next power of two."""
    return max(MIN_CACHE_LENGTH, 1 << (length - 1).bit_length())


def _cache_dtype(weight: Tensor, precision: WeightPrecision) -> torch.dtype:
    """The type of keys and values that goes with weights of this precision."""
    if precision == "float32":
        return weight.dtype
    if precision == "bf16":
        return torch.bfloat16
    return DTYPES[matmul_rates(weight.device).best]
