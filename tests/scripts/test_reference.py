"""A run beside its recipe's reference curves: what is as it should be, what is not, and what does
not compare.
"""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmtok.run.recipe import load_recipe

ROOT = Path(__file__).parents[2]
STEPS = list(range(50, 3001, 50))


@pytest.fixture(scope="module")
def reference():
    sys.path.insert(0, str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "scripts"))
    del sys.modules[spec.name]
    sys.modules.pop("side_by_side", None)


@pytest.fixture
def recipe():
    loaded = load_recipe(ROOT / "recipes" / "digits.py")
    return replace(loaded, train=replace(loaded.train, steps=STEPS[-1], learning_rate=0.0015))


def curve(seed, floor=0.5, noise=0.01, steps=STEPS):
    """A falling curve with a seed's own noise."""
    rng = np.random.default_rng(seed)
    return [float((floor + 40 / (x + 10)) * (1 + noise * rng.normal())) for x in steps]


def make_run(
    folder, recipe, seed, steps=STEPS, change=lambda step, x: x, evaluation=None, **fields
):
    """A run's folder with a log of text and image; `change` is what is wrong with its text."""
    folder.mkdir(parents=True)
    recipe = replace(recipe, **fields)
    (folder / "recipe.json").write_text(
        replace(recipe, train=replace(recipe.train, seed=seed)).to_json()
    )
    lines = zip(steps, curve(seed, steps=steps), curve(seed + 100, 3.0, steps=steps))
    log = [
        {"step": s, "nats": {"text": change(s, a), "image": b, "speech": None}} for s, a, b in lines
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if evaluation:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


@pytest.fixture
def saved(reference, recipe, tmp_path):
    """ask(run) -> exit status of the comparison with a reference of seeds 0, 1 and 2."""
    runs = [
        make_run(
            tmp_path / f"seed{s}",
            recipe,
            s,
            evaluation={"a": {"accuracy": 0.9 + 0.01 * s}, "kind": "exact"},
        )
        for s in range(3)
    ]
    folder = ["--folder", str(tmp_path / "reference")]
    assert reference.main([*map(str, runs), "--save", *folder]) == 0
    return lambda run: reference.main([str(run), *folder])


def test_a_new_seed_is_as_it_should_be_and_so_is_the_beginning_of_one(
    saved, recipe, tmp_path, capsys
):
    assert saved(make_run(tmp_path / "new", recipe, 7)) == 0
    assert saved(make_run(tmp_path / "begun", recipe, 8, STEPS[:3])) == 0
    said = capsys.readouterr().out
    assert said.count("as it should be") == 4 and "steps 50 to 150" in said


@pytest.mark.parametrize("change, first", [
    (lambda step, x: max(x, 0.8), 150),            # learns no more than how frequent letters are
    (lambda step, x: x * (1.5 if step > 1000 else 1), 1050),  # breaks on the way
    (lambda step, x: float("nan") if step > 600 else x, 650),
])  # fmt: skip
def test_what_is_broken_is_worse_from_about_where_it_broke(
    saved, recipe, tmp_path, capsys, change, first
):
    assert saved(make_run(tmp_path / "broken", recipe, 7, change=change)) == 1
    text, image = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("text", "image"))
    ]
    step = int(text.partition("WORSE from step ")[2].split()[0].rstrip(","))
    assert first <= step <= first + 150 and "as it should be" in image


def test_what_never_learns_is_found_within_three_lines(saved, recipe, tmp_path):
    assert saved(make_run(tmp_path / "stuck", recipe, 7, STEPS[:3], lambda step, x: 1.2)) == 1


def test_worse_for_a_while_is_told_and_lower_nats_are_better(saved, recipe, tmp_path, capsys):
    assert (
        saved(
            make_run(
                tmp_path / "a", recipe, 7, change=lambda step, x: x * (3 if 500 < step < 800 else 1)
            )
        )
        == 1
    )
    assert "within the band again at step 3000" in capsys.readouterr().out
    assert saved(make_run(tmp_path / "b", recipe, 7, change=lambda step, x: x * 0.8)) == 0
    assert "text, nats: better" in capsys.readouterr().out


def test_a_modality_that_is_not_logged_is_missing(saved, recipe, tmp_path, capsys):
    assert saved(make_run(tmp_path / "a", recipe, 7, change=lambda step, x: None)) == 1
    assert "text, nats: MISSING" in capsys.readouterr().out


