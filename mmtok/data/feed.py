"""What steps read, made one step ahead by a thread beside the device's work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Feed(Generic[T]):
    """make(step) of one step after the other.

    make: a pure function of the step, where `ahead`: the next step's is made while this one's is
    used, by one thread. What it raises is raised when its step is asked for. As a context, the
    thread ends with it.
    """

    def __init__(self, make: Callable[[int], T], ahead: bool) -> None:
        self._make = make
        self._ahead = ahead
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[T]] | None = None

    def work(self, step: int) -> T:
        """What this step reads."""
        if not self._ahead or self._pool is None:
            return self._make(step)
        if self._next is None or self._next[0] != step:
            self._next = (step, self._pool.submit(self._make, step))
        made = self._next[1].result()
        self._next = (step + 1, self._pool.submit(self._make, step + 1))
        return made

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(1, "feed")
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None
        self._next = None
