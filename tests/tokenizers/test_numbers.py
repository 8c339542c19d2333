"""Laws of numbers as conditions: decode inverts encode, what is clipped is counted."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtok.commands.signal_files import files_of
from mmtok.errors import UserError
from mmtok.tokenizers import load
from mmtok.tokenizers.numbers import NumberConfig

PT = NumberConfig(unit="GeV", low=400.0, high=2000.0, scale="log").named("pt_gev")
AGE = NumberConfig(unit="years", low=0, high=100, n_bins=20).named("age")
CLASS = NumberConfig(n_classes=10).named("digit")


@given(st.floats(400, 2000))
def test_fourier_features_tell_the_number(pt):
    tokenizer = PT.build()
    segment = tokenizer.encode(pt)
    assert segment.modality == "pt_gev" and segment.latents.shape == (1, 16)
    assert abs(tokenizer.decode(segment) / pt - 1) < 1e-5
    assert np.allclose(segment.latents[0, ::2] ** 2 + segment.latents[0, 1::2] ** 2, 1, atol=1e-6)


def test_they_are_equation_5_with_octaves():
    """cos and sin of 2 pi b v, b = 1/2, 1, 2, ..., of the share v of the range."""
    config = NumberConfig(low=-1, high=3, n_frequencies=4).named("x")
    v = (0.5 + 1) / 4
    expected = [f(2 * math.pi * b * v) for b in (0.5, 1, 2, 4) for f in (math.cos, math.sin)]
    assert np.allclose(config.build().encode(0.5).latents[0], expected, atol=1e-6)


def test_bins_and_classes_are_codes():
    age = AGE.build()
    codes = [age.encode(x).codes.item() for x in (0, 4.9, 5, 99, 100)]
    assert codes == [0, 0, 1, 19, 19]
    assert age.decode(age.encode(7)) == 7.5
    digit = CLASS.build()
    assert [digit.decode(digit.encode(k)) for k in range(10)] == list(range(10))
    for config in (AGE, CLASS):
        assert config.signature().frames == 1 and config.signature().one_channel
    for wrong in (-1, 10, 2.5):
        with pytest.raises(UserError, match=f"digit: {wrong} is no class; they are 0 to 9"):
            digit.encode(wrong)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, "nan", "six", "1,000", "600 GeV", "", None, 10**400]
)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(UserError, match="pt_gev"):
        PT.build().encode(value)


def test_texts_that_are_numbers_are_taken():
    tokenizer = PT.build()
    assert np.array_equal(tokenizer.encode(" 6e2 ").latents, tokenizer.encode(600).latents)


def test_what_lies_outside_is_clipped_and_counted_once():
    tokenizer = PT.build()
    with pytest.warns(UserWarning) as said, tokenizer.counting():
        tokenizer.encode_batch([300, 500, 900])
        segment = tokenizer.encode(5000)
    assert abs(tokenizer.decode(segment) / 2000 - 1) < 1e-5
    assert [str(w.message) for w in said] == [
        "1 of 4 numbers of pt_gev was clipped, being below 400 GeV; widen tokenizers.pt_gev"
        " (first: 300)",
        "1 of 4 numbers of pt_gev was clipped, being above 2000 GeV; widen tokenizers.pt_gev"
        " (first: 5000)",
    ]
    with pytest.warns(UserWarning, match="300 was clipped"):
        tokenizer.encode(300)


def test_counts_of_two_processes_merge():
    a = PT.build()
    with a.counting(quiet=True) as first:
        a.encode_batch([300, 500])
    with a.counting(quiet=True) as second:
        a.encode_batch([200])
    first.merge_plain(second.as_plain())
    with pytest.warns(UserWarning, match="2 of 3 numbers of pt_gev were clipped.*first: 300"):
        first.report()


def test_fidelity_says_the_error_and_what_is_clipped():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = AGE.build().fidelity([10, 20, 300, 40.1])
    assert figures["clipped_share"] == 0.25 and figures["max_error"] <= 0.5 / 20 + 1e-9


@pytest.mark.parametrize("config", [PT, AGE, CLASS], ids=["pt", "age", "class"])
def test_save_and_load_keep_everything(config, tmp_path):
    tokenizer = config.build()
    tokenizer.save(tmp_path)
    again = load(tmp_path)
    assert again.config == config and again.signature == tokenizer.signature
    assert config.signature() == again.signature
    other = config.named("other")
    assert other.signature().fingerprint != again.signature.fingerprint


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"scale": "log"}, "on a log scale it is above 0"),
        ({"high": math.inf}, "both finite"),
        ({"n_bins": 3, "n_classes": 3}, "exclude each other"),
        ({"n_frequencies": 0}, "n_frequencies is 0"),
        ({"scale": "sqrt"}, "scale is 'sqrt'; it is linear or log"),
        ({"low": -1e308, "high": 1e308}, "too far apart"),
        ({"low": 1e-300, "high": 1e300, "scale": "log"}, "too far apart"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        NumberConfig(**settings)


def test_a_number_is_not_named_as_a_signal():
    with pytest.raises(UserError, match="speech is no number"):
        NumberConfig().named("speech")


def test_numbers_that_are_made_are_written_and_read(tmp_path):
    """One per line, exactly; a text file as a prompt stays a text."""
    files = files_of(AGE)
    files.write(tmp_path / "age.txt", [7.5, 1 / 3, 1e-9], {})
    assert list(files.read(tmp_path / "age.txt", {})) == [7.5, 1 / 3, 1e-9]
    assert files.many and ".txt" not in files.suffixes
    (tmp_path / "age.txt").write_text("7\nold\n")
    with pytest.raises(UserError, match="age.txt: line 2: 'old' is no number"):
        list(files.read(tmp_path / "age.txt", {}))
