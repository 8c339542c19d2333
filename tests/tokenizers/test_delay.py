"""The delay pattern: an exact inverse, what is in which frame, and what a cut leaves."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmtok.tokenizers.delay import delayed, n_moments, undelayed


def codes_of(n, n_codebooks):
    return np.random.default_rng(n).integers(0, 9, (n, n_codebooks))


@given(n=st.integers(0, 12), n_codebooks=st.integers(1, 6))
def test_inverse_and_lengths(n, n_codebooks):
    codes = codes_of(n, n_codebooks)
    frames = delayed(codes, 9)
    assert len(frames) == (n + n_codebooks - 1 if n else 0)
    assert n_moments(len(frames), n_codebooks) == n
    assert np.array_equal(undelayed(frames), codes) and frames.dtype == codes.dtype
    assert (frames == 9).sum() == (n_codebooks * (n_codebooks - 1) if n else 0)


@given(n=st.integers(1, 12), n_codebooks=st.integers(1, 6))
def test_codebook_q_of_a_moment_stands_q_frames_later(n, n_codebooks):
    codes = codes_of(n, n_codebooks)
    frames = delayed(codes, 9)
    for t in range(n):
        for q in range(n_codebooks):
            assert frames[t + q, q] == codes[t, q]


@given(n=st.integers(1, 12), n_codebooks=st.integers(1, 6), kept=st.integers(0, 18))
def test_of_cut_frames_the_moments_with_all_codebooks_are_left(n, n_codebooks, kept):
    codes = codes_of(n, n_codebooks)
    found = undelayed(delayed(codes, 9)[:kept])
    assert len(found) == min(n, max(0, kept - n_codebooks + 1))
    assert np.array_equal(found, codes[: len(found)])


@pytest.mark.parametrize("n, n_codebooks", [(9, 4), (5, 3), (8, 8)])
def test_the_pattern_is_musicgens(n, n_codebooks):
    """Whose prompts begin with a frame of fill codes, which the begin mark of a stream replaces."""
    musicgen = pytest.importorskip("transformers.models.musicgen.modeling_musicgen")
    codes = codes_of(n, n_codebooks)
    prompt = torch.from_numpy(np.pad(codes, ((1, 0), (0, 0)), constant_values=9).T)
    model = SimpleNamespace(num_codebooks=n_codebooks, config=SimpleNamespace(audio_channels=1))
    build = musicgen.MusicgenForCausalLM.build_delay_pattern_mask
    _, pattern = build(model, prompt, pad_token_id=9, max_length=n + n_codebooks)
    assert np.array_equal(pattern.T[1:].numpy(), delayed(codes, 9))
