"""Distances of weighted sets of points: optimal transport and Chamfer, as losses in batches.

    OT_e(a, b) = min_P <C, P> + e KL(P | a b^T),  P 1 = a, P^T 1 = b

It lies between the exact cost (e = 0) and that plus e log n of the smaller set, as the KL of a plan
is at most the smaller entropy. Sinkhorn's iterations find it, on logarithms, so that any e > 0 will
do. OT_e(a, a) is not 0; the Sinkhorn divergence takes that out.

Sources: Cuturi 2013 (arXiv 1306.0895); Feydy et al. 2019 (arXiv 1810.08278) for the divergence and
its gradient; Altschuler, Weed and Rigollet 2017 (arXiv 1705.09634) for the rounded plan; Fan, Su
and Guibas 2017 (arXiv 1612.00603) for Chamfer and matched sets as losses.

Padding has the log weight -inf, and its points count for nothing, whatever they are. Letters: B
pairs of sets, P and Q points of the two, D numbers of a point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

N_ITERATIONS = 100


def log_weights(mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Logarithms (B, P) of the shares of points in their set's weight; -inf where no point is.

    mask (B, P) bool: where points are, at least one of each set. weights (B, P): above 0 there;
    None: all alike.
    """
    if weights is None:
        weights = torch.ones(mask.shape, dtype=torch.get_default_dtype(), device=mask.device)
    logs = torch.where(mask, weights, 1).log().masked_fill(~mask, float("-inf"))
    return logs - logs.logsumexp(1, keepdim=True)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 (B, P, Q) of points (B, P, D) and (B, Q, D), without cancellation."""
    return (x[:, :, None] - y[:, None]).square().sum(3)


@dataclass(frozen=True, eq=False)
class Potentials:
    """What Sinkhorn's iterations found: f (B, P) and g (B, Q) of the dual problem."""

    f: Tensor
    g: Tensor


@torch.no_grad()
def sinkhorn(
    cost: Tensor, log_a: Tensor, log_b: Tensor, epsilon: float, n_iterations: int = N_ITERATIONS
) -> Potentials:
    """The potentials of OT_e for costs (B, P, Q) of points that are there.

    The first half of the iterations lowers e from the largest cost to `epsilon` by one factor,
    which far points need; the others are at `epsilon`. The last one is of g, so that the columns of
    the plan sum to b; its rows sum to a as far as the iterations have converged.

    Source: Feydy et al. 2019, equations 10 and 11, on logarithms.
    """
    half = max(1, n_iterations // 2)
    largest = cost.flatten(1).amax(1).clamp(min=epsilon)  # (B,)
    f = torch.zeros_like(log_a)
    g = torch.zeros_like(log_b)
    for k in range(1, n_iterations + 1):
        e = (largest * (epsilon / largest) ** min(1.0, k / half))[:, None]
        f = -e * (log_b[:, None] + (g[:, None] - cost) / e[:, None]).logsumexp(2)
        g = -e * (log_a[:, :, None] + (f[:, :, None] - cost) / e[:, None]).logsumexp(1)
    return Potentials(f, g)


def plan_of(
    cost: Tensor, log_a: Tensor, log_b: Tensor, epsilon: float, found: Potentials
) -> Tensor:
    """The plan (B, P, Q) of potentials: a_i b_j exp((f_i + g_j - C_ij) / e)."""
    inner = (found.f[:, :, None] + found.g[:, None] - cost) / epsilon
    return (log_a[:, :, None] + log_b[:, None] + inner).exp()


def entropic_cost(
    cost: Tensor, log_a: Tensor, log_b: Tensor, epsilon: float, n_iterations: int = N_ITERATIONS
) -> Tensor:
    """OT_e (B,) of costs (B, P, Q): its dual value, which never exceeds it.

    <a, f> + <b, g> - e (<P, 1> - 1) at fixed potentials. These are its highest place, so that its
    derivatives there, P by the cost and f by a, are those of OT_e (Danskin): no gradient goes
    through the iterations.
    """
    found = sinkhorn(cost, log_a, log_b, epsilon, n_iterations)
    plan = plan_of(cost, log_a, log_b, epsilon, found)
    value = (log_a.exp() * found.f).sum(1) + (log_b.exp() * found.g).sum(1)
    return value - epsilon * (plan.sum((1, 2)) - 1)


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    log_a: Tensor,
    log_b: Tensor,
    epsilon: float,
    n_iterations: int = N_ITERATIONS,
) -> Tensor:
    """S_e (B,) of points (B, P, D) and (B, Q, D): OT_e(a, b) - (OT_e(a, a) + OT_e(b, b)) / 2.

    Costs are squared distances. It is 0 of equal sets, above it of others, and within e log n of
    the exact cost, n the larger number of points.

    Source: Feydy et al. 2019, equation 3.
    """
    x = _without_padding(x, log_a)
    y = _without_padding(y, log_b)

    def between(u: Tensor, v: Tensor, log_u: Tensor, log_v: Tensor) -> Tensor:
        cost = _among_points(squared_distances(u, v), log_u, log_v)
        return entropic_cost(cost, log_u, log_v, epsilon, n_iterations)

    own = between(x, x, log_a, log_a) + between(y, y, log_b, log_b)
    return between(x, y, log_a, log_b) - own / 2


