"""Worker processes that apply one function to many items; results come in the items' order.

Each worker is a fresh interpreter that imports what the function needs and nothing of the script
that asked for it. It computes in one thread, does not hear Ctrl-C, and ends as soon as the process
that started it is gone, however that ended.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from mmtok.errors import UserError

SENT_AHEAD = 2  # items that a worker has, so that it need not wait for the next
WINDOW = 3  # items a worker, at most, between the first that is not done and the newest sent
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # variables of libraries
START = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " getattr(importlib.import_module(sys.argv[2]), 'serve')(int(sys.argv[3]))"
)
READY = "ready"
DONE = "done"
FAILED = "failed"
UNKNOWN = "unknown"  # what was sent cannot be unpickled there


def n_workers() -> int:
    """One per core that this process may use, or its share of these under torchrun.

    The variable MMTOK_WORKERS says another number. Raises UserError where that is none.
    """
    asked = os.environ.get("MMTOK_WORKERS", "")
    if asked:
        if not asked.isdecimal() or int(asked) < 1:
            raise UserError(f"MMTOK_WORKERS is {asked!r}; it must be a number from 1")
        return int(asked)
    try:
        n = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has none
        n = os.cpu_count() or 1
    return max(1, n // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Workers:
    """Some processes that call a function: `with Workers(function, 2) as workers`.

    They start and import what the function needs while their maker does other work, and call the
    function's own `get_ready()`, where it has one.
    """

    def __init__(self, function: Callable[[Any], Any], n: int) -> None:
        self._function = function
        self._processes: list[subprocess.Popen] = []
        self._connections: list[Connection] = []
        self._are_ready: bool | None = None  # not asked yet
        content = pickled(function)
        if content is None:
            self._are_ready = False
            return
        try:
            for _ in range(n):
                self._start_one(content)
        except BaseException:
            self.close()
            raise

    def _start_one(self, content: bytes) -> None:
        process, connection = start_interpreter(__name__)
        self._processes.append(process)
        self._connections.append(connection)
        self._send(len(self._connections) - 1, content)

    def are_ready(self) -> bool:
        """Whether all of them could import the function; waits until that is known."""
        if self._are_ready is None:
            workers = range(len(self._connections))
            self._are_ready = all([self._receive(worker)[1] == READY for worker in workers])
        return self._are_ready

    def map(self, items: Iterable[Any], simpler: Callable[[Any], Any]) -> Iterator[Any]:
        """The function's result for each item, in order. Only some of the items are held at once.

        simpler: makes another item of one that cannot be pickled or unpickled; where that cannot
        be either, the function is called here.

        Raises what the function raised for the first item that it failed on, and UserError where a
        worker ended.
        """
        waiting = _Waiting(items, len(self._connections))
        for number in count():
            while number not in waiting.results:
                self._hand_out(waiting, number, simpler)
                if number in waiting.results:
                    break
                if number == waiting.n_sent:
                    return
                for worker in self._ready():
                    self._take_in(waiting, worker, simpler)
            kind, value = waiting.results.pop(number)
            waiting.items.pop(number)
            self._hand_out(waiting, number + 1, simpler)  # else they wait while the caller works
            if kind == FAILED:
                raise value
            yield value

    def _hand_out(self, waiting: _Waiting, first: int, simpler: Callable[[Any], Any]) -> None:
        """Send items while there are workers that could do with one more.

        first: the number of the first item whose result was not given out.
        """
        while waiting.n_sent - first < WINDOW * len(waiting.loads):
            worker = min(range(len(waiting.loads)), key=waiting.load_of)
            if waiting.load_of(worker) == SENT_AHEAD or not waiting.take_next():
                return
            number = waiting.n_sent - 1
            item = waiting.items[number]
            content = pickled(item)
            if content is None:
                item = waiting.items[number] = simpler(item)
                content = pickled(item)
            if content is None:
                waiting.results[number] = self._here(item)
                continue
            self._send(worker, pickle.dumps((number, content)))
            waiting.loads[worker].add(number)

    def _take_in(self, waiting: _Waiting, worker: int, simpler: Callable[[Any], Any]) -> None:
        """Keep a result, or help where an item means nothing to the worker."""
        number, kind, value = self._receive(worker)
        if kind == UNKNOWN and number not in waiting.simplified:
            waiting.simplified.add(number)
            item = waiting.items[number] = simpler(waiting.items[number])
            content = pickled(item)
            if content is not None:
                self._send(worker, pickle.dumps((number, content)))
                return
        waiting.loads[worker].remove(number)
        waiting.results[number] = kind, value
        if kind == UNKNOWN:
            waiting.results[number] = self._here(waiting.items[number])

    def _here(self, item: Any) -> tuple[str, Any]:
        return DONE, self._function(item)

    def _ready(self) -> list[int]:
        """The workers that have something to say; waits for one."""
        ready = wait(self._connections)
        return [w for w, connection in enumerate(self._connections) if connection in ready]

    def _send(self, worker: int, content: bytes) -> None:
        try:
            self._connections[worker].send_bytes(content)
        except OSError:
            raise self._ended(worker) from None

    def _receive(self, worker: int) -> tuple[int, str, Any]:
        try:
            return receive_value(self._connections[worker])
        except (EOFError, OSError):
            raise self._ended(worker) from None

    def _ended(self, worker: int) -> UserError:
        how = how_it_ended(self._processes[worker])
        return UserError(
            f"a worker process ended ({how}); where memory is short, have fewer of them:"
            " --workers 1, or MMTOK_WORKERS=1"
        )

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Waiting:
    """What is between the items of one `Workers.map` and their results.

    Attributes:
        items: those that were taken and whose results were not given out, by number.
        n_sent: how many were taken so far.
        loads: the numbers of the items that each worker has.
        simplified: the numbers of those that a worker could not unpickle at first.
        results: (kind, value), by number.
    """

    def __init__(self, items: Iterable[Any], n_workers: int) -> None:
        self._left = iter(items)
        self.items: dict[int, Any] = {}
        self.n_sent = 0
        self.loads: list[set[int]] = [set() for _ in range(n_workers)]
        self.simplified: set[int] = set()
        self.results: dict[int, tuple[str, Any]] = {}

    def load_of(self, worker: int) -> int:
        """How many items a worker has."""
        return len(self.loads[worker])

    def take_next(self) -> bool:
        """Take one more item; False where there is none."""
        for item in self._left:
            self.items[self.n_sent] = item
            self.n_sent += 1
            return True
        return False


def start_interpreter(module: str) -> tuple[subprocess.Popen, Connection]:
    """A fresh interpreter that computes in one thread, and a connection to it.

    module: its function `serve` is called there with the number of the connection's file. It must
    end the process once the connection is closed.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(sys.path), module, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=2,
            env={**os.environ, **dict.fromkeys(THREADS, "1")},
            pass_fds=(theirs.fileno(),),
            process_group=0,  # a terminal's Ctrl-C is not for them
        )
    return process, Connection(ours.detach())


