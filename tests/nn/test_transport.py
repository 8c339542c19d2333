"""Optimal transport of sets: against the exact cost by linear programming, in float64."""

import math

import numpy as np
import pytest
import torch

from mmtok.metrics.energy_flow import emd
from mmtok.nn.transport import (
    chamfer,
    entropic_cost,
    log_weights,
    matched,
    plan_of,
    rounded,
    sinkhorn,
    sinkhorn_divergence,
    squared_distances,
)

SIZES = ((5, 9), (12, 12), (3, 7))


@pytest.fixture(autouse=True)
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def padded(sizes, seed, fill=math.nan):
    """Points (B, P, 2) and weights (B, P) of sets of these sizes, and where they are."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    x = torch.rand(len(sizes), max(sizes), 2, generator=generator)
    weights = torch.rand(len(sizes), max(sizes), generator=generator) + 0.1
    return x.masked_fill(~mask[..., None], fill), weights, mask


def pairs():
    x, a, at_x = padded([n for n, _ in SIZES], 0)
    y, b, at_y = padded([n for _, n in SIZES], 1)
    return x, y, log_weights(at_x, a), log_weights(at_y, b)


def as_jet(x, log_a):
    """Points as a jet whose shares of pt are their weights."""
    kept = ~log_a.isneginf()
    return torch.cat([log_a.exp()[kept, None], x[kept]], 1).numpy()


def exact(x, y, log_a, log_b):
    """The exact costs (B,) of squared distances, by the network simplex."""
    pytest.importorskip("ot")
    rows = zip(x, y, log_a, log_b, strict=True)
    found = [emd(as_jet(u, p), as_jet(v, q), beta=2.0, normalised=True) for u, v, p, q in rows]
    return torch.tensor(found)


@pytest.mark.parametrize("epsilon", [1.0, 0.03, 0.001])
def test_costs_lie_within_epsilon_log_n_of_the_exact_one(epsilon):
    x, y, log_a, log_b = pairs()
    expected = exact(x, y, log_a, log_b)
    x = x.nan_to_num()
    y = y.nan_to_num()
    found = entropic_cost(squared_distances(x, y), log_a, log_b, epsilon, 1000)
    smaller = torch.tensor([math.log(min(n)) for n in SIZES])
    assert (found > expected - 1e-6).all() and (found < expected + epsilon * smaller).all()
    larger = torch.tensor([math.log(max(n)) for n in SIZES])
    divergence = sinkhorn_divergence(x, y, log_a, log_b, epsilon, 1000)
    assert ((divergence - expected).abs() < epsilon * larger).all()


def test_a_rounded_plan_has_the_marginals_exactly_and_costs_no_less_than_the_least():
    x, y, log_a, log_b = pairs()
    expected = exact(x, y, log_a, log_b)
    cost = squared_distances(x.nan_to_num(), y.nan_to_num())
    for n_iterations, most in ((4, math.inf), (1000, 0.01 * math.log(12))):
        plan = plan_of(cost, log_a, log_b, 0.01, sinkhorn(cost, log_a, log_b, 0.01, n_iterations))
        torch.testing.assert_close(plan.sum(1), log_b.exp(), rtol=0, atol=1e-12)
        plan = rounded(plan, log_a.exp(), log_b.exp())
        assert (plan >= 0).all()
        torch.testing.assert_close(plan.sum(2), log_a.exp(), rtol=0, atol=1e-14)
        torch.testing.assert_close(plan.sum(1), log_b.exp(), rtol=0, atol=1e-14)
        above = (plan * cost).sum((1, 2)) - expected
        assert (above > -1e-12).all() and (above < most).all()


@pytest.mark.parametrize("distance", [sinkhorn_divergence, chamfer])
def test_orders_and_padding_change_nothing_and_equal_sets_are_at_0(distance):
    def d(*given):
        if distance is chamfer:
            return chamfer(*given)
        return sinkhorn_divergence(*given, 0.05, 400)

    x, y, log_a, log_b = pairs()
    found = d(x, y, log_a, log_b)
    assert (found > 0.001).all()
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(2))
    x2 = x[:, order]
    log_a2 = log_a[:, order]
    torch.testing.assert_close(d(x2, y, log_a2, log_b), found, rtol=1e-9, atol=0)
    torch.testing.assert_close(d(x2, x, log_a2, log_a), torch.zeros(3), rtol=0, atol=1e-12)
    torch.testing.assert_close(d(y, x, log_b, log_a), found, rtol=1e-6, atol=0)
    more = torch.full((3, 4, 2), 1e6)
    x2 = torch.cat([x, more], 1)
    log_a2 = torch.cat([log_a, torch.full((3, 4), -math.inf)], 1)
    torch.testing.assert_close(d(x2, y, log_a2, log_b), found, rtol=1e-12, atol=0)
    for i, (n, m) in enumerate(SIZES):  # a pair by itself, without padding
        alone = d(x[i : i + 1, :n], y[i : i + 1, :m], log_a[i : i + 1, :n], log_b[i : i + 1, :m])
        torch.testing.assert_close(alone, found[i : i + 1], rtol=1e-12, atol=0)


def test_gradients_are_those_of_finite_differences_by_points_and_by_weights():
    x, a, at_x = padded((4, 6), 3, 0.0)
    y, b, at_y = padded((5, 3), 4, 0.0)

    def s(x, a):
        log_a = log_weights(at_x, a)
        return sinkhorn_divergence(x, y, log_a, log_weights(at_y, b), 0.1, 300)

    inputs = (x.requires_grad_(), a.requires_grad_())
    assert torch.autograd.gradcheck(s, inputs, eps=1e-6, atol=1e-6, fast_mode=True)
    s(*inputs).sum().backward()
    assert x.grad[~at_x].abs().max() == 0 and a.grad[~at_x].abs().max() == 0
    x.grad = None
    chamfer(x, y, log_weights(at_x), log_weights(at_y)).sum().backward()
    assert x.grad.isfinite().all() and x.grad[at_x].abs().min() > 0


def test_chamfer_of_two_points_by_hand():
    x = torch.tensor([[[0.0, 0.0], [3.0, 0.0]]])
    y = torch.tensor([[[0.0, 1.0]]])
    at_x = torch.ones(1, 2, dtype=torch.bool)
    found = chamfer(x, y, log_weights(at_x), log_weights(at_x[:, :1]))
    assert float(found) == (1 + 10) / 2 + 1


def test_matched_sets_have_the_exact_cost_of_equal_weights():
    pytest.importorskip("ot")
    x, _, mask = padded((6, 9, 1), 5)
    y, _, _ = padded((6, 9, 1), 6)
    cost = squared_distances(x, y)
    places = matched(cost, mask.sum(1))
    assert all(sorted(row.tolist()) == list(range(9)) for row in places)
    found = (cost.gather(2, places[..., None])[..., 0] * mask).nansum(1) / mask.sum(1)
    log_a = log_weights(mask)
    torch.testing.assert_close(found, exact(x, y, log_a, log_a), rtol=1e-12, atol=1e-15)


def test_points_far_apart_neither_overflow_nor_divide_by_0():
    x = torch.tensor([[[0.0], [1e4]]], dtype=torch.float32)
    log_a = log_weights(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1e-30, 1.0]]).float())
    found = sinkhorn_divergence(x, x.flip(1), log_a, log_a, 1e-3)
    np.testing.assert_allclose(found.numpy(), 1e8, rtol=1e-5)
