"""Runs whose pictures are drawn by diffusion, or as codes in any order, asked by the command line:
samples, infilling, scores, refusals.
"""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtok.cli import main
from mmtok.core.segment import Document
from mmtok.core.units import counted
from mmtok.data.image_preparation import read_image
from mmtok.run.run import open_run

NAMES = ("pixels", "cascade", "frames", "codes")
LATENTS = Path(__file__).parents[1] / "tiny" / "latents.py"


@pytest.fixture(scope="module")
def picture(tiny_data):
    return sorted((tiny_data / "images" / "dark").iterdir())[0]


def asked(run, out, *more, prompt="dark", n=3):
    """The pictures that `mmtok sample` draws."""
    assert (
        main(
            [
                str(word)
                for word in (
                    "sample",
                    run,
                    "--prompt",
                    prompt,
                    "--to",
                    "image",
                    "-n",
                    n,
                    "-o",
                    out,
                    *more,
                )
            ]
        )
        == 0
    )
    return [read_image(out / f"{prompt}-{i:03d}.png") for i in range(n)]


def lines(capsys, *words):
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out.splitlines()


# ---- samples


@pytest.mark.parametrize("name", NAMES)
def test_seeds_repeat_and_fewer_steps_draw_something_else(latent_run, tmp_path, name):
    run = latent_run(name)
    first, again, other, fewer = (
        asked(run, tmp_path / str(i), *words)
        for i, words in enumerate(
            ((), (), ("--seed", 1), ("--steps", 3 if name == "pixels" else 2))
        )
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(first, fewer)
    assert np.shape(first) == (3, 4, 4)


def test_a_cascades_level_is_a_dial(latent_run, tmp_path):
    few, much = (
        asked(latent_run("cascade"), tmp_path / level, "--aug-noise", level)
        for level in ("0", "0.9")
    )
    assert not np.array_equal(few, much)


@pytest.mark.parametrize(
    "name, words, n_tiles",
    [
        ("pixels", (), 8),
        ("pixels", ("--steps", 2), 2),
        ("cascade", (), 5),
        ("frames", (), 4),
        ("codes", (), 8),
        ("codes", ("--steps", 2), 2),
    ],
)
def test_beside_samples_lie_their_states_on_the_way(latent_run, tmp_path, name, words, n_tiles):
    """Of the first sample of a prompt, at even steps: 4 pixels each, a gap of one; the last is the
    sample itself.
    """
    samples = asked(latent_run(name), tmp_path, *words)
    there = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    drawn = [f"dark-{i:03d}.png" for i in range(3)]
    assert there == sorted([*drawn, "index.json", *["steps/dark-000.png"] * (n_tiles > 0)])
    assert [row["file"] for row in json.loads((tmp_path / "index.json").read_text())] == drawn
    if n_tiles:
        strip = read_image(tmp_path / "steps" / "dark-000.png")
        assert strip.shape == (4, 5 * n_tiles - 1) and (strip[:, 4::5] == 255).all()
        np.testing.assert_array_equal(strip[:, -4:], samples[0])
        assert n_tiles == 2 or not np.array_equal(
            strip[:, :4], samples[0]
        )  # the first of two steps goes nearly all the way


def test_codes_not_drawn_yet_are_white_and_those_drawn_stay(latent_run, tmp_path):
    sample = asked(latent_run("codes"), tmp_path)[0]
    strip = read_image(tmp_path / "steps" / "dark-000.png")
    tiles = [strip[:, 5 * i : 5 * i + 4] for i in range((strip.shape[1] + 1) // 5)]
    missing = [tile != sample for tile in tiles]
    assert all((tile[m] == 255).all() for tile, m in zip(tiles, missing))
    assert (
        all((b <= a).all() for a, b in zip(missing, missing[1:]))
        and missing[0].any()
        and not missing[-1].any()
    )


def test_states_of_samples_that_were_replaced_go(latent_run, tmp_path, monkeypatch):
    asked(latent_run("pixels"), tmp_path, n=1)
    asked(latent_run("pixels"), tmp_path, prompt="light", n=1)
    monkeypatch.setattr(
        "mmtok.run.run.trajectory_recorder", lambda *_: None
    )  # as of a run whose pictures have no states
    asked(latent_run("codes"), tmp_path, n=1)
    assert [p.name for p in (tmp_path / "steps").iterdir()] == ["light-000.png"]


# ---- infilling


@pytest.mark.parametrize(
    "spans, known",
    [
        ("0:3,8:12", [*range(3, 8), *range(12, 16)]),
        ("8:12,0:3", [*range(3, 8), *range(12, 16)]),
        ("5:6", [*range(5), *range(6, 16)]),
        ("0:8,8:16", []),
    ],
)
def test_codes_in_any_order_infill_without_training_for_them(
    latent_run, picture, tmp_path, spans, known
):
    run = latent_run("codes")
    samples = asked(run, tmp_path, "--infill", f"{picture}:{spans}", n=6)

    def encode(image):
        return open_run(run).tokenizers["image"].encode(image).codes[:, 0]

    codes = np.stack([encode(image) for image in samples])
    real = encode(read_image(picture))
    assert (codes[:, known] == real[known]).all() and len(np.unique(codes, axis=0)) > 1
    (strip,) = (tmp_path / "steps").iterdir()
    assert read_image(strip).shape == (4, 5 * min(8, 16 - len(known)) - 1)
    np.testing.assert_array_equal(read_image(strip)[:, -4:], samples[0])


# ---- what is refused


@pytest.mark.parametrize(
    "name, words, message",
    [
        ("pixels", ("--steps", 1), "Heun needs at least 2 steps, got 1"),
        ("cascade", ("--steps", 1), "Heun needs at least 2 steps, got 1"),
        ("frames", ("--steps", 1), "Heun needs at least 2 steps, got 1"),
        ("pixels", ("--steps", -1), "sampling: steps is -1; it must be at least 0"),
        (
            "pixels",
            ("--guidance", 2),
            "guidance 2.0 needs a run trained with cond_dropout > 0 on a task text -> image",
        ),
        ("cascade", ("--guidance", 2), "guidance 2.0 needs"),
        ("frames", ("--guidance", 2), "guidance 2.0 needs"),
        ("pixels", ("--top-k", 3), "no top_k"),
        ("cascade", ("--top-p", 0.5), "no top_k or top_p"),
        ("codes", ("--top-k", 3), "no top_k"),
        ("frames", ("--compiled",), "cannot be compiled"),
        ("pixels", ("--precision", "int8"), "cannot be compiled or rounded"),
        ("codes", ("--compiled",), "cannot be compiled"),
        ("pixels", ("--aug-noise", 0.5), "not drawn by a cascade"),
        ("cascade", ("--aug-noise", 1), "below 1"),
        (
            "pixels",
            ("--infill", "{}:0:2"),
            "whole segments of latents, of which no part can be kept",
        ),
        ("frames", ("--infill", "{}:0:2"), "needs a run trained with infill > 0"),
        ("codes", ("--infill", "{}:0:4,2:6"), "the spans overlap"),
        ("codes", ("--infill", "{}:0:4,12:17"), "of 16 frames"),
        ("codes", ("--infill", "{}:0:4,8"), "must be FILE:START:STOP"),
        ("codes", ("--infill", "{}:4:4"), "of 16 frames"),
    ],
)
def test_dials_that_do_not_apply_are_refused(
    latent_run, picture, tmp_path, said, name, words, message
):
    words = [str(word).format(picture) for word in words]
    assert message in said(
        [
            "sample",
            latent_run(name),
            "--prompt",
            "dark",
            "--to",
            "image",
            "-o",
            tmp_path / "none",
            *words,
        ]
    )
    assert not (tmp_path / "none").exists()


def test_steps_of_what_is_drawn_code_by_code(latent_run, picture, tiny_run, said):
    assert "code by code, not in steps" in said(
        ["sample", latent_run("pixels"), "--prompt", picture, "--to", "text", "--steps", 4]
    )
    assert "code by code, not in steps" in said(
        ["sample", tiny_run, "--prompt", "dark", "--to", "image", "--steps", 4]
    )


def test_several_spans_where_one_was_trained(tiny_run, picture, said):
    line = said(
        ["sample", tiny_run, "--prompt", "dark", "--to", "image", "--infill", f"{picture}:0:2,4:6"]
    )
    assert "one span at a time" in line and "MaskedDiffusion" in line


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("heads.image.schedule.sigma_max", 0.002, "sigma_min must be above 0 and below sigma_max"),
        ("heads.image.schedule.sigma_min", 9, "sigma_min must be above 0 and below sigma_max"),
        ("heads.image.steps", 1, "Heun needs at least 2 steps, got 1"),
    ],
)
def test_recipes_that_no_solver_can_follow(tmp_path, said, field, value, message):
    assert message in said(["train", LATENTS, "--out", tmp_path / "run", f"--{field}", value])
    source = LATENTS.read_text().replace("EDM(sigma_max=8.0)", "EDM(sigma_min=8.0, sigma_max=8.0)")
    (tmp_path / "recipe.py").write_text(source)
    line = said(["train", tmp_path / "recipe.py", "--out", tmp_path / "run"])
    assert "recipe.py, line" in line and "sigma_min must be above 0 and below sigma_max" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name, at",
    [
        ("pixels", "after step 1 of 12"),
        ("cascade", "after step 1 of 3"),
        ("frames", "after step 1 of 4"),
        ("codes", "NaN or infinity at step 1 of 16"),
    ],
)
def test_a_network_that_returns_no_numbers_is_refused_with_the_step(
    latent_run, picture, tmp_path, said, name, at
):
    run = Path(shutil.copytree(latent_run(name), tmp_path / "run"))
    weights = load_file(run / "model.safetensors")
    for key, value in weights.items():
        if key.startswith("heads.image"):
            weights[key] = torch.full_like(value, math.nan)
    save_file(weights, run / "model.safetensors")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "sha256"}))
    assert at in said(["sample", run, "--prompt", "dark", "--to", "image"])
    assert not (run / "samples").exists()
    line = said(["score", run, picture, "--condition", "dark"])
    assert (
        "image cannot be scored: its nats are nan" if name == "codes" else "not finite after step"
    ) in line


