"""Judges with their own weights: better is better, the same voice is nearer, silence is no number.

Each test of a judge is skipped where its package is missing.
"""

import sys

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.metrics import speech_pretrained
from mmtok.metrics.speech_pretrained import (
    JUDGES,
    MOSJudge,
    PhonemeJudge,
    SpeakerJudge,
    missing_judges,
)
from mmtok.nn.resample import resample

ODD = [np.zeros(0, np.float32), np.zeros(16_000, np.float32)]
TEXT = "she had your dark suit in greasy wash water all year"


@pytest.fixture(scope="module")
def say():
    """say(text, voice) -> a clip at 16 kHz."""
    pytest.importorskip("espeakng_loader")
    from mmtok.sources.espeak import Espeak, set_level

    espeak = Espeak()
    return lambda text, voice: set_level(resample(espeak.say(text, voice), 22_050, 16_000))


def test_quality_falls_with_noise_and_silence_has_none(say, rng):
    pytest.importorskip("distillmos")
    clip = say(TEXT, "en-us+f4")
    # of espeak's voices a little noise sounds better to it
    noisy = clip + 2 * clip.std() * rng.standard_normal(len(clip)).astype(np.float32)
    scores = MOSJudge()([clip, noisy, *ODD], 16_000)
    assert 5 >= scores[0] > scores[1] + 0.5 and scores[1] >= 1 and np.isnan(scores[2:]).all()


def test_phonemes_of_a_clip_are_near_those_of_its_text(say, rng):
    pytest.importorskip("hama")
    judge = PhonemeJudge()
    clip = say(TEXT, "en-us")
    other = say("we wish you a merry christmas and a happy new year", "en-us")
    read = judge.read([TEXT, "", "na\u00efve", "\u043f\u0440\u0438\u0432\u0435\u0442"])
    assert len(read[0]) > 30 and read[1:] == [[], None, None]
    right = judge.error(read[:1], [clip], 16_000).rate
    wrong = judge.error(read[:1], [other], 16_000).rate
    assert right < 0.5 < wrong
    heard = judge.heard([clip, *ODD], 16_000)
    assert heard[0] and heard[1:] == [[], []]
    assert judge.error(heard, [clip, *ODD], 16_000).rate == 0
    assert len(judge.error([None, heard[0]], [clip, clip], 16_000).lengths) == 1


def test_the_same_voice_is_nearer_than_another(say):
    pytest.importorskip("resemblyzer")
    judge = SpeakerJudge()
    low = [say(text, "en-us+m3") for text in (TEXT, "where were you while we were away")]
    high = say(TEXT, "en-us+f4")
    same, other = judge.similarity([low[0], low[0]], [low[1], high], 16_000)
    assert same > other + 0.05 and same > 0.7
    vectors = judge.vectors([low[0], *ODD], 16_000)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1) and np.isnan(vectors[1:]).all()


@pytest.mark.parametrize("judge", JUDGES)
def test_a_missing_package_is_named_with_its_extra(judge, monkeypatch):
    monkeypatch.setitem(sys.modules, judge.package, None)
    with pytest.raises(UserError, match=r"needs the extra: pip install 'mmtok\[judges\]'") as error:
        judge()
    assert "\n" not in str(error.value)


def test_a_package_that_misses_another_names_that(monkeypatch):
    monkeypatch.delitem(sys.modules, "resemblyzer", raising=False)

    def broken(name):
        raise ModuleNotFoundError("no", name="pkg_resources")

    monkeypatch.setattr("builtins.__import__", broken)
    with pytest.raises(UserError, match="pip install webrtcvad-wheels"):
        speech_pretrained._imported("resemblyzer", "the judge of voices")


def test_missing_judges(monkeypatch):
    monkeypatch.setattr(speech_pretrained, "find_spec", lambda name: None)
    assert missing_judges() == ["distillmos", "hama", "resemblyzer"]


def test_long_clips_are_heard_in_pieces():
    pieces = speech_pretrained._pieces(np.zeros(16_000 * 61, np.float32))
    assert [len(piece) for piece in pieces] == [325_334, 325_333, 325_333]
