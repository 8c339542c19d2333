"""The trunk: a pre-norm decoder whose weights are named and shaped as a `transformers` Llama's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmtok.errors import UserError
from mmtok.nn.attention import (
    Attention,
    AttentionMask,
    DocumentEnds,
    LinearMaker,
    Llama3Scaling,
    document_mask,
    rotary,
)
from mmtok.nn.lora import LoRA, add_adapters
from mmtok.nn.mixture_of_depths import (
    Documents,
    Router,
    by_weight,
    kept_mask,
    kept_places,
    take,
    take_rope,
)
from mmtok.nn.tokenformer import Pattention

SIZES = (
    "depth",
    "width",
    "n_heads",
    "n_kv_heads",
    "feed_forward",
    "max_positions",
    "head_dim",
    "sliding_window",
)
Activation = Literal["silu", "gelu_tanh"]
QKNorm = Literal["none", "head", "all_heads"]
Norms = Literal["before", "after"]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the trunk; `from_depth` derives them from one number.

    By default it is a Llama. The switches make it any other architecture that a pretrained trunk
    may have.

    Attributes:
        max_positions: the context length that a pretrained trunk was made for. It is kept for
            export and limits nothing here.
        head_dim: numbers per head of attention; None is width / n_heads.
        qkv_bias: queries, keys and values have biases (Qwen2).
        qk_norm: queries and keys are normed, each head by itself (Qwen3) or all at once (OLMo2).
        norms: before each branch (Llama), or after it (OLMo2).
        activation: of the feed-forward's gate.
        scale_embedding: embedded frames are multiplied by sqrt(width) (Gemma).
        sliding_window: a pretrained trunk's positions attend to so many at most (Mistral). Rows of
            more are refused, as this trunk attends to all.
        mod_capacity: the share of a row's positions that pass through a block of mixture-of-depths
            (mixture_of_depths.py), such as 0.125; 0: all pass through all blocks.
        mod_every: of so many blocks the last is one of mixture-of-depths.
        attn_tokens: parameter tokens in the place of each linear map of attention (tokenformer.py),
            by generation: 64, or 64 and 64 more that were added by growth. Empty: linear maps.
        ffn_tokens: the same in the place of a feed-forward.

    Raises ValueError for sizes below 1 or sizes that do not fit together.
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
    head_dim: int | None = None
    qkv_bias: bool = False
    qk_norm: QKNorm = "none"
    norms: Norms = "before"
    activation: Activation = "silu"
    scale_embedding: bool = False
    sliding_window: int | None = None
    mod_capacity: float = 0.0
    mod_every: int = 2
    attn_tokens: tuple[int, ...] = ()
    ffn_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in SIZES:
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"a trunk's {name} must be at least 1, got {size}")
        self._check_economy()
        fits = self.width % (2 * self.n_heads) == 0
        if self.head_dim is not None:
            fits = self.head_dim % 2 == 0
        if not fits or self.n_heads % self.n_kv_heads:
            raise ValueError(
                "a trunk's width must hold its heads in an even size each, and its heads share"
                f" n_kv_heads evenly; got width {self.width}, n_heads {self.n_heads}, n_kv_heads"
                f" {self.n_kv_heads}{self._head_text()}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def _check_economy(self) -> None:
        """Raise ValueError for shares, and numbers of tokens, that cannot be."""
        if not 0 <= self.mod_capacity < 1 or self.mod_every < 1:
            raise ValueError(
                f"a trunk's mod_capacity is {self.mod_capacity} and mod_every {self.mod_every}; the"
                " first is a share, at least 0 and below 1, the second at least 1"
            )
        every = type(self).mod_every
        if not self.mod_capacity and self.mod_every != every:
            raise ValueError(
                f"a trunk's mod_every {self.mod_every} does nothing where mod_capacity is 0: give"
                " the share of positions too, such as mod_capacity 0.125, or leave mod_every at"
                f" {every}"
            )
        if self.mod_capacity and self.mod_every > self.depth:
            raise ValueError(
                f"a trunk of depth {self.depth} has no block of mixture-of-depths where one of"
                f" every {self.mod_every} is: set mod_every to {self.depth} at most, or"
                " mod_capacity to 0"
            )
        for name in ("attn_tokens", "ffn_tokens"):
            sizes = getattr(self, name)
            if any(n < 1 for n in sizes):
                raise ValueError(f"a trunk's {name} are {sizes}; each must be at least 1")
        if self.attn_tokens and self.qkv_bias:
            raise ValueError("a trunk's attn_tokens have no biases: set qkv_bias to false")

    @classmethod
    def from_depth(cls, depth: int, dropout: float = 0.0) -> TransformerConfig:
        """The usual proportions: width 64 per layer, heads of 64, feed-forward of 8/3 the width.

        The feed-forward's size is rounded up to a multiple of 64.
        """
        width = 64 * depth
        feed_forward = -(-width * 8 // 3 // 64) * 64
        return cls(depth, width, depth, depth, feed_forward, dropout=dropout)

    @property
    def head_size(self) -> int:
        """Numbers per head of attention."""
        return self.head_dim or self.width // self.n_heads

    @property
    def branch_std(self) -> float:
        """Of the weights that end a residual branch, at first.

        Branches start small, so that depth does not change the scale of the output.
        """
        return 0.02 / (2 * self.depth) ** 0.5

    @property
    def is_llama(self) -> bool:
        """Whether the blocks are a Llama's; the embedding may be scaled."""
        return (
            not self.qkv_bias
            and self.qk_norm == "none"
            and self.norms == "before"
            and self.activation == "silu"
            and not self.odd_blocks
        )

    @property
    def odd_blocks(self) -> str:
        """What blocks have that no pretrained trunk has, in words; "" for nothing."""
        parts = []
        if self.mod_capacity:
            parts.append(f"mod_capacity {self.mod_capacity:g}")
        if self.attn_tokens or self.ffn_tokens:
            parts.append("parameter tokens")
        return ", ".join(parts)

    def is_routed(self, i: int) -> bool:
        """Whether only some positions pass through block i."""
        return bool(self.mod_capacity) and i % self.mod_every == self.mod_every - 1

    @property
    def input_scale(self) -> float:
        """What embedded frames are multiplied by."""
        if self.scale_embedding:
            return self.width**0.5
        return 1.0

    def _head_text(self) -> str:
        if self.head_dim is None:
            return ""
        return f", head_dim {self.head_dim}"

    def check_length(self, length: int) -> None:
        """Raise UserError for more positions than a sliding window has."""
        if self.sliding_window is not None and length > self.sliding_window:
            raise UserError(
                f"{length} positions are more than the {self.sliding_window} that this pretrained"
                " trunk attends to (model.trunk.sliding_window), and windows within a row are not"
                " supported: take shorter texts, or rows (--seq_len)"
            )


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019, eq. 4).

    y = g x / rms(x), where rms(x)^2 = mean x^2 + eps.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., M)."""
        if torch.compiler.is_compiling():  # the compiler fuses this by itself
            return x * _inverse_rms(x, self.eps) * self.weight
        return _RMSNormFunction.apply(x, self.weight, self.eps)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()
    return torch.rsqrt(square / x.shape[-1] + eps)


class _RMSNormFunction(torch.autograd.Function):
    """RMSNorm with few passes over memory.

    On a CPU torch's own took 2 to 2.8 times as long, the plain formula 1.8 to 1.9 times.

    With r = 1 / rms(x): dL/dx = r g dL/dy - x r^3 (x . g dL/dy) / M, and dL/dg is the sum of
    r x dL/dy over the positions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        r = _inverse_rms(x, eps)
        ctx.save_for_backward(x, gain, r)
        return (x * r) * gain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, r = ctx.saved_tensors
        products = (grad * x).flatten(0, -2)  # (N, M), for both gradients
        r_flat = r.flatten()
        d_gain = torch.mv(products.mT, r_flat)
        inner = torch.mv(products, gain.to(products.dtype)) * r_flat.pow(3) / -x.shape[-1]
        d_x = (grad * gain).mul_(r).addcmul_(x, inner.view_as(r))
        return d_x, d_gain.to(gain.dtype), None


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout with one mask per row and channel (Gal and Ghahramani 2016, section 4).

    x (B, L, M); all positions of a row share the mask. Drawing a number per activation took a tenth
    of a training step on a CPU. How well the two regularise was not compared.
    """
    if not training or p == 0:
        return x
    return x * x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1 - p).div_(1 - p)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """SiLU, or GELU by tanh (Hendrycks and Gimpel 2016)."""
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """SwiGLU, or GEGLU (Shazeer 2020, eq. 6)."""

    def __init__(self, width: int, hidden: int, activation: Activation = "silu"):
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., M)."""
        gate = activate(self.gate_proj(x), self.activation)
        return self.down_proj(gate * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x).

    With norms after the branches: x + norm(attention(x)), then x + norm(feed-forward(x)). Norms are
    named as in `transformers`, where one name means two places.

    Attributes:
        activation_checkpointing: keep only x for the backward pass, which computes the rest again
            with the same dropout (Chen et al. 2016).
        compiled: in training, run one compiled graph that all blocks of equal sizes share. It holds
            for any documents and any number of rows above one. Under FlexAttention a second number
            of rows compiles once more, as the block mask carries it.

    Neither changes the weights' names. Checkpointing and the hooks of FSDP stay outside the graph.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attn = _attention(config)
        self.mlp: FeedForward | TokenFeedForward
        if config.ffn_tokens:
            self.mlp = TokenFeedForward(config.width, config.ffn_tokens, config.branch_std)
        else:
            self.mlp = FeedForward(config.width, config.feed_forward, config.activation)
        self.norms = config.norms
        if config.norms == "before":
            self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        if config.norms == "after":
            self.post_feedforward_layernorm = RMSNorm(config.width, config.norm_eps)
        self.dropout = config.dropout
        self.activation_checkpointing = False
        self.compiled = False

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], attn_mask: AttentionMask) -> Tensor:
        """States x (B, L, M) -> (B, L, M); rope and attn_mask as in `Attention.forward`."""
        run = Block._run
        if self.compiled and self.training:  # scoring has rows of any length
            run = _compiled_run()
            _mark_sizes(x, rope, attn_mask)
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(run, self, x, rope, attn_mask, use_reentrant=False)
        return run(self, x, rope, attn_mask)

    def _run(self, x: Tensor, rope: tuple[Tensor, Tensor], attn_mask: AttentionMask) -> Tensor:
        if self.norms == "after":
            return self._run_normed_after(x, rope, attn_mask)
        y = self.self_attn(_to_autocast_dtype(self.input_layernorm(x)), rope, attn_mask)
        x = x + drop(y, self.dropout, self.training)
        y = self.mlp(_to_autocast_dtype(self.post_attention_layernorm(x)))
        return x + drop(y, self.dropout, self.training)

    def _run_normed_after(
        self, x: Tensor, rope: tuple[Tensor, Tensor], attn_mask: AttentionMask
    ) -> Tensor:
        y = self.self_attn(_to_autocast_dtype(x), rope, attn_mask).to(x.dtype)
        x = x + drop(self.post_attention_layernorm(y), self.dropout, self.training)
        y = self.mlp(_to_autocast_dtype(x)).to(x.dtype)
        return x + drop(self.post_feedforward_layernorm(y), self.dropout, self.training)


