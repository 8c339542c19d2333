"""The gain in absolute error and its interval, as the benchmark of neutrinos has them."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def gains():
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("bench_neutrinos").gains
    sys.path.remove(str(SCRIPTS))
    for name in set(sys.modules) - before:
        if (SCRIPTS / f"{name}.py").exists():
            del sys.modules[name]


def figures(error):
    mean = np.abs(error).mean(0).tolist()
    return {"absolute_error": mean, "squared_error": np.sqrt(np.square(error).mean(0)).tolist()}


def test_the_interval_holds_the_gain_in_95_of_100_pairs_of_sets(gains):
    """Normal errors of widths 4 and 5: a gain of 0.2."""
    rng = np.random.default_rng(0)
    found = [
        gains(figures(rng.normal(0, 4, (400, 1))), figures(rng.normal(0, 5, (400, 1))), 400)
        for _ in range(1000)
    ]
    gain, low, high = np.array(found)[:, :, 0].T
    assert abs(gain.mean() - 0.2) < 0.005
    assert 0.93 < np.mean((low < 0.2) & (high > 0.2)) < 0.97


def test_another_unit_changes_nothing_and_a_set_gains_nothing_over_itself(gains):
    error = np.random.default_rng(0).normal(size=(50, 3))
    assert gains(figures(error), figures(error), 50)[0] == pytest.approx(0)
    halved = figures(error / 2)
    assert gains(halved, figures(error), 50)[0] == pytest.approx(0.5)
    in_mev = gains(figures(500 * error), figures(1000 * error), 50)
    assert in_mev == pytest.approx(gains(halved, figures(error), 50))
