"""A file appears whole or not at all: with every writer of a user's file, where there is no room
for all of it.
"""

import errno
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mmtok.commands.signal_files import write_signal
from mmtok.core.segment import Signature
from mmtok.errors import UserError
from mmtok.io.files import (
    atomic_write,
    check_folder_fits,
    is_temporary,
    remove_leftovers,
    write_bytes,
    write_tensors,
    write_text,
)
from mmtok.model.llama import to_llama
from mmtok.sources.signal_files import ARRAYS, SIGNAL_FILES
from mmtok.tokenizers.autoencoders import ConvPatches
from mmtok.tokenizers.autotokenizer import write_autotokenizer
from mmtok.tokenizers.base import write_config
from mmtok.tokenizers.images import PixelsConfig, VQPatches, VQPatchesConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.pretrained import PretrainedText, PretrainedTextConfig
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig, SentencePieceConfig

ROOM = 8  # bytes


@contextmanager
def no_room():
    """No file of this process grows past a few bytes: the write that would is refused by the
    system, half-way.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def codebook():
    config = VQPatchesConfig(autoencoder=ConvPatches(8))
    return VQPatches(config, config.network())


def pretrained_pieces():
    import tokenizers

    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    tok.train_from_iterator(["seven eight"], trainer)
    return PretrainedText(PretrainedTextConfig("start"), tok.to_str())


# what is to be written -> the file that finds no room, and who writes it, made while there still is
# some
WRITERS = {
    "bytes": ("a.bin", lambda toy_lm: lambda home: write_bytes(home / "a.bin", bytes(99))),
    "text": (
        "a.txt",
        lambda toy_lm: lambda home: write_text(home / "a.txt", "nineteen letters of it"),
    ),
    "tensors": (
        "a.safetensors",
        lambda toy_lm: lambda home: write_tensors(home / "a.safetensors", {"a": torch.zeros(3)}),
    ),
    "llama": (
        "model.safetensors",
        lambda toy_lm: partial(to_llama, toy_lm([Signature("text", (9,))])),
    ),
    "autotokenizer": (
        "tokenizer.json",
        lambda toy_lm: (
            lambda home: write_autotokenizer(BytesConfig().build(), home, ["<a>"], ["<a>"], {})
        ),
    ),
    "settings": ("tokenizer.json", lambda toy_lm: lambda home: write_config(home, "Bytes", {})),
    "codebook": ("weights.safetensors", lambda toy_lm: codebook().save),
    "pieces": (
        "pieces.model",
        lambda toy_lm: SentencePieceConfig(n_pieces=290).fit(["seven eight nine"] * 5).save,
    ),
    "pretrained pieces": ("pieces.json", lambda toy_lm: pretrained_pieces().save),
    "signal: text": (
        "a.txt",
        lambda toy_lm: (
            lambda home: write_signal(
                home / "a", SIGNAL_FILES["text"], "nineteen letters of it", BytesConfig()
            )
        ),
    ),
    "signal: speech": (
        "a.wav",
        lambda toy_lm: (
            lambda home: write_signal(
                home / "a", SIGNAL_FILES["speech"], np.zeros(9, np.float32), DMelConfig()
            )
        ),
    ),
    "signal: jets": (
        "a.npz",
        lambda toy_lm: (
            lambda home: write_signal(
                home / "a", SIGNAL_FILES["jets"], [np.ones((2, 3), np.float32)], JetGridConfig()
            )
        ),
    ),
    "signal: image": (
        "a.png",
        lambda toy_lm: (
            lambda home: write_signal(
                home / "a", SIGNAL_FILES["image"], np.zeros((9, 9), np.uint8), PixelsConfig()
            )
        ),
    ),
    "signal: array": (
        "a.npy",
        lambda toy_lm: lambda home: write_signal(home / "a", ARRAYS, np.zeros(9), BytesConfig()),
    ),
}


@pytest.mark.parametrize("what", WRITERS)
def test_without_room_nothing_appears_the_old_one_stays_and_the_file_is_named(
    toy_lm, tmp_path, contents, what
):
    name, maker = WRITERS[what]
    write = maker(toy_lm)
    home = tmp_path / "home"
    home.mkdir()
    for _ in range(2):
        before = contents(home)
        with pytest.raises((OSError, UserError)) as error, no_room():
            write(home)
        said = error.value.filename if isinstance(error.value, OSError) else str(error.value)
        assert (
            str(home / name) in said
            and "too large" in str(error.value)
            and "\n" not in str(error.value)
        )
        assert contents(home) == before
        write(home)
        assert len(contents(home)[name]) > ROOM and not any(map(is_temporary, home.iterdir()))


def test_any_end_of_the_writer_leaves_the_old_file(tmp_path, contents):
    write_text(tmp_path / "a", "old")
    for kind in (KeyboardInterrupt, ZeroDivisionError, SystemExit):
        with pytest.raises(kind), atomic_write(tmp_path / "a") as temporary:
            temporary.write_text("new")
            raise kind
    assert contents(tmp_path) == {"a": b"old"}


KILLED = """
import os, pathlib, signal, sys
from mmtok.io.files import atomic_write
with atomic_write(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    print(temporary.name, flush=True)
    input()
"""


def test_who_may_read_the_folder_may_read_its_tensors(tmp_path):
    tmp_path.chmod(0o755)
    write_tensors(tmp_path / "weights.safetensors", {"x": torch.zeros(3)})
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o644


WRITES = {
    "sound": (
        "from mmtok.sources.sound_files import write_sound;"
        " write_sound(path / 'a.flac', numpy.zeros(9))"
    ),
    "spoken digits": (
        "from mmtok.sources.speech import SpokenDigits; SpokenDigits()._make([], path / 'a.npz')"
    ),
    "jets": (
        "from mmtok.sources.jet_formats import write_jets;"
        " write_jets(path / 'a.parquet', [numpy.ones((2, 3))])"
    ),
    "made jets": (
        "from mmtok.sources.jet_formats import save_flat;"
        " save_flat(path / 'a.npz', [numpy.ones((2, 3))], numpy.array(['a']))"
    ),
    "picture": (
        "from mmtok.sources.images import write_image; write_image(path / 'a.png', numpy.zeros((2,"
        " 2), numpy.uint8))"
    ),
}


@pytest.mark.parametrize("what", WRITES)
def test_what_writers_of_data_leave_when_they_are_killed_is_swept_away(tmp_path, what):
    """Killed at the moment when the file would get its name."""
    code = (
        "import os, pathlib, signal, sys, numpy; path = pathlib.Path(sys.argv[1]); os.replace ="
        " lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    )
    if what == "spoken digits":  # of no clips, by no engine
        code += (
            "; import mmtok.sources.espeak as e; e.Espeak = lambda: None; numpy.concatenate ="
            " lambda x: numpy.zeros(0)"
        )
    killed = subprocess.run([sys.executable, "-c", f"{code}\n{WRITES[what]}", tmp_path])
    assert killed.returncode == -9 and len(list(tmp_path.iterdir())) == 1
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_swept_away_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    piped = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(how):
        return subprocess.Popen([sys.executable, "-c", KILLED, path, how], **piped)

    killed = start("kill")
    writing = start("wait")
    live = writing.stdout.readline().strip()
    assert killed.wait() == -9 and len(list(path.parent.iterdir())) == 2
    others = [
        ".hidden",
        ".a.tmp",
        ".12.tmp",
        "a.12.tmp",
        ".a.txt.x.tmp",
        ".a.txt.999999999.tmp.old",
    ]
    for name in others:
        (path.parent / name).write_text("mine")
    (path.parent / ".a.txt.99999999999999999999.tmp").write_text("of no process")
    (tmp_path / f".b.txt.{os.getpid()}.tmp").write_text("of a process that had this one's number")
    remove_leftovers(tmp_path)
    assert {p.name for p in path.parent.iterdir()} == {live, *others} and [
        p.name for p in tmp_path.iterdir()
    ] == ["deep"]
    writing.communicate("\n")
    assert path.read_text() == "half" and {p.name for p in path.parent.iterdir()} == {
        path.name,
        *others,
    }


def test_a_folder_that_cannot_be_written_is_named_without_the_temporary_name(tmp_path, monkeypatch):
    """On a read-only file system removing the temporary file fails too, although there is none."""

    def refused(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_text", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(OSError) as error:
        write_text(tmp_path / "report.html", "x")
    assert error.value.filename == str(tmp_path / "report.html")


def test_a_file_in_the_place_of_a_folder_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("stays")
    for folder in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(UserError, match="file is a file, and no folder can be made there"):
            check_folder_fits(folder)
    check_folder_fits(tmp_path)
    check_folder_fits(tmp_path / "new" / "within")
    assert (tmp_path / "file").read_text() == "stays"
