"""Atomic writes: a file or folder appears when it is complete, or not at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmtok.errors import UserError, reading
from mmtok.io import memory_budget

if TYPE_CHECKING:
    from torch import Tensor

# the name of a file while it is written: its own name, and the process that writes it
TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.tmp", re.DOTALL)
# constants of Linux
AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which is renamed to `path` at the end of the `with` block.

    After an error nothing is left. Only a process that is killed leaves its temporary file behind:
    see `remove_leftovers`.

    Raises OSError that names the file, also where the writer's error does not, as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise  # of another file that the writer touched
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        with suppress(OSError):  # a folder that cannot be written has been named already
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Where this process writes a file or folder: in the same folder, under a temporary name."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def check_folder_fits(folder: Path) -> None:
    """Raise UserError if a file is where a folder will be made, or where one above it would be."""
    for path in (folder, *folder.parents):
        if path.is_dir():
            return
        if path.exists():
            raise UserError(f"{path} is a file, and no folder can be made there: choose another -o")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically."""
    with atomic_write(path) as temporary:
        save_tensors(temporary, tensors, metadata)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; not atomic, for a path that is temporary already.

    Raises OSError naming `path` (on a full disk, say), which safetensors wraps in its own type.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata=metadata
        )
        # safetensors writes for the owner alone; whoever may read the folder may read the file
        path.chmod(path.parent.stat().st_mode & 0o666)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(path)) from None


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file.

    Raises UserError for a file that is missing, damaged, or larger than the memory budget.
    """
    from safetensors.torch import load_file

    if path.exists():
        memory_budget.check(path.stat().st_size, path)
    with reading(path, "weights"):
        return load_file(path)


def is_temporary(path: Path) -> bool:
    """Whether this is the path of a file that is being written, or was never finished."""
    return TEMPORARY.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of killed processes, in `folder` and below.

    For the only process that writes there. A process of this machine counts as killed when none has
    its number; one of another machine always.
    """
    for path in list(folder.rglob(".*.tmp")):
        if is_temporary(path):
            _remove_unless_written(path)


def remove_leftovers_of(paths: Iterable[Path]) -> None:
    """Remove what killed processes left of these files and folders; call it before writing them."""
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        if not folder.is_dir():
            continue
        for path in list(folder.iterdir()):
            match = TEMPORARY.fullmatch(path.name)
            if match and match[1] in wanted:
                _remove_unless_written(path)


def _remove_unless_written(path: Path) -> None:
    """Remove a file or folder under a temporary name, unless the process in the name is alive."""
    match = TEMPORARY.fullmatch(path.name)
    if match is None or _is_alive(int(match[2])):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Whether another process has this number.

    This process's own number does not count: a file of that name is a dead process's.
    """
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return process != os.getpid()


# ---- folders


@contextmanager
def atomic_folder(folder: Path, ours: Collection[str]) -> Iterator[Path]:
    """A temporary folder to write into, which takes the place of `folder` at the end of the block.

    After an error nothing has changed. The two folders are exchanged by one renaming. Other files
    of the former folder are kept: all but those named `ours`, which are replaced by what was
    written. Where a system cannot exchange folders the former one is set aside for a moment;
    `recover_folder` restores it if the process is killed then.
    """
    temporary = temporary_path(folder)
    remove_leftovers_of([folder])
    temporary.mkdir(parents=True)
    try:
        yield temporary
        former = {path.name for path in folder.iterdir() if not is_temporary(path)}
        for name in sorted(former - set(ours)):
            _link(folder / name, temporary / name)
        shutil.copymode(folder, temporary)
        _replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Restore a folder that an interrupted `atomic_folder` has set aside."""
    aside = _aside(folder)
    if aside.is_dir():
        if folder.is_dir():
            shutil.rmtree(aside)  # the new one is in its place: only this was left to do
        else:
            aside.rename(folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")


def _replace_folder(new: Path, folder: Path) -> None:
    if _exchange(new, folder):
        return
    aside = _aside(folder)
    folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "renameat2", None)
    if call is None:
        return False
    sys.audit("os.rename", str(a), str(b), -1, -1)  # as os.rename does
    return call(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0


def _link(source: str | Path, target: str | Path) -> None:
    """Link a file, or all files of a folder; copy where links are not possible."""
    source = Path(source)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=_link)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
