"""One process at a time writes a folder; a killed one locks nobody out."""

import subprocess
import sys

import pytest

from mmtok.errors import UserError
from mmtok.io.locks import LOCK, folder_lock

HOLD = (
    "import sys, time; from pathlib import Path; from mmtok.io.locks import folder_lock\nwith"
    " folder_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def test_a_folder_is_held_by_one(tmp_path):
    with (
        folder_lock(tmp_path),
        pytest.raises(
            UserError,
            match=(
                rf"{tmp_path} is being written by process \d+ on .*: wait for its end, or choose"
                r" another --out"
            ),
        ),
        folder_lock(tmp_path),
    ):
        pass
    with folder_lock(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert not any(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_locks_nobody_out(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} on"), folder_lock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with folder_lock(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_a_folder_made_for_nothing_is_removed_again(tmp_path):
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path / "runs" / "mine"):
        raise ZeroDivisionError
    assert not any(tmp_path.iterdir())
    with folder_lock(tmp_path / "runs" / "mine"):
        (tmp_path / "runs" / "other").mkdir()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]
