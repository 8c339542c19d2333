"""A run folder: what a run leaves in it, what a second one finds and makes again, and that nothing
in it is half-written.
"""

import errno
import shutil
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmtok.commands.show import describe_run
from mmtok.errors import UserError
from mmtok.io import files as files_room
from mmtok.io.progress import Progress
from mmtok.run import build as room
from mmtok.run import training as training_room
from mmtok.run.build import fit, train
from mmtok.run.recipe import load_recipe
from mmtok.run.run import open_run
from mmtok.train.log import read_log


def test_a_run_folder_holds_what_the_readme_says(tiny_run, tiny_recipe, contents):
    names = set(contents(tiny_run))
    assert {
        "recipe.json",
        "vocabulary.json",
        "model.safetensors",
        "config.json",
        "log.jsonl",
    } <= names
    assert {f"tokenizers/{m}/tokenizer.json" for m in tiny_recipe.tokenizers} <= names
    assert {
        "tokens/0-ImageFolder/part-00000.parquet",
        "tokens/1-SpeechFolder/part-00000.parquet",
        "tokens/2-JetFile/complete.json",
    } <= names
    assert sorted(p.name for p in (tiny_run / "checkpoints").iterdir()) == [
        "step-000020",
        "step-000024",
    ]
    assert not [name for name in names if ".tmp" in name or name.endswith((".pkl", ".pt"))]
    log = read_log(tiny_run / "log.jsonl")
    assert [line["step"] for line in log] == [8, 16, 24] and log[-1]["loss"] < log[0]["loss"]


def test_the_model_kept_is_the_moving_average(tiny_run):
    kept = load_file(tiny_run / "model.safetensors")
    checkpoint = tiny_run / "checkpoints" / "step-000024"
    average = load_file(checkpoint / "ema.safetensors")
    weights = load_file(checkpoint / "weights.safetensors")
    assert kept.keys() == weights.keys() and all(torch.equal(kept[k], average[k]) for k in average)
    assert not all(torch.equal(kept[k], weights[k]) for k in weights)


def test_a_second_run_says_what_stands_and_redoes_nothing(
    tiny_copy, tiny_recipe, capsys, monkeypatch, contents
):
    def again(*_):
        raise AssertionError("done again")

    for name in ("fit_tokenizer", "tokenise", "train_decoder"):
        monkeypatch.setattr(room, name, again)
    before = contents(tiny_copy)
    train(tiny_recipe, tiny_copy)
    said = capsys.readouterr().err
    assert (
        all(f"{m} tokenizer stands" in said for m in tiny_recipe.tokenizers)
        and "is trained: nothing to do" in said
    )
    assert contents(tiny_copy) == before


def test_only_what_is_missing_is_made_again(tiny_copy, tiny_recipe, capsys, contents):
    before = contents(tiny_copy)
    (tiny_copy / "model.safetensors").unlink()
    shutil.rmtree(tiny_copy / "tokens" / "2-JetFile")
    train(tiny_recipe, tiny_copy)
    said = capsys.readouterr().err
    assert (
        "0-ImageFolder stands" in said
        and "2-JetFile: 12 examples" in said
        and "resuming at step 24" in said
    )
    assert contents(tiny_copy) == before


def test_fitting_alone_leaves_a_run_that_can_be_shown_but_not_asked(tiny_recipe, tmp_path):
    run = fit(tiny_recipe, tmp_path / "run")
    assert "not started" in describe_run(
        run
    ) and "jets: JetGridConfig, 41 x 61 x 61 levels" in describe_run(run)
    with pytest.raises(
        UserError, match="holds no trained model yet, nor a checkpoint; `mmtok train`"
    ):
        open_run(tmp_path / "run").lm


