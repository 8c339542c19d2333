"""Kernels for a GPU, run by Triton's interpreter: the results of torch's operations."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TOLERANCE = {"derivative torch.bfloat16": 4e-3}  # of one rounding


@pytest.mark.skipif(find_spec("triton") is None, reason="this torch comes without Triton")
def test_the_kernels_give_what_torch_gives():
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert len(figures) == 21
    for name, difference in figures.items():
        assert difference < TOLERANCE.get(name, 5e-6), name
