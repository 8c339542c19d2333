"""Export of a Llama that never generates some ids, and is the same model otherwise.

A Llama's head has no bias, and no row of weights is negative for all hidden states: they lie on a
sphere, so a row that loses on one side wins on the other. So the residual stream gets k more axes,
on which every embedding is the same c > 0 and to which no layer writes. Only the norms read them,
as a part of the mean square:

    (|x|^2 + k c^2) / (M + k) + eps' = M / (M + k) (|x|^2 / M + eps)
    where k c^2 = M eps - (M + k) eps'

The new eps' and c together act as eps did before, so with gains times sqrt(M / (M + k)) the norms
give the same results. After the last norm the new axes hold c / rms > 0, which is never less than a
bound that follows from the weights. A row with -B on these axes then loses by any margin, on every
possible hidden state. The embedding and the head are two tables then, as the embeddings hold the
same c everywhere.

Other architectures need more of this. All norms share eps', also those of queries and keys, which
never see the new axes and need eps. So there eps' = eps, and the residual stream is a times as
large, by embeddings and by all that writes to it:

    (|a x|^2 + k (a c)^2) / (M + k) + eps = a^2 M / (M + k) (|x|^2 / M + eps)
    where k c^2 = M eps - (M + k) eps / a^2

Norms after a branch (OLMo2) see the new axes as zeros, so their branches are larger by
sqrt((M + k) / M), their gains make the stream larger, and what reads it divides by a. Where
embeddings are multiplied by sqrt(M) (Gemma), and in the wider model by sqrt(M + k), the table makes
up for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.model.architectures import Architecture
from mmtok.nn.transformer import TransformerConfig

READ = "model.embed_tokens.weight"  # the embedding
WRITE = "lm_head.weight"  # the head
WRITERS = ("o_proj.weight", "down_proj.weight")  # maps that add to the residual stream
APART = ("q_norm.weight", "k_norm.weight", ".bias")  # of queries, keys and values alone
LAST_NORM = "model.norm.weight"
SHARE_OF_EPS = 1e-3  # eps' / eps: the rest is the constant's
LARGER = 32.0  # a, where eps' = eps; a power of two rounds nothing
MARGIN = 1e4  # nats by which a suppressed id loses against every other one, at least
LARGEST = 1e30  # of B: products with it stay finite in float32 and bfloat16


Switches = TransformerConfig | Architecture


def widened_width(trunk: TransformerConfig) -> int:
    """M + k. k is the number of heads, as a Llama's width is a multiple of it."""
    return trunk.width + trunk.n_heads


def widened_eps(trunk: TransformerConfig) -> float:
    """eps' of the norms over M + k axes."""
    return _share_of_eps(trunk) * trunk.norm_eps


def _share_of_eps(kind: Switches) -> float:
    """eps' / eps."""
    if _shares_eps(kind):
        return 1.0
    return SHARE_OF_EPS


def _shares_eps(kind: Switches) -> bool:
    """Whether there are norms that never see the new axes."""
    return kind.qk_norm != "none" or kind.norms == "after"


def _factor(name: str, old: int, new: int, kind: Switches) -> float:
    """What a tensor's own part is multiplied by when M = old axes become M + k = new."""
    scale = 1.0
    if _shares_eps(kind):
        scale = LARGER
    root = math.sqrt(old / new)
    if name == READ:
        return scale * (root if kind.scale_embedding else 1.0)
    if name == WRITE:
        return 1.0
    if name == LAST_NORM or (kind.norms == "before" and name.endswith("norm.weight")):
        return root
    if name.endswith("norm.weight"):  # after a branch, so it writes to the stream
        return root * scale
    if kind.norms == "before":
        return scale if name.endswith(WRITERS) else 1.0
    return 1 / root if name.endswith(WRITERS) else 1 / scale


