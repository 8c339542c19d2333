"""Losses with known values. Rows 3 and 17 of the table of laws."""

import math
import re
import warnings

import numpy as np
import pytest
import torch

from mmtok.diffusion.losses import (
    check_sigma_data,
    denoising_loss,
    network_loss,
    network_target,
    zero_network_loss,
)
from mmtok.diffusion.predictions import preconditioned
from mmtok.diffusion.random import stratified
from mmtok.diffusion.schedules import EDM, IDDPM, VE, VP, CondOT

COLUMNS = [VP(), VE(), IDDPM(), EDM(), CondOT()]


def normal(shape, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_a_network_that_says_nothing_has_loss_one(generator, sigma_data):
    """Row 3, in closed form and by drawing, at every noise level."""
    schedule = EDM(sigma_data=sigma_data)
    sigma = torch.logspace(-2.69, 1.9, 50, dtype=torch.float64)
    exact = zero_network_loss(schedule, sigma_data**2, sigma)
    torch.testing.assert_close(exact, torch.ones_like(exact), rtol=0, atol=1e-12)
    n = 20_000
    d = 10
    tolerance = 4 / math.sqrt(2 * n * d)
    y = sigma_data * normal((n, d), generator)
    noise = normal((n, d), generator)
    levels = schedule.training_sigma(stratified(n, y, generator).clamp(1e-9))
    nothing = preconditioned(lambda scaled, c_noise: torch.zeros_like(scaled), schedule)
    assert denoising_loss(nothing, schedule, y, noise, levels).mean().item() == pytest.approx(
        1, abs=tolerance
    )
    seen = schedule.coefficients(levels).c_in[:, None] * (y + levels[:, None] * noise)
    assert seen.std().item() == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("schedule", COLUMNS, ids=lambda c: type(c).__name__)
def test_both_forms_of_the_loss_agree(generator, schedule):
    """lambda |D - y|^2 = |F - target|^2 for any network, on pictures too; float32 keeps the second
    form's digits.
    """
    y, noise = normal((2, 50, 3, 4, 4), generator)
    sigma = torch.logspace(-2.19, 1.9, 50, dtype=torch.float64)

    def network(scaled, c_noise):
        return torch.tanh(2 * scaled + c_noise[:, None, None, None] / 10)

    loss = network_loss(network, schedule, y, noise, sigma)
    torch.testing.assert_close(
        denoising_loss(preconditioned(network, schedule), schedule, y, noise, sigma),
        loss,
        rtol=1e-9,
        atol=0,
    )
    torch.testing.assert_close(
        network_loss(network, schedule, y.float(), noise.float(), sigma).double(),
        loss,
        rtol=1e-4,
        atol=0,
    )


def test_flow_matching_target_is_the_velocity(generator):
    y, noise = normal((2, 7, 5), generator)
    sigma = torch.logspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(
        network_target(CondOT(), y, noise, sigma), noise - y, rtol=0, atol=1e-10
    )


class TestFlowMatchingFloor:
    """Row 17: between N(0, 1) and N(0, s^2), drawn apart, no velocity has a loss below pi s / 2 per
    dimension.
    """

    @pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
    def test_by_quadrature(self, s):
        nodes, weights = np.polynomial.legendre.leggauss(200)
        schedule = CondOT()
        u = torch.from_numpy((nodes + 1) / 2)
        sigma = schedule.training_sigma(u)
        left = s**2 * sigma**2 / (s**2 + sigma**2)  # Var(y | x), the loss of the ideal denoiser
        assert (
            torch.from_numpy(weights / 2) * schedule.weight(sigma) * left
        ).sum().item() == pytest.approx(math.pi * s / 2, abs=1e-6)

    @pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
    def test_by_drawing(self, generator, s):
        n = 20_000
        d = 4
        y = s * normal((n, d), generator)
        noise = normal((n, d), generator)
        u = torch.rand(n, generator=generator, dtype=torch.float64)

        def ideal(x, sigma):
            return x * (s**2 / (s**2 + sigma**2))[:, None]

        losses = denoising_loss(ideal, CondOT(), y, noise, CondOT().training_sigma(u))
        assert losses.mean().item() == pytest.approx(
            math.pi * s / 2, abs=3 * losses.std().item() / math.sqrt(n)
        )

    def test_with_noise_that_knows_its_data_nothing_is_left(self, generator):
        s = 2.0
        noise = normal((500, 4), generator)
        u = torch.rand(500, generator=generator, dtype=torch.float64)

        def knowing(x, sigma):
            return x / (1 + sigma / s)[:, None]

        assert (
            denoising_loss(knowing, CondOT(), s * noise, noise, CondOT().training_sigma(u)).max()
            < 1e-12
        )


def test_a_wrong_sigma_data_is_named_with_both_numbers(generator, recwarn):
    y = 0.75 * normal((2000, 6), generator) - 0.4
    rms = y.square().mean().sqrt().item()
    assert check_sigma_data(EDM(sigma_data=rms), y) == pytest.approx(1, abs=1e-9)
    assert (
        check_sigma_data(EDM(sigma_data=rms * 1.02), y) == pytest.approx(1, abs=0.05)
        and not recwarn.list
    )
    with pytest.warns(UserWarning, match=f"0.5 but .* is {rms:.3}"):
        assert check_sigma_data(EDM(sigma_data=0.5), y) > 1.05


@pytest.mark.parametrize("ratio", [1e-3, 0.05, 0.2, 0.5, 0.9, 1.1, 2, 5, 20, 100, 1000])
@pytest.mark.parametrize("rms", [0.57, 1.0, 30.0])
def test_no_wrong_sigma_data_is_missed_however_far_off(generator, rms, ratio):
    """Also where it is so large that the training levels hardly reach beyond it."""
    y = rms * normal((20_000, 6), generator)
    said = (
        f"sigma_data is {ratio * rms:.4g} but the data's root mean square is"
        f" {y.square().mean().sqrt().item():.4g}: "
    )
    with pytest.warns(UserWarning, match=re.escape(said)):
        assert check_sigma_data(EDM(sigma_data=ratio * rms), y) == pytest.approx(
            ratio**-2, rel=0.05
        )


@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 1.0, 3.0, 20.0])
def test_the_loss_at_large_noise_is_the_furthest_from_one(sigma_data):
    schedule = EDM(sigma_data=sigma_data)
    sigma = torch.logspace(-4, 6, 500, dtype=torch.float64)
    off = (zero_network_loss(schedule, 1.0, sigma) - 1).abs()
    last = abs(check_sigma_data_quietly(schedule) - 1)
    assert (off <= last + 1e-9).all() and off[-1].item() == pytest.approx(last, rel=1e-6)


