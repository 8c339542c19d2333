"""Cascades of diffusions: with ideal denoisers the bound is no bound but the truth; with any others
it is what the integral says.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmtok.core.segment import Document, Segment, Signature, segment_of
from mmtok.core.vocabulary import Vocabulary
from mmtok.diffusion.schedules import EDM
from mmtok.errors import UserError
from mmtok.heads.base import Known
from mmtok.heads.cascade import Cascade, Stage, joined
from mmtok.heads.diffusion import GridDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.nn.unet import UNetConfig

FOUR = Signature("picture", latent_size=1, frames=4)
SIXTEEN = Signature("picture", latent_size=4, frames=4)
TINY = UNetConfig((8,), 1, 2)
COVARIANCE = 0.5 * torch.eye(4, dtype=torch.float64) + 0.5  # of the four pixels of a picture
COLUMN = EDM(sigma_data=0.8, sigma_min=1e-3)
H = 3  # width of the hidden states, which ideal networks do not need


class Ideal(nn.Module):
    """The network of a Gaussian N(gain z, covariance), z the noisy picture below, for a `level`
    that it is to be told.
    """

    def __init__(self, schedule, model):
        super().__init__()
        self.schedule = schedule
        self.model = model
        self.kept_in = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, c_noise, condition):
        sigma = (4 * c_noise).exp()
        c = self.schedule.coefficients(sigma)
        state = x.flatten(1) / c.c_in[:, None]
        mean, covariance = self.model(condition)
        noisy = covariance + sigma[:, None, None] ** 2 * torch.eye(state.shape[1], dtype=x.dtype)
        denoised = (
            mean + (covariance @ torch.linalg.solve(noisy, (state - mean)[..., None]))[..., 0]
        )
        return ((denoised - c.c_skip[:, None] * state) / c.c_out[:, None]).view(x.shape)


class Silent(nn.Linear):
    """What every network is before training, at less cost."""

    def __init__(self):
        super().__init__(1, 1)

    def forward(self, x, c_noise, condition):
        return 0 * x


def small(condition):
    """The mean of the four pixels: N(0, 5 / 8)."""
    return torch.zeros(len(condition), 1, dtype=torch.float64), COVARIANCE.mean().expand(
        len(condition), 1, 1
    )


def given_below(condition):
    """Four pixels given z = sqrt(1 - level) m / r + sqrt(level) n, by conditioning their joint
    Gaussian.
    """
    z = condition[:, H, None]
    level = condition[:, H + 1]
    scale = (1 - level).sqrt() / COLUMN.sigma_data
    cross = scale[:, None] * COVARIANCE.mean(1)
    variance = (scale**2 * COVARIANCE.mean() + level)[:, None]
    return (
        cross * z / variance,
        COVARIANCE - cross[:, :, None] * cross[:, None] / variance[..., None],
    )


def ideal(level, schedule=COLUMN, **changes):
    stage = Stage(schedule=schedule, network=TINY, aug_noise=level, **changes)
    head = Cascade((stage, stage)).build(H, FOUR)
    for stage, model in zip(head.stages, (small, given_below)):
        stage.network = Ideal(schedule, model)
    return head


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def segments(n):
    return (
        torch.randn(n, 4, generator=dice(), dtype=torch.float64)
        @ torch.linalg.cholesky(COVARIANCE).T
    )


def sampled(head, n, generator=None, hs=None, callback=None, **dials):
    with torch.no_grad():
        return head.sample(
            hs or [torch.zeros(n, H)],
            Sampling(**dials),
            generator or dice(),
            callback=callback,
        )


# ---- exact answers


@pytest.mark.parametrize("level", [0.02, 0.3, 0.9])
def test_with_ideal_denoisers_every_draw_of_the_bound_is_the_density(level):
    """p(z) p(x | z) / q(z | x) = p(x) for every z, where p(z, x) = p(x) q(z | x)."""
    x = segments(6)
    exact = -torch.distributions.MultivariateNormal(
        torch.zeros(4, dtype=torch.float64), COVARIANCE
    ).log_prob(x)
    noisier = replace(
        COLUMN, sigma_max=1e4
    )  # the prior at sigma_max is centred at 0: wrong by the mean / sigma_max
    nats = -ideal(level, noisier, ode_steps=100).log_prob(torch.zeros(6, H), x[..., None], dice())
    torch.testing.assert_close(nats, exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize("level", [0.0, 0.3, 0.9])
def test_with_ideal_denoisers_what_is_drawn_follows_the_picture_below_at_any_level(level):
    """The finer network is told the level that the picture below it has. The four pixels' mean m
    follows z with the slope cov(m, z) / var(z), where cov(m, z) = sqrt(1 - level) var(m) / r: told
    another level, it would follow z more or less than that.
    """
    seen = []

    def watched(condition):
        seen.append(condition[:, H].double())
        return given_below(condition)

    head = ideal(0.5)
    head.stages[1].network = Ideal(COLUMN, watched)
    x = sampled(head, 8000, steps=40, aug_noise=level)[..., 0].double()
    torch.testing.assert_close(x.T @ x / len(x), COVARIANCE, atol=0.06, rtol=0)
    z = torch.cat(seen)[: len(x)]  # of the first step
    scale = math.sqrt(1 - level) / COLUMN.sigma_data
    variance = COVARIANCE.mean()
    slope = scale * variance / (scale**2 * variance + level)
    torch.testing.assert_close((x.mean(1) * z).mean() / z.square().mean(), slope, atol=0.03, rtol=0)


def shaken(level=0.2):
    torch.manual_seed(0)
    head = Cascade(
        (Stage(schedule=COLUMN, network=TINY, aug_noise=level, ode_steps=12),) * 2
    ).build(H, FOUR)
    for p in head.parameters():
        p.data.add_(torch.randn(p.shape) * 0.2)
    return head


def test_of_any_networks_it_is_the_bound_that_the_integral_over_the_picture_below_says():
    """E_q of the terms by quadrature over the single small pixel; and as weights they average to
    p(x) itself.
    """
    head = shaken()
    level = 0.2
    n = 200
    h = torch.randn(1, H, generator=dice())
    x = torch.tensor([0.3, -0.5, 1.0, 0.2], dtype=torch.float64).view(1, 4, 1)
    sigma = COLUMN.sigma_data * math.sqrt(level / (1 - level))
    v = torch.linspace(-4, 4, 101, dtype=torch.float64)
    z = v * math.sqrt(1 - level) / COLUMN.sigma_data
    many = h.expand(len(v), -1)
    log_low = head.stages[0].log_prob(many, v.view(-1, 1, 1, 1), dice(), sigma=sigma)
    log_high = head.stages[1].log_prob(
        joined(many, z[:, None], torch.full_like(z, level)),
        x.expand(len(v), 4, 1).view(-1, 1, 2, 2),
        dice(),
    )
    q = torch.distributions.Normal(x.mean(), sigma).log_prob(v)
    step = v[1] - v[0]
    assert float(log_high.std()) > 0.01  # the finer stage heeds the picture below
    log_p = (log_low + log_high).logsumexp(0) + step.log()
    bound = ((log_low + log_high - q) * q.exp()).sum() * step
    drawn = head.log_prob(h.expand(n, -1), x.expand(n, 4, 1), dice())
    assert bound < log_p - 0.01 and abs(float(log_low.exp().sum() * step) - 1) < 0.02
    torch.testing.assert_close(drawn.mean(), bound, atol=4 * float(drawn.std()) / n**0.5, rtol=0)
    weight = (drawn - log_p).exp()
    torch.testing.assert_close(
        weight.mean(),
        torch.ones((), dtype=torch.float64),
        atol=4 * float(weight.std()) / n**0.5,
        rtol=0,
    )


def test_of_three_stages_every_picture_below_costs_its_divergence():
    """Untrained, each stage says N(0, r^2), whatever lies below: -log p(x) plus KL(q(v | x) || N(0,
    r^2 + sigma^2)) of each v.
    """
    stage = Stage(schedule=COLUMN, network=TINY, aug_noise=0.4, ode_steps=40)
    n = 512
    level = 0.4
    head = Cascade((stage,) * 3, patch=2).build(H, SIXTEEN)
    for part in head.stages:
        part.network = Silent()
    x = torch.randn(1, 4, 4, generator=dice(), dtype=torch.float64)
    nats = -head.log_prob(torch.zeros(n, H), x.expand(n, 4, 4), dice())
    r2 = COLUMN.sigma_data**2
    sigma2 = COLUMN.sigma_data**2 * level / (1 - level)
    expected = (x.square() / r2 / 2 + math.log(2 * math.pi * r2) / 2).sum()
    for picture in head.pictures(x)[:-1]:
        expected = (
            expected
            + (
                (sigma2 + picture.square()) / (r2 + sigma2) / 2
                - 0.5
                + math.log((r2 + sigma2) / sigma2) / 2
            ).sum()
        )
    torch.testing.assert_close(
        nats.mean(), expected, atol=4 * float(nats.std()) / n**0.5 + 1e-3, rtol=0
    )


def test_before_training_each_stage_has_a_loss_of_one_per_frame():
    """Where pictures of all sizes have the root mean square that their columns take them to have:
    squares of one value.
    """
    stage = Stage(schedule=EDM(sigma_data=0.5), network=TINY, draws=2)
    head = Cascade((stage, stage, stage), patch=2).build(H, SIXTEEN)
    torch.manual_seed(0)
    values = (torch.randn(4000, 1, 1) * 0.5).expand(4000, 4, 4)
    assert abs(float(head.loss(torch.zeros(4000, H), values).mean().detach()) / 12 - 1) < 0.03


# ---- the joints


def test_pictures_below_are_means_over_squares():
    head = Cascade((Stage(network=TINY),) * 3, patch=2).build(H, SIXTEEN)
    values = torch.arange(32.0).view(2, 4, 4)
    smallest, small, full = head.pictures(values)
    assert full.shape == (2, 1, 4, 4) and torch.equal(head.patchify.frames(full), values)
    torch.testing.assert_close(
        small[:, 0].flatten(1), values.mean(2)
    )  # a frame is a square of 2 x 2
    torch.testing.assert_close(smallest.flatten(), values.mean((1, 2)))


def test_guidance_gives_both_streams_the_same_picture_below():
    head = shaken()
    h = torch.randn(5, H, generator=dice())
    torch.testing.assert_close(
        sampled(head, 5, hs=[h, h], guidance=3.0), sampled(head, 5, hs=[h]), atol=1e-4, rtol=0
    )
    assert not torch.equal(sampled(head, 5, hs=[h, -h], guidance=3.0), sampled(head, 5, hs=[h]))


def test_the_level_of_sampling_comes_before_the_stages_own():
    low = shaken(0.1)
    high = shaken(0.6)
    assert not torch.equal(sampled(low, 3), sampled(high, 3))
    assert torch.equal(sampled(low, 3, aug_noise=0.6), sampled(high, 3)) and torch.equal(
        sampled(low, 3), sampled(high, 3, aug_noise=0.1)
    )


def test_who_watches_sees_all_stages_as_segments():
    head = shaken()
    seen = []
    last = sampled(head, 3, steps=4, callback=lambda step, x: seen.append((step, x)))
    assert [step for step, _ in seen] == list(range(8)) and all(
        x.shape == (3, 4, 1) for _, x in seen
    )
    assert all(torch.equal(x, x[:, :1].expand(x.shape)) for _, x in seen[:4]) and torch.equal(
        seen[-1][1].float(), last
    )


# ---- what is refused


def test_cascades_that_do_not_fit_are_refused_in_one_line():
    for wrong in (
        lambda: Cascade(()),
        lambda: Stage(aug_noise=1.0),
        lambda: Stage(aug_noise=-0.1),
        lambda: Stage(aug_noise=float("nan")),
        lambda: Sampling(aug_noise=1.0),
        lambda: Stage(steps=1),
    ):
        with pytest.raises(ValueError) as told:
            wrong()
        assert "\n" not in str(told.value)
    for signature, changes, message in (
        (Signature("picture", latent_size=1, frames=36), {}, "6 x 6 does not halve so often"),
        (Signature("picture", latent_size=1, frames=8), {"grid": (8, 1)}, "8 x 1 does not halve"),
        (Signature("picture", latent_size=1), {}, "until an end mark"),
        (Signature("picture", (5,), frames=4), {}, "picture has single codes"),
    ):
        with pytest.raises(UserError, match=message) as told:
            Cascade((Stage(network=TINY),) * 3, **changes).build(H, signature)
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="parts of one cannot be kept"):
        shaken().sample(
            [torch.zeros(1, H)],
            Sampling(),
            dice(),
            Known(torch.zeros(1, 4, 1), torch.zeros(1, 4, dtype=torch.bool)),
        )


def test_a_level_is_refused_where_there_is_no_cascade():
    config = DecoderConfig(
        TransformerConfig(1, 16, 2, 2, 24), {"picture": GridDiffusion(network=TINY)}
    )
    lm = LM(config, Vocabulary([Signature("text", (4,)), FOUR]))
    for empty in (segment_of(FOUR), Segment("text", codes=torch.zeros(0, 1).numpy().astype(int))):
        with pytest.raises(UserError, match="not drawn by a cascade; leave out aug_noise"):
            generate(
                lm, [Document((empty,), (True,), open_end=True)], Sampling(aug_noise=0.2), dice()
            )
