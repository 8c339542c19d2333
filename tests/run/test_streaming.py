"""Training on token files that another process is making."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mmtok.cli import main
from mmtok.data import parts as parts_room
from mmtok.data import tokenise as tokenise_room
from mmtok.data.stages import read_stages
from mmtok.errors import UserError
from mmtok.run.build import tokenise, train
from mmtok.run.recipe import load_recipe
from mmtok.run.run import Run
from mmtok.run.streaming import ALL, MADE, TokenStream, make_all
from mmtok.sources import pictures, screen
from mmtok.sources.images import ImageFolder
from mmtok.train.log import MEASURED, read_header, read_log
from mmtok.train.trainer import Trainer

GATED = Path(__file__).parent.parent / "tiny" / "gated.py"


@pytest.fixture
def gates(tmp_path):
    folder = tmp_path / "gates"
    folder.mkdir()
    return folder


def gated_words(gates):
    return [str(GATED), "--sources.0.gates", str(gates)]


def losses(folder):
    lines = read_log(folder / "log.jsonl")
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def uninterrupted(folder, recipe):
    """The same training from its start, by the record of its stages."""
    other = folder.with_name("other")
    other.mkdir()
    for name in ("tokenizers", "tokens"):
        shutil.copytree(folder / name, other / name)
    for name in ("vocabulary.json", "recipe.json"):
        shutil.copy(folder / name, other / name)
    return train(recipe, other).folder


def test_where_all_token_files_stand_streaming_changes_nothing(tiny_copy, tiny_recipe, tiny_run):
    (tiny_copy / "model.safetensors").unlink()
    (tiny_copy / "config.json").unlink()
    shutil.rmtree(tiny_copy / "checkpoints")
    train(tiny_recipe, tiny_copy, stream=True)
    for name in ("model.safetensors", "config.json"):
        assert (tiny_copy / name).read_bytes() == (tiny_run / name).read_bytes()
    assert losses(tiny_copy) == losses(tiny_run)
    assert "stages" not in read_header(tiny_copy / "log.jsonl")
    assert not (tiny_copy / "tokens" / "stages.json").exists()


class Heard:
    """What the process that makes token files would say."""

    def __init__(self):
        self.said = []

    def say(self, kind, value=None):
        self.said.append((kind, value))


@pytest.fixture
def few(monkeypatch):
    """Chunks of 3 examples, parts of one chunk."""
    for room in (pictures, screen, tokenise_room):
        monkeypatch.setattr(room, "CHUNK", 3)
    monkeypatch.setattr(parts_room, "CHUNKS", 1)


def test_the_first_part_of_every_source_comes_first_and_all_files_are_those_of_tokenising(
    few, tiny_copy, tiny_recipe, contents
):
    shutil.rmtree(tiny_copy / "tokens")
    heard = Heard()
    make_all(tiny_recipe, tiny_copy, heard)
    streamed = contents(tiny_copy / "tokens")
    n_parts = [sum(f"{i}-" in name and "part-" in name for name in streamed) for i in range(3)]
    made = [(MADE, (i, k)) for i, n in enumerate(n_parts) for k in range(2, n + 1)]
    ends = [(ALL, (i, n)) for i, n in enumerate(n_parts)]
    assert heard.said[:3] == [(MADE, (i, 1)) for i in range(3)]
    assert sorted(heard.said[3:]) == sorted(made + ends) and n_parts[0] == 5
    shutil.rmtree(tiny_copy / "tokens")
    tokenise(Run(tiny_copy, tiny_recipe))
    assert contents(tiny_copy / "tokens") == streamed


def test_parts_that_stand_are_said_before_any_is_made(few, tiny_copy, tiny_recipe):
    shutil.rmtree(tiny_copy / "tokens")
    make_all(tiny_recipe, tiny_copy, Heard())
    folder = tiny_copy / "tokens" / "0-ImageFolder"
    (folder / "complete.json").unlink()
    (folder / "part-00003.parquet").unlink()
    heard = Heard()
    make_all(tiny_recipe, tiny_copy, heard)
    assert heard.said[:3] == [(ALL, (1, 6)), (ALL, (2, 1)), (MADE, (0, 1))]
    assert [value for _, value in heard.said if value[0] == 0] == [(0, k) for k in (1, 2, 3, 5, 5)]


def test_classes_that_no_other_process_can_have_are_refused_in_one_line(tiny_copy, tiny_recipe):
    @dataclass(frozen=True)
    class Local(ImageFolder):
        """Of this function."""

    shutil.rmtree(tiny_copy / "tokens")
    source = Local(tiny_recipe.sources[0].path, heldout_share=0.3)
    run = Run(tiny_copy, replace(tiny_recipe, sources=(source, *tiny_recipe.sources[1:])))
    with TokenStream(run) as stream:
        process = stream._process
        with pytest.raises(UserError, match=r"^--stream: the class .*Local .* train without it$"):
            stream.wait(bool, "")
        assert process.poll() is None
    assert process.poll() is not None


@pytest.mark.slow
def test_an_error_of_the_other_process_ends_training_which_resumes_to_the_same_weights(
    gates, tmp_path, monkeypatch, capsys
):
    words = [*gated_words(gates)[1:], "--train.steps", "130", "--checkpoint_every", "20"]
    recipe = load_recipe(GATED, words)
    folder = tmp_path / "run"
    update = Trainer.update
    parts = folder / "tokens" / "0-Gated"
    opened = {25: "1.wrong"}

    def update_and_open(self):
        if self.step in opened:
            gate = opened[self.step]
            (gates / gate).touch()
            time.sleep(0.2)
            while gate.isdecimal() and not (parts / f"part-0000{gate}.parquet").exists():
                time.sleep(0.05)
        return update(self)

    monkeypatch.setattr(Trainer, "update", update_and_open)
    with pytest.raises(UserError, match=r"^part 1 is refused$"):
        train(recipe, folder, stream=True)
    assert (folder / "checkpoints" / "step-000020").exists()
    assert [stage.parts for stage in read_stages(folder / "tokens", 1)] == [(1,)]
    assert not list(folder.rglob("*.tmp"))
    (gates / "1.wrong").unlink()
    opened = {25: "1", 60: "2"}
    train(recipe, folder, stream=True)
    stages = read_stages(folder / "tokens", 1)
    assert [stage.parts for stage in stages] == [(1,), (2,), (3,)]
    assert capsys.readouterr().err.count("0-Gated: 4,196 examples") == 1
    again = uninterrupted(folder, recipe)
    assert losses(again) == losses(folder)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    said = read_header(folder / "log.jsonl")["stages"]
    assert said == [{"step": s.step, "parts": {"0-Gated": s.parts[0]}} for s in stages]
    assert main(["show", str(folder), "--recipe", str(GATED)]) == 0
    shown = capsys.readouterr().out
    assert "token files were read in 3 stages" in shown
    assert f"from step {stages[1].step}, the first parts: 0-Gated 2" in shown


@pytest.mark.slow
def test_killed_in_a_stage_and_resumed_training_has_the_losses_of_one_that_was_not(gates, tmp_path):
    folder = tmp_path / "run"
    words = ["train", *gated_words(gates), "--out", str(folder), "--stream"]
    command = [sys.executable, "-m", "mmtok", *words]
    for kill_at, gate in (("step 30:", "1"), ("step 100:", "2")):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in process.stderr:
            if line.startswith(kill_at):
                (gates / gate).touch()
            if line.startswith(f"step {int(kill_at[5:-1]) + 50}:"):
                process.kill()
                break
        process.stderr.close()
        assert process.wait() == -9
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    recipe = load_recipe(GATED, gated_words(gates)[1:])
    assert len(read_stages(folder / "tokens", 1)) == 3
    assert not list((folder / "tokens").rglob("*.tmp"))
    again = uninterrupted(folder, recipe)
    assert losses(again) == losses(folder)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_training_that_ends_first_waits_for_the_token_files_and_says_what_it_did_not_read(
    gates, tmp_path
):
    for k in "12":
        (gates / k).touch()
    folder = tmp_path / "run"
    words = ["train", *gated_words(gates), "--out", str(folder), "--stream", "--train.steps", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "mmtok", *words], capture_output=True, text=True, check=True
    )
    assert (folder / "tokens" / "0-Gated" / "complete.json").exists()
    assert (folder / "model.safetensors").exists()
    if read_stages(folder / "tokens", 1)[0].parts != (3,):
        assert "training ended before it came to all token files" in done.stderr


@pytest.mark.slow
def test_two_processes_take_a_stage_at_the_same_step(gates, tmp_path):
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), *sys.path])
    subprocess.run(
        [sys.executable, str(here / "streamed_together.py"), str(tmp_path), *gated_words(gates)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    codes = json.loads((tmp_path / "codes.json").read_text())
    assert codes == {"two": [0, 0], "refused": [2, 2]}
    folder = tmp_path / "two"
    assert [stage.parts for stage in read_stages(folder / "tokens", 1)] == [(1,), (2,), (3,)]
    again = uninterrupted(folder, load_recipe(GATED, gated_words(gates)[1:]))
    for a, b in zip(losses(folder), losses(again), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    said = [
        line
        for rank in (0, 1)
        for line in (tmp_path / f"refused.{rank}.err").read_text().splitlines()
        if line.startswith("mmtok")
    ]
    assert said == ["mmtok: part 1 is refused"]
