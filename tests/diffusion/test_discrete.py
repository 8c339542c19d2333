"""Discrete noise and its reverse, by enumeration. Rows 18 and 24 of the table of laws."""

import itertools
import math

import pytest
import torch

from mmtok.diffusion.discrete import (
    Corruption,
    CosineKeep,
    Masked,
    PowerKeep,
    log_probs,
    reverse_rate,
)
from mmtok.diffusion.random import choose

KEEPS = [PowerKeep(), PowerKeep(3), CosineKeep()]
NOISES = [Corruption.uniform(4), Corruption.absorbing(3), Corruption((0.1, 0.2, 0.3, 0.4))]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def data():
    """p(x_0) of one token of four values; the last never occurs, so that it may be the mask."""
    return f64(0.5, 0.2, 0.3, 0.0)


def bayes(data, q):
    """p(x_0 | x_t): (V, V), row x_t. A value of x_t that cannot occur gets `data`."""
    joint = data * q.T
    return torch.where(joint.sum(1, keepdim=True) > 0, joint / joint.sum(1, keepdim=True), data)


@pytest.mark.parametrize("keep", KEEPS, ids=repr)
def test_schedules(keep):
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64).requires_grad_()
    alpha = keep.alpha(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    torch.testing.assert_close(keep.slope(t.detach()), slope)
    torch.testing.assert_close(
        keep.rate(t.detach()), (-slope / (1 - alpha)).detach(), rtol=1e-8, atol=0
    )
    assert (
        keep.alpha(f64(0.0)) == 1
        and keep.alpha(f64(1.0)).abs() < 1e-15
        and (alpha.diff() < 0).all()
    )


@pytest.mark.parametrize("noise", NOISES, ids=["uniform", "absorbing", "any"])
def test_products_of_steps(noise):
    """Row 24: prod Q_t = abar I + (1 - abar) 1 pi^T, for uniform noise (1 - abar) / K."""
    alphas = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = torch.linalg.multi_dot([noise.matrix(a) for a in alphas.tolist()])
    torch.testing.assert_close(product, noise.matrix(alphas.prod().item()), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        product.sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("noise", NOISES, ids=["uniform", "absorbing", "any"])
def test_posterior_by_enumeration(noise, data):
    """Row 24: q(x_s | x_t, x_0) by Bayes; and mixed over p(x_0 | x_t) it is the true reverse step
    q(x_s | x_t).
    """
    a_s = 0.7
    a_t = 0.25
    q_s = noise.matrix(a_s)
    step = noise.matrix(a_t / a_s)
    q_t = noise.matrix(a_t)
    x_0, x_t = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    possible = q_t[x_0, x_t] > 0
    x_0 = x_0[possible][:, None]
    x_t = x_t[possible][:, None]
    alphas = [f64(a).expand(len(x_0)) for a in (a_s, a_t)]
    enumerated = q_s[x_0] * step.T[x_t] / q_t[x_0, x_t][..., None]
    known = torch.nn.functional.one_hot(x_0, 4).double()
    torch.testing.assert_close(noise.posterior(x_t, known, *alphas), enumerated, rtol=0, atol=1e-12)
    x_t = torch.arange(4)[:, None]
    reverse = noise.posterior(
        x_t, bayes(data, q_t)[:, None], *[f64(a).expand(4) for a in (a_s, a_t)]
    )[:, 0]
    possible = data @ q_t > 0
    true = ((data @ q_s)[:, None] * step).T / (data @ q_t)[:, None]
    torch.testing.assert_close(reverse[possible], true[possible], rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", NOISES, ids=["uniform", "absorbing", "any"])
@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_bound_is_tight_for_the_true_reverse(noise, data, n_steps):
    """One token, the true p(x_0 | x_t), the sum over steps and x_t: the T-step bound is -log p(x)
    for every x and every T.
    """
    keep = PowerKeep(2)
    x = torch.arange(4)[data > 0]
    total = noise.prior_kl(x[:, None], 0.0)
    for step in range(1, n_steps + 1):
        a_s, a_t = (keep.alpha(f64((step - i) / n_steps)) for i in (1, 0))
        q_t = noise.matrix(a_t.item())
        for x_t in range(4):
            seen = torch.full((len(x), 1), x_t)
            belief = bayes(data, q_t)[seen].log()
            term = noise.step_kl(belief, x[:, None], seen, a_s.expand(len(x)), a_t.expand(len(x)))
            total = total + torch.where(q_t[x, x_t] > 0, q_t[x, x_t] * term, 0)
    torch.testing.assert_close(total, -data[x].log(), rtol=0, atol=1e-12)


def test_absorbing_noise_is_masked_diffusion(generator):
    """The general T-step term with pi on the mask equals masked diffusion's short one, token by
    token.
    """
    table = torch.randn(4, 3, generator=generator, dtype=torch.float64)

    def model(tokens):
        return table[tokens] + table[tokens.flip(1)]

    def never(tokens):
        return torch.cat(
            [model(tokens), torch.full((*tokens.shape, 1), -torch.inf, dtype=torch.float64)], -1
        )

    x = torch.randint(0, 3, (30, 4), generator=generator)
    steps = torch.randint(1, 6, (30,), generator=generator)
    keep = CosineKeep()
    noise = Corruption.absorbing(3)
    masked = Masked(3, keep)
    t = steps.double() / 5
    hidden = masked.hidden_at(x, t, generator)
    x_t = masked.hide(x, hidden)
    belief = log_probs(never(x_t)).masked_fill(~hidden[..., None], -torch.inf)
    belief = torch.where(
        hidden[..., None], belief, torch.nn.functional.one_hot(x, 4).double().log()
    )  # what is seen is known
    general = noise.step_kl(belief, x, x_t, keep.alpha(t - 0.2), keep.alpha(t))
    a_s = keep.alpha(t - 0.2)
    a_t = keep.alpha(t)
    torch.testing.assert_close(
        general, (a_s - a_t) / (1 - a_t) * masked.hidden_nll(model, x, hidden), rtol=0, atol=1e-12
    )


class TestAbsorbing:
    """Of a model that gives mass to every id wherever it is asked, also to what an unmasked token
    rules out, and to the mask.
    """

    @pytest.fixture
    def models(self, generator):
        """The same model as masked diffusion asks it, and with a logit for the mask."""
        table = torch.randn(4, 4, generator=generator, dtype=torch.float64)

        def everything(tokens):
            return table[tokens] + 0.5 * table[tokens.flip(1)]

        return lambda tokens: everything(tokens)[..., :3], everything

    @pytest.mark.parametrize(
        "a_s, a_t", [(0.7, 0.4), (1.0, 0.5), (1.0, 1.0), (0.3, 0.0), (0.0, 0.0)]
    )
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_what_is_not_masked_is_known(self, a_s, a_t, dtype):
        uniform = torch.full((1, 3, 4), 0.25, dtype=dtype)
        posterior = Corruption.absorbing(3).posterior(
            torch.tensor([[1, 0, 2]]), uniform, f64(a_s), f64(a_t)
        )
        torch.testing.assert_close(posterior[0], torch.eye(4, dtype=dtype)[[1, 0, 2]])

    @pytest.mark.parametrize("keep", KEEPS, ids=repr)
    @pytest.mark.parametrize("n_steps", [1, 2, 5])
    def test_the_bound_is_masked_diffusions_draw_by_draw(self, models, generator, keep, n_steps):
        x = torch.randint(0, 3, (200, 4), generator=generator)
        steps = torch.randint(1, n_steps + 1, (200,), generator=generator)
        short = Masked(3, keep).step_bound(
            models[0], x, steps, n_steps, torch.Generator().manual_seed(1)
        )
        general = Corruption.absorbing(3).step_bound(
            models[1], x, steps, n_steps, keep, torch.Generator().manual_seed(1)
        )
        assert short.isfinite().all() and short.mean() > 1
        torch.testing.assert_close(general, short, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("keep", KEEPS, ids=repr)
    def test_the_whole_bound_is_masked_diffusions(self, models, keep):
        """All subsets of tokens at all steps, by their probability."""
        x = torch.tensor([[0, 2, 1]])
        n_steps = 3
        total = 0.0
        masked = Masked(3, keep)
        noise = Corruption.absorbing(3)
        for step, subset in itertools.product(
            range(1, n_steps + 1), itertools.product((False, True), repeat=3)
        ):
            a_s, a_t = (keep.alpha(f64((step - i) / n_steps)) for i in (1, 0))
            hidden = torch.tensor([subset])
            share = torch.where(hidden, 1 - a_t, a_t).prod()
            x_t = masked.hide(x, hidden)
            total = total + share * noise.step_kl(noise._log_p_0(models[1], x_t), x, x_t, a_s, a_t)
        short = masked.enumerated_bound(models[0], x, masked.step_subset_weights(3, n_steps))
        torch.testing.assert_close(total, short, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("n_steps", [1, 3, 20])
    @pytest.mark.parametrize("keep", KEEPS, ids=repr)
    def test_samples_end_without_masks_and_keep_what_was_known(
        self, models, generator, keep, n_steps
    ):
        start = torch.full((500, 4), 3)
        start[:, 2] = 1
        drawn = Corruption.absorbing(3).sample(models[1], start, n_steps, keep, generator)
        assert (drawn < 3).all() and (drawn[:, 2] == 1).all() and len(drawn.unique(dim=0)) > 15

    def test_one_step_draws_from_the_models_probabilities(self, models, generator):
        start = torch.full((20_000, 2), 3)
        drawn = Corruption.absorbing(3).sample(models[1], start, 1, PowerKeep(), generator)
        shares = drawn[:, 0].bincount(minlength=3) / len(drawn)
        assert (shares - models[0](start)[0, 0].softmax(-1)).abs().max() < 5 * 0.5 / math.sqrt(
            20_000
        )

    def test_gradients_of_the_bound_are_numbers(self, generator):
        logits = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
        x = torch.randint(0, 3, (50, 4), generator=generator)
        steps = torch.randint(1, 4, (50,), generator=generator)
        Corruption.absorbing(3).step_bound(
            lambda tokens: logits[tokens], x, steps, 3, PowerKeep(), generator
        ).sum().backward()
        assert (
            logits.grad.isfinite().all() and logits.grad[3, :3].any() and not logits.grad[:3].any()
        )


@pytest.mark.parametrize("noise", [NOISES[0], NOISES[2]], ids=["uniform", "any"])
def test_bounds_estimated_and_samples_drawn(noise, data, generator):
    """With the true beliefs, single draws of the bound average to -log p(x), and ancestral samples
    follow p.
    """
    keep = PowerKeep()
    n_steps = 4
    n = 40_000
    data = (data + 0.05) / 1.2
    x = choose(
        data.log().expand(n, 1, -1), torch.rand(n, 1, generator=generator, dtype=torch.float64)
    )
    steps = torch.randint(1, n_steps + 1, (n,), generator=generator)
    tables = torch.stack(
        [bayes(data, noise.matrix(1 - i / n_steps)) for i in range(n_steps + 1)]
    ).log()
    estimates = noise.step_bound(
        lambda tokens: tables[steps[:, None], tokens], x, steps, n_steps, keep, generator
    )
    entropy = -(data * data.log()).sum().item()
    assert estimates.mean().item() == pytest.approx(
        entropy, abs=4 * estimates.std().item() / math.sqrt(n)
    )
    start = choose(
        f64(*noise.stationary).log().expand(n, 1, -1),
        torch.rand(n, 1, generator=generator, dtype=torch.float64),
    )
    clock = iter(range(n_steps, 0, -1))
    drawn = noise.sample(
        lambda tokens: tables[next(clock)][tokens], start, n_steps, keep, generator
    )
    shares = drawn.flatten().bincount(minlength=4) / n
    assert (shares - data).abs().max() < 5 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("noise", NOISES, ids=["uniform", "absorbing", "any"])
def test_corrupted_tokens_follow_their_matrix(noise, generator):
    n = 40_000
    alpha = 0.4
    x = torch.full((n, 1), 2)
    drawn = noise.corrupted(x, torch.full((n,), alpha, dtype=torch.float64), generator)
    shares = drawn.flatten().bincount(minlength=4) / n
    assert (shares - noise.matrix(alpha)[2]).abs().max() < 5 * 0.5 / math.sqrt(n)
    assert (noise.corrupted(x, torch.ones(n), generator) == x).all()


class TestKolmogorov:
    """Row 18: dp_t/dt = u_t p_t, two tokens of three values, mixture path with kappa = s^3 in time
    s towards data.
    """

    @pytest.fixture
    def toy(self, generator):
        joint = torch.randn(9, generator=generator, dtype=torch.float64).softmax(
            0
        )  # p(x_0), correlated
        states = torch.tensor(list(itertools.product(range(3), repeat=2)))
        return Corruption((0.2, 0.3, 0.5)), joint, states

    def p_and_rates(self, toy, s):
        """p_t over the nine states, and the generator u[to, from] of the tokens' own rates."""
        noise, joint, states = toy
        q = noise.matrix(s**3)
        both = torch.kron(q, q)  # q(x_t | x_0), [from x_0, to x_t]
        p = joint @ both
        belief = (joint[:, None] * both / p).T  # p(x_0 | x_t), row x_t
        u = torch.zeros(9, 9, dtype=torch.float64)
        for i in range(2):
            single = torch.stack([belief[:, states[:, i] == v].sum(1) for v in range(3)], 1)
            rates = reverse_rate(single[:, None], states[:, i : i + 1], 3 * s**2 / (1 - s**3))[:, 0]
            for start, value in itertools.product(range(9), range(3)):
                end = states[start].clone()
                end[i] = value
                u[int(end @ torch.tensor([3, 1])), start] += rates[start, value]
        return p, u

    @pytest.mark.parametrize("s", [0.1, 0.5, 0.9])
    def test_equation(self, toy, s):
        h = 1e-5
        slope = (self.p_and_rates(toy, s + h)[0] - self.p_and_rates(toy, s - h)[0]) / (2 * h)
        p, u = self.p_and_rates(toy, s)
        torch.testing.assert_close(u @ p, slope, rtol=0, atol=1e-7)
        torch.testing.assert_close(
            u.sum(0), torch.zeros(9, dtype=torch.float64), rtol=0, atol=1e-12
        )
        assert (u - u.diagonal().diag() >= 0).all()


def test_choice_is_right_to_the_last_digit():
    """float64: an event of probability 1e-12 is met where it should be, whatever the dtype of the
    logits.
    """
    log_p = f64(1 - 1e-12, 1e-12).log()
    u = f64(0.0, 0.5, 1 - 2e-12, 1 - 0.5e-12)
    assert choose(log_p.expand(4, 2), u).tolist() == [0, 0, 0, 1]
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert choose(f64(0.1, 0.0, 0.6, 0.3).log().expand(1000, 4), grid).bincount().tolist() == [
        100,
        0,
        600,
        300,
    ]
    assert choose(f64(1.0, 0.0).log().float().expand(2, 2), f64(0.0, 1 - 1e-16)).tolist() == [0, 0]


@pytest.mark.parametrize(
    "build",
    [
        lambda: Corruption((0.5, 0.6)),
        lambda: Corruption(()),
        lambda: Corruption((1.5, -0.5)),
        lambda: PowerKeep(0.0),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ValueError):
        build()


def test_a_model_that_says_no_number_is_stopped_at_its_step(data):
    calls = iter(range(10))

    def model(x):
        logits = data.clamp(min=1e-9).log().expand(*x.shape, 4)
        return logits if next(calls) < 2 else logits * torch.nan

    with pytest.raises(FloatingPointError, match="NaN at step 3 of 5"):
        Corruption.uniform(4).sample(model, torch.zeros(2, 3, dtype=torch.long), 5, PowerKeep())
