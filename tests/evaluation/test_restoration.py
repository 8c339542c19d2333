"""Figures of restored pictures: exact on posteriors that are known, and there for a whole run."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.core.units import psnr_db
from mmtok.evaluation.restoration import coverage_figures, error_figures, held_out
from mmtok.evaluation.task import TaskEvaluation
from mmtok.run.run import open_run
from mmtok.sources.degraded import Downsample
from mmtok.sources.images import write_image

RECIPE = Path(__file__).parents[2] / "recipes" / "restoration.py"
N = 40
K = 16


@pytest.fixture
def posterior(rng):
    """posterior(scale) -> pictures (N, 8, 8), and K draws of each, which claim `scale` times the
    true deviation.
    """

    def make(scale):
        centre = rng.uniform(90, 160, (N, 1, 8, 8))
        truth = centre[:, 0] + rng.normal(0, 12, (N, 8, 8))
        draws = centre + scale * rng.normal(0, 12, (N, K, 8, 8))
        return (np.round(x).astype(np.uint8) for x in (truth, draws))

    return make


def test_a_calibrated_posterior_has_its_spread_and_covers_as_it_claims(posterior):
    truth, draws = posterior(1.0)
    figures = error_figures(truth, draws, truth) | coverage_figures(truth, draws)
    assert figures["spread"] == pytest.approx(12, rel=0.02)
    assert figures["error"] == pytest.approx(12 * (1 + 1 / K) ** 0.5, rel=0.03)
    assert figures["spread_over_error"] == pytest.approx(1, abs=0.03)
    assert figures["coverage_50"] == pytest.approx(0.5, abs=0.03)
    assert figures["coverage_90"] == pytest.approx(0.9, abs=0.02)
    for name in ("psnr_mean_db", "spread_over_error", "coverage_90"):
        assert figures[f"{name}_low"] < figures[name] < figures[f"{name}_high"]


def test_a_narrow_posterior_is_found_out(posterior):
    truth, draws = posterior(0.3)
    figures = error_figures(truth, draws, truth) | coverage_figures(truth, draws)
    assert figures["spread_over_error_high"] < 0.4
    # of 16 draws the central 0.9 is their range and a little more, whatever the draws' deviation
    assert figures["coverage_50_high"] < 0.2 and figures["coverage_90_high"] < 0.6


def test_values_of_few_levels_are_covered_as_claimed(rng):
    """Codes decode to few values: truths and draws alike of two levels, often all equal."""
    chance = rng.uniform(0, 1, (N, 1, 8, 8)) ** 4
    truth = (rng.random((N, 8, 8)) < chance[:, 0]).astype(np.uint8) * 200
    draws = (rng.random((N, K, 8, 8)) < chance).astype(np.uint8) * 200
    figures = coverage_figures(truth, draws)
    assert figures["coverage_50"] == pytest.approx(0.5, abs=0.03)
    assert figures["coverage_90"] == pytest.approx(0.9, abs=0.02)
    equal = (draws == truth[:, None]).all(1).mean()
    assert figures["settled"] == pytest.approx(equal)


def test_errors_are_those_of_a_worked_example():
    """Draws of 10 and 30 where the truth is 20: their mean is right, each is off by 10."""
    truth = np.full((2, 2, 2), 20, np.uint8)
    draws = np.stack([np.full((2, 2, 2), v, np.uint8) for v in (10, 30)], 1)
    baseline = np.full((2, 2, 2), 25, np.uint8)
    figures = error_figures(truth, draws, baseline)
    assert figures["psnr_draw_db"] == pytest.approx(psnr_db(100.0))
    assert figures["psnr_baseline_db"] == pytest.approx(psnr_db(25.0))
    assert figures["error"] == 0 and figures["spread"] == pytest.approx(200**0.5)
    assert "psnr_gain_db" not in figures  # over no error at all


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps on pictures of 8 x 8 pixels, degraded to 4 x 4, and evaluated."""
    folder = tmp_path_factory.mktemp("restored")
    rng = np.random.default_rng(0)
    for name in ("dark", "light"):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            picture = rng.integers(0, 256, (8, 8), np.uint8)
            write_image(folder / "pictures" / name / f"{i}.png", picture)
    small = (
        "--trunk.depth 1 --trunk.width 32 --n_heads 2 --n_kv_heads 2 --feed_forward 32"
        " --train.steps 2 --batch_size 2 --seq_len 64 --network.depth 1 --network.width 16"
        " --heads.image.steps 3 --image.height 8 --image.width 8 --ode_steps 2 --n_samples 3"
    )
    source = {"kind": "ImageFolder", "path": str(folder / "pictures"), "heldout_share": 0.5}
    words = ["--sources.0.source", json.dumps(source), "--factor", "2", *small.split()]
    path = folder / "run"
    assert main(["train", str(RECIPE), "-o", str(path), *words]) == 0
    assert main(["evaluate", str(path)]) == 0
    return open_run(path)


def test_a_run_is_evaluated_and_its_report_shows_triptychs(run):
    figures = json.loads((run.folder / "evaluation.json").read_text())["image_from_image"]
    assert figures["n"] == 3 and figures["n_draws"] == K
    assert {"frechet", "frechet_baseline", "frechet_real", "coverage_90"} <= figures.keys()
    assert not any("coded" in name for name in figures)  # nothing is lost in 256 levels
    task = TaskEvaluation(run, run.recipe.tasks[0])
    found = held_out(task)
    for degraded, truth in zip(found.degraded, found.truth, strict=True):
        assert np.array_equal(degraded, Downsample(2).apply(truth, np.random.default_rng(0)))
    pytest.importorskip("matplotlib")
    assert main(["report", str(run.folder)]) == 0
    page = (run.folder / "report.html").read_text()
    assert page.count('alt="truth"') == 3 and page.count('alt="drawn"') == 3 * 4


def test_a_small_picture_is_a_prompt(run, tmp_path, capsys):
    write_image(tmp_path / "small.png", np.full((4, 4), 90, np.uint8))
    words = ["--prompt", str(tmp_path / "small.png"), "--to", "image", "-n", "2"]
    capsys.readouterr()
    assert main(["sample", str(run.folder), *words]) == 0
    assert len(capsys.readouterr().out.split()) == 2
