"""Latent diffusion of jets through every verb: a short training on jets of two kinds."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.run.build import train
from mmtok.run.recipe import load_recipe
from mmtok.sources.jets import read_jets
from tests.made_jets import write_two_kinds

RECIPE = Path(__file__).parents[2] / "recipes" / "latent_jets.py"
HEAD = "--model.heads.jets"
JETS = "--tokenizers.jets"
TASK = '[{"inputs": ["caption"], "targets": ["jets"], "cond_dropout": 0.2}]'
SHORT = [
    *("--train.steps", "200", "--train.seq_len", "64", "--train.ema_decay", "0.9"),
    *("--train.learning_rate", "0.01", "--train.warmup", "5", "--train.precision", "float32"),
    *(
        f"{HEAD}.network",
        '{"kind": "DiTConfig", "depth": 1, "width": 32, "n_heads": 2}',
        f"{HEAD}.grid",
        "[1, 2]",
    ),
    *(f"{HEAD}.steps", "6", f"{HEAD}.ode_steps", "6", "--tasks", TASK),
    *(f"{JETS}.frames", "2", f"{JETS}.latent_size", "3", f"{JETS}.width", "16"),
    *(f"{JETS}.blocks", "1", f"{JETS}.n_heads", "2", f"{JETS}.steps", "10"),
    *(f"{JETS}.batch_size", "8", f"{JETS}.max_constituents", "8"),
]


@pytest.fixture(scope="module")
def jets(tmp_path_factory):
    return write_two_kinds(tmp_path_factory.mktemp("jets"))


@pytest.fixture(scope="module")
def run(jets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latent") / "run"
    files = ["--path", str(jets / "jets.npz"), "--labels", str(jets / "labels.txt")]
    train(load_recipe(RECIPE, [*files, *SHORT]), folder)
    return folder


def test_samples_are_jets_as_large_as_their_caption_says(run, tmp_path):
    for name, is_right in (("small", lambda n: n < 4), ("large", lambda n: n > 3)):
        out = tmp_path / name
        asked = ["--prompt", name, "--to", "jets", "-n", "40", "-o", str(out)]
        assert main(["sample", str(run), *asked]) == 0
        (path,) = out.glob("*.npz")
        drawn = read_jets(path)
        assert np.mean([is_right(len(jet)) for jet in drawn]) > 0.7
        assert all(np.isfinite(jet).all() and (np.diff(jet[:, 0]) <= 0).all() for jet in drawn)


def test_scores_evaluate_show_and_token_files_serve_latent_jets(run, jets, tmp_path, capsys):
    path = str(jets / "jets.npz")
    assert main(["score", str(run), path, "--condition", "small"]) == 0
    assert "estimate, density" in capsys.readouterr().out
    assert main(["evaluate", str(run)]) == 0
    text = json.dumps(json.loads((run / "evaluation.json").read_text()))
    assert "multiplicity_w1" in text and "unscaled" not in text
    capsys.readouterr()
    assert main(["show", str(run)]) == 0
    assert "6 numbers a jet" in capsys.readouterr().out
    tokens = str(tmp_path / "tokens.parquet")
    tokenizer = str(run / "tokenizers" / "jets")
    assert main(["tokenize", "jets", path, "-o", tokens, "--tokenizer", tokenizer]) == 0
    back = tmp_path / "back"
    assert main(["detokenize", tokens, "-o", str(back), "--tokenizer", tokenizer]) == 0
    (made,) = back.rglob("*.npz")
    assert [len(jet) for jet in read_jets(made)] == [len(jet) for jet in read_jets(path)]
