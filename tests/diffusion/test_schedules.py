"""The columns of Karras et al.

2022, table 1: golden noise levels, inverses, slopes, preconditioning. Rows 3 to 6 of the table of
laws.
"""

import pytest
import torch

from mmtok.diffusion.schedules import EDM, IDDPM, LINEAR, VE, VP, CondOT, Path

COLUMNS = [VP(), VE(), IDDPM(), EDM(), CondOT()]
TABLE_1 = COLUMNS[:4]
named = pytest.mark.parametrize("schedule", COLUMNS, ids=lambda c: type(c).__name__)
# computed with 40 digits from the table's formulas
GOLDEN = {
    EDM(): [
        80.0,
        57.5859847212,
        40.7855737965,
        28.3745846042,
        19.3524529803,
        12.9100823808,
        8.4009353091,
        5.3151945218,
        3.25682151977,
        1.92333983704,
        1.08817063655,
        0.585348123195,
        0.296442284479,
        0.139516468731,
        0.0599473112355,
        0.0229345183723,
        0.00752801996278,
        0.002,
    ],
    VP(): [
        152.166970284,
        40.401971229,
        13.1066891881,
        5.1394199429,
        2.3501169719,
        1.15233279078,
        0.495906338188,
        0.0104859927867,
    ],
    VE(): [
        100.0,
        29.6193629595,
        8.77306662124,
        2.59852644522,
        0.769666979407,
        0.22797045621,
        0.067523396865,
        0.02,
    ],
    IDDPM(): [
        80.2037018455,
        4.19953821769,
        2.05172938652,
        1.24980017614,
        0.802425653628,
        0.489079878599,
        0.239406171627,
        0.00642541277113,
    ],
}


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def some_sigmas(n=200):
    return torch.logspace(-2.69, 1.9, n, dtype=torch.float64)  # 0.002 to 80


@pytest.mark.parametrize("schedule", GOLDEN, ids=lambda c: type(c).__name__)
def test_golden_noise_levels(schedule):
    golden = f64(*GOLDEN[schedule], 0.0)
    torch.testing.assert_close(schedule.sigmas(len(golden) - 1), golden, rtol=1e-7, atol=0)


def test_golden_constants():
    torch.testing.assert_close(
        VP().sigma(f64(1e-5, 1e-3, 1.0)),
        f64(0.00100049762668, 0.0104859927867, 152.166970284),
        rtol=1e-7,
        atol=0,
    )
    u = IDDPM().noise_levels[[0, 1, 8, 500, 998, 999]]
    golden = f64(
        20291.16961, 641.662345118, 80.2037018455, 1.01238956395, 0.0093504928356, 0.00642541277113
    )
    torch.testing.assert_close(u, golden, rtol=1e-7, atol=0)
    assert len(IDDPM().noise_levels) == 1000 and IDDPM() == IDDPM(m=1000)


def test_flow_matching_steps_evenly_in_tau():
    times = CondOT().times(7)
    torch.testing.assert_close(times.diff(), torch.full((7,), -0.999 / 7, dtype=torch.float64))
    assert times[-1] == 0 and CondOT().sigmas(7)[-1] == 0


@named
@pytest.mark.parametrize("n_steps", [1, 2, 50])
def test_times_fall_to_zero(schedule, n_steps):
    times = schedule.times(n_steps)
    sigmas = schedule.sigmas(n_steps)
    assert times.dtype == torch.float64 and len(times) == n_steps + 1
    assert (times.diff() < 0).all() and (sigmas.diff() < 0).all() and times[-1] == sigmas[-1] == 0


@named
def test_time_is_the_inverse_of_sigma(schedule):
    sigma = some_sigmas()
    torch.testing.assert_close(schedule.sigma(schedule.time(sigma)), sigma, rtol=1e-10, atol=0)


