"""Files become token files and come back: names, leftovers of killed calls."""

import subprocess
import sys

from mmtok.cli import main

KILLED = "import os, signal, sys; from mmtok.cli import main; os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL); main(sys.argv[1:])"


def killed(*words):
    """A command line that is killed at the moment when its first file would get its name."""
    assert subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], stderr=subprocess.DEVNULL).returncode == -9


def test_what_a_killed_call_left_is_swept_by_the_next(tmp_path):
    (tmp_path / "a.txt").write_text("seven")
    (tmp_path / ".notes.999999999.tmp").write_text("of another program")
    (tmp_path / ".a.txt.999999999.tmp").write_text("of another file")
    words = ["tokenize", "text", tmp_path / "a.txt", "-o", tmp_path / "t.parquet"]
    killed(*words)
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 4 and "t.parquet" not in names
    assert main([str(word) for word in words]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "t.parquet", ".notes.999999999.tmp", ".a.txt.999999999.tmp"}
