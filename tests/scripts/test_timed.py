"""What a benchmark says of the CPU minutes that a training took."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "timed.py"


@pytest.fixture(scope="module")
def timed():
    spec = importlib.util.spec_from_file_location("timed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_minutes_are_known_of_a_training_done_in_one_go_alone(timed, tmp_path, monkeypatch):
    def no_constants(word):
        raise ValueError(f"{word} is not JSON")

    monkeypatch.setattr(timed, "train", lambda recipe, folder: SimpleNamespace(folder=folder))
    for name, begun in (("new", False), ("begun", True)):
        folder = tmp_path / name
        folder.mkdir()
        if begun:
            (folder / "recipe.json").write_text("{}")
        timed.timed_train(None, folder)
        minutes = json.loads((folder / timed.SPENT).read_text(), parse_constant=no_constants)
        assert (minutes is None) == begun


def test_minutes_are_judged_where_they_are_known(timed):
    assert timed.minutes_verdict(30.0, 30) == "30.0: met"
    assert timed.minutes_verdict(30.1, 30) == "30.1: MISSED"
    assert timed.minutes_verdict(None, 30).startswith("not known")
