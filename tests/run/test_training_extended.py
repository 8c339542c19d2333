"""A run that is trained on beyond the steps that it was planned for, or told to end earlier."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmtok.cli import main
from mmtok.commands.show import describe_run
from mmtok.errors import UserError
from mmtok.run.build import train
from mmtok.run.run import open_run
from mmtok.train.checkpoint import load_weights, planned_steps
from mmtok.train.config import TrainConfig
from mmtok.train.log import read_log
from mmtok.train.schedule import learning_rate, replan, schedule_text


def with_steps(recipe, steps, **changes):
    return replace(recipe, train=replace(recipe.train, steps=steps, **changes))


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def unfinished(tiny_copy):
    """The tiny run, stopped after step 20 of 24."""
    (tiny_copy / "model.safetensors").unlink()
    shutil.rmtree(tiny_copy / "checkpoints" / "step-000024")
    return tiny_copy


# ---- the law


def test_the_rate_follows_from_the_step_and_the_number_of_steps_alone():
    """At any step the new plan's own rate: no second warm-up, a line to 0 at the new end."""
    config = TrainConfig(steps=200, warmup=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100, 200)]  # trained on from 100
    assert rates[0] == 0.5 and rates[-1] == pytest.approx(0.005)
    steps = [a - b for a, b in zip(rates, rates[1:])]
    assert steps == pytest.approx([1 / 200] * 99)


def test_plans():
    assert replan([[0, 24]], 20, 24) == [[0, 24]]
    assert replan([[0, 24]], 20, 48) == [[0, 24], [20, 48]]
    assert replan([[0, 24], [20, 48]], 20, 60) == [
        [0, 24],
        [20, 60],
    ]  # no step was made by the plan of 48
    assert replan([[0, 24], [20, 48]], 20, 24) == [[0, 24]]
    assert replan([[0, 24], [20, 48]], 30, 30) == [[0, 24], [20, 48], [30, 30]]
    assert replan([[0, 24]], 0, 48) == [[0, 48]]


def test_the_schedule_is_stated():
    config = TrainConfig(steps=48, warmup=4, learning_rate=1e-2)
    text = schedule_text(config, [[0, 24], [24, 48]])
    assert (
        "from step 24: 24 steps were planned before, now 48; the learning rate, 0.000417 at step"
        " 24, goes on at 0.005 and falls" in text
    )
    assert "0 at step 48, without a second warm-up" in text and "\n" not in text


# ---- a run


def test_a_finished_run_is_trained_on(tiny_copy, tiny_words, tiny_recipe, capsys):
    before = weights(tiny_copy)
    log = read_log(tiny_copy / "log.jsonl")
    assert main(["train", *tiny_words, "--train.steps", "30", "--out", str(tiny_copy)]) == 0
    err = capsys.readouterr().err
    assert (
        "resuming at step 24" in err
        and err.count("trained on from step 24: 24 steps were planned before, now 30") == 1
    )
    assert json.loads((tiny_copy / "recipe.json").read_text())["train"]["steps"] == 30
    lines = read_log(tiny_copy / "log.jsonl")
    assert lines[: len(log)] == log and [line["step"] for line in lines] == [8, 16, 24, 30]
    assert lines[-1]["learning_rate"] == learning_rate(with_steps(tiny_recipe, 30).train, 29)
    assert any(not torch.equal(x, before[name]) for name, x in weights(tiny_copy).items())
    run = open_run(tiny_copy)
    assert run.trained == {
        "step": 30,
        "of": 30,
    } and "step 30 of 30, until step 24 planned for 24" in describe_run(run)
    assert main(["train", *tiny_words, "--train.steps", "30", "--out", str(tiny_copy)]) == 0
    assert "is trained: nothing to do" in capsys.readouterr().err


