"""Whose weights a decoder began with."""

from __future__ import annotations

from dataclasses import dataclass

from mmtok.io.messages import counted, listed


@dataclass(frozen=True)
class Origin:
    """Whose weights a decoder began with, and how much of it.

    Attributes:
        n_copied: numbers of the new decoder that are the old one's.
        n_new: numbers that keep their first values.
        left_out: parts of the old decoder that the new one has no place for.
        run: the old decoder's folder.
        sha256: of its weights.
    """

    n_copied: int
    n_new: int
    left_out: tuple[str, ...]
    run: str = ""
    sha256: str | None = None

    def __str__(self) -> str:
        text = f"weights of {self.run}: {self.n_copied:,} numbers, and {self.n_new:,} that are new"
        if self.left_out:
            parts = counted(len(self.left_out), "part")
            text += f"; {parts} left out: {listed(self.left_out)}"
        return text
