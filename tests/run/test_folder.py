"""The files of a run folder: one process at a time writes them, and whoever is killed leaves the
door open.
"""

import subprocess
import sys
import warnings

import pytest

from mmtok.commands.show import describe_run
from mmtok.errors import UserError
from mmtok.run.build import fit, train
from mmtok.run.folder import LOCK, held, noted, read_notes
from mmtok.run.run import open_run

HOLD = (
    "import sys, time; from pathlib import Path; from mmtok.run.folder import held\nwith"
    " held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def test_what_is_said_of_the_data_is_kept_once_and_shown(tiny_copy):
    for _ in range(2):
        with pytest.warns(UserWarning) as said, noted(tiny_copy):
            warnings.warn("2 of 9 clips were\nleft out")
            warnings.warn("no user's", DeprecationWarning)
        assert len(said) == 2  # still told
    assert read_notes(tiny_copy)[-1] == "2 of 9 clips were left out" and len(
        set(read_notes(tiny_copy))
    ) == len(read_notes(tiny_copy))
    assert "  said while it was made:" in describe_run(
        open_run(tiny_copy)
    ) and "    2 of 9 clips were left out" in describe_run(open_run(tiny_copy))


def test_nothing_is_noted_in_a_folder_that_is_no_run(tmp_path):
    with pytest.warns(UserWarning), noted(tmp_path):
        warnings.warn("something")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_held_by_one(tmp_path):
    with (
        held(tmp_path),
        pytest.raises(
            UserError,
            match=(
                rf"{tmp_path} is being written by process \d+ on .*: wait for its end, or choose"
                r" another --out"
            ),
        ),
        held(tmp_path),
    ):
        pass
    with held(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert not any(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_locks_nobody_out(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} on"), held(tmp_path):
        pass
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with held(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_a_folder_made_for_nothing_is_removed_again(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "runs" / "mine"):
        1 / 0
    assert not any(tmp_path.iterdir())
    with held(tmp_path / "runs" / "mine"):
        (tmp_path / "runs" / "other").mkdir()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_a_second_training_of_a_run_is_refused_and_changes_nothing(tiny_recipe, tiny_copy):
    (tiny_copy / "model.safetensors").unlink()
    with held(tiny_copy):
        before = {path: path.read_bytes() for path in tiny_copy.rglob("*") if path.is_file()}
        for verb in (train, fit):
            with pytest.raises(UserError, match="is being written by process"):
                verb(tiny_recipe, tiny_copy)
        assert {
            path: path.read_bytes() for path in tiny_copy.rglob("*") if path.is_file()
        } == before
    train(tiny_recipe, tiny_copy)
    assert (tiny_copy / "model.safetensors").exists() and not (tiny_copy / LOCK).exists()
