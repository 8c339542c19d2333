"""Sound files in and out, folders with transcripts, and spoken digits: splits that hold out what
they say they hold out.
"""

import gzip
import time
import warnings

import numpy as np
import pytest

from mmtok.data.speech_preparation import read_sound
from mmtok.errors import UserError
from mmtok.sources.espeak import trim
from mmtok.sources.media import SUFFIXES
from mmtok.sources.sound_files import write_sound
from mmtok.sources.speech import (
    HELDOUT_SETTINGS,
    UNSEEN_VOICES,
    VOICES,
    SpeechFolder,
    SpokenDigits,
    heldout_strings,
)


def tone(n: int = 8000, rate_hz: int = 16_000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(n) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_written_sound_reads_back(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_sound(path, tone())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = read_sound(path)
    assert again.dtype == np.float32 and np.abs(again - tone()).max() <= 1 / 32768
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# of suffixes that soundfile does not know by themselves: format, and what the samples are coded as
FORMATS = {
    ".wave": "WAV",
    ".oga": "OGG",
    ".aif": "AIFF",
    ".aifc": "AIFF",
    ".snd": "AU",
    ".sph": "NIST",
    ".opus": "OGG",
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_of_the_table_is_read_here(tmp_path, suffix):
    import soundfile

    path = tmp_path / f"a{suffix.upper()}"
    coded = "OPUS" if suffix == ".opus" else None
    soundfile.write(
        path, tone(), 16_000, format=FORMATS.get(suffix, suffix[1:].upper()), subtype=coded
    )
    assert abs(len(read_sound(path)) - 8000) < 2000


def test_stereo_and_other_rates_are_converted_and_said_once(tmp_path):
    import soundfile

    path = tmp_path / "stereo.wav"
    mono = tone(22_050, 22_050)
    soundfile.write(path, np.stack([mono, 0.5 * mono], 1), 22_050)
    with pytest.warns(
        UserWarning, match="mixed down from 2 channels, resampled from 22,050 to 16,000 Hz"
    ) as said:
        samples = read_sound(path)
    assert len(said) == 1 and samples.shape == (16_000,)
    assert np.abs(samples - 0.75 * tone(16_000))[500:-500].max() < 2e-3


def test_a_rate_of_no_sound_is_refused_with_the_file(tmp_path):
    write_sound(tmp_path / "slow.wav", tone(), 7)
    with pytest.raises(UserError, match="slow.wav: a rate of 7 Hz"):
        read_sound(tmp_path / "slow.wav")


def test_bad_files_are_refused_in_one_line(tmp_path):
    import soundfile

    write_sound(tmp_path / "whole.wav", tone())
    write_sound(tmp_path / "whole.flac", tone())
    for suffix in ("wav", "flac"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"half.{suffix}").write_bytes(whole[: len(whole) // 2])
        (tmp_path / f"head.{suffix}").write_bytes(whole[:30])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no sound")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0]), 16_000, subtype="FLOAT")
    for name in (
        "missing.wav",
        "half.wav",
        "half.flac",
        "head.wav",
        "head.flac",
        "empty.wav",
        "text.wav",
        "none.wav",
        "nan.wav",
        ".",
    ):
        with pytest.raises(UserError) as error:
            read_sound(tmp_path / name)
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_writing_refuses_and_clips_and_leaves_nothing_half_written(tmp_path):
    with pytest.warns(UserWarning, match="clipped"):
        write_sound(tmp_path / "loud.wav", 4 * tone())
    for path, samples in [
        ("a.wav", np.array([np.nan])),
        ("a.wav", np.zeros((2, 2))),
        ("loud.wav/a.wav", tone()),
        ("a.xyz", tone()),
    ]:
        with pytest.raises(UserError):
            write_sound(tmp_path / path, samples)
    assert [p.name for p in tmp_path.iterdir()] == ["loud.wav"]


def test_folder_with_texts_beside(tmp_path):
    for i in range(20):
        write_sound(tmp_path / f"{i:02}.wav", tone(400 + i))
        (tmp_path / f"{i:02}.txt").write_text(f"clip {i}\n")
    source = SpeechFolder(str(tmp_path))
    parts = {split: list(source.examples(split, tmp_path)) for split in source.splits}
    assert len(parts["train"]) == 18 and len(parts["heldout"]) == 2
    assert {e["caption"]: len(e["speech"].samples) for part in parts.values() for e in part} == {
        f"clip {i}": 400 + i for i in range(20)
    }


def test_folder_with_a_table(tmp_path):
    for name in ("a", "b"):
        write_sound(tmp_path / f"{name}.wav", tone())
    (tmp_path / "metadata.csv").write_text('file_name,text\na.wav,one\nb.wav,"two, too"\n')
    assert [caption for _, caption in SpeechFolder(str(tmp_path)).transcripts()] == [
        "one",
        "two, too",
    ]


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        SpeechFolder(str(tmp_path / "missing")).transcripts()
    with pytest.raises(UserError, match="no sound files"):
        SpeechFolder(str(tmp_path)).transcripts()
    write_sound(tmp_path / "a.wav", tone())
    with pytest.raises(UserError, match="no transcript"):
        SpeechFolder(str(tmp_path)).transcripts()
    (tmp_path / "transcripts.csv").write_text("name,words\na,one\n")
    with pytest.raises(UserError, match="columns file and text"):
        SpeechFolder(str(tmp_path)).transcripts()
    with pytest.raises(UserError, match="no split 'test'"):
        list(SpeechFolder(str(tmp_path)).examples("test", tmp_path))


@pytest.mark.parametrize(
    "name, content, part",
    [
        ("a.txt", "café".encode("latin1"), "not UTF-8 text (byte 3)"),
        ("transcripts.csv", "file,text\na.wav,café\n".encode("latin1"), "not UTF-8 text (byte 19)"),
        ("transcripts.csv", b"file,text\na.wav,one\nb.wav\n", "line 3 ends before its text"),
        ("metadata.csv", b"transcript,file_name\none\n", "line 2 ends before its file_name"),
    ],
)
def test_bad_transcripts_are_refused_in_one_line(tmp_path, name, content, part):
    write_sound(tmp_path / "a.wav", tone())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        SpeechFolder(str(tmp_path)).check()
    assert str(error.value).startswith(f"{tmp_path / name}: {part}") and "\n" not in str(
        error.value
    )


def corpus(folder, n=3, table=None):
    for i in range(n):
        write_sound(folder / f"{i:03}.wav", tone(400 + i))
        if table is None:
            (folder / f"{i:03}.txt").write_text(f"clip {i}")
    return folder


@pytest.mark.parametrize(
    "name, content",
    [
        ("transcripts.csv", 'file,text\n000.wav,"one, two"\n001,00501\n./002.wav,NA\n'),
        (
            "metadata.TSV",
            "path\tid\tsentence\nclips\\000.wav\t1\tone, two\n001.wav\t2\t00501\n002.wav\t3\tNA\n",
        ),
        ("metadata.csv", "000|one, two|x\n001|00501|y\n002|NA|z\n"),
        (
            "metadata.jsonl",
            (
                '{"file_name": "000.wav", "text": "one, two"}\n{"file_name": "001.wav", "text":'
                ' "00501"}\n{"file_name": "002.wav", "text": "NA"}\n'
            ),
        ),
    ],
)
def test_tables_of_every_kind_name_their_files(tmp_path, name, content):
    (corpus(tmp_path, table=name) / name).write_text(content)
    assert [text for _, text in SpeechFolder(str(tmp_path)).transcripts()] == [
        "one, two",
        "00501",
        "NA",
    ]
    (tmp_path / name).unlink()
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    assert [text for _, text in SpeechFolder(str(tmp_path)).transcripts()] == [
        "one, two",
        "00501",
        "NA",
    ]


@pytest.mark.parametrize(
    "content, part",
    [
        ("file,text\n000.wav,one, two\n", "line 2 has 3 cells where the header has 2"),
        (
            "file,text\n000.wav,one\n001.wav,two\n000,three\n",
            "line 4: names 000 a second time, after line 2",
        ),
        (
            'file,text\n000.wav,"one\n001.wav,"two, three"\n002.wav,x\n',
            "line 2: a quote opens in this row and runs on into line 3",
        ),
        (
            "000.wav,one\n001.wav,two\n002.wav,three\n",
            "line 1 names the file 000.wav, so it is no header",
        ),
    ],
)
def test_rows_are_held_against_header_and_each_other(tmp_path, content, part):
    path = corpus(tmp_path, table="csv") / "transcripts.csv"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        SpeechFolder(str(tmp_path)).check()
    assert str(error.value).startswith(f"{path}: {part}")


def test_a_swallowed_row_is_found_in_the_row_that_swallowed_it(tmp_path):
    table = corpus(tmp_path, table="csv") / "transcripts.csv"
    for i in range(3):  # a transcript of its own does not hide it
        table.write_text('file,text\n000.wav,"one\n001.wav,two"\n002.wav,three\n')
        with pytest.raises(
            UserError,
            match=(
                f"^{table}: line 2: a cell in quotes holds another row, '001.wav,two'; close the"
                " quote before it"
            ),
        ):
            SpeechFolder(str(tmp_path)).check()
        (tmp_path / f"{i:03}.txt").write_text("beside")
    table.write_text('file,text\n000.wav,"one,\ntwo"\n001.wav,two\n002.wav,three\n')
    with pytest.warns(UserWarning, match="of several lines"):
        assert [text for _, text in SpeechFolder(str(tmp_path)).transcripts()] == [
            "one,\ntwo",
            "two",
            "three",
        ]
    for i in range(3):
        (tmp_path / f"{i:03}.txt").unlink()
    table.write_text('file,text\n000.wav,"one\n001.wav two"\n002.wav,three\n')
    with pytest.raises(
        UserError,
        match=(
            "001.wav: no transcript of its own; .*transcripts.csv: line 2 holds its name: is a"
            " quote left open"
        ),
    ):
        SpeechFolder(str(tmp_path)).check()


@pytest.mark.parametrize(
    "cell, named",
    [
        ("a/0.wav", True),
        ("0.wav", True),
        ("0", True),
        ("corpus/a/0.wav", True),
        ("/far/away/a/0", True),
        ("b/../a/0.wav", True),
        ("b/0.wav", False),
        ("corpus/b/0", False),
        ("a/b/0.wav", False),
        ("..", False),
        ("", False),
    ],
)
def test_a_row_names_no_file_of_another_folder(tmp_path, cell, named):
    for i in range(200):
        write_sound(tmp_path / "a" / f"{i}.wav", tone(400))
    rows = [f"{cell},the first\n", *(f"a/{i}.wav,{i}\n" for i in range(1, 200))]
    (tmp_path / "transcripts.csv").write_text("file,text\n" + "".join(rows))
    texts = {path.stem: text for path, text in SpeechFolder(str(tmp_path)).transcripts()}
    assert texts.get("0") == ("the first" if named else None) and len(texts) == 199 + named


def test_a_transcript_that_no_file_can_hold_is_broken_like_a_file(tmp_path):
    rows = [f'{{"file": "{i:03}.wav", "text": "{i}"}}\n' for i in range(100)]
    rows[7] = '{"file": "007.wav", "text": "a\\ud800"}\n'
    (corpus(tmp_path, 100, "jsonl") / "metadata.jsonl").write_text("".join(rows))
    with pytest.warns(
        UserWarning,
        match="1 of 100 clips was passed over.*metadata.jsonl: line 8: holds a lone surrogate",
    ):
        assert len(SpeechFolder(str(tmp_path)).transcripts()) == 99


def test_transcripts_without_files_are_counted_with_the_first(tmp_path):
    (corpus(tmp_path, 200) / "zzz.txt").write_text("nothing")
    (tmp_path / "metadata.csv").write_text("file,text\n000.wav,one\ngone.wav,two\n")
    with pytest.warns(UserWarning) as said:
        SpeechFolder(str(tmp_path)).check()
    lines = " ".join(str(w.message) for w in said)
    assert "1 of 201 clips was passed over as unusable (first: " in lines
    assert "line 3: names gone.wav, and no such sound file is there)" in lines
    assert "1 of 201 transcripts was left out: no sound file has that name" in lines
    assert "1 of 201 transcripts was passed over: the table has a row for that file" in lines


def test_one_broken_file_in_a_hundred_stops_nothing_and_two_stop_before_the_work(
    tmp_path, monkeypatch
):
    source = SpeechFolder(str(corpus(tmp_path, 100)))
    (tmp_path / "050.wav").write_bytes(b"no sound")
    with pytest.warns(
        UserWarning, match="1 of 100 clips was passed over as unusable .*050.wav: not a sound file"
    ):
        assert sum(len(list(source.examples(split, tmp_path))) for split in source.splits) == 99
    (tmp_path / "060.wav").write_bytes(b"")
    monkeypatch.setattr(
        "mmtok.sources.speech.open_sound",
        lambda *_: pytest.fail("nothing is read before all were looked at"),
    )
    with pytest.raises(UserError, match="060.wav: 2 of 100 clips cannot be used"):
        next(source.examples("train", tmp_path))
    with pytest.raises(UserError, match="050.wav: not a sound file that libsndfile can read"):
        SpeechFolder(str(tmp_path), on_error="raise").check()


def test_lengths_out_of_bounds_are_left_out_and_counted(tmp_path):
    source = SpeechFolder(
        str(corpus(tmp_path, 10)), min_duration_s=403 / 16_000, max_duration_s=407 / 16_000
    )
    with pytest.warns(UserWarning, match="3 of 10 clips were left out: fewer seconds than"):
        assert len(source.transcripts()) == 5


def test_formats_of_one_clip_stay_on_one_side(tmp_path):
    for i in range(30):
        for suffix in ("wav", "flac"):
            write_sound(tmp_path / f"{i}.{suffix}", tone(400))
        (tmp_path / f"{i}.txt").write_text(f"clip {i}")
    source = SpeechFolder(str(tmp_path))
    with pytest.warns(UserWarning, match="shared by several sound files of one name"):
        parts = [
            {e["caption"] for e in source.examples(split, tmp_path)} for split in source.splits
        ]
    assert not parts[0] & parts[1] and len(parts[1]) == 3


def test_trim_keeps_fifty_milliseconds():
    padded = np.concatenate([np.zeros(5000), tone(1600) + 0.5, np.zeros(3000)])
    assert abs(len(trim(padded, 16_000)) - 3200) <= 2
    assert len(trim(np.zeros(100), 16_000)) == 100


def test_splits_of_spoken_digits_hold_out_what_they_say():
    source = SpokenDigits()
    parts = {split: source.utterances(split) for split in source.splits}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 2400,
        "heldout": 300,
        "unseen_voices": 300,
    }
    held = {" ".join(words) for words in heldout_strings(0)}
    assert len(held) == 110
    assert {u.voice for u in parts["train"]} == {u.voice for u in parts["heldout"]} == set(VOICES)
    assert {u.voice for u in parts["unseen_voices"]} == set(UNSEEN_VOICES) and not set(
        UNSEEN_VOICES
    ) & set(VOICES)
    assert not held & {u.caption for u in parts["train"]}
    for u in parts["heldout"]:
        assert (
            u.caption in held
            if " " in u.caption
            else (u.words_per_minute, u.pitch) in HELDOUT_SETTINGS
        )
    assert not any(
        (u.words_per_minute, u.pitch) in HELDOUT_SETTINGS
        for u in parts["train"]
        if " " not in u.caption
    )
    for part in parts.values():
        assert {len(u.caption.split()) for u in part} == {1, 2, 3} and len(set(part)) == len(part)
        assert part == source.utterances(source.splits[list(parts.values()).index(part)])
    assert SpokenDigits(seed=1).utterances("train") != parts["train"]


def test_spoken_digits_are_made_once_and_the_same_everywhere(tmp_path, monkeypatch):
    pytest.importorskip("espeakng_loader")
    source = SpokenDigits(n_utterances=120)
    first = list(source.examples("train", tmp_path / "one"))
    with monkeypatch.context() as patch:
        patch.setattr("mmtok.sources.espeak.Espeak", None)  # nobody is to speak again
        second = list(source.examples("train", tmp_path / "one"))
    time.sleep(1.1)  # the engine's own random numbers would start from the clock
    elsewhere = list(source.examples("train", tmp_path / "two"))
    for a, b, c in zip(first, second, elsewhere, strict=True):
        assert a["caption"] == b["caption"] == c["caption"] and set(a) == set(source.fields)
        one, two, three = (example["speech"].samples for example in (a, b, c))
        assert np.array_equal(one, two) and np.array_equal(one, three)
        assert (
            one.dtype == np.float32
            and 0.2 < len(one) / a["speech"].rate_hz < 2
            and np.abs(one).max() <= 0.91
        )
    assert [e["caption"] for e in first] == [u.caption for u in source.utterances("train")]
    assert len(list((tmp_path / "one").iterdir())) == 1
    with pytest.raises(UserError, match="no split"):
        list(source.examples("test", tmp_path))


def test_a_damaged_cache_is_named_and_made_again_when_it_is_gone(tmp_path):
    pytest.importorskip("espeakng_loader")
    source = SpokenDigits(n_utterances=30)
    first = list(source.examples("heldout", tmp_path))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    other = tmp_path / "other.npz"
    np.savez(other, samples=np.zeros(3))
    for content in (
        b"",
        b"no arrays",
        whole[: len(whole) // 2],
        whole[:2000] + b"damaged" + whole[2007:],
        other.read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="delete the file") as error:
            list(source.examples("heldout", tmp_path))
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.unlink()
    again = list(source.examples("heldout", tmp_path))
    assert (
        all(
            np.array_equal(a["speech"].samples, b["speech"].samples)
            for a, b in zip(first, again, strict=True)
        )
        and path.read_bytes() == whole
    )


@pytest.mark.parametrize(
    "stop, said",
    [(OSError(28, "No space left on device"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_full_disk_or_ctrl_c_leaves_nothing_half_written(tmp_path, monkeypatch, stop, said):
    pytest.importorskip("espeakng_loader")

    def savez(file, **arrays):
        file.write(b"half")
        raise stop

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(said):
        list(SpokenDigits(n_utterances=30).examples("heldout", tmp_path))
    assert not list(tmp_path.iterdir())


def test_voices_that_are_not_there_are_refused():
    pytest.importorskip("espeakng_loader")
    from mmtok.sources.espeak import Espeak

    engine = Espeak()
    for voice in ("en-gb", "en+nobody", "xx"):
        with pytest.raises(UserError, match="no voice"):
            engine.say("one", voice)
    said = [engine.say("three one four", voice) for voice in (*VOICES, *UNSEEN_VOICES)]
    assert all(len(s) > 8000 for s in said) and len({s.tobytes() for s in said}) == 14
