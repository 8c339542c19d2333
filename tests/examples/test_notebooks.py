"""The notebooks run as scripts, without a trained run, and show what they say."""

import ast
import runpy
import time
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.py"))


def run(name, monkeypatch, tmp_path):
    """A notebook's names after it has run, and how many seconds of the CPU it took."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    start = time.process_time()
    names = runpy.run_path(str(FOLDER / f"{name}.py"))
    return names, time.process_time() - start


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_a_notebook_in_percent_format(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert "format_name: percent" in text and text.count("# %%") >= 6
    assert ast.parse(text).body
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_speech_tokens(monkeypatch, tmp_path):
    names, seconds = run("speech_tokens", monkeypatch, tmp_path)
    assert seconds < 120
    assert len(names["segments"]["80 Hz"]) == pytest.approx(2 * len(names["segments"]["40 Hz"]), 1)
    n_known = len(names["half"])
    assert np.array_equal(names["drawn"].codes[:n_known], names["half"].codes)
    assert {path.suffix for path in names["OUT"].iterdir()} >= {".wav", ".png"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_jets(monkeypatch, tmp_path):
    names, seconds = run("jets", monkeypatch, tmp_path)
    assert seconds < 120
    assert names["accuracy"] > 0.45  # by chance 0.33
    assert names["per_particle"] < 7  # an untrained decoder: about 10
    assert all(len(jets) == names["N"] for jets in names["drawn"].values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_infilling(monkeypatch, tmp_path):
    names, seconds = run("infilling", monkeypatch, tmp_path)
    assert seconds < 120
    random = np.abs(np.arange(4)[:, None] - np.arange(4)).mean()  # of levels drawn evenly
    assert names["error"] < 0.7 * random