def test_it_gives_the_same_weights_whether_cut_or_not(
    unfinished, tiny_recipe, tmp_path, monkeypatch
):
    """Trained on from step 20 to 28, once at a stretch and once killed after a checkpoint; and not
    what 28 steps from the start give.
    """
    from mmtok.train.trainer import Trainer

    whole = shutil.copytree(unfinished, tmp_path / "whole")
    train(with_steps(tiny_recipe, 28), whole)
    launch = Trainer._launch

    def dies(trainer):
        if trainer.step == 24:
            trainer.save()
            raise RuntimeError("killed")
        return launch(trainer)

    monkeypatch.setattr(Trainer, "_launch", dies)
    with pytest.raises(RuntimeError):
        train(with_steps(tiny_recipe, 28), unfinished)
    monkeypatch.setattr(Trainer, "_launch", launch)
    assert load_weights(unfinished / "checkpoints").state["step"] == 24
    train(with_steps(tiny_recipe, 28), unfinished)
    a = weights(whole)
    b = weights(unfinished)
    assert a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())
    assert planned_steps(unfinished / "checkpoints") == [[0, 24], [20, 28]]
    assert json.loads((unfinished / "config.json").read_text())["planned"] == [[0, 24], [20, 28]]


def test_an_unfinished_run_may_be_told_to_end_earlier(unfinished, tiny_recipe, capsys):
    train(with_steps(tiny_recipe, 22), unfinished)
    assert "24 steps were planned before, now 22" in capsys.readouterr().err
    assert open_run(unfinished).trained == {"step": 22, "of": 22}


def test_it_may_be_told_to_end_where_it_is(unfinished, tiny_recipe, capsys):
    kept = open_run(unfinished).lm.state_dict()
    train(with_steps(tiny_recipe, 20), unfinished)
    assert "now 20" in capsys.readouterr().err and all(
        torch.equal(x, kept[name]) for name, x in weights(unfinished).items()
    )


@pytest.mark.parametrize("steps", [1, 19])
def test_fewer_steps_than_were_made_are_refused(unfinished, tiny_recipe, contents, steps):
    before = contents(unfinished)
    with pytest.raises(
        UserError,
        match=f"has made 20 steps, which --train.steps {steps} would have to undo: say at least 20",
    ):
        train(with_steps(tiny_recipe, steps), unfinished)
    assert contents(unfinished) == before


def test_a_finished_run_is_not_shortened_even_where_its_last_checkpoint_is_damaged(
    tiny_copy, tiny_recipe, contents
):
    (tiny_copy / "checkpoints" / "step-000024" / "state.json").write_text("{")
    before = contents(tiny_copy)
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(UserError, match="has made 24 steps"),
    ):
        train(with_steps(tiny_recipe, 22), tiny_copy)
    after = contents(tiny_copy)
    assert "damaged" in after.pop("notes.txt").decode()
    assert after == {name: data for name, data in before.items() if name != "notes.txt"}


def test_without_checkpoints_a_model_is_not_thrown_away(tiny_copy, tiny_recipe, contents):
    shutil.rmtree(tiny_copy / "checkpoints")
    before = contents(tiny_copy)
    with pytest.raises(UserError, match="cannot be trained on, as its checkpoints are gone"):
        train(with_steps(tiny_recipe, 48), tiny_copy)
    assert contents(tiny_copy) == before


def test_other_fields_are_refused_along_with_it(tiny_copy, tiny_recipe, contents):
    before = contents(tiny_copy)
    with pytest.raises(UserError, match="train.learning_rate: 0.01 -> 0.1"):
        train(with_steps(tiny_recipe, 48, learning_rate=0.1), tiny_copy)
    assert contents(tiny_copy) == before


def test_fields_that_say_how_may_change_along_with_it(tiny_copy, tiny_recipe):
    train(with_steps(tiny_recipe, 25, activation_checkpointing=1), tiny_copy)
    stored = json.loads((tiny_copy / "recipe.json").read_text())["train"]
    assert (stored["steps"], stored["activation_checkpointing"]) == (25, 1)


def test_fitting_alone_plans_no_training(tiny_copy, tiny_words, contents, said):
    before = contents(tiny_copy)
    assert "train.steps: 24 -> 48" in said(
        ["fit", *tiny_words, "--train.steps", "48", "--out", tiny_copy]
    )
    assert contents(tiny_copy) == before


def test_cut_between_taking_the_model_away_and_the_new_recipe(tiny_copy, tiny_recipe):
    """Both the old command and the new one go on."""
    old = weights(tiny_copy)
    (tiny_copy / "model.safetensors").unlink()
    (tiny_copy / "config.json").unlink()
    other = shutil.copytree(tiny_copy, tiny_copy.with_name("other"))
    train(tiny_recipe, tiny_copy)
    assert all(torch.equal(x, old[name]) for name, x in weights(tiny_copy).items())
    train(with_steps(tiny_recipe, 25), other)
    assert open_run(other).trained == {"step": 25, "of": 25}
