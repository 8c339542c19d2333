"""What the benchmark of samplers and likelihoods computes, and that its peers sample as ours do."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest
import torch

from mmtok.nn.denoisers import DiTConfig, GridDenoiser

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("bench_diffusion", SCRIPTS / "bench_diffusion.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPTS))
    del sys.modules[spec.name], sys.modules["side_by_side"]


def test_the_time_of_a_network_is_split_from_its_callers(bench):
    class Slow(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    network = Slow()
    timer = bench.NetworkTimer(network)

    def work():
        network(1)
        time.sleep(0.05)
        network(2)

    for _ in range(2):  # anew each time
        its_own, the_rest = timer.split(work)
        assert its_own >= 0.04 and the_rest >= 0.05


def test_differences_are_relative_to_the_second_ones_scale(bench):
    b = torch.tensor([3.0, -3.0, 3.0, -3.0])
    assert bench.difference(b + torch.tensor([0, 0.3, 0, -0.6]), b) == pytest.approx(0.2)


@pytest.mark.parametrize("n_steps", [2, 12, 20])
def test_ours_and_diffusers_draw_alike(bench, n_steps):
    """Both of their schedulers against ours, as an independent reference: first and last steps
    included.
    """
    pytest.importorskip("diffusers")
    network = bench.with_noisy_weights(GridDenoiser(DiTConfig(1, 16, 2), (1, 4, 4), 2))
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for name, ours, theirs in bench.pairs(network, noise, n_steps):
        a = ours()
        b = theirs()
        assert a.shape == b.shape == noise.shape and bench.difference(a, b) < 1e-4, name
        torch.testing.assert_close(theirs(), b, rtol=0, atol=0)  # it can be drawn again


def test_a_likelihoods_time_is_calculated_from_the_digits_timed(bench, monkeypatch):
    monkeypatch.setattr(bench, "DIT", DiTConfig(1, 16, 2))
    monkeypatch.setattr(bench, "DiTConfig", lambda: DiTConfig(1, 16, 2))
    monkeypatch.setattr(bench, "seconds", lambda work: 6.0)
    lines = list(bench.likelihood(bench.Options(1, 20)))
    assert [line.ours for line in lines] == [300.0] * 3
    assert [line.value for line in lines] == [5.0] * 3
    assert all(line.met for line in lines)
