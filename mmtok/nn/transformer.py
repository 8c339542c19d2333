"""The trunk: a pre-norm decoder whose weights are named and shaped as a `transformers` Llama's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from mmtok.nn.attention import Attention, Llama3Scaling, document_mask, rotary


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the trunk.

    `from_depth` derives them all from one dial. Raises ValueError for sizes below 1 or that do not
    fit together.

    max_positions: the context length that a pretrained trunk says it was made for, kept for who
    asks; it limits nothing here.
    """

    depth: int = 4
    width: int = 256
    n_heads: int = 4
    n_kv_heads: int = 4
    feed_forward: int = 704
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0
    rope_scaling: Llama3Scaling | None = None
    max_positions: int | None = None

    def __post_init__(self):
        for name in ("depth", "width", "n_heads", "n_kv_heads", "feed_forward", "max_positions"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"a trunk's {name} must be at least 1, got {getattr(self, name)}")
        if self.width % (2 * self.n_heads) or self.n_heads % self.n_kv_heads:
            raise ValueError(
                "a trunk's width must hold its heads in an even size each, and its heads share"
                f" n_kv_heads evenly; got width {self.width}, n_heads {self.n_heads}, n_kv_heads"
                f" {self.n_kv_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @classmethod
    def from_depth(cls, depth: int, dropout: float = 0.0) -> TransformerConfig:
        """Width 64 per layer, heads of 64, a SwiGLU of 8/3 the width rounded up to 64: the usual
        proportions.
        """
        width = 64 * depth
        return cls(depth, width, depth, depth, -(-width * 8 // 3 // 64) * 64, dropout=dropout)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019, eq.

    4): y = g x / rms(x), rms(x)^2 = mean x^2 + eps.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # a compiler fuses this by itself
            return x * _inverse_rms(x, self.eps) * self.weight
        return _Normed.apply(x, self.weight, self.eps)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()
    return torch.rsqrt(square / x.shape[-1] + eps)


class _Normed(torch.autograd.Function):
    """RMSNorm with few passes over memory: on a CPU torch's own took 2 to 2.8 times as long, the
    plain formula 1.8 to 1.9 times.

    With r = 1 / rms(x): dL/dx = r g dL/dy - x r^3 (x . g dL/dy) / M, and dL/dg sums r x dL/dy over
    the positions.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        r = _inverse_rms(x, eps)
        ctx.save_for_backward(x, gain, r)
        return (x * r) * gain

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, gain, r = ctx.saved_tensors
        products = (grad * x).flatten(0, -2)  # (N, M), for both gradients
        r_flat = r.flatten()
        d_gain = torch.mv(products.mT, r_flat)
        inner = torch.mv(products, gain.to(products.dtype)) * r_flat.pow(3) / -x.shape[-1]
        d_x = (grad * gain).mul_(r).addcmul_(x, inner.view_as(r))
        return d_x, d_gain.to(gain.dtype), None


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout with one mask per row and channel, shared by the positions (B, L, M) (Gal and
    Ghahramani 2016, section 4).

    Chosen for its cost: drawing a number per activation took a tenth of a CPU's step. How well it
    regularises beside that one was not compared.
    """
    if not training or p == 0:
        return x
    return x * x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1 - p).div_(1 - p)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, eq. 6)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x).

    recompute: keep only x for the backward pass, which computes the rest again (Chen et al. 2016),
    with the same dropout.
    compiled: in training, by one graph that all blocks of equal sizes share, whatever the documents
    and the number of rows beyond one. A second number of rows compiles once more under
    FlexAttention, whose block masks carry it. Neither changes the weights' names; checkpointing and
    the hooks of sharding stay around the graph.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attn = Attention(config.width, config.n_heads, config.n_kv_heads)
        self.mlp = FeedForward(config.width, config.feed_forward)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.dropout, self.activation_checkpointing, self.compiled = config.dropout, False, False

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor | BlockMask | None
    ) -> Tensor:
        """X (B, L, M) -> (B, L, M); turn and seen as in `Attention.forward`."""
        run = Block._run
        if self.compiled and self.training:  # scoring has rows of any length
            run = _compiled_run()
            for t in (x, *turn, *([seen] if isinstance(seen, Tensor) else ())):
                torch._dynamo.maybe_mark_dynamic(
                    t, 0
                )  # rows that do not fill a step are spread over others, so their number varies
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(run, self, x, turn, seen, use_reentrant=False)
        return run(self, x, turn, seen)

    def _run(
        self, x: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor | BlockMask | None
    ) -> Tensor:
        y = self.self_attn(_narrowed(self.input_layernorm(x)), turn, seen)
        x = x + drop(y, self.dropout, self.training)
        y = self.mlp(_narrowed(self.post_attention_layernorm(x)))
        return x + drop(y, self.dropout, self.training)


@cache
def _compiled_run() -> Callable:
    return torch.compile(Block._run, fullgraph=True)


class Transformer(nn.Module):
    """Token embedding, blocks, final norm.

    Reads embedded frames, so it knows no modality. `Reader` reads on from a cache.
    """

    def __init__(self, config: TransformerConfig, n_ids: int):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(n_ids, config.width)
        self.layers = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.apply(_initialise)
        for block in (
            self.layers
        ):  # residual branches start small, so that depth does not change the output's scale
            for out in (block.self_attn.o_proj, block.mlp.down_proj):
                nn.init.normal_(out.weight, std=0.02 / (2 * config.depth) ** 0.5)

    def checkpoint_activations(self, n: int) -> None:
        """Let n blocks, or all where there are fewer, compute their activations again in the
        backward pass: less memory, more time.

        The first ones: when their turn comes, what the others keep is free again.
        """
        for i, block in enumerate(self.layers):
            block.activation_checkpointing = i < n

    def compile_blocks(self) -> None:
        """Let training run its blocks compiled (see `Block`): the first step takes longer, and
        dropout draws other numbers.
        """
        for block in self.layers:
            block.compiled = True

    def forward(self, x: Tensor, position: Tensor, document: Tensor) -> Tensor:
        """Embedded rows (B, L, M) -> hidden states (B, L, M). position, document: (B, L)."""
        head_size = self.config.width // self.config.n_heads
        turn, seen = (
            rotary(position, head_size, self.config.rope_theta, self.config.rope_scaling),
            document_mask(document, head_size),
        )
        for block in self.layers:
            x = block(x, turn, seen)
        return self.norm(x)


def _narrowed(x: Tensor) -> Tensor:
    """Autocast's type, once for all projections that read x: autocast itself would convert x for
    each of them.
    """
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
