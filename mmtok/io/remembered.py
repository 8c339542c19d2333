"""What was found in files, remembered in this process until they change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

R = TypeVar("R")


class Remembered(Generic[R]):
    """Remembers what was found in the last `most` files: `remembered(path, find)`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._found: OrderedDict[Hashable, R] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, path: Path, find: Callable[[], R], *about: Hashable) -> R:
        """What `find` gives for a file; it is called once while size and time of the file stand.

        about: what else it depends on.

        Raises OSError for a file that is not there, and what `find` raises, which is forgotten.
        """
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns, about)
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        found = find()
        with self._lock:
            self._found[key] = found
            while len(self._found) > self.most:
                self._found.popitem(last=False)
        return found

    def forget(self) -> None:
        """Forget all of it."""
        with self._lock:
            self._found.clear()
