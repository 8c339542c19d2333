"""Masked diffusion by enumeration, on three tokens of three values.

Rows 19 to 23 of the table of laws.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from mmtok.diffusion.discrete import (
    CosineKeep,
    Masked,
    PowerKeep,
    concrete_score,
    score_entropy,
    subset_weights,
)
from mmtok.diffusion.random import stratified

KEEPS = [PowerKeep(), CosineKeep(), PowerKeep(3)]
V = 3
L = 3
MASK = 3
ALL = torch.tensor(list(itertools.product(range(V), repeat=L)))  # (27, L)


def arbitrary(generator):
    """A model that is consistent with no joint distribution: random logits for every pattern of
    tokens.
    """
    table = 2 * torch.randn((V + 1) ** L, L, V, generator=generator, dtype=torch.float64)
    return lambda tokens: table[tokens @ torch.tensor([16, 4, 1])]


def conditionals(joint):
    """The model that knows p: log p(x_i | tokens not hidden), by summing the joint over what agrees
    with them.
    """

    def model(tokens):
        agrees = ((tokens[:, None] == ALL) | (tokens[:, None] == MASK)).all(-1)  # (B, 27)
        mass = agrees * joint
        return torch.stack(
            [mass @ torch.nn.functional.one_hot(ALL[:, i], V).double() for i in range(L)], 1
        ).log()

    return model


@pytest.fixture
def joint(generator):
    return (1.5 * torch.randn(V**L, generator=generator, dtype=torch.float64)).softmax(0)


def any_order_nats(model, x):
    """The mean over all L! orders of the sum of -log p(x_i | those before it in the order)."""
    masked = Masked(V)
    total = 0
    orders = list(itertools.permutations(range(L)))
    for order in orders:
        for i in range(L):
            hidden = torch.ones(L, dtype=torch.bool)
            hidden[list(order[:i])] = False
            log_p = model(masked.hide(x, hidden.expand_as(x))).log_softmax(-1)
            total = total - log_p[torch.arange(len(x)), order[i], x[:, order[i]]]
    return total / len(orders)


def test_bound_is_any_order_autoregression(generator):
    """Row 19: for a model that knows nothing of consistency."""
    model = arbitrary(generator)
    bound = Masked(V).enumerated_bound(model, ALL, subset_weights(L))
    torch.testing.assert_close(bound, any_order_nats(model, ALL), rtol=0, atol=1e-12)


def test_bound_is_tight_for_the_true_conditionals(joint):
    """Row 20."""
    bound = Masked(V).enumerated_bound(conditionals(joint), ALL, subset_weights(L))
    torch.testing.assert_close(bound, -joint.log(), rtol=0, atol=1e-12)


def test_bound_does_not_depend_on_the_schedule(generator):
    """Row 21: the integral over t of each schedule's own rate, by quadrature."""
    model = arbitrary(generator)
    nodes = np.polynomial.legendre.leggauss(60)
    t = torch.from_numpy((nodes[0] + 1) / 2)
    weights = torch.from_numpy(nodes[1] / 2)
    bounds = []
    for keep in KEEPS:
        alpha = keep.alpha(t)[:, None]
        m = torch.arange(L + 1)
        by_size = (
            weights[:, None] * keep.rate(t)[:, None] * (1 - alpha) ** m * alpha ** (L - m)
        ).sum(0)
        torch.testing.assert_close(by_size[1:], subset_weights(L)[1:], rtol=0, atol=1e-10)
        bounds.append(Masked(V, keep).enumerated_bound(model, ALL, by_size))
    for other in bounds[1:]:
        torch.testing.assert_close(other, bounds[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("keep", KEEPS, ids=repr)
def test_bound_of_few_steps(joint, keep):
    """Row 22: one step costs the sum of the marginal entropies; more steps cost less, down to the
    entropy.
    """
    masked = Masked(V, keep)
    model = conditionals(joint)
    entropy = -(joint * joint.log()).sum().item()
    marginals = [joint @ torch.nn.functional.one_hot(ALL[:, i], V).double() for i in range(L)]
    costs = [
        (joint @ masked.enumerated_bound(model, ALL, masked.step_subset_weights(L, n))).item()
        for n in (1, 2, 4, 16, 64, 256, 1024)
    ]
    assert costs[0] == pytest.approx(-sum((p * p.log()).sum().item() for p in marginals), abs=1e-12)
    assert all(a > b for a, b in zip(costs, costs[1:])) and costs[-1] > entropy
    assert costs[-1] == pytest.approx(entropy, abs=0.002)
    torch.testing.assert_close(
        masked.step_subset_weights(L, 100_000), subset_weights(L), rtol=0, atol=1e-3
    )


def test_normalised_score_entropy_is_the_same_loss(generator):
    """Row 23: sigma' times score entropy with s = p alpha / (1 - alpha) is -log p times the rate,
    for linear 1 / t.
    """
    log_p = torch.randn(50, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    true = torch.nn.functional.one_hot(torch.randint(0, 7, (50,), generator=generator), 7).double()
    for keep, t in itertools.product(KEEPS, (0.1, 0.5, 0.9)):
        t = torch.tensor(t, dtype=torch.float64)
        alpha = keep.alpha(t)
        sedd = (
            -keep.slope(t)
            / alpha
            * score_entropy(concrete_score(log_p, alpha), true * alpha / (1 - alpha))
        )
        mdlm = keep.rate(t) * -(true * log_p).sum(-1)
        torch.testing.assert_close(sedd, mdlm, rtol=0, atol=1e-12 * mdlm.max().item())
        if keep == PowerKeep():
            torch.testing.assert_close(mdlm, -(true * log_p).sum(-1) / t)


@pytest.mark.parametrize("keep", KEEPS, ids=repr)
def test_estimates_are_unbiased(generator, keep):
    """Drawn times, drawn steps and drawn counts against the enumerated bounds."""
    model = arbitrary(generator)
    masked = Masked(V, keep)
    n = 60_000
    x = ALL[14].expand(n, L)
    exact = masked.enumerated_bound(model, x[:1], subset_weights(L)).item()
    stepped = masked.enumerated_bound(model, x[:1], masked.step_subset_weights(L, 4)).item()
    by_time = masked.bound(model, x, 1 - stratified(n, x, generator), generator)
    by_count = masked.order_bound(
        model, x, torch.randint(1, L + 1, (n,), generator=generator), generator
    )
    by_step = masked.step_bound(
        model, x, torch.randint(1, 5, (n,), generator=generator), 4, generator
    )
    for estimates, expected in ((by_time, exact), (by_count, exact), (by_step, stepped)):
        assert estimates.mean().item() == pytest.approx(
            expected, abs=4 * estimates.std().item() / math.sqrt(n)
        )
    assert by_count.var() < by_time.var()


def test_bound_of_some_tokens_given_the_others(joint, generator):
    """Only the free tokens are hidden, so the bound is that of p(free | given)."""
    masked = Masked(V)
    model = conditionals(joint)
    n = 60_000
    x = ALL[5]
    free = torch.tensor([True, False, True])
    estimates = masked.bound(
        model, x.expand(n, L), 1 - stratified(n, x, generator), generator, free
    )
    agrees = ALL[:, 1] == x[1]
    expected = (joint[agrees].sum() / joint[5]).log().item()
    assert estimates.mean().item() == pytest.approx(
        expected, abs=4 * estimates.std().item() / math.sqrt(n)
    )


def shares(drawn):
    return (drawn @ torch.tensor([9, 3, 1])).bincount(minlength=27) / len(drawn)


class TestSampling:
    N = 6_000
    FIVE = 5 * 0.5 / math.sqrt(6_000)

    def masks(self):
        return torch.full((self.N, L), MASK)

    def test_one_token_at_a_time_follows_the_joint(self, joint, generator):
        drawn = Masked(V).fill(conditionals(joint), self.masks(), generator)
        assert (shares(drawn) - joint).abs().max() < self.FIVE

    @pytest.mark.parametrize("keep", KEEPS, ids=repr)
    def test_one_step_follows_the_marginals_and_many_the_joint(self, joint, generator, keep):
        masked = Masked(V, keep)
        model = conditionals(joint)
        p = [joint @ torch.nn.functional.one_hot(ALL[:, i], V).double() for i in range(L)]
        apart = torch.stack([p[i][ALL[:, i]] for i in range(L)]).prod(0)
        assert (
            shares(masked.sample(model, self.masks(), 1, generator)) - apart
        ).abs().max() < self.FIVE
        assert (
            shares(masked.sample(model, self.masks(), 100, generator)) - joint
        ).abs().max() < self.FIVE + 0.005

    @pytest.mark.parametrize("walk", ["fill", "sample"])
    def test_infilling(self, joint, generator, walk):
        """What is given stays; the rest follows p(free | given)."""
        masked = Masked(V)
        model = conditionals(joint)
        tokens = self.masks()
        tokens[:, 1] = 2
        drawn = (
            masked.fill(model, tokens, generator)
            if walk == "fill"
            else masked.sample(model, tokens, 100, generator)
        )
        expected = joint * (ALL[:, 1] == 2)
        assert (drawn[:, 1] == 2).all()
        assert (shares(drawn) - expected / expected.sum()).abs().max() < self.FIVE + 0.01 * (
            walk == "sample"
        )

    def test_nothing_hidden_changes_nothing(self, generator):
        def refuse(tokens):
            raise AssertionError("the model was asked although nothing is hidden")

        assert torch.equal(Masked(V).sample(refuse, ALL, 5, generator), ALL) and torch.equal(
            Masked(V).fill(refuse, ALL, generator), ALL
        )

    def test_order_and_temperature(self, joint, generator):
        """Position 2 first, then 0, then 1; without temperature each is the likeliest."""
        seen = []
        model = conditionals(joint)

        def watching(tokens):
            seen.append(tokens.clone())
            return model(tokens)

        order = torch.tensor([[2, 0, 1]])
        drawn = Masked(V).fill(watching, torch.full((1, L), MASK), generator, order, temperature=0)
        assert [(s == MASK).nonzero()[:, 1].tolist() for s in seen] == [[0, 1, 2], [0, 1], [1]]
        assert drawn[0, 2] == model(torch.full((1, L), MASK))[0, 2].argmax()

    def test_no_steps_are_refused(self):
        with pytest.raises(ValueError, match="at least 1 step"):
            Masked(V).sample(lambda tokens: tokens, ALL, 0)


def test_single_precision_logits_are_sampled_in_double(generator):
    """The choice of a token is made in float64 whatever the network computes in: same draws from
    logits that are exact in both.
    """
    logits = torch.tensor([0.0, 1.0, -2.0]).expand(500, L, V)
    masks = torch.full((500, L), MASK)
    single = Masked(V).sample(lambda tokens: logits, masks, 3, torch.Generator().manual_seed(1))
    double = Masked(V).sample(
        lambda tokens: logits.double(), masks, 3, torch.Generator().manual_seed(1)
    )
    assert torch.equal(single, double)
