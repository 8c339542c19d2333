"""Laws of physics as losses: nothing where they hold, alike in every frame and unit."""

import math
from dataclasses import dataclass

import pytest
import torch

from mmtok.core.segment import Signature
from mmtok.errors import UserError
from mmtok.heads.densities import Gaussian
from mmtok.heads.laws import Law, MassConstraint, MomentumBalance, invariant_mass
from mmtok.heads.quantiles import SquaredError
from mmtok.heads.regression import Regression

UNIT_GEV = 50.0
DECAY = Signature("decay", latent_size=6, frames=1, scales=(UNIT_GEV,) * 6)


def momenta(n=20, particles=2):
    generator = torch.Generator().manual_seed(0)
    return 40 * torch.randn(n, 3 * particles, generator=generator, dtype=torch.float64)


def rotation():
    q, _ = torch.linalg.qr(momenta(3)[:, :3])
    return q * torch.linalg.det(q).sign()


def boosted(p, velocity):
    """Massless momenta (N, P, 3) in a frame that moves along z."""
    gamma = 1 / math.sqrt(1 - velocity**2)
    along = gamma * (p[..., 2] - velocity * p.norm(dim=2))
    return torch.stack([p[..., 0], p[..., 1], along], 2)


def test_momenta_that_balance_cost_nothing_and_others_their_sum_over_the_width():
    law = MomentumBalance(components=3, width=5.0)
    y = momenta()
    back_to_back = torch.cat([y[:, :3], -y[:, :3]], 1)
    assert law(back_to_back).abs().max() == 0
    total = y[:, :3] + y[:, 3:]
    assert torch.allclose(law(y), total.square().sum(1) / 50)
    across = MomentumBalance(components=2, width=5.0)
    assert torch.allclose(across(torch.tensor([[3.0, 4.0, 2.0, 8.0]])), torch.tensor([169.0 / 50]))


def test_two_particles_back_to_back_have_the_mass_of_both_energies():
    y = torch.tensor([[0.0, 45.6, 0.0, 0.0, -45.6, 0.0]], dtype=torch.float64)
    assert MassConstraint(mass=91.2, width=2.5)(y).abs().max() < 1e-20
    assert float(MassConstraint(mass=86.2, width=2.5)(y)) == pytest.approx(2.0)


def test_the_mass_is_that_of_the_sum_of_four_vectors_in_every_frame():
    p = momenta(particles=4).unflatten(1, (-1, 3))
    square = p.norm(dim=2).sum(1) ** 2 - p.sum(1).square().sum(1)
    assert torch.allclose(invariant_mass(p), square.sqrt())
    for moved in (p @ rotation(), boosted(p, 0.9), p[:, [2, 0, 3, 1]]):
        assert torch.allclose(invariant_mass(moved), invariant_mass(p))


def test_another_unit_changes_no_cost():
    y = momenta(particles=3)
    in_gev = (MomentumBalance(3, 10.0), MassConstraint(80.4, 2.1, (0, 2)))
    in_mev = (MomentumBalance(3, 1e4), MassConstraint(80.4e3, 2.1e3, (0, 2)))
    for gev, mev in zip(in_gev, in_mev, strict=True):
        assert torch.allclose(gev(y), mev(1000 * y))


def test_gradients_are_right_and_finite_where_a_mass_is_zero():
    y = momenta(4).requires_grad_()
    for law in (MomentumBalance(3), MassConstraint()):
        assert torch.autograd.gradcheck(law, y)
    for still in (torch.zeros(1, 6), torch.tensor([[1.0, 0, 0, 2.0, 0, 0]])):
        still = still.double().requires_grad_()
        (slope,) = torch.autograd.grad(MassConstraint()(still).sum(), still)
        assert torch.isfinite(slope).all()


def built(config):
    torch.manual_seed(0)
    return config.build(8, DECAY).double()


@pytest.mark.parametrize("family", [SquaredError(), Gaussian()], ids=str)
def test_the_loss_is_the_family_s_and_the_laws_at_the_centre_in_the_callers_unit(family):
    laws = (MomentumBalance(3), MassConstraint())
    head = built(Regression(family, laws=laws))
    plain = built(Regression(family))
    h = torch.randn(5, 8).double()
    y = torch.randn(5, 6).double()
    centre = head.density([h]).sample(0.0, torch.Generator()) * UNIT_GEV
    wanted = plain.loss(h, y) + laws[0](centre) + laws[1](centre)
    assert torch.allclose(head.loss(h, y), wanted)
    if not head.no_score:
        assert torch.equal(head.log_prob(h, y), plain.log_prob(h, y))
        assert head.loss_kind == "bound" and (head.loss(h, y) >= -head.log_prob(h, y)).all()


def test_a_balance_draws_squared_errors_to_the_shares_that_its_width_says():
    """Of two momenta m: 2 (m_i - y_i) + (unit / width)^2 sum m = 0."""
    width = 60.0
    head = built(Regression(SquaredError(), hidden=0, laws=(MomentumBalance(3, width),)))
    h = torch.zeros(1, 8).double()
    y = torch.randn(1, 6).double()
    total = y.unflatten(1, (2, 3)).sum(1)
    pull = (UNIT_GEV / width) ** 2 / 2
    optimum = y - pull * (total / (1 + 2 * pull)).repeat(1, 2)
    with torch.no_grad():
        head.network[-1].bias.copy_(optimum[0])
    head.loss(h, y).sum().backward()
    assert head.network[-1].bias.grad.abs().max() < 1e-12


@dataclass(frozen=True)
class Along(Law):
    """A law of one's own: the first momentum has no z."""

    def __call__(self, y):
        return y[:, 2].square()

    def check(self, size):
        assert size >= 3


def test_a_law_from_outside_is_one_too():
    h = torch.randn(5, 8).double()
    head = built(Regression(SquaredError(), laws=(Along(),)))
    centre = head.density([h]).sample(0.0, torch.Generator())
    wanted = (UNIT_GEV * centre[:, 2]).square()
    assert torch.allclose(head.loss(h, centre), wanted)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MomentumBalance(width=0.0), "width is 0.0; it must be above 0"),
        (lambda: MomentumBalance(components=4), "components is 4"),
        (lambda: MassConstraint(mass=-1.0), "mass is -1.0"),
        (lambda: MassConstraint(particles=(1, 1)), "two or more different places"),
        (lambda: built(Regression(laws=(MassConstraint(particles=(0, 2)),))), "no particle 2"),
        (lambda: MassConstraint().check(4), "4 numbers are not two or more momenta"),
        (lambda: MomentumBalance().check(3), "3 numbers are not two or more momenta"),
    ],
)
def test_other_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_quantities_in_several_units_are_refused():
    mixed = Signature("decay", latent_size=6, frames=1, scales=(1.0, 2.0) * 3)
    with pytest.raises(UserError, match="one_unit=True"):
        Regression(laws=(MassConstraint(),)).build(8, mixed)
