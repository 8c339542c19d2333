"""What the benchmarks measure with: turns, bars, and the words they take."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmtok.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def side_by_side():
    spec = importlib.util.spec_from_file_location("side_by_side", SCRIPTS / "side_by_side.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_bar_is_met_on_it_and_missed_beyond_it_or_when_something_went_wrong(side_by_side):
    line = side_by_side.Line("what", "s", 2.0, "peer", 4.0, "ratio", 2.0, 2.0)
    assert line.met and str(line).endswith("bar >= 2: met")
    assert not replace(line, value=1.99).met and replace(line, value=1.99, least=False).met
    assert not replace(line, value=2.01, least=False).met
    wrong = replace(line, wrong="codes differ")
    assert not wrong.met and str(wrong).endswith("MISSED (codes differ)")


def test_columns_stay_apart_however_long_their_words_are(side_by_side):
    line = side_by_side.Line("w" * 60, "particles/s", 4.7e6, "p" * 40, None, "h" * 30, 4.7e6, 1.0)
    words = ["w" * 60, "4.7e+06", "particles/s", "p" * 40, "h" * 30, "4.7e+06", "bar"]
    assert str(line).split()[:7] == words


def test_a_package_that_is_not_installed_is_named_so(side_by_side):
    facts = side_by_side.machine(("numpy", "no-such-package"))
    assert facts["no-such-package"] == "not installed" != facts["numpy"]


def test_a_row_without_its_peer_is_refused_with_the_extra(side_by_side):
    side_by_side.check_peers(["start"], {"text": ("no_such_package", "bench")})
    with pytest.raises(UserError, match=r"row text needs the extra: pip install 'mmtok\[bench\]'"):
        side_by_side.check_peers(["start", "text"], {"text": ("no_such_package", "bench")})


def test_sides_take_turns_backwards_in_every_other_one_and_the_first_turn_only_warms_up(
    side_by_side, monkeypatch
):
    calls = []
    took = {"a": iter((100.0, 1.0, 3.0, 2.0)), "b": iter((100.0, 5.0, 5.0, 7.0))}
    monkeypatch.setattr(side_by_side, "seconds", lambda side: side())
    sides = [lambda name=name: calls.append(name) or next(took[name]) for name in "ab"]
    assert side_by_side.median_seconds(sides, 3) == [2.0, 5.0] and calls == list("baabbaab")


def bench(*words, script="bench.py"):
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_row_of_the_benchmark_prints_its_lines_and_writes_them(tmp_path):
    done = bench("jets", "--repeats", 1, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert [line["what"] for line in written["lines"]] == [
        "jets, encode",
        "jets, decode",
    ] and written["machine"]["threads"] == 1
    printed = done.stdout.splitlines()
    assert printed[0].startswith("machine: processor ") and len(printed) == 3
    assert all(
        ("met" if line["met"] else "MISSED") in text
        for line, text in zip(written["lines"], printed[1:])
    )


@pytest.mark.parametrize(
    "script, words",
    [("bench.py", ["jest"]), ("bench.py", ["--repeats", 0]), ("bench_engine.py", ["--threads", 0])],
)
def test_wrong_words_are_refused_with_the_rows_there_are(script, words):
    done = bench(*words, script=script)
    assert done.returncode == 2 and "rows are " in done.stderr.splitlines()[-1]


def test_a_wrong_folder_is_answered_in_one_line(tmp_path):
    done = bench(tmp_path / "nowhere", "--out", tmp_path / "out", script="bench_fashion.py")
    assert (
        done.returncode == 2
        and len(done.stderr.splitlines()) == 1
        and done.stderr.startswith("bench_fashion.py: ")
    ), done.stderr
    assert str(tmp_path / "nowhere") in done.stderr and not (tmp_path / "out").exists()
