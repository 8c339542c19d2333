"""Runs that are not trained to their end are asked all the same: by the weights of a checkpoint,
which is said.
"""

import json
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file

from mmtok.cli import main
from mmtok.errors import UserError
from mmtok.run.run import open_run
from mmtok.train import checkpoint as checkpoints
from mmtok.train.checkpoint import load_weights


@pytest.fixture
def unfinished(tiny_copy):
    """The tiny run as if it had been stopped after step 20 of 24."""
    (tiny_copy / "model.safetensors").unlink()
    shutil.rmtree(tiny_copy / "checkpoints" / "step-000024")
    return tiny_copy


@pytest.fixture
def shown(tiny_data):
    """Words that ask for a score."""
    return str(tiny_data / "images" / "dark" / "0.png"), "--condition", "dark"


LINE = "is not trained to its end: these are the weights of its checkpoint at step 20 of 24"


def test_the_weights_are_what_the_run_would_keep_if_it_ended_there(unfinished, capsys):
    run = open_run(unfinished)
    average = load_file(unfinished / "checkpoints" / "step-000020" / "ema.safetensors")
    assert all(
        torch.equal(x, average[name]) for name, x in run.lm.named_parameters()
    ) and run.trained == {"step": 20, "of": 24}
    assert capsys.readouterr().err.count(LINE) == 1


def test_the_last_checkpoint_holds_the_finished_runs_weights(tiny_run, capsys):
    whole = open_run(tiny_run)
    last = open_run(tiny_run, step=24)
    assert all(torch.equal(a, b) for a, b in zip(whole.lm.parameters(), last.lm.parameters()))
    assert whole.trained == last.trained == {"step": 24, "of": 24}
    assert capsys.readouterr().err == "these are the weights of its checkpoint at step 24 of 24\n"


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "RUN", "--prompt", "dark", "--to", "image", "-n", "1", "-o", "OUT"],
        ["score", "RUN", "IMAGE", "--condition", "dark"],
        ["report", "RUN"],
    ],
)
def test_every_question_is_answered_with_one_line_about_it(
    unfinished, tiny_data, tmp_path, capsys, words
):
    if words[0] == "report":
        pytest.importorskip("matplotlib")
    there = {
        "RUN": str(unfinished),
        "IMAGE": str(tiny_data / "images" / "dark" / "0.png"),
        "OUT": str(tmp_path / "out"),
    }
    assert main([there.get(word, word) for word in words]) == 0
    err = capsys.readouterr().err
    assert err.count(LINE) == 1 and "Traceback" not in err


def test_another_checkpoint_may_be_named_also_of_a_finished_run(tiny_run, capsys, shown):
    lines = {}
    for words in ([], ["--checkpoint", "20"], ["--checkpoint", "24"]):
        assert main(["score", str(tiny_run), *shown, *words]) == 0
        captured = capsys.readouterr()
        assert ("of its checkpoint at step" in captured.err) == bool(words)
        lines[words[-1] if words else ""] = captured.out
    assert lines[""] == lines["24"] != lines["20"]


def test_a_wrong_step_lists_those_that_stand(said, tiny_copy, shown):
    line = said(["score", tiny_copy, *shown, "--checkpoint", "21"])
    where = f"{tiny_copy / 'checkpoints'} holds no checkpoint of that step"
    assert line.endswith(f"--checkpoint 21: {where}; those of these steps stand: 20, 24")
    assert said(["score", tiny_copy, *shown, "--checkpoint", "-1"]).endswith(
        f"--checkpoint -1: {where}; those of these steps stand: 20, 24"
    )
    for step in range(30, 45):
        (tiny_copy / "checkpoints" / f"step-{step:06d}").mkdir()
    assert said(["score", tiny_copy, *shown, "--checkpoint", "1"]).endswith(
        "35, 36, 37, 38, 39, 40, 41, 42, 43, 44 (the newest 10 of 17)"
    )
    shutil.rmtree(tiny_copy / "checkpoints")
    assert "no other one stands" in said(["score", tiny_copy, *shown, "--checkpoint", "20"])
    assert "'x'" in said(["score", tiny_copy, *shown, "--checkpoint", "x"])


