"""Pictures made whole from their upper halves, and pictures by name under several guidances."""

from dataclasses import replace

import numpy as np
import pytest

from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.evaluation import evaluate as room
from mmtok.evaluation.completion import (
    N_DRAWS,
    Halves,
    completed_figures,
    halves,
    held_out_examples,
    prompts_of,
)
from mmtok.evaluation.evaluate import evaluate
from mmtok.evaluation.task import TaskEvaluation
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import DiTConfig
from mmtok.report.report import sample_section
from mmtok.run.build import train
from mmtok.run.run import open_run

NAME = "image_from_text_completed"


def task_of(run):
    return TaskEvaluation(run, run.recipe.tasks[0])


@pytest.fixture(scope="module")
def any_order(tiny_recipe, tmp_path_factory):
    """A run of two steps that draws codes in any order."""
    head = MaskedDiffusion(network=DiTConfig(depth=1, width=16, n_heads=2))
    recipe = replace(
        tiny_recipe,
        tokenizers={m: tiny_recipe.tokenizers[m] for m in ("text", "image")},
        sources=tiny_recipe.sources[:1],
        tasks=(Task(("caption",), ("image",), cond_dropout=0.2),),
        model=DecoderConfig(trunk=tiny_recipe.model.trunk, heads={"image": head}),
        sampling={},
        train=replace(tiny_recipe.train, steps=2),
    )
    return train(recipe, tmp_path_factory.mktemp("any_order") / "run")


def check_completed(run):
    """The upper half of every draw is the given one; figures and triptychs are there."""
    task = task_of(run)
    cut = halves(task)
    assert cut == Halves(8, 2)  # of 4 x 4 pixels
    examples = held_out_examples(task)
    sampled = run.draw(prompts_of(task, examples, cut), run.sampling("image"), 0)
    encoded = run.tokenizers["image"].encode_batch([e["image"] for e in examples])
    again = run.tokenizers["image"].decode_batch(encoded)
    for picture, copy in zip(task.decode(sampled), again, strict=True):
        assert np.array_equal(picture[:2], copy[:2])
    figures = completed_figures(task)[NAME]
    assert figures["n"] == len(examples) and figures["n_draws"] == N_DRAWS
    assert {"psnr_mean_db", "psnr_baseline_db_low", "coverage_90"} <= figures.keys()
    section = "".join(sample_section(run, NAME))
    assert section.count('alt="truth"') == len(examples) == section.count('alt="given"')
    assert section.count('alt="drawn"') == N_DRAWS * len(examples)


def test_codes_that_are_drawn_one_after_another_go_on_from_the_upper_half(tiny_copy):
    check_completed(open_run(tiny_copy))


def test_codes_in_any_order_fill_the_lower_half(any_order):
    check_completed(any_order)


def test_pictures_of_any_size_or_one_row_are_not_completed(any_order, monkeypatch):
    task = task_of(any_order)
    tokenizer = task.target_tokenizer
    monkeypatch.setattr(tokenizer, "signature", replace(tokenizer.signature, frames=None))
    assert halves(task) is None and completed_figures(task) == {}


# ---- guidance


def test_guidances_are_figures_beside_the_others(tiny_copy, monkeypatch, capsys):
    """Also of an evaluation that stands; each has its samples."""
    monkeypatch.setattr(room, "_figures", lambda run: {"score": {}})
    run = open_run(tiny_copy)
    assert "image_from_text_guidance" not in evaluate(run)
    found = evaluate(run, guidances=(1.0, 2.5))["image_from_text_guidance"]
    assert "stands" in capsys.readouterr().err and list(found) == ["1", "2.5"]
    for name, figures in found.items():
        assert {"judge_accuracy", "judge_accuracy_low", "frechet", "copies"} <= figures.keys()
        folder = run.folder / "samples" / f"image_from_text_guidance_{name}"
        assert len(list(folder.glob("*.png"))) == run.recipe.n_samples
    assert evaluate(run)["image_from_text_guidance"] == found
    with pytest.raises(UserError, match="guidance is nan"):
        evaluate(run, guidances=(float("nan"),))
    run.recipe = replace(run.recipe, tasks=run.recipe.tasks[1:2])
    with pytest.raises(UserError, match="has no task text -> image"):
        evaluate(run, guidances=(2.0,))
