"""What reaches a terminal: characters of control as their escapes, from wherever the words come;
and standard streams that are closed.
"""

import os
import pty
import subprocess
import sys

import pytest

from mmtok.cli import main
from mmtok.data.tokens import write_tokens
from mmtok.io import terminal
from mmtok.io.progress import Progress
from mmtok.io.terminal import lines_text, printable
from mmtok.tokenizers import default

RED = "\x1b[31mred"
TITLE = "\x1b]0;title\x07"
BACK = "good\rbad\b\x9b2J"
MMTOK = [sys.executable, "-m", "mmtok"]


def raw(text):
    """The characters of a text that a terminal obeys."""
    return {c for c in text if c != "\n" and (ord(c) < 32 or 126 < ord(c) < 160)}


def test_controls_are_shown_and_letters_stay():
    assert (
        printable(RED + TITLE) == r"\x1b[31mred\x1b]0;title\x07"
        and printable(BACK) == r"good\rbad\x08\x9b2J"
    )
    assert printable("a\nb\tc") == r"a\nb\tc" and printable("a\nb\tc", keep="\n") == "a\nb\\tc"
    assert (
        printable("\u202efdp.exe\u2066") == r"\u202efdp.exe\u2066"
        and printable("\udcff") == r"\udcff"
    )
    for text in ("été 語　語", "a\xa0b", "👩\u200d🚀", "می\u200cخواهم", "", "e\u0301"):
        assert printable(text) == text
    assert lines_text(["a\nmmtok: b", "c"]) == "a\\nmmtok: b\nc"


def test_words_of_files_reach_no_terminal_raw(tmp_path, capsys):
    """A token file with hostile field names is shown and decoded, and a file of a hostile name is
    refused: all as escapes.
    """
    text = default("text")
    write_tokens(tmp_path / "t.parquet", {RED + "\nmmtok: all is well": text.signature}, [])
    (tmp_path / (RED + ".txt")).write_bytes(b"\xff")
    for words, code in (
        (["show", "t.parquet"], 0),
        (["detokenize", "t.parquet", "-o", "out"], 0),
        (["show", RED], 2),
        (["tokenize", "text", RED + ".txt", "-o", "x.parquet"], 2),
        ([TITLE], 2),
        (["show", "--" + BACK, "1"], 2),
    ):
        paths = [
            str(tmp_path / word) if word.endswith(("parquet", "out", "txt")) else word
            for word in words
        ]
        assert main(paths) == code
        seen = capsys.readouterr()
        assert not raw(seen.out + seen.err) and "\nmmtok: all is well" not in seen.out, words


def test_progress_shows_labels_as_they_are_written(capsys):
    with Progress(f"map [/bold] {RED}", 2, "rows", every_s=0) as progress:
        progress.advance(note=BACK)
    seen = capsys.readouterr().err
    assert not raw(seen) and r"[/bold] \x1b[31mred" in seen and r"good\rbad" in seen


BAR = (
    "from mmtok.io.progress import Progress\nwith Progress('[/bold] [red]x', 2) as p: p.advance(2,"
    " note='[/]')"
)


def test_a_bar_takes_no_markup_from_labels():
    done, seen = on_terminal([sys.executable, "-c", BAR])
    assert done == 0 and b"[/bold] [red]x" in seen and b"[/]" in seen


def on_terminal(command):
    """Exit code of a command, and what it writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env=os.environ | {"COLUMNS": "200"}
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
    os.close(ours)
    return process.returncode, seen


# ---- samples on standard output

HOSTILE = "a\tb\r\n\x1b[31mé"


def test_a_text_is_exact_in_a_pipe_and_shown_on_a_terminal():
    code = f"from mmtok.io import terminal; terminal.%s; terminal.write_raw({HOSTILE!r}.encode())"
    piped = subprocess.run([sys.executable, "-c", code % "open_streams()"], stdout=subprocess.PIPE)
    assert piped.stdout == HOSTILE.encode()
    _, seen = on_terminal(
        [
            sys.executable,
            "-c",
            f"from mmtok.io import terminal; terminal.print_answer_piece({HOSTILE!r})",
        ]
    )
    assert b"\x1b" not in seen and rb"\x1b[31m" in seen and rb"b\r" in seen and "é".encode() in seen


def test_sound_is_refused_on_a_terminal_and_all_where_there_is_no_output(
    tiny_run, monkeypatch, said
):
    for to, prompt in (("speech", "low"), ("text", None)):
        words = [
            "sample",
            tiny_run,
            "--to",
            to,
            "--out",
            "-",
            *(["--prompt", prompt] if prompt else []),
        ]
        if to == "speech":
            with monkeypatch.context() as patch:
                patch.setattr(sys.stdout, "isatty", lambda: True)
                assert "nothing for a terminal" in said(words)
            monkeypatch.setattr(terminal, "closed", {"stdout"})
            assert "standard output, which is closed" in said(words)


# ---- closed standard streams

CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-", "all": "<&- >&- 2>&-"}


@pytest.mark.parametrize("which", CLOSED)
def test_verbs_without_standard_streams(which, tmp_path):
    """They do what they are to do, and no file that they open takes the number of a stream, and
    with it what is printed.
    """
    (tmp_path / "a.txt").write_text("seven")
    quoted = " ".join(f"'{word}'" for word in MMTOK)

    def shell(words, how):
        return subprocess.run(
            ["bash", "-c", f"{quoted} {words} {how}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    done = shell("tokenize text a.txt -o t.parquet", CLOSED[which])
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert ("standard output is closed" in done.stderr) == (which == "stdout")
    assert (
        (tmp_path / "t.parquet").read_bytes()[:4]
        == (tmp_path / "t.parquet").read_bytes()[-4:]
        == b"PAR1"
    )
    if which in ("stdout", "all"):
        refused = shell("show nothing", CLOSED[which])
        assert refused.returncode == 2 and refused.stderr.count("\n") == (which == "stdout")


def test_a_full_disk_under_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MMTOK, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (
        done.returncode == 2 and done.stderr == "mmtok: standard output: No space left on device\n"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_standard_error_changes_nothing_else(tmp_path):
    """Not the work, and not what the exit status says."""
    (tmp_path / "a.txt").write_text("seven")
    for words, code in (
        (["tokenize", "text", "a.txt", "-o", "t.parquet"], 0),
        (["show", "nothing"], 2),
    ):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*MMTOK, *words],
                cwd=tmp_path,
                stderr=full,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        assert done.returncode == code
    assert (tmp_path / "t.parquet").is_file()