class RoutedBlock(Block):
    """A block that only the share `capacity` of a row's positions passes through.

    See mixture_of_depths.py: in training those of the highest weights, else those predicted.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.capacity = config.mod_capacity
        self.router = Router(config.width)

    def forward(  # type: ignore[override]  # its mask is of the positions that it keeps
        self, x: Tensor, rope: tuple[Tensor, Tensor], documents: Documents
    ) -> Tensor:
        """States x (B, L, M) -> (B, L, M); rope as in `Attention.forward`."""
        is_real = documents.document >= 0
        if self.training:
            index, is_kept, x = by_weight(x, is_real, self.router, self.capacity)
        else:
            index, is_kept = kept_places((self.router.predicted(x) > 0) & is_real)
            if not index.shape[1]:
                return x
        kept = take(x, index)
        y = super().forward(kept, take_rope(rope, index), kept_mask(documents, index, is_kept))
        weight = self.router.weights(kept) * is_kept
        added = weight[..., None] * (y - kept)
        return x.scatter_add(1, index[..., None].expand_as(added), added.to(x.dtype))


class TokenFeedForward(nn.Module):
    """The feed-forward of parameter tokens: one `Pattention` (Wang et al. 2024, eq. 6)."""

    def __init__(self, width: int, n_tokens: Sequence[int], std: float):
        super().__init__()
        self.tokens = Pattention(width, width, n_tokens, std)

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., M)."""
        return self.tokens(x)