# ---- scores


@pytest.mark.parametrize(
    "name, n_units, unit, kind",
    [
        ("pixels", 16, "bits/value", "estimate"),
        ("cascade", 16, "bits/value", "estimate"),
        ("frames", 4, "nats/frame", "estimate, density"),
        ("codes", 16, "bits/code", "bound"),
    ],
)
def test_scores_say_what_they_are_in_units_that_compare(
    latent_run, picture, capsys, name, n_units, unit, kind
):
    printed = lines(capsys, "score", latent_run(name), picture, picture, "--condition", "dark")
    words = re.compile(
        rf"(.*): (\S+) nats over (\d+) frames, (\S+) {unit}(?: over (\d+) {counted(unit)})?"
        rf" \({kind}\)"
    )
    found = [words.fullmatch(line).groups() for line in printed]
    assert [row[0] for row in found] == [str(picture), str(picture), "all 2"]
    for i, (_, nats, frames, value, over) in enumerate(found):
        assert over in (None, str(n_units * (1 + i // 2))) and (over is None) == (
            int(frames) == n_units * (1 + i // 2)
        )
        scale = 1 if unit == "nats/frame" else math.log(2)
        assert float(value) == pytest.approx(
            float(nats) / scale / (n_units * (1 + i // 2)), abs=1e-3
        )
        assert int(frames) == (16 if name == "codes" else 4) * (1 + i // 2)
    assert float(found[2][1]) == pytest.approx(float(found[0][1]) + float(found[1][1]), abs=1e-3)


@pytest.mark.parametrize("name", ["pixels", "codes"])
def test_equal_lots_of_documents_have_equal_estimates_and_bounds(
    latent_run, picture, monkeypatch, name
):
    """So that what is random is the same under every caption that a picture is asked of, also where
    a lot is scored in parts.
    """
    monkeypatch.setattr("mmtok.run.run.SLOW_BATCH", 4)
    run = open_run(latent_run(name))
    image = run.tokenizers["image"].encode(read_image(picture))
    text = run.tokenizers["text"].encode("dark")
    documents = [Document((text, image), (False, True))] * 6

    def total(at_once):
        return [score.total for score in run.score_documents(documents, group_size=at_once)]

    assert (
        total(2)[:2] == total(2)[2:4] == total(2)[4:]
        and len(set(total(2))) == 2
        and len(set(total(6))) == 6
    )


def test_unless_asked_no_two_documents_share_their_random_draws(latent_run, picture, monkeypatch):
    monkeypatch.setattr("mmtok.run.run.SLOW_BATCH", 2)
    run = open_run(latent_run("pixels"))
    documents = [
        Document((None, run.tokenizers["image"].encode(read_image(picture))), (False, True))
    ] * 6
    totals = [score.total for score in run.score_documents(documents)]
    assert len(set(totals)) == 6 and totals == [
        score.total for score in run.score_documents(documents)
    ]
    parts = run.score_part(documents, 0, 2) | run.score_part(documents, 1, 2)
    assert totals == [parts[i].total for i in range(6)]
