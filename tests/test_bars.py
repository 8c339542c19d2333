"""The quickstart's figures beside their bars, as scripts/bars.py prints them."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "bars.py"


def printed(figures, folder):
    (folder / "evaluation.json").write_text(json.dumps(figures))
    done = subprocess.run([sys.executable, SCRIPT, folder / "evaluation.json"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[2:]


def jets(mass):
    keys = [f"{key}_w1{end}" for key in ("mass", "multiplicity", "pt") for end in ("", "_raw", "_unscaled")]
    return dict.fromkeys(keys, 1.0) | {"mass_w1": mass}


def test_what_lies_beyond_its_bar_is_marked_and_what_lies_on_it_is_not(tmp_path):
    figures = {"text_from_image": {"accuracy": 0.9, "n": 7}, "zero_shot": {"accuracy": 0.899, "n": 7},
               "jets_from_text": {"top": jets(4.5), "quark": jets(4.5)},
               "score": {"text": {"bits_per_byte": 2.0, "bits_per_byte_untrained": 8.0, "bits_per_byte_unigram": 1.9}}}
    rows = {line.split(" | ")[0].strip("| "): "missed" in line for line in printed(figures, tmp_path)}
    assert rows == {"text from image: accuracy": False, "zero-shot digit by ten scores": True, "score of text: bits/byte": True,
                    "top jets, W1 ratios: mass / multiplicity / pt": False, "quark jets, W1 ratios: mass / multiplicity / pt": True}


def test_string_errors_are_held_against_real_clips(tmp_path):
    for errors, missed in ((0.13, False), (0.14, True)):
        (line,) = printed({"speech_from_text": {"string_word_error": errors, "string_word_error_real": 0.035}}, tmp_path)
        assert ("missed" in line) is missed


def test_a_shortened_run_prints_what_it_has(tmp_path):
    assert printed({}, tmp_path) == []
