"""Another vocoder than a tokenizer's own: of runs, of folders, with a name; codes stay."""

import re

import numpy as np
import pytest
import torch

from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.tokenizers import harmonic, istft
from mmtok.tokenizers.griffin_lim import GriffinLimConfig
from mmtok.tokenizers.harmonic import HarmonicConfig, HarmonicDescription
from mmtok.tokenizers.istft import ISTFTDescription
from mmtok.tokenizers.other_vocoder import vocoder_name, with_vocoder
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig

TINY = ConvNeXtConfig(width=8, depth=1)
CLIP = (0.1 * np.random.default_rng(0).standard_normal(5_000)).astype(np.float32)


def weights_in(folder, kind=harmonic, description=HarmonicDescription):
    torch.manual_seed(0)
    described = description(MelSpec(), TINY)
    kind.WEIGHTS.write(folder, described, described.make())
    return folder


@pytest.mark.parametrize("hop", [200, 400])
def test_a_run_a_tokenizer_and_weights_are_one_vocoder(tmp_path, hop):
    """One that was trained at 80 Hz serves codes of 80 and of 40 Hz."""
    weights = weights_in(tmp_path / "w")
    config = DMelConfig(mel=MelSpec(hop_samples=hop))
    segment = config.build().encode(CLIP)
    wanted = DMelConfig(config.mel, vocoder=HarmonicConfig(str(weights))).build().decode(segment)
    saved = DMelConfig(vocoder=HarmonicConfig(str(weights))).build()
    saved.save(tmp_path / "run" / "tokenizers" / "speech")
    for name in ("w", "run", "run/tokenizers", "run/tokenizers/speech"):
        tokenizer = with_vocoder(config.build(), tmp_path / name)
        assert np.array_equal(tokenizer.decode(segment), wanted)
        assert tokenizer.signature == config.signature()
    tokenizer.save(tmp_path / "with")
    again = type(tokenizer).load(tmp_path / "with")
    assert np.array_equal(again.decode(segment), wanted)


def test_figures_name_the_weights_that_spoke(tmp_path):
    """Equal weights have one name wherever they lie; other weights, another; codecs have none."""
    plain = DMelConfig().build()
    assert vocoder_name(plain) == "griffin-lim"
    ours = vocoder_name(with_vocoder(plain, weights_in(tmp_path / "a")))
    assert re.fullmatch(r"source-filter [0-9a-f]{8}", ours)
    at_40_hz = DMelConfig.dmel_40hz().build()
    assert vocoder_name(with_vocoder(at_40_hz, weights_in(tmp_path / "b"))) == ours
    description = HarmonicDescription(MelSpec(), TINY)
    torch.manual_seed(1)
    harmonic.WEIGHTS.write(tmp_path / "c", description, description.make())
    assert vocoder_name(with_vocoder(plain, tmp_path / "c")) != ours
    weights_in(tmp_path / "i", istft, ISTFTDescription)
    assert vocoder_name(with_vocoder(plain, tmp_path / "i")).startswith("istft ")
    assert vocoder_name(BytesConfig().build()) == vocoder_name(None) == ""


def test_names_and_other_kinds(tmp_path):
    weights_in(tmp_path / "i", istft, ISTFTDescription)
    own = with_vocoder(DMelConfig().build(), tmp_path / "i")
    assert isinstance(own.vocoder, istft.ISTFT)
    back = with_vocoder(own, type(tmp_path)("griffin-lim"))
    assert back.config.vocoder == GriffinLimConfig()
    segment = back.encode(CLIP)
    assert np.array_equal(back.decode(segment), DMelConfig().build().decode(segment))


def test_what_does_not_fit_is_refused(tmp_path):
    weights_in(tmp_path / "w")
    at_20_hz = DMelConfig(mel=MelSpec(hop_samples=800)).build()
    with pytest.raises(UserError, match="w is of other spectrograms .*: hop_samples 800 against"):
        with_vocoder(at_20_hz, tmp_path / "w")
    with pytest.raises(UserError, match="none: no vocoder is there; name the folder of a run,"):
        with_vocoder(at_20_hz, tmp_path / "none")
    BytesConfig().build().save(tmp_path / "text")
    with pytest.raises(UserError, match="text: Bytes has no vocoder"):
        with_vocoder(at_20_hz, tmp_path / "text")
    with pytest.raises(UserError, match="--vocoder: Bytes makes its sound without a vocoder"):
        with_vocoder(BytesConfig().build(), tmp_path / "w")
