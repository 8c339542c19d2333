"""Worker processes: results in order, errors as they would be here, and no process left behind."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from mmtok.errors import UserError
from mmtok.io.workers import Workers, n_workers, pickled, receive_value, send_value

HERE = Path(__file__).parent


class Task:
    """What the workers call; they can import it as this folder is on their path."""

    def __call__(self, item):
        if item == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "refuse":
            raise UserError("item: refused")
        if item == "break":
            raise ZeroDivisionError("by nothing")
        if isinstance(item, tuple):
            time.sleep(item[1])
            return item[0]
        return item


class Ready:
    """Says whether it was told to get ready."""

    is_ready = False

    def get_ready(self):
        self.is_ready = True

    def __call__(self, item):
        return self.is_ready, item


@pytest.fixture
def task(monkeypatch):
    """A `Task` of a module of its own name, which a fresh interpreter finds."""
    monkeypatch.syspath_prepend(str(HERE))
    import test_workers

    return test_workers.Task()


def simpler(item):
    return str(item)


def alive(workers):
    return [p for p in workers._processes if p.poll() is None]


def test_results_come_in_the_order_of_the_items_whoever_is_faster(task):
    items = [(i, 0.05 * (i % 3 == 0)) for i in range(20)]
    with Workers(task, 2) as workers:
        assert workers.are_ready()
        assert list(workers.map(iter(items), simpler)) == list(range(20))
        assert list(workers.map([], simpler)) == []
    assert not alive(workers)


def test_only_some_items_are_taken_before_their_results_are(task):
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    with Workers(task, 2) as workers:
        assert workers.are_ready()
        results = workers.map(items(), simpler)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        assert len(taken) <= 3 + 3 * 2


def test_the_error_of_the_first_item_that_fails_is_raised(task):
    with Workers(task, 2) as workers:
        assert workers.are_ready()
        results = workers.map([("slow", 0.3), "refuse", "break"], simpler)
        assert next(results) == "slow"
        with pytest.raises(UserError, match="^item: refused$"):
            next(results)
    with Workers(task, 1) as workers:
        assert workers.are_ready()
        with pytest.raises(ZeroDivisionError) as raised:
            list(workers.map(["break"], simpler))
    assert "in a worker process" in raised.value.__notes__[0] and "test_workers" in str(
        raised.value.__notes__
    )


def test_a_worker_that_dies_is_an_error_of_one_line(task):
    with Workers(task, 2) as workers:
        assert workers.are_ready()
        with pytest.raises(UserError, match=r"^a worker process ended \(signal 9\); .*--workers 1"):
            list(workers.map(["die", "a"], simpler))
    assert not alive(workers)


def test_what_a_worker_cannot_import_is_made_simpler_or_done_here(task):
    class Local:
        """Cannot be pickled."""

        def __str__(self):
            return "local"

    with Workers(task, 1) as workers:
        assert workers.are_ready()
        assert list(workers.map([1, Local(), 2], simpler)) == [1, "local", 2]
        local = Local()
        assert list(workers.map([local], lambda item: item)) == [local]
    with Workers(lambda item: item, 1) as workers:
        assert not workers.are_ready()


def test_a_class_that_exists_here_alone_is_made_simpler(task, tmp_path, monkeypatch):
    (tmp_path / "here_alone.py").write_text(
        "class Item:\n    def __str__(self):\n        return 'from here'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import here_alone

    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    item = here_alone.Item()
    assert pickled(item) is not None
    with Workers(task, 1) as workers:
        assert workers.are_ready()
        assert list(workers.map([1, item, 2], simpler)) == [1, "from here", 2]
    with Workers(here_alone.Item, 1) as workers:
        assert not workers.are_ready()


def test_workers_end_with_the_process_that_started_them(task):
    """Even where it is killed; here while both are busy."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_workers as t\n"
        "from mmtok.io.workers import Workers\n"
        "w = Workers(t.Task(), 2)\n"
        "assert w.are_ready()\n"
        "print(*[p.pid for p in w._processes], flush=True)\n"
        "list(w.map([(1, 60), (2, 60)], str))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(HERE)], stdout=subprocess.PIPE, text=True
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(map(psutil.pid_exists, pids))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, pids))


def test_values_with_large_buffers_arrive_whole_or_not_at_all():
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 256, (300, 2_000), np.uint8)
    value = ("a", rows, rows.T, rows[:0], rows[:, ::2], pa.py_buffer(rows.tobytes()))
    ours, theirs = map(Connection, (s.detach() for s in socket.socketpair()))
    with ours, ThreadPoolExecutor(1) as other:
        sent = other.submit(send_value, theirs, value)
        found = receive_value(ours)
        sent.result()
        assert found[0] == "a" and found[5].equals(value[5])
        for x, y in zip(found[1:5], value[1:5], strict=True):
            np.testing.assert_array_equal(x, y)
        theirs.send_bytes(pickle.dumps((b"", [10])))
        os.write(theirs.fileno(), b"only")
        theirs.close()
        with pytest.raises(EOFError):
            receive_value(ours)


def test_a_function_gets_ready_before_its_first_item(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import test_workers

    with Workers(test_workers.Ready(), 1) as workers:
        assert workers.are_ready()
        assert list(workers.map([1, 2], simpler)) == [(True, 1), (True, 2)]


def test_how_many_workers_there_are(monkeypatch):
    cores = len(os.sched_getaffinity(0))
    assert n_workers() == cores
    with monkeypatch.context() as macos:
        macos.delattr(os, "sched_getaffinity")
        assert n_workers() == os.cpu_count()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * cores))
    assert n_workers() == 1
    monkeypatch.setenv("MMTOK_WORKERS", "7")
    assert n_workers() == 7
    for wrong in ("0", "-1", "many"):
        monkeypatch.setenv("MMTOK_WORKERS", wrong)
        with pytest.raises(UserError, match="MMTOK_WORKERS"):
            n_workers()
