"""HiFi-GAN with weights from elsewhere: lengths, the mapping of mel values, what is refused."""

import math

import numpy as np
import pytest
import torch

from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec
from mmtok.tokenizers import hifigan
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


def test_saved_with_its_tokenizer(folder, tmp_path):
    tokenizer = DMelConfig(mel=SPEC, vocoder=HiFiGANConfig(str(folder))).build()
    tokenizer.save(tmp_path / "saved")
    (folder / "config.json").unlink()
    again = type(tokenizer).load(tmp_path / "saved")
    segment = tokenizer.encode(np.zeros(3000, np.float32) + 0.1)
    assert np.array_equal(again.decode(segment), tokenizer.decode(segment))


def test_what_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="of other spectrograms.*: window_samples 800 against 1024"):
        HiFiGANConfig(str(folder)).build(MelSpec())
    with pytest.raises(UserError, match="has hop_samples 256, but vocoder.mel.hop_samples says 20"):
        HiFiGANConfig(str(folder), mel=MelSpec()).build(MelSpec())
    with pytest.raises(UserError, match="cannot be opened as a SpeechT5HifiGan"):
        HiFiGANConfig(str(tmp_path / "none")).build(SPEC)
    with pytest.raises(UserError, match="weights is empty"):
        HiFiGANConfig()
    with pytest.raises(UserError, match="gives no sound before its last frame"):
        HiFiGANConfig(str(folder)).build(SPEC).stream()


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
