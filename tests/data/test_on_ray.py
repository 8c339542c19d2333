"""Parts that a Ray cluster makes are those of one process."""

import pytest

from mmtok.cli import main
from mmtok.data import parts as parts_room

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """A Ray of this machine with two workers."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def letters(tmp_path, monkeypatch):
    folder = tmp_path / "letters"
    folder.mkdir()
    for i in range(23):
        (folder / f"{i:02d}.txt").write_text("abc"[: 1 + i % 3] * (i + 1))
    monkeypatch.setattr("mmtok.commands.tokenize.CHUNK", 2)
    monkeypatch.setattr("mmtok.data.tokenise.CHUNK", 2)
    monkeypatch.setattr(parts_room, "CHUNKS", 1)
    return folder


def test_a_cluster_makes_the_files_of_one_process(cluster, letters, tmp_path, contents):
    words = ["tokenize", "text", str(letters), "-o"]
    assert main([*words, f"{tmp_path}/one/"]) == 0
    assert main([*words, f"{tmp_path}/ray/", "--ray"]) == 0
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    for k in (3, 7):
        parts_room.part_path(tmp_path / "ray", k).unlink()
    (tmp_path / "ray" / "complete.json").unlink()
    assert main([*words, f"{tmp_path}/ray/", "--ray"]) == 0
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


def test_a_task_s_error_is_one_line(cluster, letters, tmp_path, said):
    (letters / "07.txt").write_bytes(b"\xff")
    line = said(["tokenize", "text", letters, "-o", f"{tmp_path}/ray/", "--ray"])
    assert line.startswith(f"mmtok: {letters}/07.txt: not UTF-8")


def test_where_no_cluster_is(letters, tmp_path, said):
    if ray.is_initialized():
        ray.shutdown()
    line = said(["tokenize", "text", letters, "-o", f"{tmp_path}/ray/", "--ray", "127.0.0.1:1"])
    assert line.startswith("mmtok: --ray 127.0.0.1:1: no cluster can be reached there")
