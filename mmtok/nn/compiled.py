"""One step of the trunk, compiled.

Compiling takes half a minute, so it pays where many frames are drawn alike.

On a GPU it is captured as a part of a whole step of drawing, see fixed_step.py.
"""

from __future__ import annotations

import logging
import shutil
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.nn.attention import rotate
from mmtok.nn.device import missing_for_kernels
from mmtok.nn.lora import effective_weight
from mmtok.nn.transformer import Block, FeedForward, Transformer, activate

# inductor's options: weights are constants in the layout that each product prefers, products are
# tuned for their shape, and no Python runs between them
OPTIONS = {
    "freezing": True,
    "cpp_wrapper": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
}
QUIET = {  # else it prints how fast each product tried was
    "autotune_num_choices_displayed": 0,
    "max_autotune_report_choices_stats": False,
}


def compiled_step(
    trunk: Transformer, dtype: torch.dtype, n_rows: int, cache_length: int
) -> CompiledStep | None:
    """The trunk's step for `n_rows` over a cache of `cache_length` positions, all of them read.

    See `StaticStep.forward`. The last step of each trunk is kept for the next call with equal sizes
    and weights. Weights are compared by value: fused optimisers change neither version counter nor
    data_ptr. The result is None, with a warning, where a compiler or Python's headers are missing.
    """
    device = trunk.norm.weight.device
    sizes = (device, dtype, n_rows, cache_length, torch.get_num_threads())
    last = _last_compiled.get(trunk)
    if last is not None and last[0] == sizes and last[1].static.has_weights_of(trunk):
        return last[1]
    if not can_compile(device):
        return None
    step = CompiledStep(StaticStep(trunk, dtype))
    _last_compiled[trunk] = sizes, step
    return step


def can_compile(device: torch.device) -> bool:
    """Whether sampling can be compiled; warns where something is missing."""
    missing = missing_for_compile(device)
    if missing:
        warnings.warn(
            f"compiled sampling needs {missing}, which is not installed: sampling goes on"
            " uncompiled",
            stacklevel=3,
        )
    return not missing


def missing_for_compile(device: torch.device) -> str:
    """What compiling needs and this machine does not have; empty where nothing is missing."""
    if device.type != "cpu":
        return missing_for_kernels()
    if not shutil.which("g++"):
        return "a C++ compiler (g++)"
    header = Path(sysconfig.get_path("include")) / "Python.h"  # read by the C++ wrapper
    if not header.exists():
        return "Python's headers (python3-dev)"
    return ""


class CompiledStep:
    """A step that is compiled when it is first called, and again for other shapes of its inputs."""

    def __init__(self, static: StaticStep):
        self.static = static
        self.on_cpu = static.last_norm.device.type == "cpu"
        self.seen_shapes: set[tuple[torch.Size, ...]] = set()
        # torch keeps compiled code with the function's code object for good, and refuses the ninth
        # version: each step has a code object of its own, so that both are freed together
        own = FunctionType(StaticStep.forward.__code__.replace(), StaticStep.forward.__globals__)
        self.forward = torch.compile(own, dynamic=False, fullgraph=True)

    def __call__(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache_position: Tensor,
        attn_mask: Tensor,
        cache: list[Tensor],
    ) -> Tensor:
        """As `StaticStep.forward`."""
        inputs = (self.static, x, cos, sin, cache_position, attn_mask, cache)
        if not self.on_cpu:
            return self.forward(*inputs)
        shapes = (x.shape, cos.shape, attn_mask.shape)
        if shapes in self.seen_shapes:
            return self.forward(*inputs)
        from torch._inductor import config

        self.seen_shapes.add(shapes)
        # patched, not passed to torch.compile: freezing is decided before its options are read
        with config.patch(OPTIONS | QUIET), _without_torch_notices():
            return self.forward(*inputs)


_last_compiled: WeakKeyDictionary[Transformer, tuple[tuple, CompiledStep]] = WeakKeyDictionary()


