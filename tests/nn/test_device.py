"""One place decides which device computes; what is not there is refused in one line."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmtok.errors import UserError
from mmtok.nn.device import (
    local_device,
    missing_for_kernels,
    resolve_device,
    resolve_distributed_device,
    stay_on_cpu,
)

ROOT = Path(__file__).parents[2]
ASKS = re.compile(r"(cuda|mps)\.(is_available|device_count)\(")


def test_nothing_else_asks_which_devices_there_are():
    asking = {
        path.relative_to(ROOT).as_posix()
        for room in ("mmtok", "scripts", "recipes")
        for path in (ROOT / room).rglob("*.py")
        if ASKS.search(path.read_text())
    }
    assert asking <= {
        "mmtok/nn/device.py",
        "scripts/reference.py",
    }  # the second names the GPUs of a machine


@pytest.fixture
def gpus(monkeypatch):
    """gpus(n): from now on torch finds so many."""

    def there(n):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "set_device", used.append)

    used: list[int] = []
    there.used = used
    there(0)
    return there


def test_names(gpus):
    assert (
        resolve_device() == resolve_device("cpu") == resolve_device("cpu:0") == torch.device("cpu")
    )
    gpus(2)
    assert resolve_device() == resolve_device("cuda") == torch.device("cuda")
    assert gpus.used == []
    assert resolve_device("cuda:1") == torch.device("cuda:1") and resolve_device(
        "cpu"
    ) == torch.device("cpu")
    assert gpus.used == [1]  # kernels are launched on the current device


@pytest.mark.parametrize(
    "n_gpus, name, parts",
    [
        (0, "cuda", ["--device cuda", "CUDA", "leave --device out"]),
        (0, "cuda:1", ["--device cuda:1"]),
        (0, "mps", ["Apple"]),
        (1, "cuda:1", ["there is one GPU here", "cuda:0"]),
        (2, "cuda:2", ["there are 2 GPUs"]),
        (2, "cpu:1", ["one cpu only"]),
        (0, "cdua", ["did you mean cuda?"]),
        (0, "CPU", ["did you mean cpu?"]),
        (0, "gpu", ["did you mean cuda?"]),
        (0, "mpu", ["did you mean"]),
        (2, "cuda:", ["did you mean cuda?"]),
        (2, "cuda:x", ["no such device"]),
        (2, "cuda:-1", ["no such device"]),
        (2, "cuda:²", ["no such"]),
        (2, "", ["it is cpu, cuda, cuda:1"]),
        (2, "0", ["it is cpu, cuda, cuda:1"]),
        (2, "xpu", ["no such device"]),
    ],
)
def test_what_is_not_there_is_refused(gpus, monkeypatch, n_gpus, name, parts):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    gpus(n_gpus)
    with pytest.raises(UserError) as error:
        resolve_device(name)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_several_processes_have_a_gpu_each_or_share_the_cpu(gpus):
    assert local_device(resolve_distributed_device(None), 3) == torch.device("cpu")
    gpus(2)
    assert local_device(resolve_distributed_device("cuda"), 1) == torch.device(
        "cuda:1"
    ) and local_device(resolve_distributed_device("cpu"), 5) == torch.device("cpu")
    with pytest.raises(
        UserError, match="process 2 .* there are 2: lower --nproc-per-node, or say --device cpu"
    ):
        local_device(resolve_distributed_device(None), 2)
    with pytest.raises(UserError, match="cuda:1: several processes cannot share it"):
        resolve_distributed_device("cuda:1")


def test_what_stays_on_the_cpu_says_so(gpus, recwarn):
    stay_on_cpu(None, "tokenizers work")
    stay_on_cpu("cpu", "tokenizers work")
    assert not recwarn
    gpus(1)
    with pytest.warns(UserWarning, match="--device cuda: tokenizers work on the CPU all the same"):
        stay_on_cpu("cuda", "tokenizers work")


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "RECIPE"],
        ["train", "RECIPE"],
        ["sample", "RUN", "--to", "image"],
        ["score", "RUN", "x"],
        ["evaluate", "RUN"],
        ["report", "RUN"],
        ["export", "RUN", "-o", "OUT"],
        ["tokenize", "text", "x", "-o", "OUT"],
        ["detokenize", "x", "-o", "OUT"],
    ],
)
def test_every_verb_that_computes_takes_a_device(said, gpus, tiny_words, tiny_run, tmp_path, words):
    there = {"RECIPE": tiny_words, "RUN": [str(tiny_run)], "OUT": [str(tmp_path / "out")]}
    asked = [part for word in words for part in there.get(word, [word])]
    assert said([*asked, "--device", "coda"]).startswith(
        "mmtok: --device coda: no such device; did you mean cuda?"
    )
    assert not (tmp_path / "out").exists()


def test_a_run_computes_where_it_is_told(tiny_run):
    from mmtok.run.run import open_run

    assert open_run(tiny_run, device=torch.device("meta")).untrained().device == torch.device(
        "meta"
    )
    assert open_run(tiny_run, device=torch.device("cpu")).lm.device == torch.device("cpu")


def test_processes_share_the_cpu_when_told_so_where_there_are_gpus():
    code = (
        "import torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "torch.cuda.device_count = lambda: 2\n"
        "from mmtok.train.distributed import init_distributed\n"
        "with init_distributed(device='cpu') as p:\n"
        "    print(p.device, torch.distributed.get_backend(), p.all_reduce(1.0), flush=True)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings | {"RANK": str(k), "LOCAL_RANK": str(k)},
        )
        for k in range(2)
    ]
    assert [process.communicate()[0] for process in started] == ["cpu gloo [2.0]\n"] * 2


def test_what_needs_float64_is_refused_where_there_is_none(latent_run):
    from mmtok.run.run import open_run

    with pytest.raises(
        UserError,
        match=(
            "--device mps: image is drawn by diffusion, which needs float64, and MPS has none; say"
            " --device cpu"
        ),
    ):
        open_run(latent_run("cascade"), device=torch.device("mps")).untrained()


def test_kernels_are_not_built_where_there_is_no_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    missing_for_kernels.cache_clear()
    try:
        assert missing_for_kernels() == "a C compiler (gcc)"
    finally:
        missing_for_kernels.cache_clear()
