"""Recipes and runs that cannot be, as a new user meets it at the command line: one clear line, exit
code 2, nothing half-written.
"""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmtok import cli
from mmtok.cli import main
from mmtok.io import files as files_room
from mmtok.run import training as training_room
from mmtok.tokenizers.images import PixelsConfig
from mmtok.tokenizers.text import SentencePieceConfig

# ---- sources of a recipe


@pytest.mark.parametrize(
    "what, part",
    [
        ("images", "no such folder"),
        ("sounds", "no such folder"),
        ("jets.npz", "no such file"),
        ("labels.txt", "no such file"),
    ],
)
def test_missing_data_of_a_recipe(tiny_data, tiny_words, tmp_path, what, part, said):
    words = [
        word.replace(str(tiny_data / what), str(tmp_path / "none" / what)) for word in tiny_words
    ]
    line = said(["train", *words, "--out", tmp_path / "run"])
    assert (
        str(tmp_path / "none" / what) in line
        and part in line
        and not (tmp_path / "run" / "tokens").exists()
    )


def test_a_broken_picture_in_a_folder_is_named_and_the_run_goes_on_when_it_is_mended(
    tiny_data, tiny_words, tmp_path, said
):
    home = shutil.copytree(tiny_data, tmp_path / "data")
    words = [word.replace(str(tiny_data), str(home)) for word in tiny_words]
    path = home / "images" / "dark" / "0.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    assert "0.png: not an image" in said(["train", *words, "--out", tmp_path / "run"])
    assert not list((tmp_path / "run").rglob("*tmp*"))
    path.write_bytes(whole)
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0


def test_bad_transcripts_of_a_folder_of_sounds(tmp_path, said):
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "a.wav", np.zeros(8000, np.float32), 16_000)
    bad = [
        ("a.txt", b"caf\xe9", "a.txt: not UTF-8"),
        ("transcripts.csv", b"file,text\na.wav\n", "transcripts.csv: line 2"),
    ]
    for name, content, part in bad:
        (tmp_path / "clips" / name).write_bytes(content)
        line = said(
            ["train", "recipes/speech.py", "--path", tmp_path / "clips", "--out", tmp_path / "run"]
        )
        assert str(tmp_path / "clips") in line and part in line and not (tmp_path / "run").exists()


# ---- runs


def test_wrong_fields_and_verbs(tiny_words, tmp_path, said):
    line = said(["train", *tiny_words, "--out", tmp_path / "run", "--train.step", "3"])
    assert "no field --train.step; nearest: --train.steps" in line
    assert "did you mean train?" in said(["trian", *tiny_words])
    assert "no recipe at" in said(["train", "recipes/digit.py"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "a\\b", "..", ".", "", "a\nb"])
def test_a_recipes_name_that_is_no_folder_name(tiny_words, tmp_path, monkeypatch, said, name):
    words = [str(Path(word).absolute()) if word.endswith(".py") else word for word in tiny_words]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for verb in ("fit", "train"):
        line = said([verb, *words, f"--name={name}"])
        assert f"name is {name!r}; it must be a plain folder name" in line
    assert [p.name for p in tmp_path.rglob("*")] == ["here"]


def test_runs_that_are_none(tmp_path, said):
    for words in (
        ["sample", tmp_path, "--to", "image"],
        ["score", tmp_path, "x"],
        ["evaluate", tmp_path],
        ["report", tmp_path],
    ):
        assert "is not a run folder" in said(words)


def test_a_changed_recipe_and_a_swapped_tokenizer(tiny_words, tiny_copy, said):
    assert "train.seed: 0 -> 5" in said(
        ["train", *tiny_words, "--out", tiny_copy, "--train.seed", "5"]
    )
    old = json.loads((tiny_copy / "vocabulary.json").read_text())["fingerprint"]
    questions = (
        ["sample", tiny_copy, "--prompt", "dark", "--to", "image"],
        ["evaluate", tiny_copy],
        ["show", tiny_copy],
    )
    image = tiny_copy / "tokenizers" / "image"
    text = tiny_copy / "tokenizers" / "text"
    PixelsConfig(4, 4, 1, n_levels=5).build().save(image)  # of the same class
    for words in questions:
        assert f"was made with vocabulary {old}, but this one is " in said(words)
    shutil.rmtree(text)
    SentencePieceConfig(n_pieces=300).fit(["dark light"] * 9).save(text)
    for words in questions:
        assert "describes a 'SentencePiece' tokenizer, expected 'Bytes'" in said(words)


