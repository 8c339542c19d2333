"""A learned variance is least at the mean of its loss, of tasks and of noise levels."""

import torch

from mmtok.nn.uncertainty import NoiseVariance, TaskVariances, relative
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