@contextmanager
def _without_torch_notices() -> Iterator[None]:
    """Hide two notices of torch: CUDA without a GPU, and its own use of deprecated storage."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


class StaticStep(nn.Module):
    """`KVCacheDecoder.forward` for one position, with all shapes fixed.

    It holds copies of the weights; those that read the same input are joined.
    """

    def __init__(self, trunk: Transformer, dtype: torch.dtype):
        super().__init__()
        self.config = trunk.config
        self.dtype = dtype
        layers = [
            nn.ParameterDict({name: self._copy(w) for name, w in _weights(block).items()})
            for block in trunk.blocks()
        ]
        self.layers = cast(Sequence[nn.ParameterDict], nn.ModuleList(layers))
        self.last_norm = self._copy((trunk.norm.weight,))

    def _copy(self, weights: tuple[Tensor, ...]) -> nn.Parameter:
        return nn.Parameter(torch.cat([self._cast(w) for w in weights]), requires_grad=False)

    def _cast(self, weight: Tensor) -> Tensor:
        """Matrices in the type of the products; norms and biases as they are."""
        weight = weight.detach()
        if weight.ndim == 2:
            return weight.to(self.dtype)
        return weight

    def has_weights_of(self, trunk: Transformer) -> bool:
        """Whether the copies equal the trunk's weights.

        At width 384 and depth 6 it took as long as two frames.
        """
        pairs: list[tuple[Tensor, tuple[Tensor, ...]]] = []
        for own, block in zip(self.layers, trunk.blocks(), strict=True):
            pairs += [(own[name], weights) for name, weights in _weights(block).items()]
        pairs.append((self.last_norm, (trunk.norm.weight,)))
        return all(
            _equal(self._cast(weight), part)
            for copied, weights in pairs
            for weight, part in zip(weights, copied.split([len(w) for w in weights]), strict=True)
        )

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache_position: Tensor,
        attn_mask: Tensor,
        cache: list[Tensor],
    ) -> Tensor:
        """One position x (B, M) -> hidden states (B, M); the cache is written in place.

        cos, sin (B or 1, 1, head_size); cache_position (1,); attn_mask (B or 1, 1, 1, length), to
        be added; cache: as of `KVCacheDecoder`.
        """
        n = self.config.n_heads
        n_kv = self.config.n_kv_heads
        size = self.config.head_size
        n_rows = len(x)
        for own, cached in zip(self.layers, cache, strict=True):
            qkv = F.linear(self._before(x, own, "before_attention"), own["qkv"])
            qkv = self._biased_and_normed(qkv, own)
            q_k, v = qkv.view(n_rows, n + 2 * n_kv, size).split([n + n_kv, n_kv], 1)
            q, k = rotate(q_k, cos, sin).split([n, n_kv], 1)
            cached.index_copy_(2, cache_position, torch.cat([k, v], 1)[:, :, None])
            keys, values = cached.split(n_kv, 1)
            y = F.scaled_dot_product_attention(
                q.reshape(n_rows, n_kv, n // n_kv, size), keys, values, attn_mask=attn_mask
            )
            y = F.linear(y.reshape(n_rows, n * size), own["out"]).to(x.dtype)
            x = x + self._after(y, own, "after_attention")
            y = F.linear(self._before(x, own, "before_mlp"), own["gate_up"])
            gate, up = y.chunk(2, -1)
            y = F.linear(activate(gate, self.config.activation) * up, own["down"]).to(x.dtype)
            x = x + self._after(y, own, "after_mlp")
        return self._rms_norm(x, self.last_norm)

    def _before(self, x: Tensor, own: nn.ParameterDict, norm: str) -> Tensor:
        """What a branch reads, in the type of the products."""
        if self.config.norms == "before":
            x = self._rms_norm(x, own[norm])
        return x.to(self.dtype)

    def _after(self, y: Tensor, own: nn.ParameterDict, norm: str) -> Tensor:
        """What a branch adds."""
        if self.config.norms == "after":
            return self._rms_norm(y, own[norm])
        return y

    def _biased_and_normed(self, qkv: Tensor, own: nn.ParameterDict) -> Tensor:
        """Queries, keys and values (B, N) with their biases and norms, where the trunk has them."""
        config = self.config
        if config.qkv_bias:
            qkv = qkv + own["qkv_bias"].to(qkv.dtype)
        if config.qk_norm == "none":
            return qkv
        n_keys = config.n_kv_heads * config.head_size
        q, k, v = qkv.split([config.n_heads * config.head_size, n_keys, n_keys], 1)
        q = self._norm_heads(q, own["q_norm"])
        return torch.cat([q, self._norm_heads(k, own["k_norm"]), v], 1)

    def _norm_heads(self, x: Tensor, weight: Tensor) -> Tensor:
        groups = x.unflatten(-1, (-1, len(weight))).to(weight.dtype)
        return self._rms_norm(groups, weight).to(x.dtype).flatten(-2)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps) * weight


def _weights(block: Block) -> dict[str, tuple[Tensor, ...]]:
    """The weights of a block by their place in a step; those that read the same input together."""
    attention = block.self_attn
    mlp = cast(FeedForward, block.mlp)  # steps of others are refused before
    first: dict[str, tuple[Tensor, ...]] = {}
    if block.norms == "before":
        first["before_attention"] = (block.input_layernorm.weight,)
        first["before_mlp"] = (block.post_attention_layernorm.weight,)
    else:
        first["after_attention"] = (block.post_attention_layernorm.weight,)
        first["after_mlp"] = (block.post_feedforward_layernorm.weight,)
    if attention.q_proj.bias is not None:
        first["qkv_bias"] = (attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias)
    if attention.q_norm is not None and attention.k_norm is not None:
        first["q_norm"] = (cast(Tensor, attention.q_norm.weight),)
        first["k_norm"] = (cast(Tensor, attention.k_norm.weight),)
    return first | {
        "qkv": _joined(attention.q_proj, attention.k_proj, attention.v_proj),
        "out": _joined(attention.o_proj),
        "gate_up": _joined(mlp.gate_proj, mlp.up_proj),
        "down": _joined(mlp.down_proj),
    }


def _joined(*linears: nn.Linear) -> tuple[Tensor, ...]:
    return tuple(effective_weight(linear) for linear in linears)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one type are equal.

    Where rows hold a multiple of eight bytes, eight are compared at a time, in a quarter of the
    time.
    """
    if a.is_contiguous() and a.shape[-1] * a.element_size() % 8 == 0:
        a = a.view(torch.int64)
        b = b.view(torch.int64)
    return torch.equal(a, b)
