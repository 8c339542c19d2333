"""Rows of tables of clips that are easily taken for others: speakers for texts, and the like."""

import unicodedata
import warnings

import numpy as np
import pytest
import soundfile

from mmtok.errors import UserError
from mmtok.sources.speech import SpeechFolder

RATE_HZ = 16_000


def put_sound(path, n_samples=400):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.arange(n_samples) / 2**15, RATE_HZ)


def read(source):
    """{file name: (caption, samples, speaker)} of all examples, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        source.check()
        examples = [example for split in source.splits for example in source.examples(split)]
    found = {
        example.name.rsplit("/", 1)[-1]: (
            example["caption"],
            len(example["speech"].samples),
            example.get("speaker"),
        )
        for example in examples
    }
    return found, "\n".join(str(w.message) for w in said)


def said_by(source):
    with pytest.raises(UserError) as error:
        read(source)
    assert "\n" not in str(error.value)
    return str(error.value)


VITS = "a.wav|12|printing in the only sense\nb.wav|7|in being\nc.wav|12|for although it was\n"


@pytest.mark.parametrize("name", ["metadata.csv", "filelist.txt"])
@pytest.mark.parametrize("folder", ["wavs", "."])
def test_speakers_between_pipes_are_not_taken_for_texts(tmp_path, name, folder):
    for i, sound in enumerate("abc"):
        put_sound(tmp_path / folder / f"{sound}.wav", 400 + i)
    (tmp_path / name).write_text(VITS)
    place = tmp_path / name if folder == "wavs" or name != "metadata.csv" else tmp_path
    said = said_by(SpeechFolder(str(place)))
    assert "its second cells, such as 12, 7, seem to be speakers" in said
    assert "--columns speaker=text,caption=normalized" in said
    columns = {"speaker": "text", "caption": "normalized"}
    found, _ = read(SpeechFolder(str(place), columns=columns))
    assert found == {
        "a.wav": ("printing in the only sense", 400, "12"),
        "b.wav": ("in being", 401, "7"),
        "c.wav": ("for although it was", 402, "12"),
    }
    found, _ = read(SpeechFolder(str(place), columns={"caption": "text"}))
    assert found["b.wav"] == ("7", 401, None)


def test_words_between_pipes_are_texts(tmp_path):
    for i in range(4):
        put_sound(tmp_path / f"wavs/{i}.wav", 400 + i)
    (tmp_path / "metadata.csv").write_text("0|one|one\n1|two|two\n2|one|one\n3|two|two\n")
    found, said = read(SpeechFolder(str(tmp_path)))
    assert found["3.wav"] == ("two", 403, None) and "captions are the original text" in said
    (tmp_path / "metadata.csv").write_text("file|text|speaker\n0|one|x\n1|two|x\n2|a|y\n3|b|y\n")
    _, said = read(SpeechFolder(str(tmp_path)))
    assert "read as ljspeech" in said and "--transcript" not in said


def test_faulty_rows_of_one_file_are_counted_each(tmp_path):
    put_sound(tmp_path / "a.wav")
    put_sound(tmp_path / "b.wav")
    rows = "a.wav,one,-1\na.wav,two,nan\na.wav,three,x\nb.wav,four,0\n"
    (tmp_path / "t.csv").write_text("file,text,start\n" + rows)
    said = said_by(SpeechFolder(str(tmp_path / "t.csv")))
    assert "start is '-1'" in said and "3 of 4 clips cannot be used" in said


@pytest.mark.parametrize("way", ["plain table", "table", "texts", "kaldi"])
def test_names_in_another_unicode_form_are_the_same(tmp_path, way):
    on_disk = unicodedata.normalize("NFD", "caf\u00e9/\u00e9t\u00e9.wav")  # as macOS gives them
    name = unicodedata.normalize("NFC", on_disk)
    put_sound(tmp_path / on_disk)
    put_sound(tmp_path / "b.wav", 401)
    place = tmp_path
    if way == "texts":
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).with_suffix(".txt").write_text("one")
        (tmp_path / "b.txt").write_text("two")
    elif way == "kaldi":
        (tmp_path / "wav.scp").write_text(f"1 {name}\n2 b.wav\n")
        (tmp_path / "text").write_text("1 one\n2 two\n")
    else:
        place = tmp_path / "t.csv"
        if way == "plain table":
            place = tmp_path
        table = tmp_path / ("transcripts.csv" if way == "plain table" else "t.csv")
        table.write_text(f"file,text\n{name},one\nb,two\n")
    found, said = read(SpeechFolder(str(place)))
    wanted = {on_disk.split("/")[1]: ("one", 400, None), "b.wav": ("two", 401, None)}
    assert found == wanted and "left out" not in said


@pytest.mark.parametrize("name", ["wav.scp", "text", "utt2spk", "segments"])
def test_a_key_that_comes_twice_in_kaldi_is_refused(tmp_path, name):
    put_sound(tmp_path / "a.wav", RATE_HZ)
    put_sound(tmp_path / "b.wav", RATE_HZ + 1)
    files = {
        "wav.scp": ["a a.wav", "b b.wav"],
        "text": ["a one", "b two"],
        "utt2spk": ["a s", "b s"],
        "segments": ["a a 0 0.5", "b b 0 0.5"],
    }
    for file, lines in files.items():
        (tmp_path / file).write_text("\n".join(lines))
    assert set(read(SpeechFolder(str(tmp_path)))[0]) == {"a.wav from 0 s", "b.wav from 0 s"}
    (tmp_path / name).write_text("\n".join([*files[name], files[name][0]]))
    assert f"{name}: line 3: names a a second time" in said_by(SpeechFolder(str(tmp_path)))


def test_a_row_of_two_manifests_is_taken_once_unless_they_are_splits(tmp_path):
    rows = []
    for i in range(4):
        put_sound(tmp_path / f"{i}.wav", 400 + i)
        rows.append(f'{{"audio_filepath": "{i}.wav", "text": "said {i}"}}\n')
    (tmp_path / "all.json").write_text("".join(rows))
    (tmp_path / "dev.json").write_text(rows[2])
    with pytest.warns(UserWarning, match=r"1 of 5 .* listed more than once and taken once"):
        assert len(SpeechFolder(str(tmp_path)).transcripts()) == 4
    source = SpeechFolder(str(tmp_path), train="all", heldout="dev")
    assert "in the training split and in the held-out one" in said_by(source)


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"mic": "mic3"}, "mic is 'mic3'; it is mic1 or mic2 or both"),
        ({"transcript": "both"}, "transcript is 'both'; it is original or normalized"),
    ],
)
def test_settings_have_choices(setting, part):
    with pytest.raises(UserError, match=part):
        SpeechFolder("x", **setting)
