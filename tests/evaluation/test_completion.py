"""Pictures made whole from their upper halves, and pictures by name under several guidances."""

from dataclasses import replace

import numpy as np
import pytest

from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.evaluation import evaluate as room
from mmtok.evaluation import images
from mmtok.evaluation.completion import (
    COMPLETED,
    INFILLED,
    N_DRAWS,
    completed_figures,
    given_frames,
    given_pixels,
    held_out_examples,
    judged_figures,
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

NAME = "image_from_text"
JUDGED = {"judge_accuracy", "judge_accuracy_low", "judge_accuracy_p", "judge_heldout"}


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


def check_made_whole(run, part):
    """What every draw was given is there again; figures and triptychs are, too."""
    task = task_of(run)
    examples = held_out_examples(task)
    given = given_frames(task, part, len(examples))
    assert given.shape == (len(examples), 16) and (given.sum(1) == 8).all()
    sampled = run.draw(prompts_of(task, examples, given), run.sampling("image"), 0)
    encoded = run.tokenizers["image"].encode_batch([e["image"] for e in examples])
    codes = [sample.segment.values for sample in sampled]
    for frames, drawn, segment in zip(given, codes, encoded, strict=True):
        assert np.array_equal(drawn[frames], segment.values[frames])
    figures = completed_figures(task)[NAME + part]
    assert figures["n"] == len(examples) and figures["n_draws"] == N_DRAWS
    assert {"psnr_mean_db", "psnr_baseline_db_low", "coverage_90"} <= figures.keys()
    assert figures.keys() >= JUDGED
    section = "".join(sample_section(run, NAME + part))
    assert section.count('alt="truth"') == len(examples) == section.count('alt="given"')
    assert section.count('alt="drawn"') == N_DRAWS * len(examples)


def test_codes_that_are_drawn_one_after_another_go_on_from_the_upper_half(tiny_copy):
    run = open_run(tiny_copy)
    check_made_whole(run, COMPLETED)
    assert given_frames(task_of(run), INFILLED, 3) is None


@pytest.mark.parametrize("part", [COMPLETED, INFILLED])
def test_codes_in_any_order_fill_the_lower_half_and_any_half(any_order, part):
    check_made_whole(any_order, part)


def test_any_half_differs_from_picture_to_picture(any_order):
    given = given_frames(task_of(any_order), INFILLED, 20)
    assert len(np.unique(given, axis=0)) > 15
    assert np.array_equal(given, given_frames(task_of(any_order), INFILLED, 20))


def test_given_pixels_are_those_of_the_given_frames(any_order):
    task = task_of(any_order)  # 4 x 4 pixels, a frame each
    given = given_frames(task, INFILLED, 5)
    for frames in given:
        assert np.array_equal(given_pixels(task, frames), frames.reshape(4, 4))
    (upper,) = given_frames(task, COMPLETED, 1)
    assert given_pixels(task, upper)[:2].all() and not given_pixels(task, upper)[2:].any()


def test_blocks_cannot_be_filled_at_random(any_order, monkeypatch):
    task = task_of(any_order)
    monkeypatch.setattr(any_order.lm.heads["image"], "in_blocks", True)
    assert given_frames(task, INFILLED, 2) is None
    assert given_frames(task, COMPLETED, 2) is not None


def test_the_truth_drawn_is_judged_as_the_truth_is(any_order):
    task = task_of(any_order)
    examples = held_out_examples(task)
    truth = np.stack([example["image"] for example in examples])
    figures = judged_figures(task, examples, np.stack([truth, truth], 1))
    assert figures["judge_accuracy"] == figures["judge_heldout"]
    assert figures["judge_accuracy_p"] == 1


def test_a_judge_is_trained_once(any_order, monkeypatch):
    judge = images.judge_of(task_of(any_order))
    monkeypatch.setattr(images, "train_image_judge", None)
    assert images.judge_of(task_of(any_order)) is judge
    assert images.Reality(task_of(any_order)).judge() is judge


def test_pictures_of_any_size_or_one_row_are_not_completed(any_order, monkeypatch):
    task = task_of(any_order)
    tokenizer = task.target_tokenizer
    monkeypatch.setattr(tokenizer, "signature", replace(tokenizer.signature, frames=None))
    assert given_frames(task, COMPLETED, 2) is None and completed_figures(task) == {}


# ---- guidance


def test_guidances_are_figures_beside_the_others(tiny_copy, monkeypatch, capsys):
    """Also of an evaluation that stands; each has its samples."""
    monkeypatch.setattr(room, "_figures", lambda run: {"score": {}})
    run = open_run(tiny_copy)
    assert "image_from_text_guidance" not in evaluate(run)
    found = evaluate(run, guidances=(1.0, 2.5))["image_from_text_guidance"]
    said = capsys.readouterr().err
    assert "stands" in said and list(found) == ["1", "2.5", "chosen"]
    assert f"guidance {found['chosen']:g} is the one to take" in said
    for name in ("1", "2.5"):
        figures = found[name]
        assert {"judge_accuracy", "judge_accuracy_low", "frechet", "copies"} <= figures.keys()
        folder = run.folder / "samples" / f"image_from_text_guidance_{name}"
        assert len(list(folder.glob("*.png"))) == run.recipe.n_samples
    assert evaluate(run)["image_from_text_guidance"] == found
    with pytest.raises(UserError, match="guidance is nan"):
        evaluate(run, guidances=(float("nan"),))
    run.recipe = replace(run.recipe, tasks=run.recipe.tasks[1:2])
    with pytest.raises(UserError, match="has no task text -> image"):
        evaluate(run, guidances=(2.0,))


def swept(**accuracies):
    """Figures by guidance: the share of names, its interval 0.1 wide; distances grow."""
    return {
        guidance: {
            "judge_accuracy": share,
            "judge_accuracy_high": share + 0.05,
            "judge_round_trip": 0.9,
            "frechet": float(guidance),
        }
        for guidance, share in accuracies.items()
    }


@pytest.mark.parametrize(
    ("shares", "chosen"),
    [
        ({"1": 0.90, "1.5": 0.95, "3": 0.97}, 1.0),
        ({"1": 0.70, "1.5": 0.86, "3": 0.97}, 1.5),  # its interval holds 0.9
        ({"1": 0.30, "1.5": 0.60, "3": 0.55}, 1.5),  # none is good: the best
    ],
)
def test_the_least_guidance_that_names_as_real_pictures_are_is_chosen(shares, chosen):
    assert images.chosen_guidance(swept(**shares)) == chosen


def test_without_a_judge_the_nearest_is_chosen():
    assert images.chosen_guidance({"1": {"frechet": 2.0}, "2": {"frechet": 1.0}}) == 2.0