def test_a_broken_checkpoint_is_said_and_the_one_before_is_used(
    tiny_words, tiny_copy, tiny_run, notes
):
    (tiny_copy / "model.safetensors").unlink()
    path = tiny_copy / "checkpoints" / "step-000024" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with warnings.catch_warnings():
        (line,) = notes(["train", *tiny_words, "--out", tiny_copy])
    assert (
        "step-000024 is damaged (optimizer.safetensors is not what was written); using the one"
        " before it" in line
    )
    assert (tiny_copy / "model.safetensors").read_bytes() == (
        tiny_run / "model.safetensors"
    ).read_bytes()


def test_no_checkpoint_that_can_be_read(capsys, tiny_words, tiny_copy):
    (tiny_copy / "model.safetensors").unlink()
    for path in (tiny_copy / "checkpoints").glob("*/state.json"):
        path.write_text("")
    capsys.readouterr()
    assert main(["train", *tiny_words, "--out", str(tiny_copy)]) == 2
    assert "none of the checkpoints in" in capsys.readouterr().err.splitlines()[-1]


def test_a_broken_model(tiny_copy, said):
    path = tiny_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    for words in (
        ["sample", tiny_copy, "--prompt", "dark", "--to", "image"],
        ["evaluate", tiny_copy],
        ["show", tiny_copy],
    ):
        assert "model.safetensors cannot be loaded" in said(words)
    assert not (tiny_copy / "samples").exists()


def test_questions_that_were_never_trained(tiny_run, tiny_data, said):
    line = said(["sample", tiny_run, "--prompt", "dark", "--to", "text"])
    assert "never trained on" in line and "text -> image" in line
    assert "this run makes text, speech, image, jets" in said(["sample", tiny_run, "--to", "video"])
    assert "--seed is -1" in said(["sample", tiny_run, "--to", "image", "--seed", "-1"])
    assert "guidance 2.0 needs" in said(
        ["sample", tiny_run, "--prompt", "low", "--to", "speech", "--guidance", "2"]
    )
    assert "no file at none.png" in said(["score", tiny_run, "none.png"])
    assert "never trained on nothing -> speech" in said(
        ["score", tiny_run, tiny_data / "sounds" / "00.wav"]
    )


# ---- folders that cannot be written, disks that are full


def test_folders_that_cannot_be_written(tiny_words, tiny_run, tmp_path, said, contents):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        for words in (
            ["train", *tiny_words, "--out", out],
            ["sample", tiny_run, "--prompt", "dark", "--to", "image", "-o", out],
        ):
            assert str(tmp_path / "file") in said(words)
    if os.path.isdir("/proc/self"):
        assert "/proc/run" in said(["train", *tiny_words, "--out", "/proc/run"])
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_names_the_file_and_training_goes_on_when_there_is_room(
    tiny_words, tiny_copy, tiny_run, monkeypatch, said
):
    for name in ("model.safetensors", "log.jsonl"):
        (tiny_copy / name).unlink()
    (tiny_copy / "log.jsonl").symlink_to("/dev/full")
    shutil.rmtree(tiny_copy / "checkpoints")
    monkeypatch.setattr(training_room, "read_log", lambda path: [])  # /dev/full has no end
    with monkeypatch.context() as patch:
        patch.setattr(
            files_room.os, "replace", lambda a, b: None
        )  # so that the log stays the full one
        line = said(["train", *tiny_words, "--out", tiny_copy])
    assert "No space left on device" in line and "log.jsonl" in line
    (tiny_copy / "log.jsonl").unlink()
    assert main(["train", *tiny_words, "--out", str(tiny_copy)]) == 0
    assert (tiny_copy / "model.safetensors").read_bytes() == (
        tiny_run / "model.safetensors"
    ).read_bytes()


def test_an_os_error_without_a_name_is_said_in_plain_words(monkeypatch, said):
    def full(path: str):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(cli.VERBS, "show", full)
    assert said(["show", "x"]) == "mmtok: No space left on device"
