"""Figures of sampled speech beside the round trip's and the recordings', whatever is installed."""

from dataclasses import replace

import numpy as np
import pytest

from mmtok.core.segment import Segment
from mmtok.data.tasks import Task
from mmtok.evaluation import speech_judged
from mmtok.evaluation.speech_judged import judged_speech
from mmtok.evaluation.task import TaskEvaluation
from mmtok.metrics import speech_panel
from mmtok.metrics.speech_panel import PACKAGES, Panel
from mmtok.model.sampling import Sampled
from mmtok.run.run import open_run
from mmtok.sources.base import Example

INTERVALS = ("_low", "_high")


class Quality:
    def __call__(self, clips, rate_hz):
        return np.array([np.abs(clip).max() if len(clip) else np.nan for clip in clips])


class Phonemes:
    def heard(self, clips, rate_hz):
        return [["a"] * (len(clip) // 1000) for clip in clips]

    def read(self, texts):
        return [list(text) for text in texts]


class Voices:
    """A voice is the sign of the first sample."""

    def vectors(self, clips, rate_hz):
        return np.array([[np.sign(clip[0]) if len(clip) else np.nan, 0] for clip in clips])


@pytest.fixture
def judges(monkeypatch):
    monkeypatch.setattr(speech_panel, "missing_packages", lambda: ["pystoi", "pesq"])
    monkeypatch.setattr(Panel, "quality", Quality())
    monkeypatch.setattr(Panel, "phonemes", Phonemes())
    monkeypatch.setattr(Panel, "voices", Voices())


def test_samples_round_trip_and_recordings_have_the_same_figures(tiny_copy, judges, capsys):
    run = open_run(tiny_copy)
    figures = judged_speech(run)["speech_from_text_judged"]
    assert list(figures) == ["samples", "round_trip", "recordings"]
    common = {"mos", "phoneme_error", "word_error", "character_error", "speaker_similarity"}
    for name, column in figures.items():
        measured = {key for key in column if not key.endswith(INTERVALS)}
        assert common <= measured | {"speaker_similarity", "mos"}, name
        for key in common & measured:
            low = column.get(f"{key}_low", column[key])
            assert low <= column[key] + 1e-9, (name, key)
    assert {"stopped", "silent"} <= figures["samples"].keys()
    assert {"mcd_db", "mos_below", "phoneme_error_above"} <= figures["round_trip"].keys()
    assert figures["recordings"]["n"] == figures["samples"]["n"] > 0
    folder = run.folder / "samples" / "speech_from_text_judged"
    assert len(list(folder.glob("*.wav"))) == figures["samples"]["n"]
    assert capsys.readouterr().err.count("not measured: STOI and ESTOI, PESQ") == 1


def test_without_judges_the_run_s_own_reading_is_left(tiny_copy, monkeypatch, capsys):
    monkeypatch.setattr(speech_panel, "missing_packages", lambda: list(PACKAGES))
    monkeypatch.setattr(speech_panel, "find_spec", lambda name: None)
    figures = judged_speech(open_run(tiny_copy))["speech_from_text_judged"]
    assert "word_error" in figures["samples"] and "mos" not in figures["samples"]
    assert capsys.readouterr().err.count("not measured") == 1


def test_speech_from_nothing_has_what_needs_no_text(tiny_copy, judges, monkeypatch):
    run = open_run(tiny_copy)
    run.recipe = replace(run.recipe, tasks=(Task((), ("speech",)),))
    frames = Segment("speech", codes=np.zeros((3, 80), np.int32))

    def draw(prompts, sampling, seed):
        return [Sampled(frames, "end")] * len(prompts)

    monkeypatch.setattr(run, "draw", draw)
    figures = judged_speech(run)["speech_from_nothing_judged"]
    assert figures["samples"]["stopped"] == 1 and "word_error" not in figures["samples"]
    assert "mos" in figures["recordings"] and "mos" in figures["round_trip"]


def test_a_voice_is_nearer_to_its_own_recording(tiny_copy, judges):
    task = TaskEvaluation(open_run(tiny_copy), Task(("caption",), ("speech",)))
    judging = speech_judged.Judging(task, Panel())
    judging.examples = [
        Example({"caption": "x", "speech": sign * np.ones(3000, np.float32)}, i, voice)
        for i, (sign, voice) in enumerate([(1, "a"), (-1, "b"), (1, "a"), (-1, "b")])
    ]
    recordings = speech_panel.Recordings(judging.panel, judging.clips, 16_000, judging.texts)
    figures = judging._voice_figures(recordings, judging.clips)
    assert figures["speaker_above_others"].value == 2
    for example in judging.examples:
        example.voice = ""
    assert judging._voice_figures(recordings, judging.clips) == {}


def test_a_task_cut_short_or_of_other_fields_is_not_judged(tiny_copy):
    run = open_run(tiny_copy)
    tasks = (
        Task(("caption",), ("speech",), max_target_frames=3),
        Task(("speech",), ("caption",)),
        Task(("caption",), ("image",)),
    )
    run.recipe = replace(run.recipe, tasks=tasks)
    assert judged_speech(run) == {}
