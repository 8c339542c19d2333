"""A folder that one process at a time writes into."""

from __future__ import annotations

import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from mmtok.errors import UserError
from mmtok.io.files import check_folder_fits

LOCK = ".lock"


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock a folder for writing; it is made if missing.

    The lock ends with the process that holds it, however that ends: a lock file that was left
    behind locks nobody out. Folders that were made here and are still empty at the end are removed.

    Raises UserError, naming the holder, while another process holds the lock, and if a file is in
    the folder's place.
    """
    check_folder_fits(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _file_lock(folder / LOCK):
            yield
    finally:
        for path in made:
            if path.is_dir() and any(path.iterdir()):
                break
            # missing where an exchange of folders was interrupted and has set it aside
            with suppress(FileNotFoundError):
                path.rmdir()


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    while True:
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(
                    f"{path.parent} is being written by {file.read() or 'another process'}: wait"
                    " for its end, or choose another --out"
                ) from None
            except OSError as error:
                warnings.warn(
                    f"{path.parent} cannot be locked ({error.strerror}): do not train it twice at"
                    " once",
                    stacklevel=4,
                )
            if not _is_file_at(file, path):  # its former holder has just removed it: try again
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_file_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
