"""Optimal-transport pairing: exact, a permutation, harmless only where nothing is conditional."""

import itertools
import sys
import warnings

import pytest
import torch

from mmtok.diffusion.pairing import optimal_pairing, pair_noise

needs_pot = pytest.mark.usefixtures("pot")


@pytest.fixture
def pot():
    pytest.importorskip("ot")


def normal(n, d, generator):
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


@needs_pot
def test_pairing_is_the_best_of_all_permutations(generator):
    data = normal(6, 2, generator) * 3 + 1
    noise = normal(6, 2, generator)

    def cost(p):
        return (data - noise[list(p)]).square().sum()

    best = min(itertools.permutations(range(6)), key=cost)
    assert optimal_pairing(data, noise).tolist() == list(best)


@needs_pot
def test_pairing_of_a_batch(generator):
    """As scipy's assignment, on pictures; every noise is used once; in one dimension it sorts."""
    from scipy.optimize import linear_sum_assignment

    data = normal(100, 12, generator).view(100, 3, 2, 2)
    noise = normal(100, 12, generator).view(100, 3, 2, 2)
    cost = torch.cdist(data.flatten(1), noise.flatten(1)).square()
    pairing = optimal_pairing(data, noise)
    assert pairing.sort().values.tolist() == list(range(100))
    rows, columns = linear_sum_assignment(cost.numpy())
    assert cost[torch.arange(100), pairing].sum().item() == pytest.approx(
        cost[rows, columns].sum().item(), rel=1e-12
    )
    line = normal(50, 1, generator)
    other = normal(50, 1, generator)
    assert torch.equal(pair_noise(line, other)[line[:, 0].argsort()], other.sort(0).values)
    assert (
        optimal_pairing(line[:1], other[:1]).tolist() == [0]
        and len(optimal_pairing(line[:0], other[:0])) == 0
    )


@needs_pot
def test_pairing_straightens_a_pure_shift(generator):
    """Data = noise moved by a constant: the velocity's variance per dimension is 2 drawn apart, and
    falls with the batch when paired.
    """
    left = []
    for n in (16, 64, 256):
        data = normal(n, 2, generator) + 5
        noise = normal(n, 2, generator)
        left.append((pair_noise(data, noise) - data).var(0).mean().item())
    assert left[0] > left[1] > left[2] and left[2] < 0.1


class TestConditional:
    @pytest.fixture
    def labelled(self, generator):
        labels = torch.arange(200) % 2
        return normal(200, 1, generator) + 4.0 * labels[:, None], normal(200, 1, generator), labels

    def test_off_by_default(self, labelled):
        data, noise, labels = labelled
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pair_noise(data, noise, labels) is noise

    @needs_pot
    def test_across_labels_warns_and_skews(self, labelled):
        """Each label's noise is dragged to one side: this is what the warning is about."""
        data, noise, labels = labelled
        with pytest.warns(UserWarning, match="conditional samples will be skewed"):
            paired = pair_noise(data, noise, labels, "across")
        assert paired[labels == 1].mean() - paired[labels == 0].mean() > 1

    @needs_pot
    def test_within_labels_keeps_each_labels_noise(self, labelled):
        data, noise, labels = labelled
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            paired = pair_noise(data, noise, labels, "within")
        for label in (0, 1):
            mine = labels == label
            assert torch.equal(paired[mine].sort(0).values, noise[mine].sort(0).values)
            assert (paired[mine] - data[mine]).square().mean() < (
                noise[mine] - data[mine]
            ).square().mean()


def test_refusals(monkeypatch):
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="one number per example"):
        pair_noise(x, x, torch.zeros(3))
    with pytest.raises(ValueError, match="'sideways'"):
        pair_noise(x, x, torch.zeros(4), "sideways")
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ValueError, match="needs the extra"):
        pair_noise(x, x)


@needs_pot
def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        optimal_pairing(torch.zeros(4, 2), torch.zeros(3, 2))
