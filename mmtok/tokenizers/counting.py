"""Tokenizers that count what encoding clips or cuts, and say it once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmtok.tokenizers.base import BatchTokenizer, EncodingCount


class CountingTokenizer(BatchTokenizer):
    """A tokenizer whose calls within `counting` share one count; every other call has its own."""

    _shared_count: Any = None  # of the calls within `counting`

    @abstractmethod
    def new_count(self) -> EncodingCount:
        """A count of nothing yet."""

    @contextmanager
    def counting(self, quiet: bool = False) -> Iterator[Any]:
        """Report once, for all calls within it, and refuse at its end; see `Tokenizer.counting`.

        quiet: do neither, as it was done before, or will be by who takes the count.
        """
        outer = self._shared_count
        count = self._shared_count = self.new_count()
        try:
            yield count
        finally:
            self._shared_count = outer
        if not quiet:
            count.report()

    @contextmanager
    def count_of_call(self) -> Iterator[Any]:
        """The count that a call of `encode_batch` adds to; reported here where nobody else does."""
        if self._shared_count is not None:
            yield self._shared_count
            return
        count = self.new_count()
        yield count
        self.report_call(count)

    def report_call(self, count: Any) -> None:
        """Report the count of a single call."""
        count.report()
