"""Unusual jets: scores by their definitions, and how well they find jets of another kind."""

import re
from dataclasses import replace

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.commands.anomaly import unusual
from mmtok.commands.score import score
from mmtok.data.tasks import Task
from mmtok.heads.categorical import Chained
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.build import train
from mmtok.run.recipe import Recipe
from mmtok.run.run import open_run
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import JetFile
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.train.config import TrainConfig


def pairs(rng, n, spread):
    """Jets of two particles, so far from the axis."""
    jets = []
    for pt in rng.uniform(50, 100, n):
        column = np.array([pt, pt - 10])
        jets.append(np.column_stack((column, [spread, -spread], [0, 0])).astype(np.float32))
    return jets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs, one of narrow pairs and one of both kinds; and a file of each kind."""
    folder = tmp_path_factory.mktemp("anomaly")
    rng = np.random.default_rng(0)
    narrow = pairs(rng, 160, 0.1)
    wide = pairs(rng, 160, 0.5)
    write_jets(folder / "narrow.npz", narrow)
    write_jets(folder / "both.npz", [jet for two in zip(narrow, wide) for jet in two])
    write_jets(folder / "normal.npz", pairs(rng, 20, 0.1))
    write_jets(folder / "signal.npz", pairs(rng, 20, 0.5))
    grid = JetGridConfig(bins=(10, 6, 6), below=(0.1, -0.8, -0.8), above=(1e3, 0.8, 0.8))
    recipe = Recipe(
        name="narrow",
        sources=(JetFile(str(folder / "narrow.npz")),),
        tokenizers={"jets": grid},
        tasks=(Task((), ("jets",)),),
        model=DecoderConfig(TransformerConfig(1, 32, 2, 2, 48), heads={"jets": Chained(8)}),
        train=TrainConfig(steps=40, batch_size=8, seq_len=32, learning_rate=5e-3, warmup=5),
    )
    train(recipe, folder / "run", device="cpu")
    both = replace(recipe, sources=(JetFile(str(folder / "both.npz")),))
    train(both, folder / "other", device="cpu")
    return folder


def test_scores_are_what_they_are_called(folder):
    run = open_run(folder / "run")
    other = open_run(folder / "other")
    files = [str(folder / "signal.npz")]
    found, none = unusual(run, [files, []], against=other)
    assert none == []
    mine = score(run, files)
    theirs = score(other, files)
    heldout = [example["jets"] for example in run.examples("heldout", "jets")]
    write_jets(folder / "heldout.npz", heldout)
    usual = np.mean([row.nats / row.units for row in score(run, [str(folder / "heldout.npz")])])
    for each, a, b in zip(found, mine, theirs, strict=True):
        assert each.nll == pytest.approx(a.nats / a.units)
        assert each.typicality == pytest.approx(abs(each.nll - usual), abs=1e-5)
        assert each.ratio == pytest.approx(a.nats - b.nats)


def test_the_verb_finds_jets_of_another_kind(folder, capsys):
    words = ["score", str(folder / "run"), str(folder / "signal.npz"), "--anomaly"]
    words += ["--against", str(folder / "other"), "--normal", str(folder / "normal.npz")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20 + 3 and "nats/particle" in lines[0]
    areas = dict(re.findall(r"AUC of (\w+): ([\d.]+)", "\n".join(lines)))
    assert areas.keys() == {"nll", "typicality", "ratio"}
    assert min(map(float, areas.values())) > 0.95
    assert "20 signals among 20 normal ones" in lines[-1]


def test_what_does_not_belong_together_is_one_line(folder, said):
    run = str(folder / "run")
    with_it = "score: --against and --normal belong to --anomaly; add it"
    assert with_it in said(["score", run, str(folder / "signal.npz"), "--against", run])
    (folder / "words.txt").write_text("hello")
    mixed = ["score", run, str(folder / "signal.npz"), "--anomaly", "--normal"]
    assert "this run knows no text, only jets" in said([*mixed, str(folder / "words.txt")])
    missing = ["score", run, str(folder / "signal.npz"), "--anomaly", "--against", str(folder)]
    assert "is not a run folder" in said(missing)
