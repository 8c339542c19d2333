"""The baselines of bench_likelihood.py, beside numbers computed elsewhere for the same split; the
Gaussians' hang on a ridge, and were lower here.
"""

import importlib.util
import math
from pathlib import Path

import pytest

pytest.importorskip("sklearn")


def test_baselines_are_the_known_ones_and_in_their_order():
    path = Path(__file__).parents[2] / "scripts" / "likelihood_baselines.py"
    spec = importlib.util.spec_from_file_location("likelihood_baselines", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    bits = module.baselines()
    assert bits["uniform"] == pytest.approx(math.log2(17), abs=1e-9)
    assert bits["each pixel on its own"] == pytest.approx(2.430, abs=0.005)
    assert bits["each pixel given the one before"] == pytest.approx(
        2.280, abs=0.02
    )  # how unseen pairs are counted is free
    assert bits["one Gaussian"] == pytest.approx(2.965, abs=0.005) and bits[
        "a Gaussian per digit"
    ] == pytest.approx(2.650, abs=0.005)
