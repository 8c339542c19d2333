"""Bad input as a new user meets it at the command line: one clear line, exit code 2, nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmtok import cli, folder as folder_room, run as run_room
from mmtok.cli import main
from mmtok.tokenizers.text import SentencePieceConfig


def said(capsys, words):
    """Run `words`, which must be refused in one line, the last on stderr; that line."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2, words
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("mmtok: ") and not line.startswith("mmtok: note: ")]
    assert len(errors) == 1 and errors[0] == lines[-1], lines
    return errors[0]


def notes(capsys, words):
    """Run `words`, which must succeed; what was noted."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmtok: note: ")]


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


# ---- files

NOISE = np.random.default_rng(0).integers(0, 256, 3000, np.uint8).tobytes()
SINE = (0.3 * np.sin(np.arange(8000) / 9)).astype(np.float32)
COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def flat(path, jets):
    jets = [np.asarray(jet, np.float32).reshape(-1, 3) for jet in jets]
    np.savez(path, values=np.concatenate([np.zeros((0, 3), np.float32), *jets]), offsets=np.cumsum([0, *map(len, jets)]))


def cut(path, make, *args, **settings):
    make(path, *args, **settings)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


sound = lambda path, samples, rate_hz=16_000, subtype=None: soundfile.write(path, samples, rate_hz, subtype=subtype)
JET = [(9.0, 0.1, 0.1), (5.0, 0.0, -0.1), (2.0, 0.2, 0.0)]
with_value = lambda value, at: [JET, [tuple(value if (r, c) == at else x for c, x in enumerate(p)) for r, p in enumerate(JET)]]
BAD = {
    "text": {
        "empty.txt": (lambda p: p.write_bytes(b""), "the file is empty"),
        "latin1.txt": (lambda p: p.write_bytes("café".encode("latin1")), "not UTF-8 text: byte 0xE9 at offset 3"),
        "utf16.txt": (lambda p: p.write_bytes("hi".encode("utf-16")), "not UTF-8"),
        "folder.txt": (lambda p: p.mkdir(), "Is a directory"),
        "none.txt": (lambda p: None, "no such file"),
    },
    "speech": {
        "empty.wav": (lambda p: p.write_bytes(b""), "the file is empty"),
        "noise.wav": (lambda p: p.write_bytes(NOISE), "not a sound file"),
        "zero.wav": (lambda p: sound(p, SINE[:0]), "holds no samples"),
        "nan.wav": (lambda p: sound(p, np.r_[SINE, np.nan], subtype="FLOAT"), "NaN or infinite"),
        "inf.wav": (lambda p: sound(p, np.r_[SINE, np.inf], subtype="FLOAT"), "NaN or infinite"),
        "cut.wav": (lambda p: cut(p, sound, SINE), "truncated"),
        "cut.flac": (lambda p: cut(p, sound, SINE), "libsndfile"),
        "words.wav": (lambda p: p.write_text("hello"), "not a sound file"),
        "folder.wav": (lambda p: p.mkdir(), "is a folder"),
        "none.wav": (lambda p: None, "no such file"),
    },
    "image": {
        "empty.png": (lambda p: p.write_bytes(b""), "the file is empty"),
        "noise.png": (lambda p: p.write_bytes(NOISE), "not an image"),
        "cut.png": (lambda p: cut(p, lambda q: Image.fromarray(COLOURS).save(q)), "truncated"),
        "no-pixels.gif": (lambda p: p.write_bytes(b"GIF89a" + bytes(6) + b";"), "no-pixels.gif"),
        "float.tif": (lambda p: Image.fromarray(COLOURS[..., 0] / np.float32(9)).save(p), "float pixels have no stated range"),
        "sound.png": (lambda p: sound(p.with_suffix(".wav"), SINE) or p.with_suffix(".wav").rename(p), "not an image"),
        "folder.png": (lambda p: p.mkdir(), "folder.png"),
        "none.png": (lambda p: None, "no such file"),
    },
    "jets": {
        "empty.npz": (lambda p: p.write_bytes(b""), "the file is empty"),
        "noise.npz": (lambda p: p.write_bytes(NOISE), "not a numpy file"),
        "noise.parquet": (lambda p: p.write_bytes(NOISE), "cannot be read as jets"),
        "cut.npz": (lambda p: cut(p, flat, [JET]), "cannot be read as jets"),
        "nan.npz": (lambda p: flat(p, with_value(np.nan, (1, 2))), "jet 1 has a NaN"),
        "infinite.npz": (lambda p: flat(p, with_value(np.inf, (1, 0))), "jet 1 has a NaN or infinite"),
        "negative.npz": (lambda p: flat(p, with_value(-1.0, (2, 0))), "jet 1 has a negative pt"),
        "empty-jet.npz": (lambda p: flat(p, [JET, []]), "jet 1 has no constituents"),
        "no-jets.npz": (lambda p: flat(p, []), "holds no jets"),
        "objects.npy": (lambda p: np.save(p, np.array([{}])), "not a numpy file of numbers"),
        "pairs.npy": (lambda p: np.save(p, np.ones((3, 2))), "3 features"),
        "jets.root": (lambda p: p.write_bytes(NOISE), "known are .npz"),
        "none.npz": (lambda p: None, "no such file"),
    },
}  # fmt: skip


@pytest.mark.parametrize("modality, name", [(modality, name) for modality, kinds in BAD.items() for name in kinds])
def test_files_that_are_no_signal(capsys, tmp_path, modality, name):
    make, reason = BAD[modality][name]
    make(tmp_path / name)
    before = everything(tmp_path)
    line = said(capsys, ["tokenize", modality, tmp_path / name, "-o", tmp_path / "out.parquet"])
    assert str(tmp_path / name) in line and reason in line and "allow_pickle" not in line and len(line) < 300
    assert everything(tmp_path) == before


def test_what_is_converted_is_said_once_a_file(capsys, tmp_path):
    sound(tmp_path / "stereo.wav", np.stack([SINE, SINE], 1), 44_100)
    line, = notes(capsys, ["tokenize", "speech", tmp_path / "stereo.wav", "-o", tmp_path / "s.parquet"])
    assert "2 channels averaged" in line and "44100 Hz resampled to 16000 Hz" in line
    picture = Image.fromarray(COLOURS)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    picture.convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([COLOURS, COLOURS[..., :1]])).save(tmp_path / "alpha.png")
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    expected = {"cmyk.jpg": "CMYK", "deep.png": "16 bits", "palette.png": "palette", "alpha.png": "transparency",
                "moving.gif": "first of 2 frames"}
    lines = notes(capsys, ["tokenize", "image", *(tmp_path / name for name in expected), "-o", tmp_path / "i.parquet"])
    assert len(lines) == 5 and all(name in line and what in line for line, (name, what) in zip(lines, expected.items()))
    flat(tmp_path / "unsorted.npz", [JET[::-1], JET])
    line, = notes(capsys, ["tokenize", "jets", tmp_path / "unsorted.npz", "-o", tmp_path / "j.parquet"])
    assert "sorted 1 jets by falling pt" in line


def test_one_bad_file_among_good_ones_leaves_no_token_file(capsys, tmp_path):
    for i in range(70):
        (tmp_path / f"{i:02d}.txt").write_text("good")
    (tmp_path / "69.txt").write_bytes(b"\xff")
    assert "69.txt" in said(capsys, ["tokenize", "text", *sorted(tmp_path.glob("*.txt")), "-o", tmp_path / "out.parquet"])
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".txt"]


def test_tokens_of_another_tokenizer_name_both(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("seven")
    prints = []
    for n_pieces in (290, 300):
        tokenizer = SentencePieceConfig(n_pieces=n_pieces).fit(["seven eight nine"] * 5)
        tokenizer.save(tmp_path / str(n_pieces))
        prints.append(tokenizer.signature.fingerprint)
    assert main(["tokenize", "text", str(tmp_path / "a.txt"), "-o", str(tmp_path / "t.parquet"), "--tokenizer", str(tmp_path / "290")]) == 0
    line = said(capsys, ["detokenize", tmp_path / "t.parquet", "-o", tmp_path / "out", "--tokenizer", tmp_path / "300"])
    assert all(name in line for name in prints) and "use the tokenizer it was made with" in line and not (tmp_path / "out").exists()


# ---- sources of a recipe

@pytest.mark.parametrize("what, part", [
    ("images", "no such folder"), ("sounds", "no such folder"), ("jets.npz", "no such file"), ("labels.txt", "captions"),
])
def test_missing_data_of_a_recipe(capsys, tiny_data, tiny_words, tmp_path, what, part):
    words = [word.replace(str(tiny_data / what), str(tmp_path / "none" / what)) for word in tiny_words]
    line = said(capsys, ["train", *words, "--out", tmp_path / "run"])
    assert str(tmp_path / "none" / what) in line and part in line and not (tmp_path / "run" / "tokens").exists()


def test_a_broken_picture_in_a_folder_is_named_and_the_run_goes_on_when_it_is_mended(capsys, tiny_data, tiny_words, tmp_path):
    home = shutil.copytree(tiny_data, tmp_path / "data")
    words = [word.replace(str(tiny_data), str(home)) for word in tiny_words]
    path = home / "images" / "dark" / "0.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    assert "0.png: not an image" in said(capsys, ["train", *words, "--out", tmp_path / "run"])
    assert not list((tmp_path / "run").rglob("*tmp*"))
    path.write_bytes(whole)
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0


def test_bad_transcripts_of_a_folder_of_sounds(capsys, tmp_path):
    (tmp_path / "clips").mkdir()
    sound(tmp_path / "clips" / "a.wav", SINE)
    bad = [("a.txt", b"caf\xe9", "a.txt: not UTF-8"), ("transcripts.csv", b"file,text\na.wav\n", "transcripts.csv: line 2")]
    for name, content, part in bad:
        (tmp_path / "clips" / name).write_bytes(content)
        line = said(capsys, ["train", "recipes/speech.py", "--path", tmp_path / "clips", "--out", tmp_path / "run"])
        assert str(tmp_path / "clips") in line and part in line and not (tmp_path / "run").exists()


# ---- runs

def test_wrong_fields_and_verbs(capsys, tiny_words, tmp_path):
    line = said(capsys, ["train", *tiny_words, "--out", tmp_path / "run", "--train.step", "3"])
    assert "no field --train.step; nearest: --train.steps" in line
    assert "did you mean train?" in said(capsys, ["trian", *tiny_words])
    assert "no recipe at" in said(capsys, ["train", "recipes/digit.py"])
    assert not (tmp_path / "run").exists()


def test_runs_that_are_none(capsys, tmp_path):
    for words in (["sample", tmp_path, "--to", "image"], ["score", tmp_path, "x"], ["evaluate", tmp_path], ["report", tmp_path]):
        assert "is not a run folder" in said(capsys, words)


def test_a_changed_recipe_and_a_swapped_tokenizer(capsys, tiny_words, tiny_copy):
    assert "train.steps: 24 -> 30" in said(capsys, ["train", *tiny_words, "--out", tiny_copy, "--train.steps", "30"])
    old = json.loads((tiny_copy / "vocabulary.json").read_text())["fingerprint"]
    shutil.rmtree(tiny_copy / "tokenizers" / "text")
    SentencePieceConfig(n_pieces=300).fit(["dark light"] * 9).save(tiny_copy / "tokenizers" / "text")
    for words in (["sample", tiny_copy, "--prompt", "dark", "--to", "image"], ["evaluate", tiny_copy], ["show", tiny_copy]):
        assert f"was made with vocabulary {old}, but this one is " in said(capsys, words)


def test_a_broken_checkpoint_is_said_and_the_one_before_is_used(capsys, tiny_words, tiny_copy, tiny_run):
    (tiny_copy / "model.safetensors").unlink()
    path = tiny_copy / "checkpoints" / "step-000024" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with warnings.catch_warnings():
        line, = notes(capsys, ["train", *tiny_words, "--out", tiny_copy])
    assert "step-000024 is damaged (optimizer.safetensors is not what was written); using the one before it" in line
    assert (tiny_copy / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()


def test_no_checkpoint_that_can_be_read(capsys, tiny_words, tiny_copy):
    (tiny_copy / "model.safetensors").unlink()
    for path in (tiny_copy / "checkpoints").glob("*/state.json"):
        path.write_text("")
    capsys.readouterr()
    assert main(["train", *tiny_words, "--out", str(tiny_copy)]) == 2
    assert "none of the checkpoints in" in capsys.readouterr().err.splitlines()[-1]


def test_a_broken_model(capsys, tiny_copy):
    path = tiny_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    for words in (["sample", tiny_copy, "--prompt", "dark", "--to", "image"], ["evaluate", tiny_copy], ["show", tiny_copy]):
        assert "model.safetensors cannot be loaded" in said(capsys, words)
    assert not (tiny_copy / "samples").exists()


def test_questions_that_were_never_trained(capsys, tiny_run, tiny_data):
    line = said(capsys, ["sample", tiny_run, "--prompt", "dark", "--to", "text"])
    assert "never trained on" in line and "text -> image" in line
    assert "this run makes text, speech, image, jets" in said(capsys, ["sample", tiny_run, "--to", "video"])
    assert "--seed is -1" in said(capsys, ["sample", tiny_run, "--to", "image", "--seed", "-1"])
    assert "guidance 2.0 needs" in said(capsys, ["sample", tiny_run, "--prompt", "low", "--to", "speech", "--guidance", "2"])
    assert "no file at none.png" in said(capsys, ["score", tiny_run, "none.png"])
    assert "never trained on nothing -> speech" in said(capsys, ["score", tiny_run, tiny_data / "sounds" / "00.wav"])


# ---- folders that cannot be written, disks that are full

def test_folders_that_cannot_be_written(capsys, tiny_words, tiny_run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        for words in (["train", *tiny_words, "--out", out], ["sample", tiny_run, "--prompt", "dark", "--to", "image", "-o", out]):
            assert str(tmp_path / "file") in said(capsys, words)
    if os.path.isdir("/proc/self"):
        assert "/proc/run" in said(capsys, ["train", *tiny_words, "--out", "/proc/run"])
    assert everything(tmp_path) == {tmp_path / "file": b"mine"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_names_the_file_and_training_goes_on_when_there_is_room(capsys, tiny_words, tiny_copy, tiny_run, monkeypatch):
    for name in ("model.safetensors", "log.jsonl"):
        (tiny_copy / name).unlink()
    (tiny_copy / "log.jsonl").symlink_to("/dev/full")
    shutil.rmtree(tiny_copy / "checkpoints")
    monkeypatch.setattr(run_room, "read_log", lambda path: [])
    with monkeypatch.context() as patch:
        patch.setattr(folder_room.os, "replace", lambda a, b: None)  # so that the log stays the full one
        line = said(capsys, ["train", *tiny_words, "--out", tiny_copy])
    assert "No space left on device" in line and "log.jsonl" in line
    (tiny_copy / "log.jsonl").unlink()
    assert main(["train", *tiny_words, "--out", str(tiny_copy)]) == 0
    assert (tiny_copy / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()


def test_an_os_error_without_a_name_is_said_in_plain_words(capsys, monkeypatch):
    def full(path: str):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(cli.VERBS, "show", full)
    assert said(capsys, ["show", "x"]) == "mmtok: No space left on device"


# ---- as processes: Ctrl-C, and a second run

def test_ctrl_c_in_training_leaves_a_checkpoint_and_130_and_the_same_command_goes_on(tiny_words, tmp_path):
    command = [sys.executable, "-m", "mmtok", "train", *tiny_words, "--out", str(tmp_path / "run"), "--train.steps", "40",
               "--train.checkpoint_every", "1000", "--train.log_every", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step 4:"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read().splitlines()
    assert process.wait() == 130 and "Traceback" not in "".join(rest)
    assert rest[-1].startswith("mmtok: stopped at step ") and rest[-1].endswith("; the same command goes on from there")
    step = int(rest[-1].split()[4].rstrip(";"))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    assert not list((tmp_path / "run").rglob("*tmp*")) and not (tmp_path / "run" / "model.safetensors").exists()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and f"resuming at step {step}" in again.stderr and (tmp_path / "run" / "model.safetensors").exists()


def test_a_reader_that_stops_reading_stops_training_which_can_be_resumed(tiny_words, tiny_run, tmp_path):
    command = [sys.executable, "-m", "mmtok", "train", *tiny_words, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    process.stderr.readline()
    process.stderr.close()
    assert process.wait() == 141 and not (tmp_path / "run" / "model.safetensors").exists()
    assert main(command[3:]) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()


def test_a_second_call_says_what_stands(capsys, tiny_words, tiny_copy):
    before = everything(tiny_copy)
    assert main(["train", *tiny_words, "--out", str(tiny_copy)]) == 0
    assert "is trained: nothing to do" in capsys.readouterr().err and everything(tiny_copy) == before
