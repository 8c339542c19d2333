"""What a benchmark says of the CPU minutes that a training took."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmtok.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT = SCRIPTS / "timed.py"
RECIPE = SimpleNamespace(train=SimpleNamespace(steps=10))
OF_TEN_STEPS = json.dumps({"train": {"steps": 10}})


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
            (folder / "recipe.json").write_text(OF_TEN_STEPS)
        timed.timed_train(RECIPE, folder)
        minutes = json.loads((folder / timed.SPENT).read_text(), parse_constant=no_constants)
        assert (minutes is None) == begun


def test_minutes_are_judged_where_they_are_known(timed):
    assert timed.minutes_verdict(30.0, 30) == "30.0: met"
    assert timed.minutes_verdict(30.1, 30) == "30.1: MISSED"
    assert timed.minutes_verdict(None, 30).startswith("not known")


def test_figures_of_another_number_of_steps_are_never_shown(timed, tmp_path, monkeypatch):
    """A quick look, then the full benchmark into the same folder: refused before it trains."""
    monkeypatch.setattr(timed, "train", lambda recipe, folder: pytest.fail("it trains"))
    (tmp_path / "recipe.json").write_text(OF_TEN_STEPS)
    (tmp_path / "figures.json").write_text("{}")
    full = SimpleNamespace(train=SimpleNamespace(steps=4000))
    with pytest.raises(UserError, match="a training of 10 steps, not 4,000: give another folder"):
        timed.timed_train(full, tmp_path)


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("bench_*.py")), ids=lambda path: path.stem)
def test_benchmarks_train_before_they_read_figures(path):
    """As `timed_train` is what refuses another training's folder."""
    for function in path.read_text().split("\ndef ")[1:]:
        if "timed_train(" in function and "return json.loads(" in function:
            assert function.index("timed_train(") < function.index("return json.loads(")
