"""The benchmark of speech: its clips, ways and bars, and what a crash looks like in it."""

import importlib
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.metrics.intervals import Estimate
from mmtok.sources.sound_files import write_sound

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = (
    "bench_speech",
    "speech_long",
    "speech_conditions",
    "speech_clips",
    "speech_tokenizers",
    "side_by_side",
)


@pytest.fixture(scope="module")
def scripts():
    """name -> module."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(str(SCRIPTS))
    for name in set(sys.modules) - before:
        if (SCRIPTS / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path, rng):
    for i, rate_hz in enumerate((16_000, 8_000, 22_050)):
        sound = 0.1 * rng.standard_normal(rate_hz // 2).astype(np.float32)
        write_sound(tmp_path / f"{i}.wav", sound, rate_hz)
    (tmp_path / "1.txt").write_text("one\n")
    (tmp_path / "3.wav").write_bytes(b"no sound")
    return tmp_path


def test_clips_of_a_folder_and_of_a_tar_of_it_are_equal(scripts, folder, tmp_path_factory, capsys):
    find_clips = scripts["speech_clips"].find_clips
    with pytest.warns(UserWarning, match="resampled"):
        clips = find_clips(folder)
    assert [(c.name, c.rate_hz, c.text) for c in clips] == [
        ("0.wav", 16_000, None),
        ("1.wav", 8_000, "one"),
        ("2.wav", 22_050, None),
    ]
    assert {len(clip.samples) for clip in clips} == {8_000}
    assert "left out 1 clips" in capsys.readouterr().err
    tar = tmp_path_factory.mktemp("tar") / "clips.tar.gz"
    with tarfile.open(tar, "w:gz") as file:
        file.add(folder, "clips")
    with pytest.warns(UserWarning, match="resampled"):
        again = find_clips(tar)
    assert [c.text for c in again] == [c.text for c in clips]
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(again, clips))
    assert [c.name for c in find_clips(folder, every=4)] == ["0.wav"]
    assert [c.name for c in find_clips(folder, limit=1)] == ["0.wav"]


def test_what_holds_no_clips_is_refused(scripts, tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "x.tar"):
        with pytest.raises(UserError):
            scripts["speech_clips"].find_clips(path)


def test_every_vocoder_of_the_package_has_a_name(scripts):
    kinds = scripts["speech_tokenizers"].vocoder_kinds()
    assert kinds["griffinlim"].__name__ == "GriffinLimConfig"
    with pytest.raises(UserError, match="griffinlim"):
        list(scripts["speech_tokenizers"].trips([16], [80], ["nothing"]))


def test_ways_keep_lengths_and_say_their_bits(scripts):
    clip = np.random.default_rng(0).uniform(-0.3, 0.3, 3_333).astype(np.float32)
    found = list(scripts["speech_tokenizers"].trips([8, 0], [80, 20, 50], ["griffin-lim"]))
    assert [trip.tokens for trip in found] == [
        f"{hz} Hz, {levels}" for hz in (80, 20, 50) for levels in ("8 levels", "log-mel")
    ]
    assert [trip.kbps for trip in found[:3]] == [19.2, 0, 4.8]
    for trip in found:
        assert len(trip.decode(trip.encode(clip))) == len(clip)


def test_rates_that_a_vocoder_does_not_take_are_left_out(scripts, tmp_path):
    from mmtok.nn.audio import MelSpec
    from mmtok.nn.convnext import ConvNeXtConfig
    from mmtok.tokenizers import harmonic

    described = harmonic.HarmonicDescription(MelSpec(), ConvNeXtConfig(width=8, depth=1))
    harmonic.WEIGHTS.write(tmp_path, described, described.make())
    trips = scripts["speech_tokenizers"].trips
    found = list(trips([16], [80, 40, 20], [f"harmonic={tmp_path}"]))
    assert [trip.frames_per_s for trip in found] == [80, 40]
    with pytest.raises(UserError, match="of other spectrograms than the tokenizer's"):
        list(trips([16], [20], [f"harmonic={tmp_path}"]))


def test_a_saved_tokenizer_is_a_way_too(scripts, tmp_path):
    from mmtok.tokenizers.speech import DMelConfig

    DMelConfig(n_levels=32).build().save(tmp_path / "mine")
    (trip,) = scripts["speech_tokenizers"].trips([16], [80], [str(tmp_path / "mine")])
    assert (trip.vocoder, trip.n_levels) == ("mine", 32)


def test_bars_are_met_on_them_and_of_unseen_voices_lower(scripts):
    room = scripts["bench_speech"]
    (trip,) = scripts["speech_tokenizers"].trips([16], [80], ["griffin-lim"])
    figures = {
        "mos": Estimate(3.7, 3.5, 3.9, 9),
        "stoi": Estimate(0.95, 0.9, 1, 9),
        "pesq": Estimate(3.0, 2.9, 3.1, 9),
        "phoneme_error": Estimate(0.1, 0.05, 0.15, 9),
        "phoneme_error_above": Estimate(0.01, 0, 0.02, 9),
    }
    own = {"mos": Estimate(4, 3.9, 4.1, 9), "phoneme_error": Estimate(0.09, 0, 0.2, 9)}
    m = room.Measured(trip, figures, 0.03)
    lines = {str(line.what).split(": ")[1]: line for line in room.bars(m, own, False, "wb")}
    met = {name: line.met for name, line in lines.items()}
    assert met == {
        "DistillMOS": False,
        "STOI": True,
        "PESQ": False,
        "phoneme error": True,
        "real-time factor": True,
    }
    assert lines["DistillMOS"].stretch == pytest.approx(3.8)
    assert next(room.bars(m, own, True, "wb")).met
    assert "PESQ" not in " ".join(line.what for line in room.bars(m, own, False, "nb"))


def test_a_crash_and_a_refusal_are_figures(scripts, monkeypatch):
    from mmtok.metrics.speech_panel import PACKAGES, Panel

    room = scripts["speech_conditions"]
    (trip,) = scripts["speech_tokenizers"].trips([16], [80], ["griffin-lim"])
    panel = Panel()
    panel.missing = list(PACKAGES)
    clip = np.random.default_rng(0).uniform(-0.3, 0.3, 4_000).astype(np.float32)
    row = room.one_condition(trip, "clip", [(clip, 16_000)], [clip], panel)
    assert (row["tokens"], row["length"], row["said"]) == ("valid", "exact", "")
    loud = room.one_condition(trip, "loud", [(1000 * clip, 16_000)], [clip], panel)
    assert loud["tokens"] == "refused" and "32768" in loud["said"]

    def broken(self, kept):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(type(trip), "decode", broken)
    crash = room.one_condition(trip, "clip", [(clip, 16_000)], [clip], panel)
    assert crash["tokens"] == "CRASH" and crash["said"] == "ZeroDivisionError: by zero"


def test_conditions_are_what_they_are_called(scripts, rng):
    clip = rng.standard_normal(16_000).astype(np.float32) * 0.1
    found = dict(scripts["speech_conditions"].conditions([clip]))
    noise = found["white noise, 10 dB"][0][0] - clip
    assert 10 * np.log10(clip.var() / noise.var()) == pytest.approx(10, abs=0.2)
    assert len(found["ten minutes"][0][0]) == 600 * 16_000 and len(found["one sample"][0][0]) == 1
    assert found["input of 48000 Hz"][0][1] == 48_000
    assert found["gain x0.03"][0][0] == pytest.approx(0.03 * clip)


def test_the_page_holds_a_player_for_each_way(scripts, folder, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.warns(UserWarning):
        clips = scripts["speech_clips"].find_clips(folder)
    sounds = {"a": [c.samples for c in clips], "b & c": [c.samples for c in clips]}
    scripts["speech_clips"].clip_page(tmp_path / "out.html", clips, sounds)
    text = (tmp_path / "out.html").read_text()
    assert text.count("<audio") == 9 and "b &amp; c" in text and 'src="http' not in text


def test_a_recogniser_that_reads_nothing_right_misses_the_bar_of_long_recordings(
    scripts, tiny_run, monkeypatch
):
    monkeypatch.setattr(scripts["speech_long"], "LONG_S", 5.0)
    rows = []
    (line,) = scripts["speech_long"].long_recording(tiny_run, rows)
    assert not line.met and line.wrong
    assert 5 <= rows[0]["seconds"] < 8 and rows[0]["word_error_alone"] > 0.5
    with pytest.raises(UserError, match="no held-out clips"):
        scripts["speech_long"].joinable(iter(()), 16_000)
