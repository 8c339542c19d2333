"""Several processes make the steps that one makes, whole or sharded, and go on with any number of
them (many.py trains them).
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.distributed.checkpoint import HuggingFaceStorageReader

from mmtok.cli import main
from mmtok.errors import UserError
from mmtok.nn.sharded import is_sharded
from mmtok.train.checkpoint import load_checkpoint
from mmtok.train.config import TrainConfig
from mmtok.train.distributed import SINGLE_PROCESS, Processes, check_replicas, init_distributed
from mmtok.train.log import read_log
from mmtok.train.shards import to_write
from mmtok.train.trainer import Trainer

CUT = 4  # steps of the trainings that are resumed
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    many(folder)
    return folder


def many(*words):
    subprocess.run(
        [sys.executable, Path(__file__).with_name("many.py"), *words],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def told(home, name):
    return json.loads((home / f"{name}.json").read_text())


def same_steps(run, reference, within=1e-5):
    """Losses, nats and gradients of every step that both made; the counts exactly."""
    steps = {step["step"]: step for step in reference["steps"]}
    assert run["steps"] and run["untouched"] == 0
    for step in run["steps"]:
        other = steps[step["step"]]
        assert step["loss"] == pytest.approx(other["loss"], rel=0, abs=within) and step[
            "norm"
        ] == pytest.approx(other["norm"], rel=within)
        assert (step["positions"], step["rate"]) == (other["positions"], other["rate"])
        for m, (nats, n) in other["parts"].items():
            assert step["parts"][m][1] == n and step["parts"][m][0] == pytest.approx(
                nats, rel=within
            )
    return True


def same_weights(run, reference, within=1e-5):
    return run["sum"] == pytest.approx(reference["sum"], rel=within)


# ---- the same steps


@pytest.mark.parametrize("name", ["two", "two-sharded"])
def test_two_processes_make_the_steps_of_one_and_the_second_never_sees_a_jet(home, name):
    run = told(home, name)
    one = told(home, "one")
    assert same_steps(run, one) and [step["step"] for step in run["steps"]] == [0, 1, 2, 3]
    assert all(step["jets"][0] > 0 and step["jets"][1] == 0 for step in run["steps"])
    assert (
        min(step["norm"] for step in one["steps"])
        < 0.7
        < max(step["norm"] for step in one["steps"])
    ), "some steps are clipped, some not"


@pytest.mark.parametrize(
    "name", ["three", "three-sharded", "three-crossed", "one-again", "one-again-sharded"]
)
def test_stopped_at_two_processes_and_resumed_at_one_or_three(home, name):
    run = told(home, name)
    one = told(home, "one")
    assert run["resumed"] and [step["step"] for step in run["steps"]] == [4, 5, 6, 7]
    assert same_steps(run, one) and same_weights(run, one)
    assert told(home, "two-sharded")["sharded"] and run["sharded"] == (
        name in ("three-sharded", "three-crossed")
    )


@pytest.mark.parametrize("name", ["three-short", "three-short-sharded"])
def test_a_process_without_rows_still_takes_part(home, name):
    run = told(home, name)
    one = told(home, "one-short")
    assert (
        same_steps(run, one)
        and same_weights(run, one)
        and all(step["rows"] == [1, 1, 0] for step in run["steps"])
    )


def test_in_bf16_sharded_weights_are_rounded_alike(home):
    assert same_steps(told(home, "two-sharded-bf16"), told(home, "one-bf16"), within=2e-3)


@pytest.mark.parametrize("name", ["two-muon", "two-sharded-muon"])
def test_muon_makes_the_steps_of_one_process_whole_and_sharded(home, name):
    run = told(home, name)
    one = told(home, "one-muon")
    assert (
        run["sharded"] == (name == "two-sharded-muon")
        and same_steps(run, one)
        and same_weights(run, one)
    )


@pytest.mark.parametrize("name", ["two-sharded", "two-sharded-bf16"])
def test_sharded_blocks_computed_again_make_the_same_steps_bit_for_bit(home, name):
    run = told(home, name)
    again = told(home, f"{name}-recomputed")
    assert again["sharded"] and again["untouched"] == 0 and again["steps"] == run["steps"][:3]
    assert name == "two-sharded" or again["sum"] == run["sum"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_blocks_make_the_same_steps_whole_and_sharded_by_one_graph(home):
    many(home, "compiled")
    for name, sharded in (
        ("two-compiled", False),
        ("two-sharded-compiled", True),
        ("two-sharded-compiled-recomputed", True),
    ):
        run = told(home, name)
        assert (
            run["sharded"] == sharded
            and len(run["steps"]) == 3
            and same_steps(run, told(home, "one"))
        )
        assert all(
            "'unique_graphs': 1}" in (home / f"{name}-graphs-{rank}.txt").read_text()
            for rank in (0, 1)
        )


def test_two_groups_of_two_hold_a_copy_each_and_make_the_steps_of_one(home):
    run = told(home, "four-hybrid")
    assert same_steps(run, told(home, "one")) and len(run["steps"]) == 4
    assert 0.5 * run["weights"] <= run["held"] < 0.55 * run["weights"]


@pytest.mark.parametrize("name", ["four-hybrid", "four-sharded"])
def test_gradients_travel_once_per_step_of_two_micro_batches(home, name):
    """Between the groups of a hybrid; within one in each micro-batch, so that all keep shares."""
    run = told(home, f"{name}-accumulated")
    n_weights = run["weights"]
    assert same_steps(run, told(home, "one-long")) and len(run["steps"]) == 3
    counts = json.loads((home / f"{name}-accumulated-0.txt").read_text())
    shares = counts["reduce_scatter_tensor"]
    copies = counts["all_reduce"]
    if name == "four-sharded":
        assert n_weights <= shares / 3 < 1.05 * n_weights and copies == 0
    else:
        assert n_weights <= shares / 3 / 2 < 1.05 * n_weights
        assert n_weights / 2 <= copies / 3 < 1.05 * n_weights / 2


def test_a_start_is_read_into_shards_that_never_were_complete(home):
    """Also where the checkpoint has rows for text alone, and marks copy some of them."""
    for rank in range(3):
        equal = json.loads((home / f"start-{rank}.txt").read_text())
        assert len(equal) == 6 and all(equal.values()), equal


def test_groups_must_be_of_equal_size():
    check_replicas(Processes(0, 6), 3)
    check_replicas(SINGLE_PROCESS, 3)
    with pytest.raises(UserError, match="6 processes cannot form 4 groups of equal size"):
        check_replicas(Processes(0, 6), 4)
    with pytest.raises(UserError, match="replicas is 2; it needs fsdp true"):
        TrainConfig(replicas=2)


def test_a_shard_is_a_share(home):
    whole = told(home, "two")
    half = told(home, "two-sharded")
    third = told(home, "three-sharded")
    assert whole["held"] == whole["weights"] == half["weights"] == third["weights"]
    assert half["held"] < 0.55 * half["weights"] and third["held"] < 0.4 * third["weights"]


# ---- checkpoints that several processes write


def test_checkpoints_hold_the_same_numbers_whoever_wrote_them(home):
    for name in ("two", "two-sharded", "four-hybrid"):
        read = load_checkpoint(home / name).tensors
        one = load_checkpoint(home / f"one-{CUT}").tensors
        assert read.keys() == one.keys() == {"weights", "optimizer", "ema"}
        for stem, tensors in one.items():
            assert tensors.keys() == read[stem].keys()
            for k, x in tensors.items():
                assert x.shape == read[stem][k].shape and x.dtype == read[stem][k].dtype
                assert torch.allclose(x, read[stem][k], atol=1e-4)


@pytest.mark.parametrize("name, n", [("two", 2), ("two-sharded", 2), ("four-hybrid", 4)])
def test_each_process_writes_its_part_and_no_number_is_written_twice(home, name, n):
    n_bytes = {}
    for path in (home / name / f"step-{CUT:06d}").glob("*/shard-*.safetensors"):
        with safe_open(path, "pt") as file:
            names = file.keys()
            size = sum(file.get_tensor(key).nbytes for key in names)
        n_bytes[path.name[:11]] = n_bytes.get(path.name[:11], 0) + size
    one = load_checkpoint(home / f"one-{CUT}").tensors
    complete = sum(x.nbytes for tensors in one.values() for x in tensors.values())
    assert n_bytes.keys() == {f"shard-{rank + 1:05d}" for rank in range(n)}
    assert sum(n_bytes.values()) == complete and max(n_bytes.values()) < 1.2 * complete / n


def test_copies_are_dealt_out_alike_whatever_the_order_of_the_names():
    """Of one process, what it resumed from may stand in another order than in the next one."""
    sizes = {"a": 5, "b": 3, "c": 900, "d": 3, "e": 1}
    tensors = {name: torch.zeros(n) for name, n in sizes.items()}
    orders = [["a", "b", "c", "d", "e"], ["e", "c", "a", "d", "b"], ["d", "e", "b", "c", "a"]]
    dealt = [
        list(to_write({"x": {name: tensors[name] for name in order}}, Processes(rank, 3))["x"])
        for rank, order in enumerate(orders)
    ]
    assert sorted(name for names in dealt for name in names) == sorted(sizes)
    assert ["c"] in dealt, "the largest goes alone"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_s_own_reader_reads_them_too(home):
    folder = home / "two-sharded" / f"step-{CUT:06d}"
    for stem, tensors in load_checkpoint(folder.parent).tensors.items():
        read = {k: torch.full_like(x, torch.nan) for k, x in tensors.items()}
        read = {k: x for k, x in read.items() if x.dim()}  # it cannot slice a single number
        torch.distributed.checkpoint.load(
            read, storage_reader=HuggingFaceStorageReader(str(folder / stem))
        )
        assert read and all(torch.equal(x, tensors[k]) for k, x in read.items())


def test_a_damaged_shard_is_found_out_and_the_checkpoint_before_is_used(home, tmp_path):
    old, new = (tmp_path / f"step-{step:06d}" for step in (CUT, 8))
    shutil.copytree(home / "two-sharded" / old.name, old)
    shutil.copytree(home / "three-sharded" / new.name, new)
    shard = sorted(new.glob("optimizer/*"))[-1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match=r"optimizer/shard-00003-\S+ is not what was written"):
        assert load_checkpoint(tmp_path).state["step"] == CUT


def test_when_one_process_cannot_write_the_checkpoint_before_stays_and_one_line_is_said(home):
    folder = home / "full"
    line = (home / "full-0.txt").read_text()
    assert "No space left" in line and ".step-000001.tmp" in line
    assert (home / "full-1.txt").read_text() == "SystemExit: 2"
    assert [path.name for path in folder.iterdir()] == ["step-000000"]
    assert load_checkpoint(folder).state["step"] == 0


# ---- what goes wrong


def test_when_the_first_fails_the_others_leave_and_say_nothing(home):
    assert (home / "fails-0.txt").read_text() == "OSError('disk full')" and (
        home / "fails-1.txt"
    ).read_text() == "SystemExit(2)"


def test_when_one_dies_the_others_stop_with_one_line(home):
    assert json.loads((home / "codes.json").read_text())["one_dies"] == [2, 9]
    line = (home / "lost-0.txt").read_text()
    assert (
        "another process of this training is gone" in line
        and "goes on from the last checkpoint" in line
        and "\n" not in line
    )


def test_checkpoints_that_not_all_see_are_refused(tmp_path):
    class Split(Processes):
        def all_gather(self, number):
            return [number, 400]

    it = object.__new__(Trainer)
    it.folder = tmp_path
    it.processes = Split(0, 2)
    with pytest.raises(UserError, match="on a file system that all of them share"):
        it.resume()


@pytest.mark.parametrize("rank, met, waits", [(0, False, []), (1, False, [""]), (1, True, [])])
def test_before_they_meet_a_machine_s_first_process_says_what_is_wrong(
    rank, met, waits, monkeypatch, capsys
):
    """The others wait to be ended by torchrun, which ends all once one has ended, and speak only
    when nobody does.
    """
    monkeypatch.setattr("mmtok.train.distributed.initialized", met)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    waited = []
    monkeypatch.setattr(time, "sleep", lambda seconds: waited.append(capsys.readouterr().err))
    assert main(["train", "nowhere.py"]) == 2 and waited == waits
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("mmtok: " if rank == 0 else "mmtok (process 1): ") and "nowhere.py" in line
    )


# ---- alone


def test_alone_everything_is_answered_at_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with init_distributed(device="cpu") as processes:
        assert (
            processes == SINGLE_PROCESS
            and processes.is_rank0
            and processes.all_reduce(3, 0.5) == [3, 0.5]
            and processes.all_gather(7) == [7]
        )
        assert processes.on_rank0(lambda: "done") == "done"
    gradient = torch.ones(3)
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = gradient
    processes.sum_gradients([parameter])
    assert (
        parameter.grad is gradient
        and not is_sharded(gradient)
        and not torch.distributed.is_initialized()
    )


# ---- torchrun


@pytest.mark.slow
def test_under_torchrun_a_wrong_field_is_said_once(tiny_words, tmp_path):
    words = ["-m", "mmtok", "train", *tiny_words, "--out", tmp_path / "run", "--train.stepz", "3"]
    command = [*TORCHRUN, "--nproc-per-node", "2", *words]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    said = [line for line in done.stderr.splitlines() if "stepz" in line]
    assert (
        done.returncode
        and len(said) == 1
        and said[0].startswith("mmtok: the recipe has no field --train.stepz")
    )


@pytest.mark.slow
def test_under_torchrun_killed_at_two_processes_and_resumed_at_three(tiny_words, tmp_path):
    words = [
        "-m",
        "mmtok",
        "train",
        *tiny_words,
        "--train.precision",
        "float32",
        "--train.steps",
        "300",
        "--log_every",
        "10",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words, "--out", tmp_path / "one"], check=True, env=environment)

    out = tmp_path / "many"

    def command(n):
        return [
            *TORCHRUN,
            "--nproc-per-node",
            str(n),
            *words,
            "--out",
            out,
            "--train.fsdp",
            str(n == 3),
        ]

    two = subprocess.Popen(command(2), stderr=subprocess.PIPE, text=True, env=environment)
    while not (out / "checkpoints" / "step-000020").exists():
        assert two.poll() is None
        time.sleep(0.02)
    again = subprocess.run(
        [sys.executable, *words, "--out", out], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert (
        again.returncode == 2
        and "is being written by process" in again.stderr
        and len(again.stderr.splitlines()) == 1
    )
    os.kill(int(re.search(r"process (\d+)", again.stderr)[1]), signal.SIGKILL)
    assert (
        "another process of this training is gone" in two.communicate(timeout=60)[1]
        and two.returncode
    )
    assert not (out / "model.safetensors").exists()

    three = subprocess.run(command(3), stderr=subprocess.PIPE, text=True, env=environment)
    assert (
        three.returncode == 0
        and "sharded over 3 processes" in three.stderr
        and "resuming at step" in three.stderr
    )
    log = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "many")]
    assert (
        [line["step"] for line in log[0]]
        == [line["step"] for line in log[1]]
        == list(range(10, 301, 10))
    )
    assert [line["loss"] for line in log[1]] == pytest.approx(
        [line["loss"] for line in log[0]], rel=1e-2
    )  # sums in another order, 300 steps long
    assert [line["loss"] for line in log[1][:5]] == pytest.approx(
        [line["loss"] for line in log[0][:5]], abs=1e-5
    )
