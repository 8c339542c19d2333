"""The trunk's step with everything that changes on the device: the cache, and the position in it.

Nothing of it depends on the host, so that a step of drawing can be captured once as a CUDA graph
and replayed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtok.nn.attention import rotary
from mmtok.nn.compiled import CompiledStep, StaticStep
from mmtok.nn.fused_step import Heads, can_fuse, fused_layer
from mmtok.nn.kv_cache import KVCacheDecoder
from mmtok.nn.transformer import Transformer


class FixedStep:
    """One position of B rows after the other, as `KVCacheDecoder.forward` would go on.

    Where the kernels of fused_step.py serve the weights, they are used; else torch's operations,
    compiled on request.
    """

    def __init__(
        self,
        trunk: Transformer,
        decoder: KVCacheDecoder,
        n_rows: int,
        capacity: int,
        compiled: bool = False,
    ):
        """Take the weights of a decoder that has read the prompts, for a cache of `capacity`."""
        config = trunk.config
        device = trunk.norm.weight.device
        self.config = config
        self.dtype = decoder.dtype
        self.capacity = capacity
        self.layers = [layer.weights for layer in decoder.layers]
        self.read = decoder.weights()
        self.norm_weight = decoder.last_norm / config.width**0.5
        self.heads = Heads(config.n_heads, config.n_kv_heads, config.head_size)
        shape = (n_rows, 2 * config.n_kv_heads, capacity, config.head_size)
        self.cache = [torch.zeros(shape, dtype=self.dtype, device=device) for _ in self.layers]
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.left_padding = torch.zeros(n_rows, dtype=torch.long, device=device)
        self.slots = torch.arange(capacity, device=device)
        cos, sin = rotary(
            self.slots[None], config.head_size, config.rope_theta, config.rope_scaling
        )
        self.cos = cos[0, 0].contiguous()
        self.sin = sin[0, 0].contiguous()
        self.is_fused = (
            not compiled
            and config.is_llama
            and can_fuse([w for layer in self.layers for w in layer], n_rows)
        )
        self.static: StaticStep | CompiledStep | None = None
        if not self.is_fused:
            static = StaticStep(trunk, self.dtype)
            self.static = CompiledStep(static) if compiled else static

    def weights(self) -> list[Tensor]:
        """All weights, which a captured step reads where they are."""
        return self.read

    def load(self, decoder: KVCacheDecoder) -> None:
        """Go on where a decoder with equal weights is."""
        length = decoder.length
        for own, read in zip(self.cache, decoder.cache, strict=True):
            own[:, :, :length] = read[:, :, :length]
        self.position.fill_(length)
        self.left_padding.zero_()
        if decoder.left_padding is not None:
            self.left_padding.copy_(decoder.left_padding)

    def __call__(self, x: Tensor) -> Tensor:
        """Embedded frames (B, M) -> hidden states (B, M)."""
        x = x.to(self.norm_weight.dtype)
        if self.config.scale_embedding:
            x = x * self.config.input_scale
        h = self._fused(x) if self.static is None else self._by_torch(self.static, x)
        self.position += 1
        return h

    def _fused(self, x: Tensor) -> Tensor:
        config = self.config
        eps = config.norm_eps * config.width
        rope = (self.cos, self.sin)
        for layer, cache in zip(self.layers, self.cache, strict=True):
            x = fused_layer(
                x, layer, self.heads, cache, rope, self.position, self.left_padding, eps
            )
        return F.rms_norm(x, (config.width,), self.norm_weight, config.norm_eps)

    def _by_torch(self, step: StaticStep | CompiledStep, x: Tensor) -> Tensor:
        at = (self.position - self.left_padding).clamp(min=0)
        padding = self.left_padding[:, None]
        hidden = (self.slots > self.position) | (self.slots < padding)  # (B, capacity)
        attn_mask = torch.zeros(hidden.shape, dtype=self.dtype, device=x.device)
        attn_mask = attn_mask.masked_fill(hidden, float("-inf"))[:, None, None]
        cos = self.cos[at][:, None].to(self.dtype)
        sin = self.sin[at][:, None].to(self.dtype)
        return step(x, cos, sin, self.position, attn_mask, self.cache)
