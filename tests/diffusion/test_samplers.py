"""Samplers against closed forms: orders, equalities between solvers, churn.

Rows 7 to 12 of the table of laws.
"""

import math

import pytest
import torch

from mmtok.diffusion.ode import drift, path_point
from mmtok.diffusion.samplers import (
    DDIM,
    Churn,
    DPMSolver2M,
    Euler,
    Heun,
    Midpoint,
    RungeKutta4,
)
from mmtok.diffusion.schedules import EDM, IDDPM, LINEAR, VE, VP, CondOT, Path

N_STEPS = (64, 128, 256, 512)
SAMPLERS = [Euler(), Heun(), Midpoint(), RungeKutta4(), DDIM(), DPMSolver2M()]
named = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def down(n_steps):
    """EDM's noise levels from 80 to 0.002, n_steps + 1 of them, without the step to 0."""
    return EDM().times(n_steps + 1)[:-1]


def shrink(x, sigma):
    """The ideal denoiser of N(0, 1/4), in one operation."""
    return x * (0.25 / (0.25 + sigma[0].item() ** 2))


def orders(sampler, denoiser, x, exact, n_steps=N_STEPS):
    """log2 of how much the error falls per halving of the step."""
    errors = [(sampler(denoiser, x, down(n)) - exact).norm(dim=1).mean().item() for n in n_steps]
    return [math.log2(a / b) for a, b in zip(errors, errors[1:])]


@pytest.fixture(scope="module")
def start(mixture):
    return 80 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def exact(mixture, start):
    """Where the ODE takes `start` from 80 to 0.002: order 4 with 1,000 steps, right to 1e-10."""
    return RungeKutta4()(mixture.denoise, start, down(1000))


@pytest.mark.parametrize(
    "sampler, order",
    [(Euler(), 1), (Heun(), 2), (Midpoint(), 2), (DPMSolver2M(), 2)],
    ids=lambda s: type(s).__name__,
)
def test_order_on_the_mixture(mixture, start, exact, sampler, order):
    """Rows 7, 8 and 8b."""
    assert orders(sampler, mixture.denoise, start, exact) == pytest.approx([order] * 3, abs=0.1)


@pytest.mark.parametrize(
    "sampler, order",
    [(Midpoint(), 3), (RungeKutta4(), 4), (DPMSolver2M(), 2), (Heun(), 2), (Euler(), 1)],
    ids=lambda s: type(s).__name__,
)
def test_order_on_one_gaussian(sampler, order):
    """Row 8b: here the midpoint rule is better than its order, which is why orders are measured on
    the mixture.
    """
    x = f64(80.0)[:, None]
    exact = x * math.sqrt((0.25 + 0.002**2) / (0.25 + 80**2))
    assert orders(sampler, shrink, x, exact) == pytest.approx([order] * 3, abs=0.1)


def test_last_step_leaves_the_error_of_sigma_min():
    """Row 9: -sigma_min^2 / (2 s^2), however many steps."""
    x = f64(80.0)[:, None]
    error = (Heun()(shrink, x, EDM().times(8192)) / (x * 0.5 / math.sqrt(0.25 + 80**2)) - 1).item()
    assert error == pytest.approx(-(0.002**2) / (2 * 0.25), rel=0.1)


@pytest.fixture(scope="module")
def from_80_to_002(mixture, start):
    """x / s at sigma = 0.02 by the straight walk, Heun with 4,096 steps."""
    return Heun()(mixture.denoise, start, EDM(sigma_min=0.02).times(4097)[:-1])


def even_walk(path, n_steps):
    """Times from sigma 80 to 0.02: even in t, for VE even in ln t, for the straight walk EDM's."""
    if path == LINEAR:
        return EDM(sigma_min=0.02).times(n_steps + 1)[:-1]
    ends = path.time(f64(80.0, 0.02))
    fraction = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    return (
        ends[0] * (ends[1] / ends[0]) ** fraction
        if isinstance(path, VE)
        else ends[0] + fraction * (ends[1] - ends[0])
    )


@pytest.mark.parametrize("path", [LINEAR, VP(), VE()], ids=lambda p: type(p).__name__)
def test_paths_lead_to_the_same_place(mixture, start, from_80_to_002, path):
    """Row 10."""
    ends = {}
    for n_steps in (128, 256, 512):
        times = even_walk(path, n_steps)
        s_start, s_end = path.scaling(path.sigma(times[[0, -1]])).tolist()
        ends[n_steps] = Heun()(mixture.denoise, s_start * start, times, path) / s_end
    errors = {n: (x - from_80_to_002).norm(dim=1) for n, x in ends.items()}
    assert errors[512].max() < 1e-3
    means = [errors[n].mean().item() for n in (128, 256, 512)]
    assert [math.log2(a / b) for a, b in zip(means, means[1:])] == pytest.approx([2, 2], abs=0.1)


