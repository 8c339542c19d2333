"""Charts of calibration are pictures with their figures in words."""

import numpy as np
import pytest

from mmtok.metrics.calibration import coverage, pulls, reliability
from mmtok.metrics.statistics import two_sample
from mmtok.report.calibration import (
    coverage_curve,
    p_value_table,
    pit_histogram,
    pull_histogram,
    reliability_diagram,
)


def test_charts(rng):
    pytest.importorskip("matplotlib")
    truth = rng.normal(size=200)
    draws = rng.normal(size=(200, 20))
    pages = {
        "p of uniform": pit_histogram("t", rng.random(200)),
        "claimed coverage": coverage_curve("t", {"ours": coverage(truth, draws)}),
        "reliability": reliability_diagram("t", reliability(rng.random(90), rng.random(90) < 0.5)),
        "pulls": pull_histogram("t", pulls(truth, 0 * truth, 0 * truth + 1)),
    }
    for words, page in pages.items():
        assert words in str(page) and "data:image/png" in str(page)


def test_p_values(rng):
    x = rng.normal(size=(20, 2))
    found = str(p_value_table(two_sample(x, np.flip(x), ("ks",), n_null=9)))
    assert "p-value" in found and "ks" in found and "±" in found
