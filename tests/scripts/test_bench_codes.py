"""The benchmark of codes of pictures: what is hidden, and what is printed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mmtok.core.segment import Segment
from mmtok.metrics.intervals import mean_estimate

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("bench_codes", SCRIPTS / "bench_codes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPTS))
    for name in ("bench_fashion", "side_by_side", "timed"):
        sys.modules.pop(name, None)


def test_half_of_the_codes_are_free_another_half_each_time(bench):
    picture = Segment("image", codes=np.arange(49)[:, None])
    rng = np.random.default_rng(0)
    hidden = []
    for _ in range(2):
        spans = bench.free_anywhere(picture, rng).infill_spans
        assert len(spans) == 25 and all(stop == start + 1 for start, stop in spans)
        hidden.append(spans)
    assert hidden[0] != hidden[1]
    assert bench.free_below(picture).infill_spans == ((21, 49),)


def test_the_guidance_of_the_least_distance_among_those_that_meet_the_bar_is_chosen(bench):
    def share(n_right):
        return list(mean_estimate([True] * n_right + [False] * (100 - n_right)))

    figures = {
        "CPU minutes of training": 1.25,
        "named by ten scores": share(86),
        "the lower half drawn, alone: judge": share(80),
        "guidance": {"1": [share(84), 0.1], "2": [share(90), 0.2], "3": [share(95), 0.3]},
        "floor": 0.05,
    }
    lines = list(bench.lines_of("decoder", figures))
    assert "bar 0.87: MISSED" in lines[2] and "bar 0.8: met" in lines[3]
    assert lines[-1] == "chosen: 2 (Fréchet of real pictures 0.050)"
    figures = {"guidance": {"1": [share(10), 0.1]}, "floor": 0.0}
    assert "none meets the bar" in list(bench.lines_of("decoder", figures))[-1]