def widen(
    weights: Mapping[str, Tensor], trunk: TransformerConfig, unreachable: Sequence[int]
) -> dict[str, Tensor]:
    """A Llama's weights -> those of a wider one that never generates the ids `unreachable`.

    The result has `widened_width`, `widened_eps` and two tables of ids. All other logits are equal.

    Raises UserError where weights are NaN.
    """
    old = trunk.width
    new = widened_width(trunk)
    k = new - old
    found = {}
    for name, x in {WRITE: weights[READ], **weights}.items():
        axis = _axis(name)
        if axis is None:
            found[name] = x
            continue
        shape = list(x.shape)
        shape[axis] = k
        kept = x * _factor(name, old, new, trunk)
        found[name] = torch.cat([kept, x.new_zeros(shape)], axis)
    scale = LARGER if _shares_eps(trunk) else 1.0
    share = _share_of_eps(trunk) / scale**2
    constant = math.sqrt((old * trunk.norm_eps - new * share * trunk.norm_eps) / k)
    found[READ][:, old:] = scale * constant
    if trunk.scale_embedding:
        found[READ][:, old:] /= math.sqrt(new)
    found[LAST_NORM][old:] = 1
    gap = 2 * _largest_logit(weights, trunk) + MARGIN
    depth = (
        gap * math.sqrt(_largest_state(weights, trunk) ** 2 / old + trunk.norm_eps) / (k * constant)
    )
    if math.isnan(depth):
        raise UserError("the weights are no numbers: train again, with a lower learning rate")
    found[WRITE][list(unreachable), old:] = -min(depth, LARGEST)
    return found


def narrow(name: str, x: Tensor, width: int, kind: Switches) -> Tensor:
    """The inverse of `widen` for one tensor; width: M.

    Tensors that were multiplied are restored to float32's rounding, all else exactly.
    """
    axis = _axis(name)
    if axis is None:
        return x
    old = x.narrow(axis, 0, width)
    factor = _factor(name, width, x.shape[axis], kind)
    if factor == 1:
        return old.contiguous()
    return old / factor


def narrow_shape(name: str, shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    """The shape that `narrow` gives."""
    axis = _axis(name)
    if axis is None or len(shape) <= axis:
        return shape
    return (*shape[:axis], min(width, shape[axis]), *shape[axis + 1 :])


def _axis(name: str) -> int | None:
    """The axis of a tensor that runs along the residual stream; None if none does."""
    if name.endswith(APART):
        return None
    if name.endswith(("norm.weight", *WRITERS)):
        return 0
    return 1


def _largest_logit(weights: Mapping[str, Tensor], trunk: TransformerConfig) -> float:
    """A bound of |logit| over all hidden states."""
    rows = weights.get(WRITE, weights[READ])
    return _longest_row(rows) * _largest_normed(weights[LAST_NORM], trunk)


def _largest_state(weights: Mapping[str, Tensor], trunk: TransformerConfig) -> float:
    """A bound of the residual stream's length before the last norm, whatever is read.

    Every layer adds no more than its matrices make of a normed state: attention averages values,
    and |silu(a) b| <= |a| |b|, as for GELU. Matrices are bounded by their Frobenius norms.
    """

    def size(name: str) -> float:
        return float(torch.linalg.vector_norm(weights[name], dtype=torch.float64))

    bound = _longest_row(weights[READ]) * trunk.input_scale
    for i in range(trunk.depth):
        layer = f"model.layers.{i}."
        if trunk.norms == "after":
            for norm in ("post_attention_layernorm", "post_feedforward_layernorm"):
                bound += _largest_normed(weights[f"{layer}{norm}.weight"], trunk)
            continue
        normed = _largest_normed(weights[f"{layer}input_layernorm.weight"], trunk)
        values = normed * size(f"{layer}self_attn.v_proj.weight")
        if trunk.qkv_bias:
            values += size(f"{layer}self_attn.v_proj.bias")
        values *= math.sqrt(trunk.n_heads / trunk.n_kv_heads)
        bound += values * size(f"{layer}self_attn.o_proj.weight")
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
    """Raise UserError where the added axes were changed, as by training elsewhere."""
    embedded = weights[READ][:, width:]
    written = [x[width:] for name, x in weights.items() if name.endswith(WRITERS)]
    if (embedded != embedded[:1, :1]).any() or any(x.any() for x in written):
        raise UserError(
            f"its axes from {width} on were trained after the export, and a run has no place for"
            " them"
        )
