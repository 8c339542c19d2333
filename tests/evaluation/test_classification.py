"""Classes read from signals: probabilities, areas, ensembles, and what the report shows of them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.evaluation.classification import Classified, class_figures, classify, path_of
from mmtok.evaluation.task import TaskEvaluation
from mmtok.heads.categorical import Chained
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.build import train
from mmtok.run.ensemble import take_ensemble
from mmtok.run.recipe import Recipe
from mmtok.run.run import open_run
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import JetFile
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Jets of one particle and of two, by name, and two short trainings."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    jets = []
    for i in range(200):
        n = 1 + i % 2
        column = np.sort(rng.uniform(50, 100, n))[::-1]
        angles = np.array([[0.1, 0.0], [-0.1, 0.0]])[:n]
        jets.append(np.column_stack((column, angles)).astype(np.float32))
    write_jets(folder / "jets.npz", jets)
    (folder / "l.txt").write_text("".join("b\n" if i % 2 else "a\n" for i in range(200)))
    recipe = Recipe(
        name="classes",
        sources=(JetFile(str(folder / "jets.npz"), str(folder / "l.txt")),),
        tokenizers={"text": BytesConfig(), "jets": JetGridConfig(bins=(10, 4, 4))},
        tasks=(Task(("jets",), ("caption",)),),
        model=DecoderConfig(
            TransformerConfig(2, 32, 2, 2, 48, dropout=0.2), heads={"jets": Chained(8)}
        ),
        train=TrainConfig(steps=60, batch_size=8, seq_len=32, learning_rate=3e-3, warmup=5),
    )
    for seed in (0, 1):
        seeded = replace(recipe, train=replace(recipe.train, seed=seed))
        train(seeded, folder / f"run{seed}", device="cpu")
    return folder


@pytest.fixture
def task(trained):
    run = open_run(trained / "run0")
    return TaskEvaluation(run, run.recipe.tasks[0])


def test_classes_that_differ_are_told(task):
    figures = class_figures(task)
    assert figures["auc_a_b"] == figures["accuracy"] == 1.0 and figures["n"] == 20
    found = Classified.load(path_of(task.name, task.run.folder))
    assert found.names == ("a", "b")
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    own = found.probabilities[np.arange(20), found.labels]
    assert figures["cross_entropy"] == pytest.approx(-np.log(own).mean())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no arrays"),
        lambda path: path.write_bytes(path.read_bytes()[:300]),
        lambda path: np.savez(path, names=np.array(["a"]), labels=np.array([0])),
        lambda path: np.savez(
            path, names=np.array(["a"]), labels=np.array([1]), probabilities=np.ones((1, 1))
        ),
    ],
)
def test_a_damaged_file_of_classes_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "classes.npz"
    found = Classified(("a", "b"), np.array([[0.25, 0.75]]), np.array([1]))
    found.save(path)
    same = Classified.load(path)
    assert same.names == found.names and (same.probabilities == found.probabilities).all()
    damage(path)
    with pytest.raises(UserError, match="cannot be read as probabilities of classes"):
        Classified.load(path)


def test_an_ensemble_of_a_run_with_itself_is_the_run(task, trained):
    alone = classify(task).probabilities
    take_ensemble(task.run, [trained / "run0"])
    np.testing.assert_allclose(classify(task).probabilities, alone, rtol=1e-6)
    other = open_run(trained / "run1")
    theirs = classify(TaskEvaluation(other, other.recipe.tasks[0])).probabilities
    take_ensemble(task.run, [trained / "run1"])
    mixed = classify(task).probabilities
    assert (mixed <= np.maximum(alone, theirs) + 1e-6).all()
    assert (mixed >= np.minimum(alone, theirs) - 1e-6).all()


def test_dropout_members_are_drawn_again_alike_and_need_dropout(task, trained):
    alone = classify(task).probabilities
    take_ensemble(task.run, [], 3)
    masked = classify(task).probabilities
    assert np.abs(masked - alone).max() > 1e-4
    np.testing.assert_array_equal(classify(task).probabilities, masked)
    trunk = replace(task.run.recipe.model.trunk, dropout=0.0)
    object.__setattr__(task.run.recipe.model, "trunk", trunk)
    with pytest.raises(UserError, match="was trained with dropout 0"):
        take_ensemble(task.run, [], 3)


def test_the_verbs_know_ensembles_and_the_report_has_curves(trained, capsys):
    run = str(trained / "run0")
    assert main(["evaluate", run, "--ensemble", str(trained / "run1")]) == 0
    figures = json.loads((trained / "run0" / "evaluation.json").read_text())
    assert figures["members"] == {"ensemble": str(trained / "run1")}
    assert main(["evaluate", run]) == 0
    assert "of another ensemble, so it is made again" in capsys.readouterr().err
    assert main(["report", run]) == 0
    page = (trained / "run0" / "report.html").read_text()
    assert "ROC curve, b against a: AUC 1" in page and "reliability" in page
