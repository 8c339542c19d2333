"""Corpora of speech beside loose sounds with texts: what is asked, and what is passed over."""

import pytest

from mmtok.sources.speech import SpeechFolder
from tests.sources.test_speech_layouts import put_sound, put_text, read, said_by


def _table_of(folder, layout, names):
    """A table of a layout that names sounds."""
    lines = {
        "ljspeech": ("metadata.csv", [f"{name}|words of {name}|words of {name}" for name in names]),
        "nemo": (
            "manifest.jsonl",
            [f'{{"audio_filepath": "wavs/{x}.wav", "text": "words of {x}"}}' for x in names],
        ),
        "table": ("list.csv", ["file,text", *(f"wavs/{x}.wav,words of {x}" for x in names)]),
        "audiofolder": (
            "wavs/metadata.csv",
            ["file_name,transcription", *(f"{name}.wav,words of {name}" for name in names)],
        ),
    }
    name, rows = lines[layout]
    for sound in names:
        put_sound(folder / "wavs" / f"{sound}.wav", 400 + ord(sound))
    put_text(folder / name, "\n".join(rows) + "\n")


@pytest.mark.parametrize("layout", ["ljspeech", "nemo", "table", "audiofolder"])
def test_a_table_beside_other_sounds_with_texts_is_asked_about(tmp_path, layout):
    _table_of(tmp_path, layout, ["a", "b", "c"])
    for name in ("x", "y"):
        put_sound(tmp_path / "loose" / f"{name}.wav", 400 + ord(name))
        put_text(tmp_path / "loose" / f"{name}.txt", f"own text of {name}")
    line = said_by(SpeechFolder(str(tmp_path)))
    assert f"--layout {layout}" in line and "--layout plain" in line, line
    found, _ = read(SpeechFolder(str(tmp_path), layout=layout))
    assert {name: caption for name, (caption, _) in found.items()} == {
        f"{x}.wav": f"words of {x}" for x in "abc"
    }


@pytest.mark.parametrize("layout", ["ljspeech", "nemo", "table", "audiofolder"])
def test_texts_beside_the_sounds_of_a_table_are_passed_over_and_counted(tmp_path, layout):
    _table_of(tmp_path, layout, ["a", "b", "c"])
    for name in ("a", "b"):
        put_text(tmp_path / "wavs" / f"{name}.txt", "not this one")
    found, said = read(SpeechFolder(str(tmp_path)))
    assert {caption for caption, _ in found.values()} == {f"words of {x}" for x in "abc"}
    assert f"2 of 2 sounds with a text beside them were captioned by {layout}" in said


@pytest.mark.parametrize("layout", ["ljspeech", "nemo", "table"])
def test_loose_sounds_without_texts_are_no_second_layout(tmp_path, layout):
    _table_of(tmp_path, layout, ["a", "b", "c"])
    put_sound(tmp_path / "loose" / "x.wav", 900)
    found, _ = read(SpeechFolder(str(tmp_path)))
    assert sorted(found) == ["a.wav", "b.wav", "c.wav"]


def test_a_table_of_transcripts_beside_a_manifest_is_asked_about(tmp_path):
    _table_of(tmp_path, "nemo", ["a", "b", "c"])
    put_text(tmp_path / "transcripts.csv", "file,text\nwavs/a.wav,other\n")
    line = said_by(SpeechFolder(str(tmp_path)))
    assert "--layout plain or --layout nemo" in line, line


@pytest.mark.parametrize("layout", ["librispeech", "libritts", "vctk", "kaldi", "audiofolder"])
def test_a_layout_of_folders_is_refused_of_a_file(tmp_path, layout):
    _table_of(tmp_path, "table", ["a", "b"])
    line = said_by(SpeechFolder(str(tmp_path / "list.csv"), layout=layout))
    assert f"list.csv: is a file, and the layout {layout} is of folders; name the folder" in line


def test_a_folder_without_sounds_names_all_suffixes(tmp_path):
    put_text(tmp_path / "a.md", "x")
    assert ".wav" in said_by(SpeechFolder(str(tmp_path)))
    assert ".m4a" in said_by(SpeechFolder(str(tmp_path)))


def test_absolute_names_under_a_relative_place_are_the_same_files(tmp_path, monkeypatch):
    rows = []
    for i, name in enumerate("abcd"):
        path = tmp_path / "c" / "wavs" / f"{name}.wav"
        put_sound(path, 400 + 30 * i)
        put_text(tmp_path / "c" / "wavs" / f"{name}.txt", f"own text of {name}")
        where = str(path) if i % 2 else f"wavs/{name}.wav"
        rows.append(f'{{"audio_filepath": "{where}", "text": "words of {name}"}}')
    put_text(tmp_path / "c" / "manifest.jsonl", "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    for place in ("c", str(tmp_path / "c"), "../" + tmp_path.name + "/c"):
        found, said = read(SpeechFolder(place))
        assert {caption for caption, _ in found.values()} == {f"words of {x}" for x in "abcd"}
        assert "4 of 4 sounds with a text beside them were captioned by nemo" in said
        assert "left out" not in said


def test_parts_of_one_recording_are_in_one_split_however_rows_name_it(tmp_path, monkeypatch):
    files = [tmp_path / "c" / name for name in ("long.wav", "other.wav")]
    for i, file in enumerate(files):
        put_sound(file, 2_000 + 100 * i, 1_000)
    rows = [
        f'{{"audio_filepath": "{path}", "text": "part {i} of {path[-8:]}", "offset": {0.5 * i},'
        ' "duration": 0.4}'
        for file in files
        for i, path in enumerate((file.name, str(file), file.name))
    ]
    put_text(tmp_path / "c" / "manifest.jsonl", "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    source = SpeechFolder("c")
    names = {
        split: {str(example.name).split(" ")[0] for example in source.examples(split)}
        for split in ("train", "heldout")
    }
    assert len(names["train"]) == len(names["heldout"]) == 1
    assert names["train"] | names["heldout"] == {"c/long.wav", "c/other.wav"}
