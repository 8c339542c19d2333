"""Numeric columns of a corpus's tables as fields of its clips."""

import json

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.sound_files import write_sound
from mmtok.sources.speech import SpeechFolder


@pytest.fixture
def sounds(tmp_path):
    for i in range(12):
        write_sound(tmp_path / f"{i}.wav", np.full(1600, i / 50, np.float32))
    return tmp_path


def ages(source, folder):
    found = {}
    for split in source.splits:
        for example in source.examples(split, folder):
            found[example["caption"]] = example.get("age")
    return found


WANTED = {f"clip {i}": 20.0 + i for i in range(11)} | {"clip 11": None}


def test_of_a_table_beside_the_clips(sounds):
    """An empty cell leaves the field out."""
    rows = [f"{i}.wav,clip {i},{20 + i if i < 11 else ''}" for i in range(12)]
    (sounds / "metadata.csv").write_text("\n".join(["file,text,years", *rows]) + "\n")
    source = SpeechFolder(str(sounds), numbers=("age",), columns={"age": "years"})
    assert source.fields == {"caption": "text", "speech": "speech", "age": "age"}
    source.check()
    assert ages(source, sounds) == WANTED
    assert set(ages(SpeechFolder(str(sounds)), sounds).values()) == {None}


def test_of_a_manifest(sounds):
    rows = [
        {"audio_filepath": f"{i}.wav", "text": f"clip {i}", "age": 20.0 + i if i < 11 else None}
        for i in range(12)
    ]
    (sounds / "manifest.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SpeechFolder(str(sounds / "manifest.json"), numbers=("age",))
    assert ages(source, sounds) == WANTED


def test_what_is_no_number_or_not_there_is_said(sounds):
    rows = [f"{i}.wav,clip {i},twenties" for i in range(12)]
    (sounds / "metadata.csv").write_text("\n".join(["file,text,age", *rows]) + "\n")
    with pytest.raises(UserError, match="age: 'twenties' is no number.*12 of 12 clips"):
        SpeechFolder(str(sounds), numbers=("age",)).check()
    with pytest.raises(UserError, match="has no column 'height'"):
        SpeechFolder(str(sounds), numbers=("height",)).check()
    with pytest.raises(UserError, match="numbers names speaker"):
        SpeechFolder(str(sounds), numbers=("speaker",))


def test_a_corpus_without_tables_has_none(sounds):
    for i in range(12):
        (sounds / f"{i}.txt").write_text(f"clip {i}")
    with pytest.raises(UserError, match="none of its clips has the number 'age'"):
        SpeechFolder(str(sounds), numbers=("age",)).check()
