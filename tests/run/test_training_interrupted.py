"""Training as a process that is stopped: by Ctrl-C, by a reader that stops reading; the same
command goes on from there.
"""

import signal
import subprocess
import sys

from mmtok.cli import main


def test_ctrl_c_in_training_leaves_a_checkpoint_and_130_and_the_same_command_goes_on(
    tiny_words, tmp_path
):
    command = [
        sys.executable,
        "-m",
        "mmtok",
        "train",
        *tiny_words,
        "--out",
        str(tmp_path / "run"),
        "--train.steps",
        "40",
        "--train.checkpoint_every",
        "1000",
        "--train.log_every",
        "2",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step 4:"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read().splitlines()
    assert process.wait() == 130 and "Traceback" not in "".join(rest)
    assert rest[-1].startswith("mmtok: stopped at step ") and rest[-1].endswith(
        "; the same command goes on from there"
    )
    step = int(rest[-1].split()[4].rstrip(";"))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    assert (
        not list((tmp_path / "run").rglob("*tmp*"))
        and not (tmp_path / "run" / "model.safetensors").exists()
    )
    again = subprocess.run(command, capture_output=True, text=True)
    assert (
        again.returncode == 0
        and f"resuming at step {step}" in again.stderr
        and (tmp_path / "run" / "model.safetensors").exists()
    )


def test_a_reader_that_stops_reading_stops_training_which_can_be_resumed(
    tiny_words, tiny_run, tmp_path
):
    command = [sys.executable, "-m", "mmtok", "train", *tiny_words, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    process.stderr.readline()
    process.stderr.close()
    assert process.wait() == 141 and not (tmp_path / "run" / "model.safetensors").exists()
    assert main(command[3:]) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tiny_run / "model.safetensors"
    ).read_bytes()


def test_a_second_call_says_what_stands(capsys, tiny_words, tiny_copy, contents):
    before = contents(tiny_copy)
    assert main(["train", *tiny_words, "--out", str(tiny_copy)]) == 0
    assert "is trained: nothing to do" in capsys.readouterr().err and contents(tiny_copy) == before
