"""Vocoders and de-quantisers are trained: they learn, resume bit for bit, refuse other settings."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.nn.pitch import pitch_of
from mmtok.run.build import train
from mmtok.run.recipe import Recipe
from mmtok.run.run import open_run
from mmtok.sources.sound_files import write_sound
from mmtok.sources.sounds import SoundFolder
from mmtok.tokenizers.dequantiser import DequantiserConfig, DequantiserTraining
from mmtok.tokenizers.harmonic import HarmonicConfig, HarmonicDescription, HarmonicTraining
from mmtok.tokenizers.istft import ISTFTConfig, ISTFTDescription, ISTFTTraining
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.speech_latents import LogMelConfig
from mmtok.train.adversarial import AdversarialFit
from mmtok.train.crops import Crops
from mmtok.train.tokenizer_fit import fit_tokenizer
from mmtok.train.trainer import Interrupted
from mmtok.train.vocoder_fit import fit_networks
from mmtok.train.vocoder_problems import (
    DequantiserProblem,
    HarmonicProblem,
    VocoderProblem,
    codes_of,
)

TINY = ConvNeXtConfig(width=8, depth=1)
SHORT = {"batch_size": 2, "crop_frames": 16, "log_every": 2, "network": TINY}
FIRM = {"steps": 60, "adversarial_from": 1.0, "network": ConvNeXtConfig(width=64, depth=1)}
AT_40_HZ = MelSpec(hop_samples=400)


def vocoder(**changes):
    return ISTFTTraining(**SHORT | {"steps": 4, "adversarial_from": 0.5} | changes)


def dequantiser(**changes):
    return DequantiserTraining(**SHORT | {"steps": 4, "adversarial_from": 0.5} | changes)


def harmonic(**changes):
    return HarmonicTraining(**SHORT | {"steps": 4, "adversarial_from": 0.5} | changes)


def config(mel=AT_40_HZ, upsampling=2, **changes):
    return DMelConfig(
        mel=mel,
        vocoder=ISTFTConfig(training=vocoder(**changes)),
        dequantiser=DequantiserConfig(training=dequantiser(upsampling=upsampling, **changes)),
    )


def clips(n=4):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        t = np.arange(rng.integers(4_000, 9_000)) / 16_000
        f = rng.uniform(100, 300)
        tone = sum(np.sin(2 * np.pi * k * f * t) / k for k in range(1, 12))
        found.append((0.1 * tone + 0.01 * rng.standard_normal(len(t))).astype(np.float32))
    return found


def problem_of(kind, training):
    crops = Crops(clips(), 16_000)
    torch.manual_seed(0)
    if kind == "harmonic":
        return HarmonicProblem(HarmonicDescription(MelSpec(), training.network), training, crops)
    if kind == "vocoder":
        own = config().dequantised().make()
        return VocoderProblem(ISTFTDescription(MelSpec(), TINY), training, own, crops)
    own = DequantiserConfig(training=training)
    described = replace(config(), dequantiser=own).dequantised()
    return DequantiserProblem(described, training, crops)


@pytest.mark.parametrize(
    "kind, training",
    [
        ("vocoder", vocoder(steps=6)),
        ("harmonic", harmonic(steps=6, adversarial_from=1.0)),  # discriminators are as above
        ("dequantiser", dequantiser(steps=6, upsampling=2)),
    ],
)
def test_a_resumed_training_has_the_same_weights(tmp_path, kind, training):
    fits = []
    for name in ("whole", "first", "first"):
        fit = AdversarialFit(problem_of(kind, training), training, {}, 0, tmp_path / name)
        fit.resume()
        for _ in range(6 if name == "whole" else 3):
            fit.update()
        fit.save()
        fits.append(fit)
    whole, _, resumed = fits
    assert whole.step == resumed.step == 6
    for name, value in whole.averaged().state_dict().items():
        assert torch.equal(value, resumed.averaged().state_dict()[name]), name
    judges = [fit.problem.discriminators.state_dict() for fit in (whole, resumed)]
    assert all(torch.equal(judges[0][name], judges[1][name]) for name in judges[0])


def test_an_interrupted_training_goes_on_and_is_as_one(tmp_path, monkeypatch):
    whole = fit_tokenizer(config(), clips(), folder=tmp_path / "whole")
    update = AdversarialFit.update

    def stopping(fit):
        if fit.problem.what == "vocoder" and fit.step == 2:
            fit.save()
            raise Interrupted("stopped")
        return update(fit)

    monkeypatch.setattr(AdversarialFit, "update", stopping)
    with pytest.raises(Interrupted):
        fit_tokenizer(config(), clips(), folder=tmp_path / "again")
    monkeypatch.setattr(AdversarialFit, "update", update)
    again = fit_tokenizer(config(), clips(), folder=tmp_path / "again")
    segment = whole.encode(clips()[0])
    assert np.array_equal(whole.decode(segment), again.decode(segment))


def test_another_setting_of_a_begun_training_is_refused(tmp_path):
    training = vocoder()
    fit = AdversarialFit(problem_of("vocoder", training), training, {"a": {"b": 1}}, 0, tmp_path)
    fit.update()
    fit.save()
    again = AdversarialFit(problem_of("vocoder", training), training, {"a": {"b": 2}}, 0, tmp_path)
    with pytest.raises(UserError, match=r"being trained with a.b 1, not 2: remove the folder"):
        again.resume()


@pytest.mark.parametrize(
    "kind, training, share",
    [
        ("vocoder", vocoder(steps=30, adversarial_from=1.0, learning_rate=0.01), 0.8),
        ("harmonic", harmonic(steps=30, adversarial_from=1.0, learning_rate=0.01), 0.9),
        ("dequantiser", dequantiser(**FIRM, learning_rate=0.02), 0.8),
    ],
)
def test_the_distance_falls(monkeypatch, kind, training, share):
    problem = problem_of(kind, training)
    batch = problem.batch(torch.Generator().manual_seed(99))

    def distance():
        with torch.no_grad():
            return problem.distance(problem.made(batch), problem.wanted(batch))

    before = distance()
    monkeypatch.setattr(problem, "batch", lambda generator: batch)
    fit = AdversarialFit(problem, training, {}, 0, None)
    for _ in range(training.steps):
        fit.update()
    fit.averaged()
    assert distance() < share * before


@pytest.mark.parametrize("spec, r", [(AT_40_HZ, 2), (MelSpec(), 1)])
def test_codes_of_crops_are_the_tokenizers(spec, r):
    own = DequantiserConfig(training=dequantiser(upsampling=r))
    described = DMelConfig(mel=spec, dequantiser=own).dequantised()
    problem = DequantiserProblem(described, dequantiser(upsampling=r), Crops(clips(), 16_000))
    codes, fine = problem.batch(torch.Generator().manual_seed(0))
    crop = problem.clips.draw(
        2, problem.n_samples, problem.training.gain_db, torch.Generator().manual_seed(0)
    )
    tokenizer = DMelConfig(mel=spec).build()
    assert np.array_equal(codes[0], tokenizer.encode(crop[0].numpy()).codes)
    wanted = problem.wanted((codes, fine))
    assert torch.equal(codes_of(wanted, problem.network), codes)


def test_weights_to_start_from(tmp_path):
    first = fit_tokenizer(config(), clips(), folder=tmp_path)
    first.save(tmp_path / "saved")
    start = {"start": str(tmp_path / "saved"), "learning_rate": 0.0}
    again = fit_tokenizer(config(**start), clips())
    segment = first.encode(clips()[0])
    assert np.allclose(first.decode(segment), again.decode(segment), atol=1e-6)
    with pytest.raises(UserError, match="whose sizes are others"):
        fit_tokenizer(config(**start, network=ConvNeXtConfig(width=4, depth=1)), clips())


def test_the_pitch_of_clips_is_learned(monkeypatch):
    network = ConvNeXtConfig(width=32, depth=1)
    training = harmonic(steps=50, adversarial_from=1.0, learning_rate=0.02, network=network)
    problem = problem_of("harmonic", training)
    assert (problem.pitch > 0).float().mean() > 0.9  # these clips are tones
    batch = problem.batch(torch.Generator().manual_seed(99))
    monkeypatch.setattr(problem, "batch", lambda generator: batch)
    monkeypatch.setattr(problem, "distance", lambda made, wanted: 0 * made.mean())
    fit = AdversarialFit(problem, training, {}, 0, None)
    for _ in range(training.steps):
        fit.update()
    mels, _, pitch, *_ = batch
    with torch.no_grad():
        own = pitch_of(problem.network.pitch_logits(problem.network.outputs(mels)))
    both = (own > 0) & (pitch > 0)
    assert ((own > 0) == (pitch > 0)).float().mean() > 0.9
    assert ((own / pitch).log().abs()[both] < 0.03).float().mean() > 0.8


def test_a_source_filter_vocoder_serves_both_rates(tmp_path):
    training = harmonic(steps=2, adversarial_from=0.5)
    own = DMelConfig(mel=AT_40_HZ, vocoder=HarmonicConfig(training=training))
    tokenizer = fit_tokenizer(own, clips())
    tokenizer.save(tmp_path)
    segment = tokenizer.encode(clips()[0])
    assert len(tokenizer.decode(segment)) == len(clips()[0])
    for spec in (MelSpec(), AT_40_HZ):
        other = DMelConfig(mel=spec, vocoder=HarmonicConfig(str(tmp_path))).build()
        sound = other.decode(other.encode(clips()[0]))
        assert np.isfinite(sound).all()
    again = type(tokenizer).load(tmp_path)
    assert np.array_equal(again.decode(segment), tokenizer.decode(segment))


def test_spectrograms_are_as_coarse_as_codes():
    mels = 4 * torch.rand(2, 9, 80) - 5
    ways = {"others": (), "lines_share": 0.0}
    generator = torch.Generator()
    tokenizer = DMelConfig().build()
    problem = problem_of("harmonic", harmonic(**ways))
    codes = tokenizer.quantise(mels)
    levels = torch.from_numpy(DMelConfig().levels.astype(np.float32))[codes]
    assert torch.allclose(problem.heard(mels, generator), levels, atol=1e-5)
    problem.training = harmonic(**ways | {"lines_share": 1.0, "n_levels": 0})
    lines = problem.heard(mels, generator)
    assert torch.equal(lines[:, ::2], mels[:, ::2])
    assert torch.allclose(lines[:, 1], (mels[:, 0] + mels[:, 2]) / 2, atol=1e-6)


def test_crops_begin_at_frames():
    crops = Crops(clips(), 16_000)
    drawn, starts = crops.draw_at(5, 3_000, (0.0, 0.0), torch.Generator().manual_seed(0), 200)
    assert (starts % 200 == 0).all()
    for crop, start in zip(drawn, starts.tolist()):
        assert torch.equal(crop, crops.samples[start : start + 3_000])


def test_a_vocoder_of_latents(tmp_path):
    own = LogMelConfig(vocoder=ISTFTConfig(training=vocoder()))
    tokenizer = fit_tokenizer(own, clips())
    assert len(tokenizer.decode(tokenizer.encode(clips()[0]))) == len(clips()[0])


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    with pytest.raises(UserError, match="no clips to train a vocoder on"):
        fit_networks(config(), [], 0, tmp_path)
    with pytest.raises(UserError, match="samples in all, and a crop has"):
        fit_networks(config(), [np.zeros(100, np.float32)], 0, tmp_path)
    with pytest.raises(UserError, match="is trained with it: fit the tokenizer first"):
        config().build()


def test_a_recipe_without_tasks_trains_its_vocoder(tmp_path, capsys):
    for i, clip in enumerate(clips()):
        write_sound(tmp_path / "clips" / f"{i}.wav", clip)
    recipe = Recipe(
        name="vocoder",
        sources=(SoundFolder(str(tmp_path / "clips")),),
        tokenizers={"speech": config()},
        tasks=(),
    )
    run = train(recipe, tmp_path / "run")
    assert "no tasks" in capsys.readouterr().err
    log = (tmp_path / "run/training/speech/vocoder/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [2, 4]
    assert not list((tmp_path / "run/training").rglob("*.safetensors"))
    train(recipe, tmp_path / "run")
    assert "speech tokenizer stands" in capsys.readouterr().err
    # its folder is what others take
    mel = AT_40_HZ
    other = DMelConfig(
        mel=mel,
        vocoder=ISTFTConfig(str(tmp_path / "run")),
        dequantiser=DequantiserConfig(str(tmp_path / "run")),
    ).build()
    own = run.tokenizers["speech"]
    segment = own.encode(clips()[0])
    assert np.array_equal(own.decode(segment), other.decode(segment))
    assert own.signature == other.signature
    opened = open_run(tmp_path / "run")
    for ask in (lambda: opened.lm, lambda: opened.task_for((), "speech")):
        with pytest.raises(UserError, match="has tokenizers alone, as its recipe has no tasks"):
            ask()
    with pytest.raises(UserError, match="was made from another recipe"):
        changed = {"speech": config(learning_rate=1e-4)}
        train(replace(recipe, tokenizers=changed), tmp_path / "run")


def test_a_run_takes_the_folder_of_a_tokenizer_of_the_same_codes(tmp_path):
    for i, clip in enumerate(clips()):
        write_sound(tmp_path / "clips" / f"{i}.wav", clip)
    plain = DMelConfig(mel=AT_40_HZ)
    recipe = Recipe("plain", {"speech": plain}, (SoundFolder(str(tmp_path / "clips")),), ())
    run = train(recipe, tmp_path / "run")
    own = fit_tokenizer(config(), clips())
    own.save(run.folder / "tokenizers" / "speech")
    opened = open_run(run.folder)
    segment = own.encode(clips()[0])
    assert np.array_equal(opened.tokenizers["speech"].decode(segment), own.decode(segment))
    assert opened.vocabulary.fingerprint == run.vocabulary.fingerprint
