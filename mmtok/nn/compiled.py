"""One step of the trunk, compiled: asked for where many frames are drawn alike, as compiling takes half a minute.

On a GPU its kernels are captured as a CUDA graph and replayed. The cache is written where it lies, so every new cache is captured
anew. That path follows torch's documentation and source; it has not been run on a GPU yet.
"""

from __future__ import annotations

import shutil
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.nn.attention import rotate
from mmtok.nn.transformer import Transformer

# weights as constants in the layout that each product likes, no interpreter between the products, and products written for their shape
OPTIONS = {"freezing": True, "cpp_wrapper": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]], Tensor]
_made: WeakKeyDictionary[Transformer, tuple[tuple, Step]] = WeakKeyDictionary()  # of each trunk the last step compiled


def compiled_step(trunk: Transformer, dtype: torch.dtype, n_rows: int, n_slots: int) -> Step | None:
    """The trunk's step for `n_rows` over a cache of `n_slots`, of which every slot is read; see `StaticStep.forward`.

    Kept for the next call with equal sizes and weights. None, with a warning of one line, where there is no C++ compiler, or no headers of Python's.
    """
    versions = tuple(p._version for p in trunk.parameters()) + tuple(p.data_ptr() for p in trunk.parameters())
    key = (dtype, n_rows, n_slots, torch.get_num_threads(), versions)
    if trunk in _made and _made[trunk][0] == key:
        return _made[trunk][1]
    lacks = lacking(trunk.norm.weight.device)
    if lacks:
        warnings.warn(f"compiled sampling needs {lacks}, which is not installed: sampling goes on uncompiled", stacklevel=2)
        return None
    _made[trunk] = key, _Compiled(StaticStep(trunk, dtype))
    return _made[trunk][1]


def lacking(device: torch.device) -> str:
    """What compiling needs and this machine does not have; empty where nothing is missing."""
    if device.type == "cpu":
        header = Path(sysconfig.get_path("include")) / "Python.h"  # read by the C++ wrapper
        return "a C++ compiler (g++)" if not shutil.which("g++") else "Python's headers (python3-dev)" if not header.exists() else ""
    return "" if shutil.which("gcc") or shutil.which("cc") else "a C compiler (gcc)"  # for Triton's launchers


class _Compiled:
    """A step that is compiled when first called, and again for other shapes of its inputs."""

    def __init__(self, step: StaticStep):
        self.on_cpu, self.seen = step.last.device.type == "cpu", set()
        self.step = torch.compile(step, dynamic=False, fullgraph=True, mode=None if self.on_cpu else "reduce-overhead")

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, slot: Tensor, mask: Tensor, stored: list[Tensor]) -> Tensor:
        shapes = x.shape, cos.shape, mask.shape
        if not self.on_cpu:
            return self.step(x, cos, sin, slot, mask, stored).clone()  # a replay of the graph writes over what it returned before
        if shapes in self.seen:
            return self.step(x, cos, sin, slot, mask, stored)
        import torch._inductor.config as config

        self.seen.add(shapes)
        with config.patch(OPTIONS):  # not as torch.compile's options: freezing would not hear of it
            return self.step(x, cos, sin, slot, mask, stored)


class StaticStep(nn.Module):
    """As `Reader.read` for one position, all shapes fixed; copies of the weights, with those of the norms folded in."""

    def __init__(self, trunk: Transformer, dtype: torch.dtype):
        super().__init__()
        self.config, self.dtype = trunk.config, dtype
        fixed = lambda w: nn.Parameter(w.detach().to(dtype).clone(), requires_grad=False)
        every = lambda make: nn.ParameterList([fixed(make(block)) for block in trunk.layers])
        projections = lambda a: torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])
        self.qkv = every(lambda b: projections(b.self_attn) * b.input_layernorm.weight)
        self.out = every(lambda b: b.self_attn.o_proj.weight)
        self.gate_up = every(lambda b: torch.cat([b.mlp.gate_proj.weight, b.mlp.up_proj.weight]) * b.post_attention_layernorm.weight)
        self.down = every(lambda b: b.mlp.down_proj.weight)
        self.last = nn.Parameter(trunk.norm.weight.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, slot: Tensor, mask: Tensor, stored: list[Tensor]) -> Tensor:
        """x (B, M), cosines and sines (B or 1, 1, head_size), slot (1,), additive mask (B or 1, 1, 1, slots) -> hidden (B, M)."""
        n, n_kv = self.config.n_heads, self.config.n_kv_heads
        b, size = len(x), self.config.width // n
        for qkv, out, gate_up, down, kv in zip(self.qkv, self.out, self.gate_up, self.down, stored):
            q_k, v = F.linear(self._normed(x), qkv).view(b, n + 2 * n_kv, size).split([n + n_kv, n_kv], 1)
            q, k = rotate(q_k, cos, sin).split([n, n_kv], 1)
            kv.index_copy_(2, slot, torch.cat([k, v], 1)[:, :, None])
            keys, values = kv.split(n_kv, 1)
            y = F.scaled_dot_product_attention(q.reshape(b, n_kv, n // n_kv, size), keys, values, attn_mask=mask)
            x = x + F.linear(y.reshape(b, n * size), out).to(x.dtype)
            gate, up = F.linear(self._normed(x), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down).to(x.dtype)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps) * self.last

    def _normed(self, x: Tensor) -> Tensor:
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps)).to(self.dtype)
