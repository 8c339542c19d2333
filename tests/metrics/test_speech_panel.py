"""All judges together: missing ones are left out and named, figures are beside recordings'."""

import numpy as np
import pytest

from mmtok.metrics import speech_panel
from mmtok.metrics.speech_panel import (
    PACKAGES,
    Panel,
    Recordings,
    distances,
    missing_note,
)


class Letters:
    """A judge of phonemes that hears one per 1,000 samples of a clip, and reads one per letter."""

    def heard(self, clips, rate_hz):
        return [["a"] * (len(clip) // 1000) for clip in clips]

    def read(self, texts):
        return [list(text) for text in texts]


class Loudness:
    """A judge of quality by the level."""

    def __call__(self, clips, rate_hz):
        return np.array([clip.std() for clip in clips])


class Sign:
    """A judge of voices by the sign of the samples."""

    def vectors(self, clips, rate_hz):
        return np.array([[np.sign(clip.mean()), 0] for clip in clips])


@pytest.fixture
def panel(monkeypatch):
    monkeypatch.setattr(speech_panel, "missing_packages", lambda: [])
    made = Panel()
    made.__dict__ |= {"quality": Loudness(), "phonemes": Letters(), "voices": Sign()}
    return made


def test_figures_stand_beside_the_recordings(panel, rng):
    clips = [0.1 + 0.01 * rng.standard_normal(n).astype(np.float32) for n in (3000, 5000, 4000)]
    recordings = Recordings(panel, clips, 16_000, ["aaa", "aaaa", None])
    assert recordings.references == [list("aaa"), list("aaaa"), list("aaaa")]
    own = recordings.own_figures()
    assert own["phoneme_error"].value == pytest.approx(1 / 11)  # five heard of four letters
    assert own["speaker_similarity"].value == 1
    figures = recordings.figures_of([-0.5 * clip[:3000] for clip in clips])
    assert figures["speaker_similarity"].value == -1
    assert figures["phoneme_error"].value == pytest.approx(2 / 11)
    assert figures["phoneme_error_above"].value == pytest.approx(1 / 11)
    assert figures["mos_below"].value == pytest.approx(own["mos"].value / 2, rel=0.05)


def test_nothing_is_asked_of_judges_that_are_missing(monkeypatch, rng):
    monkeypatch.setattr(speech_panel, "missing_packages", lambda: list(PACKAGES))
    clips = [rng.standard_normal(4000).astype(np.float32)]
    recordings = Recordings(Panel(), clips, 16_000)
    assert recordings.own_figures() == {} == recordings.figures_of(clips)


def test_what_is_missing_is_one_line():
    assert missing_note([]) == ""
    note = missing_note(["hama", "pesq", "resemblyzer"])
    assert note.count("mmtok[judges]") == 1 and "PESQ" in note and "\n" not in note


def test_distances_without_their_packages(monkeypatch, rng):
    monkeypatch.setattr(speech_panel, "find_spec", lambda name: None)
    clips = [rng.standard_normal(4000).astype(np.float32), np.zeros(4000, np.float32)]
    found = distances(clips, clips, 16_000)
    assert "stoi" not in found and "pesq" not in found
    for name, values in found.items():
        assert values[0] == 0 and np.isnan(values[1]), name
    assert all(len(values) == 0 for values in distances([], [], 16_000).values())
