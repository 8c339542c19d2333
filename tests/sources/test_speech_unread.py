"""Tables of sounds that cannot be read, or not as tables: none is passed over without a word."""

import gzip
import json
import warnings
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtok.errors import UserError
from mmtok.sources.speech import SpeechFolder
from tests.sources.test_speech_layouts import put_sound, put_text, read, said_by

GOOD = "path,sentence\na.wav,x\nb.wav,y\n"
OTHER = "path,sentence\nc.wav,z\nd.wav,w\n"
UTF_16 = OTHER.encode("utf-16")


def put_sounds(root, names="abcd"):
    for i, name in enumerate(names):
        put_sound(root / f"{name}.wav", 400 + i)


def packed(kind, text):
    if kind == ".gz":
        return gzip.compress(text.encode())
    if kind == ".zst":
        return pa.compress(text.encode(), codec="zstd", asbytes=True)
    return text.encode()


def manifest(names, duration_s=0.0125):
    rows = [{"audio_filepath": f"{n}.wav", "duration": duration_s, "text": f"t {n}"} for n in names]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "content, part",
    [
        (UTF_16, "dev.csv: is UTF-16; convert it first"),
        ("", "dev.csv: the file is empty"),
        ("path,path,sentence\n", "dev.csv: line 1: the column path comes twice"),
        ("c.wav,z\nd.wav,w\n", "dev.csv: line 1 names the file c.wav, so it is no header"),
    ],
)
def test_a_damaged_table_beside_a_good_one(tmp_path, content, part):
    put_sounds(tmp_path)
    put_text(tmp_path / "train.csv", GOOD)
    put_text(tmp_path / "dev.csv", content)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match=f"{part}.*: 1 of 2 tables cannot be used, and at most"):
            SpeechFolder(str(tmp_path)).check()
    assert not [note for note in notes if "passed over" in str(note.message)]
    said = said_by(SpeechFolder(str(tmp_path), train="train", heldout="dev"))
    assert part in said and "1 of 2" not in said
    found, said = read(SpeechFolder(str(tmp_path), max_error_share=0.5))
    assert found == {"a.wav": ("x", 400), "b.wav": ("y", 401)} and part in said
    assert "1 of 2 tables was passed over as unusable" in said
    assert "2 of 4 sound files were left out: no row that is read names them" in said
    found, said = read(SpeechFolder(str(tmp_path), train="train"))
    assert set(found) == {"a.wav", "b.wav"} and "dev.csv" not in said
    (tmp_path / "train.csv").unlink()
    assert part in said_by(SpeechFolder(str(tmp_path)))


LATIN_1 = "id,dialect\n1,Münchnerisch\n".encode("latin-1")


@pytest.mark.parametrize("content", ["", LATIN_1, "id,id\n1,2\n", UTF_16.replace(b"p", b"q")])
@pytest.mark.parametrize("good", ["my.csv", "m.jsonl", "data/metadata.csv"])
def test_a_damaged_table_that_lists_no_files_is_counted(tmp_path, good, content):
    put_sounds((tmp_path / good).parent)
    text = manifest("abcd") if good.endswith("jsonl") else GOOD.replace("path", "file_name")
    put_text(tmp_path / good, text)
    put_text(tmp_path / "speakers.csv", content)
    found, said = read(SpeechFolder(str(tmp_path)))
    assert set(found) >= {"a.wav", "b.wav"}
    assert "1 of 2 tables was left out: by name and first line they list no files, and can" in said
    assert "speakers.csv" in said


@pytest.mark.parametrize(
    "name, content", [("more.csv", UTF_16), ("more.csv", "e.wav,e.wav\n"), ("my-1.csv", "")]
)
def test_a_damaged_table_that_lists_files_sends_to_the_good_one(tmp_path, name, content):
    put_sounds(tmp_path)
    put_text(tmp_path / "my-0.csv", GOOD)
    put_text(tmp_path / name, content)
    said = said_by(SpeechFolder(str(tmp_path)))
    remedy = f"mend or remove them, or name the one to read: --path {tmp_path}/my-0.csv"
    assert f"{name}: " in said and said.endswith(remedy)
    assert set(read(SpeechFolder(str(tmp_path / "my-0.csv")))[0]) == {"a.wav", "b.wav"}


