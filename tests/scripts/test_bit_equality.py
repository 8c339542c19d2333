"""Figures of tiny recipes before and after a change: what is the same is equal, nothing else."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from mmtok.run.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


@pytest.fixture(scope="module")
def bits():
    path = ROOT / "scripts" / "bit_equality.py"
    spec = importlib.util.spec_from_file_location("bit_equality", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def saved(bits, tmp_path_factory):
    """The file with the figures of the family "text"."""
    path = tmp_path_factory.mktemp("bits") / "before.json"
    assert bits.main(["--save", str(path), "text"]) == 0
    return path


def test_a_family_is_equal_to_itself_and_not_to_another_seed(bits, saved, capsys):
    assert bits.main(["--compare", str(saved), "text"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"text {name}: equal" for name in ("tokens", "losses", "sample", "score")]
    assert bits.main(["--compare", str(saved), "text", "--seed", "1"]) == 1
    assert "text losses: DIFFERS from number 1 on, of 20" in capsys.readouterr().out


def test_all_figures_are_there_and_a_change_of_one_bit_is_found(bits, saved):
    before = json.loads(saved.read_text())["text"]
    assert len(before["losses"]) == 20 and len(before["tokens"]) == len(before["sample"]) == 64
    assert before["score"] and all(float.fromhex(x) > 0 for x in before["score"])
    last = float.fromhex(before["losses"][-1])
    now = before | {"losses": [*before["losses"][:-1], (last * (1 + 2**-52)).hex()]}
    assert bits.verdicts("text", before, now)[1] == "text losses: DIFFERS from number 20 on, of 20"


def test_what_goes_wrong_is_told_and_the_other_families_have_their_turn(
    bits, tmp_path, monkeypatch, capsys
):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "broken.py").write_text("recipe = 1 / 0\n")
    shutil.copy(ROOT / "recipes" / "text.py", tmp_path / "recipes")
    monkeypatch.setattr(bits, "RECIPES", tmp_path / "recipes")
    monkeypatch.setattr(bits, "FAMILIES", ["broken", "text"])
    path = tmp_path / "before.json"
    assert bits.main(["--save", str(path)]) == 1
    made = json.loads(path.read_text())
    assert "ZeroDivisionError" in made["broken"]["error"] and set(made["text"]) == set(bits.FIGURES)
    capsys.readouterr()
    assert bits.main(["--compare", str(path)]) == 1  # an error is equal to nothing, not to itself
    lines = capsys.readouterr().out.splitlines()
    assert "broken: DIFFERS" in lines[0] and all(line.endswith("equal") for line in lines[1:])


def test_a_family_that_is_not_in_the_file_differs(bits):
    assert "DIFFERS" in bits.verdicts("text", None, {})[0]


def test_wrong_words_are_refused_before_the_work(bits, saved, tmp_path, capsys):
    (tmp_path / "work" / "text").mkdir(parents=True)
    (tmp_path / "list.json").write_text("[1]")
    for words, says in (
        (["--compare", str(saved), "texts"], "no family"),
        (["--compare", str(tmp_path / "none.json")], "no such file"),
        (["--compare", str(tmp_path / "list.json")], "no figures"),
        (["--save", "a.json", "text", "--work", str(tmp_path / "work")], "is there already"),
    ):
        with pytest.raises(SystemExit, match="2"):
            bits.main(words)
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_made_tiny(bits, path, tmp_path):
    recipe = bits.tiny(load_recipe(path), tmp_path, seed=3)
    assert recipe.train.seed == 3 and recipe.train.steps == bits.STEPS
    assert recipe.tasks == load_recipe(path).tasks
