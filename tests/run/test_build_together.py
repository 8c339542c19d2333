"""Several processes make the token files of one, each its share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tiny_words, tmp_path_factory):
    home = tmp_path_factory.mktemp("together")
    path = os.pathsep.join([str(HERE.parent), *sys.path])
    subprocess.run(
        [sys.executable, str(HERE / "tokenised_together.py"), str(home), *map(str, tiny_words)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return home


def lines(home, name, rank):
    return (home / f"{name}.{rank}.err").read_text().splitlines()


def test_two_processes_make_the_token_files_of_one(home, contents):
    assert json.loads((home / "codes.json").read_text())["two"] == [0, 0]
    one = contents(home / "one" / "tokens")
    assert len([name for name in one if "0-ImageFolder/part-" in name]) == 7
    assert one == contents(home / "two" / "tokens")


def test_what_was_left_out_is_said_once_by_the_first(home):
    def notes(name, rank):
        return [line for line in lines(home, name, rank) if line.startswith("mmtok: note")]

    assert notes("one", 0) == notes("two", 0)
    assert not any("note" in line or "tokenise" in line for line in lines(home, "two", 1))


def test_an_error_of_any_process_ends_all_with_one_line_and_what_is_made_stands(home, contents):
    codes = json.loads((home / "codes.json").read_text())
    assert codes["refused"] == [2, 2] and codes["resumed"] == [0, 0]
    said = [line for rank in (0, 1) for line in lines(home, "refused", rank)]
    assert [line for line in said if "refused" in line] == ["mmtok: a signal: refused"]
    assert contents(home / "refused" / "tokens") == contents(home / "one" / "tokens")
