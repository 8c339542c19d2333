"""A run of an older version is refused in one line that says what to do."""

import json

import pytest

from mmtok.cli import main

OLD_NAMES = {
    "seq_len": "row_length",
    "batch_size": "rows",
    "grad_accum_steps": "accumulate",
    "input_masking": "corrupt",
    "inputs": "given",
    "targets": "make",
    "cond_dropout": "drop_given",
}


def with_old_names(plain):
    if isinstance(plain, dict):
        return {OLD_NAMES.get(key, key): with_old_names(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [with_old_names(value) for value in plain]
    return plain


@pytest.fixture
def old_run(tiny_copy):
    path = tiny_copy / "recipe.json"
    path.write_text(json.dumps(with_old_names(json.loads(path.read_text()))))
    return tiny_copy


@pytest.mark.parametrize(
    "words",
    [
        ["show", "RUN"],
        ["sample", "RUN", "--to", "image"],
        ["score", "RUN", "words"],
        ["evaluate", "RUN"],
        ["report", "RUN"],
        ["export", "RUN", "-o", "OUT"],
        ["train", "RUN/recipe.json"],
        ["train", "RECIPE", "-o", "RUN"],
        ["fit", "RECIPE", "-o", "RUN"],
    ],
)
def test_every_verb_says_that_the_run_is_older(words, old_run, tiny_recipe, tmp_path, said):
    recipe = tmp_path / "new" / "recipe.json"
    recipe.parent.mkdir()
    recipe.write_text(tiny_recipe.to_json())
    places = {"RUN": old_run, "RECIPE": recipe, "OUT": tmp_path / "out"}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    line = said(words)
    assert "was made by an older version of mmtok" in line
    assert "tasks.0.given" in line or "train.rows" in line or "corrupt" in line
    assert "make the run anew" in line
    assert not (tmp_path / "out").exists()


def test_a_field_that_never_was_is_a_mistake(tiny_copy, capsys):
    path = tiny_copy / "recipe.json"
    plain = json.loads(path.read_text())
    plain["train"]["stepz"] = 3
    path.write_text(json.dumps(plain))
    assert main(["show", str(tiny_copy)]) == 2
    assert "has no field 'stepz'; did you mean 'steps'?" in capsys.readouterr().err
