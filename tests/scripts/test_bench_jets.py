"""Trees that tell what differs and nothing else; the observables that they are shown."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from mmtok.metrics.jets import masses

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    """name -> module."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module
    sys.path.remove(str(SCRIPTS))
    for name in set(sys.modules) - before:
        if (SCRIPTS / f"{name}.py").exists():
            del sys.modules[name]


def test_trees_tell_a_shift_as_well_as_can_be_and_nothing_else(script):
    pytest.importorskip("sklearn")
    auc_of_classifier = script("bench_jets").auc_of_classifier
    rng = np.random.default_rng(0)
    a = rng.normal(size=(1500, 2))
    same, error = auc_of_classifier(a, rng.normal(size=(1500, 2)))
    assert abs(same - 0.5) < 2 * error and error < 0.03
    shifted, error = auc_of_classifier(a, rng.normal(size=(1500, 2)) + [1.0, 0.0])
    # Phi(1 / sqrt 2) is the most that any classifier can reach
    assert 0.7602 - 3 * error - 0.03 < shifted < 0.7602 + 2 * error


def test_observables_stand_in_the_order_of_their_names(script):
    bench = script("bench_jets")
    jet = np.array([[50, 0.3, 0.0], [40, -0.3, 0.1], [30, 0.0, -0.4], [20, 0.2, 0.2]])
    found = dict(zip(bench.NAMES, bench.observables([jet])[0], strict=True))
    assert found["multiplicity"] == 4 and found["pt"] == 140
    assert 0 < found["tau32"] < 1 and 0 < found["tau21"] < 1 and found["d2"] > 0
    assert found["mass"] == masses([jet])[0]


def test_bars_are_met_or_missed_class_by_class(script):
    bench = script("bench_jets")

    def row(auc, *widths):
        found = [{"auc": auc, "mass_width": width} for width in widths]
        return {"classes": dict(zip("ab", found, strict=True))}

    rows = {
        "none": row(0.6, 0.0, 0.0),
        "grid-1000": row(0.54, 9.0, 8.0),
        "vq-1000": row(0.56, 7.0, 6.0),
        "jet-vq-1000": row(0.55, 6.0, 6.5),
    }
    said = bench.bars(rows)
    assert [line.split(": ")[0] for line in said[:3]] == [*rows][1:]
    assert [line.endswith("met") for line in said] == [True, False, True, True, False]
    assert "7.00 / 9.00, 6.00 / 8.00: met" in said[3]


def test_kept_rows_are_not_measured_again(script, tmp_path, monkeypatch):
    bench = script("bench_jets")
    monkeypatch.setattr(bench, "made_jets", lambda cache, n: ([], {"a": []}))
    monkeypatch.setattr(bench, "observables", len)
    asked = []

    def measured(name, *rest):
        asked.append(name)
        return {"name": name}

    monkeypatch.setattr(bench, "measured", measured)
    names = ("grid-1000", "vq-1000")
    found = list(bench.rows_of(names, tmp_path, 300))
    assert found == list(bench.rows_of(names[::-1], tmp_path, 300))[::-1]
    assert asked == list(names)
    list(bench.rows_of(names[:1], tmp_path, 600))
    assert asked == [*names, "grid-1000"]


def test_a_line_has_the_worst_class_and_means_of_the_others(script):
    bench = script("bench_jets")
    widths = [f"{name}_width" for name in bench.NAMES]
    row = {
        "name": "x",
        "vocabulary": 1000,
        "bits_per_jet": 10.0,
        "live": 7,
        "classes": {
            label: dict.fromkeys(widths, width) | {"auc": auc, "auc_error": 0.01, "mass_ratio": 1}
            for label, auc, width in (("a", 0.5, 1.0), ("b", 0.6, 2.0))
        },
        "encode_jets_per_s": 5.0,
        "decode_jets_per_s": 6.0,
    }
    cells = dict(zip(bench.HEADINGS, bench.line_of(row), strict=True))
    assert (cells["class"], cells["AUC"], cells["mass GeV"], cells["D2"]) == (
        "b",
        "0.600",
        "1.50",
        "1.500",
    )
    assert (cells["vocabulary"], cells["live"], cells["dec/s"]) == ("1,000", "7", "6")
