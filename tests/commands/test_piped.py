"""Pipes in the place of files: what goes in comes out, as through files; refusals."""

import io
import os
import sys
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmtok.cli import main
from mmtok.commands.piped import spooled
from mmtok.data.tokens import read_tokens
from mmtok.errors import UserError
from mmtok.sources.images import write_image
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.sound_files import write_sound


@pytest.fixture
def pipe_in(monkeypatch):
    """pipe_in(bytes): the process has them on its standard input."""

    def give(content: bytes) -> None:
        stdin = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
        monkeypatch.setattr(sys, "stdin", stdin)

    return give


def picture(path, level: int) -> bytes:
    write_image(path, np.full((4, 4), level, np.uint8))
    return path.read_bytes()


def test_tokens_are_those_of_the_file(pipe_in, tmp_path):
    """Of standard input and of a named pipe, for signals whose files are told by their content."""
    sound = tmp_path / "a.wav"
    write_sound(sound, np.sin(np.arange(2000) / 9).astype(np.float32) / 2)
    wanted = tmp_path / "file.parquet"
    assert main(["tokenize", "speech", str(sound), "-o", str(wanted)]) == 0
    pipe_in(sound.read_bytes())
    assert main(["tokenize", "speech", "-", "-o", str(tmp_path / "stdin.parquet")]) == 0
    named = tmp_path / "b.wav"
    os.mkfifo(named)
    writer = Thread(target=named.write_bytes, args=(sound.read_bytes(),))
    writer.start()
    assert main(["tokenize", "speech", str(named), "-o", str(tmp_path / "named.parquet")]) == 0
    writer.join()
    for place, name in (("stdin", "stdin"), ("named", "b.wav")):
        found = read_tokens(tmp_path / f"{place}.parquet")
        assert found.files("speech") == [name]
        assert (
            found.segment("speech", 0).codes == read_tokens(wanted).segment("speech", 0).codes
        ).all()


def test_one_file_goes_to_standard_output(pipe_in, tmp_path, capsysbinary):
    content = picture(tmp_path / "a.png", 7)
    pipe_in(content)
    tokens = tmp_path / "t.parquet"
    assert main(["tokenize", "image", "-", "-o", str(tokens)]) == 0
    capsysbinary.readouterr()
    assert main(["detokenize", str(tokens), "-o", "-"]) == 0
    written = capsysbinary.readouterr().out
    assert (np.asarray(Image.open(io.BytesIO(written))) == 7).all()


def test_several_files_are_refused(tmp_path, capsys):
    for level in (1, 2):
        picture(tmp_path / f"{level}.png", level)
    tokens = tmp_path / "t.parquet"
    assert main(["tokenize", "image", str(tmp_path), "-o", str(tokens)]) == 0
    capsys.readouterr()
    assert main(["detokenize", str(tokens), "-o", "-"]) == 2
    captured = capsys.readouterr()
    assert not captured.out and "stands for 2 files" in captured.err


def test_files_stay_and_copies_go(pipe_in, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    pipe_in(b"b")
    with spooled([path, *map(type(path), "-")]) as there:
        assert there[0] == path and there[1].read_bytes() == b"b"
    assert path.exists() and not there[1].exists()


def test_terminals_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(UserError, match="is a terminal"), spooled([type(tmp_path)("-")]):
        pass
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["detokenize", "t.parquet", "-o", "-"]) == 2
    assert "nothing for a terminal" in capsys.readouterr().err


def test_files_that_are_told_by_their_names_come_from_a_pipe(pipe_in, tmp_path):
    jets = [np.float32([[30, 0.1, 0.2], [20, -0.1, 0.1]])] * 3
    write_jets(tmp_path / "j.npz", jets, ("pt_gev", "eta_rel", "phi_rel"))
    pipe_in((tmp_path / "j.npz").read_bytes())
    assert main(["tokenize", "jets", "-", "-o", str(tmp_path / "t.parquet")]) == 0
    assert len(read_tokens(tmp_path / "t.parquet")) == 3


def test_messages_call_a_pipe_what_it_is(pipe_in, tmp_path, capsys):
    pipe_in(b"")
    assert main(["tokenize", "text", "-", "-o", str(tmp_path / "t.parquet")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "mmtok: standard input: the file is empty"
