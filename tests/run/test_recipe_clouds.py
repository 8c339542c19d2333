"""Jets as sets, through every verb: short trainings of the recipe on jets of two kinds."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.errors import UserError
from mmtok.heads.set_diffusion import SetDiffusion
from mmtok.run.build import train
from mmtok.run.recipe import load_recipe
from mmtok.run.run import open_run
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import read_jets
from tests.made_jets import write_two_kinds

RECIPE = Path(__file__).parents[2] / "recipes" / "jet_clouds.py"
HEAD = "--model.heads.jets"
MOST = 6
SHORT = [
    *("--train.steps", "60", "--train.seq_len", "128", "--train.ema_decay", "0.9"),
    *("--train.learning_rate", "0.01", "--train.warmup", "5", "--train.precision", "float32"),
    *(f"{HEAD}.network", '{"depth": 1, "width": 32, "n_heads": 2}'),
    *(f"{HEAD}.steps", "6", f"{HEAD}.ode_steps", "6", f"{HEAD}.max_frames", str(MOST)),
    *("--tokenizers.jets.max_constituents", str(MOST)),
]
TASK = '[{"inputs": ["caption"], "targets": ["jets"], "cond_dropout": 0.2}]'


@pytest.fixture(scope="module")
def jets(tmp_path_factory):
    return write_two_kinds(tmp_path_factory.mktemp("jets"))


def options(jets, *more):
    files = ("--path", str(jets / "jets.npz"), "--labels", str(jets / "labels.txt"))
    return [*files, *SHORT, "--tasks", TASK, *more]


@pytest.fixture(scope="module")
def run(jets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clouds") / "run"
    train(load_recipe(RECIPE, options(jets)), folder)
    return folder


def sampled(run, folder, *more):
    assert main(["sample", str(run), "--to", "jets", "-n", "40", "-o", str(folder), *more]) == 0
    (path,) = folder.glob("*.npz")
    return read_jets(path)


def test_samples_are_sets_as_large_as_their_caption_says(run, tmp_path):
    small = sampled(run, tmp_path / "small", "--prompt", "small")
    large = sampled(run, tmp_path / "large", "--prompt", "large", "--guidance", "1.5")
    assert np.mean([len(jet) == 2 for jet in small]) > 0.8
    assert np.mean([len(jet) >= 5 for jet in large]) > 0.8
    again = sampled(run, tmp_path / "again", "--prompt", "small")
    assert all(np.array_equal(a, b) for a, b in zip(small, again, strict=True))


def test_scores_are_estimates_of_a_density_of_sets_in_any_order(run, jets, tmp_path, capsys):
    def lines(path, *more):
        assert main(["score", str(run), str(path), *more]) == 0
        return capsys.readouterr().out

    found = lines(jets / "jets.npz", "--condition", "small")
    assert "nats/particle" in found and "estimate, density" in found and "cut at the cap" in found
    pair = read_jets(jets / "jets.npz")[:1]
    texts = []
    for name, one in (("as", pair), ("turned", [pair[0][::-1]])):
        write_jets(tmp_path / f"{name}.npz", one)
        texts.append(lines(tmp_path / f"{name}.npz", "--condition", "small").partition(": ")[2])
    assert texts[0] == texts[1]


def test_evaluate_and_show_serve_sets(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    figures = json.loads((run / "evaluation.json").read_text())
    text = json.dumps(figures)
    assert "multiplicity_w1" in text and "at_cap" in text and "unscaled" not in text
    capsys.readouterr()
    assert main(["show", str(run)]) == 0
    assert "SetDiffusion" in capsys.readouterr().out


def test_a_resumed_training_has_the_weights_of_one_that_was_not_stopped(
    run, jets, tmp_path, monkeypatch
):
    from mmtok.train.trainer import Trainer

    launch = Trainer._launch

    def dies(trainer):
        if trainer.step == 23:
            trainer.save()
            raise RuntimeError("killed")
        return launch(trainer)

    recipe = load_recipe(RECIPE, options(jets))
    monkeypatch.setattr(Trainer, "_launch", dies)
    with pytest.raises(RuntimeError):
        train(recipe, tmp_path / "run")
    monkeypatch.setattr(Trainer, "_launch", launch)
    train(recipe, tmp_path / "run")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run, tmp_path / "run")]
    assert weights[0] == weights[1]


def test_without_captions_and_by_diffusion(jets, tmp_path):
    files = ["--path", str(jets / "jets.npz"), *SHORT]
    edm = '{"kind": "EDM", "sigma_data": 1.0, "p_mean": -0.5}'
    train(load_recipe(RECIPE, [*files, f"{HEAD}.schedule", edm]), tmp_path / "run")
    head = open_run(tmp_path / "run").recipe.model.heads["jets"]
    assert isinstance(head, SetDiffusion) and head.schedule.sigma_data == 1.0
    drawn = sampled(tmp_path / "run", tmp_path / "drawn")
    sizes = {len(jet) for jet in drawn}
    assert 2 in sizes and MOST in sizes and all(np.isfinite(jet).all() for jet in drawn)


def test_a_head_that_counts_beyond_the_cut_is_refused_before_training(jets, tmp_path):
    beyond = options(jets, f"{HEAD}.max_frames", "8")
    with pytest.raises(UserError, match="cut at 6 frames, but its head counts to 8"):
        train(load_recipe(RECIPE, beyond), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