class TestOneStep:
    """Row 11: DDIM = Euler in (x / alpha, sigma / alpha) = DPM-Solver++(1) = Euler of a rectified
    flow.
    """

    @pytest.fixture
    def x(self, mixture, generator):
        return mixture.sample(30, generator) + 1.5 * torch.randn(
            30, 2, generator=generator, dtype=torch.float64
        )

    @pytest.mark.parametrize("path", [VP(), CondOT(), EDM()], ids=lambda p: type(p).__name__)
    def test_equal_solvers(self, mixture, x, path):
        sigmas = f64(1.5, 0.9)
        times = path.time(sigmas)
        (s, s_next) = path.scaling(sigmas).tolist()
        ddim = DDIM()(mixture.denoise, s * x, times, path)
        euler = s_next * Euler()(mixture.denoise, x, sigmas)
        torch.testing.assert_close(ddim, euler, rtol=0, atol=1e-12)
        two = torch.cat([times, path.time(f64(0.5))])
        order_1 = DPMSolver2M(order=1)(mixture.denoise, s * x, two, path)
        torch.testing.assert_close(
            order_1, DDIM()(mixture.denoise, s * x, two, path), rtol=0, atol=1e-12
        )

    def test_ddim_of_the_paper(self, mixture, x):
        """Song et al. 2021, eq. 12, in their alpha-bar."""
        path = VP()
        sigmas = f64(1.5, 0.9)
        a, a_next = (1 / (1 + sigmas**2)).tolist()
        denoised = mixture.denoise(x, 1.5)
        state = a**0.5 * x
        noise = (state - a**0.5 * denoised) / (1 - a) ** 0.5
        expected = a_next**0.5 * denoised + (1 - a_next) ** 0.5 * noise
        torch.testing.assert_close(
            DDIM()(mixture.denoise, state, path.time(sigmas), path), expected, rtol=0, atol=1e-12
        )

    def test_rectified_flow(self, mixture, x):
        path = CondOT()
        sigmas = f64(1.5, 0.9)
        times = path.time(sigmas)
        s = path.scaling(sigmas[0]).item()
        flow = Euler()(mixture.denoise, s * x, times, path)
        torch.testing.assert_close(
            flow, DDIM()(mixture.denoise, s * x, times, path), rtol=0, atol=1e-12
        )

    def test_vp_euler_in_its_own_time_is_another_solver(self, mixture, x):
        path = VP()
        times = f64(0.5, 0.45)
        state = path.scaling(path.sigma(times[0])).item() * x
        gap = Euler()(mixture.denoise, state, times, path) - DDIM()(
            mixture.denoise, state, times, path
        )
        assert gap.abs().max() > 1e-3


def churned_variances(n_steps, churn, s_noise=1.0):
    """v / s^2 of Heun with churn on N(0, 1/4), by its linear recursion (row 12), from sigma_max^2
    at the start.
    """
    times = EDM().times(n_steps).tolist()
    gamma = min(churn / n_steps, math.sqrt(2) - 1)
    variance = times[0] ** 2

    def rate(t):
        return t / (t * t + 0.25)  # dx/dt = rate x

    for t, t_next in zip(times, times[1:]):
        t_hat = t * (1 + gamma)
        h = t_next - t_hat
        slope = rate(t_hat)
        gain = (
            1 + h * slope if t_next == 0 else 1 + h / 2 * (slope + rate(t_next) * (1 + h * slope))
        )
        variance = gain**2 * (variance + (t_hat**2 - t**2) * s_noise**2)
    return variance / 0.25


@pytest.mark.parametrize(
    "churn, golden",
    [(0, (1.1136, 1.0073, 1.00038, 0.99997)), (40, (1.2644, 1.0411, 1.0038, 1.00023))],
)
def test_churn_keeps_the_marginal(churn, golden):
    """Row 12: the recursion's golden values, and its limit."""
    assert [churned_variances(n, churn) for n in (18, 64, 256, 1024)] == pytest.approx(
        golden, abs=6e-5
    )
    assert churned_variances(1024, churn) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("churn", [0.0, 40.0])
@pytest.mark.parametrize("n_steps", [18, 64])
def test_churned_samples_have_the_variance_of_the_recursion(generator, churn, n_steps):
    n = 40_000
    x = 80 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    samples = Heun(Churn(churn))(shrink, x, EDM().times(n_steps), generator=generator)
    ratio = samples.var().item() / 0.25 / churned_variances(n_steps, churn)
    assert ratio == pytest.approx(1, abs=5 * math.sqrt(2 / n))


