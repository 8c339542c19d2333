"""Griffin-Lim block by block: the sound of the whole clip."""

import numpy as np
import pytest

from mmtok.nn.audio import MelSpec
from mmtok.tokenizers import griffin_lim
from mmtok.tokenizers.speech import DMelConfig


@pytest.mark.parametrize(
    "spec",
    [
        MelSpec(),
        MelSpec(hop_samples=400),
        MelSpec(n_fft=1600, window_samples=1600, hop_samples=800, fmin_hz=0, causal=True),
    ],
)
@pytest.mark.parametrize("n_left", [0, 1, 777])
def test_blocks_sound_as_the_whole_clip(monkeypatch, spec, n_left):
    block = 300
    config = griffin_lim.GriffinLimConfig(n_iterations=4, inversion_iterations=10)
    tokenizer = DMelConfig(mel=spec, vocoder=config).build()
    n = 3 * block * spec.hop_samples // 2 + n_left
    t = np.arange(n) / 16_000
    clip = 0.3 * np.sin(2 * np.pi * (200 * t + 30 * np.sin(5 * t)))
    clip += 0.01 * np.random.default_rng(0).standard_normal(n)
    segment = tokenizer.encode(clip.astype(np.float32))
    whole = tokenizer.decode(segment)
    monkeypatch.setattr(griffin_lim, "BLOCK_FRAMES", block)
    blocks = tokenizer.decode(segment)
    assert len(blocks) == n
    assert np.abs(blocks - whole).max() < 1e-3
