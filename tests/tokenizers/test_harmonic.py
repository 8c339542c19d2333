"""The source-filter vocoder: lengths, batches, pieces, coarse spectrograms, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec, log_mel
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.nn.harmonic import Noise, n_source_samples
from mmtok.nn.pitch import pitch_of
from mmtok.nn.vocoder import Cells
from mmtok.tokenizers import harmonic
from mmtok.tokenizers.dequantiser import DequantiserDescription
from mmtok.tokenizers.harmonic import (
    HarmonicConfig,
    HarmonicDescription,
    n_lines,
    own_spec,
    with_lines,
)
from mmtok.tokenizers.istft import ISTFTConfig
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.speech_latents import LogMelConfig
from mmtok.tokenizers.streaming import SoundStream

AT_80_HZ = MelSpec()
AT_40_HZ = MelSpec(hop_samples=400)
CAUSAL = MelSpec(hop_samples=200, causal=True)
SMALL = ConvNeXtConfig(width=16, depth=2)


def clip(seconds=0.7, seed=0):
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(int(seconds * 16_000))).astype(np.float32)


def vocoder_in(folder, spec=AT_80_HZ, network=SMALL, seed=0):
    """Weights that do something everywhere; half of the frames of noise are voiced."""
    description = HarmonicDescription(spec, network)
    torch.manual_seed(seed)
    made = description.make()
    with torch.no_grad():
        for p in made.network.parameters():
            p.add_(0.2 * torch.randn_like(p))
        mel = log_mel([torch.from_numpy(clip())], spec)[0]
        made.network.out.bias[-1] -= made.outputs(mel[None])[..., -1].median()
    harmonic.WEIGHTS.write(folder, description, made)
    return HarmonicConfig(str(folder))


@pytest.mark.parametrize("spec", [AT_80_HZ, AT_40_HZ, CAUSAL])
def test_as_many_samples_as_asked(tmp_path, spec):
    vocoder = vocoder_in(tmp_path, own_spec(spec)).build(spec)
    for n in [*range(1, 8), 199, 200, 201, 399, 400, 401, 599, 600, 601, 5_000, 11_199]:
        mel = log_mel([torch.from_numpy(clip()[:n])], spec)
        sound = vocoder(mel, [n])[0]
        assert len(sound) == n and sound.isfinite().all()


@pytest.mark.parametrize("network", [SMALL, replace(SMALL, look_ahead=0)])
@pytest.mark.parametrize("spec", [AT_80_HZ, AT_40_HZ, CAUSAL])
@pytest.mark.parametrize("piece", [3, 30])
def test_pieces_are_the_whole_clip(tmp_path, spec, network, piece):
    vocoder = vocoder_in(tmp_path, own_spec(spec), network).build(spec)
    for n in (11_200, 10_801):
        sound = torch.from_numpy(clip()[:n])
        mel = log_mel([sound], spec)[0]
        whole = vocoder([mel], [n])[0]
        stream = vocoder.stream()
        joined = torch.cat([*(stream.push(p) for p in mel.split(piece)), stream.finish(n)])
        assert (joined - whole).abs().max() < 1e-5 * max(1, whole.abs().max())


def test_the_pitch_of_pieces_does_not_drift(tmp_path):
    vocoder = vocoder_in(tmp_path).build(AT_80_HZ)
    sound = torch.from_numpy(clip(20))
    mel = log_mel([sound], AT_80_HZ)[0]
    whole = vocoder([mel], [len(sound)])[0]
    stream = vocoder.stream()
    joined = torch.cat([*(stream.push(p) for p in mel.split(13)), stream.finish(len(sound))])
    assert (joined - whole)[-16_000:].abs().max() < 1e-5 * max(1, whole.abs().max())


def test_training_and_decoding_are_one_network(tmp_path):
    """The batched forward pass at the network's own pitch is what is decoded."""
    vocoder = vocoder_in(tmp_path).build(AT_80_HZ)
    network = vocoder.network
    sound = torch.from_numpy(clip())
    mel = log_mel([sound], AT_80_HZ)[0]
    f0 = pitch_of(network.pitch_logits(network.outputs(mel[None])))
    start = torch.rand(1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = Noise(0).next(n_source_samples(AT_80_HZ, len(mel)))[None]
    made, logits = network(mel[None], len(sound), f0, start, noise)
    whole = vocoder([mel], [len(sound)])[0]
    assert torch.equal(pitch_of(logits), f0)
    assert (made[0] - whole).abs().max() < 1e-4 * whole.abs().max()


def test_alone_as_in_a_batch_and_always_the_same(tmp_path):
    config = DMelConfig(vocoder=vocoder_in(tmp_path))
    tokenizer = config.build()
    segments = tokenizer.encode_batch([clip(0.3), clip(0.5, 1), clip(0.1, 2)])
    together = tokenizer.decode_batch(segments)
    again = config.build()
    assert all(np.array_equal(a, again.decode(s)) for a, s in zip(together, segments))
    other = replace(config, vocoder=replace(config.vocoder, seed=1)).build()
    assert not np.allclose(other.decode(segments[0]), together[0], atol=1e-3)


@pytest.mark.parametrize("block", [5, 40])
def test_blocks_change_nothing(tmp_path, monkeypatch, block):
    tokenizer = DMelConfig(mel=AT_40_HZ, vocoder=vocoder_in(tmp_path)).build()
    segment = tokenizer.encode(clip())
    whole = tokenizer.decode(segment)
    monkeypatch.setattr(harmonic, "BLOCK_FRAMES", block)
    assert np.abs(tokenizer.decode(segment) - whole).max() < 1e-5


@pytest.mark.parametrize("spec", [AT_80_HZ, AT_40_HZ, CAUSAL])
def test_streamed_codes_are_the_whole_clip(tmp_path, spec):
    tokenizer = DMelConfig(mel=spec, vocoder=vocoder_in(tmp_path, own_spec(spec))).build()
    codes = tokenizer.encode(0.2 * clip()).codes
    stream = SoundStream(tokenizer)
    sound = []
    for k, frame in enumerate(codes, 1):
        sound.append(stream.push(frame[None]))
        given = sum(map(len, sound))
        assert k * spec.hop_samples - given <= stream.delay_s * 16_000 + 1e-6
    joined = np.concatenate([*sound, stream.finish()])
    whole = tokenizer.decode(Segment("speech", codes=codes))
    assert len(joined) == len(whole) == spec.n_samples(len(codes))
    loud = np.abs(joined).max() == 1  # then the whole has another gain
    assert loud or np.abs(joined - whole).max() < 1e-5


def test_lines_are_those_of_an_untrained_dequantiser():
    plain = DequantiserDescription(AT_40_HZ, Cells(), 2, SMALL).make()
    codes = torch.randint(0, 16, (1, 9, 80))
    assert torch.allclose(with_lines(Cells().levels(codes), 2), plain.base(codes), atol=1e-6)
    assert torch.equal(with_lines(codes.float(), 1), codes.float())


def test_one_set_of_weights_serves_both_rates(tmp_path):
    config = vocoder_in(tmp_path)
    sound = clip()
    for config_of in (DMelConfig, LogMelConfig):
        at_40_hz = config_of(mel=AT_40_HZ, vocoder=config)
        tokenizer = at_40_hz.fit([sound]) if config_of is LogMelConfig else at_40_hz.build()
        segment = tokenizer.encode(sound)
        mel = with_lines(tokenizer.log_mel(segment), 2)[: AT_80_HZ.n_frames(len(sound))]
        own = config.build(AT_80_HZ)([mel], [len(sound)])[0]
        own = own / own.abs().max().clamp_min(1)
        assert np.abs(tokenizer.decode(segment) - own.numpy()).max() < 1e-5


def test_which_spectrograms_it_takes():
    assert n_lines(AT_80_HZ, AT_80_HZ) == 1
    assert n_lines(AT_40_HZ, AT_80_HZ) == 2
    assert n_lines(MelSpec(hop_samples=800), AT_80_HZ) == 0
    assert n_lines(replace(AT_40_HZ, causal=True), replace(AT_80_HZ, causal=True)) == 0
    assert n_lines(replace(AT_40_HZ, fmin_hz=0), AT_80_HZ) == 0
    for spec in (AT_80_HZ, AT_40_HZ, CAUSAL, MelSpec(hop_samples=401)):
        assert n_lines(spec, own_spec(spec)) >= 1


def test_what_does_not_fit_is_refused(tmp_path):
    own = vocoder_in(tmp_path / "v")
    for refused in (own.build, own.check):
        with pytest.raises(UserError, match="v is of other .*: hop_samples 800 against 200; name"):
            refused(MelSpec(hop_samples=800))
    with pytest.raises(UserError, match="the package has no source-filter vocoder of this"):
        HarmonicConfig().build(MelSpec(hop_samples=123))
    with pytest.raises(UserError, match=r"holds no vocoder of this kind \(vocoder.json and"):
        ISTFTConfig(str(tmp_path / "v")).check(AT_80_HZ)
    with pytest.raises(UserError, match="of which one alone says where its"):
        HarmonicConfig("v", harmonic.HarmonicTraining())


def test_it_is_saved_with_its_tokenizer_and_found_there(tmp_path):
    tokenizer = DMelConfig(vocoder=vocoder_in(tmp_path / "v")).build()
    assert tokenizer.signature == DMelConfig().signature()
    tokenizer.save(tmp_path / "run" / "tokenizers" / "speech")
    (tmp_path / "v" / "weights.safetensors").unlink()
    segment = tokenizer.encode(clip())
    sound = tokenizer.decode(segment)
    again = type(tokenizer).load(tmp_path / "run" / "tokenizers" / "speech")
    named = DMelConfig(vocoder=HarmonicConfig(str(tmp_path / "run"))).build()
    assert np.array_equal(again.decode(segment), sound)
    assert np.array_equal(named.decode(segment), sound)


def test_the_package_s_own_weights_are_found_by_their_spectrogram(tmp_path, monkeypatch):
    monkeypatch.setattr("mmtok.tokenizers.vocoder_base.SHIPPED", tmp_path)
    vocoder_in(tmp_path / "a", MelSpec(n_mels=40))
    vocoder_in(tmp_path / "b")
    for spec in (AT_80_HZ, AT_40_HZ):
        tokenizer = DMelConfig(mel=spec, vocoder=HarmonicConfig()).build()
        assert len(tokenizer.decode(tokenizer.encode(clip()))) == len(clip())
