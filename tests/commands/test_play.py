"""Samples while they are drawn: the first sound before the last frame, players of every kind,
streams to standard output.
"""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.commands import play as live
from mmtok.data.speech_preparation import read_sound
from mmtok.run.run import Run, open_run
from mmtok.tokenizers.streaming import SoundStream

# a player that marks its first bytes, keeps all, and says what it was called with
FAKE = """
import sys, pathlib
home = pathlib.Path(sys.argv[1])
first = sys.stdin.buffer.read(1)
(home / "first").write_text("heard")
(home / "all").write_bytes(first + sys.stdin.buffer.read())
(home / "rate").write_text(sys.argv[2])
"""
SLOW = (
    "import sys, time, pathlib; sys.stdin.buffer.read(1); pathlib.Path(sys.argv[1],"
    " 'first').write_text('heard'); time.sleep(60)"
)


@pytest.fixture(scope="module")
def run(tiny_run):
    return open_run(tiny_run)


@pytest.fixture(scope="module")
def seed(run):
    """Of a sample of all the twelve frames that the recipe allows: many of the tiny run's end
    before they begin.
    """
    return next(
        s
        for s in range(99)
        if len(run.draw([prompt_of(run)], run.sampling("speech"), s)[0].segment) == 12
    )


def prompt_of(run, word="low"):
    return run.prompt([run.tokenizers["text"].encode(word)], "speech")


def player(tmp_path, code=FAKE):
    return shlex.join([sys.executable, "-c", code, str(tmp_path)]) + " {rate}"


def words(run, tmp_path, *more):
    return [
        "sample",
        str(run.folder),
        "--prompt",
        "low",
        "--to",
        "speech",
        "--out",
        str(tmp_path / "out"),
        *map(str, more),
    ]


def heard(tmp_path):
    return np.frombuffer((tmp_path / "all").read_bytes(), "<i2")


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.01)


# ---- players


def test_the_first_sound_comes_before_the_last_frame_is_drawn(
    run, seed, tmp_path, monkeypatch, capsys
):
    """The twelfth of twelve frames is drawn only once the player has heard something."""
    drawn = []

    def waiting(self, prompts, sampling, seed, stream=Run.stream):
        steps = stream(self, prompts, sampling, seed)
        while True:
            if len(drawn) == 11:
                wait_for(tmp_path / "first")
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            drawn.append(step)
            yield step

    monkeypatch.setattr(Run, "stream", waiting)
    assert main(words(run, tmp_path, "--play", player(tmp_path), "--seed", seed)) == 0
    out, err = capsys.readouterr()
    assert len(drawn) == 12 and (tmp_path / "rate").read_text() == "16000"
    assert [line.split("/")[-1] for line in out.splitlines()] == ["low-000.wav"]
    assert any(
        line.startswith("first sound ") and line.endswith(" at frame 6 of 12")
        for line in err.splitlines()
    ), err


def test_what_is_played_is_the_streamed_sound_of_what_is_written(run, seed, tmp_path):
    """Several samples one after the other, as many samples each as in its file, and the files as
    without a player.
    """
    more = ["-n", 3, "--max-frames", 10, "--seed", seed]
    assert main(words(run, tmp_path, "--play", player(tmp_path), *more)) == 0
    assert main(words(run, tmp_path / "quiet", *more)) == 0
    files = sorted((tmp_path / "out").glob("*.wav"))
    assert [f.read_bytes() for f in files] == [
        f.read_bytes() for f in sorted((tmp_path / "quiet" / "out").glob("*.wav"))
    ]
    assert (tmp_path / "out" / "index.json").read_text() == (
        tmp_path / "quiet" / "out" / "index.json"
    ).read_text()
    expected = []
    lengths = []
    for d in run.draw([prompt_of(run)] * 3, run.sampling("speech", max_frames=10), seed):
        sound = SoundStream(run.tokenizers["speech"])
        expected += [sound.push(d.segment.codes), sound.finish(), np.zeros(4800, np.float32)]
        lengths.append(len(expected[-3]) + len(expected[-2]))
    assert np.array_equal(
        heard(tmp_path), np.round(np.concatenate(expected[:-1]) * 32767).astype(int)
    )
    rows = json.loads((tmp_path / "out" / "index.json").read_text())
    assert sum(lengths) > 0 and [row["frames"] > 0 for row in rows] == [n > 0 for n in lengths]
    assert [len(read_sound(f)) for f, n in zip(files, lengths) if n] == [n for n in lengths if n]


def test_rows_drawn_together_come_in_turn():
    def steps():
        yield np.array([0, 1, 2]), np.array([[1], [2], [3]])
        yield np.array([0, 2]), np.array([[4], [5]])
        yield np.array([2]), np.array([[6]])
        return "samples"

    turns = live.in_turn(
        steps(), [np.zeros((1, 1), int), np.zeros((0, 1), int), np.zeros((0, 1), int)]
    )
    told = []
    while True:
        try:
            row, frames = next(turns)
        except StopIteration as end:
            assert end.value == "samples"
            break
        told.append((row, frames[:, 0].tolist()))
    assert told == [(0, [0, 1]), (0, [4]), (0, []), (1, [2]), (2, [3, 5, 6]), (2, [])]


