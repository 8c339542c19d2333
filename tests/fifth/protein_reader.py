"""FASTA files: a header line ">NAME FAMILY", then the residues, on as many lines as they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.signal_files import SignalFiles
from mmtok.sources.base import Source


def read_fasta(path: Path) -> list[tuple[str, str]]:
    """(family, residues) of every record.

    Raises UserError for a missing file, or one that is no FASTA.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    records = [record.partition("\n") for record in path.read_text().split(">")[1:]]
    if not records:
        raise UserError(f"{path}: not FASTA: no line begins with '>'")
    return [(header.split()[-1], "".join(lines.split())) for header, _, lines in records]


def read_proteins(path: Path, takes: Mapping[str, Any]) -> list[str]:
    """The residues of every record."""
    return [protein for _, protein in read_fasta(path)]


def write_proteins(path: Path, proteins: Sequence[str], takes: Mapping[str, Any]) -> None:
    """A record for each protein, named by its number."""
    write_text(path, "".join(f">{i}\n{protein}\n" for i, protein in enumerate(proteins)))


FASTA = SignalFiles((".fasta", ".fa"), ".fasta", read_proteins, write_proteins, many=True)


@dataclass(frozen=True)
class FastaFile(Source):
    """Examples {"family": text, "protein": residues}; every tenth record is held out."""

    path: str = ""

    @property
    def fields(self) -> dict[str, str]:
        return {"family": "text", "protein": "protein"}

    def examples(self, split: str, cache: Path) -> Iterator[dict]:
        for i, (family, protein) in enumerate(read_fasta(Path(self.path))):
            if (i % 10 == 0) == (split == "heldout"):
                yield {"family": family, "protein": protein}
