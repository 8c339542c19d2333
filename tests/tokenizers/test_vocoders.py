"""Vocoders behind their contract: as long as asked, alone as in a batch, in pieces as in one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec, log_mel
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.nn.vocoder import Cells
from mmtok.tokenizers import dequantiser, istft
from mmtok.tokenizers.dequantiser import DequantiserConfig, DequantiserDescription
from mmtok.tokenizers.istft import ISTFTConfig, ISTFTDescription
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.speech_latents import LogMelConfig
from mmtok.tokenizers.streaming import SoundStream
from mmtok.tokenizers.vocoders import (
    GriffinLimConfig,
    HarmonicConfig,
    PackageVocoderConfig,
    best_vocoder,
)

AT_80_HZ = MelSpec()
CELLS = Cells()
SMALL = ConvNeXtConfig(width=16, depth=2)
NETWORKS = [SMALL, replace(SMALL, look_ahead=0), replace(SMALL, look_ahead=4)]
SPECS = [
    MelSpec(),
    MelSpec(hop_samples=400),
    MelSpec(n_fft=1600, window_samples=1600, hop_samples=800, fmin_hz=0, causal=True),
]


def clip(seconds=0.7, seed=0):
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(int(seconds * 16_000))).astype(np.float32)


def stirred(network):
    """Weights that do something everywhere."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return network


def vocoder_in(folder, spec=AT_80_HZ, network=SMALL):
    description = ISTFTDescription(spec, network)
    istft.WEIGHTS.write(folder, description, stirred(description.make()))
    return ISTFTConfig(str(folder))


def dequantiser_in(folder, spec=AT_80_HZ, upsampling=1, network=SMALL, cells=CELLS):
    description = DequantiserDescription(spec, cells, upsampling, network)
    dequantiser.WEIGHTS.write(folder, description, stirred(description.make()))
    return DequantiserConfig(str(folder))