@pytest.mark.parametrize(
    "n, says", [(1, "the sample ends before"), (2, "all 2 samples end before")]
)
def test_samples_of_no_frames_are_told(run, tmp_path, notes, monkeypatch, n, says):
    """And nothing is played, not even the pause between them."""
    empty = next(
        s
        for s in range(99)
        if not any(
            len(d.segment) for d in run.draw([prompt_of(run)] * n, run.sampling("speech"), s)
        )
    )
    lines = notes(words(run, tmp_path, "--play", player(tmp_path), "--seed", empty, "-n", n))
    assert len(lines) == 1 and f"nothing to play: {says} the first sound" in lines[0]
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    "code, said",
    [
        ("raise SystemExit(3)", "failed with exit code 3"),
        ("import os; os.close(0)", "ended before the sound did"),
    ],
)
def test_a_player_that_goes_away_costs_only_the_sound(
    run, seed, tmp_path, notes, monkeypatch, code, said
):
    def sound(self, values):
        return np.zeros(200_000, np.float32)  # more than a pipe holds

    monkeypatch.setattr(SoundStream, "push", sound)
    lines = notes(words(run, tmp_path, "--play", player(tmp_path, code), "--seed", seed))
    assert [said in line and "in their files all the same" in line for line in lines] == [True]
    assert (tmp_path / "out" / "low-000.wav").exists()


@pytest.mark.parametrize(
    "more, parts",
    [
        (["--play", "no-such-player -x"], ["no program 'no-such-player -x'"]),
        (["--play", "it's"], ["is no command"]),
        (["--play"], ["finds no player", "ffplay (ffmpeg)", "aplay (alsa-utils)"]),
        (["--play", "cat", "--infill", "a.wav:1:2"], ["leave out --play"]),
        (["--play", "cat", "--to", "image"], ["image makes no sound"]),
        (["--out", "-", "-n", "2"], ["--out - is for one sample"]),
        (["--out", "-", "--play", "cat"], ["--out - is for one sample"]),
        (["--out", "-", "--prompt", "dark", "--to", "image"], ["--out - is for speech and text"]),
    ],
)
def test_what_cannot_be_played_is_refused_before_anything_is_drawn(
    run, tmp_path, said, monkeypatch, more, parts
):
    monkeypatch.setenv("PATH", "/nowhere") if more == ["--play"] else None
    asked = words(run, tmp_path)
    for option in {"--out", "--to", "--prompt"} & set(more):
        at = asked.index(option)
        del asked[at : at + 2]
    line = said([*asked, *more])
    assert all(part in line for part in parts)
    assert not (tmp_path / "out").exists()


def test_a_player_that_is_found_is_called_with_its_own_words(monkeypatch):
    there = {"aplay", "play"}
    monkeypatch.setattr(live.shutil, "which", lambda name: name if name in there else None)
    assert live._player_words("", 16_000) == [
        "aplay",
        "-q",
        "-t",
        "raw",
        "-f",
        "S16_LE",
        "-c",
        "1",
        "-r",
        "16000",
        "-",
    ]
    there.add("ffplay")
    assert live._player_words("", 8_000)[0] == "ffplay" and "8000" in live._player_words("", 8_000)


def test_ctrl_c_stops_the_player_and_keeps_what_was_drawn(run, seed, tmp_path):
    asked = words(
        run,
        tmp_path,
        "--seed",
        seed,
        "--play",
        player(tmp_path, "import os; print(os.getpid(), flush=True)\n" + SLOW),
    )
    command = [sys.executable, "-m", "mmtok", *asked]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def heard():
        # where the tests run in a shell's background, it is ignored
        return signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=heard,
    )
    child = int(process.stdout.readline())
    wait_for(tmp_path / "out" / "index.json")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert (tmp_path / "out" / "low-000.wav").exists()


# ---- standard output


def test_speech_to_stdout_is_a_wav_stream(run, seed, capfdbinary):
    import soundfile

    assert (
        main(
            [
                "sample",
                str(run.folder),
                "--prompt",
                "low",
                "--to",
                "speech",
                "--seed",
                str(seed),
                "--out",
                "-",
            ]
        )
        == 0
    )
    out = capfdbinary.readouterr().out
    (drawn,) = run.draw([prompt_of(run)], run.sampling("speech"), seed)
    sound = SoundStream(run.tokenizers["speech"])
    expected = np.concatenate([sound.push(drawn.segment.codes), sound.finish()])
    assert np.array_equal(
        np.frombuffer(out[44:], "<i2"), np.round(expected * 32767).astype(int)
    ) and len(expected)
    samples, rate_hz = soundfile.read(io.BytesIO(out), dtype="int16")
    assert rate_hz == 16_000 and len(samples) == len(expected)


def test_text_to_stdout_is_the_text(run, tmp_path, capsys, tiny_data):
    image = str(sorted((tiny_data / "images" / "dark").iterdir())[0])
    asked = [
        "sample",
        str(run.folder),
        "--prompt",
        image,
        "--to",
        "text",
        "--seed",
        "1",
        "--temperature",
        "2",
    ]
    assert main([*asked, "--out", str(tmp_path), "-n", "1"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[0])
    assert main([*asked, "--out", "-"]) == 0
    assert capsys.readouterr().out == path.read_bytes().decode() + "\n"


def test_letters_of_several_bytes_come_whole(run):
    text = "été ▁ 語\ufffd!"
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64)[:, None]
    pieces = list(live.text_pieces(run.tokenizers["text"], ((0, code[None]) for code in codes)))
    assert (
        "".join(pieces) == text
        and all("\ufffd" not in piece or "!" in piece for piece in pieces)
        and "語" in pieces
    )
    cut = list(live.text_pieces(run.tokenizers["text"], ((0, code[None]) for code in codes[:1])))
    assert cut == ["", "\ufffd"]
