"""RUN/tensorboard: the lines of the log as TensorBoard's scalars.

It can be made anew from the log at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mmtok.errors import missing_extra


def need_tensorboard() -> None:
    """Raise UserError without the package."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise missing_extra("--tensorboard", "tensorboard") from None


class TensorBoardWriter:
    """Writes lines of the log to a folder of event files; a context that closes the file.

    The folder begins anew with the `lines` so far, so that a resumed training has no step twice. A
    TensorBoard that shows the folder drops what it has read.
    """

    def __init__(self, folder: Path, lines: Sequence[Mapping[str, Any]] = ()):
        need_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder), purge_step=0)
        for line in lines:
            self._add(line)
        self._writer.flush()

    def add(self, line: Mapping[str, Any]) -> None:
        """Write one line of the log to the disk; line["nats"]["text"] becomes `nats/text`."""
        self._add(line)
        self._writer.flush()

    def _add(self, line: Mapping[str, Any]) -> None:
        for name, value in scalars(line):
            self._writer.add_scalar(name, value, line["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def scalars(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The names and numbers of a line of the log, nested names joined by "/".

    The step, and what is None, are left out.
    """
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{key}/")
        elif value is not None and (prefix or key != "step"):
            yield prefix + key, value
