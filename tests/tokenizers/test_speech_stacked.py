"""Several frames of the spectrogram in one of the stream: the same codes and the same sound, at any
length, streamed or not; scores per frame of the spectrogram.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.core.segment import Segment
from mmtok.core.units import customary
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.loader import cut
from mmtok.errors import UserError
from mmtok.heads.categorical import Parallel
from mmtok.tokenizers.speech import DMel, DMelConfig, stacked, unstacked
from mmtok.tokenizers.streaming import SoundStream

FACTORS = [1, 2, 4]
PRESETS = [getattr(DMelConfig, name)() for name in DMelConfig.presets]


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


@given(n=st.integers(0, 20), k=st.integers(1, 5), c=st.integers(1, 4))
def test_stacking_is_undone_and_keeps_bands_together(n, k, c):
    codes = np.random.default_rng(n).integers(1, 9, (n, c))
    frames = stacked(codes, k)
    assert frames.shape == (math.ceil(n / k), c * k)
    again = unstacked(frames, k)
    assert np.array_equal(again[:n], codes) and not again[n:].any()
    for t in range(n // k):
        for j in range(k):
            assert np.array_equal(frames[t, j::k], codes[t * k + j])


@pytest.mark.parametrize("config", PRESETS)
@pytest.mark.parametrize("k", FACTORS)
@pytest.mark.parametrize("n", [1, 200, 799, 1601, 4000, 5001])
def test_the_same_codes_and_sound_as_one_by_one(config, k, n):
    plain = config.build()
    tokenizer = replace(config, reduction_factor=k).build()
    one = plain.encode(noise(n))
    segment = tokenizer.encode(noise(n))
    assert len(segment) == math.ceil(len(one) / k) and tokenizer.n_units(segment) == len(one)
    assert torch.equal(tokenizer.log_mel(segment), plain.log_mel(one))
    sound = tokenizer.decode(segment)
    assert len(sound) == n and np.array_equal(sound, plain.decode(one))


@pytest.mark.parametrize("k", FACTORS)
def test_batch_equals_single(k):
    tokenizer = DMelConfig(reduction_factor=k).build()
    clips = [noise(n, n) for n in (1, 700, 3000, 12_345)]
    for clip, segment in zip(clips, tokenizer.encode_batch(clips), strict=True):
        assert np.array_equal(tokenizer.encode(clip).codes, segment.codes)


@pytest.mark.parametrize("name", ["dmel_40hz_causal", "inkling_20hz"])
@given(n=st.integers(1, 6000), sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("k", FACTORS)
def test_streamed_equals_whole(name, k, n, sizes):
    tokenizer = replace(getattr(DMelConfig, name)(), reduction_factor=k).build()
    stream = tokenizer.stream()
    codes = []
    at = 0
    while at < n:
        size = sizes[len(codes) % len(sizes)]
        codes.append(stream.push(noise(n)[at : at + size]))
        at += size
    codes = np.concatenate([*codes, stream.finish()])
    assert np.array_equal(codes, tokenizer.encode(noise(n)).codes)


@pytest.mark.parametrize("k", FACTORS)
def test_sampled_and_cut_frames_are_decoded_whole(k):
    tokenizer = DMelConfig(reduction_factor=k).build()
    segment = tokenizer.encode(noise(5000))
    for shorter in (cut(segment, 3), Segment("speech", codes=segment.codes[:3])):
        assert tokenizer.n_units(shorter) == 3 * k
        assert len(tokenizer.encode(tokenizer.decode(shorter))) == 3
    stream = SoundStream(tokenizer)
    sound = np.concatenate([*(stream.push(x[None]) for x in segment.codes), stream.finish()])
    assert len(sound) == tokenizer.config.mel.n_samples(k * len(segment))
    empty = Segment("speech", codes=np.zeros((0, 80 * k), int))
    assert len(tokenizer.decode(empty)) == 0 and tokenizer.n_units(empty) == 0


@pytest.mark.parametrize("k", FACTORS)
def test_an_untrained_parallel_head_has_one_score_for_all_factors(k):
    """log 16 of each of 80 bands, in the unit of a frame of the spectrogram."""
    tokenizer = DMelConfig(reduction_factor=k).build()
    segment = tokenizer.encode(noise(200 * 11))  # 12 frames
    head = Parallel().build(8, tokenizer.signature)
    nats = head.loss(torch.randn(len(segment), 8), torch.from_numpy(segment.codes).long()).sum()
    value, unit = customary(tokenizer.signature, nats.item(), tokenizer.n_units(segment))
    assert (value, unit) == (pytest.approx(80 * math.log(16), rel=1e-5), "nats/frame")
    assert Vocabulary([tokenizer.signature]).signatures["speech"].levels == (16,) * 80 * k


def test_rates_fingerprints_and_folders(tmp_path):
    configs = [DMelConfig(reduction_factor=k) for k in FACTORS]
    texts = [config.rate_texts(config.build().signature, {}) for config in configs]
    assert texts == [
        ["80 frames/s", "25600 bit/s"],
        ["40 frames/s of 2 spectra", "25600 bit/s"],
        ["20 frames/s of 4 spectra", "25600 bit/s"],
    ]
    assert {config.kbps for config in configs} == {25.6}
    marks = [config.build().signature.fingerprint for config in configs]
    # the same as before there was a reduction factor
    assert marks[0] == "95bd4d1bac4d" and len(set(marks)) == 3
    configs[1].build().save(tmp_path / "speech")
    assert DMel.load(tmp_path / "speech").config == configs[1]


def test_what_is_filled_up_is_counted():
    pytest.importorskip("pystoi")
    tokenizer = DMelConfig(reduction_factor=4).build()
    figures = tokenizer.fidelity([noise(200 * 8)])  # 9 frames, of which the last one is filled up
    assert figures["filled_share"] == 3 / 12 and figures["kbps"] == 25.6
    assert "filled_share" not in DMelConfig().build().fidelity([noise(200 * 8)])


@pytest.mark.parametrize("k", [0, -1, 17])
def test_impossible_factors_are_refused(k):
    with pytest.raises(UserError, match="reduction_factor must be 1 to 16"):
        DMelConfig(reduction_factor=k)


def test_frames_of_another_factor_are_refused():
    segment = DMelConfig(reduction_factor=2).build().encode(noise(3000))
    with pytest.raises(UserError, match=r"expected codes of shape \(T, 320\)"):
        DMelConfig(reduction_factor=4).build().decode(segment)
