"""A teacher: sounds of frames, interrupted, with other settings, and learned from."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch

from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.tokenizers.harmonic import HarmonicConfig, HarmonicDescription, HarmonicTraining
from mmtok.tokenizers.hifigan import HiFiGANConfig
from mmtok.tokenizers.istft import ISTFTConfig, ISTFTTraining
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.vocoder_base import Vocoder
from mmtok.train import teaching
from mmtok.train.crops import Crops, at_speeds
from mmtok.train.teaching import stretch_samples, taught
from mmtok.train.tokenizer_fit import fit_tokenizer
from mmtok.train.trainer import Interrupted
from mmtok.train.vocoder_fit import remove_work
from mmtok.train.vocoder_problems import HarmonicProblem, coarse

SPEC = MelSpec()
TINY = ConvNeXtConfig(width=8, depth=1)
TRAINING = HarmonicTraining(steps=4, batch_size=2, crop_frames=16, network=TINY, taught_s=30.0)


@dataclass
class Steps(Vocoder):
    """A teacher whose sample n is the mean of the frame that it lies in, over its bands."""

    spec: MelSpec
    look_ahead: ClassVar[int | None] = 0
    n_spoken: int = 0

    def __call__(self, log_mels, n_samples):
        self.n_spoken += len(log_mels)
        hop = self.spec.hop_samples
        return [
            mel.mean(1).repeat_interleave(hop)[:n] / 8
            for mel, n in zip(log_mels, n_samples, strict=True)
        ]


def clips(n=3, seconds=3.0):
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(int(16_000 * seconds))).astype(np.float32) for _ in range(n)]


def lessons(folder, teacher=None, training=TRAINING, settings=None, spec=SPEC):
    heard = partial(coarse, spec, training)
    crops = Crops(clips(), 16_000)
    n = stretch_samples(spec, 4_000, len(crops.samples))
    given = settings or {"n": n}
    return taught(crops, teacher or Steps(spec), heard, n, training, 0, folder, given)


@pytest.mark.parametrize("spec", [SPEC, MelSpec(causal=True)])
def test_crops_are_what_the_teacher_says_of_their_frames(tmp_path, spec):
    found = lessons(tmp_path, spec=spec)
    generator = torch.Generator().manual_seed(3)
    crops, starts = found.draw_at(6, 4_000, (0.0, 0.0), generator, 200)
    frames = found.frames(starts, spec.n_frames(4_000))
    assert crops.shape == (6, 4_000) and len(set(starts.tolist())) > 1
    assert (starts % 400 == 0).all() and (starts % found.stretch + 4_000 <= found.stretch).all()
    wanted = Steps(spec)(list(frames), [4_000] * 6)
    assert torch.allclose(crops, torch.stack(wanted), atol=2e-3)


def test_codes_of_many_kinds_are_heard(tmp_path):
    found = lessons(tmp_path)
    levels = torch.linspace(-7, 2, 16)
    on_levels = [(m.float()[..., None] - levels).abs().min(-1).values.max() for m in found.mels]
    assert 0.2 < np.mean([float(off) < 0.01 for off in on_levels]) < 0.8  # the others have lines


def test_an_interrupted_teacher_goes_on_and_is_as_one(tmp_path, monkeypatch):
    whole = lessons(tmp_path / "whole")
    teacher = Steps(SPEC)

    @contextmanager
    def stopped():
        yield [2]

    with monkeypatch.context() as patch:
        patch.setattr(teaching, "stop_signals", stopped)
        with pytest.raises(Interrupted, match="has spoken 1 of 1 parts"):
            lessons(tmp_path / "again", teacher)
    again = lessons(tmp_path / "again", teacher)
    assert teacher.n_spoken == teaching.PART
    assert torch.equal(again.samples, whole.samples) and torch.equal(again.mels, whole.mels)
    more = lessons(tmp_path / "again", teacher, replace(TRAINING, taught_s=60.0))
    assert teacher.n_spoken == 2 * teaching.PART
    assert torch.equal(more.mels[: teaching.PART], whole.mels)


def test_other_settings_are_refused(tmp_path):
    lessons(tmp_path, settings={"speeds": [1]})
    with pytest.raises(UserError, match="holds what a teacher said with other settings: remove"):
        lessons(tmp_path, settings={"speeds": [2]})


@pytest.mark.parametrize("kind", ["harmonic", "istft"])
def test_a_vocoder_learns_from_a_teacher(tmp_path, monkeypatch, kind):
    built = []

    def build(config, spec, saved=None):
        built.append(config.mapped)
        return Steps(spec)

    monkeypatch.setattr(HiFiGANConfig, "build", build)
    sizes = {"steps": 2, "batch_size": 2, "crop_frames": 16, "network": TINY, "taught_s": 4.0}
    sizes |= {"adversarial_from": 1.0, "speeds": (0.9, 1.1), "teacher": HiFiGANConfig("x")}
    vocoder = HarmonicConfig(training=HarmonicTraining(**sizes))
    if kind == "istft":
        vocoder = ISTFTConfig(training=ISTFTTraining(**sizes))
    config = DMelConfig(vocoder=vocoder)
    tokenizer = fit_tokenizer(config, clips(), folder=tmp_path)
    assert built == [True]
    assert len(tokenizer.decode(tokenizer.encode(clips()[0]))) == len(clips()[0])
    assert (tmp_path / "vocoder" / "teacher" / "00000.safetensors").exists()
    remove_work(tmp_path)
    assert [p.name for p in (tmp_path / "vocoder").iterdir()] in ([], ["log.jsonl"])


def test_the_pitch_is_the_teacher_s(tmp_path):
    found = lessons(tmp_path)
    t = torch.arange(len(found.samples)) / 16_000
    found.samples = (0.3 * sum((2 * np.pi * 150 * k * t).sin() / k for k in range(1, 6))).half()
    problem = HarmonicProblem(HarmonicDescription(SPEC, TINY), TRAINING, found)
    mels, crops, pitch, _, _ = problem.batch(torch.Generator().manual_seed(0))
    assert mels.shape[:2] == pitch.shape and crops.shape[1] == problem.n_samples
    assert (pitch[pitch > 0] - 150).abs().max() < 3 and (pitch > 0).float().mean() > 0.8


def test_a_faster_clip_is_higher_and_shorter():
    tone = np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000).astype(np.float16)
    (faster,) = at_speeds([tone], (1.25,), 16_000, 0)
    assert faster.dtype == np.float16 and len(faster) == 12_800
    spectrum = np.abs(np.fft.rfft(faster.astype(np.float32)))
    assert spectrum.argmax() * 16_000 / len(faster) == pytest.approx(250, abs=2)
    assert at_speeds([tone], (1.0,), 16_000, 0)[0] is tone
    several = at_speeds([tone] * 20, (0.8, 1.0, 1.25), 16_000, 0)
    assert {len(clip) for clip in several} == {20_000, 16_000, 12_800}
    with pytest.raises(UserError, match=r"speeds is \[3\]; each must be from 0.5 to 2"):
        replace(TRAINING, speeds=(3,))
