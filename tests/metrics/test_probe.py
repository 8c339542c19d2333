"""A linear probe: right on what a plane tells apart, chance on noise."""

import numpy as np

from mmtok.metrics.probe import linear_probe, pairwise_aucs


def test_a_probe_finds_planes_and_nothing_in_noise(rng):
    x = rng.normal(size=(400, 5))
    labels = np.where(x[:, 0] + x[:, 1] > 0.5, "b", "a").tolist()
    log_p, classes = linear_probe(x[:200], labels[:200], x[200:])
    assert classes == ["a", "b"]
    assert np.allclose(np.exp(log_p).sum(1), 1)
    assert pairwise_aucs(log_p, classes, labels[200:])["a / b"] > 0.99
    noise, _ = linear_probe(rng.normal(size=(200, 5)), labels[:200], x[200:])
    assert 0.3 < pairwise_aucs(noise, classes, labels[200:])["a / b"] < 0.7


def test_pairs_are_of_their_own_classes_alone(rng):
    log_p = np.log([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    found = pairwise_aucs(log_p, ["x", "y", "z"], ["x", "y", "y"])
    assert found == {"x / y": 0.5 * (1 + 1)}
