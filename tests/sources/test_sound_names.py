"""The files that tables of sounds name: in another case or suffix, and those that are not there."""

import pytest

from mmtok.errors import UserError
from mmtok.sources.speech import SpeechFolder
from tests.sources.test_speech_layouts import put_sound, put_text, read, said_by

LAYOUTS = ("", "table")  # of a metadata.csv of files and texts: the plain one, and any table


def put_table(root, names, sounds=()):
    for i, name in enumerate(sounds):
        put_sound(root / name, 400 + i)
    put_text(root / "metadata.csv", "file,text\n" + "".join(f"{n},t {n}\n" for n in names))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "cell, difference",
    [
        ("wavs/a.wav", ""),
        ("file://wavs\\a.wav", ""),
        ("wavs/a.WAV", "another case"),
        ("WAVS/A.wav", "another case"),
        ("A", "another case"),
        ("wavs/a.mp3", "another suffix"),
        ("A.FLAC", "another suffix"),
    ],
)
def test_a_name_is_found_alike_whatever_the_layout_is_called(tmp_path, layout, cell, difference):
    put_table(tmp_path, [cell], ["wavs/a.wav"])
    found, said = read(SpeechFolder(str(tmp_path), layout=layout))
    assert found == {"a.wav": (f"t {cell}", 400)}
    assert ("a.wav was of files " in said) == bool(difference) and difference in said


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_differ_in_case_are_told_apart_or_asked_about(tmp_path, layout):
    put_table(tmp_path, ["x/a.wav", "x/A.wav"])
    put_sound(tmp_path / "x" / "a.wav", 401)
    put_sound(tmp_path / "x" / "A.wav", 402)
    found, _ = read(SpeechFolder(str(tmp_path), layout=layout))
    assert found == {"a.wav": ("t x/a.wav", 401), "A.wav": ("t x/A.wav", 402)}
    put_table(tmp_path, ["x/a.WAV"])
    assert "x/a.WAV may be " in said_by(SpeechFolder(str(tmp_path), layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_without_their_file_count_with_what_cannot_be_used(tmp_path, layout):
    put_table(tmp_path, [f"{i}.wav" for i in range(10)], ["0.wav", "1.wav"])
    source = SpeechFolder(str(tmp_path), layout=layout)
    said = said_by(source)
    assert "metadata.csv: line 4: names 2.wav, and no such sound file is there; likewise" in said
    assert "8 of 10 clips cannot be used, and at most 0.01 of all are passed over" in said
    found, said = read(SpeechFolder(str(tmp_path), layout=layout, max_error_share=0.8))
    assert set(found) == {"0.wav", "1.wav"} and "8 of 10 clips were passed over" in said
    assert "2 clips, 1 for train, 1 for heldout" in source.found()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_whose_files_are_all_absent_says_so(tmp_path, layout):
    put_table(tmp_path, ["x1.wav", "x2.wav"], ["a.wav", "b.wav"])
    source = SpeechFolder(str(tmp_path), layout=layout)
    said = said_by(source)
    assert "metadata.csv: none of its 2 rows names a sound file that is there (first: " in said
    with pytest.raises(UserError, match="none of its 2 rows"):
        source.found()


def test_kaldi_counts_every_utterance(tmp_path):
    put_sound(tmp_path / "a.wav")
    scp = "".join(f"u{i} {name}.wav\n" for i, name in enumerate(("a", *("no",) * 39)))
    put_text(tmp_path / "wav.scp", scp)
    put_text(tmp_path / "text", "".join(f"u{i} HI\n" for i in range(41)))
    said = said_by(SpeechFolder(str(tmp_path)))
    assert "wav.scp: line 2: names no.wav, and no such sound file is there; likewise" in said
    assert "39 of 40 clips cannot be used" in said
    found, said = read(SpeechFolder(str(tmp_path), max_error_share=1.0))
    assert found == {"a.wav": ("HI", 400)}
    assert "1 of 41 utterances was left out: no sound is named for them" in said
    put_text(tmp_path / "segments", "u0 u0 0 0.01\nu1 u1 0 0.01\nu2 r 0 0.01\n")
    said = said_by(SpeechFolder(str(tmp_path)))
    assert "2 of 3 clips cannot be used" in said
    assert "names no.wav, and no such sound file is there" in said


@pytest.mark.parametrize("header", ["", "text|text|normalized\n"])
def test_equal_texts_between_pipes_are_no_repeated_column(tmp_path, header):
    for i, name in enumerate("ab"):
        put_sound(tmp_path / f"{name}.wav", 400 + i)
    put_text(tmp_path / "metadata.csv", header + "a|same a|same a\nb|same b|same b\n")
    source = SpeechFolder(str(tmp_path), layout="plain")
    if header:
        assert "line 1: the column text comes twice" in said_by(source)
    else:
        assert read(source)[0] == {"a.wav": ("same a", 400), "b.wav": ("same b", 401)}


@pytest.mark.parametrize("name, separator", [("list.csv", ","), ("list.tsv", "\t")])
def test_a_list_without_a_header_says_so(tmp_path, name, separator):
    put_sound(tmp_path / "a.wav")
    put_text(tmp_path / name, f"a.wav{separator}x one\n")
    said = said_by(SpeechFolder(str(tmp_path / name)))
    assert f"{name}: line 1 names the file a.wav, so it is no header" in said


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_the_order_of_rows_does_not_choose_files(tmp_path, order):
    """Where two folders have the name, the first one counts, whatever the row before found."""
    put_sound(tmp_path / "wavs" / "a.wav", 401)
    put_sound(tmp_path / "wavs" / "b.wav", 402)
    put_sound(tmp_path / "b.wav", 403)
    put_text(tmp_path / "t.csv", "file,text\n" + "".join(f"{n}.wav,text {n}\n" for n in order))
    found, _ = read(SpeechFolder(str(tmp_path / "t.csv")))
    assert found == {"a.wav": ("text a", 401), "b.wav": ("text b", 403)}
