"""The files of a run folder: one process at a time writes them, and whoever is killed leaves the
door open.
"""

import warnings

import pytest

from mmtok.commands.show import describe_run
from mmtok.errors import UserError
from mmtok.io.locks import LOCK, folder_lock
from mmtok.run.build import fit, train
from mmtok.run.folder import read_notes, record_notes
from mmtok.run.run import open_run


def test_what_is_said_of_the_data_is_kept_once_and_shown(tiny_copy):
    for _ in range(2):
        with pytest.warns(UserWarning) as said, record_notes(tiny_copy):
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
    with pytest.warns(UserWarning), record_notes(tmp_path):
        warnings.warn("something")
    assert not list(tmp_path.iterdir())


def test_a_second_training_of_a_run_is_refused_and_changes_nothing(tiny_recipe, tiny_copy):
    (tiny_copy / "model.safetensors").unlink()
    with folder_lock(tiny_copy):
        before = {path: path.read_bytes() for path in tiny_copy.rglob("*") if path.is_file()}
        for verb in (train, fit):
            with pytest.raises(UserError, match="is being written by process"):
                verb(tiny_recipe, tiny_copy)
        assert {
            path: path.read_bytes() for path in tiny_copy.rglob("*") if path.is_file()
        } == before
    train(tiny_recipe, tiny_copy)
    assert (tiny_copy / "model.safetensors").exists() and not (tiny_copy / LOCK).exists()
