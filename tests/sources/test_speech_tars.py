"""Tars of clips give the samples and texts that were put in; faults are said in a line."""

import io
import json
import pickle
import warnings

import numpy as np
import pytest
import soundfile

from mmtok.errors import UserError
from mmtok.sources.speech import SpeechFolder
from tests.sources.test_image_tars import write_tar


def sound(value, kind="WAV", n=800):
    file = io.BytesIO()
    samples = np.full(n, value / 100, np.float32)
    soundfile.write(file, samples, 8_000, format=kind, subtype="PCM_16")
    return file.getvalue()


def shard(path, numbers, kind="flac", speaker=False):
    samples = {}
    for i in numbers:
        members = {kind: sound(i, kind.upper(), 800 + i), "txt": f"text {i}\n"}
        if speaker:
            members["json"] = json.dumps({"spk": f"s{i % 2}", "text": "of the json"})
        samples[f"{i:06}"] = members
    return write_tar(path, samples)


def examples(source, *splits):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = []
        for split in splits or source.splits:
            listing = source.listing(split)
            listing.chunks = [pickle.loads(pickle.dumps(chunk)) for chunk in listing.chunks]
            found += listing.examples()
        return found


def values(found):
    """(caption, value, number of samples) of examples."""
    sounds = [(e["caption"], e["speech"].samples) for e in found]
    return {(text, round(100 * float(s[0, 0])), len(s)) for text, s in sounds}


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_folder_pattern_range_and_file(tmp_path, kind):
    for k in range(3):
        shard(tmp_path / f"asr-train-{k:04}.tar", range(10 * k, 10 * k + 4), kind)
    parts = [{(f"text {i}", i, 800 + i) for i in range(10 * k, 10 * k + 4)} for k in range(3)]
    wanted = set.union(*parts)
    with pytest.warns(UserWarning, match="read as webdataset .asr-train-0000.tar"):
        SpeechFolder(str(tmp_path)).check()
    for name in ("", "/asr-train-{0000..0002}.tar", "/*.tar"):
        assert values(examples(SpeechFolder(f"{tmp_path}{name}"))) == wanted
    one = SpeechFolder(f"{tmp_path}/asr-train-0001.tar")
    assert values(examples(one)) == parts[1]
    named = SpeechFolder(str(tmp_path), heldout="0002")
    assert values(examples(named, "heldout")) == parts[2]
    short = SpeechFolder(str(tmp_path), min_duration_s=0.1, max_duration_s=0.1)
    assert values(examples(short)) == {("text 0", 0, 800)}


def test_texts_and_speakers_of_the_json(tmp_path):
    shard(tmp_path / "a.tar", range(4), speaker=True)
    source = SpeechFolder(str(tmp_path), columns={"caption": "text", "speaker": "spk"})
    assert {(e["caption"], e["speaker"]) for e in examples(source)} == {
        ("of the json", "s0"),
        ("of the json", "s1"),
    }


def test_faults(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"1": {"jpg": "x", "txt": "t"}})
    for source, said in [
        (SpeechFolder(str(path)), "a.tar: no member can be the file; their suffixes are jpg, txt"),
        (SpeechFolder(f"{tmp_path}/b-{{0..3}}.tar"), "nothing there has such a name"),
        (SpeechFolder(str(path), layout="kaldi"), "a.tar: .* webdataset"),
    ]:
        with pytest.raises(UserError, match=said):
            examples(source)
    samples = {f"{i:03}": {"wav": sound(1, n=800 + i), "txt": f"text {i}"} for i in range(200)}
    samples["007"]["wav"] = b"no sound"
    samples["009"]["txt"] = " "
    write_tar(path, samples)
    with pytest.warns(
        UserWarning, match="2 of 200 clips were passed over as unusable .first: .*a.t"
    ):
        SpeechFolder(str(path)).check()
    assert len(examples(SpeechFolder(str(path)))) == 198
    del samples["011"]["txt"]
    write_tar(path, samples)
    with pytest.raises(UserError, match="a.tar: 007.wav: .*: 3 of 200 clips cannot be used"):
        examples(SpeechFolder(str(path)))


def test_speakers_are_found_by_their_usual_key(tmp_path):
    shard(tmp_path / "a.tar", range(4), speaker=True)
    found = examples(SpeechFolder(str(tmp_path), with_speaker=True))
    assert sorted((e["caption"], e["speaker"]) for e in found) == [
        (f"text {i}", f"s{i % 2}") for i in range(4)
    ]
    voices = SpeechFolder(str(tmp_path)).voices("train")
    assert voices is not None and set(voices) <= {"s0", "s1"}


def test_samples_without_a_speaker_are_read_unless_it_is_named(tmp_path):
    samples = {
        f"{i}": {"wav": sound(i, n=800 + i), "json": json.dumps({"text": f"text {i}"})}
        for i in range(4)
    }
    samples["0"]["json"] = json.dumps({"text": "text 0", "speaker": 12})
    write_tar(tmp_path / "a.tar", samples)
    found = examples(SpeechFolder(str(tmp_path), with_speaker=True))
    assert sorted((e["caption"], e.get("speaker")) for e in found) == [
        ("text 0", "12"), ("text 1", None), ("text 2", None), ("text 3", None)
    ]  # fmt: skip
    with pytest.raises(UserError, match="its speaker is None, and no text"):
        examples(SpeechFolder(str(tmp_path), columns={"speaker": "speaker"}))


def test_broken_tars_are_passed_over_as_the_source_says(tmp_path):
    for k in range(3):
        shard(tmp_path / f"{k}.tar", range(10 * k, 10 * k + 4))
    (tmp_path / "1.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match="1 of 3 tars cannot be used"):
        SpeechFolder(str(tmp_path)).check()
    found = examples(SpeechFolder(str(tmp_path), max_error_share=0.5))
    assert len(found) == 8
