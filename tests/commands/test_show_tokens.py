"""What `mmtok show` says of token files."""

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.commands.show_tokens import describe_tokens, histogram
from mmtok.core.segment import Segment, Signature
from mmtok.data.tokens import write_tokens
from mmtok.errors import UserError

SPEECH = Signature("speech", (16,) * 2, fingerprint="abc")
JETS = Signature("jets", (9, 9, 9), descending=True, headers=2, fingerprint="def")


def clip(n, seconds):
    info = {"n_samples": int(16_000 * seconds), "rate_hz": 16_000}
    return {"speech": Segment("speech", codes=np.zeros((n, 2), np.int32), info=info)}


def test_lengths_hours_quantiles_and_a_histogram(tmp_path):
    rows = [clip(n, 900) for n in range(10, 50)]
    write_tokens(tmp_path / "t.parquet", {"speech": SPEECH}, rows)
    lines = describe_tokens(tmp_path / "t.parquet").splitlines()
    assert lines[0] == f"{tmp_path}/t.parquet: token file, 40 rows"
    assert "in 40 rows, 1,180 frames (10 to 49 a row)" in lines[1]
    assert lines[2].endswith("236 bits a row, 0.2622 bit/s over 10 hours")
    quantiles = "5% 11.95, 25% 19.75, 50% 29.5, 75% 39.25, 95% 47.05"
    assert lines[4] == f"    frames a row: mean 29.5; quantiles {quantiles}"
    assert lines[5] == f"      10 to 13 {'#' * 40} 4" and len(lines) == 15


def test_few_rows_have_no_histogram(tmp_path):
    write_tokens(tmp_path / "t.parquet", {"speech": SPEECH}, [clip(n, 1) for n in range(1, 4)])
    assert len(describe_tokens(tmp_path / "t.parquet").splitlines()) == 4


def test_particles_are_frames_without_the_totals(tmp_path):
    jets = [Segment("jets", codes=np.full((n, 3), 3, np.int32)) for n in (5, 2, 9)]
    write_tokens(tmp_path / "t.parquet", {"jets": JETS}, [{"jets": jet} for jet in jets])
    assert "10 particles" in describe_tokens(tmp_path / "t.parquet")


def test_infos_and_truncated_rows_are_counted_as_the_segments_say(tmp_path):
    rows = [clip(3, 1 + i % 3) for i in range(10)] + [{}]
    rows[4]["speech"] = Segment("speech", codes=np.zeros((2, 2), np.int32), truncated=True)
    write_tokens(tmp_path / "t.parquet", {"speech": SPEECH}, rows, row_group=4)
    assert ", 1 truncated" in describe_tokens(tmp_path / "t.parquet")
    write_tokens(tmp_path / "u.parquet", {"speech": SPEECH}, rows[5:], row_group=2)
    assert "over 10 s" in describe_tokens(tmp_path / "u.parquet")


def test_a_folder_of_folders_is_shown_one_by_one(tiny_run, capsys, tmp_path):
    assert main(["show", str(tiny_run / "tokens")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("/")[2] for line in lines if "token file" in line] == [
        "0-ImageFolder: 1 token file, 14 rows",
        "1-SpeechFolder: 1 token file, 18 rows",
        "2-JetFile: 1 token file, 12 rows",
    ]
    with pytest.raises(UserError, match="no token files"):
        describe_tokens(tmp_path)


def test_a_histogram_of_whole_numbers():
    assert histogram(np.array([3, 3, 4, 6])) == [
        f"3 {'#' * 40} 2",
        f"4 {'#' * 20 + ' ' * 20} 1",
        f"5 {' ' * 40} 0",
        f"6 {'#' * 20 + ' ' * 20} 1",
    ]
    lines = histogram(np.array([0, 1000]))
    assert len(lines) == 10 and lines[0].startswith("   0 to  100 #")
    assert sum(int(line.split()[-1]) for line in lines) == 2
