"""The blocks as sampling runs them: their linear maps, prepared, with norms folded in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mmtok.nn.fused_step import FusedLayer
from mmtok.nn.inference_linear import Linear, WeightPrecision, prepare_linear
from mmtok.nn.lora import effective_weight
from mmtok.nn.mixture_of_depths import Router
from mmtok.nn.tokenformer import Pattention, TokenMap
from mmtok.nn.transformer import Block, RoutedBlock, TokenFeedForward

Product = Callable[[Tensor], Tensor]


class Layer(NamedTuple):
    """The linear maps of a block. Each norm's weights are folded into the maps that follow it.

    What follows none keeps its weights: norms of queries and keys, and norms after a branch, whose
    weights are multiplied by the factor that `KVCacheDecoder._norm` leaves out.
    """

    qkv: Product
    out: Product
    gate: Product  # then its activation
    up: Callable[[Tensor, Tensor], Tensor]  # times the gate
    down: Product
    weights: FusedLayer  # of the five
    others: tuple[Tensor, ...] = ()  # biases, and the weights of norms that are not folded in
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None
    after_attention: Tensor | None = None
    after_mlp: Tensor | None = None
    router: Router | None = None  # of a block of mixture-of-depths

    def all_weights(self) -> list[Tensor]:
        """Everything that a step reads."""
        return [*self.weights, *self.others]


def prepare_layer(block: Block, precision: WeightPrecision, n_rows: int) -> Layer:
    """A block's maps with weights of this precision, for inputs of about `n_rows` rows."""
    attention = block.self_attn
    mlp = block.mlp
    root_width = block.post_attention_layernorm.weight.shape[0] ** 0.5

    def prepared(norm: nn.Module | None, *maps: nn.Module) -> Linear | TokenMap:
        """One map of the maps' outputs, with the weights of a norm before it folded in."""
        gain: Tensor | None = None
        if norm is not None:
            gain = cast(Tensor, norm.weight) * root_width
        if isinstance(maps[0], Pattention):
            return TokenMap(cast(Sequence[Pattention], maps), gain, precision, n_rows)
        linears = cast(Sequence[nn.Linear], maps)
        weight = torch.cat([effective_weight(x) for x in linears])
        if gain is not None:
            weight = weight * gain
        bias: Tensor | None = None
        if linears[0].bias is not None:
            bias = torch.cat([x.bias for x in linears])
        return prepare_linear(weight, bias, precision, n_rows)

    before_attention: nn.Module | None = None
    before_mlp: nn.Module | None = None
    after_attention: Tensor | None = None
    after_mlp: Tensor | None = None
    if block.norms == "before":
        before_attention = block.input_layernorm
        before_mlp = block.post_attention_layernorm
    else:
        after_attention = block.post_attention_layernorm.weight.detach() * root_width
        after_mlp = block.post_feedforward_layernorm.weight.detach() * root_width
    qkv = prepared(before_attention, attention.q_proj, attention.k_proj, attention.v_proj)
    out = prepared(None, attention.o_proj)
    router: Router | None = None
    if isinstance(block, RoutedBlock):
        router = copy.deepcopy(block.router)
    feed_forward: dict[str, Any]
    if isinstance(mlp, TokenFeedForward):
        tokens = prepared(before_mlp, mlp.tokens)
        feed_forward = {"gate": tokens, "up": _second, "down": _same}
        read = [tokens.weight] * 3
    else:
        gate = cast(Linear, prepared(before_mlp, mlp.gate_proj))
        up = cast(Linear, prepared(before_mlp, mlp.up_proj))
        down = prepared(None, mlp.down_proj)
        activated = gate.silu if mlp.activation == "silu" else gate.gelu_tanh
        feed_forward = {"gate": activated, "up": up.times, "down": down}
        read = [gate.weight, up.weight, down.weight]
    others = [qkv.bias, after_attention, after_mlp]
    for prepared_map in (qkv, out, feed_forward["gate"]):
        if isinstance(prepared_map, TokenMap):
            others += prepared_map.weights[1:]
    for norm in (attention.q_norm, attention.k_norm):
        if norm is not None:
            others.append(cast(Tensor, norm.weight).detach().clone())
    return Layer(
        qkv=qkv,
        out=out,
        **feed_forward,
        weights=FusedLayer(qkv.weight, out.weight, *read),
        others=tuple(x for x in others if x is not None),
        q_norm=attention.q_norm,
        k_norm=attention.k_norm,
        after_attention=after_attention,
        after_mlp=after_mlp,
        router=router,
    )


def _second(x: Tensor, y: Tensor) -> Tensor:
    return y


def _same(x: Tensor) -> Tensor:
    return x