def test_a_damaged_checkpoint_is_passed_over_and_said(said, tiny_copy, notes, shown):
    (tiny_copy / "model.safetensors").unlink()
    weights = tiny_copy / "checkpoints" / "step-000024" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (note,) = notes(["score", tiny_copy, *shown])
    assert "step-000024 is damaged" in note and "using the one before it" in note
    assert "step-000024 is damaged" in said(["score", tiny_copy, *shown, "--checkpoint", "24"])
    (tiny_copy / "checkpoints" / "step-000020" / "state.json").write_text("{")
    assert "none of the checkpoints" in said(["score", tiny_copy, *shown])


def test_a_damaged_optimizer_is_nobodys_business_here(unfinished, recwarn):
    (unfinished / "checkpoints" / "step-000020" / "optimizer.safetensors").unlink()
    assert open_run(unfinished).trained["step"] == 20 and not recwarn


def test_a_checkpoint_that_is_taken_away_under_the_reader_leads_to_a_newer_one(
    unfinished, monkeypatch, recwarn
):
    folder = unfinished / "checkpoints"
    read = checkpoints._read

    def slow(path, stems=None):
        if path.name == "step-000020":  # a training goes on meanwhile
            shutil.copytree(path, folder / "step-000040")
            shutil.rmtree(path)
        return read(path, stems)

    monkeypatch.setattr(checkpoints, "_read", slow)
    assert load_weights(folder).state["step"] == 20 and not recwarn  # the copy's own word
    assert not (folder / "step-000020").exists()


def test_asking_while_a_training_writes_and_removes(tiny_run, tmp_path):
    source = tiny_run / "checkpoints" / "step-000020"
    folder = tmp_path / "checkpoints"
    done = threading.Event()
    shutil.copytree(source, folder / "step-000001")

    def train():
        for step in range(2, 40):
            shutil.copytree(source, folder / f".step-{step:06d}.tmp")
            (folder / f".step-{step:06d}.tmp").rename(folder / f"step-{step:06d}")
            checkpoints.tidy(folder, step)
        done.set()

    thread = threading.Thread(target=train)
    thread.start()
    n = 0
    while not done.is_set():
        assert load_weights(folder) is not None
        n += 1
    thread.join()
    assert n


def test_an_evaluation_of_a_checkpoint_says_so_and_is_made_again(tiny_copy, monkeypatch, capsys):
    from mmtok.evaluation import evaluate as room

    monkeypatch.setattr(room, "TASK_FIGURES", {})
    monkeypatch.setattr(room, "zero_shot", lambda s: {})
    monkeypatch.setattr(
        room,
        "held_out_scores",
        lambda run: {"image": {"bits_per_code": next(run.lm.parameters()).sum().item()}},
    )

    def weights():
        return json.loads((tiny_copy / "evaluation.json").read_text())["weights"]

    finished = room.evaluate(open_run(tiny_copy))
    assert weights() == {"step": 24, "of": 24} and room.evaluate(open_run(tiny_copy)) == finished
    older = room.evaluate(open_run(tiny_copy, step=20))
    assert weights() == {"step": 20, "of": 24} and older["score"] != finished["score"]
    assert "is of other weights" in capsys.readouterr().err
    assert (
        room.evaluate(open_run(tiny_copy, step=20)) == older and "stands" in capsys.readouterr().err
    )
    assert room.evaluate(open_run(tiny_copy)) == finished and weights() == {"step": 24, "of": 24}


def test_a_report_says_which_weights_its_figures_are_of(tiny_copy):
    pytest.importorskip("matplotlib")
    from mmtok.report.report import write_report

    figures = {"weights": {"step": 20, "of": 24}, "score": {"image": {"bits_per_code": 3.0}}}
    (tiny_copy / "evaluation.json").write_text(json.dumps(figures))
    page = write_report(open_run(tiny_copy)).read_text()
    assert (
        "after step 20 of 24, which are not those of this page" in page
        and "of the checkpoint" not in page
    )
    page = write_report(open_run(tiny_copy, step=20)).read_text()
    assert (
        "the checkpoint at step 20 of 24" in page
        and "after step 20 of 24: the run is not trained to its end." in page
    )
    assert "the checkpoint at step 20" not in write_report(open_run(tiny_copy)).read_text()
    with pytest.raises(UserError, match="--checkpoint 7"):
        write_report(open_run(tiny_copy, step=7))


def test_a_checkpoint_of_other_sizes_is_refused(said, unfinished, shown):
    text = (unfinished / "recipe.json").read_text()
    (unfinished / "recipe.json").write_text(
        text.replace('"feed_forward": 48', '"feed_forward": 64')
    )
    assert "it was not made from the recipe.json beside it" in said(["score", unfinished, *shown])