def how_it_ended(process: subprocess.Popen) -> str:
    """How a process ended, in words; waits for its end."""
    code = process.wait()
    if code < 0:
        return f"signal {-code}"
    return f"exit code {code}"


def pickled(value: Any) -> bytes | None:
    """A value as bytes; None where it cannot be pickled."""
    try:
        return pickle.dumps(value)
    # local classes and functions, locks and handles: each has an exception of its own
    except Exception:
        return None


def send_value(connection: Connection, value: Any) -> None:
    """Send what can be pickled; the memory of its arrays and buffers goes as it is, uncopied."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    connection.send_bytes(pickle.dumps((content, [len(view) for view in views])))
    for view in views:
        sent = 0
        while sent < len(view):
            sent += os.write(connection.fileno(), view[sent:])


def receive_value(connection: Connection) -> Any:
    """What `send_value` sent. Raises EOFError or OSError where the sender ended."""
    content, sizes = pickle.loads(connection.recv_bytes())
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            n = os.readv(connection.fileno(), [view])
            if not n:
                raise EOFError
            view = view[n:]
    return pickle.loads(content, buffers=buffers)


# ---- in the worker


def serve(file: int) -> None:
    """The work of a worker: call the function that comes first on the items that follow."""
    connection = Connection(file)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    function = _loaded(inbox.get())
    _answer(connection, 0, UNKNOWN if function is None else READY)
    if get_ready := getattr(function, "get_ready", None):
        get_ready()
    while True:
        number, content = pickle.loads(inbox.get())
        item = _loaded(content)
        if item is None or function is None:
            _answer(connection, number, UNKNOWN)
            continue
        try:
            result = function(item)
        except Exception as error:
            _answer(connection, number, FAILED, sendable(error))
        else:
            _answer(connection, number, DONE, result)


def _listen(connection: Connection, inbox: queue.SimpleQueue[bytes]) -> None:
    """Take in what is sent, so that no sender waits; end with the process that sends it."""
    while True:
        try:
            inbox.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)


def _loaded(content: bytes) -> Any:
    """What was pickled; None where its classes cannot be imported here."""
    try:
        return pickle.loads(content)
    except Exception:
        return None


def _answer(connection: Connection, number: int, kind: str, value: Any = None) -> None:
    try:
        send_value(connection, (number, kind, value))
    except OSError:
        os._exit(0)


def sendable(error: Exception) -> Exception:
    """An error as it can be sent; a bug brings its traceback along."""
    if not isinstance(error, (UserError, OSError)):
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    if pickled(error) is None or _loaded(pickle.dumps(error)) is None:
        return RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
    return error
