"""A head that the package does not know: one file and one recipe (tests/outside_head)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmtok.cli import main
from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import build_head
from mmtok.run.build import train
from mmtok.run.recipe import Recipe, kinds_of, load_recipe
from mmtok.run.run import open_run

RECIPE = Path(__file__).parent / "outside_head" / "normal_recipe.py"
N_CELLS = 4


@pytest.fixture(scope="module")
def folder(tiny_data, tmp_path_factory):
    """A run trained on the tiny recipe's dark and light pictures."""
    out = tmp_path_factory.mktemp("outside") / "run"
    train(load_recipe(RECIPE, ["--path", str(tiny_data / "images")]), out)
    return out


@pytest.fixture
def run(folder):
    return open_run(folder, RECIPE)


def document(run, caption, grey):
    """A caption and a picture of one grey value."""
    picture = np.full((4, 4), grey, np.uint8)
    segments = (run.tokenizers["text"].encode(caption), run.tokenizers["image"].encode(picture))
    return Document(segments, (False, True))


def test_its_recipe_survives_json(folder, tiny_data):
    recipe = load_recipe(RECIPE, ["--path", str(tiny_data / "images")])
    text = (folder / "recipe.json").read_text()
    assert Recipe.from_json(text, tuple(kinds_of(recipe))) == recipe
    with pytest.raises(UserError, match="unknown kind.*--recipe FILE"):
        open_run(folder)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samples_are_cells_and_show_what_the_prompt_asks_for(run, guidance):
    means = {}
    for caption in ("dark", "light"):
        prompt = run.prompt([run.tokenizers["text"].encode(caption)], "image")
        drawn = run.draw([prompt] * 8, Sampling(guidance=guidance), seed=0)
        values = np.stack([d.segment.latents for d in drawn])
        codes = (values + 1) / 2 * N_CELLS - 0.5
        np.testing.assert_allclose(codes, codes.round(), atol=1e-5)
        assert not any(d.trajectory for d in drawn)
        means[caption] = values.mean()
    assert means["dark"] < means["light"] - 0.2


def test_scores_are_exact_and_tell_the_captions_apart(run):
    given_dark, given_light = run.score_documents(
        [document(run, "dark", 0), document(run, "light", 0)]
    )
    assert given_dark.kind == "exact"
    assert given_dark.nats[1] < given_light.nats[1]


def test_the_probabilities_of_all_values_sum_to_one(run):
    head = run.lm.heads["image"]
    centres = head.bins.centres(torch.arange(N_CELLS))
    h = torch.zeros(N_CELLS, run.lm.config.trunk.width)
    mean, log_std = head.network(h).double().chunk(2, -1)
    values = centres[:, None].expand(-1, mean.shape[1])
    p = head.bins.log_mass(head.bins.codes(values), mean, log_std.exp()).exp()
    torch.testing.assert_close(p.sum(0), torch.ones_like(p[0]))


def test_settings_that_it_does_not_know_are_refused(run):
    prompt = run.prompt([run.tokenizers["text"].encode("dark")], "image")
    for settings, message in (
        ({"top_k": 3}, "no top_k"),
        ({"steps": 4}, "not in steps"),
        ({"aug_noise": 0.5}, "not drawn by a cascade"),
        ({"compiled": True}, "cannot be compiled"),
    ):
        with pytest.raises(UserError, match=message):
            run.draw([prompt], Sampling(**settings), seed=0)


def test_a_signature_that_does_not_fit_is_refused_with_the_heads_that_do(run):
    config = run.recipe.model.heads["image"]
    with pytest.raises(UserError, match="Normal fills in discrete latents, but text has single"):
        build_head(config, 8, run.vocabulary.signatures["text"])


def test_the_command_line_serves_it(folder, tmp_path, capsys):
    words = ["--recipe", str(RECIPE)]
    asked = ["--prompt", "dark", "--to", "image", "-n", "2", "-o", str(tmp_path)]
    assert main(["sample", str(folder), *words, *asked]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert main(["show", str(folder), *words]) == 0
    assert main(["evaluate", str(folder), *words]) == 0
    assert "score.image.bits_per_value" in capsys.readouterr().out
