"""Corpora of speech as they are published: small trees of each layout, their values and faults."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mmtok.errors import UserError
from mmtok.sources.speech import SpeechFolder

RATE_HZ = 16_000


def put_sound(path, n_samples=400, rate_hz=RATE_HZ):
    """A ramp, so that every part of it is known by its values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.arange(n_samples) / 2**15
    soundfile.write(path, samples, rate_hz, subtype="VORBIS" if path.suffix == ".ogg" else None)


def put_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def read(source):
    """{file name: (caption, samples)} of all examples, and what was said."""
    found = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        source.check()
        for split in source.splits:
            for example in source.examples(split):
                name = example.name.split(" from ")[0].rsplit("/", 1)[-1]
                found[name] = (example["caption"], len(example["speech"].samples))
    return found, "\n".join(str(w.message) for w in said)


def said_by(source):
    with pytest.raises(UserError) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_all(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def read_all(source):
    source.check()
    return [example for split in source.splits for example in source.examples(split)]


# ---- plain


def test_lab_files_beside_sounds_are_transcripts(tmp_path):
    put_sound(tmp_path / "a.WAV", 401)
    put_text(tmp_path / "a.lab", "hello there\n")
    put_text(tmp_path / "._a.lab", b"\0\5AppleDouble")
    found, said = read(SpeechFolder(str(tmp_path)))
    assert found == {"a.WAV": ("hello there", 401)} and "read as" not in said
    put_text(tmp_path / "a.txt", "the text")
    found, said = read(SpeechFolder(str(tmp_path)))
    assert found["a.WAV"][0] == "the text" and "a.lab was passed over" in said
    (tmp_path / "a.txt").unlink()
    put_text(tmp_path / "a.lab", "0 500000 sil\n500000 900000 h\n")
    assert "a.lab: holds labels with times" in said_by(SpeechFolder(str(tmp_path)))


def test_a_column_that_the_user_names_wins_and_a_wrong_one_names_the_nearest(tmp_path):
    put_sound(tmp_path / "a.wav")
    put_text(tmp_path / "metadata.csv", "file,text,words\na.wav,one,two\n")
    found, _ = read(SpeechFolder(str(tmp_path), columns={"caption": "words"}))
    assert found == {"a.wav": ("two", 400)}
    said = said_by(SpeechFolder(str(tmp_path), columns={"caption": "wrods"}))
    assert "metadata.csv: has no column 'wrods'; nearest: words" in said
    with pytest.raises(UserError, match="SpeechFolder: columns names sentence; the fields are"):
        SpeechFolder(str(tmp_path), columns={"sentence": "words"})
    with pytest.raises(UserError, match="layout is 'librispech'; the layouts are plain, audiofol"):
        SpeechFolder(str(tmp_path), layout="librispech")


# ---- Hugging Face's audiofolder


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_audiofolder_with_a_metadata_file_in_each_split(tmp_path, kind):
    for split, n in (("train", 3), ("test", 2)):
        rows = [
            {"file_name": f"data/{split}{i}.flac", "transcription": f"{split}, {i}"}
            for i in range(n)
        ]
        for i in range(n):
            put_sound(tmp_path / split / "data" / f"{split}{i}.flac", 400 + i + 10 * (n == 2))
        table = tmp_path / split / f"metadata.{kind}"
        if kind == "csv":
            lines = [f'{r["file_name"]},"{r["transcription"]}"' for r in rows]
            put_text(table, "file_name,transcription\n" + "\n".join(lines) + "\n")
        elif kind == "jsonl":
            put_text(table, "\n".join(map(json.dumps, rows)))
        else:
            pq.write_table(pa.Table.from_pylist(rows), table)
    found, said = read(SpeechFolder(str(tmp_path)))
    assert found == {f"train{i}.flac": (f"train, {i}", 400 + i) for i in range(3)} | {
        f"test{i}.flac": (f"test, {i}", 410 + i) for i in range(2)
    }
    assert "read as audiofolder (test/metadata" in said and "parts test, train are read as" in said
    source = SpeechFolder(str(tmp_path), train="train", heldout="test")
    assert {e["caption"] for e in source.examples("heldout")} == {"test, 0", "test, 1"}
    assert len(list(source.examples("train"))) == 3
    assert "no clip is in a split 'dev'; the corpus has test, train" in said_by(
        SpeechFolder(str(tmp_path), heldout="dev")
    )


def test_an_audiofolder_table_without_its_files_and_files_without_their_row(tmp_path):
    put_text(tmp_path / "train" / "metadata.csv", "file_name,text\nx.wav,one\ny.wav,two\n")
    assert "none of its 2 rows names a sound file that is there (first: " in said_by(
        SpeechFolder(str(tmp_path))
    )
    put_sound(tmp_path / "train" / "x.wav")
    put_sound(tmp_path / "train" / "z.wav")
    said = said_by(SpeechFolder(str(tmp_path)))
    assert "metadata.csv: line 3: names y.wav, and no such sound file is there: 1 of 2" in said
    found, said = read(SpeechFolder(str(tmp_path), max_error_share=0.5))
    assert found == {"x.wav": ("one", 400)}
    assert (
        "1 of 2 sound files was left out: no row that is read names them" in said
        and "z.wav" in said
    )
    assert "1 of 2 clips was passed over as unusable (first: " in said


# ---- LJSpeech, Coqui

LJ = (
    'LJ001-0001|Printing, in the "only sense|Printing, in the "only sense\n'
    "LJ001-0002|in 1455|in fourteen fifty-five\n"
)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.txt"])
def test_ljspeech(tmp_path, name):
    put_text(tmp_path / "README", "LJ Speech")
    put_text(tmp_path / name, LJ)
    for i in (1, 2):
        put_sound(tmp_path / "wavs" / f"LJ001-000{i}.wav", 400 + i, 22_050)
    found, said = read(SpeechFolder(str(tmp_path)))
    assert found == {
        "LJ001-0001.wav": ('Printing, in the "only sense', 401),
        "LJ001-0002.wav": ("in 1455", 402),
    }
    assert "read as ljspeech" in said and "--transcript normalized takes the other" in said
    found, _ = read(SpeechFolder(str(tmp_path), transcript="normalized"))
    assert found["LJ001-0002.wav"][0] == "in fourteen fifty-five"
    found, _ = read(SpeechFolder(str(tmp_path / name)))
    assert len(found) == 2


def test_coqui_tables_of_two_cells_and_with_a_header(tmp_path):
    put_sound(tmp_path / "wavs" / "a.wav")
    put_text(tmp_path / "metadata.csv", "a|one\n")
    assert read(SpeechFolder(str(tmp_path)))[0] == {"a.wav": ("one", 400)}
    assert "has no normalised transcript" in said_by(
        SpeechFolder(str(tmp_path), transcript="normalized")
    )
    put_text(
        tmp_path / "metadata.csv", "audio_file|text|speaker_name|emotion_name\nwavs/a.wav|1|Bo|x\n"
    )
    source = SpeechFolder(str(tmp_path), with_speaker=True)
    assert [(e["caption"], e["speaker"]) for e in read_all(source)] == [("1", "Bo")]
    put_text(tmp_path / "metadata.csv", "a|one|eins\nb|two\n")
    assert "metadata.csv: line 2 ends before its normalized" in said_by(SpeechFolder(str(tmp_path)))
    put_text(tmp_path / "metadata.csv", "a|x|y|z|one\n")
    assert "line 1 has 5 cells between pipes" in said_by(SpeechFolder(str(tmp_path)))


def test_filelists_of_paths_between_pipes(tmp_path):
    put_sound(tmp_path / "DUMMY1" / "LJ022-0023.wav")
    put_text(tmp_path / "filelists" / "train.txt", "DUMMY1/LJ022-0023.wav|The overwhelming\n")
    put_text(tmp_path / "train.txt", "DUMMY1/LJ022-0023.wav|The overwhelming\n")
    found, said = read(SpeechFolder(str(tmp_path / "train.txt")))
    assert found == {"LJ022-0023.wav": ("The overwhelming", 400)} and "read as ljspeech" in said
    said = said_by(SpeechFolder(str(tmp_path / "filelists" / "train.txt")))
    assert "train.txt: line 1 names the file DUMMY1/LJ022-0023.wav, so it is no header" in said


# ---- LibriSpeech, LibriTTS


def put_librispeech(root):
    put_text(root / "SPEAKERS.TXT", "; comment\n")
    for split, speaker, chapter in (("train-clean-100", 103, 1240), ("dev-clean", 84, 121123)):
        folder = root / split / str(speaker) / str(chapter)
        lines = []
        for i in range(2):
            name = f"{speaker}-{chapter}-{i:04}"
            put_sound(folder / f"{name}.flac", 400 + speaker + i)
            lines.append(f"{name} GO DO YOU HEAR {i}\n")
        put_text(folder / f"{speaker}-{chapter}.trans.txt", "".join(lines))


def test_librispeech(tmp_path):
    root = tmp_path / "LibriSpeech"
    put_librispeech(root)
    found, said = read(SpeechFolder(str(root)))
    assert found["84-121123-0001.flac"] == ("GO DO YOU HEAR 1", 485) and len(found) == 4
    assert "read as librispeech (84-121123.trans.txt)" in said
    assert "dev-clean, train-clean-100 are read as one" in said
    source = SpeechFolder(str(root), train="train-clean-100", heldout="dev-clean")
    assert {e.name.rsplit("/", 1)[-1][:3] for e in source.examples("train")} == {"103"}
    assert source.voices("heldout") == ["84", "84"]
    assert source.fields == {"caption": "text", "speech": "speech"}
    spoken = SpeechFolder(str(root), with_speaker=True)
    assert spoken.fields["speaker"] == "text"
    assert {e["speaker"] for e in read_all(spoken)} == {"103", "84"}


def test_librispeech_counts_sounds_without_a_line_and_lines_without_a_sound(tmp_path):
    put_librispeech(tmp_path)
    folder = tmp_path / "dev-clean" / "84" / "121123"
    (folder / "84-121123-0000.flac").unlink()
    put_sound(folder / "84-121123-0009.flac")
    found, said = read(SpeechFolder(str(tmp_path)))
    assert len(found) == 3
    assert "84-121123-0009.flac" in said and "they have no transcript" in said
    assert "no sound file has that name" in said and "84-121123-0000" in said


def test_libritts(tmp_path):
    folder = tmp_path / "train-clean-100" / "103" / "1240"
    name = "103_1240_000000_000001"
    put_sound(folder / f"{name}.wav", 480, 24_000)
    put_text(folder / f"{name}.original.txt", "Mrs. Rachel, 1st")
    put_text(folder / f"{name}.normalized.txt", "Missus Rachel, first")
    put_text(folder / "103_1240.trans.tsv", f"{name}\tMrs. Rachel\tMissus\n")
    found, said = read(SpeechFolder(str(tmp_path)))
    assert found == {f"{name}.wav": ("Mrs. Rachel, 1st", 480)} and "read as libritts" in said
    source = SpeechFolder(str(tmp_path), transcript="normalized")
    assert read(source)[0] == {f"{name}.wav": ("Missus Rachel, first", 480)}
    put_text(folder / f"{name}.normalized.txt", "café".encode("latin1"))
    assert "not UTF-8 text (byte 3)" in said_by(source)


# ---- VCTK


@pytest.mark.parametrize("version", ["0.80", "0.92"])
def test_vctk(tmp_path, version):
    for speaker, n in (("p225", 300), ("p226", 400)):
        for i in (1, 2):
            put_text(tmp_path / "txt" / speaker / f"{speaker}_00{i}.txt", f"{speaker} {i}\n")
            if version == "0.80":
                put_sound(tmp_path / "wav48" / speaker / f"{speaker}_00{i}.wav", n + i)
                continue
            for mic in (1, 2):
                name = f"{speaker}_00{i}_mic{mic}.flac"
                put_sound(tmp_path / "wav48_silence_trimmed" / speaker / name, n + 10 * mic + i)
    put_text(tmp_path / "speaker-info.txt", "ID AGE GENDER\n")
    found, said = read(SpeechFolder(str(tmp_path)))
    assert "read as vctk (txt/, wav48" in said and len(found) == 4
    if version == "0.80":
        assert found["p226_002.wav"] == ("p226 2", 402)
    else:
        assert found["p226_002_mic2.flac"] == ("p226 2", 422)
        assert "4 of 8 sounds were left out: not of mic2" in said
        both = SpeechFolder(str(tmp_path), mic="both")
        held = {e["caption"] for e in both.examples("heldout")}
        assert held and not held & {e["caption"] for e in both.examples("train")}
    assert set(SpeechFolder(str(tmp_path)).voices("train")) == {"p225", "p226"}
    (tmp_path / "wav48_x").mkdir()
    assert "recordings of the same texts; keep one" in said_by(SpeechFolder(str(tmp_path)))


# ---- Common Voice

CV = "client_id\tpath\tsentence_id\tsentence\tup_votes\tdown_votes\tage\tgender\n"


def put_commonvoice(root, names=("train", "dev")):
    for split in names:
        lines = [
            f'{split}{i}\tcommon_voice_en_{split}{i}.mp3\tx\t"Quoted" {split} {i}\t2\t0\t\t\n'
            for i in range(3)
        ]
        put_text(root / f"{split}.tsv", CV + "".join(lines))
        for i in range(3):
            put_sound(root / "clips" / f"common_voice_en_{split}{i}.mp3", 32_000 + 10 * i)


def test_commonvoice(tmp_path):
    put_commonvoice(tmp_path, ("train", "dev", "validated"))
    found, said = read(SpeechFolder(str(tmp_path)))
    assert "read as commonvoice (clips/, dev.tsv, train.tsv, validated.tsv)" in said
    assert set(found) == {f"common_voice_en_validated{i}.mp3" for i in range(3)}
    assert found["common_voice_en_validated1.mp3"][0] == '"Quoted" validated 1'
    assert len(list(SpeechFolder(str(tmp_path), heldout="dev.tsv").examples("train"))) == 3
    source = SpeechFolder(str(tmp_path), train="train.tsv", heldout="dev.tsv", with_speaker=True)
    assert sorted(e["speaker"] for e in source.examples("heldout")) == ["dev0", "dev1", "dev2"]
    assert sorted(e["speaker"] for e in source.examples("train")) == ["train0", "train1", "train2"]
    assert read(SpeechFolder(str(tmp_path / "dev.tsv")))[0].keys() == {
        f"common_voice_en_dev{i}.mp3" for i in range(3)
    }


def test_commonvoice_enclosed_texts_durations_and_leaks(tmp_path):
    put_commonvoice(tmp_path)
    row = 'a\tcommon_voice_en_dev0.mp3\tx\t"He said ""no"""\t2\t0\t\t\n'
    put_text(tmp_path / "dev.tsv", CV + row)
    put_text(
        tmp_path / "clip_durations.tsv", "clip\tduration[ms]\ncommon_voice_en_dev0.mp3\t2000\n"
    )
    source = SpeechFolder(str(tmp_path / "dev.tsv"), max_duration_s=1.5)
    assert "none of 1 clips is left" in said_by(source)
    found, _ = read(SpeechFolder(str(tmp_path / "dev.tsv")))
    assert found["common_voice_en_dev0.mp3"][0] == 'He said "no"'
    put_text(tmp_path / "train.tsv", CV + row)
    said = said_by(SpeechFolder(str(tmp_path), train="train", heldout="dev"))
    assert "in the training split and in the held-out one, as are 1 of 1" in said


# ---- Kaldi, ESPnet


def put_kaldi(root, segments=False):
    data = root / "data" / "train"
    for name, n in (("r1", 16_000), ("r2", 16_001)):
        put_sound(root / "audio" / f"{name}.wav", n)
    put_text(data / "wav.scp", f"r1 {root}/audio/r1.wav\nr2 audio/r2.wav\n")
    if segments:
        put_text(data / "segments", "u1 r1 0.10 0.30\nu2 r1 0.50 -1\nu3 r2 0.0 1.02\n")
        put_text(data / "text", "u1 one\nu2 two words\nu3 three\n")
        put_text(data / "utt2spk", "u1 s1\nu2 s1\nu3 s2\n")
    else:
        put_text(data / "text", "r1 one\nr2 two words\n")
    return data


def test_kaldi(tmp_path):
    data = put_kaldi(tmp_path)
    found, said = read(SpeechFolder(str(data)))
    assert found == {"r1.wav": ("one", 16_000), "r2.wav": ("two words", 16_001)}
    assert "read as kaldi (wav.scp)" in said
    assert read(SpeechFolder(str(tmp_path / "data")))[0] == found


def test_kaldi_segments_are_parts_of_files(tmp_path):
    source = SpeechFolder(str(put_kaldi(tmp_path, segments=True)), with_speaker=True)
    with pytest.warns(UserWarning, match="read as kaldi"):
        examples = {e["caption"]: e for e in read_all(source)}
    ramp = {caption: e["speech"].samples[:, 0] * 2**15 for caption, e in examples.items()}
    assert np.array_equal(ramp["one"], np.arange(1600, 4800))
    assert np.array_equal(ramp["two words"], np.arange(8000, 16_000))
    assert len(ramp["three"]) == 16_001  # 20 ms more are rounding
    assert examples["one"].name.endswith("r1.wav from 0.1 s")
    assert examples["three"]["speaker"] == "s2"
    sides = [{e.name.split(" ")[0] for e in source.examples(split)} for split in source.splits]
    assert all(sides) and not sides[0] & sides[1]


@pytest.mark.parametrize(
    "line, part",
    [
        ("r1 sph2pipe -f wav a.sph |", "line 1: is a command (sph2pipe -f wav a.sph |)"),
        ("r1 raw_wav.ark:123", "line 1: is a place in an archive"),
        ("r1 nowhere.wav", "no utterance of its text has a sound file that is there"),
    ],
)
def test_kaldi_pipes_and_archives_are_refused(tmp_path, line, part):
    data = put_kaldi(tmp_path)
    put_text(data / "wav.scp", line + "\n")
    assert part in said_by(SpeechFolder(str(data)))


def test_kaldi_segments_beyond_the_file_are_broken(tmp_path):
    data = put_kaldi(tmp_path, segments=True)
    put_text(data / "segments", "u1 r1 0.9 1.3\nu2 r1 0.5 0.9\nu3 r2 0 1\n")
    assert "r1.wav: has no part from 0.9 s to 1.3 s, as it ends at 1.00 s" in said_by(
        SpeechFolder(str(data), max_error_share=0)
    )
    put_text(data / "segments", "u1 r1 0.9 0.3\n")
    assert "segments: line 1: begins at 0.9 s and ends at 0.3 s" in said_by(SpeechFolder(str(data)))


# ---- NeMo


def test_nemo_manifests_with_and_without_offsets(tmp_path):
    put_sound(tmp_path / "wav" / "a.wav", 16_000)
    put_sound(tmp_path / "wav" / "b.wav", 401)
    rows = [
        {"audio_filepath": "wav/a.wav", "duration": 0.25, "offset": 0.5, "text": "a part"},
        {"audio_filepath": str(tmp_path / "wav" / "b.wav"), "duration": 0.03, "text": "whole"},
    ]
    put_text(tmp_path / "train_manifest.json", "\n".join(map(json.dumps, rows)))
    for path in (tmp_path, tmp_path / "train_manifest.json"):
        found, said = read(SpeechFolder(str(path)))
        assert found == {"a.wav": ("a part", 4000), "b.wav": ("whole", 401)}
        assert "read as nemo (audio_filepath in train_manifest.json)" in said
    put_text(tmp_path / "dev_manifest.json", json.dumps(rows[0] | {"offset": 0.75}))
    put_text(tmp_path / "train_manifest.json", json.dumps(rows[1]))
    source = SpeechFolder(str(tmp_path), train="train", heldout="dev")
    (held,) = source.examples("heldout")
    assert held["speech"].samples[0, 0] == 12_000 / 2**15


def test_nemo_reads_as_much_of_a_file_as_its_duration_says(tmp_path):
    durations = {"a": (1.0, 0.5), "b": (1.0, 0.96), "c": (8.0, 7.93), "d": (8.0, 7.9), "e": (2, 3)}
    rows = []
    for i, (name, (length_s, said_s)) in enumerate(durations.items()):
        put_sound(tmp_path / f"{name}.wav", int(length_s * RATE_HZ) + i)
        rows.append({"audio_filepath": f"{name}.wav", "duration": said_s, "text": f"{name} text"})
    put_text(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)))
    found, said = read(SpeechFolder(str(tmp_path)))
    assert {name: n for name, (_, n) in found.items()} == {
        "a.wav": 8_000,
        "b.wav": 16_001,
        "c.wav": 128_002,
        "d.wav": 126_400,
        "e.wav": 32_004,
    }
    assert "2 of 5 rows were cut to the manifest's duration (first:" in said
    rows[0]["duration"] = 1000
    put_text(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)))
    line = said_by(SpeechFolder(str(tmp_path)))
    assert "a.wav: its duration is 1000 and the file lasts 1 s, so its table has" in line
    assert "divide them by 1000" in line


