"""Evaluation and report of runs whose pictures are drawn by diffusion, or as codes in any order."""

import base64
import io
import json
import math
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from mmtok.cli import main
from mmtok.data.image_preparation import read_image
from mmtok.evaluation import likelihood as likelihoods
from mmtok.evaluation.evaluate import evaluate
from mmtok.evaluation.likelihood import held_out_scores, zero_shot
from mmtok.evaluation.task import TaskEvaluation
from mmtok.report import plots, report
from mmtok.run.run import open_run
from mmtok.train.log import read_log

UNITS = {
    "pixels": "bits_per_value",
    "cascade": "bits_per_value",
    "frames": "nats_per_frame",
    "codes": "bits_per_code",
}
KINDS = {
    "pixels": "estimate",
    "cascade": "estimate",
    "frames": "estimate, density",
    "codes": "bound",
}
STEPS = {"pixels": 8, "cascade": 5, "frames": 4, "codes": 8}


@pytest.fixture(scope="module")
def evaluated(latent_run, tmp_path_factory):
    """evaluated(name) -> the run, evaluated, and its figures."""
    done = {}

    def of(name):
        if name not in done:
            run = open_run(
                shutil.copytree(latent_run(name), tmp_path_factory.mktemp("evaluated") / name)
            )
            done[name] = run, evaluate(run)
        return done[name]

    return of


@pytest.mark.parametrize("name", UNITS)
def test_the_figures_of_latents_are_those_of_codes(evaluated, name):
    run, figures = evaluated(name)
    assert json.loads((run.folder / "evaluation.json").read_text()) == figures
    of_pictures = figures["image_from_text"]
    judged = {"judge_accuracy", "judge_heldout", "judge_round_trip"}
    tested = ("judge_accuracy", "copies", "frechet")
    novel = {
        "round_trip_psnr_db",
        "copies",
        "copies_heldout",
        "frechet",
        "frechet_real",
        *["codebook_use"] * (name == "codes"),
        *[f"{key}_{end}" for key in tested for end in ("low", "high", "p")],
    }
    assert of_pictures.keys() == judged | novel
    assert all(math.isfinite(x) for x in of_pictures.values())
    assert all(
        0 <= figures[question]["accuracy"] <= 1 and figures[question]["n"] == 6
        for question in ("text_from_image", "zero_shot")
    )
    row = figures["score"]["image"]
    unit = UNITS[name]
    costs = {
        unit + of
        for of in ("", "_untrained", "_unigram", *["_without_condition"] * (name == "codes"))
    }
    n_units = (
        "n_"
        + {"bits_per_value": "values", "nats_per_frame": "frames", "bits_per_code": "codes"}[unit]
    )
    assert (
        row.keys() == costs | {"kind", "n", n_units}
        and row["kind"] == KINDS[name]
        and row["n"] == 6
    )
    assert all(math.isfinite(row[key]) for key in costs) and row[unit] < row[f"{unit}_untrained"]
    assert figures["score"]["text"].keys() == {
        "bits_per_byte",
        "bits_per_byte_untrained",
        "bits_per_byte_unigram",
        "n_bytes",
        "kind",
        "n",
    }
    assert figures["score"]["text"]["kind"] == "exact"


def test_the_same_run_gives_the_same_estimates(evaluated):
    run, figures = evaluated("pixels")
    assert held_out_scores(open_run(run.folder)) == figures["score"]


def test_slow_likelihoods_are_taken_of_fewer_documents(evaluated, monkeypatch, capsys):
    monkeypatch.setattr(likelihoods, "N_SCORED_SLOW", 2)
    monkeypatch.setattr(likelihoods, "N_CLASSIFIED_SLOW", 3)
    run, _ = evaluated("pixels")
    scores = held_out_scores(run)
    assert scores["image"]["n"] == 2 and "score image: 2/2 documents" in capsys.readouterr().err
    assert zero_shot(TaskEvaluation(run, run.recipe.tasks[0]))["n"] == 3
    assert (
        "score image: 6/6 documents" in capsys.readouterr().err
    )  # two captions of three pictures each
    codes, figures = evaluated("codes")
    assert held_out_scores(codes)["image"] == figures["score"]["image"]  # a bound is no such thing


@pytest.mark.parametrize("name", UNITS)
def test_the_report_shows_what_they_are_and_how_they_came_to_be(evaluated, name):
    pytest.importorskip("matplotlib")
    run, figures = evaluated(name)
    assert main(["report", str(run.folder)]) == 0
    text = (run.folder / "report.html").read_text()
    assert f"image, {UNITS[name].replace('_per_', '/')} ({KINDS[name]}; 6 signals)" in text
    assert not re.search(r'(?:src|srcset|href)="(?!data:|#)', text)
    strips = re.findall(
        r'<figure><img src="data:image/png;base64,([^"]*)" alt="trajectory of (\S+)"', text
    )
    assert [name for _, name in strips] == ["dark-000", "light-001"] * bool(STEPS[name])
    for data, stem in strips:
        shown = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(
            shown, read_image(run.folder / "samples" / "image_from_text" / "steps" / f"{stem}.png")
        )
        assert shown.shape == (4, 5 * STEPS[name] - 1)
        np.testing.assert_array_equal(
            shown[:, -4:], read_image(run.folder / "samples" / "image_from_text" / f"{stem}.png")
        )


@pytest.mark.parametrize(
    "name, unit, levels",
    [
        ("pixels", "denoising loss", []),
        ("frames", "denoising loss", []),
        ("codes", "bound, bits/code", ["model", "untrained", "unigram", "without_condition"]),
    ],
)
def test_a_loss_curve_is_named_for_what_it_is(evaluated, monkeypatch, name, unit, levels):
    drawn = {}

    def keep(title, unit, steps, values, held_out):
        drawn[title] = (unit, values, list(held_out))

    monkeypatch.setattr(plots, "curve", keep)
    run, _ = evaluated(name)
    report.write_report(run, force=True)
    assert (
        drawn["loss"][0] == "weighted"
        and drawn["text"][0] == "bits/byte"
        and drawn["image"][0] == unit
        and drawn["image"][2] == levels
    )
    told = [line["training_loss"]["image"] for line in read_log(run.folder / "log.jsonl")]
    scale = math.log(2) if name == "codes" else 1.0  # of a bound, the nats of a code
    assert drawn["image"][1] == [x if x is None else pytest.approx(x / scale) for x in told]


@pytest.mark.parametrize(
    "words, expected",
    [("pixels", "4 floats a frame of 4 cells each"), ("codes", "4 levels, 2 bits a frame")],
)
def test_show_says_what_they_hold(latent_run, capsys, words, expected):
    assert main(["show", str(latent_run(words))]) == 0
    assert expected in capsys.readouterr().out
