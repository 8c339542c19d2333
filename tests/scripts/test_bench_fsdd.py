"""The benchmark of real digits: every figure of it of a run that has hardly been trained."""

import functools
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.errors import UserError
from mmtok.run.run import open_run
from mmtok.sources.sound_files import write_sound

ROOT = Path(__file__).parents[2]
SMALL = (
    "--trunk.depth 1 --trunk.width 32 --trunk.n_heads 2 --n_kv_heads 2 --feed_forward 32"
    " --train.steps 2 --batch_size 2 --log_every 1 --n_strings 4 --speech.max_frames 12"
    " --text.max_frames 6"
)


@pytest.fixture(scope="module")
def script():
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "scripts"))
    yield importlib.import_module("bench_fsdd")
    sys.path.remove(str(ROOT / "scripts"))
    for name in set(sys.modules) - before:
        if (ROOT / "scripts" / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("fsdd")
    folder = home / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for speaker in ("anna", "bert"):
        for digit in range(10):
            for take in (0, 5):
                sound = rng.normal(0, 0.1, 1600 + 80 * digit).astype(np.float32)
                write_sound(folder / f"{digit}_{speaker}_{take}.wav", sound, 8_000)
    recipe = ROOT / "recipes" / "fsdd.py"
    train = ["train", str(recipe), "--path", str(folder), "-o", str(home / "run"), *SMALL.split()]
    assert main(train) == 0
    return home / "run"


def test_every_figure_is_there_and_a_run_beside_another_is_compared(script, run, monkeypatch):
    quick = functools.partial(script.train_speech_judge, n_steps=2)
    monkeypatch.setattr(script, "train_speech_judge", quick)
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    monkeypatch.setattr(script, "N_ALONE", 2)
    monkeypatch.setattr(script, "N_SAMPLES", 1)
    opened = [script.opened(run), script.opened(run)]
    lines = {line.what.partition(":")[0]: line for line in script.lines(opened)}
    assert list(lines) == [
        f"run {name}" for name in ("A1", "A2", "A3", "S1", "S3", "S4", "S6", "S7")
    ]
    assert lines["run A1"].value > 0.05 and not lines["run A1"].met  # it has learned nothing
    assert lines["run A3"].value == 1
    assert lines["run S4"].theirs == pytest.approx(9, abs=2)  # of 0.2 to 0.3 s
    assert lines["run S7"].peer == "run"


def test_other_runs_are_refused(script, tiny_run):
    with pytest.raises(UserError, match="is no run of recipes/fsdd.py"):
        script.opened(tiny_run)
    assert open_run(tiny_run).recipe.sources
