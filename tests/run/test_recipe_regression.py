"""A short training recovers the posterior of a linear model, and every verb serves it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mmtok.cli import main
from mmtok.core.segment import Document
from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.evaluation.evaluate import evaluate
from mmtok.evaluation.likelihood import unigram_nll
from mmtok.heads.densities import NegativeBinomial, Poisson
from mmtok.heads.laws import MassConstraint, MomentumBalance
from mmtok.heads.quantiles import SquaredError
from mmtok.heads.regression import Regression
from mmtok.metrics.calibration import pit, uniformity
from mmtok.run.build import train
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.run.run import open_run
from mmtok.sources.hub import HubTable
from mmtok.tokenizers.vectors import VectorConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "regression.py"
SHORT = ["--train.steps", "250", "--train.ema_decay", "0", "--train.batch_size", "8"]
N = 150
N_DRAWS = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression") / "run"
    train(load_recipe(RECIPE, [*SHORT, "--n_samples", "20"]), folder)
    return open_run(folder)


def held_out(run):
    examples = list(run.examples("heldout"))
    return [np.stack([example[f] for example in examples]) for f in ("x", "theta")]


def drawn(run, x, n, **settings):
    """Draws (N, n, 2) of theta for measurements (N, 3)."""
    segments = run.tokenizers["x"].encode_batch(list(x))
    prompts = [run.prompt([segment], "theta") for segment in segments for _ in range(n)]
    found = run.draw(prompts, run.sampling("theta", **settings), 0)
    rows = run.tokenizers["theta"].decode_batch([each.segment for each in found])
    return np.stack(rows).reshape(len(x), n, -1)


@pytest.mark.slow
def test_scores_are_those_of_the_exact_posterior_in_the_callers_unit(run):
    x, theta = held_out(run)
    mean, covariance = run.recipe.sources[0].posterior(x)
    exact = -stats.multivariate_normal(np.zeros(2), covariance).logpdf(theta - mean)
    encoded = [run.tokenizers[m].encode_batch(list(y)) for m, y in (("x", x), ("theta", theta))]
    documents = [Document(row, (False, True)) for row in zip(*encoded, strict=True)]
    scored = run.score_documents(documents)
    excess = np.array([each.total for each in scored]) - exact
    assert -0.005 < excess.mean() < 0.02
    assert {each.kind for each in scored} == {"exact"}


@pytest.mark.slow
def test_mean_covariance_pit_and_coverage_are_the_posteriors(run):
    x, theta = (y[:N] for y in held_out(run))
    mean, covariance = run.recipe.sources[0].posterior(x)
    sd = np.sqrt(np.diag(covariance))
    centre = drawn(run, x, 1, temperature=0.0)[:, 0]
    assert np.sqrt(np.square((centre - mean) / sd).mean()) < 0.12
    draws = drawn(run, x, N_DRAWS)
    off = draws - centre[:, None]
    found = np.einsum("nli,nlj->ij", off, off) / (N * N_DRAWS)
    assert np.abs(found / np.outer(sd, sd) - covariance / np.outer(sd, sd)).max() < 0.08
    assert uniformity(pit(theta, draws)).ks_p > 0.01
    widths = np.sqrt(np.diag(found))
    for level in (0.5, 0.68, 0.9, 0.95):
        # of the exact posterior within the claimed interval: no noise of held-out truths
        half = stats.norm.ppf((1 + level) / 2) * widths
        inside = stats.norm.cdf((centre + half - mean) / sd)
        inside -= stats.norm.cdf((centre - half - mean) / sd)
        assert abs(inside.mean() - level) < 0.02


@pytest.mark.slow
def test_the_figures_of_the_run(run):
    figures = evaluate(run)
    of_task = figures["theta_from_x"]
    assert of_task["n"] == 20 and len(of_task["coverage_68"]) == 2
    assert (np.array(of_task["rmse"]) < np.array(of_task["rmse_of_mean"])).all()
    score = figures["score"]["theta"]
    assert score["kind"] == "exact, density"
    assert score["nats_per_frame"] < score["nats_per_frame_unigram"] - 0.5
    # the unigram is in the caller's unit as well: two numbers of N(0, 1)
    assert abs(score["nats_per_frame_unigram"] - np.log(2 * np.pi * np.e)) < 0.15


@pytest.mark.slow
def test_the_command_line_serves_it(run, tmp_path, capsys):
    folder = str(run.folder)
    words = ["sample", folder, "--prompt", "x=0.5,-1,2", "--to", "theta", "-n", "4"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    [path] = (tmp_path / "out").glob("*.theta.csv")
    assert np.loadtxt(path, delimiter=",").shape == (4, 2)
    given = ["--condition", "x=0.5,-1,2"]
    assert main(["score", folder, str(path), *given]) == 0
    assert "exact, density" in capsys.readouterr().out
    assert main(["score", folder, "theta=0.3,-0.2", *given]) == 0
    assert main([*words[:3], "x=1,2", *words[4:]]) == 2
    assert "x: '1,2' is 2 numbers, but a vector of x has 3" in capsys.readouterr().err


def test_a_recipe_survives_json_and_counts_need_a_family_of_counts():
    recipe = load_recipe(RECIPE)
    assert Recipe.from_json(recipe.to_json()) == recipe and recipe.vectors == ("x", "theta")
    model = replace(recipe.model, heads={"theta": Regression(Poisson())})
    assert Recipe.from_json(replace(recipe, model=model).to_json()).model == model


def test_laws_survive_json_and_need_quantities_as_they_are():
    recipe = load_recipe(RECIPE)
    laws = (MomentumBalance(components=3, width=5.0), MassConstraint(91.2, 2.5))
    model = replace(recipe.model, heads={"theta": Regression(SquaredError(), laws=laws)})
    with pytest.raises(UserError, match=r"has laws, .* set tokenizers\.theta\.one_unit"):
        replace(recipe, model=model)
    tokenizers = {"x": VectorConfig(3), "theta": VectorConfig(6, one_unit=True)}
    lawful = replace(recipe, model=model, tokenizers=tokenizers)
    assert Recipe.from_json(lawful.to_json()) == lawful


@pytest.mark.slow
def test_a_family_without_scores_is_evaluated_without_them(tmp_path, capsys):
    small = ["--sources.0.n_train", "200", "--sources.0.n_heldout", "20"]
    recipe = load_recipe(RECIPE, ["--train.steps", "5", "--n_samples", "5", *small])
    model = replace(recipe.model, heads={"theta": Regression(SquaredError())})
    train(replace(recipe, model=model), tmp_path / "run")
    figures = evaluate(open_run(tmp_path / "run"))
    assert figures["score"] == {} and figures["theta_from_x"]["coverage_95"] == [0.0, 0.0]
    assert "not scoring theta: SquaredError learns a mean" in capsys.readouterr().err
    words = ["score", str(tmp_path / "run"), "theta=1,2", "--condition", "x=1,2,3"]
    assert main(words) == 2 and "has no probability" in capsys.readouterr().err


@pytest.mark.slow
def test_counts_of_a_table_are_scored_with_probabilities(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=600)
    hits = rng.poisson(np.exp(1 + x))
    lines = [f"{a},{n}\n" for a, n in zip(x, hits, strict=True)]
    (tmp_path / "table.csv").write_text("x,hits\n" + "".join(lines))
    recipe = load_recipe(RECIPE, ["--train.steps", "40", "--train.batch_size", "4"])
    names = {"x": "x", "hits": "hits"}
    table = HubTable(str(tmp_path / "table.csv"), names, dict.fromkeys(names, "number"))
    recipe = replace(
        recipe,
        sources=(table,),
        tokenizers={"x": VectorConfig(), "hits": VectorConfig(counts=True)},
        tasks=(Task(("x",), ("hits",)),),
        model=replace(recipe.model, heads={"hits": Regression(NegativeBinomial())}),
    )
    train(recipe, tmp_path / "run")
    run = open_run(tmp_path / "run")
    given = run.tokenizers["x"].encode(0.5)
    counts = run.tokenizers["hits"].encode_batch(list(range(200)))
    scored = run.score_documents([Document((given, n), (False, True)) for n in counts])
    assert abs(np.exp([-each.total for each in scored]).sum() - 1) < 1e-4
    nll = unigram_nll(run, "hits", counts[:2])
    training = [e["hits"] for e in run.examples("train")]
    rate = (sum(training) + 1) / (len(training) + 1)
    assert abs(nll + stats.poisson(rate).logpmf([0, 1]).sum()) < 1e-4