@pytest.mark.parametrize(
    "row, part",
    [
        ('{"audio_filepath": "a.wav", "text": "x", "duration": "soon"}', "duration is 'soon'"),
        ('{"audio_filepath": "a.wav", "text": ""}', "line 1: the transcript is empty"),
        ('{"audio_filepath": "a.wav"}', "needs the columns file and text, has audio_filepath"),
        ('{"audio_filepath": "a.wav", "text": "x"', "line 1: not JSON"),
        ('{"audio_filepath": "a.wav", "audio_filepath": "b.wav", "text": "x"}', "comes twice"),
    ],
)
def test_nemo_faults_name_the_line(tmp_path, row, part):
    put_sound(tmp_path / "a.wav")
    put_text(tmp_path / "m.jsonl", row + "\n")
    assert part in said_by(SpeechFolder(str(tmp_path / "m.jsonl")))


# ---- any table


@pytest.mark.parametrize(
    "name, content",
    [
        ("t.csv", "\ufeffpath;sentence;client_id\r\nclips\\a.WAV;eins, zwei;s1\r\nb;drei;s2\r\n"),
        ("t.tsv", 'path\tsentence\tclient_id\n./clips/a.WAV\t"eins, zwei"\ts1\nb.flac\tdrei\ts2\n'),
        ("t.csv", 'path,sentence,client_id\n/far/clips/a.WAV,"eins, zwei",s1\nb.flac,drei,s2\n'),
        ("t.psv", "path|sentence|client_id\na.WAV|eins, zwei|s1\nclips/b|drei|s2\n"),
    ],
)
def test_any_table_with_columns_by_name(tmp_path, name, content):
    put_sound(tmp_path / "clips" / "a.WAV", 401)
    put_sound(tmp_path / "clips" / "b.flac", 402)
    put_text(tmp_path / name, content)
    columns = {"file": "path", "caption": "sentence", "speaker": "client_id"}
    for path in (tmp_path / name, tmp_path):
        source = SpeechFolder(str(path), columns=columns)
        found, said = read(source)
        assert found == {"a.WAV": ("eins, zwei", 401), "b.flac": ("drei", 402)}
        assert "read as table" in said
        assert sorted(e["speaker"] for e in read_all(source)) == ["s1", "s2"]