def test_a_table_with_other_columns_is_counted_and_asked_for_as_a_split(tmp_path):
    put_sounds(tmp_path)
    put_text(tmp_path / "train.csv", GOOD)
    put_text(tmp_path / "dev.csv", "pathh,sentence\nc.wav,z\n")
    put_text(tmp_path / "settings.json", '{\n "rate_hz": 16000\n}\n')
    found, said = read(SpeechFolder(str(tmp_path)))
    assert set(found) == {"a.wav", "b.wav"}
    assert "1 of 2 tables was left out: they have no columns of files and texts (first: dev" in said
    assert "dev.csv, which has pathh, sentence" in said and "settings" not in said
    needed = "dev.csv: needs the columns file and text, has pathh, sentence"
    assert needed in said_by(SpeechFolder(str(tmp_path), train="train", heldout="dev"))
    (tmp_path / "train.csv").unlink()
    assert needed in said_by(SpeechFolder(str(tmp_path)))


def test_a_split_whose_sounds_are_missing_is_not_called_unknown(tmp_path):
    put_sounds(tmp_path, "ab")
    put_text(tmp_path / "m.csv", "file,text,split\na.wav,x,train\nb.wav,y,train\nc.wav,z,test\n")
    said = said_by(SpeechFolder(str(tmp_path), heldout="test", max_error_share=0.5))
    assert "the split 'test' has 1 clip, and none can be used; the first: " in said
    assert "c.wav" in said and "no clip is in a split" not in said
    put_sound(tmp_path / "c.wav", 8_000)
    assert len(read(SpeechFolder(str(tmp_path), heldout="test"))[0]) == 3
    said = said_by(SpeechFolder(str(tmp_path), heldout="test", max_duration_s=0.1))
    assert "c.wav was left out: more seconds than 0.1" in said


def test_lists_of_objects_are_tables_too(tmp_path):
    put_sounds(tmp_path)
    put_text(tmp_path / "train.csv", GOOD)
    rows = [{"path": f"{name}.wav", "sentence": f"t {name}"} for name in "cd"]
    put_text(tmp_path / "dev.json", json.dumps(rows, indent=1))
    put_text(tmp_path / "words.json", '["no", "table"]')
    found, _ = read(SpeechFolder(str(tmp_path), train="train", heldout="dev"))
    assert {name: text for name, (text, _) in found.items()} == {
        "a.wav": "x", "b.wav": "y", "c.wav": "t c", "d.wav": "t d"
    }  # fmt: skip


def test_of_common_voice(tmp_path):
    put_sounds(tmp_path / "clips")
    header = "client_id\tpath\tsentence\tup_votes\n"
    rows = {name: f"s\t{name}.wav\tt {name}\t2\n" for name in "abcd"}
    put_text(tmp_path / "validated.tsv", (header + "".join(rows.values())).encode("utf-16"))
    put_text(tmp_path / "dev.tsv", header + rows["c"])
    assert "validated.tsv: is UTF-16" in said_by(SpeechFolder(str(tmp_path)))
    (tmp_path / "validated.tsv").unlink()
    put_text(tmp_path / "validated.tsv.gz", packed(".gz", header + rows["a"] + rows["b"]))
    put_text(tmp_path / "dev.tsv", UTF_16)  # its clips are among the validated ones
    found, said = read(SpeechFolder(str(tmp_path)))
    assert set(found) == {"a.wav", "b.wav"} and "UTF-16" not in said
    assert "2 of 4 sound files were left out: no row that is read names them" in said


def test_of_nemo(tmp_path):
    put_sounds(tmp_path)
    put_text(tmp_path / "train.json", manifest("ab").encode("utf-16"))
    put_text(tmp_path / "val.json", manifest("cd"))
    assert "train.json: is UTF-16" in said_by(SpeechFolder(str(tmp_path)))


