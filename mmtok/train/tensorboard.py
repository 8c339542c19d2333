"""RUN/tensorboard: the log's lines as TensorBoard's scalars.

The log is what counts; this can be made from it anew at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mmtok.errors import missing_extra


def need_tensorboard() -> None:
    """Raises UserError without the package."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise missing_extra("--tensorboard", "tensorboard") from None


class Board:
    """A folder of event files, begun anew with the `lines` there are, so that a training that goes
    on has no step twice.

    A TensorBoard that watches the folder is told to forget what it has read. As a context it closes
    the file at the end.
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
        """One more line of the log, on the disk when this returns: `nats/text` is its
        line["nats"]["text"].
        """
        self._add(line)
        self._writer.flush()

    def _add(self, line: Mapping[str, Any]) -> None:
        for name, value in scalars(line):
            self._writer.add_scalar(name, value, line["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._writer.close()


def scalars(line: Mapping[str, Any], way: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line of the log by their names, nested ones joined by "/"; those that are
    None, and the step, are left out.
    """
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{way}{key}/")
        elif value is not None and (way or key != "step"):
            yield way + key, value
