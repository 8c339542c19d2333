"""The benchmark of real digits: every figure of it, of runs that have hardly been trained: of codes
and of frames without levels.
"""

import functools
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

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

DIFFUSION = (
    '{"kind": "FrameDiffusion", "schedule": {"kind": "CondOT"}, "steps": 2,'
    ' "network": {"kind": "TokenMLPConfig", "depth": 1, "width": 16}}'
)
OTHERS = {
    "codes": [],
    "diffused": [
        "--tokenizers.speech",
        '{"kind": "LogMelConfig", "mel": {"hop_samples": 400}}',
        "--heads.speech",
        DIFFUSION,
    ],
}


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
def runs(tmp_path_factory):
    """The folders of both runs."""
    home = tmp_path_factory.mktemp("fsdd")
    folder = home / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for speaker in ("anna", "bert"):
        for digit in range(10):
            for take in (0, 5):
                sound = rng.normal(0, 0.1, 1600 + 80 * digit).astype(np.float32)
                write_sound(folder / f"{digit}_{speaker}_{take}.wav", sound, 8_000)
    recipe = str(ROOT / "recipes" / "fsdd.py")
    for name, words in OTHERS.items():
        train = ["train", recipe, "--path", str(folder), "-o", str(home / name)]
        assert main([*train, *SMALL.split(), *words]) == 0
    return [home / name for name in OTHERS]


def test_every_figure_is_there_and_runs_beside_another_are_compared(script, runs, monkeypatch):
    quick = functools.partial(script.train_speech_judge, n_steps=2)
    monkeypatch.setattr(script, "train_speech_judge", quick)
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    monkeypatch.setattr(script, "N_ALONE", 2)
    monkeypatch.setattr(script, "N_SAMPLES", 1)
    found = script.lines([script.opened(run) for run in runs])
    lines = {line.what.partition(":")[0]: line for line in found}
    figures = ("A1", "A2", "A3", "S1", "S3", "S4", "S6")
    of_each = [f"{name} {figure}" for name in OTHERS for figure in figures]
    assert sorted(lines) == sorted([*of_each, "diffused"])
    assert lines["codes A1"].value > 0.05 and not lines["codes A1"].met  # it has learned nothing
    for name in OTHERS:
        assert lines[f"{name} A3"].value == 1
        # of 0.2 to 0.3 s
        assert lines[f"{name} S4"].theirs == pytest.approx(9, abs=2)
    assert "words lost beside codes" in lines["diffused"].what


def test_two_frames_in_a_position_are_held_against_s7(script):
    """Words lost, and the time of sampling; each with the bar that is stated for it."""
    right = [True] * 90 + [False] * 10
    one = SimpleNamespace(name="one", k=1, right=right, drawn=([], 6.0))
    two = SimpleNamespace(name="two", k=2, right=right, drawn=([], 3.0))
    words, seconds = script.compared(one, two)
    assert words.what == "two S7: words lost, k 1 to 2" and words.value == 0 and words.met
    assert seconds.value == 0.5 and seconds.met and seconds.peer == "one"


def test_other_runs_are_refused(script, tiny_run):
    with pytest.raises(UserError, match="is no run of recipes/fsdd.py"):
        script.opened(tiny_run)
    assert open_run(tiny_run).recipe.sources