def _attention(config: TransformerConfig) -> Attention:
    """The attention of a block."""
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None
    if config.qk_norm != "none":
        q_size = config.head_size
        k_size = config.head_size
        if config.qk_norm == "all_heads":
            q_size *= config.n_heads
            k_size *= config.n_kv_heads
        q_norm = RMSNorm(q_size, config.norm_eps)
        k_norm = RMSNorm(k_size, config.norm_eps)
    linear: LinearMaker | None = None
    out: LinearMaker | None = None
    if config.attn_tokens:
        linear = partial(Pattention, n_tokens=config.attn_tokens)
        out = partial(linear, std=config.branch_std)
    return Attention(
        config.width,
        config.n_heads,
        config.n_kv_heads,
        config.head_size,
        config.qkv_bias,
        q_norm,
        k_norm,
        linear,
        out,
    )


@cache
def _compiled_run() -> Callable:
    return torch.compile(Block._run, fullgraph=True)


def _mark_sizes(x: Tensor, rope: tuple[Tensor, Tensor], attn_mask: AttentionMask) -> None:
    """Tell the compiler which sizes vary between steps: of documents, and on a CPU of rows.

    On a GPU code for one number of rows is faster; the compiler itself notices another number.
    """
    if isinstance(attn_mask, DocumentEnds):
        torch._dynamo.maybe_mark_dynamic(attn_mask.ends, 0)
    if x.device.type != "cpu":
        return
    inputs = [x, *rope]
    if isinstance(attn_mask, Tensor):
        inputs.append(attn_mask)
    for tensor in inputs:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