def test_rows_of_one_file_stay_in_one_split_and_twins_are_taken_once(tmp_path):
    rows = []
    for i in range(20):
        put_sound(tmp_path / f"{i}.wav")
        rows += [f"{i}.wav,first {i}\n", f"{i}.wav,second {i}\n", f"{i}.wav,first {i}\n"]
    put_text(tmp_path / "captions.csv", "file,text\n" + "".join(rows))
    source = SpeechFolder(str(tmp_path / "captions.csv"))
    with pytest.warns(UserWarning) as said:
        parts = [[e["caption"].split()[1] for e in source.examples(s)] for s in source.splits]
    lines = " ".join(str(w.message) for w in said)
    assert len(parts[0]) == 36 and len(parts[1]) == 4 and not set(parts[0]) & set(parts[1])
    assert "20 of 60 rows were listed more than once and taken once" in lines
    assert "given several transcripts" in lines


def test_splits_of_a_column(tmp_path):
    rows = []
    for i, split in enumerate(["train", "train", "valid"]):
        put_sound(tmp_path / f"{i}.wav")
        rows.append(f"{i}.wav,{i},{split}\n")
    put_text(tmp_path / "t.csv", "file,text,split\n" + "".join(rows))
    source = SpeechFolder(str(tmp_path / "t.csv"), heldout="valid")
    assert [[e["caption"] for e in source.examples(s)] for s in source.splits] == [
        ["0", "1"],
        ["2"],
    ]
    assert "the corpus has train, valid" in said_by(
        SpeechFolder(str(tmp_path / "t.csv"), heldout="dev")
    )


