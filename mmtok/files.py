"""Files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmtok import budget
from mmtok.doors import reading

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")  # the name of a file while it is written, and by which process


@contextmanager
def in_place_when_whole(path: Path) -> Iterator[Path]:
    """A temporary name to write under; the file appears under its own when it is whole, or nothing is left.

    Raises OSError that names the file also where the writer's own error named none, as on a full disk. Only a process that is killed
    leaves its temporary file behind: see `sweep`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise  # of another file that the writer touched
        raise OSError(error.errno, os.strerror(error.errno) if error.errno else str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    with in_place_when_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with in_place_when_whole(path) as temporary:
        temporary.write_bytes(content)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    with in_place_when_whole(path) as temporary:
        save_tensors(temporary, tensors, metadata)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file under a name that is temporary already, as `write_tensors` and checkpoints do.

    Raises OSError naming `path` (a full disk, say), which safetensors wraps in a type of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata=metadata)
        path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors writes for the owner alone; who may read the folder may read it too
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(path)) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds. Raises BadInput for one that is missing, damaged, or larger than the memory budget."""
    from safetensors.torch import load_file

    if path.exists():
        budget.need(path.stat().st_size, path)
    with reading(path, "weights"):
        return load_file(path)


def is_temporary(path: Path) -> bool:
    """Whether this is the name of a file that was never finished, or is being written now."""
    return TEMPORARY.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder` and below; for whoever alone writes there, before it does.

    That is files and folders under temporary names. A process of another machine counts as killed, one of this machine while none has
    its number.
    """
    for path in list(folder.rglob(".*.tmp")):
        if is_temporary(path) and not _lives(int(TEMPORARY.fullmatch(path.name)[1])):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether another process has this number. This one's own is no longer that of what it has not begun yet."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return process != os.getpid()
