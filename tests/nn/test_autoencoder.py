"""The KL term against torch's own and by sampling; constants that standardise and are kept with the
weights; it learns to copy.
"""

import pytest
import torch

from mmtok.nn.autoencoder import KLAutoencoder, PatchDecoder, PatchEncoder, Posterior


def small():
    encoder = PatchEncoder(1, 4, 16, 1, 6)
    return KLAutoencoder(encoder, PatchDecoder(1, 4, 16, 1, 3), 3).double()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return small()


@pytest.fixture
def posterior(generator):
    return Posterior(*torch.randn(2, 5, 2, 3, 4, generator=generator, dtype=torch.float64))


def test_kl_is_torchs_own(posterior):
    q = torch.distributions.Normal(posterior.mean, (posterior.log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(
        (1, 2, 3)
    )
    torch.testing.assert_close(posterior.kl(), expected, rtol=1e-12, atol=1e-12)


def test_kl_is_what_samples_say(posterior, generator):
    """E_q[log q - log N(0, I)], by 4000 draws, within 5 standard errors."""
    deviation = (posterior.log_variance / 2).exp()
    z = torch.stack([posterior.sample(generator) for _ in range(4000)])
    log_ratio = torch.distributions.Normal(posterior.mean, deviation).log_prob(
        z
    ) - torch.distributions.Normal(0.0, 1.0).log_prob(z)
    draws = log_ratio.sum((2, 3, 4))
    assert ((draws.mean(0) - posterior.kl()).abs() < 5 * draws.std(0) / 4000**0.5).all()


def test_kl_is_nothing_exactly_at_the_prior():
    nothing = torch.zeros(2, 1, 1, 3)
    assert not Posterior(nothing, nothing).kl().any()
    assert (Posterior(nothing + 0.1, nothing).kl() > 0).all() and (
        Posterior(nothing, nothing - 0.1).kl() > 0
    ).all()


def test_a_seed_is_a_sample(posterior):
    def draw(seed):
        return posterior.sample(torch.Generator().manual_seed(seed))

    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))


def test_shapes_and_rows_apart(network):
    x = torch.randn(4, 1, 8, 12, dtype=torch.float64)
    q = network.posterior(x)
    assert (
        q.mean.shape == q.log_variance.shape == (4, 2, 3, 3)
        and network.decode(q.mean).shape == x.shape
    )
    alone = network.posterior(x[2:3])
    torch.testing.assert_close(alone.mean[0], q.mean[2])
    torch.testing.assert_close(network.decode(alone.mean)[0], network.decode(q.mean)[2])


def test_gradient_reaches_every_parameter(network, generator):
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    q = network.posterior(x)
    ((network.decode(q.sample(generator)) - x).square().mean() + q.kl().mean()).backward()
    assert not [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
    ]


def test_latents_are_standardised_and_the_constants_travel_with_the_weights(network):
    x = torch.randn(50, 1, 8, 8, dtype=torch.float64)
    means = network.posterior(x).mean
    plain = network.decode(means)
    network.standardise_over(means)
    z = network.latents(x)
    torch.testing.assert_close(
        z.mean((0, 1, 2)), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(z.var((0, 1, 2), correction=0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(network.images(z), plain)  # constants change latents, not pictures
    again = small()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.latents(x), z) and torch.equal(again.images(z), network.images(z))


def test_a_channel_that_never_varies_is_refused(network):
    means = torch.randn(20, 3)
    means[:, 1] = 0.5
    with pytest.raises(ValueError, match=r"\[1\] never vary"):
        network.standardise_over(means)
    assert torch.equal(network.scale, torch.ones(3).double())


def test_learns_to_copy_two_pictures(network, generator):
    network.float()
    x = torch.randn(2, 1, 8, 8, generator=generator).sign().repeat(8, 1, 1, 1)
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(100):
        optimiser.zero_grad()
        q = network.posterior(x)
        (
            (network.decode(q.sample(generator)) - x).square().mean() + 1e-4 * q.kl().mean()
        ).backward()
        optimiser.step()
    network.standardise_over(network.posterior(x).mean.detach())
    assert (network.images(network.latents(x)) - x).square().mean() < 0.1