def with_networks(folder, mel=AT_80_HZ, upsampling=1, network=SMALL):
    fine = replace(mel, hop_samples=mel.hop_samples // upsampling)
    return DMelConfig(
        mel=mel,
        vocoder=vocoder_in(folder / "v", fine, network),
        dequantiser=dequantiser_in(folder / "d", mel, upsampling, network),
    ).build()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("n", [1, 400, 401, 11_199])
def test_as_many_samples_as_asked(tmp_path, spec, n):
    vocoder = vocoder_in(tmp_path, spec).build(spec)
    mel = log_mel([torch.from_numpy(clip()[:n])], spec)
    assert len(vocoder(mel, [n])[0]) == n


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("piece", [1, 64])
def test_a_stream_is_the_whole_clip(tmp_path, spec, network, piece):
    vocoder = vocoder_in(tmp_path, spec, network).build(spec)
    sound = torch.from_numpy(clip())
    mel = log_mel([sound], spec)[0]
    whole = vocoder([mel], [len(sound)])[0]
    stream = vocoder.stream()
    pieces = [stream.push(part) for part in mel.split(piece)]
    joined = torch.cat([*pieces, stream.finish(len(sound))])
    assert len(joined) == len(sound)
    assert (joined - whole).abs().max() < 1e-5 * max(1, whole.abs().max())
    # and whole is what the network gives without blocks
    plain = vocoder.network(mel[None], len(sound))[0]
    assert (plain - whole).abs().max() < 1e-5 * max(1, whole.abs().max())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_looks_as_far_ahead_as_it_says(tmp_path, network):
    vocoder = vocoder_in(tmp_path, MelSpec(), network).build(MelSpec())
    mel = torch.randn(60, 80)
    other = mel.clone()
    other[40:] += 1
    a, b = (vocoder.network.network(x[None])[0] for x in (mel, other))
    changed = (a != b).any(1).nonzero()[0]
    assert changed == 40 - vocoder.look_ahead


def test_a_batch_is_its_single_clips(tmp_path):
    tokenizer = with_networks(tmp_path)
    segments = tokenizer.encode_batch([clip(0.3), clip(0.5, 1), clip(0.1, 2)])
    together = tokenizer.decode_batch(segments)
    assert all(np.array_equal(a, tokenizer.decode(s)) for a, s in zip(together, segments))


@pytest.mark.parametrize("block", [7, 50])
def test_blocks_change_nothing(tmp_path, monkeypatch, block):
    tokenizer = with_networks(tmp_path, MelSpec(hop_samples=400), 2)
    segment = tokenizer.encode(clip())
    whole = tokenizer.decode(segment)
    monkeypatch.setattr(istft, "BLOCK_FRAMES", block)
    monkeypatch.setattr(dequantiser, "BLOCK_FRAMES", block)
    assert np.abs(tokenizer.decode(segment) - whole).max() < 1e-5


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("spec, r", [(SPECS[0], 1), (SPECS[1], 1), (SPECS[1], 2), (SPECS[2], 4)])
def test_streamed_codes_are_the_whole_clip(tmp_path, spec, r, network):
    tokenizer = with_networks(tmp_path, spec, r, network)
    codes = tokenizer.encode(0.2 * clip()).codes
    stream = SoundStream(tokenizer)
    sound = []
    hop_s = spec.hop_samples / 16_000
    for k, frame in enumerate(codes, 1):
        sound.append(stream.push(frame[None]))
        given = sum(map(len, sound)) / 16_000
        assert k * hop_s - given <= stream.delay_s + 1e-9
    joined = np.concatenate([*sound, stream.finish()])
    whole = tokenizer.decode(Segment("speech", codes=codes))
    assert len(joined) == len(whole) == spec.n_samples(len(codes))
    loud = np.abs(joined).max() == 1  # then the whole has another gain
    assert loud or np.abs(joined - whole).max() < 1e-5


# ---- de-quantisers


@pytest.mark.parametrize("spec, r", [(SPECS[0], 1), (SPECS[1], 2), (SPECS[2], 4)])
@pytest.mark.parametrize("levels", [(-7.0, 2.0, 16), (-7.0, 2.0, 256), (-3.0, 0.0, 2)])
def test_values_are_rounded_to_the_same_codes(tmp_path, spec, r, levels):
    config = DMelConfig(spec, *levels)
    own_cells = Cells(*levels)
    own = dequantiser_in(tmp_path, spec, r, cells=own_cells)
    tokenizer = replace(config, dequantiser=own).build()
    codes = np.random.default_rng(0).integers(0, levels[2], (40, 80))
    mel = tokenizer.dequantiser(torch.from_numpy(codes))
    assert mel.shape == (r * 40, 80)
    first = r - 1 if spec.causal else 0
    assert np.array_equal(tokenizer.quantise(mel[first::r].contiguous()), codes)
    assert not np.array_equal(mel[first::r], config.levels[codes])
    margin = max(own_cells.margin, own_cells.step / 2)
    assert levels[0] - margin <= mel.min() and mel.max() <= levels[1] + margin


def test_even_the_borders_of_cells_are_rounded_to_the_same_codes():
    cells = Cells()
    tokenizer = DMelConfig().build()
    codes = torch.arange(16).repeat(80, 1).T.contiguous()
    for share in (-1.0, 1.0):
        values = cells.within(codes, torch.full(codes.shape, share))
        assert np.array_equal(tokenizer.quantise(values), codes)


def test_an_untrained_one_gives_levels_and_straight_lines():
    spec = MelSpec(hop_samples=400)
    network = DequantiserDescription(spec, Cells(), 2, SMALL).make()
    codes = torch.randint(0, 16, (1, 9, 80))
    levels = Cells().levels(codes)
    mel = network(codes)
    assert torch.allclose(mel[:, ::2], levels)
    assert torch.allclose(mel[:, 1:-1:2], (levels[:, 1:] + levels[:, :-1]) / 2, atol=1e-6)
    assert torch.allclose(mel[:, -1], levels[:, -1])


def test_stacked_frames_are_taken_apart(tmp_path):
    plain = with_networks(tmp_path, MelSpec(hop_samples=400), 2)
    stacked = replace(plain.config, reduction_factor=3).build()
    sound = plain.decode(plain.encode(clip()))
    assert np.array_equal(stacked.decode(stacked.encode(clip())), sound)
    codes = stacked.encode(clip()).codes
    stream = SoundStream(stacked)
    joined = np.concatenate([*(stream.push(c[None]) for c in codes), stream.finish()])
    assert len(joined) == len(stacked.decode(Segment("speech", codes=codes)))


def test_codes_at_40_hz_come_back_through_the_80_hz_spectrogram(tmp_path):
    tokenizer = with_networks(tmp_path, MelSpec(hop_samples=400), 2)
    assert tokenizer.vocoder.spec == MelSpec()
    for n in (1, 199, 200, 201, 400, 11_000):
        assert len(tokenizer.decode(tokenizer.encode(clip()[:n]))) == n


# ---- folders, refusals


def test_neither_is_in_the_fingerprint_and_both_are_saved(tmp_path):
    tokenizer = with_networks(tmp_path, MelSpec(hop_samples=400), 2)
    plain = DMelConfig(mel=MelSpec(hop_samples=400)).build()
    assert tokenizer.signature == plain.signature == tokenizer.config.signature()
    tokenizer.save(tmp_path / "saved")
    (tmp_path / "v" / "weights.safetensors").unlink()
    (tmp_path / "d" / "weights.safetensors").unlink()
    again = type(tokenizer).load(tmp_path / "saved")
    segment = tokenizer.encode(clip())
    assert np.array_equal(again.decode(segment), tokenizer.decode(segment))
    assert again.signature == tokenizer.signature


def test_latents_have_them_too(tmp_path):
    tokenizer = LogMelConfig(vocoder=vocoder_in(tmp_path / "v")).fit([clip()])
    tokenizer.save(tmp_path / "saved")
    again = type(tokenizer).load(tmp_path / "saved")
    segment = tokenizer.encode(clip())
    assert np.array_equal(again.decode(segment), tokenizer.decode(segment))


def test_a_tokenizer_s_or_a_run_s_folder_will_do(tmp_path):
    tokenizer = with_networks(tmp_path)
    tokenizer.save(tmp_path / "run" / "tokenizers" / "speech")
    for path in (tmp_path / "run", tmp_path / "run" / "tokenizers" / "speech"):
        ISTFTConfig(str(path)).build(MelSpec())
        DMelConfig(dequantiser=DequantiserConfig(str(path))).build()


def test_another_spectrogram_is_refused(tmp_path):
    own = vocoder_in(tmp_path / "v")
    spec = MelSpec(hop_samples=400)
    for refused in (own.build, own.check):
        with pytest.raises(UserError, match="v is of other .*: hop_samples 400 against 200; name"):
            refused(spec)
    with pytest.raises(UserError, match="hop_samples 400 against 200"):
        DMelConfig(mel=spec, vocoder=own).build()
    cells = dequantiser_in(tmp_path / "d")
    with pytest.raises(UserError, match="d is of other levels .*: n_levels 8 against 16"):
        DMelConfig(n_levels=8, dequantiser=cells).build()
    with pytest.raises(UserError, match="hop_samples 400 against 200"):
        DMelConfig(mel=spec, dequantiser=cells).check()


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no vocoder"):
        ISTFTConfig(str(tmp_path)).build(MelSpec())
    with pytest.raises(UserError, match="the package has no iSTFT vocoder of this spectrogram"):
        ISTFTConfig().build(MelSpec(hop_samples=123))
    with pytest.raises(UserError, match="the package has no de-quantiser of these codes"):
        DMelConfig(n_levels=9, dequantiser=DequantiserConfig()).build()
    vocoder_in(tmp_path)
    istft.WEIGHTS.write(
        tmp_path, ISTFTDescription(MelSpec(), replace(SMALL, width=8)), torch.nn.Linear(1, 1)
    )
    with pytest.raises(UserError, match=r"weights.safetensors cannot be opened as this"):
        ISTFTConfig(str(tmp_path)).build(MelSpec())


def test_what_the_package_has_is_taken_where_it_fits(tmp_path, monkeypatch):
    monkeypatch.setattr("mmtok.tokenizers.vocoder_base.SHIPPED", tmp_path)
    config = DMelConfig(
        mel=MelSpec(hop_samples=400),
        vocoder=PackageVocoderConfig(),
        dequantiser=DequantiserConfig(optional=True),
    )
    config.check()
    segment = config.build().encode(clip(0.2))
    plain = DMelConfig(mel=config.mel).build()
    assert np.array_equal(config.build().decode(segment), plain.decode(segment))
    dequantiser_in(tmp_path / "d", config.mel, 2)
    vocoder_in(tmp_path / "v")
    tokenizer = config.build()
    assert tokenizer.vocoder.spec == MelSpec()
    tokenizer.save(tmp_path / "saved")
    for name in ("d", "v"):
        (tmp_path / name).rename(tmp_path / f".{name}")
    monkeypatch.setattr("mmtok.tokenizers.vocoder_base.SHIPPED", tmp_path / "none")
    again = type(tokenizer).load(tmp_path / "saved")
    assert np.array_equal(again.decode(segment), tokenizer.decode(segment))


def test_the_package_s_own_weights_are_the_default_where_they_are_better():
    """At 40 Hz; they speak 80 Hz where they are asked for, and Griffin-Lim stays to be chosen."""
    names = {
        "dmel_40hz": HarmonicConfig,
        "dmel_80hz": GriffinLimConfig,
        "dmel_40hz_causal": GriffinLimConfig,
        "inkling_20hz": GriffinLimConfig,
    }
    for name, kind in names.items():
        config = getattr(DMelConfig, name)()
        assert config.vocoder == PackageVocoderConfig()
        assert isinstance(best_vocoder(config.mel), kind), name
    plain = DMelConfig.dmel_40hz().build()
    segment = plain.encode(clip(0.4))
    asked = replace(plain.config, vocoder=HarmonicConfig()).build()
    assert np.array_equal(plain.decode(segment), asked.decode(segment))
    old = replace(plain.config, vocoder=GriffinLimConfig()).build()
    assert old.signature == plain.signature
    assert not np.array_equal(plain.decode(segment), old.decode(segment))
    at_80_hz = DMelConfig(vocoder=HarmonicConfig()).build()
    assert at_80_hz.vocoder.name == plain.vocoder.name


def test_the_package_s_own_weights_are_found_by_their_spectrogram(tmp_path, monkeypatch):
    monkeypatch.setattr("mmtok.tokenizers.vocoder_base.SHIPPED", tmp_path)
    vocoder_in(tmp_path / "a", MelSpec(hop_samples=400))
    vocoder_in(tmp_path / "b")
    dequantiser_in(tmp_path / "c")
    tokenizer = DMelConfig(vocoder=ISTFTConfig(), dequantiser=DequantiserConfig()).build()
    assert tokenizer.vocoder.spec == MelSpec()
    assert len(tokenizer.decode(tokenizer.encode(clip()))) == len(clip())


def test_a_vocoder_that_is_read_draws_nothing_from_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    DMelConfig.dmel_40hz().build().decode(Segment("speech", codes=np.zeros((8, 80), np.int64)))
    assert torch.equal(torch.rand(3), expected)
