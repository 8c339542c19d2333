"""Flows are invertible, normalised, in the caller's unit, and an affine one is a Gaussian."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.func import jacrev

from mmtok.core.segment import Signature
from mmtok.errors import UserError
from mmtok.heads.flows import NormalisingFlow
from mmtok.heads.sampling import Sampling
from mmtok.nn.deferred import record

pytest.importorskip("zuko")

SCALES = (250.0, 0.02, 3.0)
CONFIGS = [
    NormalisingFlow(),
    NormalisingFlow(order="coupling"),
    NormalisingFlow("affine"),
    NormalisingFlow("affine", "coupling"),
]
WIDTH = 8


def built(config, size=3, noise=0.4):
    """A head with weights as training might leave them: far from the identity."""
    torch.manual_seed(0)
    scales = SCALES[:size]
    head = config.build(WIDTH, Signature("theta", latent_size=size, frames=1, scales=scales))
    with torch.no_grad():
        for p in head.parameters():
            p.add_(noise * torch.randn(p.shape) / p.shape[-1] ** 0.5)
    return head


def states(n):
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@torch.no_grad()
def test_maps_are_inverses_and_their_determinants_cancel(config, size):
    head = built(config, size)
    h = states(2000)
    y = 1.5 * torch.randn(2000, size, generator=torch.Generator().manual_seed(2))
    for dtype, bar in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        flow = built(config, size).flow.to(dtype)
        z, log_det = flow(h.to(dtype), y.to(dtype))
        back, log_det_back = flow(h.to(dtype), z, True)
        assert float((back - y.to(dtype)).abs().max()) < bar * (1 + float(y.abs().max()))
        assert float((log_det + log_det_back).abs().max()) < 10 * bar
    z, _ = head._in_float64(h, y)
    back, _ = head._in_float64(h, z, True)
    assert back.dtype == torch.float64 and float((back - y).abs().max()) < 1e-10


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_determinant_is_that_of_the_jacobian(config):
    flow = built(config).flow.double().requires_grad_(False)
    for h, y in zip(states(2).double(), torch.randn(2, 3).double()):
        jacobian = jacrev(lambda x: flow(h[None], x[None])[0][0])(y)
        wanted = torch.linalg.slogdet(jacobian)[1]
        assert abs(float(flow(h[None], y[None])[1] - wanted)) < 1e-9


@pytest.mark.parametrize("config", CONFIGS[:2], ids=str)
def test_densities_integrate_to_one_in_the_callers_unit(config):
    head = built(config, 2)
    z = torch.linspace(-9, 9, 181, dtype=torch.float64)
    grid = torch.cartesian_prod(z, z)
    h = states(1).expand(len(grid), -1)
    cell = float(z[1] - z[0]) ** 2 * SCALES[0] * SCALES[1]
    with torch.no_grad():
        assert abs(float(head.log_prob(h, grid).exp().sum()) * cell - 1) < 3e-3


def test_the_loss_is_the_score_and_draws_have_its_entropy():
    head = built(NormalisingFlow())
    h = states(1).expand(5000, -1)
    with torch.no_grad():
        y = head.sample([h], Sampling(), torch.Generator().manual_seed(0))
        assert torch.equal(y, head.sample([h], Sampling(), torch.Generator().manual_seed(0)))
        log_p = head.log_prob(h, y)
        assert torch.allclose(head.loss(h, y.float()).double(), -log_p, atol=1e-4)
        # by change of variables: what was drawn as z has log p of z less the determinant
        z, log_det = head._in_float64(h, y)
        wanted = -0.5 * z.square().sum(1) - 1.5 * math.log(2 * math.pi) + log_det
        assert torch.allclose(log_p, wanted - sum(map(math.log, SCALES)), atol=1e-9)
        assert (z.mean(0).abs() < 0.06).all() and ((z.std(0) - 1).abs() < 0.04).all()
        centre = head.sample([h[:2]], Sampling(temperature=0), torch.Generator())
        assert torch.allclose(head._in_float64(h[:2], centre)[0], torch.zeros(2, 3).double())


def test_an_affine_flow_learns_a_gaussian_to_its_entropy():
    """-log p is D/2 log(2 pi e) + log |S| / 2, of a unit Gaussian 1.418939 D."""
    torch.manual_seed(0)
    head = NormalisingFlow("affine", n_maps=1).build(WIDTH, Signature("x", latent_size=2, frames=1))
    tril = torch.tensor([[1.0, 0.0], [0.6, 0.5]])
    y = torch.randn(100_000, 2) @ tril.T
    h = torch.zeros(1, WIDTH)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.01)
    for step in range(300):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * (1 - step / 300)
        optimiser.zero_grad()
        batch = y[torch.randint(len(y), (1000,))]
        head.loss(h.expand(1000, -1), batch).mean().backward()
        optimiser.step()
    with torch.no_grad():
        found = -float(head.log_prob(h.expand(len(y), -1), y).mean())
    wanted = math.log(2 * math.pi * math.e) + math.log(0.5)
    assert abs(wanted - 2 * 1.418939 - math.log(0.5)) < 1e-5
    assert abs(found - wanted) < 0.01


def test_every_parameter_has_a_gradient_and_an_empty_batch_too():
    for config in CONFIGS:
        head = config.build(WIDTH, Signature("x", latent_size=2, frames=1))
        assert head.log_prob(torch.randn(0, WIDTH), torch.rand(0, 2)).shape == (0,)
        for n in (3, 0):
            head.zero_grad()
            head.loss(torch.randn(n, WIDTH), torch.rand(n, 2)).sum().backward()
            assert all(p.grad is not None for p in head.parameters())


def test_a_decoder_made_without_memory_has_the_same_weights():
    build = partial(NormalisingFlow().build, WIDTH, Signature("x", latent_size=2, frames=1))
    torch.manual_seed(0)
    wanted = build().state_dict()
    torch.manual_seed(0)
    module, recorded = record(build)
    module.to_empty(device="cpu")
    torch.manual_seed(0)
    recorded.fill(module)
    assert all(torch.equal(x, wanted[name]) for name, x in module.state_dict().items())


def test_far_values_have_finite_scores_and_gradients():
    head = built(NormalisingFlow())
    y = torch.tensor([[1e6, -1e6, 0.0], [5.0, -5.0, 5.0]])
    loss = head.loss(states(2), y)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(UserError, match="maps is 'cubic'; it must be one of spline, affine"):
        NormalisingFlow("cubic")
    with pytest.raises(UserError, match="n_bins is 1; it must be at least 2"):
        NormalisingFlow(n_bins=1)
    counts = Signature("hits", latent_size=1, frames=1, counts=True)
    with pytest.raises(UserError, match="fills in continuous latents, but hits has latents"):
        NormalisingFlow().build(WIDTH, counts)
    with pytest.raises(UserError, match="theta is drawn by a flow.*leave out guidance"):
        built(NormalisingFlow()).validate(Sampling(guidance=2.0))
    assert np.isfinite(built(NormalisingFlow()).log_volume)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_loss_under_autocast_is_that_of_float32(config):
    head = built(config)
    h = states(500).bfloat16()
    y = torch.randn(500, 3, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = head.loss(h, y)
    assert found.dtype == torch.float32
    assert float((found + head.log_prob(h, y)).detach().abs().max()) < 1e-3