class Transformer(nn.Module):
    """Token embedding, blocks, final norm.

    It reads embedded frames, so it knows no modality. `KVCacheDecoder` runs it with a cache.
    """

    layers: nn.ModuleList

    def __init__(self, config: TransformerConfig, n_ids: int, lora: LoRA | None = None):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(n_ids, config.width)
        self.layers = nn.ModuleList([_block(config, lora, i) for i in range(config.depth)])
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.apply(_initialise)
        # parameter tokens are made as small as this
        for block in self.blocks():
            outs: list[nn.Module] = [block.self_attn.o_proj]
            if isinstance(block.mlp, FeedForward):
                outs.append(block.mlp.down_proj)
            for out in outs:
                if isinstance(out, nn.Linear) and out.weight.is_floating_point():
                    nn.init.normal_(out.weight, std=config.branch_std)
        if lora is not None:
            self.embed_tokens.requires_grad_(False)
            self.norm.requires_grad_(False)

    def blocks(self) -> list[Block]:
        """The blocks, from the input on."""
        return cast(list[Block], list(self.layers))

    def checkpoint_activations(self, n: int) -> None:
        """Let the first n blocks compute their activations again in the backward pass.

        This takes less memory and more time. n above the number of blocks means all. It is the
        first blocks because the backward pass has freed the other blocks' activations when it
        reaches them.
        """
        for i, block in enumerate(self.blocks()):
            block.activation_checkpointing = i < n

    def share_batch(self, share: float) -> None:
        """Say which share of a step's positions the next rows hold, see `Router.batch_share`."""
        for block in self.blocks():
            if isinstance(block, RoutedBlock):
                block.router.batch_share = share

    def compile_blocks(self) -> None:
        """Run the blocks compiled in training, see `Block`.

        The first step takes longer, and dropout draws other numbers.
        """
        for block in self.blocks():
            block.compiled = True

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        document: Tensor,
        ends: Tensor | None = None,
        one_per_row: bool | None = None,
        both_ways: Tensor | None = None,
    ) -> Tensor:
        """Embedded rows (B, L, M) -> hidden states (B, L, M). position, document: (B, L).

        ends, one_per_row, both_ways: as of `document_mask`, where they are known.
        """
        config = self.config
        config.check_length(x.shape[1])
        if config.scale_embedding:
            x = x * config.input_scale
        rope = rotary(position, config.head_size, config.rope_theta, config.rope_scaling)
        attn_mask = document_mask(document, config.head_size, ends, one_per_row, both_ways)
        documents = Documents(document, both_ways)
        for block in self.layers:
            if isinstance(block, RoutedBlock):
                x = block(x, rope, documents)
            else:
                x = block(x, rope, attn_mask)
        return self.norm(x)


def _to_autocast_dtype(x: Tensor) -> Tensor:
    """Cast x to autocast's type once; autocast itself would cast it for each projection."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _block(config: TransformerConfig, lora: LoRA | None, i: int) -> Block:
    """Block i; with adapters each is made as soon as it stands, so that one is in float32."""
    block = RoutedBlock(config) if config.is_routed(i) else Block(config)
    if lora is not None:
        add_adapters(block, lora)
    return block


def _initialise(module: nn.Module) -> None:
    is_drawn = isinstance(module, (nn.Linear, nn.Embedding))
    if is_drawn and cast(Tensor, module.weight).is_floating_point():
        nn.init.normal_(cast(Tensor, module.weight), std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