def test_a_cut_run_goes_on_to_the_same_weights(tiny_run, tiny_recipe, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(trainer):
        raise Stop

    out = tmp_path / "cut"
    for at in (3, 13):
        launch = training_room.Trainer._launch
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(
                training_room.Trainer, "_launch", lambda t: stop(t) if t.step == at else launch(t)
            )
            train(tiny_recipe, out)
    train(tiny_recipe, out)
    assert (out / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()

    def lines(folder):
        return [line["loss"] for line in read_log(folder / "log.jsonl")]

    assert lines(out) == lines(tiny_run)


def test_a_damaged_checkpoint_is_passed_over(tiny_copy, tiny_run, tiny_recipe):
    (tiny_copy / "model.safetensors").unlink()
    path = tiny_copy / "checkpoints" / "step-000024" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="step-000024 is damaged"):
        train(tiny_recipe, tiny_copy)
    assert (tiny_copy / "model.safetensors").read_bytes() == (
        tiny_run / "model.safetensors"
    ).read_bytes()


def test_a_predicted_modality_without_a_head_is_refused_before_anything_is_tokenised(
    tiny_words, tmp_path
):
    recipe = load_recipe(tiny_words[0], [*tiny_words[1:], "--model.heads", "{}"])
    with pytest.raises(
        UserError,
        match="speech is made by the task caption -> speech, but model.heads has no head for it",
    ):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "tokens").exists()


# ---- half-written


def broken_off(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "name, owner",
    [
        ("recipe.json", "replace"),
        ("tokenizers/text", "save"),
        ("model.safetensors", "TensorStream"),
    ],
)
def test_a_full_disk_leaves_nothing_half_written(
    tiny_recipe, tiny_copy, tmp_path, monkeypatch, name, owner
):
    out = tiny_copy
    (shutil.rmtree if name.startswith("tokenizers") else lambda p: p.unlink())(out / name)
    if name == "recipe.json":
        shutil.rmtree(out)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        match owner:
            case "replace":
                patch.setattr(files_room.os, "replace", broken_off)
            case "save":
                patch.setattr(
                    "mmtok.tokenizers.text.Bytes.save",
                    lambda self, folder: (folder.mkdir(), broken_off()),
                )
            case "TensorStream":
                patch.setattr(training_room.TensorStream, "write", broken_off)
        train(tiny_recipe, out)
    assert not (out / name).exists() and not [p for p in out.rglob("*") if ".tmp" in p.name]
    train(tiny_recipe, out)
    assert open_run(out).lm


def test_what_killed_runs_left_half_written_claims_no_folder_and_is_removed(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    names = [
        "recipe.json",
        "log.jsonl",
        "tokens/0-ImageFolder/part-00000.parquet",
        "model.safetensors",
    ]
    left = [(out / name).with_name(f".{name.rpartition('/')[2]}.999999999.tmp") for name in names]
    out.mkdir()
    left[0].write_text("half")
    fit(tiny_recipe, out)
    (out / "tokens" / "0-ImageFolder").mkdir(parents=True)
    for path in left[1:]:
        path.write_text("half")
    train(tiny_recipe, out)
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]


def test_after_ten_steps_it_is_said_how_long_all_will_take(tiny_recipe, capsys, monkeypatch):
    """About the whole in a fresh training, about what is left in one that goes on; said once, and
    not of what is over at once.
    """
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def said(first, steps, seconds=0.28):
        config = replace(tiny_recipe.train, steps=steps, checkpoint_every=200)
        with Progress("train", steps, "steps", done=first, every_s=1e9) as progress:
            for k in range(min(20, steps - first)):
                now[0] += 100 * seconds if k == 0 else seconds
                training_room._count_step(progress, first, config)
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("about")]

    assert said(0, 3000) == ["about 14 min for 3,000 steps at 0.28 s a step; checkpoints every 200"]
    assert said(1000, 3000) == [
        "about 9 min for the 1,990 steps that are left at 0.28 s a step; checkpoints every 200"
    ]
    assert said(0, 100, 24.0) == ["about 40 min for 100 steps at 24 s a step"]
    assert said(0, 10) == said(990, 1000) == []


def test_the_log_lines_tell_the_time_left(tiny_recipe, tmp_path, capsys):
    train(
        replace(tiny_recipe, train=replace(tiny_recipe.train, steps=16, log_every=4)),
        tmp_path / "run",
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(lines) == 4 and all(
        ("about " in line and line.endswith(" s left")) == (k < 3) for k, line in enumerate(lines)
    )
