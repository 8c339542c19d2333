"""One of two processes killed between changes of their checkpoints: nothing is lost, and
the training that goes on is the one that was not killed (killed_together.py trains).
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def lives(folder, every):
    subprocess.run(
        [sys.executable, Path(__file__).with_name("killed_together.py"), folder, str(every)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads((folder / "lives.json").read_text())


def assert_nothing_lost(told, n_lives):
    assert told["whole"] == [0, 0] and len(told["lives"]) >= n_lives
    for life in told["lives"]:
        other = 1 - life["victim"]
        assert life["killed"][life["victim"]] == -signal.SIGKILL, life
        assert life["killed"][other] in (0, 2), life
        assert life["again"] == [0, 0] and life["same"], life
        assert life["left"] == ["step-000002", "step-000003"], life
    for victim in (0, 1):  # the later it dies, the newer what it leaves
        steps = [life["step"] for life in told["lives"] if life["victim"] == victim]
        assert steps == sorted(steps)


@pytest.mark.slow
def test_killed_between_changes_of_a_checkpoint(tmp_path):
    told = lives(tmp_path, 3)  # 1 for all of them
    assert_nothing_lost(told, (told["changes 0"] + told["changes 1"]) // 3)
    assert {life["step"] for life in told["lives"] if life["victim"] == 0} == {0, 1, 2, 3}