@pytest.mark.parametrize("kind", [".json.zst", ".jsonl.zst", ".jsonl.gz", ".ndjson", ".JSON"])
def test_packed_manifests_have_the_rules_of_nemo(tmp_path, kind):
    for i, name in enumerate("ab"):
        put_sound(tmp_path / f"{name}.wav", 16_000 + i)
    suffix = f".{kind.rsplit('.', 1)[1]}"
    put_text(tmp_path / f"m{kind}", packed(suffix, manifest("ab", 0.5)))
    found, said = read(SpeechFolder(str(tmp_path / f"m{kind}")))
    assert found == {"a.wav": ("t a", 8000), "b.wav": ("t b", 8000)} and "read as nemo" in said
    put_text(tmp_path / f"m{kind}", packed(suffix, manifest("ab", 1000)))
    assert "has milliseconds" in said_by(SpeechFolder(str(tmp_path)))


@pytest.mark.parametrize("name", ["metadata.csv.gz", "metadata.csv.zst", "METADATA.CSV"])
def test_tables_of_audiofolder_may_be_packed_and_in_capitals(tmp_path, name):
    put_sounds(tmp_path / "train")
    text = "file_name,text\n" + "".join(f"{n}.wav,t {n}\n" for n in "abcd")
    put_text(tmp_path / "train" / name, packed(f".{name.rsplit('.', 1)[1]}", text))
    found, said = read(SpeechFolder(str(tmp_path)))
    assert len(found) == 4 and found["b.wav"] == ("t b", 401) and "read as audiofolder" in said


def test_damaged_tables_of_audiofolder_are_named(tmp_path):
    put_sounds(tmp_path / "test", "ab")
    put_sounds(tmp_path / "train", "cd")
    put_text(tmp_path / "train" / "metadata.csv", "file_name,text\nc.wav,z\nd.wav,w\n")
    for splits in ({}, {"train": "train", "heldout": "test"}):
        put_text(tmp_path / "test" / "metadata.csv", UTF_16)
        assert "test/metadata.csv: is UTF-16" in said_by(SpeechFolder(str(tmp_path), **splits))
    (tmp_path / "train" / "metadata.csv").unlink()
    assert "test/metadata.csv: is UTF-16" in said_by(SpeechFolder(str(tmp_path)))


@pytest.mark.parametrize("kind", ["", ".gz", ".zst"])
def test_tables_between_pipes_may_be_packed(tmp_path, kind):
    put_sounds(tmp_path / "wavs")
    put_text(tmp_path / f"metadata_train.csv{kind}", packed(kind, "a|one\nb|two\n"))
    found, said = read(SpeechFolder(str(tmp_path)))
    assert found == {"a.wav": ("one", 400), "b.wav": ("two", 401)} and "ljspeech" in said


def test_a_damaged_part_beside_the_whole_between_pipes_is_asked_for_as_a_split_only(tmp_path):
    put_sounds(tmp_path / "wavs", "abc")
    put_text(tmp_path / "metadata.csv", "a|one\nb|two\nc|three\n")
    put_text(tmp_path / "metadata_val.csv", UTF_16)
    assert len(read(SpeechFolder(str(tmp_path)))[0]) == 3
    assert "_val.csv: is UTF-16" in said_by(SpeechFolder(str(tmp_path), heldout="metadata_val"))
    put_text(tmp_path / "metadata_train.csv", "a|one\nb|two\n")
    (tmp_path / "metadata.csv").unlink()
    assert "metadata_val.csv: is UTF-16" in said_by(SpeechFolder(str(tmp_path)))


def test_lists_of_librispeech_may_be_in_capitals(tmp_path):
    put_sound(tmp_path / "1" / "2" / "1-2-0.FLAC")
    put_text(tmp_path / "1" / "2" / "1-2.TRANS.TXT", "1-2-0 HELLO\n")
    assert read(SpeechFolder(str(tmp_path)))[0] == {"1-2-0.FLAC": ("HELLO", 400)}


def test_parts_of_one_recording_hold_nothing_out_and_that_is_said(tmp_path):
    put_sound(tmp_path / "a.wav", 16_000)
    rows = [{"audio_filepath": "a.wav", "offset": i / 4, "duration": 0.25} for i in range(4)]
    lines = [json.dumps(row | {"text": f"part {i}"}) + "\n" for i, row in enumerate(rows)]
    put_text(tmp_path / "m.jsonl", "".join(lines))
    with pytest.warns(UserWarning, match="none of its 4 usable clips is for heldout, as all are"):
        SpeechFolder(str(tmp_path / "m.jsonl")).check()


