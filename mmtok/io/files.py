"""Files, and folders of files, that appear whole or not at all, whatever happens while they are
written.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmtok.errors import reading
from mmtok.io import memory_budget

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = re.compile(
    r"\.(.+)\.(\d+)\.tmp", re.DOTALL
)  # of a file while it is written: its own name, and by which process
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name to write under; the file appears under its own when it is whole, or nothing
    is left.

    Raises OSError that names the file also where the writer's own error named none, as on a full
    disk. Only a process that is killed
    leaves its temporary file behind: see `remove_leftovers`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise  # of another file that the writer touched
        raise OSError(
            error.errno, os.strerror(error.errno) if error.errno else str(error), str(path)
        ) from error
    finally:
        with suppress(OSError):  # a folder that cannot be written has been named already
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """The name of a file or folder while this process writes it, beside its own."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all."""
    with atomic_write(path) as temporary:
        save_tensors(temporary, tensors, metadata)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file under a name that is temporary already, as `write_tensors` and
    checkpoints do.

    Raises OSError naming `path` (a full disk, say), which safetensors wraps in a type of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata=metadata
        )
        path.chmod(
            path.parent.stat().st_mode & 0o666
        )  # safetensors writes for the owner alone; who may read the folder may read it too
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(path)) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds.

    Raises UserError for one that is missing, damaged, or larger than the memory budget.
    """
    from safetensors.torch import load_file

    if path.exists():
        memory_budget.check(path.stat().st_size, path)
    with reading(path, "weights"):
        return load_file(path)


def is_temporary(path: Path) -> bool:
    """Whether this is the name of a file that was never finished, or is being written now."""
    return TEMPORARY.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder` and below; for whoever alone
    writes there, before it does.

    That is files and folders under temporary names. A process of another machine counts as killed,
    one of this machine while none has its number.
    """
    for path in list(folder.rglob(".*.tmp")):
        if is_temporary(path):
            _remove_unless_written(path)


def remove_leftovers_of(paths: Iterable[Path]) -> None:
    """Remove what killed processes left half-written of these files and folders; for whoever writes
    them next, wherever they lie.
    """
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        if not folder.is_dir():
            continue
        for left in list(folder.iterdir()):
            match = TEMPORARY.fullmatch(left.name)
            if match and match[1] in wanted:
                _remove_unless_written(left)


def _remove_unless_written(path: Path) -> None:
    """Remove a file or folder under a temporary name, unless the process that it is named after
    lives.
    """
    if _lives(int(TEMPORARY.fullmatch(path.name)[2])):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether another process has this number.

    This one's own is no longer that of what it has not begun yet.
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
    """A temporary folder to write into; when it is whole it takes the place of `folder`, or nothing
    changes.

    It is made beside, and the two are exchanged by one renaming. What else lies in the former
    folder goes along: all but the files of the names `ours`, of which it holds those that were
    written now. Where a system cannot exchange folders the former one is set aside for a moment;
    `recover_folder` brings it back if that is when the process is killed.
    """
    temporary = temporary_path(folder)
    remove_leftovers_of([folder])
    temporary.mkdir(parents=True)
    try:
        yield temporary
        former = {path.name for path in folder.iterdir() if not is_temporary(path)}
        for name in sorted(former - set(ours)):
            _linked(folder / name, temporary / name)
        shutil.copymode(folder, temporary)
        _exchanged(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Undo the first half of an exchange that was cut: where a former folder is set aside, it takes
    its place again.
    """
    aside = _aside(folder)
    if aside.is_dir():
        if folder.is_dir():
            shutil.rmtree(aside)  # the new one is in its place: only this was left to do
        else:
            aside.rename(folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")


def _exchanged(new: Path, folder: Path) -> None:
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
    """Let two folders of one file system change their names in one step; False where the system has
    no such call.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "renameat2", None)
    if call is None:
        return False
    sys.audit("os.rename", str(a), str(b), -1, -1)  # as Python's own renaming says
    return call(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0


def _linked(source: str | Path, target: str | Path) -> None:
    """The same file under a second name, or a folder of such; a copy where there can be no second
    name.
    """
    source = Path(source)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=_linked)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
