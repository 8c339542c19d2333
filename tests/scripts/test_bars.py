"""The quickstart's figures beside their bars, as scripts/bars.py prints them."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bars.py"


def printed(figures, folder):
    (folder / "evaluation.json").write_text(json.dumps(figures))
    done = subprocess.run(
        [sys.executable, SCRIPT, folder / "evaluation.json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[2:]


def jets(mass):
    keys = [
        f"{key}_w1{end}"
        for key in ("mass", "multiplicity", "pt")
        for end in ("", "_raw", "_unscaled")
    ]
    return dict.fromkeys(keys, 1.0) | {"mass_w1": mass}


def test_what_lies_beyond_its_bar_is_marked_and_what_lies_on_it_is_not(tmp_path):
    figures = {
        "text_from_image": {"accuracy": 0.9, "n": 7},
        "zero_shot": {"accuracy": 0.899, "n": 7},
        "jets_from_text": {"top": jets(4.5), "quark": jets(4.5)},
        "score": {
            "text": {
                "bits_per_byte": 2.0,
                "bits_per_byte_untrained": 8.0,
                "bits_per_byte_unigram": 1.9,
            }
        },
    }
    rows = {
        line.split(" | ")[0].strip("| "): "missed" in line for line in printed(figures, tmp_path)
    }
    assert rows == {
        "text from image: accuracy": False,
        "zero-shot digit by ten scores": True,
        "score of text: bits/byte": True,
        "top jets, W1 ratios: mass / multiplicity / pt": False,
        "quark jets, W1 ratios: mass / multiplicity / pt": True,
    }


def test_a_judge_that_errs_on_real_signals_is_marked(tmp_path):
    figures = {
        "judge_accuracy": 1.0,
        "judge_heldout": 0.969,
        "judge_round_trip": 0.9,
        "stopped": 1.0,
        "copies": 0.0,
        "copies_heldout": 0.0,
        "frechet": 1.0,
        "frechet_real": 1.0,
    }
    for field, name in (
        ("image_from_text", "judge of images on real held-out digits"),
        ("speech_from_text", "judge of words on real held-out words"),
    ):
        for accuracy, missed in ((0.969, True), (0.97, False)):
            rows = printed({field: figures | {"judge_heldout": accuracy}}, tmp_path)
            assert [("missed" in row) for row in rows if name in row] == [missed] and sum(
                "missed" in row for row in rows
            ) == missed


def test_string_errors_are_held_against_real_clips(tmp_path):
    for errors, missed in ((0.13, False), (0.14, True)):
        (line,) = printed(
            {"speech_from_text": {"string_word_error": errors, "string_word_error_real": 0.035}},
            tmp_path,
        )
        assert ("missed" in line) is missed


def test_a_shortened_run_prints_what_it_has(tmp_path):
    assert printed({}, tmp_path) == []


def test_what_is_no_evaluation_is_answered_in_one_line(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    for path in (tmp_path / "list.json", tmp_path, tmp_path / "none.json"):
        done = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert f"{path} is no evaluation.json" in done.stderr


def judged(**changes):
    ours = {"stopped": 0.98, "phoneme_error": 0.28, "mos": 3.2, "speaker_above_others": 0.15}
    beside = {"phoneme_error": 0.2, "phoneme_error_low": 0.1, "phoneme_error_high": 0.3, "mos": 3.5}
    return {"samples": ours | changes, "round_trip": beside, "recordings": {"mos": 4.0}}


def test_judged_speech_has_bars_beside_its_round_trip(tmp_path):
    lines = printed({"speech_from_text_judged": judged(word_error=0.4)}, tmp_path)
    assert len(lines) == 5 and not any("missed" in line for line in lines)
    assert "round trip 0.200 (0.100 to 0.300), recordings -" in lines[1]
    worse = judged(stopped=0.97, phoneme_error=0.29, mos=3.1, speaker_above_others=0.1)
    lines = printed({"speech_from_text_judged": worse}, tmp_path)
    assert sum("missed" in line for line in lines) == 4
    words = {"judge_accuracy": 1.0}
    lines = printed({"speech_from_text_judged": worse, "speech_from_text": words}, tmp_path)
    assert not any("missed" in line for line in lines)


def test_jets_are_held_against_halves_of_the_real_ones_beside_the_bar(tmp_path):
    figures = jets(3.0)
    for key in ("mass_w1", "multiplicity_w1", "pt_w1"):
        figures |= {f"{key}_low": 0.5, f"{key}_high": 4.0, f"{key}_p": 0.25, f"{key}_halves": 1.5}
    rows = printed({"jets_from_text": {"top": figures}}, tmp_path)
    assert len(rows) == 2 and "missed" not in "".join(rows)
    assert "outside / inside / inside" in rows[1] and "3.000 (0.500 to 4.000), p 0.250" in rows[1]