def test_a_libritts_of_one_text_says_which(tmp_path):
    put_sound(tmp_path / "1" / "2" / "1_2_0.wav")
    put_text(tmp_path / "1" / "2" / "1_2_0.normalized.txt", "two")
    said = said_by(SpeechFolder(str(tmp_path)))
    assert "has no .original.txt, but .normalized.txt beside its sounds; take --transcript" in said
    found, _ = read(SpeechFolder(str(tmp_path), transcript="normalized"))
    assert found == {"1_2_0.wav": ("two", 400)}


def test_packed_tars_are_to_be_unpacked(tmp_path):
    put_text(tmp_path / "s.tar.gz", gzip.compress(b"tar"))
    for path in (tmp_path, tmp_path / "s.tar.gz"):
        assert "s.tar.gz: is packed, and sounds in tars are read by" in said_by(
            SpeechFolder(str(path))
        )


def test_tables_that_hold_sounds_are_sent_to_the_reader_of_such_tables(tmp_path):
    cells = [{"bytes": b"RIFF", "path": f"{i}.wav"} for i in range(2)]
    table = tmp_path / "data" / "train-00000-of-00001.parquet"
    table.parent.mkdir()
    pq.write_table(pa.table({"audio": cells, "sentence": ["one", "two"]}), table)
    rest = "{'speech': 'audio', 'caption': 'sentence'}, {'speech': 'speech', 'caption': 'text'})"
    for path in (tmp_path, tmp_path / "data", table):
        said = said_by(SpeechFolder(str(path)))
        assert "its column audio holds the sounds themselves" in said
        assert f"HubTable({str(path)!r}, {rest}" in said


def test_milliseconds_in_any_table(tmp_path):
    put_sounds(tmp_path, "ab")  # of 25 ms
    put_text(tmp_path / "t.csv", "file,text,duration\na.wav,x,25\nb.wav,y,25\n")
    said = said_by(SpeechFolder(str(tmp_path / "t.csv"), max_duration_s=10))
    assert "a.wav: its duration is 25 and the file lasts 0.025 s, so its table has milli" in said
    put_text(tmp_path / "t.csv", "file,text,duration\na.wav,x,0.025\nb.wav,y,0.025\n")
    assert len(read(SpeechFolder(str(tmp_path / "t.csv"), max_duration_s=10))[0]) == 2


def test_a_damaged_table_of_pictures_beside_a_good_one(tmp_path):
    from mmtok.sources.images import ImageFolder

    for i, name in enumerate("abcd"):
        put_picture(tmp_path / f"{name}.png", i)
    put_text(tmp_path / "train.csv", "file,caption\na.png,x\nb.png,y\n")
    put_text(tmp_path / "dev.csv", "file,caption\nc.png,z\nd.png,w\n".encode("utf-16"))
    for splits in ({}, {"train": "train", "heldout": "dev"}):
        with pytest.raises(UserError, match=r"dev.csv: is UTF-16.*1 of 2 tables cannot be used"):
            ImageFolder(str(tmp_path), layout="table", **splits).check()
    ImageFolder(str(tmp_path), layout="table", max_error_share=0.5).check()
    (tmp_path / "dev.csv").rename(tmp_path / "sizes.csv")  # whose header names files
    with pytest.raises(UserError, match=r"or name the one to read: --path .*train\.csv$"):
        ImageFolder(str(tmp_path), layout="table").check()
    ImageFolder(str(tmp_path / "train.csv")).check()
    put_text(tmp_path / "sizes.csv", "")
    with pytest.warns(UserWarning, match="list no files, and cannot be read .*sizes.csv: the file"):
        ImageFolder(str(tmp_path), layout="table").check()


def put_picture(path, value):
    """A PNG of one grey pixel."""

    def chunk(kind, content):
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    head = (1).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    pixels = zlib.compress(bytes([0, value]))
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    put_text(path, b"\x89PNG\r\n\x1a\n" + parts)
