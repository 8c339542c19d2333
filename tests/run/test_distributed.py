"""Several processes answer as one does: the same files, lines and figures, written once; what goes
wrong is said in one line.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmtok.cli import main
from mmtok.run.distributed import SharedRun, run_on_all_ranks, seed_of
from mmtok.run.run import open_run
from mmtok.train.distributed import SINGLE_PROCESS


@pytest.fixture(scope="module")
def home(tiny_run, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    script = Path(__file__).parents[1] / "asked_together.py"
    subprocess.run(
        [sys.executable, script, folder, tiny_run, tiny_data / "images"],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return folder


def codes(home):
    return json.loads((home / "codes.json").read_text())


def printed(home, name, rank=0, kind="out"):
    return (
        (home / name / f"{rank}.{kind}").read_text().replace(str(home / name), "HOME").splitlines()
    )


def files(home, name):
    return {path.name: path.read_bytes() for path in (home / name / "files").iterdir()}


# ---- the same answers


@pytest.mark.parametrize("name", ["sample-2", "sample-3", "score-2", "evaluate-2"])
def test_the_first_process_prints_what_one_does_and_the_others_nothing(home, name):
    assert set(codes(home)[name]) == {0}
    assert printed(home, name) == printed(home, f"{name[:-1]}1") and len(printed(home, name)) > 10
    for rank in range(1, int(name[-1])):
        assert printed(home, name, rank) == printed(home, name, rank, "err") == []


def test_samples_are_those_of_one_process_up_to_256_and_of_any_number_of_processes_beyond(home):
    one, two, three = (files(home, f"sample-{n}") for n in (1, 2, 3))
    assert two == three and one.keys() == two.keys() and len(one) == 301
    assert all(one[f"dark-{i:03d}.png"] == two[f"dark-{i:03d}.png"] for i in range(256))
    assert any(one[f"dark-{i:03d}.png"] != two[f"dark-{i:03d}.png"] for i in range(256, 300))


def test_figures_and_what_they_were_judged_by_are_those_of_one_process(home, contents):
    one, two = (contents(home / f"evaluate-{n}" / "run") for n in (1, 2))
    assert one == two and len([name for name in one if name.startswith("samples/")]) > 20
    assert json.loads(one["evaluation.json"])["score"]["image"]


def test_parts_were_really_shared(home):
    """Under two processes, the first says for how many it speaks."""
    for name in ("sample-2", "evaluate-2"):
        assert any("(2 processes)" in line for line in printed(home, name, 0, "err")), name
    assert not any("processes)" in line for line in printed(home, "evaluate-1", 0, "err"))


# ---- what goes wrong


def lines(home, name):
    return [
        line
        for rank in (0, 1)
        for line in printed(home, name, rank, "err")
        if line.startswith("mmtok")
    ]


@pytest.mark.parametrize(
    "name, part",
    [
        ("refused", "mmtok: --to video: this run makes text"),
        ("nowhere", "nowhere is not a run folder"),
        ("wrong-there", "mmtok: what cannot be drawn"),
    ],
)
def test_an_error_in_any_process_ends_all_with_one_line(home, name, part):
    assert codes(home)[name] == [2, 2] and printed(home, name) == []
    (line,) = lines(home, name)
    assert part in line and not any("Traceback" in line for line in printed(home, name, 1, "err"))
    assert not (home / name / "files").exists()


def test_a_fault_in_another_process_is_the_firsts(home):
    assert codes(home)["broken-there"] == [1, 2] and printed(home, "broken-there", 1, "err") == []
    assert printed(home, "broken-there", 0, "err")[-1].endswith(
        "RuntimeError: in process 1: ZeroDivisionError('by nothing')"
    )


def test_when_another_process_dies_the_first_says_so(home):
    assert codes(home)["dies-there"] == [2, 9]
    (line,) = lines(home, "dies-there")
    assert (
        "another process is gone or does not answer" in line
        and not (home / "dies-there" / "files").exists()
    )


# ---- alone


def test_alone_a_run_is_asked_as_ever(tiny_run):
    assert type(run_on_all_ranks(tiny_run, None, lambda run: run)).__name__ == "Run"


def test_seeds_of_batches():
    seeds = [seed_of(7, k) for k in range(100)]
    assert (
        seeds[0] == 7
        and len(set(seeds)) == 100
        and all(0 <= s < 2**63 for s in seeds)
        and seed_of(8, 1) != seeds[1]
    )


def test_a_call_of_one_batch_is_one_process_s(tiny_run):
    run = SharedRun(open_run(tiny_run), SINGLE_PROCESS)
    prompts = [run.prompt([run.tokenizers["text"].encode("dark")], "image")] * 3
    drawn, alone = (it.draw(prompts, run.sampling("image"), 5) for it in (run, open_run(tiny_run)))
    assert [d.segment.codes.tolist() for d in drawn] == [d.segment.codes.tolist() for d in alone]


# ---- torchrun


@pytest.mark.slow
def test_under_torchrun(tiny_run, tmp_path):
    words = ["score", str(tiny_run), "dark", "light", "--condition"]
    image = tmp_path / "image"
    assert (
        main(
            [
                "sample",
                str(tiny_run),
                "--prompt",
                "dark",
                "--to",
                "image",
                "-n",
                "1",
                "--out",
                str(image),
            ]
        )
        == 0
    )
    words.append(str(image / "dark-000.png"))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "mmtok",
        *words,
    ]
    several = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    one = subprocess.run(
        [sys.executable, "-m", "mmtok", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (
        several.returncode == one.returncode == 0
        and several.stdout == one.stdout
        and len(one.stdout.splitlines()) == 3
    )
