"""Rows of tables of clips that are easily taken for others: speakers for texts, and the like."""

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