def test_figures_far_from_the_references_are_told_and_not_judged(saved, recipe, tmp_path, capsys):
    assert saved(make_run(tmp_path / "a", recipe, 7, evaluation={"a": {"accuracy": 0.5}})) == 0
    assert "a.accuracy: 0.5, reference 0.9 .. 0.92" in capsys.readouterr().out


def test_other_settings_are_refused_by_name_but_not_what_leaves_curves_alone(
    saved, recipe, tmp_path, capsys
):
    assert (
        saved(make_run(tmp_path / "a", recipe, 7, train=replace(recipe.train, learning_rate=0.03)))
        == 2
    )
    error = capsys.readouterr().err
    assert "train.learning_rate: 0.0015 -> 0.03" in error and len(error.splitlines()) == 1
    assert (
        saved(
            make_run(
                tmp_path / "b",
                recipe,
                7,
                train=replace(
                    recipe.train, grad_accum_steps=2, checkpoint_every=7, activation_checkpointing=1
                ),
            )
        )
        == 0
    )
    older = make_run(tmp_path / "c", recipe, 7)
    plain = json.loads((older / "recipe.json").read_text())
    del (
        plain["train"]["activation_checkpointing"],
        plain["sampling"]["text"]["compiled"],
    )  # as if these fields were younger than the run
    (older / "recipe.json").write_text(json.dumps(plain))
    assert saved(older) == 0


def test_what_cannot_be_compared_is_said_in_one_line(reference, saved, recipe, tmp_path, capsys):
    capsys.readouterr()
    empty = make_run(tmp_path / "empty", recipe, 7, [])
    nameless = make_run(tmp_path / "nameless", recipe, 7, name="other")
    for run, says in (
        (tmp_path, "no recipe.json"),
        (empty, "has not logged"),
        (nameless, "only of: digits"),
    ):
        assert saved(run) == 2
        error = capsys.readouterr().err
        assert says in error and len(error.splitlines()) == 1


def test_only_finished_runs_of_one_recipe_with_different_seeds_make_a_reference(
    reference, recipe, tmp_path, capsys
):
    a = make_run(tmp_path / "a", recipe, 0)
    b = make_run(tmp_path / "b", recipe, 0)
    half = make_run(tmp_path / "half", recipe, 1, STEPS[:9])
    other = make_run(tmp_path / "other", recipe, 2, n_samples=3)
    for runs, says in (
        ((a, b), "one of its own"),
        ((a, half), "step 450 of 3000"),
        ((a, other), "n_samples: 200 -> 3"),
    ):
        assert reference.main([*map(str, runs), "--save", "--folder", str(tmp_path / "r")]) == 2
        assert says in capsys.readouterr().err
    assert not list((tmp_path / "r").glob("*"))


def test_data_may_lie_elsewhere_and_no_path_is_kept(reference, tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "text.py", ["--path", "/home/someone/my.txt"])
    plain = reference.recipe_of(make_run(tmp_path / "a", recipe, 0))
    assert "someone" not in json.dumps(plain)
    moved = load_recipe(ROOT / "recipes" / "text.py", ["--path", "data/my.txt"])
    reference.check_same(plain, reference.recipe_of(make_run(tmp_path / "b", moved, 0)), "b")


def test_one_seed_makes_a_wide_band(reference):
    within = reference.band([50, 100], [[1.0, 2.0]])
    assert np.allclose(within.high, [1.1, 2.2]) and np.allclose(within.low, [0.9, 1.8])


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes" / "reference").glob("*.json")), ids=lambda path: path.stem
)
def test_the_references_own_seeds_pass_when_each_is_left_out_in_turn(reference, path):
    assert path.stat().st_size < 100_000
    kept = reference.read_reference(path, path.stem)
    assert str(Path.home()) not in path.read_text() and '"/' not in path.read_text()
    for seeds in (s for of_kind in kept["curves"].values() for s in of_kind.values()):
        for i in range(len(seeds) if len(seeds) > 2 else 0):
            within = reference.band(kept["steps"], seeds[:i] + seeds[i + 1 :])
            assert reference.verdict(kept["steps"], np.array(seeds[i], float), within) in (
                "as it should be",
                "better",
            )