def check_sigma_data_quietly(schedule):
    """Of data of root mean square 1."""
    with warnings.catch_warnings(action="ignore"):
        return check_sigma_data(schedule, torch.tensor([[1.0, -1.0]]))


@pytest.mark.parametrize(
    "shape, per_group",
    [
        ((2, 3), 1),
        ((1, 1), 1),
        ((10, 1), 1),
        ((1, 50), 1),
        ((50,), 1),
        ((300, 4), 1),
        ((300, 4), 30),
        ((30, 4), 30),
    ],
)
def test_a_fitting_sigma_data_is_not_warned_of_however_few_the_data(
    generator, recwarn, shape, per_group
):
    """At most two sets of 500 by chance, none of many data; and rows of one signal, which are
    alike, count as one.
    """
    for _ in range(500):
        y = normal(shape, generator)
        if per_group > 1:
            y = (
                y
                * (0.5 * normal((shape[0] // per_group,), generator))
                .exp()
                .repeat_interleave(per_group)[:, None]
                / math.exp(0.25)
            )
        groups = torch.arange(shape[0]) // per_group if per_group > 1 else None
        check_sigma_data(EDM(sigma_data=1.0), y, groups=groups)
    assert len(recwarn.list) <= (2 if math.prod(shape) < 1000 else 0)


def test_stratified_levels_cover_the_interval(generator):
    u = stratified(64, torch.zeros(1), generator)
    assert ((u * 64).floor().sort().values == torch.arange(64)).all()
    assert not (u.diff() > 0).all()
