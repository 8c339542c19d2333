"""A run with a number as a condition: it reads it, and samples follow it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mmtok.commands.prompts import condition_segments
from mmtok.commands.sample import prompt_document, sample
from mmtok.commands.score import score
from mmtok.commands.show import describe, describe_run, describe_tokens
from mmtok.core.segment import Document
from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.evaluation.evaluate import evaluate
from mmtok.heads.categorical import Chained
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.report.report import write_report
from mmtok.run.build import train
from mmtok.run.recipe import Recipe
from mmtok.run.run import open_run
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import JetFile
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.numbers import NumberConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

PAIR = np.array([[0.5, 0, 0], [0.5, 0, 0]], np.float32)
AWAY = np.array([[0, 0.1, 0.1], [0, -0.1, -0.1]], np.float32)
FORM = "{caption}, pt {pt_gev} GeV"


def toy_recipe(folder):
    return Recipe(
        name="toy",
        sources=(JetFile(str(folder / "jets.npz"), str(folder / "l.txt"), numbers=("pt_gev",)),),
        tokenizers={
            "text": BytesConfig(),
            "pt_gev": NumberConfig(unit="GeV", low=100, high=1000, scale="log"),
            "jets": JetGridConfig(bins=(10, 4, 4), low=(4.0, -1.0, -1.0), high=(7.5, 1.0, 1.0)),
        },
        tasks=(Task(("caption", "pt_gev"), ("jets",), cond_dropout=0.1),),
        model=DecoderConfig(
            trunk=TransformerConfig(depth=2, width=32, n_heads=2, n_kv_heads=2, feed_forward=48),
            heads={"jets": Chained(16)},
        ),
        train=TrainConfig(
            steps=80,
            batch_size=8,
            seq_len=64,
            learning_rate=1e-2,
            warmup=5,
            ema_decay=0.0,
            precision="float32",
        ),
        sampling={"jets": Sampling(max_frames=9)},
        prompt_format=FORM,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training on 400 jets of two particles, whose pt alone differs."""
    folder = tmp_path_factory.mktemp("numbers")
    rng = np.random.default_rng(0)
    pt = 100 * 10 ** rng.random(400)
    write_jets(folder / "jets.npz", [x * PAIR + AWAY for x in pt])
    (folder / "l.txt").write_text("".join("top\n" if i % 2 else "up\n" for i in range(400)))
    train(toy_recipe(folder), folder / "run")
    return folder


@pytest.fixture
def run(trained):
    return open_run(trained / "run")


def held_out(run):
    examples = list(run.examples("heldout"))
    return [[e[f] for e in examples] for f in ("caption", "pt_gev", "jets")]


def nats(run, captions, numbers, jets):
    encoded = [
        run.tokenizers[m].encode_batch(x)
        for m, x in (("text", captions), ("pt_gev", numbers), ("jets", jets))
    ]
    documents = [Document(row, (False, False, True)) for row in zip(*encoded, strict=True)]
    return np.array([scored.total for scored in run.score_documents(documents)])


def test_the_number_is_read(run):
    """Given its own pt a jet is likelier than given another's, by more than a nat on average."""
    captions, numbers, jets = held_out(run)
    assert len(jets) == 40
    own = nats(run, captions, numbers, jets)
    others = nats(run, captions, numbers[1:] + numbers[:1], jets)
    assert own.mean() < others.mean() - 1
    assert (own < others).mean() > 0.7


def test_the_source_gives_the_pt_of_the_sum(run):
    _, numbers, jets = held_out(run)
    for pt, jet in zip(numbers, jets, strict=True):
        vector = (jet[:, :1] * np.stack([np.cos(jet[:, 2]), np.sin(jet[:, 2])], 1)).sum(0)
        assert abs(np.hypot(*vector) - pt) < 1e-4 * pt


def test_samples_follow_the_number(run, trained):
    means = []
    for pt in (150, 800):
        prompts = [prompt_document(run, [f"top, pt {pt} GeV"], "jets")] * 24
        drawn = run.draw(prompts, run.sampling("jets"), 0)
        jets = run.tokenizers["jets"].decode_batch([s.segment for s in drawn])
        means.append(np.median([jet[:, 0].sum() for jet in jets]))
    assert means[1] > 2 * means[0]


def test_prompts_by_form_and_by_field_are_the_same(run, trained):
    def segments(*words):
        return condition_segments(run, words, "jets")

    by_form = segments("top, pt 600 GeV")
    assert [s.modality for s in by_form] == ["text", "pt_gev"]
    for words in (("top", "pt_gev=600"), ("caption=top", "pt_gev = 6e2")):
        for a, b in zip(by_form, segments(*words), strict=True):
            assert np.array_equal(a.values, b.values)
    with pytest.raises(UserError, match="not of the form"):
        segments("top, pt 600")
    with pytest.raises(UserError, match="pt_gev: '600 GeV' is no number"):
        segments("top", "pt_gev=600 GeV")
    with pytest.warns(UserWarning, match="clipped, being above 1000 GeV"):
        segments("top, pt 6000 GeV")
    with pytest.raises(UserError, match="did you mean pt_gev=600"):
        segments("top", "pt=600")
    with pytest.raises(UserError, match="a condition, which is read and never made"):
        sample(run, ["top"], "pt_gev", 1, trained / "out")
    with pytest.raises(UserError, match="never trained on text -> jets"):
        sample(run, ["caption=top"], "jets", 1, trained / "out")
    [path] = sample(run, ["top, pt 600 GeV"], "jets", 2, trained / "out", guidance=2.0)
    assert path.exists()


def test_it_is_scored_shown_and_evaluated(run, trained):
    line = score(run, [str(trained / "jets.npz")], ["top, pt 300 GeV"])[0]
    assert line.modality == "jets" and np.isfinite(line.nats)
    recipe = run.recipe
    assert "100 to 1000 GeV, log scale" in describe(recipe)
    assert "pt_gev: NumberConfig, 16 floats a frame" in describe_run(run)
    assert "pt_gev: pt_gev" in describe_tokens(run.token_path(0))
    figures = evaluate(run)
    assert set(figures["jets_from_text_and_pt_gev"]) == {"up", "top"}
    assert np.isfinite(figures["score"]["jets"]["nats_per_particle_without_condition"])


@pytest.mark.slow
def test_it_is_reported(run):
    evaluate(run)
    assert "Jets from text and pt gev" in write_report(run).read_text()


def test_a_recipe_survives_json_and_refuses_what_cannot_be(trained):
    recipe = toy_recipe(trained)
    assert recipe.tokenizers["pt_gev"].modality == "pt_gev" and recipe.numbers == ("pt_gev",)
    assert Recipe.from_json(json.dumps(json.loads(recipe.to_json()))) == recipe
    with pytest.raises(UserError, match="predicts 'pt_gev'.*conditions only"):
        replace(recipe, tasks=(Task(("jets",), ("pt_gev",)),), prompt_format="")
    with pytest.raises(UserError, match="prompt_format names 'jets'"):
        replace(recipe, prompt_format="{jets} of {pt_gev}")
    with pytest.raises(UserError, match="not the inputs of any task"):
        replace(recipe, prompt_format="{caption}!")
    for name in ("keys", "a.b"):
        with pytest.raises(UserError, match="without dots"):
            replace(recipe, tokenizers={**recipe.tokenizers, name: NumberConfig()})
    binned = {**recipe.tokenizers, "pt_gev": NumberConfig(low=1, high=9, n_bins=8)}
    replace(recipe, tokenizers=binned, tasks=(Task(("jets",), ("pt_gev",)),), prompt_format="")
