"""One step of the trunk, compiled: asked for where many frames are drawn alike, as compiling takes
half a minute.

On a GPU its kernels are captured as a CUDA graph and replayed. The cache is written where it lies,
so every new cache is captured anew. That path follows torch's documentation and source; it has not
been run on a GPU yet.
"""

from __future__ import annotations

import logging
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.nn.attention import rotate
from mmtok.nn.transformer import Block, Transformer

# weights as constants in the layout that each product likes, no interpreter between the products,
# and products written for their shape
OPTIONS = {
    "freezing": True,
    "cpp_wrapper": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
}
QUIET = {
    "autotune_num_choices_displayed": 0,
    "max_autotune_report_choices_stats": False,
}  # else it prints how fast each product tried was
Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]], Tensor]
_made: WeakKeyDictionary[Transformer, tuple[tuple, _Compiled]] = (
    WeakKeyDictionary()
)  # of each trunk the last step compiled


def compiled_step(trunk: Transformer, dtype: torch.dtype, n_rows: int, n_slots: int) -> Step | None:
    """The trunk's step for `n_rows` over a cache of `n_slots`, of which every slot is read; see
    `StaticStep.forward`.

    Kept for the next call with equal sizes and weights: these are compared bit for bit, as neither
    what torch counts of their changes nor where they lie tells of a fused optimiser's step. None,
    with a warning of one line, where a compiler or Python's headers are missing.
    """
    device = trunk.norm.weight.device
    sizes = (device, dtype, n_rows, n_slots, torch.get_num_threads())
    kept = _made.get(trunk)
    if kept is not None and kept[0] == sizes and kept[1].static.holds(trunk):
        return kept[1]
    lacks = missing_for_compile(device)
    if lacks:
        warnings.warn(
            f"compiled sampling needs {lacks}, which is not installed: sampling goes on uncompiled",
            stacklevel=2,
        )
        return None
    _made[trunk] = sizes, _Compiled(StaticStep(trunk, dtype))
    return _made[trunk][1]


def missing_for_compile(device: torch.device) -> str:
    """What compiling needs and this machine does not have; empty where nothing is missing."""
    if device.type == "cpu":
        header = Path(sysconfig.get_path("include")) / "Python.h"  # read by the C++ wrapper
        return (
            "a C++ compiler (g++)"
            if not shutil.which("g++")
            else "Python's headers (python3-dev)"
            if not header.exists()
            else ""
        )
    return (
        "" if shutil.which("gcc") or shutil.which("cc") else "a C compiler (gcc)"
    )  # for Triton's launchers


class _Compiled:
    """A step that is compiled when first called, and again for other shapes of its inputs."""

    def __init__(self, static: StaticStep):
        self.static, self.on_cpu, self.seen = static, static.last.device.type == "cpu", set()
        # torch keeps what it compiled with the code, for good, and refuses the ninth: each step has
        # code of its own, and both go together
        own = FunctionType(StaticStep.forward.__code__.replace(), StaticStep.forward.__globals__)
        self.compiled = torch.compile(
            own, dynamic=False, fullgraph=True, mode=None if self.on_cpu else "reduce-overhead"
        )

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, slot: Tensor, mask: Tensor, stored: list[Tensor]
    ) -> Tensor:
        shapes = x.shape, cos.shape, mask.shape
        if not self.on_cpu:
            return self.compiled(
                self.static, x, cos, sin, slot, mask, stored
            ).clone()  # a replay of the graph writes over what it returned
        if shapes in self.seen:
            return self.compiled(self.static, x, cos, sin, slot, mask, stored)
        from torch._inductor import config

        self.seen.add(shapes)
        with (
            config.patch(OPTIONS | QUIET),
            _without_asides(),
        ):  # not as torch.compile's options: freezing would not hear of it
            return self.compiled(self.static, x, cos, sin, slot, mask, stored)


@contextmanager
def _without_asides() -> Iterator[None]:
    """Without torch's word that CUDA is installed but no GPU is there, or that torch uses what it
    deprecates. All else passes.
    """
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
    """As `Reader.read` for one position, all shapes fixed; copies of the weights, those side by
    side that read the same.
    """

    def __init__(self, trunk: Transformer, dtype: torch.dtype):
        super().__init__()
        self.config, self.dtype = trunk.config, dtype
        self.layers = nn.ModuleList(
            [
                nn.ParameterDict(
                    {name: self._copy(weights) for name, weights in _weights(block).items()}
                )
                for block in trunk.layers
            ]
        )
        self.last = self._copy((trunk.norm.weight,))

    def _copy(self, weights: tuple[Tensor, ...]) -> nn.Parameter:
        return nn.Parameter(torch.cat([self._rounded(w) for w in weights]), requires_grad=False)

    def _rounded(self, weight: Tensor) -> Tensor:
        """Matrices as the products take them; norms, which cost nothing, as they are."""
        return weight.detach().to(self.dtype if weight.ndim == 2 else weight.dtype)

    def holds(self, trunk: Transformer) -> bool:
        """Whether these copies are what would be copied now.

        At width 384 and depth 6 it took as long as two frames.
        """
        pairs = [
            (own[name], weights)
            for own, block in zip(self.layers, trunk.layers)
            for name, weights in _weights(block).items()
        ]
        return all(
            _equal(self._rounded(w), part)
            for copy, weights in [*pairs, (self.last, (trunk.norm.weight,))]
            for w, part in zip(weights, copy.split([len(w) for w in weights]))
        )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, slot: Tensor, mask: Tensor, stored: list[Tensor]
    ) -> Tensor:
        """X (B, M), cosines and sines (B or 1, 1, head_size), slot (1,), additive mask (B or 1, 1,
        1, slots) -> hidden (B, M).
        """
        n, n_kv = self.config.n_heads, self.config.n_kv_heads
        b, size = len(x), self.config.width // n
        for own, kv in zip(self.layers, stored):
            q_k, v = (
                F.linear(self._normed(x, own["before_attention"]), own["qkv"])
                .view(b, n + 2 * n_kv, size)
                .split([n + n_kv, n_kv], 1)
            )
            q, k = rotate(q_k, cos, sin).split([n, n_kv], 1)
            kv.index_copy_(2, slot, torch.cat([k, v], 1)[:, :, None])
            keys, values = kv.split(n_kv, 1)
            y = F.scaled_dot_product_attention(
                q.reshape(b, n_kv, n // n_kv, size), keys, values, attn_mask=mask
            )
            x = x + F.linear(y.reshape(b, n * size), own["out"]).to(x.dtype)
            gate, up = F.linear(self._normed(x, own["before_mlp"]), own["gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, own["down"]).to(x.dtype)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps) * self.last

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return (
            x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps) * weight
        ).to(self.dtype)


def _weights(block: Block) -> dict[str, tuple[Tensor, ...]]:
    """A block's weights as a step lays them out: side by side those that read the same."""
    attention, mlp = block.self_attn, block.mlp
    return {
        "before_attention": (block.input_layernorm.weight,),
        "qkv": (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight),
        "out": (attention.o_proj.weight,),
        "before_mlp": (block.post_attention_layernorm.weight,),
        "gate_up": (mlp.gate_proj.weight, mlp.up_proj.weight),
        "down": (mlp.down_proj.weight,),
    }


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one type are equal; eight bytes at a time where rows hold whole ones,
    in a quarter of the time.
    """
    if a.is_contiguous() and a.shape[-1] * a.element_size() % 8 == 0:
        a, b = a.view(torch.int64), b.view(torch.int64)
    return torch.equal(a, b)