@pytest.mark.parametrize(
    "content, part",
    [
        ("path,words\na.wav,one\n", "needs the columns file and text, has path, words"),
        ("file,text\n", "the table has no rows"),
        ("", "the file is empty; its first line should name the columns"),
        ("file,text\nb.wav,one\n", "none of its 1 rows names a sound file that is there"),
        ('file,text\na.wav,"one\nb.wav,two"\n', "a cell in quotes holds another row"),
        ("file,text\na.wav,caf\xe9\n".encode("latin1"), "not UTF-8 text (byte 19) in line 2"),
    ],
)
def test_faults_of_tables(tmp_path, content, part):
    put_sound(tmp_path / "a.wav")
    put_text(tmp_path / "t.csv", content)
    assert part in said_by(SpeechFolder(str(tmp_path / "t.csv")))


def test_a_table_that_holds_its_sounds_is_sent_elsewhere(tmp_path):
    table = pa.table({"audio": [{"bytes": b"x", "path": "a.wav"}], "text": ["one"]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert "read it in a recipe as HubTable(" in said_by(SpeechFolder(str(tmp_path / "t.parquet")))


def test_converted_files_are_found_under_their_new_suffix(tmp_path):
    put_sound(tmp_path / "clips" / "a.wav")
    put_text(tmp_path / "t.csv", "path,sentence\nclips/a.mp3,one\n")
    found, said = read(SpeechFolder(str(tmp_path / "t.csv")))
    assert found == {"a.wav": ("one", 400)}
    assert "a.wav was of files that have another suffix than the table says" in said
    assert "read as table (file from path, caption from sentence)" in said


# ---- places


def test_two_layouts_in_one_folder_are_asked_about(tmp_path):
    put_librispeech(tmp_path)
    put_commonvoice(tmp_path)
    said = said_by(SpeechFolder(str(tmp_path)))
    assert "could be read as librispeech (84-121123.trans.txt) and commonvoice (clips/" in said
    assert "--layout librispeech or --layout commonvoice" in said
    assert len(read(SpeechFolder(str(tmp_path), layout="librispeech"))[0]) == 4
    put_text(tmp_path / "transcripts.csv", "file,text\n84-121123-0000,one\n")
    assert "could be read as plain (transcripts.csv) and" in said_by(SpeechFolder(str(tmp_path)))


def test_a_layout_that_is_not_there_says_what_it_wants(tmp_path):
    put_sound(tmp_path / "a.wav")
    for layout, part in {
        "kaldi": "holds no wav.scp",
        "vctk": "has no folders txt and wav48",
        "nemo": "this layout wants a manifest",
        "commonvoice": "this layout wants a table such as validated.tsv",
        "ljspeech": "this layout wants a metadata.csv",
        "audiofolder": "this layout wants a metadata.csv",
        "table": "this layout wants a table with the columns",
        "librispeech": "no sound file with a transcript",
        "libritts": "no sound file with a transcript",
    }.items():
        assert part in said_by(SpeechFolder(str(tmp_path), layout=layout)), layout
    put_text(tmp_path / "notes.doc", "x")
    assert "notes.doc: is no table that is known" in said_by(
        SpeechFolder(str(tmp_path / "notes.doc"))
    )


def test_settings_that_mean_nothing_are_refused(tmp_path):
    put_librispeech(tmp_path / "libri")
    put_sound(tmp_path / "plain" / "a.wav")
    put_text(tmp_path / "plain" / "a.txt", "one")
    for folder, part in (("libri", "read as librispeech, which has"), ("plain", "has no table")):
        for settings in ({"columns": {"caption": "x"}}, {"transcript": "normalized"}):
            assert part in said_by(SpeechFolder(str(tmp_path / folder), **settings))


def test_a_corpus_in_a_folder_below_is_pointed_at(tmp_path):
    put_text(tmp_path / "LJSpeech-1.1" / "metadata.csv", LJ)
    put_sound(tmp_path / "LJSpeech-1.1" / "wavs" / "LJ001-0001.wav")
    said = said_by(SpeechFolder(str(tmp_path)))
    assert "LJSpeech-1.1 in it could be read as ljspeech (metadata.csv" in said
    assert said.endswith("name that folder")
    put_librispeech(tmp_path / "OpenSLR" / "LibriSpeech")
    source = SpeechFolder(str(tmp_path / "OpenSLR"), train="train-clean-100", heldout="dev-clean")
    assert source.voices("heldout") == ["84", "84"]


def test_speakers_that_are_unknown_are_refused_where_they_are_wanted(tmp_path):
    put_sound(tmp_path / "a.wav")
    put_text(tmp_path / "a.txt", "one")
    assert SpeechFolder(str(tmp_path)).voices("train") is None
    said = said_by(SpeechFolder(str(tmp_path), with_speaker=True))
    assert "the speakers of its clips are unknown" in said
