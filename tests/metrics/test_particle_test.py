"""The set transformer that tells jets apart: a fair test, blind to order, axis and turns of phi."""

import numpy as np
import pytest
import torch

from mmtok.metrics import particle_test as room
from mmtok.metrics.particle_test import particle_test


def some_jets(n, seed, scale=0.2):
    """Jets of about 9 particles, whose angles have this deviation."""
    rng = np.random.default_rng(seed)
    jets = []
    for _ in range(n):
        count = rng.poisson(8) + 1
        angles = rng.normal(0, scale, (count, 2))
        jets.append(np.column_stack((rng.exponential(10, count) + 0.5, angles)))
    return jets


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(room, "MOST_STEPS", 50)
    monkeypatch.setattr(room, "BATCH", 32)


def test_alike_sets_are_not_told_apart_and_others_are(quick):
    alike = particle_test(some_jets(100, 0), some_jets(120, 1), n_permutations=200)
    assert (alike.n, alike.m) == (50, 60)
    assert abs(alike.auc - 0.5) < 4 * alike.auc_sd
    assert alike.p_value > 0.01
    other = particle_test(some_jets(100, 0), some_jets(120, 1, 0.5), n_permutations=200)
    assert other.auc > 0.9 and other.p_value == 1 / 201


def test_the_seed_decides_and_the_global_generator_is_left_alone(quick):
    sets = some_jets(20, 0), some_jets(20, 1)
    torch.manual_seed(5)
    first = particle_test(*sets, seed=3, n_permutations=10)
    drawn = torch.rand(1)
    torch.manual_seed(6)
    assert particle_test(*sets, seed=3, n_permutations=10).auc == first.auc
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_the_order_of_particles_the_axis_and_turns_of_phi_do_not_matter():
    jets = some_jets(8, 2)
    torch.manual_seed(0)
    judge = room._Judge([room._inputs(jet) for jet in jets])

    def scores(changed):
        return judge.scores([room._inputs(jet) for jet in changed])

    expected = scores(jets)
    assert np.ptp(expected) > 1e-3  # the network says something
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(scores([rng.permutation(jet) for jet in jets]), expected, atol=1e-4)
    moved = [jet + [0, 0.3, 3.1] for jet in jets]
    turned = [np.column_stack((j[:, :2], np.remainder(j[:, 2], 2 * np.pi))) for j in moved]
    np.testing.assert_allclose(scores(turned), expected, atol=1e-4)
    apart = np.concatenate([scores([jet]) for jet in jets])
    np.testing.assert_allclose(apart, expected, atol=1e-4)


def test_jets_without_particles_are_jets_too(quick):
    without = [jet[: 0 if i % 2 else None] for i, jet in enumerate(some_jets(40, 0))]
    test = particle_test(some_jets(40, 1), without, n_permutations=200)
    assert (test.n, test.m) == (20, 20)
    # half of them are told for sure, and the others not at all
    assert test.auc > 0.65 and test.p_value < 0.05
