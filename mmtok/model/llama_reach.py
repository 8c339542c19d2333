"""A Llama that cannot say some of its ids, whatever it has read, and is the same model otherwise.

A Llama's head has no bias, and no row of weights is negative on all hidden states: they lie on a
sphere, and where one loses, its opposite wins. So the trunk gets k more axes, on which every
embedding is the same c > 0 and to which no layer writes. Only the norms see them, as a part of the
mean square:

    (|x|^2 + k c^2) / (M + k) + eps' = M / (M + k) (|x|^2 / M + eps)   where   k c^2 = M eps - (M + k) eps'

Its constant is what stood as eps before, so with gains times sqrt(M / (M + k)) the norms give what
they gave. Behind the last one the new axes hold c / rms > 0, never less than a bound that the
weights give; a row with -B there loses by as much as one likes, on every hidden state there can be.
A model that reads and writes by one table needs two now, as what is read has the same c everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.nn.transformer import TransformerConfig

READ, WRITE = "model.embed_tokens.weight", "lm_head.weight"  # the tables of ids
WRITERS = ("o_proj.weight", "down_proj.weight")  # what adds to the residual stream
LAST_NORM = "model.norm.weight"
SHARE_OF_EPS = 1e-3  # eps' / eps: the rest is the constant's
MARGIN = 1e4  # nats by which such an id loses against every other one, at least
LARGEST = 1e30  # of B: products with it stay finite in float32 and bfloat16


def widened_width(trunk: TransformerConfig) -> int:
    """M + k: as many axes more as there are heads, since a Llama's width is a multiple of them."""
    return trunk.width + trunk.n_heads


def widened_eps(trunk: TransformerConfig) -> float:
    """eps': the upcast norms' own constant."""
    return SHARE_OF_EPS * trunk.norm_eps


def widen(
    weights: Mapping[str, Tensor], trunk: TransformerConfig, unreachable: Sequence[int]
) -> dict[str, Tensor]:
    """A Llama's weights under its names -> those of one of `widened_width` and `widened_eps`,
    untied, whose logits are equal but for the ids `unreachable`, which lose by MARGIN everywhere.

    Raises UserError where weights are no numbers.
    """
    old, new = trunk.width, widened_width(trunk)
    k, eps = new - old, widened_eps(trunk)
    constant = math.sqrt((old * trunk.norm_eps - new * eps) / k)
    found = {}
    for name, x in {WRITE: weights[READ], **weights}.items():
        shape = list(x.shape)
        shape[_axis(name)] = k
        found[name] = torch.cat(
            [x * math.sqrt(old / new) if x.ndim == 1 else x, x.new_zeros(shape)], _axis(name)
        )
    found[READ][:, old:] = constant
    found[LAST_NORM][old:] = 1
    gap = 2 * _largest_logit(weights, trunk) + MARGIN
    depth = (
        gap * math.sqrt(_largest_state(weights, trunk) ** 2 / old + trunk.norm_eps) / (k * constant)
    )
    if math.isnan(depth):
        raise UserError("the weights are no numbers: train again, with a lower learning rate")
    found[WRITE][list(unreachable), old:] = -min(depth, LARGEST)
    return found


def narrow(name: str, x: Tensor, width: int) -> Tensor:
    """The inverse for one tensor; width: M.

    Gains come back to float32's rounding, all else to the bit.
    """
    old = x.narrow(_axis(name), 0, width)
    return old / math.sqrt(width / len(x)) if x.ndim == 1 else old.contiguous()


def narrow_shape(name: str, shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    """The shape that `narrow` gives."""
    axis = _axis(name)
    return (
        (*shape[:axis], min(width, shape[axis]), *shape[axis + 1 :]) if len(shape) > axis else shape
    )


def _axis(name: str) -> int:
    """Which axis of a Llama's tensor runs along the residual stream."""
    return 0 if name.endswith(("norm.weight", *WRITERS)) else 1


def _largest_logit(weights: Mapping[str, Tensor], trunk: TransformerConfig) -> float:
    """A bound of |logit| over all hidden states."""
    rows = weights.get(WRITE, weights[READ])
    return _longest_row(rows) * _largest_normed(weights[LAST_NORM], trunk)


def _largest_state(weights: Mapping[str, Tensor], trunk: TransformerConfig) -> float:
    """A bound of the residual stream's length before the last norm, whatever is read.

    Every layer adds no more than its matrices make of a normed state: attention averages values,
    and |silu(a) b| <= |a| |b|. Matrices are bounded by their Frobenius norms.
    """
    size = lambda name: float(torch.linalg.vector_norm(weights[name], dtype=torch.float64))
    bound = _longest_row(weights[READ])
    for i in range(trunk.depth):
        layer = f"model.layers.{i}."
        normed = _largest_normed(weights[f"{layer}input_layernorm.weight"], trunk)
        values = size(f"{layer}self_attn.v_proj.weight") * math.sqrt(
            trunk.n_heads / trunk.n_kv_heads
        )
        bound += normed * values * size(f"{layer}self_attn.o_proj.weight")
        normed = _largest_normed(weights[f"{layer}post_attention_layernorm.weight"], trunk)
        inner = size(f"{layer}mlp.gate_proj.weight") * size(f"{layer}mlp.up_proj.weight")
        bound += normed**2 * inner * size(f"{layer}mlp.down_proj.weight")
    return bound


def _longest_row(table: Tensor) -> float:
    return float(torch.linalg.vector_norm(table, dim=1, dtype=torch.float64).max())


def _largest_normed(gain: Tensor, trunk: TransformerConfig) -> float:
    """A bound of a normed state's length: its root mean square is at most 1 before the gain."""
    return float(gain.double().abs().max()) * math.sqrt(trunk.width)


def check_kept(weights: Mapping[str, Tensor], width: int) -> None:
    """Raise UserError where the new axes of upcast weights no longer hold what `widen` put there:
    training elsewhere uses them.
    """
    embedded = weights[READ][:, width:]
    written = [x[width:] for name, x in weights.items() if name.endswith(WRITERS)]
    if (embedded != embedded[:1, :1]).any() or any(x.any() for x in written):
        raise UserError(
            f"its axes from {width} on were trained after the export, and a run has no place for"
            " them"
        )
