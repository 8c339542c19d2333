"""A learned variance is least at the mean of its loss, of tasks and of noise levels."""

import pytest
import torch
from torch import nn

from mmtok.nn.uncertainty import (
    NoiseVariance,
    TaskVariances,
    balanced,
    measuring_norm,
    relative,
)
from mmtok.nn.weight_decay import decay_groups


def test_the_optimum_of_a_variance_is_the_mean_of_its_loss():
    """Of losses a million apart, at one learning rate, to 1 %."""
    scales = {"a": 1e-3, "b": 1.0, "c": 1e3}
    variances = TaskVariances(scales)
    generator = torch.Generator().manual_seed(0)
    losses = {m: s * torch.rand(256, generator=generator) for m, s in scales.items()}
    optimiser = torch.optim.AdamW(variances.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for step in range(800):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / 800)
        optimiser.zero_grad()
        total = torch.zeros(())
        for m, log_variance in variances().items():
            total = total + relative(losses[m].sum(), log_variance, 256) / 256
        total.backward()
        optimiser.step()
    for m, log_variance in variances().items():
        assert abs(float(log_variance.detach().exp() / losses[m].mean()) - 1) < 0.01
    # and it is the least there is: the gradient is 1 - L / sigma^2
    for loss in losses.values():
        u = loss.mean().log().requires_grad_()
        relative(loss.sum(), u, len(loss)).backward()
        assert abs(float(u.grad)) / len(loss) < 1e-6
        for factor in (0.99, 1.01):
            other = relative(loss.sum(), (factor * loss.mean()).log(), len(loss))
            assert other > relative(loss.sum(), loss.mean().log(), len(loss))


def test_a_variance_over_noise_levels_follows_the_loss():
    torch.manual_seed(0)
    variance = NoiseVariance()
    c = torch.linspace(-1.0, 1.0, 400)
    loss = torch.exp(2 * torch.sin(2 * c))
    assert torch.equal(variance(c), torch.zeros(400))
    optimiser = torch.optim.Adam(variance.parameters(), lr=0.02)
    for _ in range(1500):
        optimiser.zero_grad()
        relative(loss, variance(c)).mean().backward()
        optimiser.step()
    assert (variance(c).exp() / loss - 1).abs().mean() < 0.02


def test_variances_do_not_decay():
    for variances in (NoiseVariance(), TaskVariances(["a"])):
        decaying, others = (group["params"] for group in decay_groups(0.1, variances))
        assert not decaying and len(others) == len(list(variances.parameters()))


def test_a_variance_under_autocast_is_that_of_float32():
    torch.manual_seed(0)
    variance = NoiseVariance()
    torch.nn.init.normal_(variance.out.weight)
    c = torch.linspace(-1.0, 1.0, 50)
    with torch.autocast("cpu", torch.bfloat16):
        found = variance(c)
    assert torch.equal(found, variance(c))


def trained_errors(scales, how, steps=600):
    """Task -> the mean squared error of a small network after training, in the task's own unit.

    scales: task -> what its numbers are multiplied by; the tasks are learned in one training. how:
    "equal", "sigma" or "norm".
    """
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 256)[:, None]
    truths = {"a": torch.sin(4 * x), "b": torch.cos(3 * x)}
    y = {m: truth + torch.randn(256, 1) for m, truth in truths.items()}
    trunk = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh())
    heads = nn.ModuleDict({m: nn.Linear(12, 1) for m in truths})
    variances = TaskVariances(scales)
    trained = nn.ModuleList([trunk, heads])
    if how != "equal":
        trained.append(variances)
    optimiser = torch.optim.Adam(trained.parameters(), lr=0.01)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * (1 - step / steps)
        total = torch.zeros(())
        for m, scale in scales.items():
            u = variances()[m]
            h = trunk(x)
            if how == "norm":
                h = measuring_norm(h, u)
            loss = (heads[m](h) - scale * y[m]).square().sum()
            if how == "sigma":
                loss = relative(loss, u, len(x))
            if how == "norm":
                loss = balanced(loss, u, len(x))
            total = total + loss / len(x)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    with torch.no_grad():
        return {
            m: float((heads[m](trunk(x)) / scale - y[m]).square().mean())
            for m, scale in scales.items()
        }


@pytest.mark.parametrize("how", ["sigma", "norm"])
def test_two_badly_scaled_tasks_reach_what_each_has_alone_and_equal_weights_do_not(how):
    """Within 3 %, where equal weights miss by 10 % and more."""
    scales = {"a": 1e-3, "b": 1.0}
    alone = {m: trained_errors({m: scale}, how)[m] for m, scale in scales.items()}
    together = trained_errors(scales, how)
    equal = trained_errors(scales, "equal")
    assert all(together[m] < 1.03 * alone[m] for m in scales)
    assert equal["a"] > 1.1 * alone["a"]
    assert equal["b"] < 1.03 * alone["b"]  # the loud one hears nothing of it


def test_balanced_losses_pull_alike_whatever_divides_them():
    """A norm becomes its gradient's to 1 %, of losses a million apart."""
    scales = {"a": 1e-3, "b": 1.0, "c": 1e3}
    generator = torch.Generator().manual_seed(0)
    given = {m: s * torch.randn(64, 5, generator=generator) for m, s in scales.items()}
    h = torch.zeros(64, 5)
    norms = TaskVariances(scales)
    optimiser = torch.optim.AdamW(norms.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for step in range(800):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / 800)
        optimiser.zero_grad()
        total = torch.zeros(())
        for m, log_norm in norms().items():
            states = measuring_norm(h.requires_grad_(), log_norm)
            assert torch.equal(states, h)
            total = total + balanced((states * given[m]).sum(), log_norm, 64) / 1000
        total.backward()
        optimiser.step()
    for m, log_norm in norms().items():
        expected = given[m].square().sum(1).mean().sqrt()
        assert abs(float(log_norm.detach().exp() / expected) - 1) < 0.01