def rounded(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The plan (B, P, Q) with row sums a (B, P) and column sums b (B, Q), which sum to 1 each.

    It is moved by at most twice what its sums are off, in the sum of moduli.

    Source: Altschuler et al. 2017, algorithm 2.
    """
    tiny = torch.finfo(plan.dtype).tiny
    plan = plan * (a / plan.sum(2).clamp(min=tiny)).clamp(max=1)[:, :, None]
    plan = plan * (b / plan.sum(1).clamp(min=tiny)).clamp(max=1)[:, None]
    missing_a = (a - plan.sum(2)).clamp(min=0)  # rounding may leave less than nothing
    missing_b = (b - plan.sum(1)).clamp(min=0)
    total = missing_a.sum(1).clamp(min=tiny)[:, None, None]
    return plan + missing_a[:, :, None] * missing_b[:, None] / total


def chamfer(x: Tensor, y: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """(B,) of points (B, P, D) and (B, Q, D): each point's squared distance to the nearest other.

    The mean under a over x, plus that under b over y. 0 also of sets that only have the same
    places, however many points lie there.

    Source: Fan et al. 2017, equation 2, as means.
    """
    cost = squared_distances(_without_padding(x, log_a), _without_padding(y, log_b))
    far = float("inf")
    to_y = cost.masked_fill(log_b.isneginf()[:, None], far).amin(2)
    to_x = cost.masked_fill(log_a.isneginf()[:, :, None], far).amin(1)
    return (log_a.exp() * to_y).sum(1) + (log_b.exp() * to_x).sum(1)


def matched(cost: Tensor, lengths: Tensor) -> Tensor:
    """The exact plan of sets of as many points: which point of y each point of x goes to, (B, P).

    cost (B, P, P), of which each pair of sets has the first lengths (B,) rows and columns; what is
    beyond stays where it is. With equal weights a permutation is an optimal plan (Birkhoff), which
    scipy finds.
    """
    from scipy.optimize import linear_sum_assignment

    costs = cost.detach().cpu().double().numpy()
    places = torch.arange(cost.shape[1]).repeat(len(cost), 1)
    for row, one, n in zip(places, costs, lengths.tolist(), strict=True):
        row[:n] = torch.from_numpy(linear_sum_assignment(one[:n, :n])[1])
    return places.to(cost.device)


def _without_padding(x: Tensor, log_a: Tensor) -> Tensor:
    """Points (B, P, D), 0 where none is."""
    return x.masked_fill(log_a.isneginf()[..., None], 0)


def _among_points(cost: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """Costs (B, P, Q), 0 where no point is, so that the largest is one of points."""
    return cost.masked_fill(log_a.isneginf()[:, :, None] | log_b.isneginf()[:, None], 0)