@pytest.mark.parametrize("path", [*COLUMNS, LINEAR], ids=lambda c: type(c).__name__)
def test_slopes_are_the_derivatives(path: Path):
    t = path.time(some_sigmas()).requires_grad_()
    (slope,) = torch.autograd.grad(path.sigma(t).sum(), t)
    torch.testing.assert_close(path.sigma_slope(t.detach()), slope, rtol=1e-10, atol=0)
    sigma = some_sigmas().requires_grad_()
    scaling = path.scaling(sigma)
    slope = (
        torch.autograd.grad(scaling.sum(), sigma)[0]
        if scaling.requires_grad
        else torch.zeros_like(sigma)
    )
    torch.testing.assert_close(path.scaling_slope(sigma.detach()), slope, rtol=1e-10, atol=1e-14)


@named
def test_the_weighted_loss_of_the_network_has_weight_one(schedule):
    """Row 4: lambda c_out^2 = 1."""
    sigma = some_sigmas()
    unit = schedule.weight(sigma) * schedule.coefficients(sigma).c_out ** 2
    torch.testing.assert_close(unit, torch.ones_like(unit), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 0.96, 3.0])
def test_edm_inputs_and_targets_have_unit_variance(sigma_data):
    """Row 3: Var(c_in x) = Var(F*) = 1 for data of this spread, whose ideal network says 0."""
    schedule = EDM(sigma_data=sigma_data)
    sigma = some_sigmas()
    spread = sigma_data**2
    c = schedule.coefficients(sigma)
    ones = torch.ones_like(sigma)
    torch.testing.assert_close(c.c_in**2 * (spread + sigma**2), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        ((1 - c.c_skip) ** 2 * spread + c.c_skip**2 * sigma**2) / c.c_out**2,
        ones,
        rtol=0,
        atol=1e-12,
    )
    ideal = spread / (spread + sigma**2)  # D(x) = ideal x on N(0, sigma_data^2)
    torch.testing.assert_close(
        (ideal - c.c_skip) / c.c_out, torch.zeros_like(sigma), rtol=0, atol=1e-12
    )


def test_training_levels_follow_their_distributions():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log_sigma = EDM().training_sigma(u).log()
    assert log_sigma.mean() == pytest.approx(-1.2, abs=1e-4) and log_sigma.std() == pytest.approx(
        1.2, abs=1e-3
    )
    assert VE().training_sigma(f64(0.0, 0.5, 1.0)).tolist() == pytest.approx([0.02, 2**0.5, 100])
    assert VP().training_sigma(f64(0.0, 1.0)).tolist() == pytest.approx(
        [0.00100049762668, 152.166970284]
    )
    assert CondOT().time(CondOT().training_sigma(u)).mean() == pytest.approx(0.5)
    assert (IDDPM().training_sigma(u).unique(return_counts=True)[1] == 100).all()


def test_what_the_networks_are_told_of_the_noise():
    sigma = f64(0.05, 2.0)
    assert EDM().coefficients(sigma).c_noise.tolist() == pytest.approx((sigma.log() / 4).tolist())
    assert VE().coefficients(sigma).c_noise[1] == 0
    assert CondOT().coefficients(sigma).c_noise[1] == pytest.approx(2 / 3)
    assert VP().coefficients(VP().sigma(f64(0.25))).c_noise.item() == pytest.approx(999 / 4)
    iddpm = IDDPM()
    assert iddpm.coefficients(iddpm.noise_levels[[0, 8, 999]] * 1.0001).c_noise.tolist() == [
        999,
        991,
        0,
    ]


@pytest.mark.parametrize(
    "build",
    [
        lambda: EDM(sigma_min=80, sigma_max=80),
        lambda: VE(sigma_min=3, sigma_max=2),
        lambda: EDM(sigma_min=0),
        lambda: EDM(sigma_data=0),
        lambda: VP(eps_s=1.0),
        lambda: IDDPM(j_0=1000),
        lambda: CondOT(tau_max=1.0),
        lambda: EDM().times(0),
        lambda: CondOT().times(0),
        lambda: IDDPM().times(993),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ValueError) as refusal:
        build()
    assert "\n" not in str(refusal.value) and any(letter.isdigit() for letter in str(refusal.value))