def test_churn_noise_above_one_widens_an_ideal_denoiser():
    assert churned_variances(4096, 40, 1.007) == pytest.approx(1.0143, abs=3e-4)


def test_churn_on_another_path_is_the_same_walk(mixture, start):
    """Noise is added to x / s whatever s is: the straight walk, and the same one with all states
    halved.
    """

    class Halved(Path):
        def scaling(self, sigma):
            return torch.full_like(sigma, 0.5)

    walk = dict(denoiser=mixture.denoise, times=EDM().times(20))
    plain = Heun(Churn(30))(x=start, generator=torch.Generator().manual_seed(3), **walk)
    halved = Heun(Churn(30))(
        x=start / 2, path=Halved(), generator=torch.Generator().manual_seed(3), **walk
    )
    torch.testing.assert_close(halved * 2, plain)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_steps_reach_the_data(gaussian, generator, eta):
    """DDPM's noise, on VP: the variance is the data's in the limit of many steps."""
    path = VP()
    n = 20_000
    times = path.times(250)
    x = path.start(torch.randn(n, 1, generator=generator, dtype=torch.float64), times[0])
    samples = DDIM(eta)(gaussian.denoise, x, times, path, generator)
    assert samples.var().item() / 0.25 == pytest.approx(1, abs=5 * math.sqrt(2 / n) + 0.02)
    colder = DDIM(eta, temperature=0.5)(gaussian.denoise, x, times, path, generator)
    assert colder.var() < 0.9 * samples.var()


def test_evaluations():
    """Heun needs 2 n - 1 (Karras et al. 2022), the one-evaluation solvers n."""
    calls = []

    def counting(x, sigma):
        assert sigma.shape == (2,) and sigma.dtype == x.dtype
        calls.append(sigma[0].item())
        return shrink(x, sigma)

    for sampler, expected in (
        (Euler(), 18),
        (DDIM(), 18),
        (DPMSolver2M(), 18),
        (Heun(), 35),
        (Midpoint(), 35),
        (RungeKutta4(), 69),
    ):
        calls.clear()
        sampler(counting, torch.ones(2, 1), EDM().times(18))
        assert len(calls) == expected and min(calls) > 0


@named
@pytest.mark.parametrize(
    "schedule", [EDM(), VP(), VE(), IDDPM(), CondOT()], ids=lambda c: type(c).__name__
)
def test_every_sampler_walks_every_column(mixture, sampler, schedule):
    """From noise to the neighbourhood of the data, in the state's own precision and the same each
    time.
    """
    times = schedule.times(40)
    x = schedule.start(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), times[0])
    seen = []
    y = sampler(
        lambda z, s: mixture.denoise(z.double(), s.double()).to(z.dtype),
        x,
        times,
        schedule,
        callback=lambda i, z: seen.append((i, z)),
    )
    assert y.dtype == torch.float32 and [i for i, _ in seen] == list(range(40)) and seen[-1][1] is y
    assert mixture.log_density(y.double()).min() > -12


@named
def test_what_cannot_be_walked_is_refused(sampler):
    x = torch.ones(2, 1)
    for times in (f64(80.0), f64(80.0, 80.0, 0.0), f64(1.0, 2.0, 0.0), f64(2.0, 1.0, -1.0)):
        with pytest.raises(ValueError, match="needs at least|must fall"):
            sampler(shrink, x, times)
    if sampler.least_steps > 1:
        with pytest.raises(ValueError, match="2 step"):
            sampler(shrink, x, EDM().times(1))
    with pytest.raises(FloatingPointError, match="after step [23] of 18"):
        sampler(lambda z, s: shrink(z, s) if s[0] > 41 else z * torch.nan, x, EDM().times(18))


@pytest.mark.parametrize(
    "build",
    [lambda: Churn(-1.0), lambda: Churn(1.0, 2.0, 1.0), lambda: DDIM(1.5), lambda: DPMSolver2M(3)],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ValueError):
        build()


def test_drift_is_the_one_of_the_paper(mixture, generator):
    """Karras et al. 2022, eq. 4: s'/s x - s^2 sigma' sigma grad log p(x / s; sigma), the gradient
    by x through x / s.
    """
    path = VP()
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    at = path_point(path, 0.4)
    z = (x / at.s).requires_grad_()
    (score,) = torch.autograd.grad(mixture.log_density(z, at.sigma).sum(), z)
    expected = at.s_slope * at.sigma_slope / at.s * x - at.s * at.sigma_slope * at.sigma * score
    torch.testing.assert_close(
        drift(x, mixture.denoise(x / at.s, at.sigma), at), expected, rtol=0, atol=1e-10
    )
