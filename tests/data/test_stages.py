"""The record of stages: read as it was written, or refused."""

import json

import pytest

from mmtok.data.stages import RECORD, Stage, read_stages, write_stages
from mmtok.errors import UserError


def test_a_record_is_read_as_it_was_written(tmp_path):
    assert read_stages(tmp_path, 2) == []
    stages = [Stage(0, (1, 1)), Stage(34, (2, 1)), Stage(70, (3, 4))]
    write_stages(tmp_path, stages)
    assert read_stages(tmp_path, 2) == stages
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [(4, [1])],
        [(0, [1]), (0, [2])],
        [(0, [2]), (5, [1])],
        [(0, [1, 1])],
        [(0, [0])],
        [(0, ["1"])],
        "none",
    ],
)
def test_a_damaged_record_is_refused_in_one_line(tmp_path, stages):
    plain = stages
    if isinstance(stages, list):
        plain = [{"step": step, "parts": parts} for step, parts in stages]
    (tmp_path / RECORD).write_text(json.dumps({"stages": plain}))
    with pytest.raises(UserError, match=RECORD.replace(".", r"\.")) as caught:
        read_stages(tmp_path, 1)
    assert "\n" not in str(caught.value)
