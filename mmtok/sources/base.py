"""The contract of a source: where examples come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


class Example(dict[str, Any]):
    """An example whose source knows which file or row it came from: `name`, as messages call it."""

    def __init__(self, fields: Mapping[str, Any], name: object):
        super().__init__(fields)
        self.name = str(name)


@runtime_checkable
class Source(Protocol):
    """A frozen dataclass whose fields are settings.

    It may have `check()`, which raises UserError
    when its files are not there: that is asked before a run folder is made. It may have
    `count(split, cache)`, how many examples a split has, where that is known
    without making them: then tokenising can tell how long it will take.
    """

    @property
    def fields(self) -> Mapping[str, str]:
        """Name of each field of its examples -> modality."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits it has, "train" and "heldout" among them; no example is in two."""

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """Examples of a split, field -> signal; always the same ones in the same order.

        An example may lack fields, and may be an `Example`, which says where it came from.

        cache: a folder (made if missing) for what is slow to make. Raises UserError for a split
        that it does not have.
        """
