"""Resampling keeps sines and their times; lengths and memory obey a law."""

import random
import subprocess
import sys

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.nn.resample import n_resampled, resample

PAIRS = [
    (22_050, 16_000),
    (44_100, 16_000),
    (48_000, 16_000),
    (8_000, 16_000),
    (16_000, 24_000),
    (44_099, 16_000),
    (22_254, 16_000),
    (24_000, 44_100),
    (1_000, 768_000),
    (768_000, 1_000),
]
DECIBEL = 10 ** (1 / 20)


def sine(frequency_hz, rate_hz, n=None):
    return np.sin(2 * np.pi * frequency_hz * np.arange(n or rate_hz) / rate_hz)


def middle(samples):
    return samples[len(samples) // 4 : 3 * len(samples) // 4]


@pytest.mark.parametrize("from_hz, to_hz", PAIRS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.8, 0.92])
def test_a_sine_below_092_of_nyquist_stays_itself_without_delay(from_hz, to_hz, share):
    frequency_hz = share * min(from_hz, to_hz) / 2
    out = resample(sine(frequency_hz, from_hz), from_hz, to_hz)
    assert out.dtype == np.float32 and len(out) == to_hz
    assert np.abs(middle(out - sine(frequency_hz, to_hz))).max() < DECIBEL**0.1 - 1  # 0.1 dB


@pytest.mark.parametrize("from_hz, to_hz", [pair for pair in PAIRS if pair[0] > pair[1]])
@pytest.mark.parametrize("share", [1.0, 1.01, 1.1, 1.3])
def test_what_would_alias_is_gone(from_hz, to_hz, share):
    out = resample(sine(share * to_hz / 2, from_hz), from_hz, to_hz)
    assert np.abs(middle(out)).max() < 1e-4  # -80 dB


def test_an_impulse_comes_out_symmetric_at_its_time():
    impulse = np.zeros(4_410)
    impulse[2_205] = 1
    out = resample(impulse, 44_100, 16_000)  # 0.05 s is sample 800
    assert out.argmax() == 800
    assert np.abs(out[700:800] - out[900:800:-1]).max() < 1e-6


def test_the_length_is_exact_for_any_two_rates():
    rng = random.Random(0)
    for _ in range(300):
        from_hz = rng.randint(1_000, 768_000)
        to_hz = rng.randint(1_000, 768_000)
        n = rng.choice([1, 2, 3, rng.randint(1, 2_000)])
        out = resample(np.ones(n), from_hz, to_hz)
        assert len(out) == n_resampled(n, from_hz, to_hz)
        assert (
            (len(out) - 1) * from_hz < n * to_hz <= len(out) * from_hz
        )  # each sample before the end
        assert np.isfinite(out).all()


def test_the_same_samples_give_the_same_bits_and_equal_rates_change_nothing():
    noise = np.random.default_rng(0).standard_normal(5_000).astype(np.float32)
    assert np.array_equal(resample(noise, 44_099, 16_000), resample(noise, 44_099, 16_000))
    assert np.array_equal(resample(noise, 16_000, 16_000), noise)
    assert len(resample(noise[:0], 44_100, 16_000)) == 0


@pytest.mark.parametrize("rate_hz", [0, 7, 999, 768_001])
def test_rates_of_no_sound_are_refused(rate_hz):
    with pytest.raises(UserError, match=f"{rate_hz:,} Hz"):
        resample(np.ones(10), rate_hz, 16_000)


AWKWARD = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
import numpy as np
from mmtok.nn.resample import resample
for from_hz, to_hz in [(44_099, 16_000), (22_254, 16_000), (767_999, 1_000), (1_000, 767_999),
                       (1_009, 767_957), (765_437, 44_099), (16_001, 16_000)]:
    resample(np.ones(1_000, np.float32), from_hz, to_hz)
"""


def test_rates_without_a_common_factor_take_little_memory():
    done = subprocess.run(
        [sys.executable, "-c", AWKWARD],
        env={"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
